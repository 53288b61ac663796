"""Any causal language model of transformers: rows, cache, answers, tokens and weights equal its own.

Shapes: B images, L prefix, T text tokens, S tokens of one whole row, D width, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn.functional import one_hot
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from mllm.chat import IGNORE, ChatTurn, Mark, Row, render
from mllm.chat_templates import LLAMA_3, LLAVA_1_5, MISTRAL, QWEN_2, QWEN_3, ChatTemplate
from mllm.config import MLLMConfig, TuningConfig, qwen3_4b, tiny_llama
from mllm.generation import answer_ends
from mllm.loading_llm import chat_template_of, load_llava, load_llm, pretrained_vocabulary
from mllm.lora import ROWS, adapter_tensors
from mllm.modeling import MLLM, Boxes, ImageFeatures
from mllm.pretrained_config import build_config, with_changes
from mllm.tokens import SPECIAL_TOKENS, Vocabulary
from mllm.tower_families import clip_vit, convnext
from uniresxx.checkpoints.folders import save_pretrained
from uniresxx.data.scenes import scene_record
from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError
from uniresxx.hub.adapters import merged, save_adapter, unmerged
from uniresxx.model.build import build_for_training, check_sources, load_model, open_vocabulary
from uniresxx.model.collate import make_sample
from uniresxx.model.config import PyramidHeadConfig, UniRESPlusPlusConfig, WeightsConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.templates import asked_branches, generated_turn
from uniresxx.types import Decoding

CORPUS = [
    "Segment the left wheel of the red car.",
    "the car: , the wheel: .",
    "USER: ASSISTANT: A chat\n",
] * 5
TEXT = "the car: [SEG], the wheel: [REJ]."
PIECES: tuple[str | Mark, ...] = ("the car:", Mark.SEG, ", the wheel:", Mark.REJ, ".")
# The pattern of Llama 3's and Qwen's tokenizers splits words with the space before them.
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"


def trained(tokenizer: Tokenizer, special: Sequence[str], size: int = 330) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[*special], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_level(special: Sequence[str]) -> Tokenizer:
    """As of Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return trained(tokenizer, special)


