"""Published weights in pickles (.bin, .pth, .pt) as safetensors: same names, same dtypes, one shard at a time.

Each pickle is opened by a process of its own (convert_child.py). Nothing appears in the folder before all of it is
there. Configs are copied, and a sentencepiece tokenizer gets the fast form beside them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from uniresxx.checkpoints.convert_tokenizer import fast_tokenizer
from uniresxx.checkpoints.folders import Log, publish_model
from uniresxx.checkpoints.publish import Content
from uniresxx.checkpoints.tensors import CONFIG, INDEX, TOKENIZER, WEIGHTS, read_json, tensor_names
from uniresxx.errors import InputError
from uniresxx.files import to_json

PICKLES = (".bin", ".pth", ".pt", ".ckpt")
SLOW_TOKENIZER = "tokenizer.model"
_NOT_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|rng_state.*|scaler)\.\w+")
_PACKAGE = Path(__file__).resolve().parents[2]
_LANGUAGE = r"model\.(?:layers|embed_tokens|norm|mm_projector|image_newline)(?:\..*)?|lm_head\..*"
# What names look like in published files; the most names decide, the first at a tie. peft's prefix does not count.
LAYOUTS: Mapping[str, str] = {
    "SAM as Meta publishes it": r"(image_encoder|prompt_encoder|mask_decoder)\..*",
    "a language model, with the projector of LLaVA where it has one": _LANGUAGE,
    "LISA, GSVA or M2SA (give `uniresxx convert lisa`, `gsva` or `m2sa`)": _LANGUAGE
    + r"|model\.(vision_tower|visual_model|text_hidden_fcs)\..*",
    "CLIP of transformers": r"(vision_model|text_model|visual_projection|text_projection)\..*|logit_scale",
    "a model of open_clip": r"(visual|transformer|token_embedding|ln_final|text)\..*"
    r"|positional_embedding|text_projection|logit_scale|logit_bias|attn_mask",
    "ConvNeXt of timm": r"(stem|stages|head|norm_pre)\..*",
}
_SHOWN = 4


def convert(source: Path, out: Path, log: Log) -> list[str]:
    """Write the weights of a file or a folder as safetensors into `out`; returns the names of the files.

    Args:
        source: a file, or a folder with weights, and with the configs and the tokenizer that are to come along.
        out: files that this program did not write there stay as they are.
        log: gets lines about what was left out and how far the names are known.

    Raises:
        InputError: nothing to convert, or a file that cannot be; `out` is as it was.
    """
    if source.resolve() == out.resolve():
        raise InputError(f"{out} is the source itself: name another folder")
    if not source.exists():
        raise InputError(f"{source} does not exist: name a file, a folder, or hub:OWNER/NAME")
    shards = weight_shards(source, log)
    names: list[str] = []
    files: dict[str, Content] = {}
    written = [WEIGHTS] if len(shards) == 1 else _shard_names(len(shards))
    for target, (path, listed) in zip(written, shards.items(), strict=True):
        files[target] = partial(_write_shard, path, listed, names, log)
    if len(shards) > 1:
        files[INDEX] = partial(_write_index, written)
    done = publish_model(out, files | companions(source))
    log(layout_line(names))
    return done


def weight_shards(source: Path, log: Log) -> dict[Path, set[str] | None]:
    """The files with the weights of a file or folder, and the names that an index lists for each (None: no index).

    Safetensors are preferred where a folder has both. InputError where there is nothing, or no telling which.
    """
    if source.is_file():
        return {source: None}
    index = next((p for p in (source / INDEX, source / "pytorch_model.bin.index.json") if p.is_file()), None)
    if index is not None:
        return _listed_shards(index)
    found = sorted(p for p in source.iterdir() if p.is_file() and not _NOT_WEIGHTS.fullmatch(p.name))
    safe = [p for p in found if p.suffix == ".safetensors"]
    pickled = [p for p in found if p.suffix in PICKLES]
    if safe and pickled:
        log(f"left out, because safetensors are there: {_few([p.name for p in pickled])}")
    chosen = safe or pickled
    if not chosen:
        raise InputError(f"{source} has no file of weights ({', '.join(('.safetensors', *PICKLES))})")
    numbered = [p for p in chosen if re.search(r"-\d{5}-of-\d{5}\.\w+$", p.name)]
    if (len(chosen) > 1 and len(numbered) != len(chosen)) or (numbered and _incomplete(numbered)):
        raise InputError(
            f"{source} has weights ({_few([p.name for p in chosen])}) that are not one whole set of shards: name the "
            "file, or complete the folder"
        )
    return dict.fromkeys(chosen)


def _incomplete(numbered: list[Path]) -> bool:
    total = re.search(r"-of-(\d{5})", numbered[0].name)
    return total is None or int(total[1]) != len(numbered)


def _listed_shards(index: Path) -> dict[Path, set[str] | None]:
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(v, str) for v in listed.values()):
        raise InputError(f"{index} is not an index of weights: download it again")
    missing = sorted({v for v in listed.values() if Path(v).name != v or not (index.parent / v).is_file()})
    if missing:
        raise InputError(f"{index} names {_few(missing)}, missing in {index.parent}: copy all shards")
    return {
        index.parent / file: {name for name, at in listed.items() if at == file}
        for file in sorted(set(listed.values()))
    }


def _shard_names(count: int) -> list[str]:
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _write_shard(source: Path, listed: set[str] | None, names: list[str], log: Log, target: Path) -> None:
    """Convert one file; `names` grows by its tensors."""
    as_safetensors(source, target, log)
    own = tensor_names(target)
    if listed is not None and listed - set(own):
        raise InputError(
            f"{source} lacks {_few(sorted(listed - set(own)))}, which its index promises: download it again"
        )
    if set(own) & set(names):
        raise InputError(
            f"{source} holds {_few(sorted(set(own) & set(names)))} again: remove the double file"
        )
    names.extend(own)


def as_safetensors(source: Path, target: Path, log: Log) -> None:
    """Write the tensors of a pickle to `target`; a safetensors file is copied. InputError: it cannot be opened."""
    if source.suffix == ".safetensors":
        tensor_names(source)  # refuses what is no such file
        shutil.copyfile(source, target)
        return
    command = [sys.executable, "-m", "uniresxx.checkpoints.convert_child", str(source), str(target)]
    path = os.pathsep.join(p for p in (str(_PACKAGE), os.environ.get("PYTHONPATH")) if p)
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}, check=False
    )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"])[-1]
        if done.returncode < 0 or "alloc" in last:
            last = "more memory was asked for than its size explains"
        if "No space left" in last:
            raise OSError(28, "the disk is full", str(target)) from None
        raise InputError(f"{source} could not be opened: {last[:200]}") from None
    if "error" in answer:
        raise InputError(f"{source} {answer['error']}: download it again, from its publisher")
    if answer["left_out"]:
        log(f"{source.name}: left out, because no tensors: {_few(answer['left_out'])}")


def _write_index(shards: list[str], target: Path) -> None:
    """The index of shards that lie beside it."""
    where = {name: file for file in shards for name in tensor_names(target.parent / file)}
    size = sum((target.parent / file).stat().st_size for file in shards)
    target.write_bytes(to_json({"metadata": {"total_size": size}, "weight_map": where}))


def companions(source: Path) -> dict[str, Content]:
    """Configs and tokenizer files of a folder as contents that copy them; the config comes last."""
    if source.is_file():
        return {}
    files: dict[str, Content] = {}
    for path in sorted(source.iterdir()):
        wanted = path.suffix == ".json" and not path.name.endswith(".index.json")
        if path.is_file() and path.name != CONFIG and (wanted or path.name in (SLOW_TOKENIZER, "merges.txt")):
            files[path.name] = path.read_bytes()
    if SLOW_TOKENIZER in files and TOKENIZER not in files:
        files[TOKENIZER] = fast_tokenizer(source).to_str(pretty=False).encode()
    config = source / CONFIG
    return files | ({CONFIG: config.read_bytes()} if config.is_file() else {})


def layout_line(names: list[str]) -> str:
    """Which published layout the names have, and which of them it does not explain."""
    known = {
        what: [n for n in names if re.fullmatch(pattern, n.removeprefix("base_model.model."))]
        for what, pattern in LAYOUTS.items()
    }
    best = max(known, key=lambda what: len(known[what]))
    if not known[best]:
        return f"{len(names)} tensors; no layout that this version knows ({_few(names)})"
    other = sorted(set(names) - set(known[best]))
    rest = f"; not of it: {_few(other)}" if other else ""
    return f"{len(names)} tensors, {len(known[best])} named as {best}{rest}"


def downloaded(repository: str) -> Path:
    """The folder of a hub repository: its safetensors where it has any, else its pickles; configs, tokenizer."""
    from huggingface_hub import list_repo_files
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from mllm.loading import folder_of

    name, _, revision = repository.partition("@")
    try:
        files = list_repo_files(name, revision=revision or None)
        safe = any(file.endswith(".safetensors") and "/" not in file for file in files)
        weights = ["*.safetensors"] if safe else [f"*{suffix}" for suffix in PICKLES]
        patterns = [*weights, "*.json", SLOW_TOKENIZER, "merges.txt"]
        return folder_of(repository, allow_patterns=patterns, ignore_patterns=["*/*"])
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        line = " ".join(str(error).split())[:160]
        raise InputError(f"hub:{repository} could not be downloaded ({line}): name a local folder") from None


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
