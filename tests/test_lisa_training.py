"""Training of converted LISA, GSVA and M2SA: the losses of the public code, its conversations, and runs on photos."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from chat_demo.session import CHAT_DECODING
from eval.run import run as evaluate
from mllm.chat import IGNORE
from mllm.config import TuningConfig
from mllm.lora import is_adapter
from tests.test_lisa import CLOSE, PEERS, REAL, branches_of, convert, recorded, release
from train.__main__ import main as train_main
from train.finetune import recipe_of
from uniresxx.checkpoints.tensors import CONFIG, WEIGHTS
from uniresxx.cli import main as uniresxx_main
from uniresxx.errors import InputError
from uniresxx.imaging.masks import encode
from uniresxx.predictor import Predictor
from uniresxx.segmenters.lisa.build import build_lisa_for_training, open_lisa_vocabulary
from uniresxx.segmenters.lisa.config import ALL_FROZEN, LisaConfig
from uniresxx.segmenters.lisa.photos import clip_pixels
from uniresxx.segmenters.lisa.training import LisaBatch
from uniresxx.segmenters.load import load_segmenter
from uniresxx.types import Decoding, Dialogue, Expression, Granularity, ImageRecord, Phrase, Question, Turn

torch.set_num_threads(1)
photos_here = pytest.mark.skipif(
    not (REAL / "expected.json").is_file(), reason="the developers' photos are not here"
)


@pytest.fixture(scope="module", autouse=True)
def here(converting_here):
    with converting_here():
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory, tokenizer_model, here):
    """The releases, converted by the command."""
    root = tmp_path_factory.mktemp("releases")
    for peer in PEERS:
        assert convert(*release(peer, root, tokenizer_model)) == 0
    return root


@pytest.fixture(scope="module", params=PEERS)
def peer(request):
    return request.param


@pytest.fixture(scope="module")
def model(peer, root):
    """As the recorded run: in fp32, without adapters."""
    return load_segmenter(root / f"{peer}_ours", device="cpu", dtype="float32").requires_grad_(False)


def square(side, top, left, size):
    mask = np.zeros((side, side), dtype=bool)
    mask[top : top + size, left : left + size] = True
    return encode(mask)


def record_of(seed=0, side=40):
    """A photo with two things that are there and one that is not, and a conversation about them."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    car, dog = square(side, 4, 4, 10), square(side, 20, 12, 16)
    expressions = (
        Expression("a", "The red Car.", Granularity.OBJECT, car),
        Expression("b", "dogs", Granularity.MULTI, dog),
        Expression("c", "a man", Granularity.NONE, None),
    )
    both = (Phrase("car", car, Granularity.OBJECT), Phrase("man", None, Granularity.NONE))
    turns = (Turn("What is here?", answer="A car, no [SEG] of it."), Turn("And where?", both))
    return ImageRecord("x", side, side, expressions, pixels=pixels, dialogues=(Dialogue("talk", turns),))


def batch_of(model, *records, choices=(0, 1, 2)):
    samples = [model.collator.sample(r, r.pixels, choices[: len(r.expressions)]) for r in records]
    return model.collator.collate(samples)


def sums_of(model, batch):
    with torch.no_grad():
        return model.loss(model(batch), batch).sums


def recorded_batch(model, run):
    """The rows of the recorded training step, all of its one photo."""
    branches, marks = branches_of(run), model.vocabulary.marks.values()
    ids, labels, branch, position, decisions, segmented = [], [], [], [], [], []
    for number, row in enumerate(branches):
        decisions += [len(ids) + i - 1 for i, token in enumerate(row) if token in marks]
        segmented += [token == model.vocabulary.seg for token in row if token in marks]
        ids += row
        labels += [*row[1:], IGNORE]
        branch += [number] * len(row)
        position += range(len(row))
    tokens = {"token_ids_BT": ids, "labels_BT": labels, "branch_BT": branch, "position_BT": position}
    return LisaBatch(
        clip_B3HW=clip_pixels([run["photo"].numpy()], model.config.photo),
        sam_B3SS=run["sam_pixels"],
        **{name: torch.tensor([values]) for name, values in tokens.items()},
        image_of_expr_E=torch.zeros(len(decisions), dtype=torch.long),
        seg_position_E=torch.tensor(decisions),
        segmented_P=torch.tensor(segmented).nonzero()[:, 0],
        masks_photo=[run["truth"] > 0],
    )


