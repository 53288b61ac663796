"""From answers to what is written: names of photos, numbers of classes, and what the options leave of each mask."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath

import numpy as np

from uniresxx.annotations.records import AnnotatedImage, Options, Overlap, Photo, Shape
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.types import RLE


def photo_names(images: Sequence[AnnotatedImage]) -> list[str]:
    """The path of each photo below the folder that all share; InputError where a photo comes twice."""
    full = [os.path.abspath(image.path) for image in images]
    if not full:
        return []
    folder = os.path.commonpath([os.path.dirname(path) for path in full])
    names = [PurePath(os.path.relpath(path, folder)).as_posix() for path in full]
    seen: set[str] = set()
    for name, image in zip(names, images, strict=True):
        if name in seen:
            raise InputError(f"{image.path}: comes twice; give a photo once, with all its masks")
        seen.add(name)
    return names


def class_numbers(
    images: Iterable[AnnotatedImage], given: Mapping[str, int] | None, first: int
) -> dict[str, int]:
    """The number of each category: as given, else from `first` on by name."""
    used = sorted({mask.category for image in images for mask in image.masks})
    if given is None:
        return {name: number for number, name in enumerate(used, first)}
    missing = [name for name in used if name not in given]
    if missing:
        raise InputError(f"the category {missing[0]!r} has no id; give one to every category, or give none")
    wrong = [name for name, number in given.items() if isinstance(number, bool) or number < 0]
    if wrong:
        raise InputError(f"the id of {wrong[0]!r} is {given[wrong[0]]}; ids are whole numbers from 0 up")
    return dict(given)


def class_names(numbers: Mapping[str, int]) -> dict[int, str]:
    """The name of each number, ascending; of names that share a number, the first."""
    names: dict[int, str] = {}
    for name, number in numbers.items():
        names.setdefault(number, name)
    return dict(sorted(names.items()))


def prepared(
    images: Sequence[AnnotatedImage], numbers: Mapping[str, int], options: Options, overlap: Overlap
) -> Iterator[Photo]:
    """The photos with what the options leave of their masks, one at a time."""
    names = class_names(numbers)
    for image, name in zip(images, photo_names(images), strict=True):
        rles = [None if mask.rle is None else _sized(mask.rle, image) for mask in image.masks]
        if options.holes == "fill":
            rles = [None if rle is None else _filled(rle) for rle in rles]
        classes = [numbers[mask.category] for mask in image.masks]
        if overlap != "keep":
            rles = _apart(rles, classes, _priority(image, overlap), (image.height, image.width))
        if options.min_area > 1:
            rles = [None if rle is None else _without_small(rle, options.min_area) for rle in rles]
        shapes = tuple(
            Shape(rle, mask, names[number], number, place)
            for place, (rle, mask, number) in enumerate(zip(rles, image.masks, classes, strict=True))
            if rle is not None and masks.area(rle)
        )
        yield Photo(name, image.path, image.height, image.width, shapes)


def _sized(rle: RLE, image: AnnotatedImage) -> RLE:
    try:
        return masks.validate(rle, (image.height, image.width))
    except InputError as error:
        raise InputError(f"{image.path}: {error}") from None


def _filled(rle: RLE) -> RLE:
    from scipy import ndimage

    return masks.encode(ndimage.binary_fill_holes(masks.decode(rle), np.ones((3, 3))))


def _without_small(rle: RLE, min_area: int) -> RLE:
    from scipy import ndimage

    labels_yx, _ = ndimage.label(masks.decode(rle))
    sizes = np.bincount(labels_yx.ravel())
    sizes[0] = 0
    return masks.encode((sizes >= min_area)[labels_yx])


def _priority(image: AnnotatedImage, overlap: Overlap) -> list[int]:
    """Places of the masks, the one that keeps shared pixels first."""
    places = list(range(len(image.masks)))
    if overlap == "order":
        return places
    scores = [mask.score for mask in image.masks]
    return sorted(places, key=lambda place: -1.0 if (score := scores[place]) is None else score, reverse=True)


def _apart(
    rles: Sequence[RLE | None], classes: Sequence[int], priority: Sequence[int], size: tuple[int, int]
) -> list[RLE | None]:
    """The masks without the pixels that one of another class, earlier in `priority`, has."""
    left, owner_yx = list(rles), np.full(size, -1, dtype=np.int64)
    for place in priority:
        rle = left[place]
        if rle is not None:
            mask = masks.decode(rle) & ((owner_yx == -1) | (owner_yx == classes[place]))
            owner_yx[mask] = classes[place]
            left[place] = masks.encode(mask)
    return left
