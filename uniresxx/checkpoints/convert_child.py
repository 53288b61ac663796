"""The process of `convert` that opens one pickle of tensors and writes it as safetensors, with capped memory.

`python -m uniresxx.checkpoints.convert_child SOURCE TARGET` prints one JSON object: {"left_out": [names]} or
{"error": "one line"}. `torch.load(weights_only=True)` builds tensors and plain containers, and refuses every other
class and function; the cap bounds what a file made to do harm can reserve.
"""

from __future__ import annotations

import json
import pickle
import re
import resource
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from uniresxx.checkpoints.tensors import one_line, write_tensors

WRAPPERS = ("state_dict", "model", "module", "model_state_dict")  # keys under which programs put the tensors
SPARE = (
    2**30
)  # bytes beyond twice the file (our choice: what torch itself reserves while it reads and writes)
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)|global[: ]+`?([\w.]+)")


class _UnusableError(Exception):
    """The file cannot be converted; the message is for the user."""


def main() -> None:
    """Convert the file of the command line."""
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    _cap_memory(2 * source.stat().st_size + SPARE)
    print(json.dumps(converted(source, target)))


def converted(source: Path, target: Path) -> dict[str, Any]:
    """Convert a file in this process; returns what the process prints."""
    try:
        tensors, left_out = _tensors_of(_opened(source))
        write_tensors(target, tensors)
    except _UnusableError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": "asks for more memory than its size explains"}
    return {"left_out": left_out}


def _cap_memory(more: int) -> None:
    """Let this process reserve `more` bytes beyond what it holds now; systems without /proc have no such cap."""
    status = Path("/proc/self/statm")
    if status.is_file():
        held = int(status.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + more, held + more))


def _opened(source: Path) -> Any:
    """What the pickle holds; files of the zip format, torch's since 1.6, are mapped and not read."""
    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    except pickle.UnpicklingError as error:
        found = _GLOBAL.search(str(error))
        if found is None:  # torch's reason, without its advice to open the file all the same
            reason = str(error).partition("WeightsUnpickler error:")[2].strip().splitlines()
            raise _UnusableError(f"is no readable pickle of tensors ({''.join(reason[:1])[:120]})") from None
        raise _UnusableError(
            f"names {found[1] or found[2]}, and classes and functions are never loaded from a pickle"
        ) from None
    except RuntimeError as error:
        if "alloc" in str(error):
            raise MemoryError from None
        raise _UnusableError(f"is damaged or incomplete ({one_line(error)})") from None
    except (EOFError, KeyError, ValueError, AttributeError, IndexError, TypeError, OSError) as error:
        raise _UnusableError(f"is damaged or incomplete ({one_line(error)})") from None


def _tensors_of(value: Any) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors by name, and the names of what else lies beside them."""
    while isinstance(value, Mapping) and not any(isinstance(v, torch.Tensor) for v in value.values()):
        inner = [key for key in WRAPPERS if isinstance(value.get(key), Mapping)]
        if len(inner) != 1:
            break
        value = value[inner[0]]
    if not isinstance(value, Mapping):
        raise _UnusableError(f"holds a {type(value).__name__}, not tensors by name")
    tensors = {key: v for key, v in value.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise _UnusableError("holds no tensors by name")
    for key, tensor in tensors.items():
        if not isinstance(key, str):
            raise _UnusableError(f"has a tensor under {key!r}, which is no name")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise _UnusableError(f"holds {key} in a form that safetensors does not have")
    return tensors, [str(key) for key in value if key not in tensors]


if __name__ == "__main__":
    main()