def test_one_training_forward_has_the_losses_of_the_public_code(peer, model):
    _, run = recorded(peer)
    batch = recorded_batch(model, run)
    terms = model.loss(model(batch), batch)
    counts = model.counts(batch)
    found = [terms.weights[name] * terms.sums[name] / counts[name] for name in ("text", "mask", "dice")]
    torch.testing.assert_close(torch.stack([*found, terms.total(counts)]), run["losses"], **CLOSE)


def test_a_conversation_has_the_recorded_ids_and_its_answer_is_taught(peer, model):
    about, run = recorded(peer)
    for text, ids in zip(about["conversations"], branches_of(run), strict=True):
        question, answer = text.split("<im_end>\n")[1].removesuffix("</s>").split(" ASSISTANT: ")
        parts = re.split(r"(\[SEG\]|\[REJ\])", answer)
        pieces = model.vocabulary.answered([(question, parts)], "llava_v1")
        assert [token for piece, _ in pieces for token in piece] == ids
        taught = [token for piece, learned in pieces if learned for token in piece]
        assert taught[-1] == model.vocabulary.eos
        asked = model.vocabulary.branch(Question(question), CHAT_DECODING, "llava_v1")
        assert [*asked, *taught] == ids  # what is asked in use, then what is taught


def test_a_sample_is_worded_as_the_peer_trains(peer, model):
    sample = model.collator.sample(record_of(), record_of().pixels, (0, 4 + 3, 2 * 4))
    row, vocabulary = sample.row, model.vocabulary
    texts = [
        vocabulary.decode([t for t, b in zip(row.ids_T, row.branch_T, strict=True) if b == branch])
        for branch in range(row.next_branch)
    ]
    if peer == "gsva":
        words = ["the red car, dogs, a man in this image? ASSISTANT: The segmentation results are"]
        decided = ["[SEG]", "[SEG]", "[REJ]", "[SEG]", "[REJ]"]
        assert len(texts) == 2 and "Can you segment the red car, dogs" in texts[0]
    else:
        words = [
            "Can you segment the the red car. in this image? ASSISTANT: It is [SEG].",
            "What is dogs in this image? Please output segmentation mask. ASSISTANT: Sure, [SEG].",
            "Can you segment the a man in this image? ASSISTANT: Sure, it is [SEG].",
        ]
        decided = ["[SEG]"] * 5
        assert len(texts) == 4
    assert all(word in text for word, text in zip(words, texts, strict=False)), texts
    tokens = [row.ids_T[place + 1] for place in row.decisions]
    assert tokens == [vocabulary.marks[mark] for mark in decided]
    assert sample.segmented == [mark == "[SEG]" for mark in decided]
    assert sample.expression_ids == ["a", "b", "c", "talk", "talk"]
    assert [int(mask.sum()) for mask in sample.masks_Eyx] == [100, 256, 0, 100, 0]
    assert (
        texts[-1].startswith("What is here? ASSISTANT: A car") and "And where? ASSISTANT: car:" in texts[-1]
    )


def test_a_packed_row_has_the_loss_of_a_row_for_each_conversation(peer, model):
    record = record_of()
    groups = [(record.expressions, (0, 1, 2))]
    if peer != "gsva":  # which asks for all expressions of a photo in one conversation
        groups = [((e,), (choice,)) for e, choice in zip(record.expressions, (0, 1, 2), strict=True)]
    apart = [
        model.collator.sample(replace(record, expressions=asked, dialogues=()), record.pixels, choices)
        for asked, choices in groups
    ]
    apart.append(model.collator.sample(replace(record, expressions=()), record.pixels, ()))
    together, one_by_one = (
        sums_of(model, batch_of(model, record)),
        sums_of(model, model.collator.collate(apart)),
    )
    for name, value in together.items():
        torch.testing.assert_close(value, one_by_one[name], atol=1e-4, rtol=1e-5)


