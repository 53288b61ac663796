"""Released LISA, GSVA and M2SA weights -> a folder that `load_lisa` reads.

LISA: shards as merge_lora_weights_and_save_hf_model.py writes them, without CLIP. GSVA: one .bin of zero_to_fp32
whose names carry peft's prefix, with adapters, which are added to the weights they adapt. SAM's names are Meta's.
Every tensor must find its place, and every place its tensor.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from safetensors import safe_open
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from mllm.language import parameters_without_memory
from mllm.loading import translate
from mllm.sam_names import META_SAM_RULES
from mllm.tower_loading import LOW_RULES
from uniresxx.checkpoints.convert import as_safetensors, weight_shards
from uniresxx.checkpoints.convert_tokenizer import fast_tokenizer
from uniresxx.checkpoints.folders import Log, publish_model
from uniresxx.checkpoints.publish import Content
from uniresxx.checkpoints.tensors import (
    CONFIG,
    INDEX,
    TOKENIZER,
    WEIGHTS,
    read_json,
    tensor_names,
    write_tensors,
)
from uniresxx.errors import InputError
from uniresxx.files import to_json
from uniresxx.segmenters.lisa.config import Conversation, LisaConfig, Peer
from uniresxx.segmenters.lisa.modeling import Lisa
from uniresxx.segmenters.lisa.prompts import WORDINGS, LisaVocabulary
from uniresxx.segmenters.lisa.sizes import config_of

SHARD_BYTES = 4 * 2**30  # of a written file, and of memory (our choice)
LORA_ALPHA = 16.0  # GSVA main.py, --lora_alpha
_META, _PEFT = "model.visual_model.", "base_model.model."
_ADAPTER = re.compile(r"(.*)\.lora_([AB])(?:\.default)?\.weight")
RULES: Sequence[tuple[str, str | None]] = (
    (rf"{re.escape(_META)}mask_decoder\.compress_vit\.(.*)", r"early.\1"),
    *((re.escape(_META) + there, here if here is None else f"sam.{here}") for there, here in META_SAM_RULES),
    (r".*(?:rotary_emb\.inv_freq|embeddings\.position_ids)", None),
    (r"model\.vision_tower\.vision_tower\.(?:vision_model\.)?(.*)", r"clip.\1"),
    (r"model\.mm_projector\.(weight|bias)", r"projector.0.\1"),
    (r"model\.mm_projector\.([02]\..*)", r"projector.\1"),
    (r"model\.text_hidden_fcs\.0\.([02]\..*)", r"prompt.\1"),
    (r"model\.((?:embed_tokens|layers|norm)\..*)", r"llm.model.\1"),
    (r"lm_head\.weight", "llm.lm_head.weight"),
)
_POSITIONS = "shared_image_embedding.positional_embedding"
TWINS = {"sam.prompt_encoder.shared_embedding.positional_embedding": f"sam.{_POSITIONS}"}
_SHOWN = 4

Read = Callable[[], Tensor]


def convert_peer(
    peer: Peer,
    source: Path,
    out: Path,
    log: Log,
    *,
    clip: Path | None = None,
    llava: Path | None = None,
    conversation: Conversation = "llava_v1",
    lora_alpha: float = LORA_ALPHA,
) -> list[str]:
    """Convert a released model; returns the names of the files written to `out`.

    Args:
        peer: whose model it is.
        source: the released folder, or a file with the weights.
        out: folder for config.json, weights and tokenizer.json.
        log: gets lines about what was left out.
        clip: folder of the CLIP tower; None: its weights are among the others.
        llava: folder with the config and the tokenizer, where `source` has none (GSVA).
        conversation: the frame of questions that the model was trained with.
        lora_alpha: of the adapters, which the file does not hold.

    Raises:
        InputError: the files are not of this peer, do not fit together, or cannot be opened; `out` is as it was.
    """
    if not source.exists():
        raise InputError(f"{source} does not exist: name a released folder, or hub:OWNER/NAME")
    about = llava or (source if source.is_dir() else source.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".converting-", dir=out.parent) as work:
        tensors = _readers(source, Path(work), log)
        parts = translated(tensors, source, lora_alpha)
        if clip is not None:
            parts |= clip_tensors(clip, parts, Path(work), log)
        like = {name: read().to("meta") for name, read in parts.items()}  # shape and dtype of each
        shapes = {name: tuple(tensor.shape) for name, tensor in like.items()}
        config = config_of(peer, conversation, read_json(about / CONFIG), shapes, clip, _dtype(like))
        vocabulary = vocabulary_of(about, peer, shapes["llm.model.embed_tokens.weight"][0])
        _check(source, config, vocabulary, shapes)
        adapters = sum(_ADAPTER.fullmatch(name) is not None for name in tensors) // 2
        if adapters:
            log(f"{adapters} adapters are added to their weights, alpha {lora_alpha:g}")
        files = _weights(parts, like)
        files[TOKENIZER] = vocabulary.to_json().encode()
        files[CONFIG] = to_json(config.to_dict())
        return publish_model(out, files)


def _opened(source: Path, target: Path, log: Log) -> Path:
    """The file itself where it is safetensors, else its conversion at `target`."""
    if source.suffix == ".safetensors":
        return source
    as_safetensors(source, target, log)
    return target


def _readers(source: Path, work: Path, log: Log) -> dict[str, Read]:
    """What reads each tensor of a file or folder, by name without peft's prefixes; `work` gets converted pickles."""
    found: dict[str, Read] = {}
    for shard in weight_shards(source, log):
        path = _opened(shard, work / f"{len(list(work.iterdir()))}.safetensors", log)
        for name in tensor_names(path):
            plain = name.removeprefix(_PEFT).replace(".base_layer.", ".")
            if plain in found:
                raise InputError(f"{plain} is there twice: the weights are of two models")
            found[plain] = partial(_tensor, path, name)
    return found


