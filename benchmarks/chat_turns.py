"""A later turn of a chat: time to the first token with the picture kept from before, against encoding it anew.

    python -m benchmarks.chat_turns [--record]

Both arms ask the same questions with the same earlier turns of the same model, on one thread, in CPU time, which
other programs hardly change. Kept: towers, region tokens, MGFE, the mask head's maps and the keys and values of the
language model's visual prefix, as `Predictor` and the chat keep them. Anew: all of it again for each turn, as a chat
does that is a loop over a model's `evaluate(image, question)`. Both must answer the same words. In the details,
`whole_answer_ratio` compares the time until the answer is complete, with its mask.

Sizes are those of `benchmarks.training_step`: 576 image, 32 object and 64 part tokens, widths of `uniresxx_7b` / 16,
depths / 8.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks._common import finish, interleaved, median_of, parser
from benchmarks._photographs import TEXTS
from benchmarks.training_step import Sizes, full, small
from mllm.tokens import Vocabulary
from uniresxx.model.config import PyramidHeadConfig, UniRESPlusPlusConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.types import AS_TYPED, Decoding, Question

FIRST = "the left wheel of the red car"
TURNS = (  # the second turn and later ones, as the chat sends them
    Question("And its door?", ((FIRST, "[SEG]."),)),
    Question("the two dogs on the sofa"),
    Question("How many umbrellas are there?"),
    Question("And its handle?", (("the white mug", "[SEG]."),)),
)
ANSWER = 8  # tokens of a whole answer


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn cost, in CPU seconds, and what it said."""

    first_token: float
    whole: float
    words: str


def make_model(sizes: Sizes) -> UniRESPlusPlusModel:
    """Random weights from seed 0."""
    torch.manual_seed(0)
    config = UniRESPlusPlusConfig(mllm=sizes.mllm, head=PyramidHeadConfig(width=16, heads=2), boxes="grid")
    asked = [FIRST, *TEXTS, *(turn.text for turn in TURNS)]
    return UniRESPlusPlusModel(config, Vocabulary.train(asked, sizes.mllm.token_count)).eval()


def timed(model: UniRESPlusPlusModel, encode: Callable[[], Any], question: Question) -> Turn:
    """Ask once; the clock starts with the question."""
    heard: list[tuple[float, str]] = []
    start = time.process_time()
    encoded = encode()
    decoding = Decoding(template=AS_TYPED, max_new_tokens=ANSWER)
    model.answer(encoded, [[question]], decoding, lambda _, words: heard.append((time.process_time(), words)))
    return Turn(heard[0][0] - start, time.process_time() - start, heard[-1][1])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; the last line is one JSON object."""
    args = parser("chat_turns", __doc__).parse_args(argv)
    torch.set_num_threads(1)
    sizes = small() if args.small else full()
    model = make_model(sizes)
    photo = np.random.default_rng(0).integers(0, 256, (*sizes.photo, 3), dtype=np.uint8)
    kept = model.encode_images([photo])

    def turns(encode: Callable[[], Any]) -> list[Turn]:
        return [timed(model, encode, question) for question in TURNS]

    arms = {"kept": lambda: turns(lambda: kept), "anew": lambda: turns(lambda: model.encode_images([photo]))}
    interleaved(arms, 1)  # warm up
    found = interleaved(arms, sizes.repeats)
    words = {name: [turn.words for turn in runs[0]] for name, runs in found.items()}
    assert words["kept"] == words["anew"], "the arms answer differently"
    first = {
        name: median_of([turn.first_token for run in runs for turn in run]) for name, runs in found.items()
    }
    whole = {name: median_of([turn.whole for run in runs for turn in run]) for name, runs in found.items()}
    details = {
        "prefix_tokens": kept.prefix.length,
        "first_token_ms": {name: round(1e3 * value, 1) for name, value in first.items()},
        "whole_answer_ms": {name: round(1e3 * value, 1) for name, value in whole.items()},
        "whole_answer_ratio": round(whole["anew"] / whole["kept"], 2),
        "turns": len(TURNS) * sizes.repeats,
    }
    finish("chat_turns", {"first_token_ratio": round(first["anew"] / first["kept"], 2)}, details, args.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
