"""Which class takes a role: one plain table per role, from `Model.kind` to a function that loads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from data_engine.model import OWN, Model
from data_engine.roles import BoxSegmenter, Captioner, Detector, PartSegmenter, Similarity
from uniresxx.cli import did_you_mean
from uniresxx.errors import InputError
from uniresxx.segmenters.base import Segmenter

if TYPE_CHECKING:
    from data_engine.components.drawn import DrawnScenes

Role = TypeVar("Role")


def detector_of(model: Model) -> Detector:
    """`zero_shot`: OWLv2, OWL-ViT or Grounding DINO. `drawn`: PRESET:COUNT labelled scenes."""
    return _loaded("detector", model, {"zero_shot": _zero_shot, "drawn": _drawn})


def box_segmenter_of(model: Model) -> BoxSegmenter:
    """`sam`: SAM, SAM-HQ, SAM 2 or 2.1. `drawn` as for `detector_of`."""
    return _loaded("segmenter", model, {"sam": _sam, "drawn": _drawn})


def part_segmenter_of(model: Model) -> PartSegmenter:
    """`clipseg`: CLIPSeg. `drawn` as for `detector_of`."""
    return _loaded("part segmenter", model, {"clipseg": _clipseg, "drawn": _drawn})


def captioner_of(model: Model) -> Captioner:
    """`chat`: any image-text-to-text model. `segmenter`: one of this project. `drawn` as for `detector_of`."""
    return _loaded("captioner", model, {"chat": _chat, OWN: _own_captioner, "drawn": _drawn})


def similarity_of(model: Model) -> Similarity:
    """`two_towers`: CLIP, SigLIP or SigLIP 2."""
    return _loaded("similarity", model, {"two_towers": _two_towers})


def segmenter_of(model: Model) -> Segmenter:
    """`segmenter`: a run or checkpoint of this project; without a source, the model that comes with it."""
    return _loaded("round trip", model, {OWN: _segmenter})


def _loaded(role: str, model: Model, table: Mapping[str, Callable[[Model], Role]]) -> Role:
    if model.kind not in table:
        raise InputError(
            f"{role}: no model of kind {model.kind!r}; known: {', '.join(table)}{did_you_mean(model.kind, table)}"
        )
    return table[model.kind](model)


def _zero_shot(model: Model) -> Detector:
    from data_engine.components.zero_shot import ZeroShotDetector

    return ZeroShotDetector(model)


def _sam(model: Model) -> BoxSegmenter:
    from data_engine.components.sam import SamSegmenter

    return SamSegmenter(model)


def _clipseg(model: Model) -> PartSegmenter:
    from data_engine.components.clipseg import ClipSegParts

    return ClipSegParts(model)


def _chat(model: Model) -> Captioner:
    from data_engine.components.captioners import ChatCaptioner

    return ChatCaptioner(model)


def _own_captioner(model: Model) -> Captioner:
    from data_engine.components.captioners import OwnCaptioner

    return OwnCaptioner(_segmenter(model))


def _two_towers(model: Model) -> Similarity:
    from data_engine.components.two_towers import TwoTowers

    return TwoTowers(model)


def _segmenter(model: Model) -> Segmenter:
    from uniresxx.segmenters.load import load_segmenter

    return load_segmenter(model.source or None, device=model.device, dtype=model.dtype)


def _drawn(model: Model) -> DrawnScenes:
    from data_engine.components.drawn import DrawnScenes

    return DrawnScenes.named(model.source)
