"""Annotation files of the answers of a job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from uniresxx import __version__
from uniresxx.annotations import AnnotatedImage, AnnotatedMask, Options, Provenance, write
from uniresxx.cli.segment.answers import read_record
from uniresxx.cli.segment.job import Asked, Job
from uniresxx.cli.segment.model import Model
from uniresxx.errors import InputError


def export(job: Job, folder: Path, names: Mapping[str, str], model: Model) -> list[Path]:
    """Write the annotation files of all photos that have answers.

    Args:
        job: says the format, the categories and the options.
        folder: of the answers.
        names: photo -> name of its answers.
        model: which made them.

    Returns:
        The written files.
    """
    images = (
        _image(job, one, folder / f"{names[one.photo]}.json") for one in job.asked if one.photo in names
    )
    classes = None if job.labels is None else {one.name: one.number for one in job.labels.values()}
    provenance = Provenance(model.name, model.weights_sha256, __version__)
    return write(
        job.form, images, job.out, classes=classes, provenance=provenance, options=Options(**job.export)
    )


def _image(job: Job, asked: Asked, path: Path) -> AnnotatedImage:
    """What was asked of a photo, with the answers; masks below the threshold are left out."""
    record = read_record(path, asked.photo)
    if record is None:
        raise InputError(f"{path}: was changed while this command ran; give the same command again")
    return AnnotatedImage(
        asked.photo, record["height"], record["width"], tuple(_masks(job, asked, record["expressions"]))
    )


def _masks(job: Job, asked: Asked, entries: list[dict]) -> Iterator[AnnotatedMask]:
    by_text = {entry["text"]: entry for entry in entries}
    for text in asked.texts:
        entry = by_text[text]
        if entry["rejected"] or entry["mask"] is not None:
            category = text if job.labels is None else job.labels[text].name
            yield AnnotatedMask(entry["mask"], category, text, entry["score"], entry["p_absent"])
