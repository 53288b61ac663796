"""The order of training data: every epoch whole, shares in expressions, the same for any ranks and workers."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm.tokens import Vocabulary
from train.assemble import open_job
from train.loop import DONE, train
from train.recipe import DataConfig, check
from train.recipes import KNOWN
from train.step import TrainingError, prefetch
from uniresxx.data.catalog import benchmark_name, find_store, open_benchmark
from uniresxx.data.mixture.batches import Batches, SceneSource
from uniresxx.data.mixture.counts import count_asked, texts_of
from uniresxx.data.mixture.data_log import DataError, DataLog, StepData, read_quarantine
from uniresxx.data.mixture.mix import Mixture, OpenedPart, PartSchedule
from uniresxx.data.mixture.open import open_mixture
from uniresxx.data.mixture.parts import MIXTURES, MixturePart
from uniresxx.data.scenes import scene_record
from uniresxx.data.store.read import Store, StoreRecords
from uniresxx.data.store.write import Preparation, write_store
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.model.collate import PackedCollator
from uniresxx.types import BadSample, Expression, Granularity, ImageRecord

ROOT = Path(__file__).resolve().parents[1]
KINDS = tuple(Granularity)
SMALL = replace(
    KNOWN["tiny_scenes"]().model.mllm, llm=KNOWN["tiny_scenes"]().model.mllm.llm | dict(vocab_size=300)
)
CONFIG = replace(KNOWN["tiny_scenes"]().model, mllm=SMALL)


def record(name: str, kinds: str, **changes) -> ImageRecord:
    """A grey picture with one expression per letter of `kinds`: p, o, m, n."""
    mask = np.zeros((6, 8), dtype=bool)
    mask[2:4, 1:5] = True
    said = tuple(
        Expression(f"toy/train/{name}_{i}", f"thing {name}", KINDS["pomn".index(kind)],
                   None if kind == "n" else masks.encode(mask), 0 if kind == "n" else 8)
        for i, kind in enumerate(kinds)
    )  # fmt: skip
    pixels = np.full((6, 8, 3), 90, dtype=np.uint8)
    return replace(ImageRecord(name, 6, 8, said, pixels=pixels), **changes)


def pool(
    label: str, count: int, kinds: str = "oo", weight: float = 1.0, only=(), shown: int = 4
) -> OpenedPart:
    return OpenedPart(label, [record(f"{label}{i}", kinds) for i in range(count)], shown, weight, only)


def some(mixture: Mixture, start: int, stop: int) -> list[tuple[int, int]]:
    return [(d.part, d.row) for d in (mixture.index(slot) for slot in range(start, stop))]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train(["Segment the thing."] * 9, 300)


# ---- the order

# of grain 0.2.18
GOLDEN = [(0, 1), (0, 5), (0, 6), (1, 0), (0, 4), (0, 0), (1, 1), (0, 2), (0, 3), (1, 2), (0, 2), (0, 4)]
GOLDEN_LATE = [(0, 3), (0, 2), (0, 1)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=7), st.integers(0, 10**12))
def test_any_stretch_of_slots_has_the_shares(shares, start):
    schedule, whole = PartSchedule(tuple(shares)), sum(shares)
    for length in (1, 7, 100, 10**5, whole):
        first, last = schedule.counts_before(start), schedule.counts_before(start + length)
        counts = [b - a for a, b in zip(first, last, strict=True)]
        assert sum(counts) == length and min(counts) >= 0
        for share, count in zip(shares, counts, strict=True):
            assert abs(count - length * share / whole) <= 2 * len(shares)
    assert schedule.counts_before(3 * whole) == [3 * share for share in shares]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_slots_count_up_within_each_part(shares):
    schedule, seen = PartSchedule(tuple(shares)), Counter()
    for slot in range(3 * sum(shares)):
        part, place = schedule[slot]
        assert place == seen[part]
        seen[part] += 1
    assert [seen[i] for i in range(len(shares))] == [3 * share for share in shares]


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(0, 2**31), st.data())
def test_every_record_once_in_every_epoch(sizes, seed, data):
    weights = [data.draw(st.floats(0.2, 5.0)) for _ in sizes]
    pools = [pool(f"p{i}", n, weight=w) for i, (n, w) in enumerate(zip(sizes, weights, strict=True))]
    mixture = Mixture(tuple(pools), seed)
    rows: dict[int, list[int]] = {i: [] for i in range(len(sizes))}
    for part, row in some(mixture, 0, 60):
        rows[part].append(row)
    for part, size in enumerate(sizes):
        for epoch in range(len(rows[part]) // size):
            assert sorted(rows[part][epoch * size : (epoch + 1) * size]) == list(range(size))


def test_each_epoch_has_an_order_of_its_own():
    mixture = Mixture((pool("a", 12), pool("b", 12)), 5)
    by_part: dict[int, list[int]] = {0: [], 1: []}
    for part, row in some(mixture, 0, 96):
        by_part[part].append(row)
    epochs = [tuple(rows[i : i + 12]) for rows in by_part.values() for i in range(0, 48, 12)]
    assert len(set(epochs)) == len(epochs)
    assert some(mixture, 0, 24) != some(Mixture(mixture.parts, 6), 0, 24)


def test_the_order_equals_the_recorded_order():
    """A new version of grain must not change the order silently: it would be another training run."""
    mixture = Mixture((pool("a", 7, weight=2.0), pool("b", 3)), 11)
    assert some(mixture, 0, 12) == GOLDEN
    assert some(mixture, 10**9, 10**9 + 3) == GOLDEN_LATE


def test_a_slot_does_not_depend_on_earlier_calls():
    mixture = Mixture((pool("a", 7, weight=3.0), pool("b", 3)), 11)
    whole = some(mixture, 0, 90)
    assert some(Mixture(mixture.parts, 11), 60, 90) == whole[60:]
    assert some(pickle.loads(pickle.dumps(mixture)), 30, 60) == whole[30:60]
    assert mixture.schedule.counts_before(90) == [68, 22] and mixture.schedule.counts_before(80) == [60, 20]


def test_weights_are_counted_in_expressions():
    """A picture that shows 8 of its 20 expressions counts 8, so its data set gets fewer slots."""
    parts = (pool("many", 5, "o" * 20, 3.0, shown=8), pool("few", 5, "on", 1.0, shown=8))
    mixture, seen = Mixture(parts, 0), Counter()
    for slot in range(440):
        seen[mixture.origin(slot).data_set] += min(8, len(mixture(slot).expressions))
    assert seen["many"] / seen.total() == pytest.approx(0.75, abs=0.01)
    assert mixture.shares == {"many": 0.75, "few": 0.25}


def test_a_part_of_some_granularities_shows_only_them():
    records = [record("a", "oom"), record("b", "oo"), record("c", "nm")]
    mixture = Mixture((OpenedPart("toy[multi]", records, 4, granularities=(Granularity.MULTI,)),), 0)
    assert {mixture(slot).image_id for slot in range(20)} == {"a", "c"}
    assert {e.granularity for slot in range(20) for e in mixture(slot).expressions} == {"multi"}
    with pytest.raises(InputError, match=r"toy: holds no expression of part"):
        OpenedPart("toy", records, 4, granularities=(Granularity.PART,))


def test_importing_grain_prints_nothing():
    code = "from uniresxx.data.mixture.mix import import_grain; import_grain()"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stderr == run.stdout == ""


# ---- batches: ranks, workers, bad samples


def batches_of(source, vocabulary, images=8, accumulate=2, **changes) -> Batches:
    return Batches(source, PackedCollator(CONFIG, vocabulary), 7, images, accumulate, 3, **changes)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 1000), st.integers(0, 10**6), st.data())
def test_ranks_divide_the_same_global_batch(images, accumulate, step, seed, data):
    whole = Batches(SceneSource("scenes_easy", 0), PackedCollator(CONFIG, None), seed, images, accumulate, 3)
    world = data.draw(st.integers(1, images))
    ranks = [whole.for_rank(rank, world) for rank in range(world)]
    for micro in range(accumulate):
        slots = [slot for rank in ranks for slot in rank.slots(step, micro)]
        assert slots == list(whole.slots(step, micro)) and len(slots) == images
    every = [slot for micro in range(accumulate) for slot in whole.slots(step, micro)]
    assert every == list(range(step * images * accumulate, (step + 1) * images * accumulate))


def test_ranks_prepare_what_one_process_prepares(vocabulary):
    whole = batches_of(Mixture((pool("a", 7, "onm"), pool("b", 3)), 4), vocabulary)
    for world in (1, 2, 8):
        cut = [whole.for_rank(rank, world)(3, 1) for rank in range(world)]
        assert [i for batch in cut for i in batch.expression_ids] == whole(3, 1).expression_ids
        assert sum((Counter(batch.drawn) for batch in cut), Counter()) == +Counter(whole(3, 1).drawn)
    with pytest.raises(InputError, match=r"--data\.batch_images"):
        whole.for_rank(0, 9)


def broken(count: int = 12) -> list[ImageRecord]:
    """Records of which number 1 has no photo and number 2 a mask of another size."""
    made = [record(str(i), "on") for i in range(count)]
    made[1] = replace(made[1], pixels=None, path="nowhere/1.jpg")
    wrong = replace(made[2].expressions[0], rle=masks.encode(np.ones((5, 5), dtype=bool)))
    made[2] = replace(made[2], expressions=(wrong,))
    return made


def test_bad_samples_are_replaced_and_no_other_sample_changes(vocabulary):
    good = [record(str(i), "on") for i in range(12)]
    sources = [Mixture((OpenedPart("toy", r, 3, hint="set --data"),), 4) for r in (broken(), good)]
    hurt, whole = (batches_of(source, vocabulary) for source in sources)
    bad = 0
    for slot in range(48):
        row, one = sources[0].index(slot).row, hurt.draw(slot)
        if row in (1, 2):
            assert (
                one.bad
                and one.bad[0].key == f"toy row {row}"
                and one.sample.expression_ids[0][10:] not in "12"
            )
            reason = "no such photo (set --data)" if row == 1 else "a mask is [5, 5]"
            assert reason in one.bad[0].reason
            assert hurt.draw(slot).bad == one.bad
            bad += 1
        else:
            assert one.sample.expression_ids == whole.draw(slot).sample.expression_ids and one.bad == ()
    assert bad == 8


def recipe_with(workers: int, steps: int):
    recipe = KNOWN["tiny_scenes"]()
    data = replace(recipe.data, workers=workers, batch_images=4, accumulate=1)
    return replace(recipe, data=data, optim=replace(recipe.optim, steps=steps))


def test_workers_give_the_same_batches_and_the_same_bad_samples(vocabulary):
    source = Mixture((OpenedPart("toy", broken(), 3), pool("other", 5)), 4)
    batches = batches_of(source, vocabulary, 4, 1)
    seen = []
    for workers in (0, 2):
        steps = list(prefetch(batches, recipe_with(workers, 6), 1))
        seen.append([(b.expression_ids, b.bad, b.drawn) for micro in steps for b in micro])
        assert all(torch.equal(m[0].pixels_high_B3HW, batches(1 + i, 0).pixels_high_B3HW)
                   for i, m in enumerate(steps))  # fmt: skip
    assert seen[0] == seen[1] and len(seen[0]) == 5 and any(bad for _, bad, _ in seen[0])


def test_too_many_bad_samples_in_a_row_stop_the_run_and_are_listed(vocabulary):
    lost = [record(str(i), "o", pixels=None, path=f"nowhere/{i}.jpg") for i in range(30)]
    batches = batches_of(Mixture((OpenedPart("toy", lost, 3, hint="set --data DIR"),), 4), vocabulary)
    with pytest.raises(
        DataError, match=r"10 samples in a row .*nowhere/\d+\.jpg: no such photo \(set --data DIR\)"
    ):
        batches(0, 0)
    with pytest.raises(TrainingError, match="10 samples in a row"):
        list(prefetch(batches, recipe_with(1, 2), 0))


@pytest.mark.parametrize("error", [MemoryError, ImportError])
def test_errors_that_no_sample_causes_stop_the_run(vocabulary, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr("uniresxx.model.collate.make_sample", fails)
    with pytest.raises(error):
        batches_of(Mixture((pool("a", 3),), 4), vocabulary).draw(0)


def test_bad_samples_are_written_once_and_limited(tmp_path):
    log = DataLog({"toy": 1.0}, 4, 0.001)
    bad = [BadSample(slot, f"toy row {slot}", "no such photo é") for slot in range(0, 44, 4)]
    for step, item in enumerate(bad[:10]):
        log.record(tmp_path, step, [StepData({}, [item])])
    again = DataLog({"toy": 1.0}, 4, 0.001)  # a run that continues, and does two steps a second time
    for step in (8, 9):
        again.record(tmp_path, step, [StepData({}, [bad[step]])])
    assert read_quarantine(tmp_path / "quarantine.jsonl") == bad[:10]
    with pytest.raises(
        DataError, match=r"11 of 44 samples .*data\.max_bad_fraction 0\.001 .*toy row 40: no such photo"
    ):
        again.record(tmp_path, 10, [StepData({}, [bad[10]])])
    with (tmp_path / "quarantine.jsonl").open("a") as stream:
        stream.write('{"slot": 3, "ke')
    assert len(read_quarantine(tmp_path / "quarantine.jsonl")) == 11
    with pytest.raises(DataError):
        DataLog({"toy": 1.0}, 4, 0.0).record(tmp_path / "..", 0, [StepData({}, [bad[0]])])


def test_what_was_drawn_is_reported(tmp_path):
    log = DataLog({"a": 0.75, "b b": 0.25}, 4, 0.001)
    noted = log.record(
        tmp_path,
        0,
        [StepData({"a images": 2, "a part": 3}, []), StepData({"b b images": 1, "b b none": 1}, [])],
    )
    assert noted["a part"] == 3 and noted["b b none"] == 1 and noted["a multi"] == 0
    lines = log.report(tmp_path, [noted, {"a object": 4}])
    assert lines[0] == "drawn: a: 7 expressions, 87.5 % (wanted 75.0 %): 3 part, 4 object; 2 images"
    assert '"bad_samples": 0' in (tmp_path / "data.json").read_text()


# ---- stores


def store_at(path: Path, records, split: str = "train", **about) -> Store:
    return write_store(path, Preparation("toy", {split: lambda: (records, {})}, about=about))


def test_a_store_is_counted_by_columns_as_its_records_are(tmp_path, monkeypatch):
    monkeypatch.setattr("uniresxx.data.store.write.ROWS_PER_BATCH", 4)
    records = [record(str(i), "pomn"[: i % 5] * (i % 3)) for i in range(19)]
    store = store_at(tmp_path / "s", records)
    lazy = store.records()
    assert np.array_equal(count_asked(lazy), count_asked(records)) and count_asked(records).sum() > 0
    assert np.array_equal(count_asked(lazy[3:17:5]), count_asked(records[3:17:5]))
    assert texts_of(lazy, 10**6) == texts_of(records, 10**6)
    assert 0 < len(texts_of(lazy, 8)) < len(texts_of(records, 8))


def test_a_store_is_found_by_path_and_by_name(tmp_path, monkeypatch):
    store_at(tmp_path / "stores" / "toy", [record("1", "o")])
    store_at(tmp_path / "beside", [record("1", "o")])
    for name in ("toy", "toy/train", "beside", "beside/train", str(tmp_path / "beside/train")):
        found = open_benchmark(name, tmp_path)
        assert isinstance(found, StoreRecords) and [r.image_id for r in found] == ["1"]
        assert benchmark_name(name, tmp_path) == "toy/train"
    assert find_store("toy/train", None) is None and find_store("scenes/val", tmp_path) is None
    with pytest.raises(InputError, match="has no split 'val'; it has train"):
        open_benchmark("toy/val", tmp_path)
    with pytest.raises(InputError, match="unknown benchmark 'other/train'"):
        open_benchmark("other/train", tmp_path)


def test_opening_a_mixture_refuses_wrong_parts(tmp_path):
    for name, split, mode in (
        ("toy", "train", "on"),
        ("held", "val", "on"),
        ("free", "train", "published_data"),
    ):
        store_at(
            tmp_path / name,
            [record("1", "on")],
            split,
            guard={"mode": mode, "not_found": [], "benchmarks": {}},
        )
    for parts, message in (
        ((), "no part"),
        ((MixturePart("toy", weight=0.0),), "weight 0.0"),
        ((MixturePart("toy", granularities=("whole",)),), "unknown granularity 'whole'"),
        ((MixturePart("scenes"),), "cannot be part of a mixture"),
        ((MixturePart("toy"), MixturePart("toy")), "twice"),
        (
            (MixturePart("held", "val"),),
            "is a split that models are measured on; --data.guard published_data",
        ),
        ((MixturePart("missing"),), "unknown benchmark 'missing/train'"),
    ):
        with pytest.raises(InputError, match=message):
            open_mixture(parts, 4, 0, tmp_path)
    with pytest.raises(InputError, match="was not prepared with a guard"):
        open_mixture((MixturePart("free"),), 4, 0, tmp_path, guard="strict")
    free = MixturePart(str(tmp_path / "free"))
    parts = (MixturePart("toy", granularities=("none",)), MixturePart("held", "val"), free)
    with pytest.raises(InputError, match="twice"):  # both stores say they are toy/train
        open_mixture((MixturePart("toy"), free), 4, 0, tmp_path)
    mixture = open_mixture(parts, 4, 0, tmp_path, guard="published_data")
    assert [p.label for p in mixture.parts] == ["toy/train[none]", "toy/val", "toy/train"]
    assert mixture.parts[2].about["guard"]["mode"] == "published_data"


def test_named_mixtures_are_valid():
    for parts in MIXTURES.values():
        none = sum(p.weight for p in parts if p.granularities == ("none",)) / sum(p.weight for p in parts)
        assert none <= 0.1
    recipe = KNOWN["tiny_scenes"]()
    with pytest.raises(InputError, match="known: refcoco_family"):
        check(replace(recipe, data=DataConfig(mixture="everything")))
    check(replace(recipe, data=DataConfig(mixture="refcoco_family", flip=0.5)))
    with pytest.raises(InputError, match="not for scenes"):
        check(replace(recipe, data=DataConfig(flip=0.5)))


def fingerprints(batches: Batches) -> list[str]:
    return batches(1, 0).expression_ids


def test_a_spawned_process_prepares_the_same_batch(tmp_path, vocabulary):
    store = store_at(tmp_path / "toy", [record(str(i), "on") for i in range(9)])
    batches = batches_of(open_mixture((MixturePart(str(store.path)),), 3, 4), vocabulary)
    assert len(pickle.dumps(batches.source)) < 20_000
    with multiprocessing.get_context("spawn").Pool(1) as workers:
        assert workers.apply(fingerprints, (batches,)) == fingerprints(batches)


def test_training_on_a_mixture_of_stores_counts_and_replaces(tmp_path, capsys):
    drawn = [replace(scene_record("scenes_easy", "val", i), dense=None, boxes={}) for i in range(6)]
    drawn[2] = replace(drawn[2], pixels=None, path=str(tmp_path / "gone.png"))
    store_at(tmp_path / "stores/one", drawn[:4], guard={"mode": "published_data"})
    write_store(tmp_path / "stores/two", Preparation("two", {"train": lambda: (drawn[4:], {})}))
    recipe = KNOWN["tiny_scenes"]()
    parts = (MixturePart("one", weight=3.0), MixturePart("two", weight=1.0, granularities=("part", "none")))
    data = DataConfig(parts=parts, batch_images=4, expressions_per_image=4, dialogue_share=0.1)
    loss = replace(recipe.model.loss, dense=0.0)
    model = replace(CONFIG, dense_classes=(), loss=loss)
    recipe = replace(recipe, model=model, data=data, optim=replace(recipe.optim, steps=3, warmup_steps=1))
    job = open_job(recipe, tmp_path)
    assert train(recipe, job, tmp_path / "run") == DONE
    said = capsys.readouterr().out
    assert "drawn: toy/train: " in said and "two/train[part+none]" in said
    assert said.index("guard: off (published_data)") < said.index("step 1/")
    bad = read_quarantine(tmp_path / "run/quarantine.jsonl")
    assert bad and all(item.key == "toy/train row 2" and "gone.png" in item.reason for item in bad)
    assert "--data.images" in bad[0].reason
    about = job.extra["training_data"]
    assert [item["data"] for item in about] == ["toy/train", "two/train[part+none]"]
    assert about[0]["guard"]["mode"] == "published_data" and about[0]["share"] == 0.75


def test_a_run_on_native_files_reports_what_the_guard_removed(tmp_path):
    """Photo 1 of RefCOCO's train is one of RefCOCO+'s val; the other lists are not there."""
    names = {number: f"COCO_train2014_{number:012d}.jpg" for number in (1, 2)}
    rows = {
        "images": [{"id": key, "file_name": name, "height": 4, "width": 6} for key, name in names.items()],
        "annotations": [{"id": key, "image_id": key, "segmentation": [[0, 0, 3, 0, 3, 3]]} for key in names],
    }
    for folder, splits in (("refcoco", ("train", "train")), ("refcoco+", ("val", "train"))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "instances.json").write_text(json.dumps(rows))
        refs = [
            {"ann_id": key, "image_id": key, "split": split, "sentences": [{"sent": "it", "sent_id": key}]}
            for key, split in zip(names, splits, strict=True)
        ]
        (tmp_path / folder / "refs(unc).json").write_text(json.dumps(refs))
    model = replace(CONFIG, dense_classes=(), loss=replace(KNOWN["tiny_scenes"]().model.loss, dense=0.0))
    recipe = replace(KNOWN["tiny_scenes"](), model=model, data=DataConfig(source="refcoco"))
    assert open_job(recipe, tmp_path).messages[1:] == (
        "guard: refcoco/train: removed 1 images, 1 expressions",
        "guard: warning: found no id list of refcoco, refcocog_umd, grefcoco, refcocom",
    )
    assert open_job(KNOWN["tiny_scenes"](), None).messages == ()
