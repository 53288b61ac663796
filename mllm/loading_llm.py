"""Pretrained language models into our names: any causal one of transformers, alone or inside LLaVA-1.5.

Shapes: V vocabulary, D width.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor

from mllm.chat_templates import ChatTemplate
from mllm.loading import LLAVA_VIT_RULES, Report, Rules, folder_of, load_part, refuse, weight_files
from mllm.modeling import MLLM
from mllm.pretrained_config import build_config, read_config
from mllm.tokens import ASSISTANT, END, PAD, USER, Vocabulary

# Layouts: transformers < 4.52 and as its save_pretrained writes ("language_model.model."), transformers >= 4.52 in
# memory ("model.language_model."), and the original LLaVA release ("model.layers.", "model.mm_projector.").
LLM_RULES: Rules = (
    (r"(?:language_model\.)?model\.((?:embed_tokens|layers|norm)\..*)", r"model.\1"),
    (r"model\.language_model\.((?:embed_tokens|layers|norm)\..*)", r"model.\1"),
    (r"(?:language_model\.)?(lm_head\..*)", r"\1"),
    (r".*rotary_emb\.inv_freq", None),
)
PROJECTOR_RULES: Rules = (
    (r"(?:model\.)?multi_modal_projector\.linear_1\.(.*)", r"0.\1"),
    (r"(?:model\.)?multi_modal_projector\.linear_2\.(.*)", r"2.\1"),
    (r"model\.mm_projector\.([02]\..*)", r"\1"),
)
# New rows start as the mean of these pieces, the others as the mean of all rows (our choice).
FIRST_ROWS = {USER: "USER:", ASSISTANT: "ASSISTANT:", END: "</s>", PAD: "<unk>"}
# Of a language model's config, what decides neither a weight nor what is computed from it here.
_FREE_KEYS = {
    "architectures", "attention_dropout", "bos_token_id", "dtype", "eos_token_id", "initializer_range", "layer_types",
    "max_position_embeddings", "max_window_layers", "pad_token_id", "sliding_window", "transformers_version",
    "use_cache", "use_sliding_window", "vocab_size",
}  # fmt: skip


def load_llm(model: MLLM, source: str) -> Report:
    """The language model from a folder or hub id of its own.

    Rows of the vocabulary that the source does not have, and those of our special tokens, start from `first_rows`.

    Raises:
        ValueError: `mllm.llm` is not the source's config, or its tensors do not fit.
    """
    folder = folder_of(source)
    theirs = build_config(read_config(folder), f"{folder}/config.json").to_dict()
    ours = model.config.llm_config.to_dict()
    differing = [
        f"{key} is {theirs.get(key)!r} there and {ours.get(key)!r} in mllm.llm"
        for key in sorted((theirs.keys() | ours.keys()) - _FREE_KEYS)
        if theirs.get(key) != ours.get(key)
    ]
    if differing:
        raise ValueError(
            f"{source} is another language model: {'; '.join(differing[:3])}; "
            f"give --model.mllm.llm {folder} vocab_size={model.config.token_count}"
        )
    return _load_llm(model, source, only=True)


def load_llava(model: MLLM, source: str, with_tower: bool) -> list[Report]:
    """LLM, projector and, with `with_tower`, the low tower, of LLaVA-1.5 in any of its published layouts.

    Rows of the vocabulary as in `load_llm`.
    """
    if model.config.projector != "mlp2x_gelu":
        raise ValueError(f"projector={model.config.projector!r}: LLaVA-1.5 has mllm.projector 'mlp2x_gelu'")
    names = list(weight_files(folder_of(source)))
    every_rule = (*LLM_RULES, *PROJECTOR_RULES, *LLAVA_VIT_RULES)
    refuse(source, {"unexpected": [n for n in names if not any(re.fullmatch(p, n) for p, _ in every_rule)]})
    reports = [_load_llm(model, source, only=False)]
    reports.append(load_part(model.image_tokens.low, source, PROJECTOR_RULES, only=False))
    if with_tower:
        reports.append(load_part(model.low.vit, source, LLAVA_VIT_RULES, only=False))
    return reports


def _load_llm(model: MLLM, source: str, only: bool) -> Report:
    grow = partial(grown_rows, vocabulary=model.vocabulary, count=model.config.token_count, source=source)
    tied = model.config.llm_config.tie_word_embeddings
    twins = {"lm_head.weight": "model.embed_tokens.weight"} if tied else {}
    adjust = {"model.embed_tokens.weight": grow, "lm_head.weight": grow}
    return load_part(model.llm, source, LLM_RULES, twins=twins, only=only, adjust=adjust)


def grown_rows(rows_VD: Tensor, vocabulary: Vocabulary, count: int, source: str) -> Tensor:
    """The token rows of `source` with `count` rows, those of our special tokens from `first_rows`."""
    if len(rows_VD) > count:
        raise ValueError(
            f"{source} has {len(rows_VD)} token rows: give --model.mllm.llm vocab_size={len(rows_VD)}"
        )
    grown = rows_VD.float().mean(dim=0).expand(count, -1).clone()
    grown[: len(rows_VD)] = rows_VD
    return first_rows(grown, vocabulary)


def first_rows(rows_VD: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Token rows with those of the special tokens set to the mean of what they stand for."""
    known = vocabulary.tokenizer.get_vocab(with_added_tokens=True)
    average = rows_VD.float().mean(dim=0)
    for token in vocabulary.special:
        name = vocabulary.tokenizer.id_to_token(token)
        text = FIRST_ROWS.get(name or "", "")
        pieces = [known[text]] if text in known else vocabulary.encode(text) if text else []
        rows_VD[token] = rows_VD[pieces].float().mean(dim=0) if pieces else average
    return rows_VD


