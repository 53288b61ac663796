"""The multimodal LLM: vocabulary, chat rows, prefix layout, generation against teacher forcing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import Cache
from transformers.utils import is_flash_attn_2_available

from mllm.chat import IGNORE, ChatTurn, Mark, Row, render
from mllm.chat_templates import ChatTemplate
from mllm.config import MLLMConfig, TuningConfig, tiny_llama
from mllm.language import cache_argument, enable_activation_checkpointing
from mllm.lora import adapt
from mllm.modeling import MLLM, Boxes
from mllm.prefix import PrefixCache, packed_blocks, packed_mask
from mllm.tokens import SPECIAL_TOKENS, Vocabulary
from mllm.tower_families import clip_vit, convnext

CORPUS = [
    "segment the left wheel of the red car",
    "find all the houses",
    "which pixels belong to the roof",
] * 5
TINY = {
    "low": clip_vit(32, 1, 2), "low_size": 32, "high": convnext((8, 16, 24, 32)), "high_size": 32,
    "llm": tiny_llama(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=340
    ),
    "max_objects": 3, "max_parts": 4, "mgfe_heads": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(CORPUS, 340)


def make(vocabulary: Vocabulary, **changes: object) -> MLLM:
    torch.manual_seed(0)
    model = MLLM(MLLMConfig(**{**TINY, **changes}), vocabulary).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):  # closed gates would hide MGFE from every test
            torch.nn.init.constant_(parameter, 0.7)
    return model


def some_boxes(images: int, valid: bool = True) -> Boxes:
    generator = torch.Generator().manual_seed(1)

    def boxes(count: int) -> torch.Tensor:
        corner = torch.rand(images, count, 2, generator=generator) * 20
        return torch.cat(
            (corner, corner + 2 + 10 * torch.rand(images, count, 2, generator=generator)), dim=-1
        )

    marks = [torch.full((images, n), valid) for n in (3, 4)]
    if valid:
        marks[1][:, -1] = False
    return Boxes(boxes(3), marks[0], boxes(4), marks[1])


def encode_images(model: MLLM, images: int = 2, **boxes: bool) -> object:
    pixels = torch.randn(images, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    return model.encode_image(pixels, pixels, some_boxes(images, **boxes))


@given(st.text(max_size=60), st.sampled_from(SPECIAL_TOKENS), st.text(max_size=20))
@settings(deadline=None, max_examples=60)
def test_typed_text_never_becomes_a_special_token(before: str, token: str, after: str) -> None:
    vocabulary = Vocabulary.train(CORPUS, 340)
    special = {vocabulary.tokenizer.token_to_id(name) for name in SPECIAL_TOKENS}
    for text in (before + token + after, token * 2):
        assert not special & set(vocabulary.encode(text))
    row = render([ChatTurn(f"segment {before}{token}{after}.")], vocabulary)
    assert row.decisions == []
    assert [i for i in row.ids_T if i in special] == [vocabulary.user, vocabulary.assistant]


def test_a_row_labels_answers_only_and_lists_the_decisions(vocabulary: Vocabulary) -> None:
    row = Row()
    render([ChatTurn("segment the car.", (Mark.SEG, "."))], vocabulary, row)
    render(
        [
            ChatTurn("find both", ("a:", Mark.SEG, ", b:", Mark.REJ, ".")),
            ChatTurn("and its roof?", (Mark.REJ,)),
        ],
        vocabulary,
        row,
    )
    decided = [row.labels_T[i] for i in row.decisions]
    assert decided == [vocabulary.seg, vocabulary.seg, vocabulary.rej, vocabulary.rej]
    for i, label in enumerate(row.labels_T):
        if label != IGNORE:
            assert row.ids_T[i + 1] == label
            assert row.branch_T[i + 1] == row.branch_T[i]
    learned = [i for i, label in enumerate(row.labels_T) if label != IGNORE]
    assert vocabulary.user not in [row.labels_T[i] for i in learned]
    starts = [i for i, p in enumerate(row.position_T) if p == 0]
    assert [row.branch_T[i] for i in starts] == [0, 1]
    assert row.ids_T.count(vocabulary.user) == 3


def test_decoded_answers_show_decisions_and_hide_the_other_marks(vocabulary: Vocabulary) -> None:
    ids = [
        *vocabulary.encode("the car:"),
        vocabulary.seg,
        *vocabulary.encode(","),
        *vocabulary.encode("the roof:"),
        vocabulary.rej,
        *vocabulary.encode("."),
        vocabulary.end,
    ]
    assert vocabulary.decode(ids) == "the car: [SEG], the roof: [REJ]."


def test_prefix_mask_is_the_rule_written_out() -> None:
    valid = torch.tensor([[True, False, True]])
    branch = torch.tensor([[0, 0, 1, 1, -1]])
    mask = packed_mask(valid, branch, torch.float32)[0, 0] == 0
    kind = ["prefix", "hole", "prefix", 0, 0, 1, 1, "pad"]
    for i in range(8):
        for j in range(8):
            allowed = (
                j <= i and kind[j] not in ("hole", "pad") and (kind[j] == "prefix" or kind[j] == kind[i])
            )
            assert bool(mask[i, j]) == (allowed or i == j), (i, j)


def test_branches_equal_separate_rows(vocabulary: Vocabulary) -> None:
    model = make(vocabulary)
    features = encode_images(model, images=1)
    texts = ["segment the car.", "find all the houses", "where is the left wheel of the red car?"]
    turns = [[ChatTurn(text, (Mark.SEG, "."))] for text in texts]
    packed = Row()
    for turn in turns:
        render(turn, vocabulary, packed)

    def states(row: Row) -> torch.Tensor:
        return model(features, *(torch.tensor([v]) for v in (row.ids_T, row.branch_T, row.position_T)))[0]

    together = states(packed)
    apart = torch.cat([states(render(turn, vocabulary)) for turn in turns])
    assert (together - apart).abs().max() <= 1e-5


def test_generation_with_the_shared_prefix_equals_teacher_forcing(vocabulary: Vocabulary) -> None:
    model = make(vocabulary)
    features = encode_images(model)
    questions = ["segment the car.", "find all the houses of the left", "roof"]
    branches = [render([ChatTurn(q)], vocabulary).ids_T for q in questions]
    image_of_row = [1, 0, 1]
    answers = model.generate(model.prefill(features), branches, image_of_row, max_new=5)
    for branch, image, got in zip(branches, image_of_row, answers, strict=True):
        ids = list(branch)
        for token in got.ids:
            B, T = features.prefix_BLD.shape[0], len(ids)
            states = model(
                features,
                torch.tensor([ids] * B),
                torch.zeros(B, T, dtype=torch.long),
                torch.arange(T).expand(B, -1),
            )[image, -1]
            assert int(model.logits(states).argmax()) == token
            ids.append(token)


def test_answers_do_not_depend_on_other_rows(vocabulary: Vocabulary) -> None:
    model = make(vocabulary)
    features = encode_images(model)
    branches = [
        render([ChatTurn(q)], vocabulary).ids_T for q in ("roof", "segment the left wheel of the red car.")
    ]
    both = model.generate(model.prefill(features), branches, [0, 1], max_new=4)
    for index, branch in enumerate(branches):
        alone = model.generate(model.prefill(features), [branch], [index], max_new=4)[0]
        assert alone.ids == both[index].ids
        torch.testing.assert_close(alone.prompts_KD, both[index].prompts_KD, atol=1e-5, rtol=1e-5)


def test_an_image_without_boxes_works_and_padding_boxes_do_not_matter(vocabulary: Vocabulary) -> None:
    model = make(vocabulary)
    none = encode_images(model, valid=False)
    assert torch.isfinite(none.prefix_BLD).all()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    boxes = some_boxes(2)
    moved = Boxes(boxes.objects_BO4, boxes.object_valid_BO, boxes.parts_BP4.clone(), boxes.part_valid_BP)
    moved.parts_BP4[:, -1] = torch.tensor([0.0, 0.0, 31.0, 31.0])  # that row is padding
    layout = none.layout
    a, b = model.encode_image(pixels, pixels, boxes), model.encode_image(pixels, pixels, moved)
    torch.testing.assert_close(a.prefix_BLD[:, layout.image], b.prefix_BLD[:, layout.image])
    torch.testing.assert_close(a.object_BOD, b.object_BOD)


@pytest.mark.parametrize(
    "switch",
    [{"use_high": False}, {"use_objects": False}, {"use_parts": False}, {"objects_see_image": False},
     {"parts_see_objects": False}, {"parts_see_image": False}, {"image_sees_regions": False},
     {"blind_to_image": True}, {"blind_to_text": True}],
)  # fmt: skip
def test_every_switch_changes_the_states(vocabulary: Vocabulary, switch: dict[str, bool]) -> None:
    plain, switched = make(vocabulary), make(vocabulary, **switch)
    shared = {k: v for k, v in plain.state_dict().items() if k in switched.state_dict()}
    switched.load_state_dict(shared, strict=False)
    row = render([ChatTurn("segment the car.", (Mark.SEG, "."))], vocabulary)
    args = [torch.tensor([v, v]) for v in (row.ids_T, row.branch_T, row.position_T)]
    a, b = encode_images(plain), encode_images(switched)
    assert a.prefix_BLD.shape == b.prefix_BLD.shape
    assert (plain(a, *args) - switched(b, *args)).abs().max() > 1e-4


def test_containment_bias_reaches_the_parts_unless_switched_off(vocabulary: Vocabulary) -> None:
    for on in (True, False):
        model = make(vocabulary, containment_bias=on)
        before = encode_images(model).part_BPD
        with torch.no_grad():
            for block in model.exploitation.blocks:
                block.inside_G.fill_(3.0)
        assert bool((encode_images(model).part_BPD - before).abs().max() > 1e-4) is on


def test_a_text_blind_model_treats_questions_of_one_length_alike(vocabulary: Vocabulary) -> None:
    model = make(vocabulary, blind_to_text=True)
    features = encode_images(model, images=1)
    a, b = (render([ChatTurn(q)], vocabulary) for q in ("the left", "the roof"))
    assert len(a.ids_T) == len(b.ids_T)
    states = [
        model(features, *(torch.tensor([v]) for v in (r.ids_T, r.branch_T, r.position_T))) for r in (a, b)
    ]
    torch.testing.assert_close(states[0], states[1])


def test_an_image_blind_model_treats_all_pictures_and_boxes_alike(vocabulary: Vocabulary) -> None:
    model = make(vocabulary, blind_to_image=True)
    boxes = some_boxes(2)
    boxes.object_valid_BO[0, 0] = False
    features = model.encode_image(torch.randn(2, 3, 32, 32), torch.randn(2, 3, 32, 32), boxes)
    assert torch.equal(features.prefix_BLD[0], features.prefix_BLD[1])
    assert torch.equal(features.valid_BL[0], features.valid_BL[1])


@pytest.mark.parametrize("stream", ["objects", "parts"])
def test_a_stream_switched_off_hides_where_its_boxes_are(vocabulary: Vocabulary, stream: str) -> None:
    model = make(vocabulary, **{f"use_{stream}": False})
    with torch.no_grad():
        for block in model.exploitation.blocks:
            block.inside_G.fill_(3.0)
    pixels = torch.randn(1, 3, 32, 32)
    boxes = some_boxes(1)
    moved = Boxes(
        boxes.objects_BO4 * (0.5 if stream == "objects" else 1.0), boxes.object_valid_BO,
        boxes.parts_BP4 * (0.5 if stream == "parts" else 1.0), boxes.part_valid_BP,
    )  # fmt: skip
    a, b = model.encode_image(pixels, pixels, boxes), model.encode_image(pixels, pixels, moved)
    assert torch.equal(a.prefix_BLD, b.prefix_BLD)


def test_without_any_region_the_image_attends_to_nothing(vocabulary: Vocabulary) -> None:
    plain, deaf = make(vocabulary), make(vocabulary, image_sees_regions=False)
    deaf.load_state_dict(plain.state_dict())
    a, b = encode_images(plain, valid=False), encode_images(deaf, valid=False)
    assert torch.equal(a.prefix_BLD[:, a.layout.image], b.prefix_BLD[:, b.layout.image])


def test_sizes_that_cannot_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="low_size=60 is not a multiple of 8: choose 56 or 64"):
        _ = MLLMConfig(low_size=60).low_grid
    with pytest.raises(ValueError, match="must divide by mgfe_heads"):
        MLLMConfig(llm=tiny_llama(hidden_size=100, num_attention_heads=2)).check_llm()


def test_prompt_states_of_both_kinds_come_from_the_right_position(vocabulary: Vocabulary) -> None:
    for kind, shift in (("predict", 0), ("own", 1)):
        model = make(vocabulary, prompt_state=kind)
        with torch.no_grad():  # it always generates [SEG] <end>: logits read from the last token's identity
            model.llm.lm_head.weight.zero_()
        features = encode_images(model, images=1)
        branch = render([ChatTurn("the car")], vocabulary).ids_T
        model.logits = always(vocabulary.seg, vocabulary.end)  # type: ignore[method-assign]
        answers = model.generate(model.prefill(features), [branch], [0], max_new=4)[0]
        assert answers.ids == [vocabulary.seg]
        ids = [*branch, vocabulary.seg]
        states = model(
            features,
            torch.tensor([ids]),
            torch.zeros(1, len(ids), dtype=torch.long),
            torch.arange(len(ids))[None],
        )[0]
        torch.testing.assert_close(
            answers.prompts_KD[0], states[len(branch) - 1 + shift], atol=1e-5, rtol=1e-5
        )


def test_block_mask_of_flex_attention_is_the_same_rule() -> None:
    valid = torch.tensor([[True, False, True], [True, True, True]])
    branch = torch.tensor([[0, 0, 1, 1, -1], [0, 1, 1, 2, 2]])
    blocks = packed_blocks(valid, branch)
    dense = packed_mask(valid, branch, torch.float32)[:, 0] == 0
    index = [torch.tensor(i) for i in range(8)]
    for b in range(2):
        for i in range(8):
            for j in range(8):
                assert bool(blocks.mask_mod(index[b], index[0], index[i], index[j])) == bool(dense[b, i, j])


@pytest.mark.slow  # the kernel is compiled: half a minute on a CPU
def test_flex_attention_trains_and_generates_as_sdpa_does(vocabulary: Vocabulary) -> None:
    plain, flex = make(vocabulary), make(vocabulary, attention="flex_attention")
    row = Row()
    for text in ("segment the car.", "find all the houses"):
        render([ChatTurn(text, (Mark.SEG, "."))], vocabulary, row)
    args = [torch.tensor([v, v]) for v in (row.ids_T, row.branch_T, row.position_T)]
    with torch.no_grad():
        a, b = (m(encode_images(m), *args) for m in (plain, flex))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    branch = [render([ChatTurn("the car")], vocabulary).ids_T]
    answers = [m.generate(m.prefill(encode_images(m)), branch, [0], max_new=3)[0].ids for m in (plain, flex)]
    assert answers[0] == answers[1]


def asked(vocabulary: Vocabulary, count: int) -> list[list[int]]:
    """Branches of unequal lengths."""
    words = ["car", "roof", "the left wheel", "all the houses of the red car", "which pixels?"]
    texts = [" ".join(words[(i * 7 + j) % len(words)] for j in range(1 + i % 4)) for i in range(count)]
    return [render([ChatTurn(t)], vocabulary).ids_T for t in texts]


def two_images(model: MLLM) -> object:
    """Two images whose prefixes have different numbers of valid regions."""
    boxes = some_boxes(2)
    boxes.object_valid_BO[0, 1:], boxes.part_valid_BP[1] = False, False
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    return model.encode_image(pixels, pixels, boxes)


def test_answers_are_those_of_one_expression_at_a_time_whatever_the_chunk(vocabulary: Vocabulary) -> None:
    """All at once, in chunks, with less than a row's budget, and each alone on its own image."""
    model = make(vocabulary)
    branches, image_of_row = asked(vocabulary, 7), [0, 0, 0, 1, 1, 1, 1]
    assert len({len(b) for b in branches}) > 2
    prefix = model.prefill(two_images(model))
    assert (~prefix.valid_BL).any() and not torch.equal(prefix.valid_BL[0], prefix.valid_BL[1])
    two_rows = prefix.chunk_bytes(1, 2, max(map(len, branches)) + 6)
    ways = [model.generate(prefix, branches, image_of_row, 6, budget) for budget in (2**30, two_rows, 1)]
    alone = []
    for branch, image in zip(branches, image_of_row, strict=True):
        own = PrefixCache(
            tuple((k[image : image + 1], v[image : image + 1]) for k, v in prefix.layers),
            prefix.valid_BL[image : image + 1],
        )
        alone += model.generate(own, [branch], [0], 6)
    for way in ways:
        for got, expected in zip(way, alone, strict=True):
            assert got.ids == expected.ids and got.decisions == expected.decisions
            torch.testing.assert_close(got.prompts_KD, expected.prompts_KD, atol=1e-4, rtol=0)
            torch.testing.assert_close(got.p_seg_K, expected.p_seg_K, atol=1e-4, rtol=0)


