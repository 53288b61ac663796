"""The cache of frozen towers' features: same bits with and without it, stale and damaged features never used."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import shutil
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm.config import MLLMConfig, TuningConfig
from mllm.modeling import MLLM
from mllm.tokens import Vocabulary
from train.job import open_job
from train.log import read_log
from train.loop import DONE, train
from train.recipe import DataConfig, EngineConfig, LogConfig, OptimConfig, Recipe, check, differences
from train.recipes.film_unet_scenes import film_unet_scenes
from train.throughput import work_counter
from uniresxx.checkpoints import folders as checkpoint
from uniresxx.data.mixture.batches import Batches
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.model import feature_cache
from uniresxx.model.build import build_model
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.model.feature_cache import FeatureCache, fingerprint, frame_name
from uniresxx.types import Expression, Granularity, ImageRecord

torch.set_num_threads(1)
CPU = torch.device("cpu")
BOTH = ("low", "high")
SMALL = MLLMConfig(
    low_size=16, low_patch=8, low_width=32, low_layers=1, low_heads=2, high_size=32,
    high_widths=(8, 16, 16, 24), llm_width=32, llm_layers=1, llm_heads=2, llm_mlp=32, vocabulary=300,
    max_objects=2, max_parts=2, roi_size=2,
)  # fmt: skip
CONFIG = UniRESPlusPlusConfig(mllm=SMALL, tuning=TuningConfig(frozen=BOTH))


def recipe_of(folder=None, steps=4, workers=0, precision="fp32", **tuning):
    return Recipe(
        "small",
        replace(CONFIG, tuning=replace(CONFIG.tuning, **tuning)),
        DataConfig(
            "scenes_easy", batch_images=3, expressions_per_image=2, workers=workers, feature_cache=folder
        ),
        OptimConfig(steps=steps, lr=1e-2, warmup_steps=1),
        EngineConfig(device="cpu", threads=1, precision=precision),
        LogConfig(save_every=2, overlay_every=99, print_every_seconds=0),
    )


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.train(["the red circle to the left of a blue square"], SMALL.vocabulary)


@pytest.fixture(autouse=True)
def _quick(monkeypatch, vocabulary):
    """No curves, and one vocabulary for all runs."""
    monkeypatch.setattr("train.job.text_corpus", lambda preset, count: [])
    monkeypatch.setattr("train.loop.draw_curve", lambda log, picture: None)
    monkeypatch.setattr("train.job.open_vocabulary", lambda config, texts: vocabulary)


def open_run(recipe):
    """The job without pictures, and how often each tower runs."""
    job = replace(open_job(recipe, None), overlay=None)
    calls = {"low": 0, "high": 0}
    for name, tower in (("low", job.model.mllm.low), ("high", job.model.mllm.high)):
        tower.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    return job, calls


def run(recipe, out):
    job, calls = open_run(recipe)
    assert train(recipe, job, out) == DONE
    return calls


def traces(out):
    """Losses and gradient norms of every step, bit by bit, and the last weights."""
    steps = [(r["loss_hex"], float(r["grad_norm"]).hex()) for r in read_log(out / "log.jsonl")]
    return steps, checkpoint.read_tensors(checkpoint.newest_verified(out, print) / "model.safetensors")


def assert_same(one, other):
    (left, weights), (right, others) = traces(one), traces(other)
    assert left == right
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def seeing(vocabulary, config=SMALL, seed=0, frozen=BOTH):
    """A model as far as the cache knows it."""
    torch.manual_seed(seed)
    model = torch.nn.Module()
    model.mllm = MLLM(config, vocabulary)
    for name in frozen:
        getattr(model.mllm, name).requires_grad_(False)
    return model


class Eyes:
    """A cache in use on frames made by hand; counts how often the towers look."""

    def __init__(self, folder, model, precision="fp32"):
        self.cache, self.mllm, self.looks = FeatureCache(folder, model), model.mllm, 0
        self.line = self.cache.open("cpu", precision)

    def __call__(self, frames, name="high"):
        def see():
            self.looks += 1
            return self.mllm.high(frames) if name == "high" else [self.mllm.low(frames)]

        return self.cache.maps(name, {name: [frame_name(f) for f in frames]}, CPU, see)


def frames_of(count, seed=0, side=32):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def entries(folder):
    return sorted(folder.glob("*/??/*.safetensors"))


@contextmanager
def no_file_above(size):
    """The operating system refuses to write more, as a full disk does (EFBIG in place of ENOSPC)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ---- the same training


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_and_weights_are_the_same_bits_cold_and_warm(tmp_path, precision, capsys):
    kept = str(tmp_path / "kept")
    plain = run(recipe_of(precision=precision), tmp_path / "plain")
    cold = run(recipe_of(kept, precision=precision), tmp_path / "cold")
    assert "high read 0, high computed 12" in capsys.readouterr().out
    warm = run(recipe_of(kept, precision=precision, workers=1), tmp_path / "warm")
    said = capsys.readouterr().out
    assert "(pictures: low 12, high 12)" in said and "low read 12, low computed 0" in said
    assert plain == cold == {"low": 4, "high": 4} and warm == {"low": 0, "high": 0}
    assert_same(tmp_path / "plain", tmp_path / "cold")
    assert_same(tmp_path / "plain", tmp_path / "warm")


