"""Pretrained language models into our names: any causal one of transformers, alone or inside a LLaVA.

Shapes: V vocabulary, D width.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any, get_args

from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedConfig

from mllm.chat_templates import ChatTemplate
from mllm.config import Projector
from mllm.loading import (
    CheckedPart,
    Report,
    Rules,
    check_part,
    convert_command,
    folder_of,
    refuse,
    weight_files,
)
from mllm.modeling import MLLM
from mllm.pretrained_config import build_config, read_config
from mllm.source_config import (
    FREE_IN_LANGUAGE_MODEL,
    FREE_IN_TOWER,
    LlavaConfigs,
    llava_configs,
    refuse_other_config,
)
from mllm.tokens import ASSISTANT, END, PAD, SPECIAL_TOKENS, USER, Vocabulary
from mllm.tower_loading import LLAVA_TOWER_RULES, check_low_tensors, check_pixels

# Layouts: transformers < 4.52 and as its save_pretrained writes ("language_model.model."), transformers >= 4.52 in
# memory ("model.language_model."), and the original LLaVA release ("model.layers.", "model.mm_projector.").
LLM_RULES: Rules = (
    (r".*rotary_emb\.inv_freq", None),  # computed from the config
    (r"(?:language_model\.)?model\.((?:embed_tokens|layers|norm)\..*)", r"model.\1"),
    (r"model\.language_model\.((?:embed_tokens|layers|norm)\..*)", r"model.\1"),
    (r"(?:language_model\.)?(lm_head\..*)", r"\1"),
)
PROJECTOR_RULES: Rules = (
    (r"(?:model\.)?multi_modal_projector\.linear_1\.(.*)", r"0.\1"),
    (r"(?:model\.)?multi_modal_projector\.linear_2\.(.*)", r"2.\1"),
    (r"model\.mm_projector\.((?:[02]\.)?(?:weight|bias))", r"\1"),
    (r"(?:model\.)?image_newline", None),  # ends the rows of a picture that is cut into tiles
)
# New rows start as the mean of these pieces, the others as the mean of all rows (our choice).
FIRST_ROWS = {USER: "USER:", ASSISTANT: "ASSISTANT:", END: "</s>", PAD: "<unk>"}


def load_llm(model: MLLM, source: str) -> Report:
    """The language model from a folder or hub id of its own.

    Rows of the vocabulary that the source does not have, and those of our special tokens, start from `first_rows`.

    Raises:
        ValueError: `mllm.llm` is not the source's config, or its tensors or its tokenizer do not fit.
    """
    folder = folder_of(source)
    theirs = build_config(read_config(folder), f"{folder}/config.json")
    words = [str(folder), f"vocab_size={_rows(model, theirs)}"]
    refuse_other_config(
        source, theirs, model.config.llm_config, "mllm.llm", FREE_IN_LANGUAGE_MODEL, words=words
    )
    return _checked_llm(model, source, theirs, only=True).fill()


def load_llava(model: MLLM, source: str, with_tower: bool) -> list[Report]:
    """LLM, projector and, with `with_tower`, the low tower, of a LLaVA in any of its published layouts.

    LLaVA 1.6 and OneVision also cut a picture into tiles; here the whole picture is one input, as in 1.5. Rows of the
    vocabulary as in `load_llm`.

    Raises:
        ValueError: the config is of another model, or tensors or the tokenizer do not fit; nothing is loaded then.
    """
    configs = llava_configs(folder_of(source))
    _check_llava(model, source, configs, with_tower)
    names = list(weight_files(source))
    every_rule = (*LLM_RULES, *PROJECTOR_RULES, *LLAVA_TOWER_RULES)
    refuse(source, {"unexpected": [n for n in names if not any(re.fullmatch(p, n) for p, _ in every_rule)]})
    if with_tower and not any(re.fullmatch(pattern, n) for pattern, _ in LLAVA_TOWER_RULES for n in names):
        raise ValueError(
            f"{source} has no tower inside, as LLaVA-1.5 was first published: give --model.weights.low too"
        )
    parts = [
        _checked_llm(model, source, configs.language, only=False),
        check_part(model.image_tokens.low, source, PROJECTOR_RULES, only=False),
    ]
    if with_tower:
        parts.append(check_low_tensors(model, source, LLAVA_TOWER_RULES, only=False))
    return [part.fill() for part in parts]


def _check_llava(model: MLLM, source: str, configs: LlavaConfigs, with_tower: bool) -> None:
    """ValueError where the parts of a LLaVA are not those of the model's config."""
    c = model.config
    if configs.projector != c.projector:
        known = configs.projector in get_args(Projector)
        advice = f"give --model.mllm.projector {configs.projector}" if known else "it cannot be used here"
        raise ValueError(
            f"{source} has the projector {configs.projector!r}, mllm.projector is {c.projector!r}: {advice}"
        )
    rows = {"vocab_size": _rows(model, configs.language)}
    refuse_other_config(
        source, configs.language, c.llm_config, "mllm.llm", FREE_IN_LANGUAGE_MODEL, wanted=rows
    )
    if with_tower:
        if configs.tower is not None:
            refuse_other_config(source, configs.tower, c.low_config, "mllm.low", FREE_IN_TOWER)
        check_pixels(source, c.pixel_stats.low, "mllm.low_stats")
    layers, ours = c.low_config.num_hidden_layers, c.low_select_layer
    theirs = configs.layer
    if theirs is None and c.low_config.model_type == "clip_vision_model":
        theirs = configs.first_layer % (layers + 1)
    elif theirs is None:  # the first release drops SigLIP's last layer and takes the output of the one before
        theirs = layers if with_tower else layers - 1
    if ours == -1 or ours % (layers + 1) != theirs:
        raise ValueError(
            f"{source} takes the output of layer {theirs} of its tower before the final norm, and "
            f"mllm.low_select_layer={ours} of {layers} layers is another: give --model.mllm.low_select_layer {theirs}"
        )


