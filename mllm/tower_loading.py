"""Pretrained towers of every family into our names.

Shapes: N positions, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from math import isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig

from mllm.loading import CheckedPart, Report, Rules, check_part, folder_of, own_name
from mllm.modeling import MLLM
from mllm.source_config import FREE_IN_TOWER, refuse_other_config, tower_config
from mllm.tower_families import LOW_FAMILIES, PIXEL_STATS, PixelStats, family_of

# transformers' own models, alone, below another model's head, or as the image half of a two-tower model; in memory,
# and as their save_pretrained writes, which for DINO and Swin differ from release to release.
_WITHIN = (
    r"(?:vision_model\.|dinov2\.|dinov2_with_registers\.|convnext\.|convnextv2\.|swin\.|hiera\.|model\.)?"
)
_BLOCKS: Rules = (
    (rf"{_WITHIN}(.*\.attention)\.(?:attention|self)\.([qkv])(?:uery|ey|alue)\.(.*)", r"\1.\2_proj.\3"),
    (rf"{_WITHIN}(.*\.attention)\.self\.(relative_position_bias_table)", r"\1.relative_position_bias.\2"),
    (rf"{_WITHIN}(.*\.attention)\.output\.dense\.(.*)", r"\1.o_proj.\2"),
    (rf"{_WITHIN}(.*)\.intermediate\.dense\.(.*)", r"\1.mlp.fc1.\2"),
    (rf"{_WITHIN}(.*)\.output\.dense\.(.*)", r"\1.mlp.fc2.\2"),
)
LOW_RULES: Rules = (
    (r".*embeddings\.position_ids", None),
    (r"(?:text_model|text_projection|visual_projection|logit_scale|logit_bias|classifier)\b.*", None),
    (r"(?:vision_model\.)?head\..*", None),  # pools all tokens into one
    *_BLOCKS,
    (rf"{_WITHIN}((?:embeddings|encoder|layer|pre_layrnorm|post_layernorm|layernorm|norm)\..*)", r"\1"),
)
# inside a LLaVA
LLAVA_TOWER_RULES: Rules = (
    (r".*embeddings\.position_ids", None),
    (r".*vision_tower\..*\bhead\..*", None),
    (
        r"(?:model\.)?vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?"
        r"((?:embeddings|pre_layrnorm|encoder|post_layernorm)\..*)",
        r"\1",
    ),
)
# and timm's ConvNeXt trunk, alone or as "visual.trunk." of an open_clip model
_TIMM = r"(?:visual\.trunk\.)?"
HIGH_RULES: Rules = (
    (rf"{_WITHIN}(?:layernorm|layer_norm|pooler)\..*|classifier\..*", None),  # after the last stage
    *_BLOCKS,
    (rf"{_TIMM}stem\.0\.(.*)", r"embeddings.patch_embeddings.\1"),
    (rf"{_TIMM}stem\.1\.(.*)", r"embeddings.layernorm.\1"),
    (rf"{_TIMM}stages\.(\d+)\.downsample\.(.*)", r"encoder.stages.\1.downsampling_layer.\2"),
    (rf"{_TIMM}stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.(.*)", r"encoder.stages.\1.layers.\2.dwconv.\3"),
    (rf"{_TIMM}stages\.(\d+)\.blocks\.(\d+)\.norm\.(.*)", r"encoder.stages.\1.layers.\2.layernorm.\3"),
    (
        rf"{_TIMM}stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc([12])\.(.*)",
        r"encoder.stages.\1.layers.\2.pwconv\3.\4",
    ),
    (rf"{_TIMM}stages\.(\d+)\.blocks\.(\d+)\.gamma", r"encoder.stages.\1.layers.\2.layer_scale_parameter"),
    (rf"{_TIMM}(?:head|norm_pre)\..*|visual\.head\..*", None),
    (r"(?:transformer|token_embedding|ln_final|text)\..*", None),
    (r"positional_embedding|text_projection(?:\..*)?|logit_scale|logit_bias|attn_mask", None),
    (rf"{_WITHIN}((?:embeddings|encoder|stages|hidden_states_norms)\..*)", r"\1"),
)
# Ours alone: the high tower's stages are normalised before use, the published models have no such norms. The norm
# after Swin's last stage is not used.
HIGH_NEW = (r"hidden_states_norms\..*", r"swin\.layernorm\..*")


def load_low(model: MLLM, source: str) -> Report:
    """The low tower from any folder of its family; positions of another input size are interpolated."""
    _check_tower(source, model.config.low_config, "mllm.low")
    check_pixels(source, model.config.pixel_stats.low, "mllm.low_stats")
    return check_low_tensors(model, source, LOW_RULES).fill()


def check_low_tensors(model: MLLM, source: str, rules: Rules, only: bool = True) -> CheckedPart:
    """The low tower's tensors of a source, see `mllm.loading.check_part`."""
    family = family_of(model.config.low, LOW_FAMILIES, "mllm.low")
    tower = model.low.vit
    adjust = positions_adjusted(tower, LOW_RULES, family.antialias)
    return check_part(tower, source, rules, only=only, adjust=adjust, own_rules=LOW_RULES)


