"""Point at anything in a picture with words: the open implementation of UniRES++.

Public names are loaded on first use, so that `import uniresxx` and the command line start without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uniresxx.errors import InputError
    from uniresxx.hub.classes import UniRESPlusPlus, UniRESPlusPlusProcessor
    from uniresxx.model.config import UniRESPlusPlusConfig
    from uniresxx.prediction import Prediction
    from uniresxx.predictor import Predictor
    from uniresxx.segmenters.base import Segmenter
    from uniresxx.segmenters.load import load_segmenter
    from uniresxx.types import Decoding, Expression, Granularity, ImageRecord, Question

del annotations  # the feature imported above; the name is that of a package of this library

__version__ = "0.1.0"
__all__ = [
    "Decoding",
    "Expression",
    "Granularity",
    "ImageRecord",
    "InputError",
    "Prediction",
    "Predictor",
    "Question",
    "Segmenter",
    "UniRESPlusPlus",
    "UniRESPlusPlusConfig",
    "UniRESPlusPlusProcessor",
    "__version__",
    "load_segmenter",
    "register_auto_classes",
]


def _home_of(name: str) -> str | None:
    """The module that defines a public name."""
    match name:
        case "Segmenter":
            return "uniresxx.segmenters.base"
        case "Decoding" | "Question" | "Expression" | "Granularity" | "ImageRecord":
            return "uniresxx.types"
        case "Prediction":
            return "uniresxx.prediction"
        case "InputError":
            return "uniresxx.errors"
        case "Predictor":
            return "uniresxx.predictor"
        case "UniRESPlusPlusConfig":
            return "uniresxx.model.config"
        case "UniRESPlusPlus" | "UniRESPlusPlusProcessor":
            return "uniresxx.hub.classes"
        case "load_segmenter":
            return "uniresxx.segmenters.load"
        case "register_auto_classes":
            return "uniresxx.hub.auto"
    return None


def __getattr__(name: str) -> Any:
    home = _home_of(name)
    if home is None:
        raise AttributeError(f"module 'uniresxx' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
