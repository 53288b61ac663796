"""How many operations and how many waits for the device a training step and an answered image take.

    python -m benchmarks.operations [--record]

An operation is one call that reaches torch's dispatcher, views included; on a GPU most of them start a kernel. A sync
is one whose result decides on the host what comes next: `.item()`, `float(tensor)`, `nonzero`, indexing by a bool
tensor. On a GPU each makes the host wait for all work so far. Counts do not depend on the machine or its load.

The model is the tiny one with learned boxes (64 object and 64 part boxes, 256 candidates of each level) on drawn
scenes. A step is forward, loss, backward and the update of one micro-batch of 4 images; an answer is one photo with 7
texts. `mask_ratio` is the time of numpy over that of answers for 32 masks of a 192 x 192 grid at 480 x 640, in turns.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks._common import finish, interleaved, median_of, parser
from mllm.tokens import Vocabulary
from train.engines.base import Engine
from train.recipes.tiny_scenes import tiny_scenes
from train.step import do_step
from uniresxx.data.scenes import scene_record
from uniresxx.data.store.photos import photo_of
from uniresxx.imaging.geometry import Letterbox
from uniresxx.model.collate import collate, make_sample
from uniresxx.model.config import BoxHeadConfig, UniRESPlusPlusConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.processing import View, photo_masks, view_photo
from uniresxx.types import Batch, Decoding, ImageRecord

TEXTS = 7
SYNCS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_dim")


@dataclass(frozen=True)
class Sizes:
    """What is counted; smaller in the tests."""

    images: int = 4
    boxes: int = 64  # of each level
    candidates: int = 256
    masks: int = 32
    grid: int = 192
    photo: tuple[int, int] = (480, 640)
    repeats: int = 5


SMALL = Sizes(images=2, boxes=8, candidates=32, masks=2, grid=16, photo=(48, 64), repeats=1)


class Operations(TorchDispatchMode):
    """Counts the operations that run while it is on, and the syncs among them, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and count it."""
        name = func.overloadpacket.__name__
        self.names[name] += 1
        if name in SYNCS or (name.startswith("index") and _has_mask(args)):
            self.syncs[name] += 1
        return func(*args, **(kwargs or {}))


def _has_mask(args: tuple[Any, ...]) -> bool:
    """Whether an indexing operation is indexed by a bool tensor."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in indices)


def counted(work: Callable[[], Any]) -> Operations:
    """The operations of `work`."""
    with Operations() as found:
        work()
    return found


def make_model(sizes: Sizes) -> UniRESPlusPlusModel:
    """The tiny model with learned boxes, random weights of seed 0."""
    torch.manual_seed(0)
    config = tiny_scenes().model
    assert isinstance(config, UniRESPlusPlusConfig)
    config = replace(
        config,
        mllm=replace(config.mllm, max_objects=sizes.boxes, max_parts=sizes.boxes),
        boxes="learned",
        box_head=BoxHeadConfig(width=32, candidates=sizes.candidates, min_score=0.0),
    )
    records = [scene_record("scenes_easy", "train", number) for number in range(8)]
    texts = [expression.text for record in records for expression in record.expressions]
    return UniRESPlusPlusModel(config, Vocabulary.train(texts, config.mllm.token_count))


def make_batch(model: UniRESPlusPlusModel, images: int) -> Batch:
    """Scenes with up to 7 expressions each."""

    def sample(record: ImageRecord) -> Any:
        asked = record.expressions[:TEXTS]
        return make_sample(
            record, photo_of(record), asked, [], range(len(asked)), model.config, model.vocabulary
        )

    records = [scene_record("scenes_easy", "train", number) for number in range(images)]
    return collate([sample(record) for record in records], model.config, model.vocabulary)


def count_step(model: UniRESPlusPlusModel, batch: Batch) -> Operations:
    """One update; an earlier one fills the optimizer's state."""
    model.train()
    engine = Engine(model, tiny_scenes())
    do_step(engine, model, [batch], 0)
    return counted(lambda: do_step(engine, model, [batch], 1))


def count_answer(model: UniRESPlusPlusModel) -> Operations:
    """One photo, encoded and asked."""
    model.eval()
    record = scene_record("scenes_easy", "train", 0)
    texts, photo = [expression.text for expression in record.expressions[:TEXTS]], photo_of(record)
    return counted(lambda: model.answer(model.encode_images([photo]), [texts], Decoding()))


def upsampling(sizes: Sizes) -> dict[str, float]:
    """Milliseconds of 32 masks on the way to the photo's size; the arms take turns."""
    torch.manual_seed(0)
    model_config = tiny_scenes().model
    assert isinstance(model_config, UniRESPlusPlusConfig)
    view: View = view_photo(np.zeros((*sizes.photo, 3), dtype=np.uint8), replace(model_config, boxes="grid"))
    logits = torch.randn(sizes.masks, sizes.grid, sizes.grid)
    frame: Letterbox = view.letterbox

    def timed(work: Callable[[], Any]) -> Callable[[], float]:
        def once() -> float:
            start = time.perf_counter()
            work()
            return 1000 * (time.perf_counter() - start)

        return once

    arms = {
        "numpy": timed(lambda: frame.unmask_logits_many(logits.numpy())),
        "answers": timed(lambda: photo_masks(logits, [0] * sizes.masks, [view])),
    }
    return {name: median_of(values) for name, values in interleaved(arms, sizes.repeats).items()}


def measure(sizes: Sizes) -> tuple[dict[str, float], dict[str, Any]]:
    """(headline, details)."""
    model = make_model(sizes)
    batch = make_batch(model, sizes.images)
    step, answer = count_step(model, batch), count_answer(model)
    milliseconds = upsampling(sizes)
    headline: dict[str, float] = {
        "operations_per_step": step.names.total(),
        "syncs_per_step": step.syncs.total(),
        "operations_per_image": answer.names.total(),
        "syncs_per_image": answer.syncs.total(),
        "mask_ratio": milliseconds["numpy"] / milliseconds["answers"],
    }
    details = {
        "step_most": dict(step.names.most_common(12)),
        "step_syncs": dict(step.syncs),
        "image_most": dict(answer.names.most_common(12)),
        "image_syncs": dict(answer.syncs),
        "mask_ms": {name: round(value, 2) for name, value in milliseconds.items()},
        "expressions_per_step": len(batch.expression_ids),
    }
    return headline, details


def main(argv: Sequence[str] | None = None) -> int:
    """The benchmark."""
    words = parser("operations", __doc__).parse_args(argv)
    headline, details = measure(SMALL if words.small else Sizes())
    finish("operations", headline, details, words.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