def metaspace(special: Sequence[str]) -> Tokenizer:
    """As of Mistral: a space before the first word alone."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return trained(tokenizer, ["<unk>", *special, *(f"<0x{byte:02X}>" for byte in range(256))], 560)


def sentencepiece(special: Sequence[str]) -> Tokenizer:
    """As of Llama 2: a space before every text, added by the normalizer."""
    tokenizer = metaspace(special)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    return tokenizer


TOKENIZERS = {
    "byte level": byte_level(["<|im_start|>", "<|im_end|>"]),
    "metaspace": metaspace(["<s>", "</s>"]),
    "sentencepiece": sentencepiece(["<s>", "</s>"]),
}
CHATS = {"byte level": QWEN_2, "metaspace": MISTRAL, "sentencepiece": LLAVA_1_5}
SIZES = {
    "vocab_size": 600, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
LLAMA_3_ROPE = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
HEADER = "start_header_id", "end_header_id"
# family -> its language model, chat format, tokenizer
FAMILIES: dict[str, tuple[dict[str, Any], ChatTemplate, Tokenizer]] = {
    "llama 3": (
        {"model_type": "llama", "rope_parameters": LLAMA_3_ROPE, "eos_token_id": [1, 2]},
        LLAMA_3,
        byte_level([f"<|{name}|>" for name in ("begin_of_text", "end_of_text", "eot_id", *HEADER)]),
    ),
    "mistral": (
        {"model_type": "mistral", "sliding_window": None, "head_dim": 8},
        MISTRAL,
        TOKENIZERS["metaspace"],
    ),
    "qwen 2": (
        {"model_type": "qwen2", "tie_word_embeddings": True},
        QWEN_2,
        TOKENIZERS["byte level"],
    ),
    "qwen 3": (
        {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
        QWEN_3,
        byte_level(["<|im_start|>", "<|im_end|>", "<think>", "</think>"]),
    ),
    "llama 2": ({"model_type": "llama", "num_key_value_heads": 4}, LLAVA_1_5, TOKENIZERS["sentencepiece"]),
}  # fmt: skip
VISION: dict[str, Any] = dict(
    low=clip_vit(32, 3, 2, 48, 14), low_size=28, low_select_layer=-2, high=convnext((8, 16, 24, 32)), high_size=32,
    projector="mlp2x_gelu", fusion_starts_as_low=True, max_objects=3, max_parts=4, mgfe_heads=4,
)  # fmt: skip


def config_of(family: str) -> MLLMConfig:
    own, chat, _ = FAMILIES[family]
    return MLLMConfig(**VISION, llm=SIZES | own, chat=chat, count_padding=False)


def make(family: str) -> MLLM:
    """Random weights everywhere: biases and norms included."""
    torch.manual_seed(1)
    model = MLLM(config_of(family), Vocabulary.extend(FAMILIES[family][2]))
    with torch.no_grad():
        for parameter in model.llm.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


def features_of(model: MLLM, objects: Sequence[int], parts: Sequence[int]) -> ImageFeatures:
    """As many images as counts of real regions are given."""
    B, c = len(objects), model.config
    drawn = torch.Generator().manual_seed(2)
    low, high = (torch.randn(B, 3, side, side, generator=drawn) for side in (c.low_size, c.high_size))
    box = torch.tensor([2.0, 2.0, 20.0, 20.0])
    boxes = Boxes(
        box.repeat(B, c.max_objects, 1),
        torch.arange(c.max_objects) < torch.tensor(objects)[:, None],
        box.repeat(B, c.max_parts, 1),
        torch.arange(c.max_parts) < torch.tensor(parts)[:, None],
    )
    with torch.no_grad():
        return model.encode_image(low, high, boxes)


def their_model(model: MLLM) -> Any:
    theirs = AutoModelForCausalLM.from_config(model.config.llm_config)
    theirs.load_state_dict(model.llm.state_dict())
    return theirs.eval()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_packed_rows_equal_the_models_own_forward_one_row_at_a_time(family: str) -> None:
    model, theirs = make(family), their_model(make(family))
    features = features_of(model, [2, 0], [4, 1])
    packed, branches = Row(), []
    turns = [
        [ChatTurn("the car", (Mark.SEG, "."))],
        [ChatTurn("the wheel", PIECES), ChatTurn("the car?", ("A chat",))],
    ]
    for branch in turns:
        render(branch, model.vocabulary, packed, model.config.chat)
        branches.append(render(branch, model.vocabulary, chat=model.config.chat).ids_T)
    ids, branch, position = (
        torch.tensor(x).expand(2, -1) for x in (packed.ids_T, packed.branch_T, packed.position_T)
    )
    logits_BTV = model.logits(model(features, ids, branch, position))
    for image in range(2):
        prefix = features.prefix_BLD[image][features.valid_BL[image]]
        start = 0
        for row in branches:
            text = theirs.get_input_embeddings()(torch.tensor(row))
            expected_SV = theirs(inputs_embeds=torch.cat((prefix, text))[None]).logits[0]
            found_TV = logits_BTV[image, start : start + len(row)]
            torch.testing.assert_close(found_TV, expected_SV[len(prefix) :], atol=1e-4, rtol=1e-4)
            start += len(row)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_answers_equal_the_models_own_generation_one_row_at_a_time(family: str) -> None:
    model, theirs = make(family), their_model(make(family))
    features = features_of(model, [1, 3], [0, 2])
    chat, v = model.config.chat, model.vocabulary
    rows = [
        render([ChatTurn(text)], v, chat=chat).ids_T for text in ("the car", "the left wheel of the car", "A")
    ]
    image_of_row = [0, 0, 1]
    found = model.generate(model.prefill(features), rows, image_of_row, 8)
    ends = [v.encode_template(chat.end)[0], *model.config.llm.get("eos_token_id", [])]
    for row, image, answer in zip(rows, image_of_row, found, strict=True):
        prefix = features.prefix_BLD[image][features.valid_BL[image]]
        ids = list(row)
        for _ in range(8):
            hidden = torch.cat((prefix, theirs.get_input_embeddings()(torch.tensor(ids))))
            output = theirs(inputs_embeds=hidden[None], output_hidden_states=True)
            ids.append(int(output.logits[0, -1].argmax()))
            if len(ids) == len(row) + 1:
                first = output.hidden_states[-1][0, -1]
        answered = ids[len(row) :]
        stop = next((i for i, token in enumerate(answered) if token in ends), len(answered))
        assert answer.ids == answered[:stop]
        if not answer.decisions:
            torch.testing.assert_close(answer.prompts_KD[0], first, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_cache_has_the_models_own_keys_and_is_counted_in_its_heads(family: str) -> None:
    model, theirs = make(family), their_model(make(family))
    features = features_of(model, [3], [4])
    prefix = model.prefill(features)
    expected = theirs(inputs_embeds=features.prefix_BLD[features.valid_BL][None], use_cache=True)
    cache = vars(expected).get("past_key_values") or vars(expected)["cache"]
    c = model.config.llm_config
    for (keys, values), layer in zip(prefix.layers, cache.layers, strict=True):
        assert keys.shape == (1, c.num_key_value_heads, prefix.length, model.config.attention_width // 4)
        torch.testing.assert_close(keys, layer.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(values, layer.values, atol=1e-4, rtol=1e-4)
    per_token = 2 * 4 * c.num_hidden_layers * c.num_key_value_heads * (model.config.attention_width // 4)
    assert prefix.chunk_bytes(1, 2, 5) == per_token * (prefix.length + 2 * 5)
    room = prefix.with_room([0], 7)
    assert sum(x.nbytes for layer in room.layers for x in layer.buffers) == per_token * (prefix.length + 7)


@torch.no_grad()
def test_a_row_without_regions_is_the_row_of_llava_at_step_0(tmp_path: Path) -> None:
    """Full logits of transformers' LLaVA on the same picture and prompt, encoded by the unchanged tokenizer."""
    torch.manual_seed(3)
    plain = metaspace(["<s>", "</s>"])
    plain.add_special_tokens([AddedToken("<image>", normalized=False)])
    plain.save(str(tmp_path / "tokenizer.json"))
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=plain.get_vocab_size(), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, rms_norm_eps=1e-5,
    )  # fmt: skip
    image_token = plain.token_to_id("<image>")
    theirs = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token, image_seq_length=4)
    ).eval()
    for parameter in theirs.parameters():
        parameter.normal_(std=0.3)
    theirs.save_pretrained(tmp_path)

    llm = tiny_llama(**(SIZES | {"num_key_value_heads": 4}), rms_norm_eps=1e-5)
    config = MLLMConfig(**VISION, llm=llm, chat=LLAVA_1_5, count_padding=False)
    model = MLLM(config, pretrained_vocabulary(str(tmp_path))).eval()
    load_llava(model, str(tmp_path), with_tower=True)
    features = features_of(model, [0, 0], [0, 0])
    row = render([ChatTurn("the red car?", ("the wheel.",))], model.vocabulary, chat=LLAVA_1_5)
    ids, branch, position = (torch.tensor(x).expand(2, -1) for x in (row.ids_T, row.branch_T, row.position_T))
    found_BTV = model.logits(model(features, ids, branch, position))

    c = LLAVA_1_5
    prompt = f"{c.before_image}<image>{c.after_image}the red car?{c.before_answer}the wheel.{c.end}"
    whole = plain.encode(prompt, add_special_tokens=False).ids
    place = whole.index(image_token)
    assert whole[place + 1 :] == row.ids_T
    whole[place : place + 1] = [image_token] * 4
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    output = theirs(input_ids=torch.tensor(whole).expand(2, -1), pixel_values=pixels)
    V = output.logits.shape[-1] - 1  # the row of <image> is one of ours, which starts elsewhere
    torch.testing.assert_close(found_BTV[..., :V], output.logits[:, place + 4 :, :V], atol=1e-4, rtol=1e-4)