def pretrained_vocabulary(source: str) -> Vocabulary:
    """The tokenizer of a language model with our special tokens; ValueError where `tokenizer.json` is missing."""
    path = folder_of(source) / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: save the tokenizer in the fast form (tokenizer.json) first")
    return Vocabulary.extend(Tokenizer.from_file(str(path)))


def chat_template_of(source: str) -> ChatTemplate | None:
    """The chat format of a source that has a Jinja template, with the picture before the first question.

    A conversation of two known questions and answers is rendered and cut where these stand.

    Returns:
        None where the source has no template.

    Raises:
        ValueError: the template does not write the texts as they are, or has no end token of one piece.
    """
    from transformers import AutoTokenizer  # loads every kind of tokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder_of(source))
    if not tokenizer.chat_template:
        return None
    user = [{"role": "user", "content": f"question{number}question"} for number in (1, 2)]
    answer = [{"role": "assistant", "content": f"answer{number}answer"} for number in (1, 2)]

    def text(messages: list[dict[str, str]], prompt: bool) -> str:
        options = {"add_generation_prompt": prompt, "enable_thinking": False}  # Qwen3's; others ignore it
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))

    whole = text([user[0], answer[0], user[1], answer[1]], prompt=False)
    parts = re.fullmatch(
        r"(.*)question1question(.*)answer1answer(.*)question2question(.*)answer2answer(.*)", whole, re.DOTALL
    )
    prompted = text(user[:1], prompt=True).partition("question1question")[2]
    ends = sorted(map(re.escape, tokenizer.get_added_vocab()), key=len, reverse=True)
    between = parts and re.match(rf"({'|'.join(ends)})(.*)", parts[3], re.DOTALL)
    if not parts or not between:
        raise ValueError(f"{source}: its chat template cannot be cut into pieces: give --model.mllm.chat")
    before_answer = parts[4] if parts[4].startswith(prompted) else prompted
    return ChatTemplate(parts[1], "\n", between[2], before_answer, between[1])
