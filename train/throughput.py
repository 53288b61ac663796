"""Throughput of a run: tokens per second, MFU, the wait for data, memory.

Rates cover the last steps alone, without the time for pictures, validation and checkpoints.

MFU is the arithmetic that the steps of a second need, over the peak of the GPUs. A step needs, per parameter of a
matrix and position that passes through it: 2 FLOPs forward; 2 backward if this matrix or one before it is trained; 2
for its own gradient if it is trained. So 6 for a trained LLM, 4 for a frozen one with LoRA, 2 for a frozen tower.
Attention needs 4 D per pair of tokens that attend to one another, in each layer, forward, and twice that backward.
What activation checkpointing computes again is not counted. LLM, output rows at label positions and both towers are
counted; MGFE, region tokens and heads (a few per cent at 7B) are not, so the figure is a little low.
"""

from __future__ import annotations

import re
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mllm.config import MLLMConfig
from mllm.quantization import parameter_counts
from mllm.towers import HighTower, LowTower
from train.distributed import Ranks
from train.recipe import EngineConfig
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.types import Batch

WINDOW = 20  # steps
Item = TypeVar("Item")

# Peak of dense bf16 or fp16 matrix products, FLOP/s, by words of the device's name (NVIDIA's data sheets, the
# figures without sparsity; accumulation in fp32). The first row whose words are all there counts.
PEAKS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("B200",), 2250e12),
    (("H200",), 989e12),
    (("H100", "PCIe"), 756e12),
    (("H100", "NVL"), 835e12),
    (("H100",), 989e12),
    (("A100",), 312e12),
    (("L40S",), 362e12),
    (("L4",), 121e12),
    (("A10",), 125e12),
    (("4090",), 165e12),
    (("3090",), 71e12),
    (("V100",), 125e12),
)


def peak_of(name: str, precision: str) -> float | None:
    """FLOP/s of a GPU by its name; None for unknown ones and for fp32, which has no one peak."""
    words = set(re.split(r"[^\w]+", name))
    if precision == "fp32":
        return None
    return next((peak for known, peak in PEAKS if words.issuperset(known)), None)


class Cost(NamedTuple):
    """Cost of a micro-batch: tokens of text without padding, tokens of the visual prefixes, FLOPs as above."""

    text_tokens: int = 0
    visual_tokens: int = 0
    flops: float = 0.0


def cost_counter(model: UniRESPlusPlusModel, config: UniRESPlusPlusConfig) -> Callable[[Batch], Cost]:
    """A function for the cost of micro-batches of a UniRESPlusPlus; its parameters are counted here, once."""
    m = config.mllm
    visual = model.mllm.prefix_length
    llm = _cost(model, "mllm.llm.model.layers.")
    per_image = _forward_flops(LowTower, m, m.low_size) * (3 if _trained(model, "mllm.low.") else 1)
    per_image += _forward_flops(HighTower, m, m.high_size) * (3 if _trained(model, "mllm.high.") else 1)
    output = (6 if _trained(model, "mllm.llm.lm_head.weight") else 4) * m.token_count * m.llm_width

    def count(batch: Batch) -> Cost:
        real_BT = batch.branch_BT >= 0
        images, text = len(batch.branch_BT), int(real_BT.sum())
        # position p of a branch attends to the prefix, itself and the p before it
        branch_pairs = int((batch.position_BT * real_BT).sum()) + text * (visual + 1)
        pairs = images * visual * (visual + 1) // 2 + branch_pairs
        flops = (
            llm * (images * visual + text)
            + 3 * 4.0 * m.llm_config.num_hidden_layers * m.attention_width * pairs
        )
        flops += output * int((batch.labels_BT >= 0).sum()) + per_image * images
        return Cost(text, images * visual, flops)

    return count


def _forward_flops(tower: type[LowTower | HighTower], config: MLLMConfig, side: int) -> int:
    """FLOPs of one image of `side` pixels through a tower, counted by torch without memory."""
    with torch.device("meta"):
        empty, pixels = tower(config), torch.empty(1, 3, side, side)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        empty(pixels)
    return counter.get_total_flops()


def _cost(model: nn.Module, path: str) -> float:
    """FLOPs per position of the LLM's matrices below a path: 4 or 6 per parameter (as above)."""
    counts = parameter_counts(model)
    matrices = [
        (counts[name], p.requires_grad)
        for name, p in model.named_parameters()
        if name.startswith(path) and p.ndim > 1
    ]
    return float(sum(size * (4 + 2 * trained) for size, trained in matrices))


def _trained(model: nn.Module, path: str) -> bool:
    named = model.named_parameters(remove_duplicate=False)  # a tied matrix has two names
    return any(p.requires_grad for name, p in named if name.startswith(path))


class ThroughputMeter:
    """Measures the time of each step and of the wait for its data."""

    def __init__(
        self,
        ranks: Ranks,
        engine: EngineConfig,
        device: torch.device,
        cost: Callable[[Any], Cost] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.ranks, self.cost, self.clock, self.device = ranks, cost, clock, device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        peak = peak_of(name, engine.precision)
        self.peak = None if peak is None else peak * ranks.world_size
        self.steps: deque[tuple[float, ...]] = deque(maxlen=WINDOW)  # costs, seconds of waiting, seconds
        self.began = self.got = clock()

    def waiting(self, stream: Iterable[Item]) -> Iterator[Item]:
        """The items of a stream; measures the wait for each."""
        source = iter(stream)
        while True:
            self.began = self.clock()
            item = next(source, None)
            if item is None:
                return
            self.got = self.clock()
            yield item

    def record(self, micro: Sequence[Any]) -> dict[str, float | None]:
        """Add the step that ends now; returns its part of the log line. All ranks call it."""
        now = self.clock()
        costs = [self.cost(batch) for batch in micro] if self.cost is not None else []
        total = self.ranks.sum([sum(values) for values in zip(Cost(), *costs, strict=True)])
        self.steps.append((*total, self.got - self.began, now - self.began))
        text, visual, flops, waited, seconds = (sum(values) for values in zip(*self.steps, strict=True))
        seconds, known = max(seconds, 1e-9), self.cost is not None
        return {
            "text_tokens_per_s": round(text / seconds, 1) if known else None,
            "visual_tokens_per_s": round(visual / seconds, 1) if known else None,
            "mfu": round(flops / seconds / self.peak, 4) if known and self.peak else None,
            "data_wait": round(waited / seconds, 4),
            "memory_gb": round(memory_of(self.device) / 1e9, 3),
        }


def memory_of(device: torch.device) -> int:
    """Peak bytes so far: what torch held on the GPU, else of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
