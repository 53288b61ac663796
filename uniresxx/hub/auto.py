"""UniRES++ under transformers' Auto classes: no code from a hub is needed or executed.

from transformers import AutoModel
from uniresxx import register_auto_classes

register_auto_classes()
model = AutoModel.from_pretrained("runs/export")  # a folder, or the id of a repository
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoProcessor

from uniresxx.hub.classes import (
    UniRESPlusPlus,
    UniRESPlusPlusPreTrainedConfig,
    UniRESPlusPlusProcessor,
)
from uniresxx.model.config import MODEL_TYPE


def register_auto_classes() -> None:
    """Make AutoConfig, AutoModel and AutoProcessor know UniRES++; calling it again changes nothing."""
    AutoConfig.register(MODEL_TYPE, UniRESPlusPlusPreTrainedConfig, exist_ok=True)
    AutoModel.register(UniRESPlusPlusPreTrainedConfig, UniRESPlusPlus, exist_ok=True)
    AutoProcessor.register(UniRESPlusPlusPreTrainedConfig, UniRESPlusPlusProcessor, exist_ok=True)