@pytest.mark.parametrize("boxes", ["segmenter", "learned"])
def test_gradients_are_the_same_bits(tmp_path, boxes):
    recipe = recipe_of(str(tmp_path))
    job, calls = open_run(replace(recipe, model=replace(recipe.model, boxes=boxes)))
    model, batch = job.model, job.batches(0, 0)
    job.kept.open("cpu", "fp32")

    def gradients(cache):
        model.feature_cache = cache
        model.zero_grad(set_to_none=True)
        model.train()
        model.loss(model(batch), batch).total(model.counts(batch)).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    without, cold, warm = gradients(None), gradients(job.kept), gradients(job.kept)
    assert calls == {"low": 2, "high": 2} and len(without) > 30
    for name, gradient in without.items():
        assert torch.equal(gradient, cold[name]) and torch.equal(gradient, warm[name]), name


def test_a_run_that_stops_and_goes_on_with_it_equals_one_without(tmp_path):
    """The option may come and go when a run is continued."""
    run(recipe_of(), tmp_path / "plain")
    recipe = recipe_of(str(tmp_path / "kept"))
    assert differences(recipe_of().to_dict(), recipe.to_dict()) == []
    for mine in (recipe_of(), recipe):
        job, _ = open_run(mine)

        def crash(step, micro, batches=job.batches):
            if step == 3:
                raise ZeroDivisionError
            return batches(step, micro)

        with pytest.raises(ZeroDivisionError):
            train(mine, replace(job, batches=crash), tmp_path / "stopped", fresh=mine is recipe)
    assert run(recipe, tmp_path / "stopped") == {
        "low": 1,
        "high": 1,
    }  # step 3 again from the disk, step 4 anew
    assert_same(tmp_path / "plain", tmp_path / "stopped")


def test_only_frozen_towers_are_kept(tmp_path):
    recipe = recipe_of(str(tmp_path / "kept"), frozen=("low",))
    run(recipe, tmp_path / "cold")
    assert run(recipe, tmp_path / "warm") == {"low": 0, "high": 4}
    run(recipe_of(frozen=("low",)), tmp_path / "plain")
    assert_same(tmp_path / "plain", tmp_path / "warm")
    assert not (tmp_path / "kept/high").exists()


def test_answers_do_not_use_it(tmp_path):
    job, calls = open_run(recipe_of(str(tmp_path)))
    job.kept.open("cpu", "fp32")
    job.model.eval().encode_images([np.zeros((20, 30, 3), np.uint8)] * 2)
    assert calls == {"low": 1, "high": 1} and not entries(tmp_path) and not any(job.kept.numbers.values())


