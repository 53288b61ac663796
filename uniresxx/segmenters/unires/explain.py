"""Where the groups look, and which of them a mask reads.

Shapes: B images, E expressions, N patches, G groups of a level, M groups of both levels, T tokens, D width of the
image encoder, C decoder width, K queries, h heads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from uniresxx.checkpoints.resolve import resolve
from uniresxx.errors import InputError
from uniresxx.model.placement import Placement
from uniresxx.segmenters.unires.build import load_unires
from uniresxx.segmenters.unires.decoder import first_stage
from uniresxx.segmenters.unires.encoder import GroupedVision, joined
from uniresxx.segmenters.unires.modeling import EncodedPhotos, Unires


class GroupAttention(NamedTuple):
    """Of the groups, in the last block that they pass: attention to the patches, mean of heads; rows add up to 1."""

    low_BGN: Tensor
    high_BGN: Tensor


def load_grouped(path: str) -> Unires:
    """The model of a run or checkpoint folder, on the CPU; InputError where it is another one, or has no groups."""
    model = load_unires(resolve(path, print), Placement())
    if not (model.config.low_groups or model.config.high_groups):
        raise InputError(f"{path} has no group tokens: give a model with low_groups or high_groups")
    return model


@torch.no_grad()
def group_attention(vision: GroupedVision, pixels_B3HW: Tensor) -> GroupAttention:
    """Where the groups of each level look, of normalised pixels."""
    tokens_BTD, found = vision.embedded(pixels_B3HW), []
    for groups_GD, layers in zip((vision.low, vision.high), vision.halves, strict=True):
        joined_BTD, T = joined(tokens_BTD, groups_GD), tokens_BTD.shape[1]
        *others, last = layers
        for layer in others:
            joined_BTD = layer(joined_BTD, None)
        found.append(_to_patches(last, joined_BTD, T))
        tokens_BTD = last(joined_BTD, None)[:, :T]
    return GroupAttention(*found)


def _to_patches(layer: Any, joined_BTD: Tensor, tokens: int) -> Tensor:
    """Attention (B, G, N) of the tokens from `tokens` on to those before, without CLS, in one of CLIP's blocks."""
    x_BTD, attention = layer.layer_norm1(joined_BTD), layer.self_attn
    query, key = attention.q_proj(x_BTD[:, tokens:]), attention.k_proj(x_BTD[:, 1:tokens])
    return scores(query, key, attention.num_heads).mean(dim=1)


def scores(query_EKC: Tensor, key_EMC: Tensor, heads: int) -> Tensor:
    """Softmax of scaled dot products per head (E, h, K, M)."""
    query, key = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query_EKC, key_EMC))
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)


@torch.no_grad()
def groups_read(model: Unires, encoded: EncodedPhotos, text: str) -> Tensor:
    """How much each patch of the first photo reads each group for a text, in the last layer of the second decoder,
    mean of its heads (N, M), low-level groups first; rows add up to 1.
    """
    features, device = encoded.features, model.patches.weight.device
    ids = model.vocabulary.encode(text, int(model.text.config.max_position_embeddings))
    text_1QC, bias_1Q = model.encode_text(
        torch.tensor([ids], device=device), torch.tensor([len(ids)], device=device)
    )
    image_1 = torch.zeros(1, dtype=torch.long, device=device)
    groups_1MC = model.filtered_groups(features, text_1QC, bias_1Q, image_1)
    x_1NC = first_stage([*model.stage1], features.patches_BNC, text_1QC, bias_1Q, image_1)
    layers: list[Any] = [*model.stage2]
    for layer in layers[:-1]:
        x_1NC = layer.from_memory(layer.among_patches(x_1NC), groups_1MC, None)
    last, cross = layers[-1], layers[-1].cross
    query_1NC = cross.q(last.norm_cross(last.among_patches(x_1NC)))
    return scores(query_1NC, cross.k(groups_1MC), cross.heads)[0].mean(dim=0)
