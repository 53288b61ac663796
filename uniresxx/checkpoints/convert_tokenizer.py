"""A sentencepiece model (`tokenizer.model`) as the fast form (`tokenizer.json`).

The BPE models of Llama, Vicuna, LLaVA and Mistral. Token ids equal those of transformers' slow LlamaTokenizer in its
first behaviour (`legacy`), which these models were trained with: every piece of text between special tokens begins
with a blank (tests/test_convert.py compares them with recorded ids).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE

from uniresxx.checkpoints.tensors import read_json
from uniresxx.errors import InputError

_NORMAL, _UNKNOWN, _CONTROL, _USER = 1, 2, 3, 4  # kinds of pieces, sentencepiece_model.proto
_BPE = 2  # kind of model
BLANK = "▁"


def fast_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder with tokenizer.model, and with added_tokens.json or tokenizer_config.json.

    Raises:
        InputError: the file is no such model, is of a kind without a faithful fast form, or an added token's id does
            not follow the others.
    """
    path = folder / "tokenizer.model"
    proto = _read(path)
    spec = proto.normalizer_spec
    if proto.trainer_spec.model_type != _BPE or spec.precompiled_charsmap or spec.remove_extra_whitespaces:
        raise InputError(
            f"{path} is not a BPE model of Llama's kind (without text normalisation): save the tokenizer as "
            "tokenizer.json with transformers, and put it beside the weights"
        )
    pieces = [(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    tokenizer = _bpe(pieces)
    steps: list[Any] = [normalizers.Prepend(BLANK)] if spec.add_dummy_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", BLANK)])
    last = [decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), *last]
    )
    special = [piece for piece, _, kind in pieces if kind in (_UNKNOWN, _CONTROL)]
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False) for piece in special])
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece, _, kind in pieces if kind == _USER])
    _add_listed(tokenizer, folder)
    if "<s>" in special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return tokenizer


def _read(path: Path) -> Any:
    try:
        from transformers.convert_slow_tokenizer import import_protobuf

        messages = import_protobuf()
    except ImportError:
        raise InputError(
            f"{path} is read with the package protobuf, which is missing: pip install protobuf"
        ) from None
    from google.protobuf.message import DecodeError

    proto = messages.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise InputError(f"{path} is not a sentencepiece model ({error}): download it again") from None
    if not proto.pieces:
        raise InputError(f"{path} is a sentencepiece model without pieces: download it again")
    return proto


def _bpe(pieces: list[tuple[str, float, int]]) -> Tokenizer:
    """BPE whose merges make every normal piece of two others, the highest score first."""
    normal = {
        piece: (-score, number) for number, (piece, score, kind) in enumerate(pieces) if kind == _NORMAL
    }
    merges = sorted(
        (*rank, piece[:cut], piece[cut:])
        for piece, rank in normal.items()
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    )
    unknown = next((piece for piece, _, kind in pieces if kind == _UNKNOWN), None)
    return Tokenizer(
        BPE(
            vocab={piece: number for number, (piece, _, _) in enumerate(pieces)},
            merges=[(left, right) for *_, left, right in merges],
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )


def _add_listed(tokenizer: Tokenizer, folder: Path) -> None:
    """Add the tokens of added_tokens.json or of tokenizer_config.json, in the order of their ids."""
    listed: dict[int, str] = {}
    if (folder / "added_tokens.json").is_file():
        listed = {int(number): token for token, number in read_json(folder / "added_tokens.json").items()}
    if (folder / "tokenizer_config.json").is_file():
        more = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
        listed |= {int(number): value["content"] for number, value in more.items()}
    for number, token in sorted(listed.items()):
        size, known = tokenizer.get_vocab_size(), tokenizer.token_to_id(token)
        if (size if known is None else known) != number:
            raise InputError(
                f"{folder} gives the added token {json.dumps(token)[:40]} the id {number}, which does not follow the "
                f"{size} other tokens: the tokenizer files are of different models"
            )
        if known is None:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False)])