# ---- words and tokens


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_text_with_marks_is_read_back_as_it_was_written(kind: str) -> None:
    vocabulary = Vocabulary.extend(TOKENIZERS[kind])
    chat = CHATS[kind]
    row = render([ChatTurn("a", PIECES)], vocabulary, chat=chat)
    answer = [token for token in row.labels_T if token != IGNORE]
    assert vocabulary.decode(answer) == TEXT
    assert render([generated_turn("a", TEXT)], vocabulary, chat=chat) == row
    assert answer.count(vocabulary.seg) == answer.count(vocabulary.rej) == 1
    space = vocabulary.encode(" ")
    assert not any(
        answer[i : i + len(space)] == space for i in range(len(answer))
    )  # none alone before a mark


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_mark_has_one_id_whatever_stands_before_it(kind: str) -> None:
    vocabulary = Vocabulary.extend(TOKENIZERS[kind])
    for before in ("", "car", "car ", "car:  ", "\n"):
        ids = render([ChatTurn("a", (before, Mark.SEG, "."))], vocabulary, chat=CHATS[kind]).ids_T
        assert ids.count(vocabulary.seg) == 1
        assert ids[ids.index(vocabulary.seg) + 1] == vocabulary.encode(".")[0]


@given(
    st.lists(
        st.text(alphabet="aé [S]:,.\n<0x>", min_size=1, max_size=8).map(str.strip).filter(bool), max_size=4
    )
)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_any_pieces_between_marks_are_read_back(kind: str, texts: list[str]) -> None:
    vocabulary = Vocabulary.extend(TOKENIZERS[kind])
    pieces = [piece for text in texts for piece in (f" {text}", Mark.SEG)]
    row = render([ChatTurn("a", tuple(pieces))], vocabulary, chat=CHATS[kind])
    written = " [SEG] ".join(texts) + (" [SEG]" if texts else "")
    assert vocabulary.decode([token for token in row.labels_T if token != IGNORE]) == written


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_is_encoded_as_the_published_tokenizer_encodes_its_text(family: str) -> None:
    """The unchanged tokenizer on the whole text, which it may split wherever it likes."""
    _, chat, tokenizer = FAMILIES[family]
    vocabulary = Vocabulary.extend(tokenizer)
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.add_special_tokens([AddedToken("<image>", normalized=False)])
    turns = [
        ChatTurn("the car?", ("the wheel.",)),
        ChatTurn("A chat", ("the left car.",)),
        ChatTurn("the red"),
    ]
    c = chat
    first = f"{c.before_image}<image>{c.after_image}the car?{c.before_answer}the wheel.{c.end}"
    second = f"{c.before_question}A chat{c.before_answer}the left car.{c.end}"
    text = first + second + f"{c.before_question}the red{c.before_answer}".rstrip(" ")
    if family == "llama 2":  # its tokenizer writes a space after each special token by itself
        text = text.replace("> ", ">")
    expected = plain.encode(text, add_special_tokens=False).ids
    place = expected.index(plain.token_to_id("<image>"))
    assert expected[:place] == [*vocabulary.encode_template(chat.before_image)]
    assert expected[place + 1 :] == render(turns, vocabulary, chat=chat).ids_T