def test_the_state_that_training_prompts_with_is_that_of_answering(model):
    """The mask logits of a taught answer equal those of the same answer given in use."""
    record = replace(record_of(), dialogues=())
    batch = batch_of(model, record)
    with torch.no_grad():
        output = model(batch)
        encoded = model.encode_images([record.pixels])
        ids, branch = batch.token_ids_BT[0], batch.branch_BT[0]
        first = ids[: int(batch.seg_position_E[0]) + 1].tolist()
        assert int(branch[len(first) - 1]) == 0
        (states_TD,) = model.states(encoded.prefix, [first], [0])
        low_EYX, _ = model.decode_masks(encoded.image_BChw, states_TD[-1:], [0])
    torch.testing.assert_close(output.low_Ehw[0], low_EYX[0], atol=1e-4, rtol=0)


def test_an_image_of_rejections_or_of_words_alone_has_a_finite_loss(model):
    nothing = replace(record_of(), expressions=record_of().expressions[2:], dialogues=())
    words = Dialogue("words", (Turn("What is here?", answer="A car."),))
    talk = replace(record_of(), expressions=(), dialogues=(words,))
    for record in (nothing, talk):
        batch = batch_of(model, record)
        total = model.loss(model(batch), batch).total(model.counts(batch))
        assert torch.isfinite(total)
    assert model.counts(batch) == {"text": len(batch.labelled_Y), "mask": 0, "dice": 0}


def trainable(root, peer, **tuning):
    config = recipe_of(str(root / f"{peer}_ours")).model
    config = replace(config, tuning=replace(config.tuning, lora_dropout=0.0, **tuning))
    return build_lisa_for_training(config, open_lisa_vocabulary(config), lambda _: None)


def test_what_lisa_trains_is_trained(peer, root):
    model = trainable(root, peer)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    parts = {
        "adapters": {name for name in trained if is_adapter(name)},
        "rows": {"llm.model.embed_tokens.weight", "llm.lm_head.weight"},
        "prompt": {name for name, _ in model.named_parameters() if name.startswith("prompt.")},
        "decoder": {name for name, _ in model.named_parameters() if name.startswith("sam.mask_decoder.")},
        "early": {name for name, _ in model.named_parameters() if name.startswith("early.")},
    }
    assert trained == set().union(*parts.values())
    assert all(re.search(r"\.(q|v)_proj\.lora_[AB]\.", name) for name in parts["adapters"])
    assert len(parts["adapters"]) == 2 * 2 * model.config.text["num_hidden_layers"]
    assert bool(parts["early"]) == (peer == "m2sa")
    kept = torch.float32 if peer == "gsva" else torch.bfloat16
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {kept}


def test_trained_rows_of_new_tokens_alone_are_an_option(root):
    model = trainable(root, "gsva", token_rows="new")
    rows = [p for name, p in model.named_parameters() if name.endswith("rows_RD")]
    assert [len(p) for p in rows] == [4, 4]  # [SEG], [REJ], <im_start>, <im_end>
    assert not model.llm.lm_head.weight.requires_grad


def test_before_the_first_step_the_model_is_the_converted_one(root):
    start, model = load_segmenter(root / "gsva_ours", device="cpu"), trainable(root, "gsva").eval()
    batch = batch_of(start, record_of(1))
    for name, value in sums_of(start, batch).items():
        torch.testing.assert_close(sums_of(model, batch)[name], value)


def test_a_config_survives_its_file_and_folders_of_the_first_converter_are_read(root, tmp_path):
    values = json.loads((root / "lisa_ours" / CONFIG).read_text())
    config = LisaConfig.from_dict(values)
    assert config.tuning == replace(ALL_FROZEN, frozen_dtype="bf16")
    changed = replace(config, tuning=TuningConfig(frozen=("low",), lora_rank=2), start="x")
    assert LisaConfig.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed
    first = {
        k: v for k, v in values.items() if k not in ("tuning", "loss", "activation_checkpointing", "start")
    }
    assert LisaConfig.from_dict(first | {"dtype": "bfloat16"}) == config
    assert LisaConfig.from_dict(first | {"dtype": "float16"}).tuning == ALL_FROZEN
    with pytest.raises(InputError, match=r"part\(s\) high, and lisa has low, fusion"):
        replace(config, tuning=TuningConfig(frozen=("high",)))


