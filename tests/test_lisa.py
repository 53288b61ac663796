"""Converted LISA, GSVA and M2SA: equal to what the public code computed (tests/data/lisa), and used as any model."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from chat_demo.session import CHAT_DECODING, Session, question_for, with_answer
from eval.run import run as evaluate
from mllm.quantization import quantization_of, quantized_in
from uniresxx.checkpoints.tensors import WEIGHTS
from uniresxx.cli import main as uniresxx_main
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.imaging.geometry import Letterbox
from uniresxx.model.losses import mask_sums
from uniresxx.predictor import Predictor
from uniresxx.segmenters.base import Segmenter
from uniresxx.segmenters.lisa.photos import clip_pixels, photo_logits, sam_pixels
from uniresxx.segmenters.load import load_segmenter
from uniresxx.types import Decoding, Question

torch.set_num_threads(1)
DATA = Path(__file__).parent / "data" / "lisa"
REAL = Path(__file__).resolve().parents[1].parent / "shared" / "mini_real"
IMAGE, SHOWN, CLOSE = -200, 40, {"atol": 1e-4, "rtol": 0}
PEERS = ("lisa", "gsva", "m2sa")


def recorded(peer):
    return json.loads((DATA / f"{peer}.json").read_text()), load_file(DATA / f"{peer}_run.safetensors")


def published(peer, kind="weights"):
    """The tensors under their published names: LISA's in bf16, GSVA's as zero_to_fp32 writes them."""
    tensors = load_file(DATA / f"{peer}_{kind}.safetensors")
    return {k: v.float() if peer == "gsva" else v.clone() for k, v in tensors.items()}


def write_pickles(folder, weights, name="pytorch_model", shards=1):
    """Weights as transformers 4 wrote them: one .bin, or shards with an index."""
    names = sorted(weights)
    parts = [names[i::shards] for i in range(shards)]
    files = (
        [f"{name}-{i + 1:05d}-of-{shards:05d}.bin" for i in range(shards)] if shards > 1 else [f"{name}.bin"]
    )
    for file, part in zip(files, parts, strict=True):
        torch.save({key: weights[key] for key in part}, folder / file)
    if shards > 1:
        where = {key: file for file, part in zip(files, parts, strict=True) for key in part}
        (folder / f"{name}.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def release(peer, root, tokenizer_model, weights=None):
    """The folders that a release consists of: LISA's with all but CLIP; GSVA's one .bin and the LLaVA it names."""
    about, _ = recorded(peer)
    weights = weights or published(peer)
    folder, clip = root / peer, root / f"{peer}_clip"
    llava = root / "llava" if peer == "gsva" else folder
    for path in (folder, clip, llava):
        path.mkdir(parents=True, exist_ok=True)
    save_file(published(peer, "clip"), clip / WEIGHTS)
    (clip / "config.json").write_text(json.dumps(about["clip_config"]))
    (clip / "preprocessor_config.json").write_text(json.dumps(about["clip_preprocessor"]))
    (llava / "config.json").write_text(json.dumps(about["config"]))
    (llava / "tokenizer.model").write_bytes(tokenizer_model())
    if llava == folder:
        (folder / "added_tokens.json").write_text(json.dumps(about["added_tokens"]))
        write_pickles(folder, weights, shards=2)
    else:
        write_pickles(folder, weights, name="gsva-7b-ft-gres")
    words = [peer, str(folder), str(root / f"{peer}_ours"), "--clip", str(clip)]
    return words if llava == folder else [*words, "--llava", str(llava)]


def convert(*words):
    return uniresxx_main(["convert", *map(str, words)])


@pytest.fixture(scope="module", autouse=True)
def here(converting_here):
    with converting_here():
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory, tokenizer_model, here):
    """Both releases, converted by the command."""
    root = tmp_path_factory.mktemp("releases")
    for peer in PEERS:
        assert convert(*release(peer, root, tokenizer_model)) == 0
    return root


@pytest.fixture(scope="module", params=PEERS)
def peer(request):
    return request.param


@pytest.fixture(scope="module")
def model(peer, root):
    # the recorded run was in fp32
    return load_segmenter(root / f"{peer}_ours", device="cpu", dtype="float32").requires_grad_(False)


@pytest.fixture(scope="module")
def encoded(peer, model):
    return model.encode_images([recorded(peer)[1]["photo"].numpy()])


def branches_of(run):
    """The recorded rows without padding and without what comes up to the image and <im_end>."""
    rows = []
    for row in run["ids"].tolist():
        while row[-1] == 0:
            row.pop()
        rows.append(row[row.index(IMAGE) + 2 :])
    return rows


def states_before_marks(model, encoded, branches):
    states = model.states(encoded.prefix, branches, [0] * len(branches))
    marks = model.vocabulary.marks.values()
    found = [
        s[i - 1] for s, row in zip(states, branches, strict=True) for i, t in enumerate(row) if t in marks
    ]
    return states, torch.stack(found)


def logits_at_photo(model, encoded, states_ED):
    low_EYX, _ = model.decode_masks(encoded.image_BChw, states_ED, [0] * len(states_ED))
    return torch.stack([photo_logits(low, encoded.letterboxes[0]) for low in low_EYX])


def with_seg(model, branches):
    """GSVA's second pass: [REJ] replaced by [SEG]."""
    rej = model.vocabulary.marks.get("[REJ]")
    return [[model.vocabulary.seg if token == rej else token for token in row] for row in branches]


