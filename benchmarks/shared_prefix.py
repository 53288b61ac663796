"""One visual prefix and K branches in one row, against one batch of K rows that each carry the prefix.

    python -m benchmarks.shared_prefix [--record]

Both arms: same weights, same threads, same texts, states and loss at label positions only (the baseline's full
logits would cost more). The baseline is plain causal attention over equal rows without padding, its fastest form.
Training is forward and backward; generation is prefill and STEPS greedy tokens with a KV cache in both arms.
`cache_bytes_per_row` is the memory behind the keys and values of our arm in bf16 with trained token rows in fp32,
over K; more than 1.05 times the arithmetic is an error.

Shapes: L prefix, T tokens of a branch, K branches, D width.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache, DynamicCache

from benchmarks._common import finish, interleaved, median_of, parser
from mllm.config import MLLMConfig, TuningConfig, tiny_llama
from mllm.lora import adapt
from mllm.modeling import MLLM, Boxes, ImageFeatures
from mllm.prefix import PrefixCache
from mllm.splice import Layout
from mllm.tokens import Vocabulary

PREFIX, BRANCH, LABELS, STEPS = 616, 25, 3, 2  # a LLaVA-1.5 image with 32 + 64 regions would be 675
WIDTH, LAYERS, HEADS, MLP, VOCABULARY = 256, 4, 4, 704, 2048
TRAIN_K, GENERATE_K, REPEATS = (1, 7, 32), 7, 5


@dataclass(frozen=True)
class Sizes:
    """What is measured; smaller in the tests."""

    prefix: int = PREFIX
    branch: int = BRANCH
    width: int = WIDTH
    layers: int = LAYERS
    train_k: Sequence[int] = TRAIN_K
    generate_k: int = GENERATE_K
    repeats: int = REPEATS


SMALL = Sizes(prefix=12, branch=6, width=32, layers=1, train_k=(1, 7, 32), repeats=1)


@dataclass(frozen=True)
class Case:
    """A prefix and K branches of equal length, as both arms need them."""

    model: MLLM
    prefix_1LD: Tensor
    ids_KT: Tensor

    def features(self) -> ImageFeatures:
        """The prefix in the form that `MLLM` takes; it is random, no tower made it."""
        prefix, none = self.prefix_1LD, torch.zeros(1, 0)
        valid = torch.ones(prefix.shape[:2], dtype=torch.bool)
        layout = Layout(slice(0, 0), slice(0, 0), slice(0, 0), prefix.shape[1])
        return ImageFeatures(
            prefix, valid, layout, [], none, none, Boxes(none, none.bool(), none, none.bool())
        )


@dataclass(frozen=True)
class WatchedPrefix(PrefixCache):
    """Notes every cache that is made of it."""

    made: list[Cache] = field(default_factory=list)

    def with_room(self, images: Sequence[int], room: int) -> Cache:
        """The cache of one chunk."""
        self.made.append(super().with_room(images, room))
        return self.made[-1]


def make_case(sizes: Sizes, count: int) -> Case:
    """Random weights, prefix and texts from seed 0."""
    torch.manual_seed(0)
    config = MLLMConfig(
        llm=tiny_llama(
            hidden_size=sizes.width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=HEADS,
            intermediate_size=MLP,
            vocab_size=VOCABULARY,
        )
    )
    model = MLLM(config, Vocabulary.train(["segment the left wheel of the red car"], VOCABULARY))
    first = len(model.vocabulary)
    ids_KT = torch.randint(first, VOCABULARY, (count, sizes.branch))  # no special token among them
    return Case(model, torch.randn(1, sizes.prefix, sizes.width) * 0.05, ids_KT)


def loss_of(model: MLLM, states_KTD: Tensor, ids_KT: Tensor) -> Tensor:
    """Cross-entropy of the last LABELS tokens of each branch."""
    states_ND = states_KTD[:, -LABELS - 1 : -1].flatten(0, 1)
    return F.cross_entropy(model.logits(states_ND), ids_KT[:, -LABELS:].flatten())


def packed_states(case: Case) -> Tensor:
    """States (K, T, D) of all branches from one row."""
    K, T = case.ids_KT.shape
    branch_BT = torch.arange(K).repeat_interleave(T)[None]
    position_BT = torch.arange(T).repeat(K)[None]
    return case.model(case.features(), case.ids_KT.reshape(1, -1), branch_BT, position_BT).view(K, T, -1)


def row_states(case: Case) -> Tensor:
    """States (K, T, D) of K rows, each with its copy of the prefix."""
    K, _ = case.ids_KT.shape
    prefix_KLD = case.prefix_1LD.expand(K, -1, -1)
    hidden = torch.cat((prefix_KLD, case.model.embed(case.ids_KT)), dim=1)
    states = case.model.llm.model(inputs_embeds=hidden, use_cache=False).last_hidden_state
    return states[:, case.prefix_1LD.shape[1] :]


def train_step(case: Case, states_of: Callable[[Case], Tensor]) -> tuple[Tensor, Tensor]:
    """Loss, and the gradient of the first layer's query weights."""
    case.model.zero_grad(set_to_none=True)
    loss = loss_of(case.model, states_of(case), case.ids_KT)
    loss.backward()
    gradient = case.model.llm.model.layers[0].self_attn.q_proj.weight.grad
    assert gradient is not None
    return loss.detach(), gradient.clone()


