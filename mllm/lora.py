"""Low-rank adapters (peft) on the LLM, and training only the new rows of its token matrices.

Shapes: B T as in mllm.modeling, V vocabulary, R new rows, D width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.config import TuningConfig
from mllm.quantization import quantized_in, silence_bitsandbytes

ROWS = "rows_RD"
_ADAPTER = re.compile(rf"\.(lora_A|lora_B)\.|\.{ROWS}$")


class RowEmbedding(nn.Embedding):
    """An embedding whose `weight` is frozen but for some rows, which are a parameter of their own.

    peft's trainable_token_indices writes the rows into a copy of the whole matrix at every call and gets a gradient
    of its size back; this class makes neither. The tests compare the values with those of peft.
    """

    rows_RD: nn.Parameter
    row_ids_R: Tensor
    place_V: Tensor

    def __init__(self, plain: nn.Embedding, rows: Sequence[int]) -> None:
        count, width = plain.weight.shape
        super().__init__(count, width, _weight=plain.weight, _freeze=True)
        _own_rows(self, rows)

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings of token ids of any shape."""
        place = self.place_V[ids]
        own = F.embedding(place.clamp(min=0), self.rows_RD)
        return torch.where((place >= 0)[..., None], own, super().forward(ids).to(own.dtype))


class RowLinear(nn.Linear):
    """The same for the output matrix (no bias)."""

    rows_RD: nn.Parameter
    row_ids_R: Tensor
    place_V: Tensor

    def __init__(self, plain: nn.Linear, rows: Sequence[int]) -> None:
        assert plain.bias is None
        out, width = plain.weight.shape
        super().__init__(width, out, bias=False, device="meta")
        self.weight = nn.Parameter(plain.weight.detach(), requires_grad=False)
        _own_rows(self, rows)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (…, V)."""
        logits = super().forward(x)
        return logits.index_copy(-1, self.row_ids_R, F.linear(x, self.rows_RD).to(logits.dtype))


def _own_rows(module: RowEmbedding | RowLinear, rows: Sequence[int]) -> None:
    """Add the trained rows and two index tables, which are not saved, to a matrix module."""
    weight = module.weight
    ids = torch.tensor(sorted(rows))
    place = torch.full((len(weight),), -1)
    place[ids] = torch.arange(len(ids))
    module.register_buffer("row_ids_R", ids, persistent=False)
    module.register_buffer("place_V", place, persistent=False)
    module.rows_RD = nn.Parameter(weight.detach()[ids].clone())


def refresh_rows(module: nn.Module) -> None:
    """Copy the trained rows from `weight` again, after that was loaded."""
    if isinstance(module, RowEmbedding | RowLinear):
        with torch.no_grad():
            module.rows_RD.copy_(module.weight[module.row_ids_R])


def adapt(llm: Any, tuning: TuningConfig, new_tokens: Sequence[int]) -> None:
    """Freeze, adapt and open weights of a causal language model in place.

    Args:
        llm: the language model.
        tuning: ranks, targets and token rows.
        new_tokens: ids of the rows that `token_rows="new"` trains.

    With adapters the parameter of a target becomes `<target>.base_layer.weight`, its adapters
    `<target>.lora_A.default.weight` and `lora_B`.

    Raises:
        ValueError: a target names no projection, or peft is not installed.
    """
    if tuning.lora_rank:
        _inject(llm, tuning)
    if tuning.token_rows == "new":
        embed = RowEmbedding(llm.model.embed_tokens, new_tokens)
        head = RowLinear(llm.lm_head, new_tokens)
        if llm.config.tie_word_embeddings:  # one matrix, and so one set of trained rows
            head.weight, head.rows_RD = embed.weight, embed.rows_RD
        llm.model.embed_tokens, llm.lm_head = embed, head
    elif tuning.lora_rank and "llm" not in tuning.frozen:
        llm.model.embed_tokens.requires_grad_(True)
        llm.lm_head.requires_grad_(True)


def _inject(llm: nn.Module, tuning: TuningConfig) -> None:
    silence_bitsandbytes()
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("lora_rank needs the package peft: pip install 'uniresxx[train]'") from error

    names = {name.rpartition(".")[2] for name, module in llm.named_modules() if isinstance(module, nn.Linear)}
    unknown = sorted(set(tuning.lora_targets) - names)
    if unknown:
        raise ValueError(
            f"lora_targets {unknown} name no projection of the LLM; known: {', '.join(sorted(names))}"
        )
    config = LoraConfig(
        r=tuning.lora_rank,
        lora_alpha=tuning.lora_alpha,
        lora_dropout=tuning.lora_dropout,
        target_modules=list(tuning.lora_targets),
    )
    inject_adapter_in_model(config, llm)


def base_matrices(llm: Any) -> dict[str, nn.Linear]:
    """The linear layers of a language model's decoder layers by name, without those of adapters."""
    inside = ((f"model.layers.{name}", module) for name, module in llm.model.layers.named_modules())
    return {
        name: module
        for name, module in inside
        if type(module) is nn.Linear and not is_adapter(f"{name}.weight")
    }


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter or of trained token rows."""
    return _ADAPTER.search(f".{name}") is not None


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Adapters and trained token rows alone, by name: what is saved apart from the base weights."""
    return {name: p.detach() for name, p in model.named_parameters() if is_adapter(name)}


