"""The typed configuration that a checkpoint carries."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from mllm.chat_templates import ChatTemplate
from mllm.config import MLLMConfig, TuningConfig
from uniresxx.errors import InputError
from uniresxx.model.former_config import current_mllm, current_weights
from uniresxx.types import DecisionRule

MODEL_TYPE = "uniresxx"
BoxSource = Literal["classical", "learned", "owlv2", "grid", "truth", "shuffled", "random"]
BoxLevel = Literal["object", "part"]
BOX_LEVELS: tuple[BoxLevel, ...] = get_args(BoxLevel)
HeadKind = Literal["pyramid", "sam", "sam2"]
MaskResolution = Literal["full", "low", "points", "photo"]
Source = Literal["llava", "llm", "low", "high", "sam"]
NORM_GROUPS = 8
MASK_TERMS = ("mask", "dice", "quality", "presence", "contrast", "dense")  # of the loss
# (last part of a field, value in files of earlier versions) -> value now
FORMER_VALUES = {("boxes", "segmenter"): "classical"}
# part of a config -> values of its fields that files of earlier versions do not have, where boxes are "learned"
FORMER_DEFAULTS: dict[str, dict[str, Any]] = {"box_head": {"levels": list(BOX_LEVELS), "min_score": 0.0}}
BOOKKEEPING = ("architectures", "transformers_version", "dtype")  # what transformers may add to a config.json


@dataclass(frozen=True)
class PyramidHeadConfig:
    """Mask head of METHOD section 4, tiny size."""

    width: int = 64
    heads: int = 4
    blocks: int = 2
    memory_stage: int = -2  # the stage map that joins the decoder's memory
    region_memory: bool = True  # MGFE tokens reach the mask without passing through one vector
    paint_regions: bool = False  # each pixel of the fine map gets the tokens of the boxes that it lies in

    def __post_init__(self) -> None:
        """Reject sizes that cannot fit together."""
        if self.width % self.heads or self.width % NORM_GROUPS:
            raise ValueError(
                f"head.width={self.width} must divide by head.heads={self.heads} and by {NORM_GROUPS}"
            )


@dataclass(frozen=True)
class SamHeadConfig:
    """SAM as mask head; defaults are ViT-B (facebook/sam-vit-base config.json).

    `--model.sam base`, `large`, `huge`, or a folder with config.json, gives all sizes at once.
    """

    size: int = 1024  # of the mask frame: longest side, padded at the bottom and right
    width: int = 768
    layers: int = 12
    heads: int = 12
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    window: int = 14
    decoder_width: int = 256
    decoder_mlp: int = 2048
    decoder_heads: int = 8
    region_memory: bool = False  # the prompt attends to image and region tokens before it enters the decoder
    fuse_early: bool = False  # early maps of the encoder and the high tower are a second term of the mask
    paint_regions: bool = False  # the image embedding gets the tokens of the boxes that each cell lies in


def sam_large() -> SamHeadConfig:
    """ViT-L (facebook/sam-vit-large config.json)."""
    return SamHeadConfig(width=1024, layers=24, heads=16, global_blocks=(5, 11, 17, 23))


def sam_huge() -> SamHeadConfig:
    """ViT-H (facebook/sam-vit-huge config.json)."""
    return SamHeadConfig(width=1280, layers=32, heads=16, global_blocks=(7, 15, 23, 31))


@dataclass(frozen=True)
class Sam2HeadConfig:
    """SAM 2.1 as mask head; defaults are Hiera-T (facebook/sam2.1-hiera-tiny config.json). Switches as for SAM.

    `--model.sam2 tiny`, `small`, `base_plus`, `large`, or a folder with config.json, gives all sizes at once.
    """

    size: int = 1024
    width: int = 96  # of the first stage; doubles at each of four
    blocks: tuple[int, int, int, int] = (1, 2, 7, 2)
    heads: tuple[int, int, int, int] = (1, 2, 4, 8)
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    global_blocks: tuple[int, ...] = (5, 7, 9)
    background: int = 7  # side of the position code outside windows
    decoder_width: int = 256
    decoder_mlp: int = 2048
    decoder_heads: int = 8
    region_memory: bool = False
    fuse_early: bool = False  # the maps of strides 4 and 8 get the two finest ones of the high tower
    paint_regions: bool = False  # the maps of strides 4 and 8 as well


def sam2_small() -> Sam2HeadConfig:
    """Hiera-S (facebook/sam2.1-hiera-small config.json)."""
    return Sam2HeadConfig(blocks=(1, 2, 11, 2), global_blocks=(7, 10, 13))


def sam2_base_plus() -> Sam2HeadConfig:
    """Hiera-B+ (facebook/sam2.1-hiera-base-plus config.json)."""
    return Sam2HeadConfig(
        width=112, blocks=(2, 3, 16, 3), heads=(2, 4, 8, 16), global_blocks=(12, 16, 20), background=14
    )


def sam2_large() -> Sam2HeadConfig:
    """Hiera-L (facebook/sam2.1-hiera-large config.json)."""
    return Sam2HeadConfig(
        width=144,
        blocks=(2, 6, 36, 4),
        heads=(2, 4, 8, 16),
        windows=(8, 4, 16, 8),
        global_blocks=(23, 33, 43),
    )


@dataclass(frozen=True)
class BoxHeadConfig:
    """The `learned` proposer: a class-agnostic detector with an object and a part level.

    A level that is not in `levels` has no boxes in training and in use. A run replaces None when it opens its data.
    """

    width: int = 256
    stages: tuple[int, ...] = (1, 2, 3)  # of the high tower, finest first
    convs: int = 2
    candidates: int = 256  # best-scored boxes per level that enter NMS
    # None: the levels that the training data has boxes of; a named one must have some
    levels: tuple[BoxLevel, ...] | None = None
    min_score: float = 0.15  # a box below it is no proposal; random heads stay below (our choice)

    def __post_init__(self) -> None:
        """Reject unknown levels and thresholds that no score can reach."""
        unknown = [level for level in self.levels or () if level not in BOX_LEVELS]
        if unknown or not 0 <= self.min_score < 1:
            raise ValueError(
                f"box_head.levels={self.levels!r} must be of {', '.join(BOX_LEVELS)}, and "
                f"min_score={self.min_score} from 0 to below 1"
            )

    @property
    def active_levels(self) -> tuple[BoxLevel, ...]:
        """The levels that are on."""
        return BOX_LEVELS if self.levels is None else self.levels


@dataclass(frozen=True)
class WeightsConfig:
    """Pretrained parts: a local folder or a hub id each, safetensors only; None: initialised at random.

    `required` names the parts that a recipe cannot do without: training stops with the option that names each.
    """

    llava: str | None = None  # LLM, projector and, unless `low` is named, the low tower
    llm: str | None = None  # a causal language model alone, instead of `llava`; its config is `mllm.llm`
    low: str | None = None  # tower of low resolution
    high: str | None = None  # tower of high resolution
    sam: str | None = None  # of mask_head "sam" or "sam2"
    owlv2: str | None = None  # detector of boxes "owlv2" (its parts: small boxes inside objects); never saved
    start: str | None = None  # a checkpoint folder of ours, such as the stage before; adapters may be new
    required: tuple[Source, ...] = ()


@dataclass(frozen=True)
class LossConfig:
    """Weights of METHOD section 4; `dense` is the auxiliary of the scenes (kind, colour, part per pixel).

    `words` is for a language model with random weights. Without this term the model drops the words that change a
    mask least, such as "left" (docs/log.md).

    Where all weights of the mask head's terms are 0 it is not run in training, and no term of it is logged; the same
    holds for `box`.

    `resolution` is where BCE and dice are taken: every pixel of the high frame; the head's own grid; `points`
    sampled points (losses.mask_point_sums); or every pixel of the photo at its own size. The `lisa` family has
    "photo" and dice_smooth 0.001 (its scale of 1000 at eps 1e-6).
    """

    text: float = 1.0
    mask: float = 2.0
    dice: float = 0.5
    quality: float = 0.1
    presence: float = 0.5
    contrast: float = 0.0  # of masks that are confused with others of the same picture (losses.contrast_sum)
    words: float = 0.0  # the state before [SEG] must name the question's words (criterion.words_sum)
    dense: float = 0.0
    box: float = 1.0  # of the learned box head
    resolution: MaskResolution = "full"
    points: int = 12544
    oversample: int = 3
    uncertain: float = 0.75
    dice_smooth: float = 1.0

    def __post_init__(self) -> None:
        """Reject unknown resolutions and numbers of points that sample nothing."""
        if self.resolution not in get_args(MaskResolution):
            raise ValueError(
                f"loss.resolution={self.resolution!r}; known: {', '.join(get_args(MaskResolution))}"
            )
        if self.points < 1 or self.oversample < 1 or not 0 <= self.uncertain <= 1:
            raise ValueError(
                f"loss.points={self.points} and oversample={self.oversample} must be at least 1, "
                f"uncertain={self.uncertain} from 0 to 1"
            )

    @property
    def teaches_masks(self) -> bool:
        """Whether any term needs the mask head."""
        return any(getattr(self, term) for term in MASK_TERMS)

    def text_only(self) -> LossConfig:
        """The loss of plain answers: no term of the mask head or the box head."""
        none = dict.fromkeys((*MASK_TERMS, "words", "box"), 0.0)
        return LossConfig(**{**vars(self), **none})


@dataclass(frozen=True)
class UniRESPlusPlusConfig:
    """Everything needed to build the model; `boxes` is the source of region proposals in training and in use."""

    mllm: MLLMConfig = field(default_factory=MLLMConfig)
    head: PyramidHeadConfig = field(default_factory=PyramidHeadConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    # GSVA's way, to compare with: one question for all expressions of an image, one answer "a: [SEG], b: [REJ]."
    ask_together: bool = False
    instances: int = 0  # queries per [SEG], each a thing of its own; 0: one mask of all
    boxes: BoxSource = "classical"  # "owlv2" has no part level: its parts are small boxes inside objects
    decision_rule: DecisionRule = "token_and_presence"
    dense_classes: tuple[int, int, int] = (
        0,
        0,
        0,
    )  # kinds, colours, parts incl. 0 = none; zeros: no dense head
    mask_head: HeadKind = "pyramid"  # `head` has the sizes of "pyramid", `sam` and `sam2` those of the others
    sam: SamHeadConfig = field(default_factory=SamHeadConfig)
    sam2: Sam2HeadConfig = field(default_factory=Sam2HeadConfig)
    box_head: BoxHeadConfig = field(default_factory=BoxHeadConfig)  # of boxes "learned"
    tuning: TuningConfig = field(default_factory=TuningConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)

    def __post_init__(self) -> None:
        """Reject unknown words, which a config file may hold, and parts that do not go together."""
        for name, value, known in (
            ("boxes", self.boxes, get_args(BoxSource)),
            ("decision_rule", self.decision_rule, get_args(DecisionRule)),
            ("mask_head", self.mask_head, get_args(HeadKind)),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r}; known: {', '.join(known)}")
        if self.boxes == "owlv2" and self.mllm.high_stats != "clip":
            raise ValueError(
                "boxes='owlv2' takes the high tower's pixels: "
                f"mllm.high_stats={self.mllm.high_stats!r} must be 'clip'"
            )
        if self.instances < 0 or self.instances == 1 or (self.instances and self.loss.resolution == "photo"):
            raise ValueError(
                f"instances={self.instances} must be 0 (off) or at least 2, and does not go with "
                "loss.resolution='photo', which has no single instances: use 'full', 'points' or 'low'"
            )
        if self.mask_head != "pyramid" and any(self.dense_classes):
            raise ValueError(
                f"mask_head={self.mask_head!r} has no fine map for dense_classes: use mask_head 'pyramid'"
            )

    @property
    def mask_size(self) -> int | None:
        """Side of the frame that the mask head encodes itself; None: it uses the high tower."""
        return {"pyramid": None, "sam": self.sam.size, "sam2": self.sam2.size}[self.mask_head]

    @property
    def paints_regions(self) -> bool:
        """`paint_regions` of the chosen mask head."""
        heads: dict[HeadKind, PyramidHeadConfig | SamHeadConfig | Sam2HeadConfig] = {
            "pyramid": self.head,
            "sam": self.sam,
            "sam2": self.sam2,
        }
        return heads[self.mask_head].paint_regions

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form with its `model_type`."""
        return {"model_type": MODEL_TYPE} | asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> UniRESPlusPlusConfig:
        """Inverse of `to_dict`; unknown or missing keys and another model type raise InputError."""
        values = {
            name: FORMER_VALUES.get((name, value), value) if isinstance(value, str) else value
            for name, value in values.items()
            if name not in BOOKKEEPING
        }
        kind = values.pop("model_type", None)
        if kind != MODEL_TYPE:
            raise InputError(
                f"model_type is {kind!r}, expected {MODEL_TYPE!r}: this is a checkpoint of another kind"
            )
        try:
            parts: dict[str, Any] = {
                "mllm": _mllm(values.pop("mllm")),
                "head": PyramidHeadConfig(**values.pop("head")),
                "loss": LossConfig(**values.pop("loss")),
            }
            values["weights"] = current_weights(values.get("weights", {}))
            former = FORMER_DEFAULTS if values.get("boxes") == "learned" else {}
            for name, kind in _LATER.items():  # absent from checkpoints of earlier versions: defaults
                parts[name] = kind(**_tuples(former.get(name, {}) | values.pop(name, {})))
            return cls(**parts, **_tuples(values))
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise InputError(f"config.json does not fit this version: {error}") from error


def _mllm(values: dict[str, Any]) -> MLLMConfig:
    current = current_mllm(values)
    return MLLMConfig(**_tuples(current | {"chat": ChatTemplate(**current["chat"])}))


_LATER: dict[str, type] = {
    "sam": SamHeadConfig,
    "sam2": Sam2HeadConfig,
    "box_head": BoxHeadConfig,
    "tuning": TuningConfig,
    "weights": WeightsConfig,
}


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
