"""Corrections of answers about a prepared store become a new version of that store, which itself stays as it is."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("prometheus_client", reason="no serve extra: pip install -e '.[demo]'")

from chat_demo.web.corrections import Corrections, Decision
from chat_demo.web.models import Model, photo_of
from chat_demo.web.review_items import Item, base_of, queue_of
from uniresxx.annotations import AnnotatedImage, AnnotatedMask, Provenance, write
from uniresxx.data.guard import OWN_DATA
from uniresxx.data.scenes.record import scene_record
from uniresxx.data.store.photos import photo_of as pixels_of
from uniresxx.data.store.preparation import Preparation
from uniresxx.data.store.read import Store
from uniresxx.data.store.write import write_store
from uniresxx.errors import InputError
from uniresxx.files import png_bytes
from uniresxx.imaging import masks
from uniresxx.segmenters.load import load_segmenter
from uniresxx.types import Granularity, ImageRecord


def scenes(split: str) -> list[ImageRecord]:
    """Two drawn pictures with few questions each."""
    records = [scene_record("scenes_easy", "val", 2 * (split == "val") + number) for number in range(2)]
    return [replace(record, expressions=record.expressions[:3]) for record in records]


def make_base(path: Path, splits: tuple[str, ...] = ("train", "val"), pack: int | None = None) -> Store:
    loads = {split: lambda split=split: (scenes(split), {}) for split in splits}
    work = Preparation("scenes_easy", loads, about={"guard": {"mode": OWN_DATA}}, shard_bytes=pack)
    return write_store(path, work)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def decide(corrections: Corrections, record: ImageRecord, number: int, rle, **more) -> str:
    """Decide about a question of a record; its id."""
    item = record.expressions[number]
    made = Decision(item.expression_id, item.text, Granularity.OBJECT, rle, "human", item.text, "tiny", 0.4)
    photo = photo_of(png_bytes(Image.fromarray(record.pixels)), record.image_id)
    corrections.add(photo, record.image_id, replace(made, **more))
    return item.expression_id


def a_mask(record: ImageRecord) -> dict:
    mask = np.zeros((record.height, record.width), dtype=bool)
    mask[3:9, 4:20] = True
    return masks.encode(mask)


def test_a_version_has_all_of_the_base_with_the_decisions_in_it(tmp_path):
    base = make_base(tmp_path / "base")
    before, (first, _) = digests(base.path), base.records("train")
    corrections = Corrections(tmp_path / "corrections", base.path)
    painted = decide(corrections, first, 0, a_mask(first), text="the thing that I painted")
    absent = decide(corrections, first, 1, None, granularity=Granularity.NONE, author="model")
    decide(corrections, scene_record("scenes_easy", "val", 9), 0, a_mask(first), key="chat/1")
    made = Store.open(corrections.write_store())
    assert digests(base.path) == before
    assert made.path.name == "store_v3" and made.splits == base.splits and made.name == base.name
    assert made.meta["corrections"] == {
        "version": 3,
        "model": 1,
        "human": 2,
        "base": {"name": "scenes_easy", "fingerprint": base.fingerprint, "replaced": 2},
    }
    *known, added = made.records("train")
    by_id = {item.expression_id: item for record in known for item in record.expressions}
    assert list(by_id) == [
        item.expression_id for record in base.records("train") for item in record.expressions
    ]
    assert by_id[painted].text == "the thing that I painted" and by_id[painted].rle == a_mask(first)
    assert by_id[painted].source["author"] == "human" and by_id[absent].source["author"] == "model"
    assert by_id[absent].rle is None and by_id[absent].area == 0
    assert [item.text for item in added.expressions] == [
        scene_record("scenes_easy", "val", 9).expressions[0].text
    ]
    for record, same in zip(known, base.records("train"), strict=True):
        assert np.array_equal(record.pixels, same.pixels) and record.boxes.keys() == same.boxes.keys()
        for item, old in zip(record.expressions, same.expressions, strict=True):
            assert item.expression_id in (painted, absent) or item == old
    for record, same in zip(made.records("val"), base.records("val"), strict=True):
        assert record.expressions == same.expressions


def test_each_save_is_a_version_and_earlier_ones_stay(tmp_path):
    base = make_base(tmp_path / "base", ("val",))
    (first, _) = base
    corrections = Corrections(tmp_path / "corrections", base.path)
    painted = decide(corrections, first, 0, a_mask(first))
    one = Store.open(corrections.write_store())
    decide(corrections, first, 0, None)
    two = Store.open(corrections.write_store())
    assert (one.path.name, two.path.name) == ("store_v1", "store_v2")
    found = [
        {item.expression_id: item.rle for record in Store.open(store.path) for item in record.expressions}
        for store in (one, two)
    ]
    assert found[0][painted] == a_mask(first) and found[1][painted] is None
    assert one.fingerprint != two.fingerprint != base.fingerprint


def change(base: Store) -> Store:
    """The same place, with one picture less."""
    loads = {"val": lambda: (scenes("val")[:1], {})}
    about = {"guard": {"mode": OWN_DATA}}
    return write_store(base.path, Preparation("scenes_easy", loads, about=about), fresh=True)


def test_a_base_that_changed_is_refused_and_earlier_versions_stay(tmp_path):
    """Changed while the page runs; before it starts again; put back as it was."""
    base = make_base(tmp_path / "base", ("val",))
    corrections = Corrections(tmp_path / "corrections", base.path)
    painted = decide(corrections, next(iter(base)), 0, a_mask(next(iter(base))))
    one = corrections.write_store()
    before = digests(one)
    assert corrections.write_store() == one and digests(one) == before  # nothing new was decided
    changed = change(base)
    again = Corrections(tmp_path / "corrections", base.path)
    for opened in (corrections, again):
        with pytest.raises(InputError, match=rf"{changed.fingerprint[:12]}.*{base.fingerprint[:12]}.*--out"):
            opened.write_store()
    assert digests(one) == before
    write_store(base.path, Preparation("scenes_easy", {"val": lambda: (scenes("val"), {})}), fresh=True)
    decide(corrections, next(iter(base)), 0, None)
    two = Store.open(corrections.write_store())
    assert two.path.name == "store_v2" and digests(one) == before
    assert {e.expression_id: e.rle for r in two for e in r.expressions}[painted] is None


def test_an_earlier_version_is_never_written_over(tmp_path):
    """Decisions that name no base, of the chat before one was given, do not let another base in either."""
    base = make_base(tmp_path / "base", ("val",))
    decide(
        Corrections(tmp_path / "corrections"),
        scene_record("scenes_easy", "val", 9),
        0,
        a_mask(base[0]),
        key="c",
    )
    one = Corrections(tmp_path / "corrections", base.path).write_store()
    before = digests(one)
    change(base)
    with pytest.raises(InputError, match=r"store_v1: was prepared from another input \(base: "):
        Corrections(tmp_path / "corrections", base.path).write_store()
    assert digests(one) == before


def test_a_version_is_exported_as_any_store(tmp_path):
    base = make_base(tmp_path / "base", ("val",))
    first = base[0]
    corrections = Corrections(tmp_path / "corrections", base.path)
    decide(corrections, first, 0, a_mask(first), text="the painted thing")
    record = Store.open(corrections.write_store())[0]
    answers = tuple(
        AnnotatedMask(item.rle, item.text, item.text, author=item.source.get("author", "model"))
        for item in record.expressions
        if item.rle is not None
    )
    image = AnnotatedImage("a.png", record.height, record.width, answers)
    write("coco", [image], tmp_path / "coco", provenance=Provenance("tiny", "", "0"))
    found = json.loads((tmp_path / "coco" / "instances.json").read_bytes())["annotations"]
    assert len(found) == len(answers) and found[0]["area"] == masks.area(a_mask(first))


def test_a_picture_that_the_base_does_not_have_opens_the_split_train(tmp_path):
    base = make_base(tmp_path / "base", ("val",))
    corrections = Corrections(tmp_path / "corrections", base.path)
    decide(corrections, scene_record("scenes_easy", "val", 9), 0, a_mask(next(iter(base))), key="chat/1")
    made = Store.open(corrections.write_store())
    assert made.splits == ["val", "train"] and len(made.records("train")) == 1
    (added,) = made.records("train")
    assert Path(added.path).is_file()


def test_photographs_are_found_from_a_version_too(tmp_path):
    """Photos in a folder, and packed into the shards of the base."""
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photos" / "a.png")
    drawn = scenes("val")[0]
    item = replace(drawn.expressions[0], rle=masks.encode(np.ones((30, 40), dtype=bool)), area=1200)
    record = ImageRecord("a", 30, 40, (item,), path=str(tmp_path / "photos" / "a.png"))
    for pack in (None, 10**6):
        work = Preparation("mine", {"train": lambda: ([record], {})}, tmp_path / "photos", shard_bytes=pack,
                           about={"guard": {"mode": OWN_DATA}})  # fmt: skip
        base = write_store(tmp_path / f"base{pack}", work)
        corrections = Corrections(tmp_path / f"corrections{pack}", base.path)
        (kept,) = base
        photo = replace(kept, pixels=np.zeros((30, 40, 3), dtype=np.uint8))
        decide(corrections, photo, 0, item.rle)
        (found,) = Store.open(corrections.write_store())
        assert np.array_equal(pixels_of(found), np.full((30, 40, 3), (255, 0, 0)))


def test_a_prepared_store_is_a_queue_and_the_base_of_its_corrections(tmp_path):
    base = make_base(tmp_path / "base")
    model = Model(load_segmenter(None, device="cpu"), "tiny", True)
    try:
        queue = queue_of(base.path / "val", None, model, lambda _: None)
    finally:
        model.close()
    truth = {item.expression_id: item.text for record in base.records("val") for item in record.expressions}
    assert {item.key: item.text for item in queue} == truth
    assert [item.certainty for item in queue] == sorted(item.certainty for item in queue)
    assert all(isinstance(item, Item) and item.model == "tiny" for item in queue)
    assert base_of(base.path / "val", None) == base.path
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "evaluation.json").write_text(
        json.dumps({"benchmark": f"{base.path}/val", "benchmark_sha256": ""})
    )
    assert base_of(tmp_path / "run" / "predictions.jsonl", None) == base.path
    (tmp_path / "run" / "evaluation.json").write_text(
        json.dumps({"benchmark": "scenes_easy/val", "benchmark_sha256": ""})
    )
    assert base_of(tmp_path / "run" / "predictions.jsonl", None) is None
    assert base_of(tmp_path, None) is None
