"""The embedded benchmark: drawn pictures with exact masks and expressions whose truth is computed."""

from __future__ import annotations

from uniresxx.data.scenes.benchmark import benchmark_records, dense_classes, text_corpus
from uniresxx.data.scenes.presets import SPLITS, preset_of
from uniresxx.data.scenes.record import scene_record

__all__ = [
    "SPLITS",
    "benchmark_records",
    "dense_classes",
    "preset_of",
    "scene_record",
    "text_corpus",
]
