"""Features of frozen towers on the disk: what a picture looks like to a tower that never changes is computed once.

`DIR/low/` and `DIR/high/` hold one safetensors file per frame, named by the frame's own pixels, so a mirrored,
resized or exchanged photo is another file. `fingerprint.json` beside them says what the tower was; a folder of
another tower is refused. Every file is sealed with the fingerprint, its name and its content: one that is torn,
damaged or from elsewhere is computed again. Only training uses this.

Shapes: B images, H W a tower's frame.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b, sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse
from torch import Tensor, nn
from transformers import PreTrainedModel

from mllm.config import MLLMConfig
from mllm.modeling import MLLM
from uniresxx.checkpoints.folders import DISK_FULL, read_json, tensor_bytes, to_json
from uniresxx.errors import InputError
from uniresxx.files import write_atomic

TowerName = Literal["low", "high"]
FORMAT = 1  # of the folder; raised when a reader of the old one would misread the new one
FINGERPRINT = "fingerprint.json"
_SEAL, _STRIDE = "seal", ".stride"
_NAME_BYTES = 16  # of a frame's name and of a seal: 128 bits, no two frames meet by chance
_SHOWN = 12  # characters of a long value in a refusal


class Seeing(Protocol):
    """A model with towers."""

    mllm: MLLM


def frame_name(pixels_3HW: Tensor) -> str:
    """The name of a prepared frame: a hash of its shape, type and values. Of the CPU; 32 hex digits."""
    digest = blake2b(f"{tuple(pixels_3HW.shape)} {pixels_3HW.dtype} ".encode(), digest_size=_NAME_BYTES)
    digest.update(_raw(pixels_3HW))
    return digest.hexdigest()


def frozen_towers(mllm: MLLM) -> tuple[TowerName, ...]:
    """Towers none of whose weights is trained."""
    return tuple(
        name
        for name in get_args(TowerName)
        if not any(p.requires_grad for p in _tower(mllm, name).parameters())
    )


class FeatureCache:
    """The folder while a run uses it. Values come back bit by bit, in the tower's own type and memory layout."""

    def __init__(self, folder: Path, model: Seeing) -> None:
        """InputError where the model has nothing to keep."""
        self.folder, self.mllm = folder, model.mllm
        self.towers = frozen_towers(model.mllm)
        if not self.towers:
            raise InputError(
                f"--data.feature_cache {folder}: no tower of this recipe is frozen, and a trained one sees a picture "
                "differently after each step; add --model.tuning.frozen low high, or leave the cache out"
            )
        if model.mllm.config.blind_to_image:
            raise InputError(
                f"--data.feature_cache {folder}: a model that is blind to images has no features"
            )
        for name in self.towers:
            # our towers have none; features of one that draws random numbers could not be kept
            assert not _draws(_tower(model.mllm, name)), f"the {name} tower drops at random"
        self.numbers = {
            f"{name} {what}": 0 for name in self.towers for what in ("read", "computed", "damaged")
        }
        self.numbers["not written"] = 0
        self._prints: dict[str, bytes] = {}
        self._news: list[str] = []
        self._writing = True

    def open(self, device: str, precision: str) -> str:
        """Make the folder, or check that it holds what this model's towers give; returns a line about it.

        Call it when the model holds its starting weights. InputError: a folder of another tower, or one that cannot
        be used. OSError: the disk is full.
        """
        found = [self._open(name, fingerprint(self.mllm, name, device, precision)) for name in self.towers]
        return f"features of frozen towers are kept in {self.folder} (pictures: {', '.join(found)})"

    def _open(self, name: TowerName, mine: Mapping[str, Any]) -> str:
        folder = self.folder / name
        path = folder / FINGERPRINT
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # counted first: whoever fills the folder now has written the fingerprint before
            count = sum(1 for _ in folder.glob("??/*.safetensors"))
            if not path.exists() and not count:
                write_atomic(path, to_json(dict(mine)))
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            raise InputError(
                f"--data.feature_cache {self.folder} cannot be used ({error.strerror}): give another folder"
            ) from None
        way_out = f"give another folder with --data.feature_cache, or delete {folder}"
        if not path.exists():
            raise InputError(
                f"{folder} holds features, and {FINGERPRINT} that says of what is missing: {way_out}"
            )
        try:
            saved = read_json(path)
        except InputError as error:
            raise InputError(f"{error}; {way_out}") from None
        changes = _changes(saved, mine)
        if changes:
            raise InputError(f"{folder} holds features of another tower ({'; '.join(changes)}): {way_out}")
        self._prints[name] = to_json(dict(mine))
        return f"{name} {count}"

    def maps(
        self,
        name: TowerName,
        names: Mapping[str, Sequence[str]],
        device: torch.device,
        see: Callable[[], list[Tensor]],
    ) -> list[Tensor] | None:
        """What `see()` gives for a batch, a list of (B, …) maps, from the disk where all B frames are there.

        `names` are the batch's frame names by tower; None for a tower that is not kept. Where one frame is not there
        the tower sees the whole batch, as it would without this, because a matrix product's last bits may depend on
        the number of rows (our choice; measured for the tiny high tower on a CPU, one image against several).
        """
        if name not in self.towers:
            return None
        frames = names[name]
        paths = [self._path(name, frame) for frame in frames]
        missing = [not path.exists() for path in paths]
        if not any(missing):
            entries = [self._read(name, frame, path) for frame, path in zip(frames, paths, strict=True)]
            whole = [entry for entry in entries if entry is not None]
            if len(whole) == len(entries):
                self.numbers[f"{name} read"] += len(entries)
                return _stacked(whole, device)
            missing = [entry is None for entry in entries]
            self.numbers[f"{name} damaged"] += sum(missing)
        maps = see()
        assert not any(m.requires_grad for m in maps), f"the {name} tower is trained"
        self.numbers[f"{name} computed"] += len(frames)
        for b, frame in enumerate(frames):
            if missing[b]:
                self._write(name, frame, paths[b], [m[b : b + 1] for m in maps])
        return maps

    def news(self) -> list[str]:
        """Lines to say since the last call."""
        lines, self._news = self._news, []
        return lines

    def _path(self, name: str, frame: str) -> Path:
        return self.folder / name / frame[:2] / f"{frame}.safetensors"

    def _read(self, name: str, frame: str, path: Path) -> dict[str, Tensor] | None:
        """The tensors of a file; None where it is gone or anything about it is not as it was written."""
        try:
            tensors = parse(path.read_bytes())
            seal = tensors.pop(_SEAL)
        except (OSError, SafetensorError, ValueError, KeyError):
            return None
        return tensors if torch.equal(seal, self._seal(name, frame, tensors)) else None

    def _write(self, name: str, frame: str, path: Path, maps_1: Sequence[Tensor]) -> None:
        """Keep one image's maps. A disk that refuses ends the writing, not the training."""
        if not self._writing:
            self.numbers["not written"] += 1
            return
        tensors = {f"{i}": m[0].detach().cpu().contiguous() for i, m in enumerate(maps_1)}
        tensors |= {f"{i}{_STRIDE}": torch.tensor(m.stride()) for i, m in enumerate(maps_1)}
        tensors[_SEAL] = self._seal(name, frame, tensors)
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, tensor_bytes(tensors))
        except OSError as error:
            reason = "the disk is full" if error.errno in DISK_FULL else error.strerror
            self._news.append(
                f"no more features are kept: {path.parent} cannot be written ({reason}); those there are used"
            )
            self._writing = False
            self.numbers["not written"] += 1

    def _seal(self, name: str, frame: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """A hash of the tower's fingerprint, the frame's name and the content -> uint8 (16,)."""
        digest = blake2b(self._prints[name] + frame.encode(), digest_size=_NAME_BYTES)
        _feed(digest.update, tensors)
        return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def fingerprint(mllm: MLLM, name: TowerName, device: str, precision: str) -> dict[str, Any]:
    """All that a tower's answer to given pixels depends on; what it says of two equal towers is equal.

    The pixels' normalisation is not in it: frames are named by normalised pixels. Versions of torch and transformers
    are, and a folder of others is refused (our choice): what computes is part of the answer, no hash of weights sees
    it change, and computing again costs one epoch.
    """
    digest = sha256()
    weights = _tower(mllm, name).state_dict()
    _feed(digest.update, weights)
    return {
        "format": FORMAT,
        "tower": name,
        "weights": digest.hexdigest(),
        "weights_dtype": sorted({str(value.dtype).removeprefix("torch.") for value in weights.values()}),
        "config": _config(mllm.config, name),
        "precision": precision,
        "device": device,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def _config(config: MLLMConfig, name: TowerName) -> dict[str, Any]:
    """A tower's own fields, as they come back from JSON."""
    own = {key: value for key, value in asdict(config).items() if key.startswith(f"{name}_")}
    if name == "low":
        own["flash_attention"] = config.attention == "flash_attention_2"
    plain: dict[str, Any] = json.loads(json.dumps(own))
    return plain


def _changes(saved: Mapping[str, Any], mine: Mapping[str, Any]) -> list[str]:
    """Lines "key: saved -> mine"."""
    flat = [
        {
            f"{key}.{inner}" if inner else key: value
            for key, entry in found.items()
            for inner, value in (entry.items() if isinstance(entry, dict) else (("", entry),))
        }
        for found in (saved, mine)
    ]
    return [
        f"{key}: {_short(flat[0].get(key))} -> {_short(flat[1].get(key))}"
        for key in sorted(flat[0].keys() | flat[1].keys())
        if flat[0].get(key) != flat[1].get(key)
    ]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]}…"