def test_kept_towers_count_no_work():
    recipe = recipe_of()
    job, _ = open_run(recipe)
    batch = job.batches(0, 0)
    whole, low, both = (work_counter(job.model, recipe.model, kept)(batch) for kept in ((), ("low",), BOTH))
    assert whole.flops > low.flops > both.flops > 0
    high = sum(
        2
        * sum(p.numel() for p in stage.parameters() if p.ndim > 1)
        * (SMALL.high_size // SMALL.high_patch // 2**s) ** 2
        * 3
        for s, stage in enumerate(job.model.mllm.high.backbone.encoder.stages)
    )
    assert low.flops - both.flops == high


# ---- what is kept


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", BOTH)
def test_maps_come_back_bit_by_bit_in_the_same_layout(tmp_path, vocabulary, name, mixed):
    eyes = Eyes(tmp_path, seeing(vocabulary))
    frames = frames_of(3, side=32 if name == "high" else 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        seen, again = eyes(frames, name), eyes(frames, name)
    assert eyes.looks == 1
    for one, other in zip(seen, again, strict=True):
        assert one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)
    if mixed and name == "high":
        assert seen[0].dtype == torch.bfloat16


def test_images_kept_one_by_one_never_share_memory(tmp_path, vocabulary):
    """The distance to the next image means nothing where there is none."""
    eyes = Eyes(tmp_path, seeing(vocabulary))
    frames = frames_of(3)
    maps = [eyes.mllm.high(frame[None]) for frame in frames]
    for frame, own in zip(frames, maps, strict=True):
        odd = [m.as_strided(m.shape, (1, *m.stride()[1:])) for m in own]
        eyes.cache.maps("high", {"high": [frame_name(frame)]}, CPU, lambda odd=odd: odd)
    found = eyes(frames)
    assert eyes.looks == 0
    assert all(torch.equal(m[b], maps[b][i][0]) for i, m in enumerate(found) for b in range(3))


def test_one_new_picture_is_seen_in_its_batch_and_the_others_files_stay(tmp_path, vocabulary):
    eyes = Eyes(tmp_path, seeing(vocabulary))
    frames = frames_of(3)
    eyes(frames[:2])
    before = {path: path.stat().st_ino for path in entries(tmp_path)}
    found = eyes(frames)
    assert all(torch.equal(a, b) for a, b in zip(found, eyes.mllm.high(frames), strict=True))
    assert {path: path.stat().st_ino for path in before} == before and len(entries(tmp_path)) == 3
    eyes(frames.flip(0))
    assert eyes.looks == 2


def one_photo(pixels):
    """A source whose every slot is this photo, under one name, with words that may be mirrored."""
    mask = np.zeros(pixels.shape[:2], bool)
    mask[4:12, 4:12] = True
    expression = Expression("x/train/1", "the red cup", Granularity.OBJECT, masks.encode(mask))
    record = ImageRecord("1", *mask.shape, (expression,), pixels=pixels)

    class Source:
        wanted = MappingProxyType({"x": 1.0})

        def __call__(self, slot, attempt=0):
            return record

        def name(self, slot, attempt=0):
            return "1"

        def label(self, slot):
            return "x"

        def hint(self, slot):
            return ""

    return Source()


def test_mirrored_changed_and_resized_photos_have_names_of_their_own(vocabulary):
    photo = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    other = photo.copy()
    other[23, 31, 2] ^= 1
    larger = replace(CONFIG, mllm=replace(SMALL, low_size=24, high_size=64))

    def names(pixels, config=CONFIG, **changes):
        batch = Batches(one_photo(pixels), config, vocabulary, 0, 2, 1, 1, named=BOTH, **changes)(0, 0)
        for tower, frames in (("low", batch.pixels_low_B3hw), ("high", batch.pixels_high_B3HW)):
            assert batch.frame_names[tower] == [frame_name(frame) for frame in frames]
            assert len({*batch.frame_names[tower]}) == 1  # both images are this photo
        assert batch.to("cpu").frame_names == batch.frame_names
        return batch.frame_names["high"][0]

    assert names(photo) == names(photo.copy())
    found = [names(photo), names(photo, flip=1.0), names(other), names(photo, larger)]
    assert len({*found}) == len(found)
    assert Batches(one_photo(photo), CONFIG, vocabulary, 0, 2, 1, 1)(0, 0).frame_names == {}


def test_a_name_is_of_shape_type_and_values():
    frame = torch.arange(12.0).reshape(3, 2, 2)
    names = [frame, frame.reshape(3, 4, 1), frame.view(torch.int32), frame + 1e-3, frame.transpose(1, 2)]
    assert len({frame_name(value) for value in names}) == len(names)
    assert frame_name(frame.transpose(1, 2).contiguous()) == frame_name(frame.transpose(1, 2))


# ---- what is refused


def changed(vocabulary, what):
    """A model and a precision that differ from those the folder was made with in one thing."""
    model, precision = seeing(vocabulary), "fp32"
    match what:
        case "weights":
            with torch.no_grad():
                next(model.mllm.low.parameters())[..., 0] += 1e-3
        case "config.low_activation":
            model = seeing(vocabulary, replace(SMALL, low_activation="gelu"))
        case "config.high_layer_scale":
            model = seeing(vocabulary, replace(SMALL, high_layer_scale=0.5))
        case "weights_dtype":
            model.mllm.high.to(torch.bfloat16)
        case "precision":
            precision = "bf16"
    return model, precision


@pytest.mark.parametrize(
    "what", ["weights", "config.low_activation", "config.high_layer_scale", "weights_dtype", "precision"]
)
def test_a_folder_of_another_tower_is_refused(tmp_path, vocabulary, what):
    Eyes(tmp_path, seeing(vocabulary))
    Eyes(tmp_path, seeing(vocabulary))  # the same again is welcome
    with pytest.raises(InputError, match=rf"another tower .*{what}: .* -> .*data.feature_cache, or delete"):
        Eyes(tmp_path, *changed(vocabulary, what))


@pytest.mark.parametrize("what", ["format", "torch", "transformers", "device", "new key"])
def test_other_versions_and_devices_are_refused(tmp_path, vocabulary, what):
    Eyes(tmp_path, seeing(vocabulary))
    path = tmp_path / "high/fingerprint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {what: "0"}))
    with pytest.raises(InputError, match=f"{what}: 0 -> "):
        Eyes(tmp_path, seeing(vocabulary))


def test_every_field_of_a_tower_is_in_its_fingerprint(vocabulary):
    found = fingerprint(seeing(vocabulary).mllm, "low", "cpu", "fp32")
    assert found["config"]["low_select_layer"] == -1 and found["config"]["low_heads"] == 2
    assert found == json.loads(json.dumps(found))  # as it comes back
    assert found == fingerprint(seeing(vocabulary).mllm, "low", "cpu", "fp32")


def test_features_that_nobody_vouches_for_are_refused(tmp_path, vocabulary):
    eyes = Eyes(tmp_path, seeing(vocabulary))
    eyes(frames_of(2))
    (tmp_path / "high/fingerprint.json").write_bytes(b"{")
    with pytest.raises(InputError, match=r"not readable JSON .* or delete .*high"):
        Eyes(tmp_path, seeing(vocabulary))
    (tmp_path / "high/fingerprint.json").unlink()
    with pytest.raises(InputError, match=r"fingerprint.json that says of what is missing: .* or delete"):
        Eyes(tmp_path, seeing(vocabulary))


def test_files_of_another_tower_are_not_used_even_below_this_ones_fingerprint(tmp_path, vocabulary):
    first, second = Eyes(tmp_path / "a", seeing(vocabulary)), Eyes(tmp_path / "b", seeing(vocabulary, seed=1))
    frames = frames_of(2)
    first(frames)
    for path in entries(tmp_path / "a"):
        target = tmp_path / "b" / path.relative_to(tmp_path / "a")
        target.parent.mkdir()
        shutil.copy(path, target)
    found = second(frames)
    assert second.looks == 1 and second.cache.numbers["high damaged"] == 2
    assert torch.equal(found[0], second.mllm.high(frames)[0])


def test_a_file_under_another_frames_name_is_not_used(tmp_path, vocabulary):
    eyes = Eyes(tmp_path, seeing(vocabulary))
    eyes(frames_of(2))
    one, other = entries(tmp_path)
    shutil.copy(one, other)
    assert torch.equal(eyes(frames_of(2))[0], eyes.mllm.high(frames_of(2))[0]) and eyes.looks == 2


def test_wrong_use_is_told_in_one_line(tmp_path):
    folder = str(tmp_path / "kept")
    with pytest.raises(InputError, match=r"--model.tuning.frozen low high"):
        open_job(recipe_of(folder, frozen=("llm",)), None)
    recipe = recipe_of(folder)
    with pytest.raises(InputError, match="zero_stage 3"):
        check(replace(recipe, engine=replace(recipe.engine, zero_stage=3)))
    check(replace(recipe, engine=replace(recipe.engine, zero_stage=2)))
    blind = replace(recipe.model, mllm=replace(SMALL, blind_to_image=True))
    with pytest.raises(InputError, match="blind to images"):
        open_job(replace(recipe, model=blind), None)
    unet = film_unet_scenes()
    with pytest.raises(InputError, match="no frozen towers"):
        open_job(replace(unet, data=replace(unet.data, feature_cache=folder)), None)
    (tmp_path / "file").write_text("")
    job, _ = open_run(recipe_of(str(tmp_path / "file")))
    with pytest.raises(InputError, match=r"file cannot be used \(Not a directory\)"):
        train(recipe, job, tmp_path / "out")


def test_a_tower_that_drops_at_random_is_not_kept(tmp_path, vocabulary):
    for name, value in (("low", "attention_dropout"), ("high", "drop_path_rate")):
        model = seeing(vocabulary)
        inner = model.mllm.low.vit if name == "low" else model.mllm.high.backbone
        setattr(inner.config, value, 0.1)
        with pytest.raises(AssertionError, match=f"the {name} tower drops"):
            FeatureCache(tmp_path, model)
    model = seeing(vocabulary)
    model.mllm.low.extra = torch.nn.Dropout(0.1)
    with pytest.raises(AssertionError, match="the low tower drops"):
        FeatureCache(tmp_path, model)


# ---- what the disk does


@pytest.fixture(scope="module")
def filled(tmp_path_factory, vocabulary):
    """One frame kept, what the tower sees in it, and the file's right bytes."""
    eyes = Eyes(tmp_path_factory.mktemp("kept"), seeing(vocabulary))
    maps = eyes(frames_of(1))
    (path,) = entries(eyes.cache.folder)
    return eyes, maps, path, path.read_bytes()


def assert_mended(filled):
    eyes, maps, path, right = filled
    looks, damaged = eyes.looks, eyes.cache.numbers["high damaged"]
    assert all(torch.equal(a, b) for a, b in zip(eyes(frames_of(1)), maps, strict=True))
    assert eyes.looks == looks + 1 and eyes.cache.numbers["high damaged"] == damaged + 1
    assert path.read_bytes() == right


@settings(max_examples=60)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), head=st.booleans())
def test_any_flipped_bit_is_found_and_mended(filled, place, bit, head):
    _, _, path, right = filled
    data = bytearray(right)
    data[int(place * (400 if head else len(data)))] ^= 1 << bit  # half of them in the header
    path.write_bytes(data)
    assert_mended(filled)


