"""What is given: every file recognised by its content, before anything is made of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from uniresxx.data.own import coco, label_studio, labelme, via, yolo
from uniresxx.data.own.annotations import AnnotationFile, SentenceFile
from uniresxx.data.own.files import composed, files_below
from uniresxx.data.own.sentence_files import is_sentence_list, read_csv, read_json_lines, sentence_file
from uniresxx.data.readers.files import load_json
from uniresxx.errors import InputError

TABLES = (".csv", ".tsv")
JSON_LINES = (".jsonl", ".ndjson")


@dataclass
class Given:
    """The annotation files and sentences files that count.

    `unreadable` holds the files of a folder that could not be read, each with why; `ignored` those of no known kind.
    """

    annotations: list[AnnotationFile] = field(default_factory=list)
    sentences: list[SentenceFile] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)

    @property
    def sources(self) -> list[SentenceFile]:
        """The sentences files that have sentences; where there are none, annotations are the source."""
        return [item for item in self.sentences if item.has_sentences]

    def lines(self) -> list[str]:
        """What was found, for people."""
        kinds: dict[str, list[AnnotationFile]] = {}
        for item in self.annotations:
            kinds.setdefault(item.kind, []).append(item)
        lines = [
            f"given: {kind}: {len(files)} {'file' if len(files) == 1 else 'files'}, "
            f"{sum(len(item.annotations) for item in files)} annotations of "
            f"{sum(len(item.images) for item in files)} photos ({files[0].path}{', …' if len(files) > 1 else ''})"
            for kind, files in kinds.items()
        ]
        for table in self.sentences:
            what = f"{len(table.rows)} rows" if table.rows else f"{len(table.refs)} refs"
            use = "" if table.has_sentences else ", used for their splits alone"
            lines.append(f"given: sentences file {table.path}: {what}{use}")
        source = (
            "the sentences file" if self.sources else "the annotations' own texts, else their category names"
        )
        lines.append(f"sentences come from {source}")
        lines += [f"not used: {path}: of no known kind" for path in self.ignored]
        notes = [note for item in self.annotations for note in item.notes]
        notes += [note for table in self.sentences for note in table.notes]
        return lines + [f"warning: {note}" for note in notes]


def look(photos: Path, annotations: Sequence[Path], sentences: Sequence[Path]) -> Given:
    """What is given by name, else what lies in the folder of photos.

    Where only splits are given by name, annotations are looked for in the folder too. Raises InputError: nothing
    of a known kind, a named file that cannot be read, annotations of several kinds in the folder.
    """
    given = Given()
    for path in dict.fromkeys((*annotations, *sentences)):
        if path.is_dir():
            _add_folder(given, path)
        else:
            _add(given, path, named=True)
    refs = any(item.refs for item in given.sentences)
    if not given.annotations and (refs or not given.sources):
        below = Given()
        _add_folder(below, photos)
        given.annotations, given.unreadable = below.annotations, given.unreadable + below.unreadable
        given.ignored += below.ignored
        given.sentences = given.sentences or below.sentences
    if given.sources and not any(item.refs for item in given.sources):
        given.annotations = []  # rows name their masks themselves
    kinds = Counter(item.kind for item in given.annotations)
    if len(kinds) > 1 and not annotations:
        raise InputError(
            f"{photos}: holds annotations of several kinds ({', '.join(kinds)}); name which with --annotations"
        )
    if not given.annotations and not given.sources:
        why = f" ({given.unreadable[0]})" if given.unreadable else ""
        raise InputError(
            f"{photos}: no annotations of a known kind{why}; name a file with --annotations or --sentences "
            "(COCO, labelme, Label Studio, YOLO, VIA, CSV or JSON lines)"
        )
    _set_splits(given)
    return given


def _add_folder(given: Given, folder: Path) -> None:
    """Add every file below a folder that is of a known kind."""
    files = [item.path for item in given.annotations] + [item.path for item in given.sentences]
    known = set(map(os.path.realpath, files))
    paths = [path for path in files_below(folder) if os.path.realpath(path) not in known]
    for path in paths:
        if path.suffix.lower() in (*yolo.YAML, ".json", *TABLES, *JSON_LINES):
            try:
                _add(given, path, named=False)
            except InputError as error:
                given.unreadable.append(str(error))
    if not any(item.kind == yolo.KIND for item in given.annotations):
        labels = [path for path in paths if path.suffix.lower() == ".txt" and yolo.is_label_file(path)]
        for place in dict.fromkeys(path.parent for path in labels):
            given.annotations.append(yolo.read_label_files([path for path in labels if path.parent == place]))


def _add(given: Given, path: Path, named: bool) -> None:
    """Add one file; one of no known kind is refused where it was named."""
    suffix = path.suffix.lower()
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if suffix in yolo.YAML:
        content = yolo.load_yaml(path)
        if yolo.is_yolo(content):
            given.annotations += yolo.read_yolo(path, content)
        elif named:
            raise InputError(f"{path}: is no data.yaml of YOLO: it has no names")
        else:
            given.ignored.append(path)
    elif suffix == ".txt" and yolo.is_label_file(path):
        given.annotations.append(yolo.read_label_files([path]))
    elif suffix in (*TABLES, ".txt"):
        table = read_csv(path)
        if table[0].keys() >= via.CSV_COLUMNS:
            given.annotations.append(via.read_via_csv(path, table))
        else:
            given.sentences.append(sentence_file(path, table))
    elif suffix in JSON_LINES:
        given.sentences.append(sentence_file(path, read_json_lines(path)))
    elif not _add_json(given, path, load_json(path)):
        if named:
            raise InputError(
                f"{path}: is not of a kind that is read (COCO, labelme, Label Studio, VIA, rows or refs)"
            )
        given.ignored.append(path)


def _add_json(given: Given, path: Path, content: Any) -> bool:
    if coco.is_coco(content):
        given.annotations.append(coco.read_coco(path, content))
    elif labelme.is_labelme(content):
        given.annotations.append(labelme.read_labelme(path, content))
    elif label_studio.is_label_studio(content):
        given.annotations.append(label_studio.read_label_studio(path, content))
    elif via.is_via(content):
        given.annotations.append(via.read_via(path, content))
    elif is_sentence_list(content):
        given.sentences.append(sentence_file(path, content))
    else:
        return False
    return True


def _set_splits(given: Given) -> None:
    """The split that a file's own place says: its folder where several such files are in several folders, else its
    name where several COCO files are given.

    "Such" are files of one name, and all files of the formats that have one per photo.
    """
    folders: dict[str, set[Path]] = {}
    for item in given.annotations:
        folders.setdefault(_group(item), set()).add(item.path.parent)
    several = sum(item.kind == coco.KIND for item in given.annotations) > 1
    for place, item in enumerate(given.annotations):
        if item.split is not None:  # of a data.yaml
            continue
        split = item.path.stem.removeprefix("instances_") if several and item.kind == coco.KIND else None
        if len(folders[_group(item)]) > 1:
            folder = item.path.absolute().parent
            split = (folder.parent if item.kind == yolo.KIND and folder.name == "labels" else folder).name
        given.annotations[place] = replace(item, split=split)


def _group(item: AnnotationFile) -> str:
    return item.kind if item.kind in (labelme.KIND, yolo.KIND) else composed(item.path.name)
