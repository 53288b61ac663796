"""Evaluation of any `Segmenter`: generate the answers and write them down. Scores are made from the file.

The model gets photos and texts, never the truth. A few images are encoded at once, then all their expressions are
answered in one call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError
from uniresxx.evaluation.ahead import ahead
from uniresxx.evaluation.files import IMAGES, LOCK, PREDICTIONS, begin, fingerprint
from uniresxx.evaluation.regions import encode_records, image_lines
from uniresxx.files import lock_file
from uniresxx.scoring.predictions import JsonlWriter, to_json
from uniresxx.segmenters.base import Segmenter
from uniresxx.types import Decoding, ImageRecord

Item = TypeVar("Item")
Progress = Callable[[int, int], None]  # expressions answered so far, expressions in all


def evaluate(
    segmenter: Segmenter,
    records: Sequence[ImageRecord],
    benchmark: str,
    decoding: Decoding,
    out: Path,
    *,
    checkpoint: str = "",
    batch_images: int = 8,
    fresh: bool = False,
    progress: Progress | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Answer every expression of `records` and append the answers to `out`/predictions.jsonl.

    The same call continues an interrupted evaluation. An interruption loses at most one batch of answers.

    Args:
        benchmark: NAME/SPLIT of the records.
        out: folder of this benchmark alone.
        checkpoint: identifies the weights; another one is refused.
        fresh: remove an earlier evaluation in `out` first.
        progress: called with the number of answered expressions and of all.
        notes: kept in evaluation.json, not compared (limit, device).

    Returns:
        The predictions file.

    Raises:
        InputError: `out` holds an evaluation of another benchmark, checkpoint or decoding (the message has the
            difference) or files of another origin; another process evaluates into it; an answer is not finite.

    Example:
        ```python
        from pathlib import Path

        from uniresxx import load_segmenter
        from uniresxx.data.catalog import load_benchmark
        from uniresxx.evaluation.metrics_file import score_file
        from uniresxx.evaluation.run import evaluate
        from uniresxx.types import Decoding

        records = load_benchmark("scenes_easy/val", None)[:20]
        path = evaluate(load_segmenter("runs/demo"), records, "scenes_easy/val", Decoding(), Path("answers"))
        print(score_file(path, records, "scenes_easy/val")["overall"]["gIoU"])
        ```
    """
    with lock_file(out / LOCK, f"evaluate {benchmark} into {out}"):
        begin(out, fingerprint(records, benchmark, checkpoint, decoding, segmenter), notes or {}, fresh)
        with JsonlWriter(out / PREDICTIONS) as answer_lines, JsonlWriter(out / IMAGES) as lines:
            done = {line.get("expression_id") for line in answer_lines.kept}
            total = sum(len(r.expressions) for r in records)
            answered = sum(e.expression_id in done for r in records for e in r.expressions)
            if progress:
                progress(answered, total)
            found = [(r, [e for e in r.expressions if e.expression_id not in done]) for r in records]
            waiting = [(r, asked) for r, asked in found if asked]
            decoded = ahead(photo_of, (record for record, _ in waiting), 2 * batch_images)
            with closing(decoded):  # Ctrl-C begins no further photo
                for batch in chunks(waiting, batch_images):
                    start = time.perf_counter()
                    images = [record for record, _ in batch]
                    encoded = encode_records(segmenter, images, list(islice(decoded, len(images))))
                    texts = [[e.text for e in asked] for _, asked in batch]
                    answers = segmenter.answer(encoded, texts, decoding)
                    seconds = time.perf_counter() - start
                    names = [e.expression_id for _, asked in batch for e in asked]
                    if len(answers) != len(names):
                        raise RuntimeError(f"{len(names)} texts asked, {len(answers)} predictions returned")
                    for line in image_lines(segmenter, encoded, images, seconds):
                        lines.write(line)
                    for name, prediction in zip(names, answers, strict=True):
                        write_answer(answer_lines, name, to_json(name, prediction))
                    answered += len(names)
                    if progress:
                        progress(answered, total)
    return out / PREDICTIONS


def write_answer(lines: JsonlWriter, asked: str, line: Mapping[str, Any]) -> None:
    """Append the answer to `asked`. InputError where it holds NaN or infinity, which no score can take."""
    try:
        lines.write(line)
    except ValueError:
        raise InputError(
            f"the model answers {asked} with numbers that are not finite: training diverged, for example because "
            "--optim.lr was too high; use an earlier checkpoint"
        ) from None


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The items in runs of `size`, the last one shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