@settings(max_examples=30)
@given(length=st.floats(0, 1, exclude_max=True))
def test_a_torn_file_is_found_and_mended(filled, length):
    _, _, path, right = filled
    path.write_bytes(right[: int(length * len(right))])
    assert_mended(filled)


@pytest.mark.parametrize(
    "data", [b"\x08" + b"\0" * 7 + b"{}      ", checkpoint.tensor_bytes({"x": torch.ones(2)})]
)
def test_another_safetensors_file_is_found_and_mended(filled, data):
    filled[2].write_bytes(data)
    assert_mended(filled)


def test_a_full_disk_ends_the_writing_and_not_the_reading(tmp_path, vocabulary):
    eyes = Eyes(tmp_path, seeing(vocabulary))
    eyes(frames_of(2))
    with no_file_above(2000):
        new = eyes(frames_of(2, seed=1))
    assert torch.equal(new[0], eyes.mllm.high(frames_of(2, seed=1))[0])
    (line,) = eyes.cache.news()
    assert "no more features are kept" in line and "the disk is full" in line and "\n" not in line
    eyes(frames_of(2, seed=2))
    assert eyes.cache.news() == [] and eyes.cache.numbers["not written"] == 4
    assert eyes.looks == 3 and eyes(frames_of(2)) and eyes.looks == 3
    assert len(entries(tmp_path)) == 2 and not [*tmp_path.rglob(".writing*")]


