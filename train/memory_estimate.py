"""The memory of a training step, from a forward and backward pass on tensors that have sizes and no memory.

Shapes as in uniresxx.types.Batch. The model is the recipe's own class, so nothing that is frozen, checkpointed or
cast by autocast needs a formula.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from mllm.chat import IGNORE
from mllm.lora import base_matrices
from mllm.tokens import Vocabulary
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.tuning import cast_frozen, quantize_frozen
from uniresxx.types import Batch, TrainingBatch

LABELS = 5  # of an expression: the answer `[SEG].` with its end
TRUTH_BOXES = 8  # of a level, for the learned box head
PHOTO = 480, 640  # where the loss is taken at the photo's size: COCO's usual one
_CANDIDATES = 16  # boxes in NMS: its loop costs time here and no memory


@dataclass(frozen=True)
class Sizes:
    """One micro-batch of one process: images, expressions of an image, tokens of an expression."""

    images: int
    expressions: int
    tokens: int
    labels: int = LABELS


@dataclass(frozen=True)
class ActivationMemory:
    """Bytes beyond weights and gradients: kept from forward to backward, and the peak."""

    saved: int
    peak: int


class _MemoryCounter(TorchDispatchMode):
    """Counts the bytes of every storage that operators allocate, until it is freed."""

    def __init__(self, known: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0
        self.ignored = {_storage(tensor) for tensor in known}
        self._watched: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _INDEXING:  # masks are real, so their positions are known
            args = (args[0], _positions(args[1]), *args[2:])
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, torch.Tensor):
                self._add(value)
        return out

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.sizes or key in self.ignored:
            return
        self.sizes[key] = storage.nbytes()
        self._watched[key] = weakref.ref(storage, lambda _: self._drop(key))
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _drop(self, key: int) -> None:
        self._watched.pop(key, None)
        self.now -= self.sizes.pop(key, 0)


_aten = torch.ops.aten
_INDEXING = (
    _aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default,
)  # fmt: skip


def _positions(indices: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Masks as the positions that they choose."""
    found: list[torch.Tensor | None] = []
    for index in indices:
        masks = index is not None and index.dtype == torch.bool
        found += list(index.nonzero(as_tuple=True)) if index is not None and masks else [index]
    return found


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def model_without_memory(config: UniRESPlusPlusConfig) -> UniRESPlusPlusModel:
    """The model of a config on the meta device, frozen weights in the config's dtype and quantisation.

    Raises ValueError for sizes that do not fit together.
    """
    vocabulary = Vocabulary.train([], config.mllm.token_count, config.mllm.chat)
    with torch.device("meta"):
        model = UniRESPlusPlusModel(config, vocabulary)
    cast_frozen(model, config.tuning)
    quantize_frozen(model.mllm, config.tuning)
    return model


def estimate_activations(config: UniRESPlusPlusConfig, sizes: Sizes, mixed: bool) -> ActivationMemory:
    """Forward, loss and backward of one micro-batch on sizes alone; `mixed`: under autocast to bf16.

    Every expression has a mask, so no batch of these sizes needs more. Attention is SDPA's fused kernel, which keeps
    inputs, output, mask, and one number per row and head, as the memory-efficient kernel of a GPU does.
    flex_attention needs no mask, so for it the figure is an upper bound. OWLv2 is not run; its boxes are inputs. A
    quantised matrix is made whole for each product: the largest one is added to the peak.
    """
    if config.instances:
        raise ValueError(f"instances={config.instances} has no plan: its matching depends on the masks")
    quantized = config.tuning.quantization != "none"
    config = replace(
        config,
        mllm=replace(config.mllm, attention="sdpa"),
        tuning=replace(config.tuning, quantization="none"),
        boxes="grid" if config.boxes == "owlv2" else config.boxes,
        box_head=replace(config.box_head, candidates=_CANDIDATES),
    )
    model = model_without_memory(config)
    found = fake_activations(model, partial(_batch, config, sizes), mixed)
    if not quantized:
        return found
    largest = max(matrix.weight.numel() for matrix in base_matrices(model.mllm.llm).values())
    return replace(found, peak=found.peak + largest * (2 if mixed else 4))


