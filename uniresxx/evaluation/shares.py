"""Which batches of a benchmark are still to be answered, and the one file that all processes' answers become.

The unit of work is the batch: the k-th run of `batch_images` images in the benchmark's order, without padding. Batch
k belongs to process k mod N. So the same images are answered together, however many processes there are and however
often they were interrupted, and the answers are the same to the last bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniresxx.errors import InputError
from uniresxx.evaluation.ranks import Processes
from uniresxx.files import sync_to_disk
from uniresxx.scoring.predictions import UNANSWERED, JsonlWriter, json_lines


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the last line of an expression or image stands."""

    path: Path
    start: int
    length: int
    answered: bool


def part_of(path: Path, rank: int) -> Path:
    """The file to which one of several processes appends until the answers are put together."""
    return path.with_name(f"{path.stem}.part-{rank}{path.suffix}")


def parts_of(path: Path) -> list[Path]:
    """The parts that are there, of whatever number of processes."""
    return sorted(path.parent.glob(f"{path.stem}.part-*{path.suffix}"))


def names_in(path: Path, key: str) -> dict[str, bool]:
    """Everything that `path` and its parts hold a line of, and whether that is an answer.

    Args:
        path: predictions.jsonl or images.jsonl.
        key: its `expression_id` or `image_id`.
    """
    return {name: place.answered for name, place in _places(path, key).items()}


def open_batches(
    names: Sequence[Sequence[str]], present: Mapping[str, bool], batch_images: int, same_batches: bool
) -> list[list[int]]:
    """For every batch of the benchmark the images, by number, that are still to be asked about.

    A batch that was not written to its end is answered again as a whole, so that it is the same batch as ever.
    Images of which only the photo could not be read are tried again.

    Args:
        names: what each image of the benchmark is asked, in its order.
        present: what `names_in` found.
        batch_images: images in a batch.
        same_batches: the lines were written with the same `batch_images`; else images count, not batches.
    """
    batches = []
    for start in range(0, len(names), batch_images):
        batch = [k for k in range(start, min(start + batch_images, len(names))) if names[k]]
        found = {k: [present.get(name) for name in names[k]] for k in batch}
        cut_off = any(None in values for values in found.values())
        whole = same_batches and cut_off
        batches.append([k for k in batch if whole or not all(found[k])])
    return batches


def answer_in_shares(
    path: Path,
    key: str,
    names: Sequence[Sequence[str]],
    batch_images: int,
    same_batches: bool,
    ranks: Processes,
    answer: Callable[[Sequence[int]], Iterable[Mapping[str, Any]]],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fill `path` with a line for each of `names`; every process does its batches and appends what is missing.

    Afterwards the file is complete on every process. Call it on all of them, with `path` locked by process 0.

    Args:
        path: a JSON lines file.
        key: the key of a line's name.
        names: those of each image, in the order of the benchmark.
        batch_images: images that are asked together.
        same_batches: as in `open_batches`.
        ranks: the processes.
        answer: the lines of the images with these numbers, which are asked together.
        progress: called on process 0 with the number of lines so far, its own, and of all.
    """
    order = [name for own in names for name in own]

    def start() -> list[list[int]]:
        batches = open_batches(names, names_in(path, key), batch_images, same_batches)
        waiting = {k for batch in batches for k in batch}
        put_together(path, key, (name for k, own in enumerate(names) if k not in waiting for name in own))
        return batches

    def answer_mine() -> None:
        done = len(order) - sum(len(names[k]) for batch in batches for k in batch)
        with JsonlWriter(own_file(path, ranks)) as lines:
            for batch in filter(None, batches[ranks.rank :: ranks.world_size]):
                found = list(answer(batch))
                write_answers(lines, found, key)
                done += len(found)
                if progress is not None and ranks.is_main:
                    progress(done, len(order))

    batches = ranks.on_rank0(start)
    ranks.on_all_ranks(answer_mine)
    ranks.on_rank0(lambda: put_together(path, key, order))
    if progress is not None and ranks.is_main:
        progress(len(order), len(order))


def own_file(path: Path, ranks: Processes) -> Path:
    """The file to which this process appends."""
    return path if ranks.world_size == 1 else part_of(path, ranks.rank)


def write_answers(
    lines: JsonlWriter, answers: Sequence[Mapping[str, Any]], key: str = "expression_id"
) -> None:
    """Append answers, whose names have this key. InputError where one holds NaN or infinity."""
    try:
        lines.write_all(answers)
    except ValueError:
        for answer in answers:
            _write_answer(lines, answer, key)


def _write_answer(lines: JsonlWriter, line: Mapping[str, Any], key: str) -> None:
    try:
        lines.write(line)
    except ValueError:
        raise InputError(
            f"the model answers {line.get(key)} with numbers that are not finite: training diverged, for example "
            "because --optim.lr was too high; use an earlier checkpoint"
        ) from None


def put_together(path: Path, key: str, order: Iterable[str]) -> None:
    """Make `path` hold the lines of itself and its parts in `order`, others left out; the parts are removed.

    The file is replaced whole or not at all, and only where it is not as wanted already.
    """
    places, parts = _places(path, key), parts_of(path)
    wanted = [places[name] for name in order if name in places]
    if not parts and _is_file_of(path, wanted):
        return
    temporary = path.with_name(f".writing-{path.name}")
    sources = {place.path: place.path.open("rb") for place in wanted}
    try:
        with temporary.open("wb") as file:
            for place in wanted:
                source = sources[place.path]
                source.seek(place.start)
                file.write(source.read(place.length))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_to_disk(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    finally:
        for source in sources.values():
            source.close()
    for part in parts:
        part.unlink()


def _places(path: Path, key: str) -> dict[str, _Place]:
    found: dict[str, _Place] = {}
    for file in (path, *parts_of(path)):
        if not file.exists():
            continue
        for line, start, length in json_lines(file):
            name = line.get(key)
            if isinstance(name, str):
                found[name] = _Place(file, start, length, UNANSWERED not in line)
    return found


def _is_file_of(path: Path, wanted: Sequence[_Place]) -> bool:
    """Whether the file holds exactly these lines one after another."""
    end = 0
    for place in wanted:
        if place.start != end:
            return False
        end += place.length
    return (path.stat().st_size if path.exists() else 0) == end
