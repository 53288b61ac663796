"""What the config.json of a pretrained source says beside the shapes of its tensors, against this model's config.

Heads, activations and epsilons change every output and no shape, so a source is refused where they differ.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from mllm.pretrained_config import build_config, published_values, read_config, read_values

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Keys that decide neither a weight nor what is computed from it here.
_OF_ANY_MODEL = {
    "_name_or_path", "architectures", "attention_dropout", "attention_probs_dropout_prob", "bos_token_id",
    "chunk_size_feed_forward", "drop_path_rate", "dtype", "eos_token_id", "hidden_dropout_prob", "id2label",
    "initializer_factor", "initializer_range", "is_encoder_decoder", "label2id", "output_attentions",
    "output_hidden_states", "pad_token_id", "problem_type", "return_dict", "transformers_version",
}  # fmt: skip
FREE_IN_LANGUAGE_MODEL = _OF_ANY_MODEL | {
    "layer_types", "max_position_embeddings", "max_window_layers", "sliding_window", "use_cache",
    "use_sliding_window", "vocab_size",
}  # fmt: skip
FREE_IN_TOWER = _OF_ANY_MODEL | {
    "apply_layernorm", "decoder_depth", "decoder_hidden_size", "decoder_num_heads", "encoder_stride", "image_size",
    "layer_norm_init", "layer_scale_init_value", "layerscale_value", "mask_ratio", "normalize_pixel_loss",
    "num_patches", "out_features", "out_indices", "pos_embed_jitter", "pos_embed_rescale", "pos_embed_shift",
    "projection_dim", "reshape_hidden_states", "stage_names", "use_mask_token", "vision_use_head",
}  # fmt: skip
LLAVA = ("llava", "llava_next", "llava_onevision")  # in the layout of transformers: 1.5, 1.6, OneVision
# LLaVA as first published: its class -> model_type of the language model, whose keys stand beside those of LLaVA
FIRST_LLAVA = {
    "LlavaLlamaForCausalLM": "llama",
    "LlavaMistralForCausalLM": "mistral",
    "LlavaQwenForCausalLM": "qwen2",
}


@dataclass(frozen=True)
class LlavaConfigs:
    """What a LLaVA folder says of its parts."""

    language: PreTrainedConfig
    tower: PreTrainedConfig | None  # None: as first published, which names a tower only
    projector: str  # the word of the first release, such as "mlp2x_gelu"
    layer: int | None  # whose output is taken from the tower, 0: the embeddings; None: see `first_layer`
    first_layer: int = -2  # as first published: counted from the end of a CLIP tower


def llava_configs(folder: Path) -> LlavaConfigs:
    """The configs of a LLaVA folder, in the layout of transformers or as first published.

    Raises:
        ValueError: no config.json, or that of a model that is computed in another way.
    """
    file = folder / "config.json"
    values = read_values(file)
    kind, name = values.get("model_type"), next(iter(values.get("architectures") or ()), None)
    if kind in LLAVA and "text_config" in values:
        config: Any = build_config(published_values(values, str(file)), str(file))
        layer = config.vision_feature_layer
        if not isinstance(layer, int) or config.projector_hidden_act != "gelu":
            raise ValueError(
                f"{file}: vision_feature_layer={layer} and projector_hidden_act={config.projector_hidden_act!r} are "
                "not one layer and 'gelu', which this model computes: it cannot start from this LLaVA"
            )
        tower = config.vision_config
        taken = layer if layer >= 0 else tower.num_hidden_layers + 1 + layer
        return LlavaConfigs(config.text_config, tower, "mlp2x_gelu", taken)
    if name in FIRST_LLAVA and "text_config" not in values:
        language = published_values(values | {"model_type": FIRST_LLAVA[name]}, str(file))
        return LlavaConfigs(
            build_config(language, str(file)), None, str(values.get("mm_projector_type", "linear")), None,
            int(values.get("mm_vision_select_layer", -2)),
        )  # fmt: skip
    raise ValueError(
        f"{file}: {name or kind!r} is no LLaVA that is read here (model_type {', '.join(LLAVA)}; "
        f"as first published {', '.join(FIRST_LLAVA)}): a language model alone goes to --model.weights.llm"
    )


def tower_config(folder: Path) -> PreTrainedConfig | None:
    """The config of the image encoder of a folder in the layout of transformers; None where it has none."""
    file = folder / "config.json"
    if not file.is_file() or "model_type" not in read_values(file):
        return None
    config = build_config(read_config(file), str(file))
    return vars(config).get("vision_config", config)


def refuse_other_config(
    source: str,
    theirs: PreTrainedConfig,
    ours: PreTrainedConfig,
    field: str,
    free: set[str],
    wanted: Mapping[str, Any] | None = None,
    words: Sequence[str] = (),
) -> None:
    """ValueError where a source was made with another config than `field` ("mllm.llm") has.

    `free`: keys that may differ. The line says what `--model.FIELD` takes to fit: `words`, or where there are none
    the differing keys and then `wanted`.
    """
    # nested configs of older releases keep keys that their model does not have, such as "is_decoder"
    there, here = (_without(published_values(c.to_dict(), field), free) for c in (theirs, ours))
    differing = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    if not differing:
        return
    another = theirs.model_type != ours.model_type
    if another:
        differing = ["model_type"]
    said = [f"{key} is {there.get(key)!r} there and {here.get(key)!r} in {field}" for key in differing[:3]]
    if not words:
        own = {key: there.get(key) for key in differing}
        if another:
            own |= _without(theirs.to_diff_dict(), _OF_ANY_MODEL | {"layer_types", "model_type"})
        words = [f"{key}={_word(value)}" for key, value in (own | dict(wanted or {})).items()]
    more = f"; … ({len(differing)} in all)" if len(differing) > 3 else ""
    raise ValueError(
        f"{source} is another model: {'; '.join(said)}{more}; give --model.{field} {' '.join(map(quote, words))}"
    )


def _without(values: Mapping[str, Any], free: set[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in free}


def _word(value: Any) -> str:
    """A value as `mllm.pretrained_config.with_changes` reads it."""
    return value if isinstance(value, str) else json.dumps(value)
