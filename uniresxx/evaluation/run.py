"""Evaluation of any `Segmenter`: generate the answers and write them down. Scores are made from the file.

The model gets photos and texts, never the truth. A few images are encoded at once, then all their expressions are
answered in one call. Several processes share the batches (`shares`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError
from uniresxx.evaluation import shares
from uniresxx.evaluation.ahead import ahead
from uniresxx.evaluation.files import IMAGES, LOCK, PREDICTIONS, batches_of, begin, fingerprint
from uniresxx.evaluation.ranks import ALONE, Processes
from uniresxx.evaluation.regions import encode_records, image_lines
from uniresxx.files import lock_file
from uniresxx.scoring.predictions import UNANSWERED, JsonlWriter, to_json
from uniresxx.segmenters.base import Segmenter
from uniresxx.types import Decoding, ImageRecord

Progress = Callable[[int, int], None]  # expressions answered so far, expressions in all
Say = Callable[[str], None]


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
    strict: bool = True,
    progress: Progress | None = None,
    say: Say | None = None,
    notes: Mapping[str, Any] | None = None,
    precision: Mapping[str, Any] | None = None,
    ranks: Processes = ALONE,
) -> Path:
    """Answer every expression of `records` and append the answers to `out`/predictions.jsonl.

    The same call continues an interrupted evaluation, also with another number of processes. An interruption loses at
    most one batch of answers of each.

    Args:
        benchmark: NAME/SPLIT of the records.
        out: folder of this benchmark alone.
        checkpoint: identifies the weights; another one is refused.
        batch_images: images that are answered together; another number continues as well, and may change answers in
            the last digits.
        fresh: remove an earlier evaluation in `out` first.
        strict: a photo that cannot be read ends the evaluation; else its expressions are marked unanswered, and the
            next call tries them again.
        progress: called with the number of answered expressions and of all.
        say: gets a line for each photo that cannot be read.
        notes: kept in evaluation.json, not compared (limit, device).
        precision: dtype and quantisation of the weights; other ones are refused.
        ranks: the processes that share the work, each of which makes this call. Process 0 locks the folder.

    Returns:
        The predictions file. It is complete on every process.

    Raises:
        InputError: `out` holds an evaluation of another benchmark, checkpoint or decoding (the message has the
            difference) or files of another origin; another process evaluates into it; an answer is not finite; no
            photo is there, or with `strict` one cannot be read.

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
    path = out / PREDICTIONS
    about = fingerprint(records, benchmark, checkpoint, decoding, segmenter, precision)
    with ExitStack() as stack:

        def start() -> list[list[int]]:
            stack.enter_context(lock_file(out / LOCK, f"evaluate {benchmark} into {out}"))
            begin(out, about, {**(notes or {}), "batch_images": batch_images}, fresh)
            return _left(records, out, batch_images)

        batches = ranks.on_rank0(start)
        todo = [batch for batch in batches[ranks.rank :: ranks.world_size] if batch]
        waiting = sum(len(records[k].expressions) for batch in batches for k in batch)
        report = _Report(records, waiting, path, progress, say, ranks)

        def answer_mine() -> None:
            with (
                JsonlWriter(shares.own_file(path, ranks)) as answers,
                JsonlWriter(shares.own_file(out / IMAGES, ranks)) as images,
            ):
                mine = [[records[k] for k in batch] for batch in todo]
                _answer(segmenter, mine, decoding, answers, images, strict, report)

        ranks.on_all_ranks(answer_mine)
        ranks.on_rank0(lambda: _finish(records, out))
        report.all_answered()
    return path


def _left(records: Sequence[ImageRecord], out: Path, batch_images: int) -> list[list[int]]:
    """What is left to do of every batch; afterwards the files hold the lines of everything else, and no parts."""
    present = shares.names_in(out / PREDICTIONS, "expression_id")
    names = [[e.expression_id for e in record.expressions] for record in records]
    batches = shares.open_batches(names, present, batch_images, batches_of(out) == batch_images)
    waiting = {k for batch in batches for k in batch}
    kept = [record for k, record in enumerate(records) if k not in waiting]
    if not any(present.values()):
        _check_photos([records[k] for k in sorted(waiting)])
    order = [e.expression_id for record in kept for e in record.expressions]
    shares.put_together(out / PREDICTIONS, "expression_id", order)
    shares.put_together(out / IMAGES, "image_id", [record.image_id for record in kept])
    return batches


def _check_photos(records: Sequence[ImageRecord]) -> None:
    """Raise for the first photo where not a single one is there: then a folder is wrong, not a photo."""
    if any(record.pixels is not None for record in records):
        return
    places = {record.path if record.inside is None else record.inside.file for record in records}
    if places and not any(place and Path(place).exists() for place in places):
        photo_of(records[0])