@torch.no_grad()
def generate_shared(case: Case, steps: int = STEPS) -> Tensor:
    """Greedy tokens (K, steps): the prefix is encoded and kept once."""
    prefix = case.model.prefill(case.features())
    branches = case.ids_KT.tolist()
    answers = case.model.generate(prefix, branches, [0] * len(branches), steps)
    return torch.tensor([answer.ids for answer in answers])


@torch.no_grad()
def cache_bytes_per_row(sizes: Sizes) -> float:
    """Bytes of keys and values that one branch costs in bf16, its share of the prefix included."""
    case = make_case(sizes, sizes.generate_k)
    llm, rows = case.model.llm, case.model.vocabulary.special
    adapt(llm, TuningConfig(token_rows="new"), rows)
    for name, parameter in llm.named_parameters():
        if not name.endswith("rows_RD"):
            parameter.data = parameter.data.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        plain = case.model.prefill(case.features())
        prefix = WatchedPrefix(plain.layers, plain.valid_BL)
        case.model.generate(prefix, case.ids_KT.tolist(), [0] * sizes.generate_k, STEPS)
    (cache,) = prefix.made
    tensors = [x for layer in cache.layers for x in (layer.keys, layer.values)]
    found = sum(x.untyped_storage().nbytes() for x in tensors) / sizes.generate_k
    tokens = sizes.prefix / sizes.generate_k + sizes.branch + STEPS
    arithmetic = tokens * sizes.width * sizes.layers * 2 * 2  # keys and values of two bytes
    assert found <= 1.05 * arithmetic, f"{found} bytes a row, {arithmetic} by arithmetic"
    return found


@torch.no_grad()
def generate_rows(case: Case, steps: int = STEPS) -> Tensor:
    """Greedy tokens (K, steps) of one batch of K whole rows with a KV cache."""
    K, T = case.ids_KT.shape
    L, cached = case.prefix_1LD.shape[1], {case.model.cache_argument: DynamicCache()}
    hidden = torch.cat((case.prefix_1LD.expand(K, -1, -1), case.model.embed(case.ids_KT)), dim=1)
    output = case.model.llm.model(inputs_embeds=hidden, use_cache=True, **cached)
    tokens: list[Tensor] = []
    for step in range(steps):
        tokens.append(case.model.logits(output.last_hidden_state[:, -1]).argmax(dim=-1))
        output = case.model.llm.model(
            inputs_embeds=case.model.embed(tokens[-1])[:, None],
            position_ids=torch.full((K, 1), L + T + step),
            use_cache=True,
            **cached,
        )
    return torch.stack(tokens, dim=1)


def median_seconds(arms: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median wall time of each arm; they take turns."""

    def timed(work: Callable[[], Any]) -> Callable[[], float]:
        def once() -> float:
            start = time.perf_counter()
            work()
            return time.perf_counter() - start

        return once

    times = interleaved({name: timed(work) for name, work in arms.items()}, repeats)
    return {name: median_of(values) for name, values in times.items()}


def measure(sizes: Sizes) -> tuple[dict[str, float], dict[str, float]]:
    """(headline, medians in seconds). Equal outputs are asserted first; they warm both arms up as well."""
    headline: dict[str, float] = {}
    seconds: dict[str, float] = {}
    error = 0.0
    for count in sizes.train_k:
        case = make_case(sizes, count)
        with torch.no_grad():
            error = max(error, float((packed_states(case) - row_states(case)).abs().max()))
        (loss, gradient), (loss_rows, gradient_rows) = (
            train_step(case, states_of) for states_of in (packed_states, row_states)
        )
        torch.testing.assert_close(loss, loss_rows, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradient, gradient_rows, rtol=1e-3, atol=1e-5)
        arms = {
            "shared": partial(train_step, case, packed_states),
            "rows": partial(train_step, case, row_states),
        }
        times = median_seconds(arms, sizes.repeats)
        headline[f"train_ratio_k{count}"] = times["rows"] / times["shared"]
        seconds |= {f"train_{arm}_k{count}": value for arm, value in times.items()}
    case = make_case(sizes, sizes.generate_k)
    assert torch.equal(generate_shared(case), generate_rows(case)), "the arms generate different tokens"
    generators = {"shared": partial(generate_shared, case), "rows": partial(generate_rows, case)}
    times = median_seconds(generators, sizes.repeats)
    headline[f"generate_ratio_k{sizes.generate_k}"] = times["rows"] / times["shared"]
    seconds |= {f"generate_{arm}_k{sizes.generate_k}": value for arm, value in times.items()}
    assert error < 1e-4, f"states differ by {error}"
    return headline | {"max_abs_error": error, "cache_bytes_per_row": cache_bytes_per_row(sizes)}, seconds


def main(argv: Sequence[str] | None = None) -> int:
    """The benchmark."""
    words = parser("shared_prefix", __doc__).parse_args(argv)
    headline, seconds = measure(SMALL if words.small else Sizes())
    finish("shared_prefix", headline, seconds, words.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
