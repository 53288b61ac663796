"""Pretrained weights into our names: SAM, SAM 2. Safetensors only, strict.

The language model and LLaVA have a module of their own, `mllm.loading_llm`; the towers `mllm.tower_loading`.

A source is a local folder, or the id of a hub repository (`owner/name`, `owner/name@revision`), which is downloaded
only because it was named. ValueError names what does not fit; a report lists every
tensor of a named part that stays random.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mllm.lora import ROWS, is_adapter, refresh_rows
from mllm.sam_names import META_SAM_RULES

Rules = Sequence[tuple[str, str | None]]  # (pattern of a name there, our name; None: known and not wanted)
_SHOWN = 4

# Published SAM 2 folders hold the memory for video too (transformers' Sam2VideoModel), which single images never use.
SAM_RULES: Rules = (
    (r"(?:memory_|mask_downsample\.|object_pointer_proj\.|temporal_positional_encoding_).*", None),
    (r"no_memory_positional_encoding|no_object_pointer|occlusion_spatial_embedding_parameter", None),
    (r"(.*)", r"\1"),
)
# Our own checkpoints, with or without adapters around a weight.
OWN_RULES: Rules = ((r"(.*)\.base_layer\.(.*)", r"\1.\2"), (r"(.*)", r"\1"))
# What a published layout leaves out because it is another tensor's twin.
SAM_TWINS = {
    "prompt_encoder.shared_embedding.positional_embedding": "shared_image_embedding.positional_embedding",
    "shared_image_embedding.positional_embedding": "prompt_encoder.shared_embedding.positional_embedding",
}


@dataclass(slots=True)
class Report:
    """The tensors loaded into one part, and those that are new on purpose."""

    source: str
    loaded: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)  # known names of the source that this part does not use

    def line(self, part: str) -> str:
        """One printed line."""
        new = f", {len(self.new)} new ({_few(self.new)})" if self.new else ""
        unused = f", {len(self.ignored)} not used ({_few(self.ignored)})" if self.ignored else ""
        return f"{part}: {len(self.loaded)} tensors from {self.source}{new}{unused}"


@dataclass(slots=True)
class CheckedPart:
    """A module and the tensors that fit it; nothing is changed before `fill`."""

    module: nn.Module
    report: Report
    tensors: dict[str, Tensor]  # own name -> tensor of the module
    origins: dict[str, tuple[Path, str]]  # own name -> file and name there
    adjust: Mapping[str, Callable[[Tensor], Tensor]]

    def fill(self) -> Report:
        """Copy all tensors into the module."""
        for name, (path, theirs) in self.origins.items():
            with torch.no_grad(), _reader() as opened:  # anew: what was read stays in memory until it closes
                value = opened(path).get_tensor(theirs)
                _fill(self.tensors[name], self.adjust[name](value) if name in self.adjust else value)
            self.report.loaded.append(name)
        for path, inner in self.module.named_modules():
            if f"{path}.{ROWS}".removeprefix(".") in self.report.new:
                refresh_rows(inner)
        return self.report


def folder_of(source: str, **options: Any) -> Path:
    """The local folder of a source; a hub id is downloaded (weights, configs, tokenizer, chat template; never code,
    pickles, folders inside, or the second copy of the weights that Mistral publishes).

    `options`: of `huggingface_hub.snapshot_download`, such as revision and token.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", source) or path.exists():
        raise ValueError(f"{source!r} is neither a folder nor a hub id (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = source.partition("@")
    try:
        options = {
            "revision": revision or None,
            "allow_patterns": ["*.safetensors", "*.json", "*.jinja"],
            "ignore_patterns": ["*/*", "consolidated*"],
        } | options
        return Path(snapshot_download(name, **options))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(
            f"{source!r} could not be downloaded ({type(error).__name__}): name a local folder"
        ) from error


def weight_files(source: str | Path) -> dict[str, Path]:
    """Name of every tensor of a source -> its file; ValueError where none is there or one is missing."""
    folder = folder_of(str(source))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            listed: dict[str, str] = json.loads(index.read_text())["weight_map"]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{index} is not an index of weights ({error})") from error
        missing = sorted({name for name in listed.values() if not (folder / name).is_file()})
        if missing:
            raise ValueError(f"{index} names {_few(missing)}, missing in {folder}: copy all shards")
        return {tensor: folder / name for tensor, name in listed.items()}
    files = sorted(folder.glob("*.safetensors"))
    preferred = [f for f in files if f.name in ("model.safetensors", "open_clip_model.safetensors")]
    if len(files) > 1 and preferred:
        files = preferred[:1]
    if not files:
        pickled = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        more = f" (only {_few(pickled)}, which are pickles and are never opened)" if pickled else ""
        raise ValueError(f"{source} has no .safetensors file{more}: {convert_command(source)} writes them")
    found: dict[str, Path] = {}
    with _reader() as opened:
        for path in files:
            found |= dict.fromkeys(opened(path).keys(), path)
    return found


def tensor_shape(source: str | Path, name: str) -> tuple[int, ...] | None:
    """The shape of one tensor of a source; None where it has none of this name."""
    path = weight_files(source).get(name)
    if path is None:
        return None
    with _reader() as opened:
        return tuple(_shape(opened(path), name, path, None))


def convert_command(source: str | Path) -> str:
    """The command that brings a source into the form that is read here."""
    prefix = "" if Path(source).expanduser().is_dir() else "hub:"
    return f"`uniresxx convert {prefix}{source} OUT`"


@contextmanager
def _reader() -> Iterator[Callable[[Path], Any]]:
    """A function that opens safetensors files, each once; ValueError where one is unreadable."""
    with ExitStack() as stack:
        files: dict[Path, Any] = {}

        def opened(path: Path) -> Any:
            if path not in files:
                try:
                    files[path] = stack.enter_context(safe_open(path, framework="pt"))
                except (SafetensorError, OSError) as error:
                    raise ValueError(f"{path} is not a readable safetensors file ({error})") from error
            return files[path]

        yield opened


def translate(names: Sequence[str], rules: Rules) -> tuple[dict[str, str], list[str], list[str]]:
    """(ours -> theirs, names known and not wanted, names that no rule knows); ValueError where two names meet."""
    ours: dict[str, str] = {}
    ignored, unknown = [], []
    for name in names:
        for pattern, target in rules:
            match = re.fullmatch(pattern, name)
            if match is None:
                continue
            if target is None:
                ignored.append(name)
            else:
                own = match.expand(target)
                if own in ours:
                    raise ValueError(f"{name} and {ours[own]} are both {own}: the folder mixes two layouts")
                ours[own] = name
            break
        else:
            unknown.append(name)
    return ours, ignored, unknown


def load_part(module: nn.Module, source: str, rules: Rules, new: Sequence[str] = ()) -> Report:
    """Fill `module` from `source`: `check_part`, then all tensors. Where one does not fit, none is loaded."""
    return check_part(module, source, rules, new).fill()


def check_part(
    module: nn.Module,
    source: str,
    rules: Rules,
    new: Sequence[str] = (),
    twins: Mapping[str, str] | None = None,
    only: bool = True,
    adjust: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    own_rules: Rules = (),
) -> CheckedPart:
    """What of `source` fills `module`. Strict: every tensor of the module is there, but for those that match `new`
    (adapters and trained token rows among them), and every tensor of the source has a place or a rule.

    `only`: names that no rule knows are an error; a LLaVA folder also holds other parts. `twins`: our name -> our
    name whose tensor it shares. `adjust`: our name -> function of the loaded tensor (rows of a vocabulary), which is
    tried on a tensor without memory first. `own_rules`: rules for the names of `module` too, where releases of
    transformers give it different ones.

    Raises:
        ValueError: tensors are missing, unexpected, or of another shape; a file is damaged.
    """
    files = weight_files(source)
    ours, ignored, unknown = translate(list(files), rules)
    own = {own_name(name, own_rules): value for name, value in module.state_dict(keep_vars=True).items()}
    shared, changes = twins or {}, adjust or {}
    report = Report(source, ignored=ignored)
    origins: dict[str, tuple[Path, str]] = {}
    missing: list[str] = []
    for name in own:
        theirs = ours.get(name) or ours.get(shared.get(name, ""))
        if theirs is not None:
            origins[name] = files[theirs], theirs
            continue
        known_new = is_adapter(name) or any(re.fullmatch(pattern, name) for pattern in new)
        (report.new if known_new else missing).append(name)
    unexpected = sorted(set(ours) - set(own)) + (unknown if only else [])
    wrong = []
    with _reader() as opened:
        for name, (path, theirs) in origins.items():
            shape = _shape(opened(path), theirs, path, changes.get(name))
            if shape != own[name].shape:
                wrong.append(f"{name} {tuple(shape)} instead of {tuple(own[name].shape)}")
    refuse(source, {"missing": missing, "unexpected": unexpected, "of another shape": wrong})
    return CheckedPart(module, report, own, origins, changes)


def _shape(
    file: Any, name: str, path: Path, change: Callable[[Tensor], Tensor] | None
) -> torch.Size | tuple[int, ...]:
    """The shape of a stored tensor after `change`, without reading it."""
    try:
        shape = tuple(file.get_slice(name).get_shape())
    except SafetensorError as error:
        raise ValueError(f"{path} has no {name}, which its index promises: download it again") from error
    return change(torch.empty(shape, device="meta")).shape if change else shape


def _fill(own: Tensor, value: Tensor) -> None:
    """Copy `value` into a tensor of the model. A frozen one of the same dtype on the CPU becomes `value` itself: the
    memory map of its file, which all processes of a machine share."""
    if own.requires_grad or own.dtype != value.dtype or own.device != value.device:
        own.copy_(value)
    else:
        own.data = value


def own_name(name: str, rules: Rules) -> str:
    """A name of our module without adapters, as the rules call it: releases of transformers differ."""
    plain = name.replace(".base_layer.", ".")
    return next(iter(translate([plain], rules)[0]), plain)


def refuse(source: str, wrong: Mapping[str, Sequence[str]]) -> None:
    """ValueError that names the first few tensors of each kind; nothing where there are none."""
    problems = [f"{len(names)} {what}: {_few(sorted(names))}" for what, names in wrong.items() if names]
    if problems:
        raise ValueError(f"{source} does not fit the model: {'; '.join(problems)}")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def load_sam(sam: nn.Module, source: str) -> Report:
    """transformers' SamModel, Sam2Model, or the image half of Sam2VideoModel; SAM under Meta's names."""
    meta = any(name.startswith("image_encoder.") for name in weight_files(source))
    return check_part(sam, source, META_SAM_RULES if meta else SAM_RULES, twins=SAM_TWINS).fill()