def test_rows_of_training_and_prompts_have_the_chat_format_of_the_config() -> None:
    model = make("qwen 3")
    decoding = Decoding()
    chat, v = model.config.chat, model.vocabulary
    (prompt,) = asked_branches([["the car"]], decoding, v, chat)[1]
    assert prompt == render([ChatTurn(decoding.template.format(expression="the car"))], v, chat=chat).ids_T
    assert prompt[-len(v.encode_template(chat.before_answer)) :] == [*v.encode_template(chat.before_answer)]
    config = replace(UniRESPlusPlusConfig(), mllm=model.config)
    record = scene_record("scenes_easy", "train", 3)
    expressions, dialogues = record.expressions[:2], record.dialogues[:1]
    sample = make_sample(record, photo_of(record), expressions, dialogues, [0, 1], config, v)
    end = v.encode_template(chat.end)[0]
    branches = set(sample.row.branch_T)
    assert len(branches) >= 2 and v.user not in sample.row.ids_T
    for number in branches:
        ids = [t for t, branch in zip(sample.row.ids_T, sample.row.branch_T, strict=True) if branch == number]
        assert ids[-1] == end and ids[: len(v.encode_template(chat.after_image))] == [
            *v.encode_template(chat.after_image)
        ]


JINJA = {
    "llama 3": (
        "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
        "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST] "
        "{{ message['content'] }} [/INST]{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "qwen 2": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% for message in messages %}<|im_start|>"
        "{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "qwen 3": (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
        "{{ message['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    ),
}


@pytest.mark.parametrize("family", JINJA)
def test_the_chat_format_is_that_of_the_models_own_template(family: str, tmp_path: Path) -> None:
    """Templates in the manner of the published ones."""
    _, chat, plain = FAMILIES[family]
    bos, eos = {"llama 3": ("<|begin_of_text|>", "<|eot_id|>"), "mistral": ("<s>", "</s>")}.get(
        family, (None, None)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token=bos, eos_token=eos)
    tokenizer.chat_template = JINJA[family]
    tokenizer.save_pretrained(tmp_path)
    assert chat_template_of(str(tmp_path)) == chat
    tokenizer.chat_template = "{{ messages[0]['content'] | upper }}"
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="cannot be cut into pieces"):
        chat_template_of(str(tmp_path))