@dataclass(frozen=True)
class WatchedPrefix(PrefixCache):
    """Notes every cache that is made of it."""

    made: list[Cache] = field(default_factory=list)

    def with_room(self, images: Sequence[int], room: int) -> Cache:
        self.made.append(super().with_room(images, room))
        return self.made[-1]


def watched(prefix: PrefixCache) -> WatchedPrefix:
    return WatchedPrefix(prefix.layers, prefix.valid_BL)


def buffer_bytes(cache: Cache) -> int:
    """Bytes of the memory behind the keys and values."""
    tensors = [x for layer in cache.layers for x in (layer.keys, layer.values)]
    return sum(x.untyped_storage().nbytes() for x in tensors)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", ["predict", "own"])
def test_the_cache_has_the_documented_size_and_holds_each_prefix_once(
    vocabulary: Vocabulary, kind: str, bf16: bool
) -> None:
    """Trained token rows are fp32; keys and values are bf16 under autocast all the same."""
    model = make(vocabulary, prompt_state=kind)
    if bf16:
        adapt(model.llm, TuningConfig(token_rows="new"), vocabulary.special)
        model.llm.requires_grad_(False).bfloat16()
        model.embed.rows_RD.data = model.embed.rows_RD.data.float()
        assert model.embed(torch.tensor([vocabulary.seg])).dtype == torch.float32
    branches, image_of_row = asked(vocabulary, 9), [0] * 5 + [1] * 4
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        prefix = watched(model.prefill(encode_images(model)))
        model.generate(prefix, branches, image_of_row, 8)
    (cache,) = prefix.made
    size, L, tokens = 2 if bf16 else 4, prefix.length, max(map(len, branches)) + 8
    documented = 2 * 2 * 32 * size * 2 * (L + 5 * tokens)  # keys and values, layers, width; images
    assert prefix.chunk_bytes(2, 5, tokens) == documented
    assert 0.8 * documented < buffer_bytes(cache) <= documented


