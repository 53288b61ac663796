"""Annotations become targets: finds photos and frames, draws masks, chooses sentences and splits."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from uniresxx.data.own.annotations import Annotation, AnnotationFile, Reference, SentenceRow, Size
from uniresxx.data.own.files import FileIndex, composed, name_parts
from uniresxx.data.own.given import Given
from uniresxx.data.own.left_out import LeftOut, Reason
from uniresxx.data.own.photos import FoundPhoto, Frame, Frames, OtherSizeError, Photos, frame_of_size
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.imaging.decode import photo_header, read_mask, turned_upright
from uniresxx.types import RLE, Granularity

ARTICLES = ("the ", "a ", "an ")


@dataclass(frozen=True, slots=True)
class PhotoTarget:
    """Sentences about one target of a photo; `rle` is None where it is not there."""

    who: str
    photo: FoundPhoto
    split: str
    texts: tuple[str, ...]
    granularity: Granularity
    rle: RLE | None
    native_ids: tuple[str, ...] = ()


class Reader:
    """Turns annotations, rows and refs into targets."""

    def __init__(self, given: Given, folder: Path, frame: Frame | None) -> None:
        self.given, self.left_out = given, LeftOut()
        self.photos = Photos(folder)
        self.mask_indexes: dict[Path, FileIndex] = {}
        self.rows = [(row, self._mask_paths(row, item.path)) for item in given.sources for row in item.rows]
        self.photos.masks = {path for _, paths in self.rows for path in paths.values() if path is not None}
        self.splits = self._splits_of_photos()
        self.drawn: dict[
            tuple[Path, int], RLE | None
        ] = {}  # by photo and annotation: several refs may name one
        self.frames = Frames(frame, self._frames_of_sizes())

    def targets(self) -> Iterator[PhotoTarget]:
        """The targets, from the sentences files where these have sentences, else from the annotations."""
        if self.given.sources:
            for row, paths in self.rows:
                yield from self._of_row(row, paths)
            for ref in (ref for item in self.given.sources for ref in item.refs):
                yield from self._of_reference(ref)
            return
        for file in self.given.annotations:
            for photo in file.images.values():
                self.photos.ask(photo)
        yield from self._of_annotations()

    # ---- photos, splits and frames

    def _splits_of_photos(self) -> dict[Path, str]:
        """The splits that sentences files without sentences give to photos."""
        rows = [row for item in self.given.sentences if not item.has_sentences for row in item.rows]
        found = (
            (self.photos.path(row.photo), row.split) for row in rows if row.photo is not None and row.split
        )
        return {path: split for path, split in found if path is not None}

    def _split(self, own: str, photo: FoundPhoto, file: AnnotationFile | None) -> str:
        return own or self.splits.get(photo.path) or (file.split if file and file.split else "train")

    def _frames_of_sizes(self) -> Iterator[Frame | None]:
        """The frames that sizes tell, of all photos with an orientation."""
        for item in (item for file in self.given.annotations for item in file.annotations):
            found = None if item.photo is None else self.photos.look(item.photo)
            if found is not None and found.is_turned:
                yield frame_of_size(found, item.size)
        for row, paths in self.rows:
            found = None if row.photo is None else self.photos.look(row.photo)
            if found is not None and found.is_turned:
                yield from (
                    frame_of_size(found, _size_of_mask(path)) for path in paths.values() if path is not None
                )

    def _photo(self, item: Annotation | SentenceRow) -> FoundPhoto | None:
        """The photo of an annotation or row that is there and readable; notes what is wrong otherwise."""
        if item.photo is None:
            self.left_out.add(
                Reason.UNREADABLE if item.problem else Reason.UNKNOWN_IMAGE, item.who, item.problem
            )
            return None
        found = self.photos.ask(item.photo)
        if found is not None and found.header is None:
            self.left_out.add(Reason.UNREADABLE, str(found.path), found.problem)
            return None
        if found is not None and item.problem:
            self.left_out.add(Reason.UNREADABLE, item.who, item.problem)
            return None
        return found

    # ---- masks

    def _upright(self, rle: RLE, photo: FoundPhoto, frame: Frame) -> RLE:
        assert photo.header is not None, photo
        if frame == "upright" or photo.header.orientation == 1:
            return rle
        return masks.encode(turned_upright(masks.decode(rle), photo.header.orientation))

    def _draw(self, item: Annotation, photo: FoundPhoto) -> RLE | None:
        """The mask of an annotation in the upright frame; notes why there is none."""
        assert photo.header is not None, photo
        if item.draw is None:
            self.left_out.add(Reason.BOX_ONLY if item.has_box else Reason.NO_PIXELS, item.who)
            return None
        try:
            frame = self.frames.of(photo, item.size, item.in_shares)
        except OtherSizeError as error:
            self.left_out.add(Reason.OTHER_SIZE, item.who, str(error))
            return None
        try:
            rle = item.draw(photo.header.upright if frame == "upright" else photo.header.stored)
        except InputError as error:
            self.left_out.add(Reason.NO_PIXELS, item.who, str(error))
            return None
        if masks.area(rle) == 0:
            self.left_out.add(Reason.NO_PIXELS, item.who)
            return None
        return self._upright(rle, photo, frame)

    def _mask_paths(self, row: SentenceRow, file: Path) -> dict[str, Path | None]:
        """The mask files of a row by the names it gives; a name that is no file may be a list of several."""
        found = {name: self._mask_path(name, file.parent) for name in row.masks}
        for name in [name for name, path in found.items() if path is None]:
            pieces = [
                piece.strip()
                for mark in ";|,"
                for piece in name.split(mark)
                if mark in name and piece.strip()
            ]
            parts = {piece: self._mask_path(piece, file.parent) for piece in pieces}
            if parts and all(parts.values()):
                del found[name]
                found |= parts
        return found

    def _mask_path(self, name: str, folder: Path) -> Path | None:
        direct = folder / name.replace("\\", "/")
        if os.path.isfile(direct):  # a name may be too long to be asked about otherwise
            return direct
        if not name_parts(name):
            return None
        if folder not in self.mask_indexes:
            self.mask_indexes[folder] = FileIndex(folder, (".png",))
        return self.mask_indexes[folder].find(name, folder)

    # ---- the three sources

    def _of_row(self, row: SentenceRow, paths: Mapping[str, Path | None]) -> Iterator[PhotoTarget]:
        photo = self._photo(row)
        if photo is None:
            return
        if not row.texts:
            self.left_out.add(Reason.NO_SENTENCE, row.who)
            return
        missing = [name for name, path in paths.items() if path is None]
        if missing:
            self.left_out.add(Reason.MISSING_MASK, row.who, ", ".join(missing))
            return
        rles = []
        for path in filter(None, paths.values()):
            try:
                mask_yx = read_mask(path)
                frame = self.frames.of(photo, mask_yx.shape)
            except InputError as error:
                other_size = isinstance(error, OtherSizeError)
                why = f"{path.name} {error}" if other_size else str(error)
                self.left_out.add(Reason.OTHER_SIZE if other_size else Reason.UNREADABLE, row.who, why)
                return
            rles.append(self._upright(masks.encode(mask_yx), photo, frame))
        rle = _union(rles, photo)
        if rle is not None and masks.area(rle) == 0:
            self.left_out.add(Reason.NO_PIXELS, row.who)
            return
        yield PhotoTarget(
            row.who, photo, self._split(row.split, photo, None), row.texts,
            _granularity(len(rles), row.is_part), rle, tuple(paths),
        )  # fmt: skip

    def _of_reference(self, ref: Reference) -> Iterator[PhotoTarget]:
        file = self._file_of(ref)
        if ref.problem:
            self.left_out.add(Reason.UNREADABLE, ref.who, ref.problem)
            return
        name = ref.photo if file is None else file.images.get(ref.image_id, ref.photo)
        named = {} if file is None else {item.native_id: item for item in reversed(file.annotations)}
        targets = [named.get(key) for key in ref.annotation_ids]
        if not ref.image_id and name is None:
            name = next((item.photo for item in targets if item is not None), None)
        unknown = file is None and bool(ref.annotation_ids or (ref.image_id and self.given.annotations))
        if name is None or unknown:
            self.left_out.add(Reason.UNKNOWN_IMAGE, ref.who)
            return
        photo = self._photo(Annotation(ref.who, name))
        if photo is None:
            return
        if not ref.texts:
            self.left_out.add(Reason.NO_SENTENCE, ref.who)
            return
        rles: list[RLE] = []
        for key, item in zip(ref.annotation_ids, targets, strict=True):
            if item is None or not self._is_of(item, photo):
                why = f"ann_id {key} is not there" if item is None else f"ann_id {key} is of another image"
                self.left_out.add(Reason.UNKNOWN_ANNOTATION, ref.who, why)
                return
            rle = self._draw_once(item, photo)
            if rle is None:
                return
            rles.append(rle)
        yield PhotoTarget(
            ref.who, photo, self._split(ref.split, photo, file), ref.texts,
            _granularity(len(rles), ref.is_part), _union(rles, photo), ref.annotation_ids,
        )  # fmt: skip

    def _is_of(self, item: Annotation, photo: FoundPhoto) -> bool:
        return item.photo is not None and self.photos.path(item.photo) == photo.path

    def _draw_once(self, item: Annotation, photo: FoundPhoto) -> RLE | None:
        key = (photo.path, id(item))
        if key not in self.drawn:
            usable = self._photo(item)
            self.drawn[key] = None if usable is None else self._draw(item, photo)
        return self.drawn[key]

    def _file_of(self, ref: Reference) -> AnnotationFile | None:
        """The file that a ref's ids are of: the one that has its image and annotations; of several, that of its
        photo's name or split."""
        wanted = set(ref.annotation_ids)

        def fits(file: AnnotationFile) -> tuple[bool, bool, bool]:
            image = file.images.get(ref.image_id)
            here = {item.native_id for item in file.annotations if not ref.image_id or item.photo == image}
            same_name = (
                image is not None and ref.photo is not None
                and name_parts(image.name)[-1:] == name_parts(ref.photo.name)[-1:]
            )  # fmt: skip
            return wanted <= here, same_name, bool(ref.split) and file.split == ref.split

        files = [file for file in self.given.annotations if not ref.image_id or ref.image_id in file.images]
        return max(files, key=fits, default=None) if len(files) != 1 else files[0]

    def _of_annotations(self) -> Iterator[PhotoTarget]:
        """Own sentences of each annotation; the others by name, where a name that comes again means all of it."""
        named: dict[tuple[Path, str, str], list[tuple[Annotation, RLE]]] = {}
        photos: dict[Path, FoundPhoto] = {}
        files = self.given.annotations
        for file, item in ((one, item) for one in files for item in one.annotations):
            photo = self._photo(item)
            rle = None if photo is None else self._draw(item, photo)
            if photo is None or rle is None:
                continue
            photos[photo.path], split = photo, self._split("", photo, file)
            if item.category:
                named.setdefault((photo.path, split, composed(item.category)), []).append((item, rle))
            if item.texts:
                meant = _granularity(1, item.is_part)
                yield PhotoTarget(item.who, photo, split, item.texts, meant, rle, (item.native_id,))
            elif not item.category:
                self.left_out.add(Reason.NO_SENTENCE, item.who)
        for (path, split, _), group in named.items():
            items = [item for item, _ in group]
            if any(not item.texts for item in items):
                phrase = phrase_of(items[0].category, len(group))
                meant = _granularity(len(group), all(item.is_part for item in items))
                rle, ids = (
                    _union([rle for _, rle in group], photos[path]),
                    tuple(item.native_id for item in items),
                )
                yield PhotoTarget(items[0].who, photos[path], split, (phrase,), meant, rle, ids)


def phrase_of(category: str, count: int) -> str:
    """The sentence that a name makes, of a thing that comes `count` times in its photo."""
    if category.lower().startswith(ARTICLES):
        return category
    return f"the {category}" if count == 1 else f"all {category}"


def _granularity(count: int, is_part: bool) -> Granularity:
    """What an expression of `count` targets means."""
    if count == 0:
        return Granularity.NONE
    if is_part:
        return Granularity.PART
    return Granularity.OBJECT if count == 1 else Granularity.MULTI


def _union(rles: Sequence[RLE], photo: FoundPhoto) -> RLE | None:
    assert photo.header is not None, photo
    return masks.union(rles, photo.header.upright) if rles else None


def _size_of_mask(path: Path) -> Size | None:
    try:
        return photo_header(path).stored
    except InputError:
        return None