def saying(tokens: Sequence[int], count: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Logits that choose these tokens one after another, and then the last one again."""
    steps = itertools.chain(tokens, itertools.repeat(tokens[-1]))
    return lambda states: one_hot(torch.full(states.shape[:-1], next(steps)), count).float()


def test_answers_end_at_the_tokens_of_the_format_and_of_the_models_config() -> None:
    model = make("llama 3")
    v = model.vocabulary
    eot = v.encode_template("<|eot_id|>")[0]
    assert answer_ends(model.config, v) == [eot, 1]  # the config names 1 and 2, which is <|eot_id|>
    prefix = model.prefill(features_of(model, [0], [0]))
    for last in (eot, 1):
        model.logits = saying([v.seg, last], model.config.token_count)  # type: ignore[method-assign]
        (answer,) = model.generate(prefix, [v.encode("a")], [0], 5)
        assert answer.ids == [v.seg] and not answer.truncated
    with pytest.raises(ValueError, match=r"mllm\.chat\.end='the end' is \d+ tokens"):
        answer_ends(replace(model.config, chat=replace(LLAMA_3, end="the end")), v)


# ---- configs


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "clip_vision_model"}, "clip_vision_model is no causal language model"),
        (
            {"model_type": "mistral", "sliding_window": 8},
            "sliding_window=None attends to all, .* of up to 8 tokens",
        ),
        ({"model_type": "mistral"}, "sliding_window=4096"),
        ({"model_type": "gemma2", "sliding_window": None}, "final_logit_softcapping"),
        ({"model_type": "gpt2"}, "gpt2 has not the layout of Llama"),
    ],
)
def test_language_models_that_would_be_computed_wrongly_are_refused(
    changes: dict[str, Any], says: str
) -> None:
    own = {
        key: value for key, value in SIZES.items() if changes["model_type"] in ("mistral", "gemma2")
    } | changes
    vocabulary = Vocabulary.extend(TOKENIZERS["metaspace"])
    with pytest.raises(ValueError, match=says):
        MLLM(MLLMConfig(**VISION, llm=own, chat=MISTRAL), vocabulary)


@torch.no_grad()
def test_a_row_within_the_window_needs_no_window() -> None:
    """Why a Mistral with a sliding window is used without it: up to its length nothing changes."""
    values = SIZES | {"model_type": "mistral", "head_dim": 8}
    plain, windowed = (
        AutoModelForCausalLM.from_config(build_config(values, "llm", sliding_window=window)).eval()
        for window in (None, 8)
    )
    windowed.load_state_dict(plain.state_dict())
    ids = torch.arange(9)[None] + 20
    torch.testing.assert_close(plain(ids[:, :8]).logits, windowed(ids[:, :8]).logits)
    assert (plain(ids).logits - windowed(ids).logits)[0, -1].abs().max() > 1e-4


def test_special_tokens_take_free_rows_and_too_few_rows_are_refused() -> None:
    """Qwen's matrices have more rows than its tokenizer has tokens."""
    vocabulary = Vocabulary.extend(TOKENIZERS["byte level"])
    tokens = TOKENIZERS["byte level"].get_vocab_size()
    assert sorted(vocabulary.special) == [*range(tokens, tokens + len(SPECIAL_TOKENS))]
    values = SIZES | {"model_type": "qwen2"}
    model = MLLM(MLLMConfig(**VISION, llm=values, chat=QWEN_2), vocabulary)
    assert len(model.embed.weight) == 600 > vocabulary.rows
    few = values | {"vocab_size": vocabulary.rows - 1}
    with pytest.raises(ValueError, match=f"set vocab_size to at least {vocabulary.rows}"):
        MLLM(MLLMConfig(**VISION, llm=few, chat=QWEN_2), vocabulary)


def test_the_published_sizes_of_qwen3_4b_give_its_parameter_count() -> None:
    """Qwen3-4B: 4.02 billion parameters, tied (its model card says 4.0)."""
    config = qwen3_4b()
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config.llm_config)
    assert sum(p.numel() for p in llm.parameters()) == 4_022_468_096
    assert (config.llm_width, config.attention_width, config.token_count) == (2560, 4096, 151936)