def test_training_keeps_the_residual_stream_in_the_compute_dtype(vocabulary: Vocabulary) -> None:
    model = make(vocabulary)
    dtypes = []
    model.llm.model.layers[-1].register_forward_hook(
        lambda module, inputs, output: dtypes.append(output.dtype)
    )
    row = render([ChatTurn("the car", (Mark.SEG, "."))], vocabulary)
    args = [torch.tensor([v]) for v in (row.ids_T, row.branch_T, row.position_T)]
    for on in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            model(encode_images(model, images=1), *args)
    assert dtypes == [torch.bfloat16, torch.float32]


def test_chunks_of_branches_stay_within_the_budget(vocabulary: Vocabulary) -> None:
    model = make(vocabulary)
    branches = asked(vocabulary, 40)
    prefix = watched(model.prefill(encode_images(model)))
    budget = prefix.chunk_bytes(2, 5, max(map(len, branches)) + 3) + 17
    model.generate(prefix, branches, [0, 1] * 20, 3, budget)
    assert len(prefix.made) == 4
    assert all(0.5 * budget < buffer_bytes(cache) <= budget for cache in prefix.made)
    prefix.made.clear()
    model.generate(
        prefix, branches, [0] * 3 + [1] * 37, 3
    )  # an image with few branches counts as many places
    assert [cache.layers[0].keys.shape[0] for cache in prefix.made] == [2, 1]