def _tower(mllm: MLLM, name: TowerName) -> nn.Module:
    return mllm.low if name == "low" else mllm.high


def _draws(tower: nn.Module) -> bool:
    """Does it drop anything at random? In the parts we know, and by the configs of transformers."""
    parts = [m.p for m in tower.modules() if isinstance(m, nn.Dropout)]
    configs = [m.config.to_dict() for m in tower.modules() if isinstance(m, PreTrainedModel)]
    return any(parts) or any(value for c in configs for key, value in c.items() if "drop" in key)


def _raw(tensor: Tensor) -> Any:
    """The bytes of a tensor on any device, in the order of its indices."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _feed(update: Callable[[Any], None], tensors: Mapping[str, Tensor]) -> None:
    """Names, types, shapes and bytes into a hash."""
    for name in sorted(tensors):
        value = tensors[name]
        update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        update(_raw(value))


def _stacked(entries: Sequence[Mapping[str, Tensor]], device: torch.device) -> list[Tensor]:
    """Maps of B images with the strides that the tower's own have: other strides, other kernels, other last bits."""
    maps = []
    for i in range(len(entries[0]) // 2):
        first = entries[0][f"{i}"]
        between, *within = entries[0][f"{i}{_STRIDE}"].tolist()
        extent = 1 + sum((n - 1) * step for n, step in zip(first.shape, within, strict=True))
        strides = (max(between, extent), *within)  # of one image alone the first may be anything
        map_B = torch.empty_strided((len(entries), *first.shape), strides, dtype=first.dtype, device=device)
        for b, entry in enumerate(entries):
            map_B[b].copy_(entry[f"{i}"])
        maps.append(map_B)
    return maps
