"""Importing this registers UniRES++ with transformers' Auto classes: no code from a hub is needed or executed.

import uniresxx.hub.auto
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("runs/export")  # a folder, or the id of a repository
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoProcessor

from uniresxx.hub.classes import HubConfig, UniRESPlusPlusProcessor
from uniresxx.model.config import MODEL_TYPE
from uniresxx.model.modeling import UniRESPlusPlus

AutoConfig.register(MODEL_TYPE, HubConfig, exist_ok=True)
AutoModel.register(HubConfig, UniRESPlusPlus, exist_ok=True)
AutoProcessor.register(HubConfig, UniRESPlusPlusProcessor, exist_ok=True)
