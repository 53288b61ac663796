r"""Auto-annotation in CVAT: the sentences of a table are asked of every frame of a task.

pip install cvat-cli
cvat-cli task auto-annotate TASK_ID --function-file examples/cvat_function/function.py \
    -p checkpoint=str:runs/demo -p sentences=str:sentences.csv

`sentences.csv` has a line `label,sentence` for each question, as `house,the red house`; labels are those of the task,
and several sentences may share one. CVAT calls `create` with the parameters behind `-p`.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import cvat_sdk.auto_annotation as cvataa
import cvat_sdk.models as models
import PIL.Image
from cvat_sdk.masks import encode_mask

from uniresxx import Predictor
from uniresxx.annotations.outlines import regions
from uniresxx.errors import InputError


class Function:
    """What CVAT asks for: `spec` names the labels, `detect` annotates a frame."""

    def __init__(
        self, predictor: Predictor, questions: Sequence[tuple[str, str]], tolerance: float = 1.0
    ) -> None:
        self._predictor, self._tolerance = predictor, tolerance
        self._sentences = [sentence for _, sentence in questions]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(label for label, _ in questions))}
        self._labels = [numbers[label] for label, _ in questions]
        self._spec = cvataa.DetectionFunctionSpec(
            labels=[cvataa.label_spec(name, number) for name, number in numbers.items()]
        )

    @property
    def spec(self) -> cvataa.DetectionFunctionSpec:
        """The labels, by the names that the task has."""
        return self._spec

    def detect(
        self, context: cvataa.DetectionFunctionContext, image: PIL.Image.Image
    ) -> list[models.LabeledShapeRequest]:
        """A mask for each sentence that is there, or polygons where CVAT asks for them."""
        self._predictor.set_image(image)
        least, shapes = context.conf_threshold or 0.0, []
        for label, found in zip(self._labels, self._predictor.segment(self._sentences), strict=True):
            mask = found.mask
            if mask is None or not mask.any() or (found.score is not None and found.score < least):
                continue
            if context.conv_mask_to_poly:
                shapes += [
                    cvataa.polygon(label, region.outer.ravel().tolist())
                    for region in regions(mask, self._tolerance)
                ]
            else:
                shapes.append(cvataa.mask(label, encode_mask(mask)))
        return shapes


def read_questions(table: Path) -> list[tuple[str, str]]:
    """(label, sentence) of each line of a CSV file."""
    with table.open(newline="", encoding="utf-8-sig") as stream:
        rows = [[cell.strip() for cell in row] for row in csv.reader(stream) if any(map(str.strip, row))]
    wrong = [row for row in rows if len(row) != 2 or not all(row)]
    if wrong or not rows:
        raise InputError(
            f"{table}: a line is `label,sentence`, not {','.join(wrong[0]) if wrong else 'nothing'!r}"
        )
    return [(label, sentence) for label, sentence in rows]


def create(checkpoint: str, sentences: str, device: str = "auto") -> Function:
    """What `cvat-cli` calls with the parameters behind -p."""
    return Function(Predictor.from_pretrained(checkpoint, device=device), read_questions(Path(sentences)))
