"""Label Studio's SDK: python label_studio_reads.py TASKS_JSON LABELING_CONFIG_XML"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from _rows import show
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface

interface, rows = LabelInterface(Path(sys.argv[2]).read_text()), []
for task in json.loads(Path(sys.argv[1]).read_text()):
    for prediction in task["predictions"]:
        errors = interface.validate_prediction(prediction, return_errors=True)
        assert not errors, errors
        for result in prediction["result"]:
            if result["type"] == "brushlabels":
                size = result["original_height"], result["original_width"], 4
                mask = decode_rle(result["value"]["rle"]).reshape(size)[..., 3] > 0
                rows.append((task["data"]["image"], result["value"]["brushlabels"][0], mask))
show(rows)