def _finish(records: Sequence[ImageRecord], out: Path) -> None:
    """Put the answers of all processes into the benchmark's order, and see that each is there once."""
    order = [e.expression_id for record in records for e in record.expressions]
    shares.put_together(out / PREDICTIONS, "expression_id", order)
    shares.put_together(out / IMAGES, "image_id", [record.image_id for record in records])
    missing = set(order) - shares.names_in(out / PREDICTIONS, "expression_id").keys()
    if missing:
        raise RuntimeError(
            f"{len(missing)} expressions were shared out and not answered, first {min(missing)}"
        )


class _Report:
    """What is said while the answers come: of process 0, about all of them."""

    def __init__(
        self,
        records: Sequence[ImageRecord],
        waiting: int,
        path: Path,
        progress: Progress | None,
        say: Say | None,
        ranks: Processes,
    ) -> None:
        self._total = sum(len(record.expressions) for record in records)
        self._done = self._total - waiting
        self._progress = progress if ranks.is_main else None
        self._say = say
        self._others = {shares.part_of(path, rank): 0 for rank in range(1, ranks.world_size)}
        self.answered(0)

    def answered(self, count: int) -> None:
        """So many more expressions have a line."""
        if self._progress is not None:
            self._done += count + sum(map(self._new_lines, self._others))
            self._progress(self._done, self._total)

    def all_answered(self) -> None:
        """Every expression has a line, those of other processes included."""
        if self._progress is not None:
            self._progress(self._total, self._total)

    def unreadable(self, error: InputError, expressions: int) -> None:
        """A photo cannot be read, so its expressions stay unanswered."""
        if self._say is not None:
            self._say(f"{error}: {expressions} expressions are not answered")

    def _new_lines(self, part: Path) -> int:
        """Lines that another process has appended since the last call."""
        if not part.exists():
            return 0
        with part.open("rb") as file:
            file.seek(self._others[part])
            new = file.read()
        self._others[part] += len(new)
        return new.count(b"\n")


def _answer(
    segmenter: Segmenter,
    batches: Sequence[Sequence[ImageRecord]],
    decoding: Decoding,
    answers: JsonlWriter,
    images: JsonlWriter,
    strict: bool,
    report: _Report,
) -> None:
    """Answer batches in order and append their lines, a whole batch at once."""
    decoded = ahead(_photo_or_error, (record for batch in batches for record in batch), _waiting(batches))
    with closing(decoded):  # Ctrl-C begins no further photo
        for batch in batches:
            start = time.perf_counter()
            photos: list[np.ndarray] = []
            readable: list[ImageRecord] = []
            lines: dict[str, dict[str, Any]] = {}
            for record, photo in zip(batch, islice(decoded, len(batch)), strict=True):
                if isinstance(photo, np.ndarray):
                    photos.append(photo)
                    readable.append(record)
                    continue
                if strict:
                    raise photo
                report.unreadable(photo, len(record.expressions))
                lines |= {e.expression_id: _unanswered(e.expression_id, photo) for e in record.expressions}
            if readable:
                encoded = encode_records(segmenter, readable, photos)
                texts = [[e.text for e in record.expressions] for record in readable]
                predictions = segmenter.answer(encoded, texts, decoding)
                seconds = time.perf_counter() - start
                names = [e.expression_id for record in readable for e in record.expressions]
                if len(predictions) != len(names):
                    raise RuntimeError(f"{len(names)} texts asked, {len(predictions)} predictions returned")
                mode = {} if decoding.mode == "generate" else {"decoding": decoding.mode}
                lines |= {n: to_json(n, p) | mode for n, p in zip(names, predictions, strict=True)}
                for line in image_lines(segmenter, encoded, readable, seconds):
                    images.write(line)
            shares.write_answers(
                answers, [lines[e.expression_id] for record in batch for e in record.expressions]
            )
            report.answered(len(lines))


def _waiting(batches: Sequence[Sequence[ImageRecord]]) -> int:
    """Photos that are decoded ahead: those of two batches."""
    return 2 * max((len(batch) for batch in batches), default=1)


def _photo_or_error(record: ImageRecord) -> np.ndarray | InputError:
    try:
        return photo_of(record)
    except InputError as error:
        return error


def _unanswered(name: str, error: InputError) -> dict[str, Any]:
    """The line of an expression whose photo cannot be read."""
    line: dict[str, Any] = {"expression_id": name, "rejected": True, "mask": None, "score": None}
    return line | {"p_absent": None, "text": None, UNANSWERED: str(error)}