def finetune(start, out, *more, steps=12):
    words = ["--from", start, "--data", REAL, "--data.source", "mini_real", "--out", out]
    words += [
        "--optim.steps",
        steps,
        "--optim.warmup_steps",
        1,
        "--data.batch_images",
        2,
        "--engine.device",
        "cpu",
        "--refusal_pictures",
        0,
    ]
    return train_main(["finetune", *map(str, [*words, *more])])


@pytest.fixture(scope="module")
def run(peer, root, tmp_path_factory):
    """A run of a few steps on real photos."""
    out = tmp_path_factory.mktemp("runs") / peer
    assert finetune(root / f"{peer}_ours", out, "--optim.lr", "1e-2") == 0
    return out


@photos_here
def test_a_few_steps_on_photos_lower_the_loss_and_leave_what_is_frozen(peer, root, run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 12 and fmean(losses[-4:]) < 0.9 * fmean(losses[:2])
    about = json.loads((run / "recipe.json").read_text())
    assert all("segment" in template for template in about["templates"]["training"])
    assert about["templates"]["evaluation"] == load_segmenter(run, device="cpu").question_template
    before = load_file(root / f"{peer}_ours" / WEIGHTS)
    after = load_file(run / "checkpoints" / "step_00000012" / WEIGHTS)
    plain = {
        name.replace(".base_layer.", "."): value for name, value in after.items() if not is_adapter(name)
    }
    assert plain.keys() == before.keys()
    moved = {name for name, value in plain.items() if not torch.equal(value, before[name])}
    trained = ("llm.model.embed_tokens", "llm.lm_head", "prompt.", "sam.mask_decoder.", "early.")
    assert all(any(name.startswith(part) for name in moved) for part in trained[:4])
    assert all(name.startswith(trained) for name in moved)


@photos_here
def test_a_trained_model_is_evaluated_exported_and_loaded_again(peer, run, tmp_path):
    """All three benchmarks under the peers' own protocols, and the answers of the exported folder."""
    for benchmark in ("refcoco/val", "grefcoco/val", "refcocom/val_part_only"):
        protocol = "gsva" if peer == "gsva" and benchmark == "grefcoco/val" else "lisa"
        (entry,) = evaluate(run, [benchmark], tmp_path / benchmark.replace("/", "_"), data=REAL, limit=1,
                            protocol=protocol, device="cpu")  # fmt: skip
        assert entry["protocol"] == protocol and entry["n_expressions"] > 0
    assert uniresxx_main(["export", str(run), str(tmp_path / "exported")]) == 0
    photo = record_of().pixels
    answers = []
    for folder in (run, tmp_path / "exported"):
        predictor = Predictor.from_pretrained(folder, Decoding(template="{expression}"), device="cpu")
        predictor.set_image(photo)
        answers.append(predictor.segment(["the car", "dogs"]))
    assert answers[0] == answers[1]


@photos_here
@pytest.mark.parametrize("peer", ["m2sa"], indirect=True, scope="module")
def test_a_run_goes_on_and_another_starts_from_it(peer, root, run, tmp_path, capsys):
    start = root / f"{peer}_ours"
    assert finetune(start, run, "--optim.lr", "1e-2", steps=13) == 0
    assert "continuing" in capsys.readouterr().out
    assert finetune(run, tmp_path / "second", "--optim.lr", "1e-3", steps=1) == 0
    first, second = (load_file(next((folder / "checkpoints").glob(f"step_{step:08d}")) / WEIGHTS)
                     for folder, step in ((run, 13), (tmp_path / "second", 1)))  # fmt: skip
    assert first.keys() == second.keys()
    assert finetune(run, tmp_path / "third", "--model.tuning.lora_rank", 4) == 2
    assert "has adapters, which are trained on as they are: give" in capsys.readouterr().err
    assert finetune(start, tmp_path / "third", "--model.text", "num_hidden_layers=1") == 2
    assert "change only --model.tuning" in capsys.readouterr().err