# ---- weights


def published(folder: Path, family: str, rows: int = 340) -> Any:
    """A folder as a hub repository holds it, with more rows than tokens."""
    own, _, tokenizer = FAMILIES[family]
    torch.manual_seed(5)
    llm = AutoModelForCausalLM.from_config(build_config(SIZES | own, "llm", vocab_size=rows)).eval()
    with torch.no_grad():
        for parameter in llm.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    llm.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return llm


@pytest.mark.parametrize("family", ["llama 3", "qwen 2", "qwen 3"])
@torch.no_grad()
def test_a_folder_of_a_language_model_gives_its_own_logits(family: str, tmp_path: Path) -> None:
    theirs = published(tmp_path, family)
    model = MLLM(config_of(family), pretrained_vocabulary(str(tmp_path)), from_files=["llm"]).eval()
    report = load_llm(model, str(tmp_path))
    assert not report.new and not report.ignored
    ids, first = torch.arange(20, 60)[None], min(model.vocabulary.special)  # rows that start elsewhere
    found, expected = model.llm(ids).logits[..., :first], theirs(ids).logits[..., :first]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    tied = FAMILIES[family][0].get("tie_word_embeddings", False)
    assert (model.llm.lm_head.weight is model.embed.weight) == tied
    average = theirs.get_input_embeddings().weight.mean(dim=0)
    assert (model.embed.weight[model.vocabulary.seg] - average).abs().max() < 0.05


def test_a_folder_of_another_language_model_is_refused(tmp_path: Path) -> None:
    published(tmp_path, "qwen 3")
    config = config_of("qwen 3")
    vocabulary = pretrained_vocabulary(str(tmp_path))
    other = MLLM(replace(config, llm=config.llm | {"num_hidden_layers": 1}), vocabulary)
    with pytest.raises(
        ValueError, match=rf"num_hidden_layers is 2 there and 1 .* --model.mllm.llm {tmp_path} vocab_s"
    ):
        load_llm(other, str(tmp_path))
    given = with_changes(other.config.llm, [str(tmp_path), "vocab_size=600"])
    load_llm(MLLM(replace(config, llm=given), vocabulary), str(tmp_path))  # what the message says
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.self_attn.q_norm.weight"]
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"missing: model.layers.1.self_attn.q_norm.weight"):
        load_llm(MLLM(config, vocabulary), str(tmp_path))


