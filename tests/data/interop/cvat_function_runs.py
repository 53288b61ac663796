"""The auto-annotation example over the real cvat_sdk: python cvat_function_runs.py FUNCTION_PY PHOTO SENTENCE…"""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from types import SimpleNamespace

from _rows import show
from cvat_sdk.masks import decode_mask
from PIL import Image

from uniresxx import Predictor
from uniresxx.testing import ColourSegmenter

spec = spec_from_file_location("function", sys.argv[1])
module = module_from_spec(spec)
spec.loader.exec_module(module)
function = module.Function(Predictor(ColourSegmenter()), [(text, text) for text in sys.argv[3:]])
labels = {label.id: label.name for label in function.spec.labels}
context = SimpleNamespace(frame_name="a.png", conf_threshold=None, conv_mask_to_poly=False)
with Image.open(sys.argv[2]) as image:
    shapes = function.detect(context, image)
    context.conv_mask_to_poly = True
    polygons = function.detect(context, image)
assert [str(shape.type) for shape in polygons] == ["polygon"] * len(shapes), polygons
width, height = image.size
show(
    [
        (
            sys.argv[2],
            labels[shape.label_id],
            decode_mask(shape.points, image_width=width, image_height=height),
        )
        for shape in shapes
    ]
)
