"""SDPA in two calls over packed rows: the same states and gradients as one dense mask of whole rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mllm.chat import ChatTurn, Mark, Row, render
from mllm.modeling import MLLM
from mllm.tokens import Vocabulary
from tests.test_mllm import CORPUS, make, two_images


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(CORPUS, 340)


def packed(vocabulary: Vocabulary, *rows: list[str]) -> tuple[Tensor, ...]:
    """Ids, branches and positions (B, T) of the questions about each image."""
    made = []
    for texts in rows:
        row = Row()
        for text in texts:
            render([ChatTurn(text, (Mark.SEG, "."))], vocabulary, row)
        made.append(row)
    T = max(len(row.ids_T) for row in made)
    fills = ((row.ids_T, row.branch_T, row.position_T) for row in made)
    padded = [
        [
            torch.tensor(x + [fill] * (T - len(x)))
            for x, fill in zip(row, (vocabulary.pad, -1, 0), strict=True)
        ]
        for row in fills
    ]
    return tuple(torch.stack(column) for column in zip(*padded, strict=True))


def states_and_gradients(model: MLLM, rows: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
    """Of the tokens that are no padding; two_images leaves regions out in the middle of the prefix."""
    states = model(two_images(model), *rows)[rows[1] >= 0]
    model.zero_grad()
    states.square().sum().backward()
    return states, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("count_padding", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_states_and_gradients_are_those_of_a_dense_mask(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch, count_padding: bool, checkpointing: bool
) -> None:
    rows = packed(vocabulary, ["the car", "the left wheel"], ["all the houses of the red car"])
    settings = {"count_padding": count_padding, "activation_checkpointing": checkpointing}
    masks, kernel = [], F.scaled_dot_product_attention

    def noted(query: Tensor, *others: Tensor, attn_mask: Tensor | None = None, **words: object) -> Tensor:
        masks.append(attn_mask)
        return kernel(query, *others, attn_mask=attn_mask, **words)

    model = make(vocabulary, **settings).train()
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", noted)
        found = states_and_gradients(model, rows)
    dense = states_and_gradients(make(vocabulary, attention="eager", **settings).train(), rows)
    torch.testing.assert_close(found[0], dense[0], atol=1e-5, rtol=1e-5)
    assert len(found[1]) == len(dense[1]) > 20
    for one, other in zip(found[1], dense[1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    T = rows[0].shape[1]
    of_text = [mask for mask in masks if mask is not None and mask.shape[2] == T]
    layers = model.llm.config.num_hidden_layers * (1 + checkpointing)
    assert len(of_text) == layers and all(mask.shape[3] > T for mask in of_text)
    assert sum(mask is None for mask in masks) >= layers  # the prefix needs none


def test_training_goes_on_after_answers(vocabulary: Vocabulary) -> None:
    """Generation changes the backend for a while in models that use another one; this one it leaves alone."""
    model = make(vocabulary)
    rows = packed(vocabulary, ["the car"], ["the left wheel"])
    before = model(two_images(model), *rows)
    branch = render([ChatTurn("the car")], vocabulary).ids_T
    model.generate(model.prefill(two_images(model)), [branch], [0], 3)
    with model.attention_backend("eager"):
        assert model.llm.config._attn_implementation == "eager"
    assert torch.equal(model(two_images(model), *rows), before)
