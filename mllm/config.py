"""Sizes and switches of the multimodal LLM, and what of it is trained."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from mllm.chat_templates import LLAVA_1_5, QWEN_3, ChatTemplate
from mllm.pretrained_config import build_config
from mllm.tower_families import (
    HIGH_FAMILIES,
    LOW_FAMILIES,
    PixelStats,
    clip_vit,
    convnext,
    family_of,
    high_tower_config,
    low_tower_config,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PromptState = Literal["predict", "own"]
Attention = Literal["sdpa", "eager", "flash_attention_2", "flex_attention"]
Projector = Literal["linear", "mlp2x_gelu"]
TowerStats = PixelStats | Literal["family"]
Part = Literal["low", "high", "fusion", "regions", "exploitation", "llm", "head", "mask_encoder", "box_head"]
TokenRows = Literal["all", "new"]
Quantization = Literal["none", "int8", "nf4"]
# What some language models do to embeddings or logits outside their layers and matrices.
_SCALED = ("embedding_multiplier", "final_logit_softcapping", "logit_scale", "logits_scaling")


def tiny_llama(**changes: Any) -> dict[str, Any]:
    """The language model of the tiny size, with changes by the names of its config."""
    return {
        "model_type": "llama",
        "vocab_size": 1024,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 4096,
    } | changes


class TowerPixels(NamedTuple):
    """The pixel statistics of each tower."""

    low: PixelStats
    high: PixelStats


@dataclass(frozen=True)
class MLLMConfig:
    """Defaults are the tiny size; METHOD section 1 has the full one (`llava_7b`, `llava_13b`).

    `low` and `high` are the towers' own transformers configs (families: mllm/tower_families.py), for inputs of
    `low_size` and `high_size` pixels; an image size inside the dicts is not read. `llm` is the language model's own
    config, see `mllm.pretrained_config`; its `vocab_size` is the number of token rows, special tokens of this project
    included. Switches at the end are the ablations the method names.
    """

    low: dict[str, Any] = field(default_factory=clip_vit)
    low_size: int = 64
    low_select_layer: int = -1  # whose output is taken; -1: of the last, after the final norm
    low_stats: TowerStats = "half"  # normalisation of its pixels; "family": that of its published weights
    high: dict[str, Any] = field(default_factory=convnext)
    high_size: int = 64
    high_stats: TowerStats = "half"
    llm: dict[str, Any] = field(default_factory=tiny_llama)
    chat: ChatTemplate = field(default_factory=ChatTemplate)
    max_objects: int = 12
    max_parts: int = 24
    mgfe_blocks: int = 2
    mgfe_heads: int = 8
    init_std: float = 0.05
    embedding_std: float = 0.05
    # Ablations: a stream switched off becomes learned constants of the same count.
    use_high: bool = True
    use_objects: bool = True
    use_parts: bool = True
    objects_see_image: bool = True
    parts_see_objects: bool = True
    parts_see_image: bool = True
    image_sees_regions: bool = True
    containment_bias: bool = True
    prompt_state: PromptState = "predict"
    blind_to_image: bool = False
    blind_to_text: bool = False
    # What published weights need; the defaults are what the tiny model had before these were fields.
    projector: Projector = "linear"  # low tower -> LLM width
    fusion_starts_as_low: bool = (
        False  # image tokens are at first those of the low tower, which the LLM knows
    )
    mgfe_width: int | None = None  # None: llm_width, without projections
    count_padding: bool = True  # absent regions take a position; False: a row without regions is LLaVA's own
    attention: Attention = "sdpa"
    activation_checkpointing: bool = False  # of the LLM's layers: less memory, about a third more time

    def __post_init__(self) -> None:
        """Reject sizes that cannot fit together and words that name nothing."""
        stats = (*get_args(PixelStats), "family")
        for name, word, known in (
            ("attention", self.attention, get_args(Attention)),
            ("projector", self.projector, get_args(Projector)),
            ("low_stats", self.low_stats, stats),
            ("high_stats", self.high_stats, stats),
        ):
            if word not in known:
                raise ValueError(f"{name}={word!r}; known: {', '.join(known)}")

    @cached_property
    def low_config(self) -> PreTrainedConfig:
        """The low tower's config; ValueError where it does not fit `low_size`."""
        return low_tower_config(self.low, self.low_size)

    @cached_property
    def high_config(self) -> PreTrainedConfig:
        """The high tower's config; ValueError where it does not fit `high_size`."""
        return high_tower_config(self.high, self.high_size)

    @property
    def low_grid(self) -> int:
        """Side of the low tower's token grid."""
        return self.low_size // self.low_config.patch_size

    @property
    def high_widths(self) -> tuple[int, ...]:
        """Channels of the high tower's stage maps, finest first."""
        return family_of(self.high, HIGH_FAMILIES, "mllm.high").widths(self.high_config)

    @property
    def high_strides(self) -> tuple[int, ...]:
        """Pixels of the high frame per cell of each stage map."""
        return family_of(self.high, HIGH_FAMILIES, "mllm.high").strides(self.high_config)

    @property
    def pixel_stats(self) -> TowerPixels:
        """The pixel statistics of each tower."""
        low = family_of(self.low, LOW_FAMILIES, "mllm.low").stats
        high = family_of(self.high, HIGH_FAMILIES, "mllm.high").stats
        return TowerPixels(
            low if self.low_stats == "family" else self.low_stats,
            high if self.high_stats == "family" else self.high_stats,
        )

    def check_llm(self) -> None:
        """ValueError for a language model that cannot be built, or whose width MGFE cannot divide."""
        if self.exploitation_width % self.mgfe_heads:
            raise ValueError(
                f"mgfe_width={self.exploitation_width} (None: the language model's) must divide by "
                f"mgfe_heads={self.mgfe_heads}"
            )
        values = self.llm_config.to_dict()
        name = values["model_type"]
        scaled = [key for key in _SCALED if values.get(key) not in (None, 1.0)]
        if scaled:
            raise ValueError(f"mllm.llm: {name} has {', '.join(scaled)}, which this model does not apply")
        window = values.get("sliding_window")
        if window:
            raise ValueError(
                f"mllm.llm: sliding_window={window} hides tokens from one another; sliding_window=None attends to "
                f"all, which is the same in rows of up to {window} tokens"
            )
        if {"full_attention"} != {"full_attention", *(values.get("layer_types") or ())}:
            raise ValueError(
                f"mllm.llm: {name} has layers of {sorted({*values['layer_types']})}: not supported"
            )

    @cached_property
    def llm_config(self) -> PreTrainedConfig:
        """The language model's config as transformers has it; ValueError where `llm` is none."""
        from transformers import (
            MODEL_FOR_CAUSAL_LM_MAPPING,
        )  # loads torch, which a command line must not wait for

        config = build_config(self.llm, "mllm.llm")
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ValueError(f"mllm.llm: {config.model_type} is no causal language model of transformers")
        return config

    @property
    def llm_width(self) -> int:
        """Width of the language model and of the visual tokens in it."""
        return int(self.llm_config.hidden_size)

    @property
    def attention_width(self) -> int:
        """Width of all query heads of one layer together."""
        c = self.llm_config.to_dict()
        heads = int(c["num_attention_heads"])
        return heads * int(c.get("head_dim") or self.llm_width // heads)

    @property
    def token_count(self) -> int:
        """Rows of the language model's token matrices."""
        return int(self.llm_config.vocab_size)

    @property
    def exploitation_width(self) -> int:
        """Width of MGFE's blocks."""
        return self.mgfe_width or self.llm_width


@dataclass(frozen=True)
class TuningConfig:
    """What is trained, what is frozen, what is adapted.

    `frozen` names parts, not parameters. With `lora_rank` the LLM's own weights are frozen and low-rank adapters on
    `lora_targets` are trained (Hu et al. 2021): W + alpha / rank * B A. `token_rows="new"` trains, of the LLM's
    embedding and output matrices, only the rows of the project's special tokens.
    """

    frozen: tuple[Part, ...] = ()
    lora_rank: int = 0  # 0: no adapters
    lora_alpha: int = 128
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    token_rows: TokenRows = "all"
    frozen_dtype: Literal["fp32", "bf16"] = "fp32"  # how frozen weights are kept while training
    keep_fp32: tuple[Part, ...] = ()  # frozen parts that a later stage trains: never rounded
    quantization: Quantization = "none"  # of the LLM's frozen matrices, see mllm.quantization

    def __post_init__(self) -> None:
        """Reject numbers and words that mean nothing."""
        if self.lora_rank < 0 or self.lora_alpha <= 0 or not 0 <= self.lora_dropout < 1:
            raise ValueError(
                f"lora_rank={self.lora_rank} must be at least 0, lora_alpha={self.lora_alpha} above 0, "
                f"lora_dropout={self.lora_dropout} from 0 to below 1"
            )
        if self.lora_rank and not self.lora_targets:
            raise ValueError(
                "lora_targets is empty: name projections such as q_proj v_proj, or set lora_rank 0"
            )
        unknown = [name for name in (*self.frozen, *self.keep_fp32) if name not in get_args(Part)]
        if unknown or self.token_rows not in get_args(TokenRows):
            raise ValueError(
                f"frozen or keep_fp32 {unknown}, or token_rows={self.token_rows!r}, is unknown; "
                f"parts: {', '.join(get_args(Part))}"
            )
        if self.quantization not in get_args(Quantization):
            raise ValueError(
                f"quantization={self.quantization!r}; known: {', '.join(get_args(Quantization))}"
            )


def llava_7b() -> MLLMConfig:
    """LLaVA-1.5-7B, CLIP ViT-L/14-336 and CLIP ConvNeXt-L (the sizes of the published config files).

    Sources: llava-hf/llava-1.5-7b-hf config.json (Llama 4096/32/32/11008, eps 1e-5, 32064 rows, layer -2),
    openai/clip-vit-large-patch14-336 (1024/24/16/4096, quick_gelu), open_clip convnext_large_d_320 (192-1536).
    """
    return MLLMConfig(
        low=clip_vit(1024, 24, 16, 4096, 14), low_size=336, low_select_layer=-2, low_stats="clip",
        high=convnext((192, 384, 768, 1536), (3, 3, 27, 3), 4, 1e-6), high_size=768, high_stats="clip",
        projector="mlp2x_gelu", fusion_starts_as_low=True,
        llm=vicuna(4096, 11008, 32), chat=LLAVA_1_5, count_padding=False,
        max_objects=32, max_parts=64, mgfe_width=1024, init_std=0.02, embedding_std=0.02,
    )  # fmt: skip


def llava_13b() -> MLLMConfig:
    """`llava_7b` with the LLM of LLaVA-1.5-13B (llava-hf/llava-1.5-13b-hf: 5120/40/40/13824)."""
    return replace(llava_7b(), llm=vicuna(5120, 13824, 40))


def vicuna(width: int, mlp: int, layers: int) -> dict[str, Any]:
    """The language model of LLaVA-1.5, with as many heads as layers."""
    return {
        "model_type": "llama",
        "vocab_size": 32064,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": layers,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }


def qwen3_4b() -> MLLMConfig:
    """`llava_7b` with Qwen3-4B as language model (Qwen/Qwen3-4B config.json).

    Its matrices have 151,936 rows and its tokenizer 151,669 tokens: the special tokens take free rows.
    """
    llm = {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "tie_word_embeddings": True,
    }
    return replace(llava_7b(), llm=llm, chat=QWEN_3)
