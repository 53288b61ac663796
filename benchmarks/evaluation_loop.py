"""What an evaluation costs: LISA's loop over the same weights and photographs against ours, and the score alone.

    python -m benchmarks.evaluation_loop [--record]

`expressions_ratio`: CPU time of LISA's loop (one row per expression, low tower and prefix computed for each, the
answer given, histograms of dense masks) over that of ours, which really generates (`_evaluation_arms`): RefCOCO's 7.2
expressions per photograph, a prefix of 616 tokens, LLM of width 256 with 4 layers, towers of the tiny size, one
thread. The arms take turns; the ratio is the median over the turns. `llm_ratio`: that of the language model alone.

`metric_ratio`: time of the usual score over time of ours, on the same masks. The usual method (LISA-like evaluations,
see docs/eval.md) holds prediction and truth as dense masks, gathers the pixels that agree and makes three histograms
of two bins. Ours holds run-length codes, judges them by the strict protocol and adds to the counters. Both run on one
thread and are measured in CPU time, which other programs hardly change; both must find the same areas. The
histograms get float masks, as the CPU wants them, so the figure includes no conversion. On a GPU the usual method is
faster, plus the copy of the masks to it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks._common import finish, interleaved, median_of, parser
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.scoring.metrics import Counts
from uniresxx.scoring.protocols import STRICT
from uniresxx.types import RLE, Expression, Granularity

if TYPE_CHECKING:
    from benchmarks._evaluation_arms import Sizes

HEIGHT, WIDTH = 480, 640  # the usual size of a COCO photo
PAIRS, PAIRS_SMALL = 60, 3
REPEATS = 7
SEED = 0

Areas = list[tuple[int, int]]  # (intersection, union) per pair


@dataclass(frozen=True, slots=True)
class Pair:
    """The truth of one expression and an answer to it."""

    truth: RLE
    answer: RLE


def blob(rng: np.random.Generator, centre: np.ndarray, radius: float, wobble: np.ndarray) -> list[float]:
    """A wavy outline like those people draw around things: 60 corners, pixels."""
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    waves = sum(w * np.sin(k * angle + rng.uniform(0, 0.3)) for k, w in enumerate(wobble, start=2))
    reach = radius * (1 + waves + rng.normal(0, 0.02, 60))
    corners = np.stack([centre[0] + reach * np.cos(angle), centre[1] + reach * np.sin(angle)], axis=1)
    return [float(value) for value in corners.clip(0, (WIDTH, HEIGHT)).ravel()]


def pairs(count: int) -> list[Pair]:
    """Referents of 1 to 25 % of the photo, every fourth in two pieces, and answers a few pixels off."""
    rng = np.random.default_rng(SEED)
    made = []
    for number in range(count):
        truth, answer = [], []
        for _ in range(2 if number % 4 == 0 else 1):
            centre = rng.uniform((0.25 * WIDTH, 0.25 * HEIGHT), (0.75 * WIDTH, 0.75 * HEIGHT))
            radius = np.sqrt(rng.uniform(0.01, 0.25) * WIDTH * HEIGHT / np.pi)
            wobble = rng.uniform(-0.15, 0.15, 5)
            truth.append(blob(rng, centre, radius, wobble))
            answer.append(blob(rng, centre + rng.normal(0, 4, 2), radius * rng.uniform(0.9, 1.1), wobble))
        made.append(Pair(*(masks.from_polygons(shape, HEIGHT, WIDTH) for shape in (truth, answer))))
    return made


def by_histograms(made: Sequence[Pair]) -> Callable[[], tuple[float, Areas]]:
    """The usual method, masks held dense: CPU seconds and areas."""
    import torch

    torch.set_num_threads(1)
    dense = [
        tuple(torch.from_numpy(masks.decode(rle).astype(np.float32)) for rle in (p.answer, p.truth))
        for p in made
    ]

    def histogram(values: torch.Tensor) -> torch.Tensor:
        return torch.histc(values, bins=2, min=0, max=1)

    def work() -> tuple[float, Areas]:
        start = time.process_time()
        found = []
        for answer, truth in dense:
            flat, wanted = answer.view(-1), truth.view(-1)
            agreed = histogram(flat[flat == wanted])
            both = histogram(flat) + histogram(wanted)
            found.append((int(agreed[1]), int((both - agreed)[1])))
        return time.process_time() - start, found

    return work


def by_and_or(made: Sequence[Pair]) -> Callable[[], tuple[float, Areas]]:
    """The quickest dense method we know: bool arrays, and, or, count."""
    dense = [(masks.decode(p.answer), masks.decode(p.truth)) for p in made]

    def work() -> tuple[float, Areas]:
        start = time.process_time()
        found = [(int(np.count_nonzero(a & b)), int(np.count_nonzero(a | b))) for a, b in dense]
        return time.process_time() - start, found

    return work


def by_runs(made: Sequence[Pair], *, check: bool) -> Callable[[], tuple[float, Areas]]:
    """Ours: CPU seconds for judging and counting, and areas; with `check` every answer is validated first, as it
    is when it comes from a file."""
    expressions = [Expression(str(k), "x", Granularity.OBJECT, p.truth) for k, p in enumerate(made)]

    def work() -> tuple[float, Areas]:
        given = [RLE(size=[HEIGHT, WIDTH], counts=p.answer["counts"]) if check else p.answer for p in made]
        counts, found = Counts(), []
        start = time.process_time()
        for expression, rle in zip(expressions, given, strict=True):
            mask = masks.validate(rle, (HEIGHT, WIDTH)) if check else rle
            outcome = STRICT.judge(expression, Prediction(rejected=False, rle=mask, text=None))
            counts.add(outcome)
            found.append((outcome.intersection, outcome.union))
        return time.process_time() - start, found

    return work


def loop_ratios(sizes: Sizes, repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """`expressions_ratio`, `llm_ratio`, and their details. The arms must find the same, which also warms them up."""
    import torch

    from benchmarks._evaluation_arms import check_same, lisa, make_case, ours

    torch.set_num_threads(1)
    case = make_case(sizes)
    arms = {"lisa": partial(lisa, case), "ours": partial(ours, case)}
    apart = check_same(arms["ours"](), arms["lisa"]())
    results = interleaved(arms, repeats)
    turns = list(zip(results["lisa"], results["ours"], strict=True))
    headline = {
        "expressions_ratio": round(median_of([a.seconds / b.seconds for a, b in turns]), 2),
        "llm_ratio": round(median_of([a.llm_seconds / b.llm_seconds for a, b in turns]), 2),
    }
    each = case.expressions
    details = {
        "photographs": len(case.records),
        "expressions": each,
        "milliseconds_per_expression": {
            name: round(1e3 * median_of([r.seconds for r in found]) / each, 1)
            for name, found in results.items()
        },
        "milliseconds_of_the_llm": {
            name: round(1e3 * median_of([r.llm_seconds for r in found]) / each, 1)
            for name, found in results.items()
        },
        **apart,
    }
    return headline, details


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; the last line is one JSON object."""
    options = parser("evaluation_loop", __doc__)
    options.add_argument("--metrics-only", action="store_true", help="only metric_ratio")
    args = options.parse_args(argv)
    headline: dict[str, float | None] = {"expressions_ratio": None, "llm_ratio": None}
    loop: dict[str, Any] = {}
    if not args.metrics_only:
        from benchmarks._evaluation_arms import full, small

        ratios, loop = loop_ratios(small() if args.small else full(), 1 if args.small else REPEATS)
        headline |= ratios
    made = pairs(PAIRS_SMALL if args.small else PAIRS)
    arms = {
        "histograms": by_histograms(made),
        "runs": by_runs(made, check=False),
        "and_or": by_and_or(made),
        "runs_checked": by_runs(made, check=True),
    }
    results = interleaved(arms, 1 if args.small else REPEATS)
    answers = {name: [areas for _, areas in found] for name, found in results.items()}
    assert all(areas == answers["runs"][0] for found in answers.values() for areas in found), "areas differ"
    each = {name: 1e6 * median_of([s for s, _ in found]) / len(made) for name, found in results.items()}
    details = loop | {
        "pairs": len(made),
        "size": [HEIGHT, WIDTH],
        "characters_per_code": round(float(np.mean([len(p.answer["counts"]) for p in made]))),
        "microseconds": {name: round(value, 1) for name, value in each.items()},
        "ratio_with_check_of_every_answer": round(each["histograms"] / each["runs_checked"], 1),
        "ratio_of_dense_and_or": round(each["and_or"] / each["runs"], 1),
    }
    headline["metric_ratio"] = round(each["histograms"] / each["runs"], 1)
    finish("evaluation_loop", headline, details, args.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