def load_high(model: MLLM, source: str) -> Report:
    """The high tower from a folder of its family, or a ConvNeXt from timm's trunk or an open_clip model."""
    _check_tower(source, model.config.high_config, "mllm.high")
    check_pixels(source, model.config.pixel_stats.high, "mllm.high_stats")
    tower = model.high.backbone
    adjust = positions_adjusted(tower, HIGH_RULES)
    part = check_part(tower, source, HIGH_RULES, new=HIGH_NEW, adjust=adjust, own_rules=HIGH_RULES)
    report = part.fill()
    with torch.no_grad():
        for name, value in tower.named_parameters():
            if own_name(name, HIGH_RULES) in report.new:  # norms, which start as LayerNorm does
                value.fill_(float(name.endswith("weight")))
    return report


def _check_tower(source: str, ours: PreTrainedConfig, field: str) -> None:
    """ValueError where the source's config.json is that of another tower."""
    theirs = tower_config(folder_of(source))
    if theirs is not None:
        refuse_other_config(source, theirs, ours, field, FREE_IN_TOWER)


def positions_adjusted(
    tower: nn.Module, rules: Rules, antialias: bool = False
) -> dict[str, Callable[[Tensor], Tensor]]:
    """A function for each table of positions that gives it our number of positions."""
    return {
        own_name(name, rules): partial(resize_positions, count=value.shape[-2], antialias=antialias)
        for name, value in tower.state_dict().items()
        if "embeddings.position_embedding" in name
    }


def resize_positions(table_ND: Tensor, count: int, antialias: bool = False) -> Tensor:
    """Positions of a square grid, after that of CLS where there is one, for another grid: bicubic, as transformers
    interpolates them (`interpolate_pos_encoding`). The table is (N, D) or (1, N, D)."""
    old, first = table_ND.shape[-2], count - isqrt(count) ** 2
    side = isqrt(old - first)
    if old == count or first + side**2 != old:
        return table_ND
    rows_ND = table_ND.reshape(old, -1).float()
    grid = rows_ND[first:].T.unflatten(1, (side, side))[None]
    grid = F.interpolate(grid, size=(isqrt(count),) * 2, mode="bicubic", antialias=antialias)
    resized = torch.cat((rows_ND[:first], grid[0].flatten(1).T))
    return resized.reshape(*table_ND.shape[:-2], count, -1).to(table_ND.dtype)


def check_pixels(source: str, stats: PixelStats, field: str) -> None:
    """ValueError where the source's own preprocessor normalises pixels in another way."""
    path = folder_of(source) / "preprocessor_config.json"
    if not path.is_file():
        return
    values = json.loads(path.read_text())
    theirs = [[255 * v for v in values.get(key) or ()] for key in ("image_mean", "image_std")]

    def same(ours: tuple[tuple[float, ...], tuple[float, ...]]) -> bool:
        flat = zip(theirs[0] + theirs[1], ours[0] + ours[1], strict=True)
        return all(abs(a - b) < 1 for a, b in flat)

    if all(theirs) and not same(PIXEL_STATS[stats]):
        known = [name for name, ours in PIXEL_STATS.items() if same(ours)]
        advice = f"set {field} to {known[0]!r}" if known else "no statistics here are like these"
        raise ValueError(
            f"{path}: pixels have mean {values['image_mean']} and deviation {values['image_std']}, "
            f"{field}={stats!r} has others: {advice}"
        )