def test_photos_are_prepared_as_recorded(peer, model):
    about, run = recorded(peer)
    photo = run["photo"].numpy()
    box = Letterbox.fit(*photo.shape[:2], 64)
    torch.testing.assert_close(clip_pixels([photo], model.config.photo)[..., ::8, ::8], run["clip_pixels"])
    torch.testing.assert_close(sam_pixels(photo, box)[None], run["sam_pixels"])
    assert about["resized"] == [box.inner_height, box.inner_width]


@pytest.mark.parametrize("size", [(30, 47), (61, 20), (224, 224), (300, 225)])
def test_clips_pixels_equal_transformers(size, model):
    from transformers import CLIPImageProcessorPil

    photo = np.random.default_rng(sum(size)).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = CLIPImageProcessorPil(**model.config.photo)([photo], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(clip_pixels([photo], model.config.photo), expected, atol=1e-5, rtol=0)


def test_photos_encoded_apart_are_answered_as_together(peer, model):
    photo = recorded(peer)[1]["photo"].numpy()
    photos, texts = [photo, photo[:, ::-1].copy()], [["the cat", "the dog"], ["the dog"]]
    together = model.encode_images(photos)
    wanted = model.answer(together, texts, Decoding(max_new_tokens=4))
    apart = [model.encode_images([one]) for one in photos]
    for parts in (apart, model.split_images(together)):
        found = model.answer(model.join_images(parts), texts, Decoding(max_new_tokens=4))
        assert [(p.text, p.rejected) for p in found] == [(p.text, p.rejected) for p in wanted]
        assert [p.rle for p in found] == [p.rle for p in wanted]


def test_a_preprocessor_of_another_clip_is_refused(tmp_path, tokenizer_model, capsys):
    words = release("lisa", tmp_path, tokenizer_model)
    path = tmp_path / "lisa_clip" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": 336, "crop_size": 336}))
    refused(capsys, words, "CLIP takes 224 x 224 pixels", "of different models")


def test_token_ids_are_the_recorded_ones(peer, model):
    about, _ = recorded(peer)
    vocabulary = model.vocabulary
    for text, ids in about["tokens"]["texts"].items():
        if "[SEG]" not in text:
            assert vocabulary.encode(text) == ids
    assert {t: vocabulary.tokenizer.token_to_id(t) for t in about["added_tokens"]} == about["added_tokens"]


def test_questions_and_given_answers_have_the_recorded_ids(peer, model):
    about, run = recorded(peer)
    *answered, asked = about["tokens"]["conversations"].values()
    before, after = model.vocabulary.prefix(model.config.conversation)
    words = "the red car, dogs, a man" if peer == "gsva" else "the red car"
    decoding = Decoding(template=model.question_template)
    branch = model.vocabulary.branch(Question(words.upper()), decoding, model.config.conversation)
    assert [*before, IMAGE, *after, *branch] == asked
    assert answered == [[t for t in row if t] for row in run["ids"].tolist()]
    forced = model.vocabulary.forced_answer(words)
    if peer != "gsva":  # "[SEG]." follows at once
        assert answered[0][: len(asked) + 1] == [*asked, model.vocabulary.seg] and not forced
    else:
        first = [*asked, *model.vocabulary.forced_answer("the red car"), model.vocabulary.seg]
        assert answered[0][: len(first)] == first


def test_an_earlier_turn_has_the_ids_of_its_conversation(peer, model):
    about, run = recorded(peer)
    text = about["conversations"][0]
    question = text.split("<im_end>\n")[1].split(" ASSISTANT: ")[0]
    answer = text.split(" ASSISTANT: ")[1].removesuffix("</s>")
    branch = model.vocabulary.branch(Question("and now?", ((question, answer),)), CHAT_DECODING, "llava_v1")
    first = branches_of(run)[0]
    assert branch[: len(first)] == first and first[-1] == model.vocabulary.eos
    assert model.vocabulary.decode(branch[len(first) :]) == "USER: and now? ASSISTANT:"


def test_logits_and_prompts_equal_the_public_code(peer, model, encoded):
    _, run = recorded(peer)
    branches = branches_of(run)
    states, _ = states_before_marks(model, encoded, branches)
    final, _ = states_before_marks(model, encoded, with_seg(model, branches))
    longest = max(map(len, branches))
    for row, branch in enumerate(branches):
        shown = SHOWN - (longest - len(branch))
        ours = model.llm.lm_head(states[row])[-shown:]
        torch.testing.assert_close(ours, run["logits"][row, :shown], **CLOSE)
        torch.testing.assert_close(model.prompt(final[row])[-shown:], run["prompts"][row, :shown], **CLOSE)


def test_mask_logits_equal_the_public_code(peer, model, encoded):
    _, run = recorded(peer)
    _, states_ED = states_before_marks(model, encoded, with_seg(model, branches_of(run)))
    torch.testing.assert_close(logits_at_photo(model, encoded, states_ED), run["masks"], **CLOSE)


def test_training_losses_equal_the_public_code(peer, model, encoded):
    _, run = recorded(peer)
    branches = branches_of(run)
    states, states_ED = states_before_marks(model, encoded, branches)
    logits = torch.cat([model.llm.lm_head(s)[:-1] for s in states])
    text = F.cross_entropy(logits, torch.cat([torch.tensor(row[1:]) for row in branches]))
    logits_Eyx = logits_at_photo(model, encoded, states_ED)
    marks = [token for row in branches for token in row if token in model.vocabulary.marks.values()]
    rejected = torch.tensor([token != model.vocabulary.seg for token in marks])
    logits_Eyx[rejected] = 0  # GSVA's loss keeps a place without a mask
    # dice of pixels divided by 1000, smoothed by 1e-6
    bce, dice = mask_sums(logits_Eyx, run["truth"], torch.ones_like(run["truth"]), smooth=1e-3)
    found = torch.stack((text, 2 * bce / len(marks), 0.5 * dice / len(marks)))
    torch.testing.assert_close(torch.cat((found, found.sum()[None])), run["losses"], **CLOSE)


def test_generated_answer_and_masks_equal_lisas_chat(root):
    model = load_segmenter(root / "lisa_ours", device="cpu", dtype="float32")
    _, run = recorded("lisa")
    encoded = model.encode_images([run["photo"].numpy()])
    text = "What is the red car in this image? Please output segmentation mask."
    heard = []
    decoding = Decoding(template="{expression}", max_new_tokens=12)
    (found,) = model.answer(encoded, [[text]], decoding, lambda number, words: heard.append((number, words)))
    assert heard[-1] == (0, found.text) and len(heard) > 1 and found.text.startswith(heard[0][1])
    assert found.text == model.vocabulary.decode(run["generated"].tolist()) and "[SEG]" in found.text
    assert found.truncated and not found.rejected and found.p_absent is None
    np.testing.assert_array_equal(masks.decode(found.rle), (run["generated_masks"] > 0).any(dim=0).numpy())


def test_gsva_decides_as_recorded(root):
    model = load_segmenter(root / "gsva_ours", device="cpu", dtype="float32")
    _, run = recorded("gsva")
    encoded = model.encode_images([run["photo"].numpy()])
    (branch,) = branches_of(run)
    _, states_ED = states_before_marks(model, encoded, [branch])
    chosen = model.llm.lm_head(states_ED).argmax(dim=-1)
    vocabulary = model.vocabulary
    decided = run["decided"][-len(branch) :]
    marks = [i for i, token in enumerate(branch) if token in vocabulary.marks.values()]
    for place, token in zip(marks, chosen.tolist(), strict=True):
        other = next(t for t in vocabulary.marks.values() if t != branch[place])
        assert int(decided[place]) == (branch[place] if token == branch[place] else other)


def test_answers_do_not_depend_on_what_is_asked_beside_them(model):
    photos = [
        np.random.default_rng(i).integers(0, 256, (20 + 9 * i, 30, 3), dtype=np.uint8) for i in range(2)
    ]
    texts = [["the red car", "a man on the left"], ["dogs"]]
    decoding = Decoding(template=model.question_template, max_new_tokens=6)
    together = model.answer(model.encode_images(photos), texts, decoding)
    alone = [
        model.answer(model.encode_images([photo]), [[text]], decoding)[0]
        for photo, row in zip(photos, texts, strict=True)
        for text in row
    ]
    assert [a.text for a in together] == [a.text for a in alone]
    for a, b in zip(together, alone, strict=True):
        assert (a.rle, a.mask_if_forced) == (b.rle, b.mask_if_forced)
        assert a.score == pytest.approx(b.score, abs=1e-5)
    assert model.answer(model.encode_images(photos), [[], []], decoding) == []


def test_without_a_decision_the_given_answer_makes_the_mask(model, encoded):
    decoding = Decoding(template=model.question_template, max_new_tokens=1)
    texts = [
        "a man",
        "dogs",
        "the red car",
        "an image of it",
        "humans",
        "two",
        "wheel",
        "language",
        "a",
        "is",
    ]
    answers = zip(texts, model.answer(encoded, [texts], decoding), strict=True)
    text, found = next((text, found) for text, found in answers if "[" not in found.text)
    assert found.rejected and found.rle is None
    branch = model.vocabulary.branch(Question(text), decoding, "llava_v1") + model.vocabulary.forced_answer(
        text
    )
    (states,) = model.states(encoded.prefix, [branch], [0])
    expected = logits_at_photo(model, encoded, states[-1:])[0] > 0
    np.testing.assert_array_equal(masks.decode(found.mask_if_forced), expected.numpy())


def test_a_typed_mark_is_plain_text(model, encoded):
    vocabulary = model.vocabulary
    ids = vocabulary.branch(Question("the [SEG] <im_start> </s> [REJ] car"), CHAT_DECODING, "llava_v1")
    assert not {*vocabulary.marks.values(), vocabulary.eos, vocabulary.image_start} & set(ids)


def test_another_rule_or_attention_is_refused(model, encoded, peer, root):
    with pytest.raises(InputError, match="no presence head, use 'token'"):
        model.answer(encoded, [["a"]], Decoding(rule="token_and_presence"))
    with pytest.raises(InputError, match="needs 'sdpa' or 'eager'"):
        load_segmenter(root / f"{peer}_ours", device="cpu", attention="flex_attention")
    eager = load_segmenter(root / f"{peer}_ours", device="cpu", attention="eager")
    assert isinstance(eager, Segmenter) and eager.llm.config._attn_implementation == "eager"


def test_weights_keep_their_dtype(peer, root):
    dtype = torch.float32 if peer == "gsva" else torch.bfloat16
    assert {t.dtype for t in load_file(root / f"{peer}_ours" / WEIGHTS).values()} == {dtype}
    model = load_segmenter(root / f"{peer}_ours", device="cpu")
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_adapters_are_found_under_every_name_that_peft_gave_them(root, tmp_path, tokenizer_model):
    """peft 0.4, later peft, and merged by hand: the same model."""
    given = published("gsva")
    later = {k.replace("_proj.weight", "_proj.base_layer.weight"): v for k, v in given.items()}
    merged = {}
    for name, value in given.items():
        name = name.removeprefix("base_model.model.")
        if "lora_" not in name:
            merged[name] = value
    for name, value in list(merged.items()):
        a = given.get(f"base_model.model.{name.removesuffix('weight')}lora_A.default.weight")
        b = given.get(f"base_model.model.{name.removesuffix('weight')}lora_B.default.weight")
        if a is not None:
            merged[name] = value + 16 / 4 * (b @ a)
    expected = load_file(root / "gsva_ours" / WEIGHTS)
    for name, weights in (("later", later), ("merged", merged)):
        assert convert(*release("gsva", tmp_path / name, tokenizer_model, weights)) == 0
        found = load_file(tmp_path / name / "gsva_ours" / WEIGHTS)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)


