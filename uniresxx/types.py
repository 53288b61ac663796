"""The data classes that the packages of the project pass to one another, with a shape for each tensor.

Shapes: B images, E expressions of the batch, T tokens of a row, O object boxes, P part boxes, h w low-tower pixels,
H W high-tower pixels (masks are supervised there), S S pixels of a mask head's own frame, G levels of boxes (object,
part), M boxes of a level, N instances, y x pixels of the photo.
Nothing here imports torch, so that readers, metrics and the command line start fast.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypedDict

import numpy as np

if TYPE_CHECKING:
    import torch


class Granularity(StrEnum):
    """What an expression means: a part, an object, several objects, or nothing in the picture."""

    PART = "part"
    OBJECT = "object"
    MULTI = "multi"
    NONE = "none"


class RLE(TypedDict):
    """A binary mask in COCO's compressed run-length code: size [y, x], counts as ASCII text."""

    size: list[int]
    counts: str


@dataclass(frozen=True, slots=True)
class Expression:
    """One referring expression of an image, with its true mask at the photo's size."""

    expression_id: str  # <data set>/<split>/<native id>
    text: str
    granularity: Granularity
    rle: RLE | None  # union of the referents; None where there is no target
    area: int = 0  # pixels of the mask
    level: int | None = None  # scenes only: 1 kind, 2 attribute, 3 relation, order or count
    twin: str | None = None  # a part, its object and its group share a value; the twin score joins them
    source: Mapping[str, Any] = field(default_factory=dict)  # native ids and tags, unchanged
    # of each referent alone, where the data set has them; None: only the union is known
    instances: tuple[RLE, ...] | None = None
    # x0, y0, x1, y1, … in pixels; None unless a protocol asks for them (data/polygons.py)
    polygons: tuple[Sequence[float], ...] | None = None