def test_a_recipe_names_the_language_model_alone(tmp_path: Path) -> None:
    published(tmp_path, "qwen 3")
    weights = WeightsConfig(llm=str(tmp_path), required=("llm",))
    config = UniRESPlusPlusConfig(
        mllm=config_of("qwen 3"), head=PyramidHeadConfig(width=16, heads=2), weights=weights
    )
    lines: list[str] = []
    build_for_training(config, open_vocabulary(config, []), lines.append)
    assert lines[0].startswith("LLM: ") and "tensors from" in lines[0]
    check_sources(replace(config, weights=replace(weights, llm=None, llava="somewhere")))
    with pytest.raises(InputError, match=r"give --model\.weights\.llm"):
        check_sources(replace(config, weights=replace(weights, llm=None)))
    with pytest.raises(InputError, match="name one"):
        check_sources(replace(config, weights=replace(weights, llava="somewhere")))
    wrong = replace(config, mllm=replace(config.mllm, llm={"model_type": "lama"}))
    with pytest.raises(InputError, match=r"--model\.mllm: .*did you mean 'llama'"):
        check_sources(wrong)


# ---- tied heads


def tied_model() -> UniRESPlusPlusModel:
    tuning = TuningConfig(lora_rank=2, token_rows="new")
    config = UniRESPlusPlusConfig(
        mllm=config_of("qwen 3"), head=PyramidHeadConfig(width=16, heads=2), tuning=tuning
    )
    torch.manual_seed(4)
    return UniRESPlusPlusModel(config, Vocabulary.extend(FAMILIES["qwen 3"][2]))


def test_a_tied_head_trains_one_set_of_rows_for_both_matrices() -> None:
    llm = tied_model().mllm.llm
    embed, head = llm.model.embed_tokens, llm.lm_head
    assert head.rows_RD is embed.rows_RD and head.weight is embed.weight
    assert [n for n, p in llm.named_parameters() if n.endswith(ROWS) and p.requires_grad] == [
        f"model.embed_tokens.{ROWS}"
    ]
    seg = int(embed.row_ids_R[-1])
    states = torch.randn(3, 32)
    head(states)[:, seg].sum().backward()  # the head alone
    (place,) = (embed.row_ids_R == seg).nonzero()[0]
    torch.testing.assert_close(embed.rows_RD.grad[place], states.sum(0))
    assert embed.weight.grad is None
    with torch.no_grad():
        embed.rows_RD[place] += 1.0
    assert torch.allclose(head(states)[:, seg], states @ (embed.weight[seg] + 1.0))
    assert torch.allclose(head(states)[:, 20], states @ embed.weight[20])


@torch.no_grad()
def test_a_tied_model_is_saved_reloaded_merged_and_taken_apart(tmp_path: Path) -> None:
    model = tied_model().eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name or name.endswith(ROWS):
            parameter.normal_(std=0.1)
    ids = torch.tensor([[20, 30, *model.vocabulary.special]])

    def logits(of: UniRESPlusPlusModel) -> torch.Tensor:
        return of.mllm.llm(ids).logits

    expected = logits(model)
    save_pretrained(tmp_path / "whole", model)
    again = load_model(tmp_path / "whole")
    assert again.mllm.llm.lm_head.rows_RD is again.mllm.embed.rows_RD
    torch.testing.assert_close(logits(again), expected)
    assert sum(name.endswith(ROWS) for name in adapter_tensors(model)) == 1
    save_adapter(model, tmp_path / "adapter")
    save_pretrained(tmp_path / "merged", merged(model))
    joined = load_model(tmp_path / "merged")
    assert joined.mllm.llm.lm_head.weight is joined.mllm.embed.weight
    torch.testing.assert_close(logits(joined), expected, atol=1e-5, rtol=1e-5)
    apart = unmerged(tmp_path / "merged", tmp_path / "adapter")
    torch.testing.assert_close(logits(apart), expected, atol=1e-5, rtol=1e-5)