def test_a_tower_among_the_weights_is_used(root, tmp_path, tokenizer_model):
    """GSVA's state holds CLIP too; without --clip its sizes come from the shapes."""
    tower = {
        f"base_model.model.model.vision_tower.vision_tower.{k}": v
        for k, v in published("gsva", "clip").items()
    }
    words = release("gsva", tmp_path, tokenizer_model, published("gsva") | tower)
    at = words.index("--clip")
    assert convert(*words[:at], *words[at + 2 :]) == 0
    ours, theirs = (load_file(r / "gsva_ours" / WEIGHTS) for r in (tmp_path, root))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    vision = json.loads((tmp_path / "gsva_ours" / "config.json").read_text())["vision"]
    assert (vision["image_size"], vision["patch_size"], vision["num_hidden_layers"]) == (56, 14, 3)


def test_clip_may_be_a_pickle_or_of_the_hub(root, tmp_path, tokenizer_model, monkeypatch):
    words = release("lisa", tmp_path, tokenizer_model)
    clip = tmp_path / "lisa_clip"
    write_pickles(clip, published("lisa", "clip"))
    (clip / WEIGHTS).unlink()
    monkeypatch.setattr("uniresxx.checkpoints.convert.downloaded", {"openai/clip": clip}.__getitem__)
    at = words.index("--clip") + 1
    assert convert(*words[:at], "hub:openai/clip", *words[at + 1 :]) == 0
    ours, theirs = (load_file(folder / "lisa_ours" / WEIGHTS) for folder in (tmp_path, root))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def refused(capsys, words, *parts):
    """One line with these parts, exit code 2, and no OUT."""
    out = Path(words[2])
    assert convert(*words) == 2
    line = capsys.readouterr().err.strip().splitlines()
    assert len(line) == 1 and all(part in line[0] for part in parts), line
    assert not out.exists() or not [p for p in out.iterdir() if p.name != ".uniresxx.json"]
    assert not list(out.parent.glob(".converting*"))


