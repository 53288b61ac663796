"""Which parameters are trained: parts frozen by name, adapters, new token rows; their dtypes; a table of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mllm.config import Part, TuningConfig
from mllm.lora import adapt, base_matrices, is_adapter
from mllm.modeling import MLLM
from mllm.quantization import full_precision, parameter_counts, quantization_of, quantize

# Where the parameters of each part live; the longest match counts.
Parts = Mapping[Part, tuple[str, ...]]
PARTS: Parts = {  # of UniRES++
    "low": ("mllm.low",),
    "high": ("mllm.high",),
    "fusion": ("mllm.image_tokens",),
    "regions": ("mllm.object_tokens", "mllm.part_tokens"),
    "exploitation": ("mllm.exploitation",),
    "llm": ("mllm.llm",),
    "head": ("head", "dense", "words", "instances"),
    "mask_encoder": ("head.sam.vision_encoder",),
    "box_head": ("box_head",),
}


def apply_tuning(
    model: nn.Module, llm: Any, new_tokens: Sequence[int], tuning: TuningConfig, parts: Parts = PARTS
) -> None:
    """Freeze, adapt and open the parameters that `tuning` names; its defaults change nothing.

    Args:
        model: the whole model, whose parameter names start as in `parts`.
        llm: its language model, which gets adapters and token rows.
        new_tokens: ids of the rows that `token_rows="new"` trains.
        tuning: what is trained.
        parts: where the parameters of each part live.
    """
    for name, parameter in model.named_parameters():
        if part_of(name, parts) in tuning.frozen:
            parameter.requires_grad_(False)
    adapt(llm, tuning, new_tokens)


def part_of(name: str, parts: Parts = PARTS) -> Part:
    """The part that a parameter belongs to."""
    found = [
        (len(path), part)
        for part, paths in parts.items()
        for path in paths
        if f"{name}.".startswith(f"{path}.")
    ]
    assert found, name
    return max(found)[1]


@dataclass(frozen=True, slots=True)
class PartRow:
    """Parameters of one part."""

    part: str
    trained: int = 0
    adapters: int = 0  # trained as well: low-rank adapters and new token rows
    frozen: int = 0

    @property
    def total(self) -> int:
        """All parameters of the part."""
        return self.trained + self.adapters + self.frozen


def parameter_table(model: nn.Module, parts: Parts = PARTS) -> list[PartRow]:
    """One row per part that has parameters, and a last row "all"."""
    rows, counts = [], parameter_counts(model)
    for part in parts:
        kinds = {"trained": 0, "adapters": 0, "frozen": 0}
        for name, parameter in model.named_parameters():
            if part_of(name, parts) == part:
                kind = (
                    ("adapters" if is_adapter(name) else "trained") if parameter.requires_grad else "frozen"
                )
                kinds[kind] += counts[name]
        if any(kinds.values()):
            rows.append(PartRow(part, **kinds))
    sums = {kind: sum(getattr(row, kind) for row in rows) for kind in ("trained", "adapters", "frozen")}
    return [*rows, PartRow("all", **sums)]


def format_table(rows: list[PartRow]) -> str:
    """The table as text, parameters in thousands."""
    lines = [f"{'parameters / 1000':<18}{'trained':>15}{'adapters':>15}{'frozen':>15}{'total':>15}"]
    for row in rows:
        numbers = "".join(f"{n / 1000:>15,.1f}" for n in (row.trained, row.adapters, row.frozen, row.total))
        lines.append(f"{row.part:<18}{numbers}")
    return "\n".join(lines)


def cast_frozen(
    model: nn.Module, tuning: TuningConfig, from_files: Collection[Part] = (), parts: Parts = PARTS
) -> None:
    """Convert frozen parameters to bf16 where `tuning` says so: half the memory, and forward needs autocast.

    Parts of `keep_fp32` stay as they are: a later stage trains them from the weights that were published. Parts of
    `from_files` have no values yet, and to convert them would take the memory that is meant to stay free.
    """
    if tuning.frozen_dtype != "bf16":
        return
    for name, parameter in full_precision(model):
        part = part_of(name, parts)
        if parameter.requires_grad or part in tuning.keep_fp32:
            continue
        if part in from_files:
            parameter.data = torch.empty_like(parameter, dtype=torch.bfloat16)
        else:
            cast([parameter], torch.bfloat16)


def quantize_frozen(
    mllm: MLLM, tuning: TuningConfig, device: torch.device | None = None, with_values: bool = True
) -> None:
    """Quantise the matrices of the LLM as `tuning` says, if they are not yet; see `mllm.quantization.quantize`."""
    kind = tuning.quantization
    if kind not in ("none", quantization_of(mllm.llm)):
        quantize(mllm.llm, base_matrices(mllm.llm), kind, device, with_values)


def rounded_parts(model: nn.Module, before: TuningConfig) -> list[Part]:
    """Parts of which `model` trains the weights themselves, and which a run with `before` kept rounded to bf16."""
    if before.frozen_dtype != "bf16":
        return []
    trained = {
        part_of(name) for name, p in model.named_parameters() if p.requires_grad and not is_adapter(name)
    }
    frozen = [part for part in PARTS if part in before.frozen or (part == "llm" and before.lora_rank)]
    return [part for part in frozen if part in trained and part not in before.keep_fp32]


def cast(parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> None:
    """Convert parameters in place. Buffers, such as those of position codes, stay in full precision."""
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)
