"""Processes of a job that draw different kinds of images still reach the same weights, in the same order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mllm.tokens import Vocabulary
from tests.test_heads import SAM, SAM2, all_on
from tests.test_model import TINY, batch_of, picture
from uniresxx.model.config import BoxHeadConfig, PyramidHeadConfig, UniRESPlusPlusConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.types import Dialogue, Turn


@pytest.mark.parametrize("queries", [0, 2])
@pytest.mark.parametrize("head", ["pyramid", "sam", "sam2"])
def test_every_batch_reaches_the_same_weights_in_the_same_order(head: str, queries: int) -> None:
    """ZeRO adds the gradients of all processes in the order in which they come, whatever each process has drawn."""
    boxes = BoxHeadConfig(width=8, convs=1, levels=("object", "part"))
    config = UniRESPlusPlusConfig(
        mllm=TINY, mask_head=head, head=PyramidHeadConfig(width=16, heads=2, paint_regions=True), sam=all_on(SAM),
        sam2=all_on(SAM2), boxes="learned", box_head=boxes, instances=queries,
    )  # fmt: skip
    vocabulary = Vocabulary.train(["the red square", "what is this? two squares"], TINY.token_count)
    torch.manual_seed(0)
    model = UniRESPlusPlusModel(config, vocabulary)
    whole = picture(0)
    absent = replace(whole, expressions=tuple(e for e in whole.expressions if e.rle is None), dialogues=())
    described = Dialogue("d", (Turn("what is this?", answer="two squares"),))
    caption = replace(whole, expressions=(), dialogues=(described,), boxes={})
    orders: list[list[str]] = []
    for record in (whole, absent, caption):
        batch = batch_of([record], vocabulary, config)
        orders.append([])
        hooks = [
            p.register_post_accumulate_grad_hook(lambda _, name=name: orders[-1].append(name))
            for name, p in model.named_parameters()
            if p.requires_grad
        ]
        counts = {name: max(count, 1) for name, count in model.counts(batch).items()}
        output = model(batch)
        model.loss(output, batch).total(counts).backward()
        for hook in hooks:
            hook.remove()
    assert len(orders[0]) > 50 and orders[0] == orders[1] == orders[2]
    assert output.head is not None and output.head.masks_Ehw.shape[0] == len(output.head.presence_E) == 0
