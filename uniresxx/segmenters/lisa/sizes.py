"""The config of a converted model, from the released config and the shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uniresxx.checkpoints.tensors import CONFIG, read_json
from uniresxx.errors import InputError
from uniresxx.segmenters.lisa.config import Conversation, LisaConfig, Peer, frozen_in

PHOTO_KEYS = ("size", "crop_size", "image_mean", "image_std")  # of CLIP's preprocessor_config.json
Shapes = Mapping[str, tuple[int, ...]]

CLIP_HEAD_WIDTH = 64  # of every CLIP ViT
SAM_DECODER_HEADS = 8  # build_sam.py: the same for B, L and H
CLIP_PHOTO = {  # openai/clip-vit-large-patch14, preprocessor_config.json
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
TEXT_KEYS = (  # of a released config.json: what LlamaConfig takes
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "attention_bias",
    "head_dim",
)  # fmt: skip
VISION_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
    "hidden_act", "layer_norm_eps",
)  # fmt: skip


def config_of(
    peer: Peer,
    conversation: Conversation,
    released: Mapping[str, Any],
    shapes: Shapes,
    clip: Path | None,
    dtype: str,
) -> LisaConfig:
    """The config of a converted model.

    Args:
        peer: whose model it is.
        conversation: the frame of questions.
        released: the released config.json.
        shapes: of the tensors, under our names.
        clip: folder of the CLIP tower, where one is named.
        dtype: of the weights.

    Raises:
        InputError: names or shapes are not those of a released model.
    """
    try:
        return _config_of(peer, conversation, released, shapes, clip, dtype)
    except InputError:
        raise
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"the weights are no whole {peer}: their shapes give no sizes ({error})") from None


def _config_of(
    peer: Peer,
    conversation: Conversation,
    released: Mapping[str, Any],
    shapes: Shapes,
    clip: Path | None,
    dtype: str,
) -> LisaConfig:
    for name in (
        "llm.model.embed_tokens.weight",
        "projector.0.weight",
        "prompt.0.weight",
        "sam.vision_encoder.pos_embed",
    ):
        if name not in shapes:
            raise InputError(f"the weights lack {name}: they are no whole {peer}")
    if released.get("mm_use_im_start_end") is False:
        raise InputError(f"mm_use_im_start_end is false in {CONFIG}, which no released {peer} has")
    text = {key: released[key] for key in TEXT_KEYS if released.get(key) is not None}
    text |= {"vocab_size": shapes["llm.model.embed_tokens.weight"][0], "tie_word_embeddings": False}
    vision, photo = _clip_folder(clip) if clip is not None else ({}, {})
    vision = vision or _vision(shapes)
    side = vision["image_size"]
    photo = (
        {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}} | CLIP_PHOTO | photo
    )
    return LisaConfig(
        peer=peer,
        conversation=conversation,
        text=text,
        vision=vision,
        sam=sam_sizes(shapes),
        photo=photo,
        projector_layers=2 if "projector.2.weight" in shapes else 1,
        select_layer=int(released.get("mm_vision_select_layer", -2)),
        early="early.0.weight" in shapes,
        tuning=frozen_in(dtype),
    )


def _clip_folder(clip: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sizes and preprocessing of a CLIP folder; old preprocessor files give sizes as one number."""
    values = read_json(clip / CONFIG)
    values = values.get("vision_config", values)
    vision = {key: values[key] for key in VISION_KEYS if key in values}
    path = clip / "preprocessor_config.json"
    photo = {
        key: value for key, value in (read_json(path) if path.is_file() else {}).items() if key in PHOTO_KEYS
    }
    if isinstance(photo.get("size"), int):
        photo["size"] = {"shortest_edge": photo["size"]}
    if isinstance(photo.get("crop_size"), int):
        photo["crop_size"] = dict.fromkeys(("height", "width"), photo["crop_size"])
    return vision, photo


def _vision(shapes: Shapes) -> dict[str, Any]:
    """Sizes of the CLIP tower among the weights."""
    patch = shapes.get("clip.embeddings.patch_embedding.weight")
    if patch is None:
        raise InputError("the weights have no CLIP tower, as released: name its folder with --clip DIR")
    width = patch[0]
    tokens = shapes["clip.embeddings.position_embedding.weight"][0]
    return {
        "hidden_size": width,
        "intermediate_size": shapes["clip.encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(shapes, r"clip\.encoder\.layers\.(\d+)\..*"),
        "num_attention_heads": max(1, width // CLIP_HEAD_WIDTH),
        "image_size": round((tokens - 1) ** 0.5) * patch[-1],
        "patch_size": patch[-1],
    }


def sam_sizes(shapes: Shapes) -> dict[str, Any]:
    """Sizes of SAM: a block whose relative positions span the whole grid attends globally."""
    _, grid, _, width = shapes["sam.vision_encoder.pos_embed"]
    patch = shapes["sam.vision_encoder.patch_embed.projection.weight"][-1]
    layers = _count(shapes, r"sam\.vision_encoder\.layers\.(\d+)\..*")
    spans = [shapes[f"sam.vision_encoder.layers.{i}.attn.rel_pos_h"] for i in range(layers)]
    windows = {(span + 1) // 2 for span, _ in spans if span != 2 * grid - 1}
    if len(windows) > 1:
        raise InputError(f"SAM's blocks have windows of {sorted(windows)}: not a published size")
    C = shapes["sam.mask_decoder.iou_token.weight"][1]
    return {
        "vision_config": {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // spans[0][1],
            "global_attn_indexes": [i for i, (span, _) in enumerate(spans) if span == 2 * grid - 1],
            "window_size": windows.pop() if windows else 0,
            "image_size": grid * patch,
            "patch_size": patch,
            "mlp_dim": shapes["sam.vision_encoder.layers.0.mlp.lin1.weight"][0],
            "output_channels": C,
            "num_pos_feats": C // 2,
        },
        "prompt_encoder_config": {
            "hidden_size": C,
            "image_size": grid * patch,
            "patch_size": patch,
        },
        "mask_decoder_config": {
            "hidden_size": C,
            "mlp_dim": shapes["sam.mask_decoder.transformer.layers.0.mlp.lin1.weight"][0],
            "num_attention_heads": SAM_DECODER_HEADS,
            "iou_head_hidden_dim": shapes["sam.mask_decoder.iou_prediction_head.proj_in.weight"][0],
        },
    }


def _count(shapes: Shapes, pattern: str) -> int:
    return 1 + max(int(match[1]) for name in shapes if (match := re.fullmatch(pattern, name)))
