"""The published sizes of SAM and SAM 2, by word or from a folder's own config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from mllm.pretrained_config import build_config, read_config
from uniresxx.model.config import (
    Sam2HeadConfig,
    SamHeadConfig,
    UniRESPlusPlusConfig,
    sam2_base_plus,
    sam2_large,
    sam2_small,
    sam_huge,
    sam_large,
)

SamKind = Literal["sam", "sam2"]
Head = TypeVar("Head", SamHeadConfig, Sam2HeadConfig)
SAM_SIZES: Mapping[str, Callable[[], SamHeadConfig]] = {
    "base": SamHeadConfig,
    "large": sam_large,
    "huge": sam_huge,
}
SAM2_SIZES: Mapping[str, Callable[[], Sam2HeadConfig]] = {
    "tiny": Sam2HeadConfig,
    "small": sam2_small,
    "base_plus": sam2_base_plus,
    "large": sam2_large,
}


def resized(config: UniRESPlusPlusConfig, kind: SamKind, word: str) -> UniRESPlusPlusConfig:
    """The config with the sizes that `word` names for `config.sam` or `config.sam2`; its switches stay.

    Args:
        config: what is changed.
        kind: which of the two.
        word: of SAM_SIZES or SAM2_SIZES, or a folder with the config.json of one.

    Raises:
        ValueError: the word is neither, or the folder's model is of the other kind.
    """
    sizes = SAM_SIZES if kind == "sam" else SAM2_SIZES
    if not word or word.startswith("-"):
        raise ValueError(f"give a size ({', '.join(sizes)}) or a folder with config.json")
    if word not in sizes and not Path(word).expanduser().exists():
        raise ValueError(f"{word!r} is neither a size ({', '.join(sizes)}) nor a folder with config.json")
    named = sizes[word]() if word in sizes else published_sizes(Path(word).expanduser())
    if kind == "sam" and isinstance(named, SamHeadConfig):
        return replace(config, sam=_with_switches(named, config.sam))
    if kind == "sam2" and isinstance(named, Sam2HeadConfig):
        return replace(config, sam2=_with_switches(named, config.sam2))
    raise ValueError(f"{word} is the other kind of SAM: give it to --model.{_kind(named)}")


def published_sizes(folder: Path) -> SamHeadConfig | Sam2HeadConfig:
    """The sizes of a folder's config.json, without switches; ValueError where it is that of no SAM or SAM 2."""
    where = str(folder / "config.json")
    config: Any = build_config(read_config(folder), where)
    if config.model_type not in ("sam", "sam2", "sam2_video"):
        raise ValueError(f"{where} is of the model {config.model_type!r}, no SAM or SAM 2")
    vision, decoder = config.vision_config, config.mask_decoder_config
    widths = {
        "decoder_width": decoder.hidden_size,
        "decoder_mlp": decoder.mlp_dim,
        "decoder_heads": decoder.num_attention_heads,
    }
    if config.model_type == "sam":
        return SamHeadConfig(
            size=vision.image_size, width=vision.hidden_size, layers=vision.num_hidden_layers,
            heads=vision.num_attention_heads, global_blocks=tuple(vision.global_attn_indexes),
            window=vision.window_size, **widths,
        )  # fmt: skip
    trunk = vision.backbone_config
    return Sam2HeadConfig(
        size=trunk.image_size[0], width=trunk.hidden_size, blocks=_stages(trunk.blocks_per_stage),
        heads=_stages(trunk.num_attention_heads_per_stage), windows=_stages(trunk.window_size_per_stage),
        global_blocks=tuple(trunk.global_attention_blocks),
        background=trunk.window_positional_embedding_background_size[0], **widths,
    )  # fmt: skip


def check_sam_sizes(config: UniRESPlusPlusConfig, folder: Path) -> None:
    """ValueError where a folder's SAM is not the mask head of the config, with the option that fits."""
    if not (folder / "config.json").is_file():
        return _check_metas_sam(config, folder)
    theirs = published_sizes(folder)
    kind = _kind(theirs)
    _check_kind(config, folder, kind)
    if resized(config, kind, str(folder)) != config:
        named = [*SAM_SIZES.items(), *SAM2_SIZES.items()]
        word = next((word for word, sizes in named if sizes() == theirs), folder)
        raise ValueError(f"{folder} has other sizes than model.{kind}: give --model.{kind} {word}")


def _check_metas_sam(config: UniRESPlusPlusConfig, folder: Path) -> None:
    """The same for SAM as Meta publishes it, without config.json: its width tells the three sizes apart."""
    from mllm.loading import tensor_shape  # loads torch, which a command line must not wait for

    shape = tensor_shape(folder, "image_encoder.patch_embed.proj.bias")
    if shape is None:
        return
    _check_kind(config, folder, "sam")
    word = next((word for word, sizes in SAM_SIZES.items() if sizes().width == shape[0]), None)
    if word is not None and config.sam.width != shape[0]:
        raise ValueError(f"{folder} has the width {shape[0]}: give --model.sam {word}")


def _check_kind(config: UniRESPlusPlusConfig, folder: Path, kind: SamKind) -> None:
    if config.mask_head != kind:
        raise ValueError(f"{folder} is of the kind {kind}: give --model.mask_head {kind}")


def _stages(values: Sequence[int]) -> tuple[int, int, int, int]:
    first, second, third, fourth = values
    return first, second, third, fourth


def _kind(head: SamHeadConfig | Sam2HeadConfig) -> SamKind:
    return "sam" if isinstance(head, SamHeadConfig) else "sam2"


def _with_switches(sizes: Head, switches: Head) -> Head:
    """The sizes of one with the switches of the other."""
    return replace(
        sizes,
        region_memory=switches.region_memory,
        fuse_early=switches.fuse_early,
        paint_regions=switches.paint_regions,
    )
