"""The model for lmms-eval, by its entry point `lmms_eval.models`: `--model uniresxx --model_args checkpoint=RUN`.

Only the harness imports this module.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image

from uniresxx.errors import InputError
from uniresxx.imaging.inputs import photo_pixels
from uniresxx.suites.model import Asked, HarnessModel


def manifest() -> ModelManifest:
    """What the harness registers: the model's name and class."""
    return ModelManifest(model_id="uniresxx", simple_class_path=f"{__name__}.LmmsEvalModel")


class LmmsEvalModel(lmms):
    """Answers `generate_until` requests with masks as JSON."""

    is_simple = True

    def __init__(self, checkpoint: str = "", batch_size: int | str = 8, device: str = "auto") -> None:
        """Load a checkpoint.

        Args:
            checkpoint: run or `from_pretrained` folder, or hub:OWNER/NAME; empty: the model of the package.
            batch_size: photos that are answered together.
            device: as in `load_segmenter`.

        Raises:
            InputError: the harness runs in several processes.
        """
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(
                "this model answers lmms-eval in one process: start it without a launcher, or evaluate on several "
                "GPUs with `torchrun -m eval run`"
            )
        self.model = HarnessModel.load(checkpoint, int(batch_size), device)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One JSON text per request (uniresxx.suites.answers)."""
        return list(self.model.answers(self._asked(requests)))

    def _asked(self, requests: Sequence[Any]) -> Iterator[Asked]:
        for request in requests:
            text, _, doc_to_visual, doc_id, task, split = request.args
            pictures = doc_to_visual(self.task_dict[task][split][doc_id])
            if len(pictures) != 1 or not isinstance(pictures[0], Image.Image):
                raise InputError(
                    f"task {task} shows {len(pictures)} pictures or videos: this model takes one picture"
                )
            yield photo_pixels(pictures[0]), text

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not defined: an answer is a mask."""
        raise NotImplementedError("a mask has no likelihood: choose tasks with output_type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not defined: tasks of one round only."""
        raise NotImplementedError("this model answers tasks of one round")