def _rows(model: MLLM, theirs: PreTrainedConfig) -> int:
    """Token rows that hold those of a source and of the vocabulary."""
    return max(int(theirs.vocab_size), model.vocabulary.rows)


def _checked_llm(model: MLLM, source: str, theirs: PreTrainedConfig, only: bool) -> CheckedPart:
    grow = partial(
        grown_rows,
        vocabulary=model.vocabulary,
        count=model.config.token_count,
        published=int(theirs.vocab_size),
        source=source,
    )
    tied = model.config.llm_config.tie_word_embeddings
    twins = {"lm_head.weight": "model.embed_tokens.weight"} if tied else {}
    adjust = {"model.embed_tokens.weight": grow, "lm_head.weight": grow}
    return check_part(model.llm, source, LLM_RULES, twins=twins, only=only, adjust=adjust)


def grown_rows(rows_VD: Tensor, vocabulary: Vocabulary, count: int, published: int, source: str) -> Tensor:
    """The token rows of `source` with `count` rows, those of our special tokens from `first_rows`.

    Raises:
        ValueError: there are more rows, other than the `published` vocab_size, or fewer than tokens.
    """
    if len(rows_VD) != published:
        raise ValueError(
            f"{source} has {len(rows_VD)} token rows and its config.json vocab_size={published}: "
            "its files are of different models, download them again"
        )
    if len(rows_VD) > count:
        raise ValueError(
            f"{source} has {len(rows_VD)} token rows: give --model.mllm.llm vocab_size={len(rows_VD)}"
        )
    known = vocabulary.tokenizer.get_vocab(with_added_tokens=True)
    beyond = sorted(
        token for token, row in known.items() if row >= len(rows_VD) and token not in SPECIAL_TOKENS
    )
    if beyond:
        raise ValueError(
            f"{source} has {len(rows_VD)} token rows, too few for {len(beyond)} tokens of its tokenizer, such as "
            f"{beyond[0]!r}: the tokenizer is of another model"
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
        raise ValueError(
            f"{source} has no tokenizer.json: {convert_command(source)} writes it from tokenizer.model"
        )
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