def fake_activations(
    model: nn.Module, batch_of: Callable[[FakeTensorMode], TrainingBatch], mixed: bool
) -> ActivationMemory:
    """`measure_activations` on sizes alone, of a model on the meta device; `mixed`: under autocast to bf16."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        model.to_empty(device="cpu")
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
    precision = torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext()
    return measure_activations(model, batch_of(fake), precision)


def measure_activations(
    model: Any, batch: TrainingBatch, precision: AbstractContextManager[Any]
) -> ActivationMemory:
    """Count the memory of one micro-batch, forward and backward; on real tensors this is a measurement."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    counter = _MemoryCounter([*model.parameters(), *model.buffers(), *gradients])
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if _storage(tensor) not in counter.ignored:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    model.train()
    counts = model.counts(batch)
    with counter:
        with precision, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model.loss(model(batch), batch).total(counts)
        saved = sum(size for size, _ in kept.values())
        kept.clear()
        loss.backward()
    return ActivationMemory(saved, counter.peak)


def _batch(config: UniRESPlusPlusConfig, sizes: Sizes, fake: FakeTensorMode) -> Batch:
    """A batch of `sizes`: pixels and masks without memory, everything small real."""
    m, (B, K, t) = config.mllm, (sizes.images, sizes.expressions, sizes.tokens)
    S, T, labels = m.high_size, K * t, min(sizes.labels, t - 1)
    with fake:
        pixels = partial(torch.empty, B, 3, dtype=torch.uint8)
        low, high = pixels(m.low_size, m.low_size), pixels(S, S)
        own = None if config.mask_size is None else pixels(config.mask_size, config.mask_size)
        masks = torch.empty(B * K, S, S, dtype=torch.bool)
        photos = [torch.empty(K, *PHOTO, dtype=torch.bool) for _ in range(B)]
        dense = torch.empty(B, S, S, 3, dtype=torch.uint8) if any(config.dense_classes) else None
    position_T = torch.arange(T) % t
    box = torch.tensor([0.0, 0.0, S / 2, S / 2])
    filled: Callable[..., torch.Tensor] = torch.ones
    return Batch(
        pixels_low_B3hw=low,
        pixels_high_B3HW=high,
        pixels_mask_B3SS=own,
        object_boxes_BO4=box.repeat(B, m.max_objects, 1),
        object_valid_BO=filled(B, m.max_objects, dtype=torch.bool),
        part_boxes_BP4=box.repeat(B, m.max_parts, 1),
        part_valid_BP=filled(B, m.max_parts, dtype=torch.bool),
        truth_boxes_BGM4=box.repeat(B, 2, TRUTH_BOXES, 1),
        truth_boxes_valid_BGM=filled(B, 2, TRUTH_BOXES, dtype=torch.bool),
        boxes_complete_BG=filled(B, 2, dtype=torch.bool),
        token_ids_BT=filled(B, T, dtype=torch.long),
        labels_BT=torch.where(position_T >= t - labels, 1, IGNORE).repeat(B, 1),
        branch_BT=(torch.arange(T) // t).repeat(B, 1),
        position_BT=position_T.repeat(B, 1),
        image_of_expr_E=torch.arange(B).repeat_interleave(K),
        seg_position_E=(torch.arange(1, K + 1) * t - 2).repeat(B),
        present_E=filled(B * K, dtype=torch.bool),
        masks_EHW=masks,
        masks_photo=photos if config.loss.resolution == "photo" else [],
        pixel_valid_BHW=filled(B, S, S, dtype=torch.bool),
        dense_BHW3=dense,
    )


def parameter_bytes(model: nn.Module, trained: bool) -> int:
    """Bytes of the parameters that are trained, or of the others with the buffers."""
    values: list[torch.Tensor] = [p for p in model.parameters() if p.requires_grad == trained]
    if not trained:
        values += model.buffers()
    return sum(value.numel() * value.element_size() for value in values)
