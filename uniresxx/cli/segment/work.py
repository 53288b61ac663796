"""The work of `uniresxx segment`: photo after photo, what is printed, and what is left after a stop."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from uniresxx.cli.segment.answers import Answers, Record, entry_of
from uniresxx.cli.segment.export import export
from uniresxx.cli.segment.job import Asked, Job
from uniresxx.cli.segment.model import Model, model_of
from uniresxx.errors import InputError
from uniresxx.evaluation.ahead import ahead
from uniresxx.files import folder_turn
from uniresxx.imaging import masks
from uniresxx.imaging.decode import read_encoded
from uniresxx.imaging.inputs import photo_pixels
from uniresxx.imaging.overlay import one_line

WRONG_INPUT, STOPPED = 2, 75  # exit codes
PHOTOS_AHEAD = 4  # decoded while the model answers


@dataclass(frozen=True, slots=True)
class Opened:
    """A photo that was read: its checksum, and its pixels unless all that is asked of it is done."""

    asked: Asked
    sha256: str = ""
    pixels: np.ndarray | None = None
    error: str = ""


@dataclass(slots=True)
class Tally:
    """What was done so far."""

    answered: int = 0
    done_before: int = 0
    unusable: int = 0
    masks: int = 0
    absent: int = 0
    left_out: int = 0
    names: dict[str, str] = field(default_factory=dict)  # photo -> name of its answers

    @property
    def photos(self) -> int:
        """Photos that are dealt with."""
        return self.answered + self.done_before + self.unusable

    def add(self, asked: Asked, name: str, found: Mapping[str, Record], asked_now: bool) -> None:
        """Count a photo and its answers."""
        self.names[asked.photo] = name
        self.answered += asked_now
        self.done_before += not asked_now
        for text in asked.texts:
            entry = found[text]
            self.absent += entry["rejected"]
            self.masks += entry["mask"] is not None
            self.left_out += not entry["rejected"] and entry["mask"] is None

    def describe(self) -> str:
        """The summary of the whole job."""
        parts = [f"{self.answered} answered"]
        parts += [f"{self.done_before} done before"] if self.done_before else []
        parts += [f"{self.unusable} could not be used"] if self.unusable else []
        found = f"{self.masks} masks, {self.absent} not there"
        found += f", {self.left_out} below the threshold" if self.left_out else ""
        return f"{self.photos} photos: {', '.join(parts)}; {found}"


def do(job: Job) -> int:
    """Do the job; returns the exit code. A photo that cannot be used is reported, and the others are still done."""
    model = model_of(job.checkpoint, job.placement)
    folder = job.out if job.form == "json" else job.out / "answers"
    if not any(folder.glob("*.json")):
        model.load()  # nothing is done yet: a device that is not there is said before a folder is made
    _prepare(job.out)
    sources = frozenset(Path(one.photo).resolve() for one in job.asked)
    made_by = {**model.made_by, "threshold": job.threshold}
    answers = Answers(folder, made_by, pictures=job.form == "json", sources=sources)
    signal.signal(signal.SIGTERM, _interrupt)
    tally = Tally()
    try:
        answer_all(job, model, answers, tally)
        if job.form != "json":
            files = export(job, answers.folder, tally.names, model)
            print(f"wrote {job.form} for {len(tally.names)} photos: {_named(files)}")
    except KeyboardInterrupt:
        print(
            f"uniresxx segment: stopped after {tally.photos} of {len(job.asked)} photos; the same command continues",
            file=sys.stderr,
        )
        return STOPPED
    if len(job.asked) > 1:
        print(f"{tally.describe()} -> {job.out}")
    return WRONG_INPUT if tally.unusable else 0


def _named(files: Sequence[Path]) -> str:
    """The first files, and how many more there are."""
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(map(str, files[:3])) + more


def answer_all(job: Job, model: Model, answers: Answers, tally: Tally) -> None:
    """Answer what is asked of each photo and write it; a photo that cannot be used is reported."""

    def opened(asked: Asked) -> Opened:
        return _opened(asked, answers)

    with progress_bar(len(job.asked)) as show, closing(ahead(opened, job.asked, PHOTOS_AHEAD)) as photos:
        for one in photos:
            if one.error:
                tally.unusable += 1
                print(f"error: {one_line(one.error)}", file=sys.stderr)
            else:
                _answer(job, model, answers, one, tally)
            show(tally.photos)


def _opened(asked: Asked, answers: Answers) -> Opened:
    """Read a photo, and decode it where there is something to ask."""
    try:
        digest = sha256(read_encoded(asked.photo)).hexdigest()
        done = answers.place_for(asked, digest).done
        return Opened(asked, digest, None if done else photo_pixels(asked.photo))
    except InputError as error:
        return Opened(asked, error=str(error))


def _answer(job: Job, model: Model, answers: Answers, one: Opened, tally: Tally) -> None:
    """Ask what is not answered yet, write it, and say it."""
    asked, place = one.asked, answers.place_for(one.asked, one.sha256)
    found, files = dict(place.kept), list[str]()
    if not place.done:
        photo = one.pixels if one.pixels is not None else photo_pixels(asked.photo)
        new = [text for text in asked.texts if text not in found]
        found |= _ask(model, photo, new, job.threshold)
        with folder_turn(answers.folder):  # another call may choose names, too
            place = answers.place_for(asked, one.sha256)
            lacking = {text: found[text] for text in asked.texts if text not in place.kept}
            about: dict[str, Any] = {
                "checkpoint": model.name.encode("utf-8", "replace").decode(),
                "photo_sha256": one.sha256,
            }
            if not new and place.earlier is not None:  # only pictures were missing
                about["decision_rule"] = place.earlier.get("decision_rule")
            else:
                about["decision_rule"] = _rule(model)
            files = answers.write(place, asked, photo, lacking, about)
            height, width = photo.shape[:2]
        print(f"{one_line(asked.photo)} ({width} x {height})")
    if files or len(job.asked) == 1:
        print("\n".join(f"  {describe(found[text])}" for text in asked.texts))
        done = f"wrote {len(files)} files" if files else "done before"
        print(f"  {done}: {answers.folder / place.name}.*", flush=True)
    answers.taken.add(place.name.lower())
    tally.add(asked, place.name, found, asked_now=bool(files))


def _ask(model: Model, photo: np.ndarray, texts: Sequence[str], threshold: float | None) -> dict[str, Record]:
    """The entries of these texts."""
    if not texts:
        return {}
    model.load().set_image(photo)
    found = model.load().segment(texts)
    return {text: entry_of(text, one, threshold) for text, one in zip(texts, found, strict=True)}


def _rule(model: Model) -> str:
    predictor = model.load()
    return predictor.decoding.rule or predictor.segmenter.decision_rule


def describe(entry: Mapping[str, Any]) -> str:
    """What stdout says of one expression."""
    text = one_line(entry["text"])
    if entry["rejected"]:
        p_absent = entry["p_absent"]
        sure = "" if p_absent is None else f" (absent with probability {p_absent:.2f})"
        return f"{text}: not there{sure}"
    if entry["mask"] is None:
        return f"{text}: left out, {entry['left_out']}"
    score = "" if entry["score"] is None else f", score {entry['score']:.2f}"
    return f"{text}: {masks.area(entry['mask'])} pixels{score}"


@contextmanager
def progress_bar(photos: int) -> Iterator[Callable[[int], None]]:
    """What shows how many photos are dealt with: a bar with the time left on stderr, where that is a terminal."""
    if photos < 2 or sys.stderr is None or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("photos"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    printed_here = sys.stdout is not None and sys.stdout.isatty()  # what is piped must not go to the terminal
    with Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=printed_here
    ) as bar:
        task = bar.add_task("photos", total=photos)
        yield lambda done: bar.update(task, completed=done)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _prepare(out: Path) -> None:
    """Make the folder for the results before any work is done."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"--out {out}: a file is in the way; name a folder") from None
    if not os.access(out, os.W_OK):
        raise InputError(f"--out {out}: the folder cannot be written; name another")