def test_new_tokens_are_written_into_one_buffer(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No step allocates keys or values anew."""
    model = make(vocabulary)
    prefix = watched(model.prefill(encode_images(model)))
    places, extend = set(), MLLM._extend

    def noted(self: MLLM, hidden: torch.Tensor, position: torch.Tensor, cache: Cache, mask: torch.Tensor):
        out = extend(self, hidden, position, cache, mask)
        places.add(tuple(layer.keys.data_ptr() for layer in cache.layers))
        return out

    monkeypatch.setattr(MLLM, "_extend", noted)
    monkeypatch.setattr(model, "logits", always(vocabulary.seg))
    model.generate(prefix, asked(vocabulary, 3), [0, 1, 1], 5)
    assert len(places) == 1


def always(*script: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Logits that ask for the tokens of `script`, one per step; the last one stays."""
    left = list(script)

    def logits(states: torch.Tensor) -> torch.Tensor:
        token = left.pop(0) if len(left) > 1 else left[0]
        return F.one_hot(torch.full(states.shape[:-1], token), 340).float()

    return logits


@pytest.mark.parametrize(
    ("most", "script", "expected", "truncated"),
    [
        (1, "S . w w", "S .", False),
        (1, "R . E", "R .", False),
        (1, "R R R R R R", "R .", False),  # nothing but decisions: the first one answers
        (1, "R w R w R w", "R .", False),  # as are those with words between them
        (1, "w . S .", "w . S .", False),  # a full stop before the decision ends nothing
        (1, "S , w : R .", "S .", False),  # more than was asked for
        (1, "w : S , w : R . w", "w : S .", False),
        (1, "S E", "S", False),
        (2, "w : S , w : R . w", "w : S , w : R .", False),
        (2, "S . R . w", "S . R .", False),
        (3, "S . R E w", "S . R", False),  # fewer
        (1, "w . w E", "w . w", False),  # plain words run to the end token
        (1, "w w w w w w", "w w w w w w", True),
        (1, "E", "", False),
        (None, "S . w E", "S . w", False),  # without a limit, to the end token
        (None, "R R R R R R", "R R R R R R", True),
    ],
)
@pytest.mark.parametrize("kind", ["predict", "own"])
def test_an_answer_ends_when_what_was_asked_is_answered(
    vocabulary: Vocabulary, kind: str, most: int | None, script: str, expected: str, truncated: bool
) -> None:
    model = make(vocabulary, prompt_state=kind)
    names = {"S": vocabulary.seg, "R": vocabulary.rej, "E": vocabulary.end}
    words = {mark: vocabulary.encode(mark)[-1] for mark in ".:,w"}

    def ids(text: str) -> list[int]:
        return [(names | words)[name] for name in text.split()]

    model.logits = always(*ids(script))  # type: ignore[method-assign]
    limit = 6 if truncated else 10
    prefix = model.prefill(encode_images(model))
    limits = None if most is None else [most] * 3
    for answer in model.generate(prefix, asked(vocabulary, 3), [0, 1, 1], limit, most_decisions=limits):
        assert answer.ids == ids(expected) and answer.truncated is truncated
        assert len(answer.prompts_KD) == max(1, len(answer.decisions))


def test_branches_end_each_for_itself(vocabulary: Vocabulary) -> None:
    model = make(vocabulary)
    stop, word = vocabulary.encode(".")[-1], vocabulary.encode("w")[-1]
    scripts = [[vocabulary.seg, stop, word, word], [word, word, word, vocabulary.rej]]
    steps = iter(zip(*scripts, strict=True))

    def logits(states: torch.Tensor) -> torch.Tensor:
        return F.one_hot(torch.tensor(next(steps)).view(states.shape[:-1]), 340).float()

    model.logits = logits  # type: ignore[method-assign]
    prefix = model.prefill(encode_images(model, images=1))
    first, second = model.generate(prefix, asked(vocabulary, 2), [0, 0], 4, most_decisions=[1, 1])
    assert (first.ids, first.truncated) == ([vocabulary.seg, stop], False)
    assert (second.ids, second.truncated) == (scripts[1], True)


@pytest.mark.parametrize(("kind", "passes"), [("predict", 3), ("own", 4)])
def test_no_pass_of_the_model_is_thrown_away(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch, kind: str, passes: int
) -> None:
    """The last token's own state is needed where it prompts the mask head, and only there."""
    model = make(vocabulary, prompt_state=kind)

    monkeypatch.setattr(model, "logits", always(vocabulary.seg))
    prefix = model.prefill(encode_images(model))
    widths, extend = [], MLLM._extend

    def counted(self: MLLM, hidden: torch.Tensor, *rest: object) -> torch.Tensor:
        widths.append(hidden.shape[1])
        return extend(self, hidden, *rest)

    monkeypatch.setattr(MLLM, "_extend", counted)
    branches, image_of_row = asked(vocabulary, 2), [0, 1]
    answers = model.generate(prefix, branches, image_of_row, 3)
    assert [answer.ids for answer in answers] == [[vocabulary.seg] * 3] * 2
    assert widths == [max(map(len, branches)), *[1] * (passes - 1)]  # one branch of each image


def test_generation_and_checkpointing_warn_of_nothing(vocabulary: Vocabulary) -> None:
    """transformers 5.24 warns of names that it will remove; a user would get it at every start."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model = make(vocabulary, activation_checkpointing=True)
        prefix = model.prefill(encode_images(model))
        model.generate(prefix, asked(vocabulary, 2), [0, 1], 3)
    layers = model.llm.model.layers
    assert (
        all(layer.gradient_checkpointing for layer in layers)
        and prefix.layers[0][0].shape[2] == prefix.length
    )


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_keys_and_values_go_to_the_argument_that_the_language_model_has(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """One release of transformers calls it `past_key_values`, a later one `cache`, none takes both."""
    model = make(vocabulary)
    plain, forward, given = model.cache_argument, model.llm.model.forward, []

    def former(*, inputs_embeds, attention_mask, position_ids, past_key_values, use_cache):
        given.append(past_key_values)
        rest = {plain: past_key_values, "use_cache": use_cache}
        return forward(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, **rest
        )

    def latter(*, cache, **rest):
        return former(past_key_values=cache, **rest)

    def answers() -> list[list[int]]:
        prefix = model.prefill(encode_images(model))
        return [answer.ids for answer in model.generate(prefix, asked(vocabulary, 2), [0, 1], 3)]

    expected = answers()
    fake = latter if name == "cache" else former
    assert cache_argument(fake) == name
    monkeypatch.setattr(model.llm.model, "forward", fake)
    monkeypatch.setattr(model, "cache_argument", cache_argument(fake))
    assert answers() == expected
    assert len(given) > 2 and all(len(cache.layers) == 2 for cache in given)


def test_checkpointing_is_enabled_under_either_name() -> None:
    class Former:
        def gradient_checkpointing_enable(self, options: dict[str, bool]) -> None:
            self.options = options

    class Current(Former):
        def activation_checkpointing_enable(self, options: dict[str, bool]) -> None:
            self.new_options = options

    former, current = Former(), Current()
    for llm in (former, current):
        enable_activation_checkpointing(llm)
    assert former.options == current.new_options == {"use_reentrant": False}
    assert not hasattr(current, "options")


def test_flash_attention_that_is_not_installed_is_refused(vocabulary: Vocabulary) -> None:
    if is_flash_attn_2_available():
        pytest.skip("flash-attn is installed here")
    with pytest.raises(ValueError, match=r"needs the package flash-attn.*'flex_attention'.*'sdpa'"):
        make(vocabulary, attention="flash_attention_2")


def test_flash_attention_encodes_the_prefix_and_refuses_packed_rows(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flash is given the validity of keys alone; here SDPA answers for it. It is replaced once per call."""
    model = make(vocabulary)
    branches, image_of_row = asked(vocabulary, 5), [0, 1, 1, 0, 1]
    features = two_images(model)
    expected = model.generate(model.prefill(features), branches, image_of_row, 5)
    config = replace(model.config)
    object.__setattr__(config, "attention", "flash_attention_2")
    model.config = config
    masks: list[int] = []
    used: list[str] = []
    extend = MLLM._extend

    def watched(self: MLLM, hidden: torch.Tensor, position: torch.Tensor, cache: Cache, mask: torch.Tensor):
        masks.append(mask.dim())
        return extend(self, hidden, position, cache, mask)

    monkeypatch.setattr(MLLM, "_extend", watched)
    monkeypatch.setattr(model.llm, "set_attn_implementation", used.append)
    prefix = model.prefill(features)
    assert (masks, used) == ([2], [])
    got = model.generate(prefix, branches, image_of_row, 5, cache_bytes=1)
    assert used == ["sdpa", "flash_attention_2"] and set(masks[1:]) == {4}
    for a, b in zip(got, expected, strict=True):
        assert a.ids == b.ids
        torch.testing.assert_close(a.prompts_KD, b.prompts_KD, atol=1e-5, rtol=1e-5)
    row = render([ChatTurn("the car", (Mark.SEG,))], vocabulary)
    with pytest.raises(ValueError, match="flex_attention"):
        model(features, *(torch.tensor([v, v]) for v in (row.ids_T, row.branch_T, row.position_T)))


def test_narrow_exploitation_adds_nothing_at_first_and_then_matters(vocabulary: Vocabulary) -> None:
    torch.manual_seed(0)
    model = MLLM(MLLMConfig(**{**TINY, "mgfe_width": 16}), vocabulary).eval()
    wide = make(vocabulary)
    assert model.exploitation.blocks[0].image.q.weight.shape == (16, 16)
    features = encode_images(model)
    torch.manual_seed(3)
    stages = model.high(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2)))
    objects = model.object_tokens(stages, some_boxes(2).objects_BO4)
    torch.testing.assert_close(features.object_BOD, objects)
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.constant_(parameter, 0.7)
    assert (encode_images(model).object_BOD - objects).abs().max() > 1e-3
    assert encode_images(wide).object_BOD.shape == features.object_BOD.shape


def test_a_first_token_comes_before_the_visual_prefix(vocabulary: Vocabulary) -> None:
    plain, first = make(vocabulary), make(vocabulary, chat=ChatTemplate(before_image="[SEG]<image>"))
    a, b = encode_images(plain), encode_images(first)
    assert b.layout.length == a.layout.length + 1
    assert torch.equal(b.prefix_BLD[:, 1:], a.prefix_BLD)
    assert torch.equal(b.prefix_BLD[0, 0], first.embed.weight[7])
    for name in ("image", "objects", "parts"):
        assert torch.equal(a.prefix_BLD[:, getattr(a.layout, name)], b.prefix_BLD[:, getattr(b.layout, name)])
    assert b.valid_BL[:, 0].all() and torch.equal(b.valid_BL[:, 1:], a.valid_BL)
