"""A model larger than one GPU: the decoder layers of its language model spread over several, by accelerate.

Everything else (towers, region tokens, mask head, embedding and output matrix) is on the main GPU. accelerate's hooks
move the hidden states from layer to layer; only the device of the hidden states changes, no number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from uniresxx.errors import InputError

FREE = 0.1  # of each GPU's free memory, for activations, keys and values (our choice)
ALONE = ("embed_tokens", "rotary_emb")  # of the decoder, called with what is on the main GPU


def free_memory(main: torch.device) -> dict[torch.device, int]:
    """Bytes that weights may take on each GPU, the main one first, and then in the host's memory."""
    from accelerate.utils import get_max_memory

    found = get_max_memory()
    gpus = [torch.device("cuda", index) for index in found if isinstance(index, int)]
    gpus.sort(key=lambda gpu: gpu != main)
    memory = {gpu: int(found[gpu.index] * (1 - FREE)) for gpu in gpus}
    return memory | {torch.device("cpu"): int(found["cpu"])}


def spread_layers(
    model: nn.Module, decoder: nn.Module, memory: Mapping[torch.device, int]
) -> dict[str, torch.device]:
    """The device of each part of the decoder by its name; one entry for all of it where the main GPU has room.

    Args:
        model: all of it; parameters may be on the meta device.
        decoder: the part whose layers may be on different devices.
        memory: bytes that weights may take on each device; the first is the main one, the CPU comes last.

    Raises:
        InputError: the devices together are too small.
    """
    from accelerate import infer_auto_device_map

    own = {id(parameter) for parameter in decoder.parameters()}
    rest = sum(_bytes(parameter) for parameter in model.parameters() if id(parameter) not in own)
    devices, main = list(memory), next(iter(memory))
    room = {_key(device): number for device, number in memory.items()}
    room[_key(main)] -= rest
    kinds: Any = decoder._no_split_modules
    if room[_key(main)] > 0 and sum(map(_bytes, decoder.parameters())) <= room[_key(main)]:
        return {"": main}
    if room[_key(main)] <= 0:
        raise InputError(
            f"device_map='auto' spreads the language model's layers, and the other parts alone ({rest / 2**30:.1f} "
            f"GiB) do not fit on {main}: use dtype 'bfloat16' or a larger GPU"
        )
    found = infer_auto_device_map(decoder, dict(room), no_split_module_classes=list(kinds))
    if "disk" in found.values():
        raise InputError(
            f"the model does not fit into {', '.join(map(str, devices))} together: use dtype 'bfloat16' or more GPUs"
        )
    by_key = {_key(device): device for device in devices}
    return {name: by_key[key] for name, key in found.items()} | dict.fromkeys(ALONE, main)


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _key(device: torch.device) -> int | str:
    """A device as accelerate names it."""
    return device.index if device.type == "cuda" else str(device)


def device_by_name(
    prefix: str, places: Mapping[str, torch.device], main: torch.device
) -> Callable[[str], torch.device]:
    """A function from a parameter's name in the model to its device; `prefix` is the decoder's name."""

    def device_of(name: str) -> torch.device:
        inside = name.removeprefix(f"{prefix}.")
        if inside == name:
            return main
        fitting = [part for part in places if part == "" or inside == part or inside.startswith(f"{part}.")]
        return places[max(fitting, key=len)]

    return device_of


def connect(
    model: nn.Module, decoder: nn.Module, places: Mapping[str, torch.device], main: torch.device
) -> None:
    """Move the buffers of the model and let the hidden states follow the decoder's layers.

    The parameters are where `places` says already.
    """
    from accelerate import dispatch_model

    inside = set(decoder.modules())
    for module in model.modules():
        if module not in inside:
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(main)
    skipped: Any = decoder._skip_keys_device_placement  # keys and values stay with their layer
    dispatch_model(
        decoder, {name: _key(device) for name, device in places.items()}, main_device=_key(main),
        skip_keys=skipped, force_hooks=True,
    )  # fmt: skip