@dataclass(frozen=True, slots=True)
class Phrase:
    """One phrase of a true answer, with its mask; None where the phrase means nothing in the picture."""

    text: str
    rle: RLE | None
    granularity: Granularity


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its true answer: phrases, each with [SEG] or [REJ], or plain words."""

    question: str
    phrases: tuple[Phrase, ...] = ()
    answer: str | None = None  # the plain words, where there are no phrases


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Several turns about one image; later questions may need earlier turns."""

    dialogue_id: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class PhotoInside:
    """Where an encoded photo lies inside another file; `data.store.photos.photo_of` reads it."""

    kind: str  # "tar" (a shard of a store), "lmdb" or "parquet"
    file: str  # path of the file it lies in
    key: str  # member of the tar, record of the LMDB, row of the parquet file
    name: str  # the photo's own file name, as its data set gives it
    offset: int = 0  # tar only, as the next two: where the photo begins, in bytes
    length: int = 0
    crc: int = 0  # CRC-32


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image with all its expressions and dialogues.

    The photo is given in one of three ways: as a file (`path`), inside a file (`inside`) or as an array (`pixels`).
    """

    image_id: str
    height: int
    width: int
    expressions: tuple[Expression, ...]
    path: str | None = None
    pixels: np.ndarray | None = None  # uint8 (y, x, 3), RGB, as a person sees it
    dialogues: tuple[Dialogue, ...] = ()
    # true boxes, xyxy, float32 (boxes, 4), by "object" and "part": all that the photo shows of a level; "region":
    # those of captioned regions
    boxes: Mapping[str, np.ndarray] = field(default_factory=dict)
    # scenes only: uint8 (y, x, 3), the kind, colour and part of each pixel, from 1 on; 0 is none
    dense: np.ndarray | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    inside: PhotoInside | None = None
    # boxes of the masks of all expressions, by the same names, of a record that shows only some of them
    referent_boxes: Mapping[str, np.ndarray] | None = None


DecisionRule = Literal["token", "token_and_presence"]
DecodingMode = Literal["generate", "forced"]
EVALUATION_TEMPLATE = "Segment {expression}."
AS_TYPED = "{expression}"  # the template of a conversation: the text goes to the model as it is


@dataclass(frozen=True, slots=True)
class Decoding:
    """How answers are generated; saved beside every number that depends on it."""

    rule: DecisionRule | None = None  # None: the default of the model's config
    # "forced": the answer [SEG] is given, so nothing is ever rejected; the shortcut of LISA's and GSVA's evaluation
    mode: DecodingMode = "generate"
    template: str = EVALUATION_TEMPLATE
    max_new_tokens: int = 48
    cache_bytes: int = (
        4 * 2**30
    )  # for keys and values while generating; changes memory and time, but no answer

    def describe(self, rule: DecisionRule) -> dict[str, Any]:
        """A record for JSON, with the rule that was used and a hash of the template."""
        record = asdict(self) | {"rule": rule, "search": "greedy", "thresholds": thresholds_of(rule)}
        del record["cache_bytes"]  # no answer depends on it
        return record | {"template_sha256": sha256(self.template.encode()).hexdigest()[:12]}


def thresholds_of(rule: str | None) -> dict[str, float | None]:
    """The thresholds that turn a model's numbers into an answer: of a pixel's probability, and of absence."""
    return {"mask": 0.5, "p_absent": 0.5 if rule == "token_and_presence" else None}


@dataclass(frozen=True, slots=True)
class Question:
    """A text, and the earlier turns of its conversation: (question, generated answer) pairs, oldest first."""

    text: str
    history: tuple[tuple[str, str], ...] = ()


Texts = Sequence[Sequence[str | Question]]  # of each photo
OnText = Callable[[int, str], None]  # number of the text asked, and its answer so far


@dataclass(frozen=True, slots=True)
class BadSample:
    """A training sample that could not be prepared."""

    slot: int
    key: str  # data set, row and image
    reason: str


NO_LABEL = -100  # mllm.chat.IGNORE, which torch's losses leave out


@dataclass(slots=True, kw_only=True)
class TrainingBatch:
    """What the training loop knows of a micro-batch of any model."""

    not_tensors: ClassVar[frozenset[str]] = frozenset({"expression_ids", "granularities", "drawn", "bad"})
    expression_ids: list[str] = field(default_factory=list)
    granularities: list[Granularity] = field(default_factory=list)
    drawn: dict[str, int] = field(default_factory=dict)  # images and expressions, "<data set> <what>"
    bad: list[BadSample] = field(default_factory=list)

    def to(self, device: Any) -> Self:
        """The same batch on another device; nothing else in the project moves a batch.

        From pinned memory to a GPU the copy runs while the host goes on.
        """
        return self._with_tensors(lambda value: value.to(device, non_blocking=value.is_pinned()))

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory; torch's DataLoader calls this."""
        return self._with_tensors(lambda value: value.pin_memory())

    def _with_tensors(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """A copy whose tensors went through `change`."""
        changed = copy(self)
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name not in self.not_tensors and value is not None:
                is_list = isinstance(value, list)
                setattr(changed, item.name, [change(v) for v in value] if is_list else change(value))
        return changed


@dataclass(slots=True)
class Batch(TrainingBatch):
    """Prepared images with their token rows: the one argument of the forward of UniRES++ and FiLM-UNet.

    A token row holds the text of one image: its branches (expressions, conversations) one after another. The model
    puts the visual prefix before it. `branch_BT` is -1 on padding.
    """

    not_tensors: ClassVar[frozenset[str]] = TrainingBatch.not_tensors | {"most_expressions", "shown"}
    pixels_low_B3hw: torch.Tensor  # uint8; the model normalises them
    pixels_high_B3HW: torch.Tensor
    object_boxes_BO4: torch.Tensor  # xyxy, high frame, pixels
    object_valid_BO: torch.Tensor  # bool
    part_boxes_BP4: torch.Tensor
    part_valid_BP: torch.Tensor
    token_ids_BT: torch.Tensor
    labels_BT: torch.Tensor  # next-token targets at the predicting position, -100: no loss
    branch_BT: torch.Tensor
    position_BT: torch.Tensor  # restarts at 0 in each branch, counted from the end of the prefix
    image_of_expr_E: torch.Tensor
    seg_position_E: torch.Tensor  # position in the row of the state that predicts [SEG] or [REJ]
    present_E: torch.Tensor  # bool: the truth has a mask
    masks_EHW: torch.Tensor  # bool, high frame
    pixel_valid_BHW: torch.Tensor  # bool: False on padding of the high frame
    dense_BHW3: torch.Tensor | None = None
    pixels_mask_B3SS: torch.Tensor | None = None  # for mask heads with a frame of their own (SAM)
    truth_boxes_BGM4: torch.Tensor | None = None  # all boxes that are known, xyxy, high frame
    truth_boxes_valid_BGM: torch.Tensor | None = None
    boxes_complete_BG: torch.Tensor | None = None  # bool: they are all that the photo shows of the level
    # of all expressions with a mask, each instance alone, bool, high frame; expressions are in order
    instance_masks_NHW: torch.Tensor | None = None
    expr_of_instance_N: torch.Tensor | None = None
    # by image: bool (targets, y, x), for a loss at the photo's size
    masks_photo: list[torch.Tensor] = field(default_factory=list)
    # found here, on the host, because on a GPU each would be waited for
    labelled_Y: torch.Tensor = field(init=False)  # places in the flattened (B T) that have a label
    present_P: torch.Tensor = field(init=False)  # expressions that have a mask
    most_expressions: int = field(init=False)  # of an image
    shown: tuple[int, int] = field(
        init=False
    )  # rows and columns of the high frame beyond which all is padding

    def __post_init__(self) -> None:
        """Find the places of labels and masks, and the most expressions of an image."""
        self.labelled_Y = (self.labels_BT != NO_LABEL).flatten().nonzero()[:, 0]
        self.present_P = self.present_E.nonzero()[:, 0]
        self.most_expressions = max(Counter(self.image_of_expr_E.tolist()).values(), default=0)
        rows_BH, columns_BW = self.pixel_valid_BHW.any(dim=2), self.pixel_valid_BHW.any(dim=1)
        self.shown = int(rows_BH.sum(dim=1).max()), int(columns_BW.sum(dim=1).max())