def load_adapter_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load the tensors of `adapter_tensors`; ValueError where a name or a shape does not match."""
    own = adapter_tensors(model)
    wrong = sorted(own.keys() ^ tensors.keys()) + sorted(
        name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape
    )
    if wrong:
        raise ValueError(f"{len(wrong)} adapter tensors do not fit the model: {', '.join(wrong[:3])}")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


def _adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Layers with adapters by name; peft is imported only where there are any."""
    if not any(".lora_A." in name for name, _ in model.named_parameters()):
        return iter(())
    from peft.tuners.lora import LoraLayer

    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def subtract(model: nn.Module) -> None:
    """Subtract the adapters from weights into which they were merged; the model then computes what it did before."""
    for _, layer in _adapted_layers(model):
        weight = layer.get_base_layer().weight
        weight.data.copy_(weight.float() - layer.get_delta_weight("default").float())


def merged_tensors(model: nn.Module) -> dict[str, tuple[Tensor, Callable[[], Tensor]]]:
    """The state of the same model without adapters and row parameters, by its plain names.

    Quantised matrices are fp32 in it, as what they stand for.

    Returns:
        For each name the tensor before the merge, and a function that gives the merged one: in fp32 where something
        is added to it or put into it, else the tensor itself. The model is left as it was.
    """
    layers, quantized = dict(_adapted_layers(model)), quantized_in(model)
    rows = {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, RowEmbedding | RowLinear)}
    state: dict[str, tuple[Tensor, Callable[[], Tensor]]] = {}
    for name, value in model.state_dict().items():
        path, _, last = name.rpartition(".")
        matrix = quantized.get(path)
        if is_adapter(name) or (matrix is not None and last in matrix.stored() and last != "weight"):
            continue
        whole: Callable[[], Tensor] = partial(Tensor.detach, value)
        if matrix is not None and last == "weight":
            whole = matrix.dequantized
            value = torch.empty(matrix.out_features, matrix.in_features, device="meta")
        layer = layers.get(name.removesuffix(".base_layer.weight"))
        name = name.replace(".base_layer.", ".")
        state[name] = value, partial(_merged, whole, layer, rows.get(name))
    return state


def _merged(whole: Callable[[], Tensor], layer: Any, rows: RowEmbedding | RowLinear | None) -> Tensor:
    """One weight with its adapter and its trained rows."""
    with torch.no_grad():
        value = whole()
        if layer is not None:
            value = value.float() + layer.get_delta_weight("default").float()
        if rows is not None:
            value = value.float().index_copy(0, rows.row_ids_R, rows.rows_RD.float())
    return value