def _tensor(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def translated(tensors: Mapping[str, Read], source: Path, lora_alpha: float) -> dict[str, Read]:
    """Readers by our names, adapters merged. InputError where names are unknown."""
    adapters: dict[str, dict[str, Read]] = {}
    plain: dict[str, Read] = {}
    for name, read in tensors.items():
        match = _ADAPTER.fullmatch(name)
        if match:
            adapters.setdefault(f"{match[1]}.weight", {})[match[2]] = read
        else:
            plain[name] = read
    try:
        ours, _, unknown = translate(list(plain), RULES)
    except ValueError as error:
        raise InputError(f"{source}: {error}") from error
    lost = [name for name, pair in adapters.items() if name not in plain or set(pair) != {"A", "B"}]
    if unknown or lost:
        raise InputError(
            f"{source} is not a released LISA, GSVA or M2SA: {len(unknown) + len(lost)} names have no place "
            f"({_few(unknown + lost)})"
        )
    for name, pair in adapters.items():
        plain[name] = partial(_merged, name, plain[name], pair["A"], pair["B"], lora_alpha)
    found = {own: plain[theirs] for own, theirs in ours.items()}
    return found | {twin: found[own] for twin, own in TWINS.items() if own in found}


def _merged(name: str, weight: Read, a: Read, b: Read, alpha: float) -> Tensor:
    """W + alpha / r B A, in the dtype of W."""
    base, a_rD, b_Dr = weight(), a(), b()
    if b_Dr.shape[1:] != a_rD.shape[:1] or base.shape != b_Dr.shape[:1] + a_rD.shape[1:]:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (base, a_rD, b_Dr))
        raise InputError(f"the adapter of {name} does not fit it: {shapes} are of different models")
    added = (alpha / len(a_rD)) * (b_Dr.float() @ a_rD.float())
    return (base.float() + added).to(base.dtype)


def clip_tensors(clip: Path, parts: Mapping[str, Read], work: Path, log: Log) -> dict[str, Read]:
    """The tower of a CLIP folder."""
    if any(name.startswith("clip.") for name in parts):
        log(f"the weights have a CLIP tower of their own, which is used; {clip} gives its config")
        return {}
    readers = _readers(clip, work, log)
    ours, _, unknown = translate(list(readers), LOW_RULES)
    if unknown:
        raise InputError(f"{clip} is not a CLIP of transformers ({_few(unknown)})")
    return {f"clip.{own}": readers[theirs] for own, theirs in ours.items()}


def vocabulary_of(folder: Path, peer: Peer, rows: int) -> LisaVocabulary:
    """The tokenizer of a folder with the peer's tokens; InputError where it does not fit the token rows."""
    path = folder / TOKENIZER
    if (folder / "tokenizer.model").is_file():
        tokenizer = fast_tokenizer(folder)
    elif path.is_file():
        tokenizer = Tokenizer.from_file(str(path))
    else:
        raise InputError(
            f"{folder} has neither tokenizer.model nor {TOKENIZER}: copy the tokenizer of the release"
        )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in WORDINGS[peer].tokens])
    if tokenizer.get_vocab_size() != rows:
        raise InputError(
            f"the tokenizer of {folder} has {tokenizer.get_vocab_size()} tokens with those of {peer}, "
            f"the weights have {rows} token rows: they are of different models"
        )
    return LisaVocabulary(tokenizer, peer)


def _dtype(like: Mapping[str, Tensor]) -> str:
    """Of the language model."""
    tensor = like.get("llm.lm_head.weight")
    if tensor is None:
        raise InputError("the weights lack lm_head.weight: they are no whole LISA, GSVA or M2SA")
    return str(tensor.dtype).removeprefix("torch.")


def _check(
    source: Path, config: LisaConfig, vocabulary: LisaVocabulary, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """InputError with what is missing, unexpected or of another shape."""
    with parameters_without_memory():
        wanted = {name: tuple(t.shape) for name, t in Lisa(config, vocabulary).state_dict().items()}
    missing, unexpected = sorted(wanted.keys() - shapes.keys()), sorted(shapes.keys() - wanted.keys())
    both = sorted(wanted.keys() & shapes.keys())
    shaped = [f"{n} {shapes[n]} instead of {wanted[n]}" for n in both if shapes[n] != wanted[n]]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": shaped}
    problems = [f"{len(names)} {what}: {_few(names)}" for what, names in wrong.items() if names]
    if problems:
        hint = "; name its CLIP with --clip DIR" if any(n.startswith("clip.") for n in missing) else ""
        raise InputError(f"{source} is not a whole {config.peer}: {'; '.join(problems)}{hint}")


def _weights(parts: Mapping[str, Read], like: Mapping[str, Tensor]) -> dict[str, Content]:
    """Contents of the weight files, each read only while it is written."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in like.items():
        if groups[-1] and size + tensor.nbytes > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor.nbytes
    if len(groups) == 1:
        return {WEIGHTS: partial(_write, parts, groups[0])}
    files = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    contents: dict[str, Content] = {
        file: partial(_write, parts, names) for file, names in zip(files, groups, strict=True)
    }
    where = {name: file for file, names in zip(files, groups, strict=True) for name in names}
    return contents | {INDEX: to_json({"metadata": {}, "weight_map": where})}


def _write(parts: Mapping[str, Read], names: Sequence[str], path: Path) -> None:
    write_tensors(path, {name: parts[name]() for name in names})


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
