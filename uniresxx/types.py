"""The nouns of the project: dataclasses that every room passes on, a shape per field.

Shapes: B images, E expressions of the batch, T tokens of a row, O object boxes, P part boxes, h w low-tower pixels,
H W high-tower pixels (masks are supervised on the same frame), y x pixels of the photo.
Nothing here imports torch: readers, metrics and the command line must start fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np

if TYPE_CHECKING:
    import torch


class Granularity(StrEnum):
    """What an expression points at."""

    PART = "part"
    OBJECT = "object"
    MULTI = "multi"
    NONE = "none"


class RLE(TypedDict):
    """COCO compressed run-length code of a binary mask: size [y, x], counts as ASCII text."""

    size: list[int]
    counts: str


@dataclass(frozen=True, slots=True)
class Expression:
    """One referring expression of one image and its truth in the image frame."""

    expression_id: str  # <data set>/<split>/<native id>
    text: str
    granularity: Granularity
    rle: RLE | None  # union of the referents at the photo's size; None where there is no target
    area: int = 0  # pixels of that mask
    level: int | None = None  # scenes only: 1 kind, 2 attribute, 3 relation, order or count
    twin: str | None = None  # expressions with the same value (part, object, group) score together
    source: Mapping[str, Any] = field(default_factory=dict)  # native ids and tags, kept as they came


@dataclass(frozen=True, slots=True)
class Phrase:
    """One phrase of an answer: a mask, or None where the phrase points at nothing."""

    text: str
    rle: RLE | None
    granularity: Granularity


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer: phrases that get [SEG] or [REJ], or plain words."""

    question: str
    phrases: tuple[Phrase, ...] = ()
    say: str | None = None


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Several turns about one image; later questions may need earlier turns."""

    dialogue_id: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class PhotoInside:
    """Where an encoded photo lies inside another file; pickles as these words. `images.photo_of` reads it."""

    kind: str  # "tar" (a shard of a store), "lmdb" or "parquet"
    file: str  # path of the file it lies in
    key: str  # member of the tar, record of the LMDB, row of the parquet file
    name: str  # the photo's own file name, as its data set gives it
    offset: int = 0  # tar only, as the next two: where the photo begins, in bytes
    length: int = 0
    crc: int = 0  # CRC-32


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image with everything said about it.

    The photo is a file (`path`), lies in one (`inside`) or is an array (`pixels`): one of the three.
    """

    image_id: str
    height: int
    width: int
    expressions: tuple[Expression, ...]
    path: str | None = None
    pixels: np.ndarray | None = None  # uint8 (y, x, 3), RGB, as a person sees it
    dialogues: tuple[Dialogue, ...] = ()
    boxes: Mapping[str, np.ndarray] = field(
        default_factory=dict
    )  # truth xyxy by "object" / "part", float32 (N, 4)
    dense: np.ndarray | None = (
        None  # scenes only: uint8 (y, x, 3) = kind, colour, part index per pixel, 0 = none
    )
    source: Mapping[str, Any] = field(default_factory=dict)
    inside: PhotoInside | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """One phrase of a generated answer with its mask (None = the model said it is not there)."""

    phrase: str
    mask: RLE | None
    score: float | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one expression, in the image frame at the photo's size."""

    rejected: bool
    mask: RLE | None
    text: str | None  # as generated, may be empty; None: not known (files of other models)
    score: float | None = None  # predicted IoU, 0..1
    p_absent: float | None = None
    mask_if_forced: RLE | None = None  # of rejected lines: what a forced [SEG] would give
    segments: tuple[Segment, ...] = ()  # one per phrase, where several were asked together


DecisionRule = Literal["token", "token_and_presence"]
EVALUATION_TEMPLATE = "Segment {expression}."


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are produced; saved beside every number made with it."""

    rule: DecisionRule | None = None  # None: the default of the model's config
    template: str = EVALUATION_TEMPLATE  # the chat uses "{expression}": the text as typed
    max_new_tokens: int = 48
    cache_bytes: int = 4 * 2**30  # of keys and values while generating; changes memory and time, no answer

    def describe(self, rule: DecisionRule) -> dict[str, Any]:
        """JSON-ready record with the resolved rule and a hash of the template."""
        record = asdict(self) | {"rule": rule, "search": "greedy"}
        del record["cache_bytes"]  # no answer depends on it
        return record | {"template_sha256": sha256(self.template.encode()).hexdigest()[:12]}


@dataclass(frozen=True, slots=True)
class Question:
    """A text with the turns before it: (question, generated answer) pairs, oldest first."""

    text: str
    history: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class BadSample:
    """A training sample that could not be prepared."""

    slot: int
    key: str  # data set, row and image
    reason: str


_PLAIN = ("expression_ids", "granularities", "drawn", "bad")  # of a Batch: no tensors


@dataclass(slots=True)
class Batch:
    """Prepared images with their packed token rows; the only thing a model's forward takes.

    A token row is one image's text: branches (expressions, conversations) one after another; the visual prefix
    is put before it by the model. `branch_BT` is -1 on padding.
    """

    pixels_low_B3hw: torch.Tensor  # float, normalised
    pixels_high_B3HW: torch.Tensor
    object_boxes_BO4: torch.Tensor  # xyxy, high frame, pixels
    object_valid_BO: torch.Tensor  # bool
    part_boxes_BP4: torch.Tensor
    part_valid_BP: torch.Tensor
    token_ids_BT: torch.Tensor
    labels_BT: torch.Tensor  # next-token targets at the predicting position, -100 where nothing is learned
    branch_BT: torch.Tensor
    position_BT: torch.Tensor  # restarts at 0 in each branch, counted from the end of the prefix
    image_of_expr_E: torch.Tensor
    seg_position_E: torch.Tensor  # position in the row of the state that predicts [SEG] or [REJ]
    present_E: torch.Tensor  # bool: the truth has a mask
    masks_EHW: torch.Tensor  # bool, high frame
    pixel_valid_BHW: torch.Tensor  # bool: false on padding of the high frame
    dense_BHW3: torch.Tensor | None = None
    pixels_mask_B3SS: torch.Tensor | None = None  # for mask heads with a frame of their own (SAM)
    truth_boxes_BGM4: torch.Tensor | None = None  # boxes of all masks, by object and part; high frame
    truth_boxes_valid_BGM: torch.Tensor | None = None
    # by image: bool (targets, y, x) at the photo's size, where the loss is taken there
    masks_photo: list[torch.Tensor] = field(default_factory=list)
    expression_ids: list[str] = field(default_factory=list)
    granularities: list[Granularity] = field(default_factory=list)
    drawn: dict[str, int] = field(default_factory=dict)  # images and expressions, "<data set> <what>"
    bad: list[Any] = field(default_factory=list)  # ledger.BadSample: what could not be prepared

    def to(self, device: Any) -> Batch:
        """The same batch on another device (the only device move in the project)."""
        moved: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name not in _PLAIN and value is not None:
                several = isinstance(value, list)
                moved[item.name] = [v.to(device) for v in value] if several else value.to(device)
        return replace(self, **moved)
