"""UniRES++ under transformers' Auto classes: no code from a hub is needed or executed.

from transformers import AutoModel
from uniresxx import register_auto_classes

register_auto_classes()
model = AutoModel.from_pretrained("runs/export")  # a folder, or the id of a repository
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoProcessor

from uniresxx.hub.classes import HubConfig, UniRESPlusPlusProcessor
from uniresxx.model.config import MODEL_TYPE
from uniresxx.model.modeling import UniRESPlusPlus


def register_auto_classes() -> None:
    """Make AutoConfig, AutoModel and AutoProcessor know UniRES++; calling it again changes nothing."""
    AutoConfig.register(MODEL_TYPE, HubConfig, exist_ok=True)
    AutoModel.register(HubConfig, UniRESPlusPlus, exist_ok=True)
    AutoProcessor.register(HubConfig, UniRESPlusPlusProcessor, exist_ok=True)
