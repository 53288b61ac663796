"""An ML backend for Label Studio: the labels of the project are the sentences that are asked.

git clone https://github.com/HumanSignal/label-studio-ml-backend && pip install -e label-studio-ml-backend
UNIRESXX_CHECKPOINT=runs/demo label-studio-ml start examples/label_studio_backend

Then connect http://localhost:9090 in the project's settings under "Model". The labelling configuration needs an Image
and BrushLabels; labeling_config.xml of an export of the format `labelstudio` is one.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from label_studio_ml.model import LabelStudioMLBase

from uniresxx import Predictor
from uniresxx.annotations import AnnotatedImage, AnnotatedMask, Provenance, provenance_of
from uniresxx.annotations.label_studio import Tags, prediction_of
from uniresxx.errors import InputError

CHECKPOINT = "UNIRESXX_CHECKPOINT"


def checkpoint() -> str:
    """The checkpoint that the environment names."""
    named = os.environ.get(CHECKPOINT)
    if not named:
        raise InputError(
            f"{CHECKPOINT} is not set: name a run folder, a from_pretrained folder or hub:OWNER/NAME"
        )
    return named


@cache
def load(folder: str) -> tuple[Predictor, Provenance]:
    """The model and its record; Label Studio makes a backend object for each request, the model is loaded once."""
    return Predictor.from_pretrained(folder), provenance_of(folder)


class UniresxxBackend(LabelStudioMLBase):
    """Answers each task with a brush mask for every label that is there."""

    def setup(self) -> None:
        """Called by Label Studio once the project is known: which model answers."""
        self.set("model_version", load(checkpoint())[1].short)

    def predict(
        self, tasks: list[dict[str, Any]], context: dict[str, Any] | None = None, **more: Any
    ) -> list[dict[str, Any]]:
        """A prediction for each task, in the project's own tags."""
        predictor, provenance = load(checkpoint())
        brush, image, value = self.label_interface.get_first_tag_occurence("BrushLabels", "Image")
        sentences = list(self.label_interface.get_control(brush).labels)
        tags = Tags(image=image, brush=brush, sentence=None)
        predictions = []
        for task in tasks:
            path = self.get_local_path(task["data"][value], task_id=task.get("id"))
            height, width = predictor.set_image(path).shape[:2]
            answers = zip(sentences, predictor.segment(sentences), strict=True)
            annotated = AnnotatedImage(
                path, height, width, tuple(AnnotatedMask.of(*answer) for answer in answers)
            )
            predictions.append(prediction_of(annotated, provenance, tags=tags))
        return predictions