def test_training_goes_on_when_the_disk_is_full(tmp_path, monkeypatch, capsys):
    run(recipe_of(), tmp_path / "plain")
    real, written = feature_cache.write_atomic, []

    def full(path, data):
        written.append(path)
        if len(written) > 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, data)

    monkeypatch.setattr(feature_cache, "write_atomic", full)
    run(recipe_of(str(tmp_path / "kept")), tmp_path / "out")
    said = capsys.readouterr().out
    assert (
        said.count("the disk is full") == 1 and "not written 19" in said
    )  # 2 fingerprints, 5 of 24 features
    assert_same(tmp_path / "plain", tmp_path / "out")


def test_a_disk_that_is_full_at_the_start_is_no_wrong_input(tmp_path, vocabulary, monkeypatch):
    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(feature_cache, "write_atomic", full)
    with pytest.raises(OSError, match="No space left"):  # programs exit with 1
        Eyes(tmp_path, seeing(vocabulary))


def _fill(folder, model, start, sums):
    torch.set_num_threads(1)
    start.wait()
    eyes = Eyes(folder, model)
    sums.put([float(eyes(frames_of(2, seed))[0].sum()) for seed in range(25)])


def test_two_processes_may_fill_one_folder(tmp_path, vocabulary):
    model = seeing(vocabulary)
    context = multiprocessing.get_context("fork")
    start, sums = context.Barrier(2), context.SimpleQueue()
    workers = [context.Process(target=_fill, args=(tmp_path, model, start, sums)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert sums.get() == sums.get()
    eyes = Eyes(tmp_path, model)
    for seed in range(25):
        eyes(frames_of(2, seed))
    assert eyes.looks == 0 and len(entries(tmp_path)) == 50 and not [*tmp_path.rglob(".writing*")]


def test_a_checkpoint_holds_nothing_of_it(tmp_path, vocabulary):
    model = build_model(CONFIG, vocabulary)
    before = {*model.state_dict()}
    model.feature_cache = FeatureCache(tmp_path, model)
    assert {*model.state_dict()} == before and not entries(tmp_path)