def changed(change):
    weights = published("lisa")
    change(weights)
    return weights


WRONG = {
    "missing": (lambda w: w.pop("lm_head.weight"), ["lm_head.weight"]),
    "a missing part of SAM": (
        lambda w: w.pop("model.visual_model.mask_decoder.mask_tokens.weight"),
        ["1 missing", "sam.mask_decoder.mask_tokens.weight"],
    ),
    "extra": (
        lambda w: w.update({"model.grounding_encoder.x": torch.ones(2)}),
        ["is not a released LISA, GSVA or M2SA", "model.grounding_encoder.x"],
    ),
    "extra in SAM": (
        lambda w: w.update({"model.visual_model.mask_decoder.more.weight": torch.ones(2)}),
        ["1 unexpected", "sam.mask_decoder.more.weight"],
    ),
    "a part of M2SA's early features": (
        lambda w: w.update({"model.visual_model.mask_decoder.compress_vit.0.weight": torch.ones(2)}),
        ["early=True with peer='lisa'", "m2sa alone"],
    ),
    "another shape": (
        lambda w: w.update({"model.norm.weight": torch.ones(31)}),
        ["1 of another shape", "llm.model.norm.weight (31,) instead of (32,)"],
    ),
    "SAM of another shape": (
        lambda w: w.update({"model.visual_model.image_encoder.pos_embed": torch.ones(4, 4)}),
        ["no whole lisa", "their shapes give no sizes"],
    ),
    "SAM without what tells its size": (
        lambda w: w.pop("model.visual_model.mask_decoder.iou_token.weight"),
        ["no whole lisa", "sam.mask_decoder.iou_token.weight"],
    ),
    "an adapter of another width": (
        lambda w: w.update(
            {f"model.layers.0.self_attn.q_proj.lora_{k}.weight": torch.ones(4, 31) for k in "AB"}
        ),
        ["adapter of model.layers.0.self_attn.q_proj.weight does not fit"],
    ),
    "half an adapter": (
        lambda w: w.update({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 32)}),
        ["1 names have no place", "q_proj.weight"],
    ),
    "other token rows": (
        lambda w: w.update(
            {"model.embed_tokens.weight": torch.ones(400, 32), "lm_head.weight": torch.ones(400, 32)}
        ),
        ["has 383 tokens", "400 token rows", "different models"],
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_weights_that_do_not_fit_are_refused_whole(what, tmp_path, tokenizer_model, capsys):
    change, parts = WRONG[what]
    words = release("lisa", tmp_path, tokenizer_model, changed(change))
    refused(capsys, words, *parts)


def test_what_a_release_lacks_is_named(tmp_path, tokenizer_model, capsys):
    words = release("lisa", tmp_path, tokenizer_model)
    refused(capsys, words[:3], "no CLIP tower", "--clip DIR")
    (tmp_path / "lisa" / "tokenizer.model").unlink()
    refused(capsys, words, "neither tokenizer.model nor tokenizer.json")
    (tmp_path / "lisa" / "pytorch_model-00002-of-00002.bin").unlink()
    refused(capsys, words, "pytorch_model-00002-of-00002.bin", "copy all shards")
    refused(capsys, ["lisa", str(tmp_path / "nowhere"), str(tmp_path / "out")], "does not exist")


def test_segment_chat_and_export_take_it(root, peer, tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(recorded(peer)[1]["photo"].numpy()).save(photo)
    checkpoint = str(root / f"{peer}_ours")
    out = tmp_path / "out"
    assert (
        uniresxx_main(["segment", str(photo), "the red car", "--checkpoint", checkpoint, "--out", str(out)])
        == 0
    )
    assert json.loads((out / "photo.json").read_text())["height"] == 30
    predictor = Predictor.from_pretrained(
        checkpoint, Decoding(template="{expression}", max_new_tokens=4), device="cpu"
    )
    predictor.set_image(str(photo))
    session = Session()
    for text in ("What is the red car?", "and the dogs?"):
        (answer,) = predictor.segment(question_for(session, text))
        session = with_answer(session, text, answer)
    assert len(session.turns) == 2
    exported = tmp_path / "exported"
    assert uniresxx_main(["export", checkpoint, str(exported)]) == 0
    again = Predictor.from_pretrained(exported, predictor.decoding, device="cpu")
    again.set_image(str(photo))
    assert again.segment("What is the red car?") == predictor.segment("What is the red car?")


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_the_language_model_opens_in_few_bits(kind, peer, model, root):
    """Every matrix of its layers is quantised, CLIP, SAM, projector and prompt are not; states as with the matrices
    that the codes stand for (8 bits round the inputs too)."""
    few = load_segmenter(root / f"{peer}_ours", device="cpu", dtype="float32", quantization=kind)
    few.requires_grad_(False)
    assert quantization_of(few.llm) == kind
    assert {name.rpartition(".")[0] for name in quantized_in(few)} == {
        f"llm.model.layers.{layer}.{part}"
        for layer in range(few.llm.config.num_hidden_layers)
        for part in ("self_attn", "mlp")
    }
    same = copy.deepcopy(model)
    for name, matrix in quantized_in(few).items():
        same.get_submodule(name).weight.copy_(matrix.dequantized())
    run = recorded(peer)[1]
    exact, found = (
        states_before_marks(m, m.encode_images([run["photo"].numpy()]), branches_of(run))[1]
        for m in (same, few)
    )
    assert (found - exact).std() < (0.05 if kind == "int8" else 1e-4) * exact.std()
    assert few.answer(
        few.encode_images([run["photo"].numpy()]), [["the red car"]], Decoding(max_new_tokens=3)
    )


@pytest.mark.skipif(not (REAL / "expected.json").is_file(), reason="the developers' photos are not here")
def test_benchmarks_are_evaluated_and_scored_by_the_peers_own_rules(root, peer, tmp_path):
    for benchmark in ("refcoco/val", "grefcoco/val", "refcocom/val_part_only"):
        protocol = peer if benchmark == "grefcoco/val" and peer == "gsva" else "lisa"
        out = tmp_path / benchmark.replace("/", "_")
        (entry,) = evaluate(
            root / f"{peer}_ours", [benchmark], out, data=REAL, limit=2, protocol=protocol, device="cpu"
        )
        assert entry["protocol"] == protocol and entry["n_expressions"] > 0
        assert 0 <= entry["overall"]["gIoU"] <= 100
        question = load_segmenter(root / f"{peer}_ours", device="cpu").question_template
        assert entry["template"] == question or entry["decoding"]["template"] == question
        lines = (out / benchmark / "predictions.jsonl").read_text().splitlines()
        assert len(lines) == entry["n_expressions"]
