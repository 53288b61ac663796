"""Both encoders from the folder of a CLIP, as transformers publishes it: strict, nothing is changed if one tensor
does not fit."""

from __future__ import annotations

from typing import Any

from mllm.loading import Report, Rules, check_part, folder_of
from mllm.pretrained_config import build_config, read_config
from mllm.source_config import FREE_IN_TOWER, refuse_other_config
from mllm.tower_loading import LOW_RULES, check_pixels, positions_adjusted
from uniresxx.segmenters.unires.modeling import Unires

_OTHER = r"visual_projection|text_projection|logit_scale"
VISION_RULES: Rules = ((r"text_model\..*", None), *LOW_RULES)
TEXT_RULES: Rules = (
    (r".*embeddings\.position_ids", None),
    (rf"(?:vision_model|{_OTHER})\b.*", None),
    (r"(?:text_model\.)?((?:embeddings|encoder|final_layer_norm)\..*)", r"\1"),
)


def load_clip(model: Unires, source: str) -> dict[str, Report]:
    """Fill both encoders; positions of another input size are interpolated as transformers does it.

    Raises:
        ValueError: the folder is of another model or of other sizes, tensors are missing, unexpected or of another
            shape, or its pixels are normalised in another way.
    """
    folder = folder_of(source)
    theirs: Any = build_config(read_config(folder), str(folder / "config.json"))
    if theirs.model_type != "clip":
        raise ValueError(f"{source} is a {theirs.model_type!r}, not a CLIP with both encoders")
    for field, own, other in (
        ("vision", model.config.vision_config, theirs.vision_config),
        ("text", model.config.text_config, theirs.text_config),
    ):
        refuse_other_config(source, other, own, field, FREE_IN_TOWER)
    check_pixels(source, model.config.pixel_stats, "pixel_stats")
    tower = model.vision.clip
    parts = {
        "image encoder": check_part(
            tower, source, VISION_RULES, adjust=positions_adjusted(tower, LOW_RULES), own_rules=LOW_RULES
        ),
        "text encoder": check_part(model.text, source, TEXT_RULES, own_rules=TEXT_RULES),
    }
    return {name: part.fill() for name, part in parts.items()}
