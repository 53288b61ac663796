"""The data engine on drawn scenes: steps, shards, quarantine, near-duplicates, the store and its truth."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_engine.__main__ import main
from data_engine.assemble import make_store
from data_engine.commands.plan import lines_of
from data_engine.components.drawn import DrawnScenes
from data_engine.executors.local import LocalExecutor
from data_engine.model import Model
from data_engine.pictures import Source, in_shards, look_hash, near_duplicates, sources
from data_engine.recipe import BUILT_IN, Recipe, drawn, drawn_1000, photographs, recipe_named
from data_engine.records import Item, Picture
from data_engine.review import wilson
from data_engine.roles import FoundMask, FoundPart
from data_engine.run import Job, pictures_of, run_steps
from data_engine.scene_truth import mask_is_right, measure, query_of
from data_engine.schedule import Budget, FailedRunError, run_tasks
from data_engine.shards import read_shard, write_shard
from data_engine.steps.base import digest
from data_engine.steps.given import Boxes
from data_engine.steps.groups import Combine, combined
from data_engine.steps.objects import Segment, _segmented, edge_share
from data_engine.steps.parts import Parts, _with_parts
from data_engine.steps.wordings import content_words
from data_engine.tasks import Task, do
from data_engine.vocabulary import Vocabulary, load_vocabulary
from uniresxx.data.scenes.presets import preset_of
from uniresxx.data.scenes.record import build_scene
from uniresxx.data.scenes.solver import Query
from uniresxx.data.store.read import Store
from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.types import Granularity

KNOWN = "scenes_easy:60"  # labelled scenes: enough for tests


def few_labels(recipe: Recipe) -> Recipe:
    """The recipe for drawn scenes with fewer labelled ones, and without the model of the round trip."""
    model = Model(kind="drawn", source=KNOWN)
    steps = [replace(step, model=model) if hasattr(step, "model") else step for step in recipe.steps[:-1]]
    return replace(recipe, steps=tuple(steps), pictures_per_shard=3)


def draw_scenes(folder: Path, count: int, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        scene = build_scene(preset_of("scenes_easy"), "val", number, 0)
        Image.fromarray(scene.pixels_yx3).save(folder / f"{number:03d}.png")


def picture(*items: Item, **changes: object) -> Picture:
    return replace(Picture("a.png", "own", "", "0" * 64, 60, 100, "0" * 16, "", items), **changes)


def square(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask_yx = np.zeros((60, 100), dtype=bool)
    mask_yx[y0:y1, x0:x1] = True
    return mask_yx


def thing(name: str, category: str, text: str, x: int, **changes: object) -> Item:
    box = (float(x), 10.0, float(x + 10), 30.0)
    return Item(
        name, Granularity.OBJECT, category, box, masks.encode(square(x, 10, x + 10, 30)), text=text, **changes
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, list[Path]]:
    """Twelve scenes, labelled in this process."""
    root = tmp_path_factory.mktemp("engine")
    draw_scenes(root / "images", 12)
    job = Job(few_labels(drawn()), root / "images", root / "store")
    found = sources(job.images, "own", None)
    return job, run_steps(job, found, LocalExecutor(in_process=True))


# -- whole runs ------------------------------------------------------------------------------------------


def test_a_run_makes_a_store_that_a_program_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_scenes(tmp_path / "images", 5)
    (tmp_path / "licences.csv").write_text("picture,licence,source\n000.png,CC0,https://example.org/0\n")
    monkeypatch.setitem(BUILT_IN, "drawn", lambda: few_labels(drawn()))
    command = ["run", "drawn", "--images", str(tmp_path / "images"), "--out", str(tmp_path / "store"),
               "--workers", "0", "--licence", "own", "--licences", str(tmp_path / "licences.csv")]  # fmt: skip
    assert main(command) == 0
    store = Store.open(tmp_path / "store")
    assert [record.image_id for record in store] == [f"{number:03d}.png" for number in range(5)]
    assert "CC0" in store[0].source["licence"] and store[0].source["origin"] == "https://example.org/0"
    items = [item for record in store for item in record.expressions]
    assert {item.granularity for item in items} == set(Granularity)
    assert len({item.expression_id for item in items}) == len(items)
    assert all(item.instances for item in items if item.granularity is Granularity.MULTI)
    assert all(item.source["slot"] for item in items if item.granularity is Granularity.NONE)
    report = json.loads((tmp_path / "store.engine" / "report" / "report.json").read_text())
    assert report["kept"] == {
        level.value: sum(i.granularity is level for i in items) for level in Granularity
    }
    lines = (tmp_path / "store.engine" / "report" / "rejected.jsonl").read_text().splitlines()
    assert len(lines) == sum(sum(by.values()) for by in report["rejected"].values())
    assert {"kept.png", "index.html"} <= {p.name for p in (tmp_path / "store.engine" / "report").iterdir()}
    before = (tmp_path / "store" / "records.arrow").read_bytes()
    capsys.readouterr()
    assert main(command) == 0  # nothing is left to do
    assert "detect" not in capsys.readouterr().err
    assert (tmp_path / "store" / "records.arrow").read_bytes() == before


def test_a_new_picture_changes_few_shards(finished: tuple[Job, list[Path]], tmp_path: Path) -> None:
    job, paths = finished
    shutil.copytree(job.images, tmp_path / "images", copy_function=shutil.copy2)
    shutil.copytree(job.folder, tmp_path / "store.engine")
    draw_scenes(tmp_path / "images", 1, first=40)
    again = Job(job.recipe, tmp_path / "images", tmp_path / "store")
    now = run_steps(again, sources(again.images, "own", None), LocalExecutor(in_process=True))
    kept = {path.name for path in now} & {path.name for path in paths}
    assert len(paths) - len(kept) <= 1 and len(pictures_of(now[-1])) >= 1


def test_another_limit_redoes_its_step_and_those_after_it(finished: tuple[Job, list[Path]]) -> None:
    job, _ = finished
    changed = [replace(s, min_score=0.9) if s.NAME == "parts" else s for s in job.recipe.steps]
    assert [a.identity() == b.identity() for a, b in zip(job.recipe.steps, changed, strict=True)].count(
        False
    ) == 1
    elsewhere = replace(job.recipe.steps[0], workers=7, gpus=1)
    assert elsewhere.identity() == job.recipe.steps[0].identity()  # where a step runs changes no result


def test_a_model_is_known_by_its_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "config.json").write_text("{}")
    one, other = (Model(kind="sam", source=str(tmp_path / name / "model")) for name in ("a", "b"))
    assert one.identity() == other.identity()  # the same files elsewhere
    (tmp_path / "b" / "model" / "config.json").write_text("[]")
    assert one.identity() != other.identity()
    assert Model(kind="segmenter").identity()["source"].startswith("tiny:")


def test_every_step_of_a_picture_is_pure(finished: tuple[Job, list[Path]]) -> None:
    job, _ = finished
    before = next((job.folder / "shards" / "caption").iterdir())
    shard = read_shard(before)
    assert shard is not None
    step = job.recipe.steps[-1]
    work, photo = step.build(), np.zeros((64, 64, 3), dtype=np.uint8)
    one = [work(item, photo) for item in shard.pictures]
    assert one == [work(item, photo) for item in reversed(shard.pictures)][::-1]
    assert [Picture.from_json(json.loads(json.dumps(item.as_json()))) for item in one] == one


# -- what goes wrong -------------------------------------------------------------------------------------


def test_a_picture_that_cannot_be_read_is_in_quarantine(tmp_path: Path) -> None:
    draw_scenes(tmp_path / "images", 4)
    (tmp_path / "images" / "002.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    job = Job(replace(few_labels(drawn()), budget=0.25), tmp_path / "images", tmp_path / "store")
    paths = run_steps(job, sources(job.images, "own", None), LocalExecutor(in_process=True))
    [line] = map(json.loads, (job.folder / "quarantine.jsonl").read_text().splitlines())
    assert line["picture"] == "002.png" and line["reason"].startswith("look: ")
    assert [p.failed is None for path in paths for p in pictures_of(path)] == [True, True, False, True]
    strict = replace(job, recipe=replace(job.recipe, budget=0.0))
    with pytest.raises(
        FailedRunError, match="1 pictures failed"
    ):  # counted again, though nothing is done again
        run_steps(strict, sources(job.images, "own", None), LocalExecutor(in_process=True))


class FailsAt:
    """A step's function that fails at a picture, the first `times`."""

    def __init__(self, name: str, error: Exception, times: int = 10**9) -> None:
        self.name, self.error, self.times = name, error, times

    def __call__(self, picture: Picture, photo: np.ndarray) -> Picture:
        if picture.name == self.name and self.times:
            self.times -= 1
            raise self.error
        return picture


@pytest.mark.parametrize(
    ("error", "times", "reason"),
    [
        (RuntimeError("no such\nkernel"), 9, "combine: RuntimeError: no such kernel"),
        (MemoryError("16 GB"), 9, "combine: MemoryError: 16 GB"),
        (MemoryError("16 GB"), 1, None),  # once more, after memory was freed
    ],
)
def test_a_step_that_fails_at_a_picture_goes_on_with_the_others(
    finished: tuple[Job, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, times: int,
    reason: str | None,
) -> None:  # fmt: skip
    from data_engine import tasks

    job, paths = finished
    names = [p.name for p in pictures_of(paths[0])]
    monkeypatch.setattr(tasks, "_built", lambda step: FailsAt(names[0], error, times))
    done = do(Task(job.images, tmp_path / "x.jsonl", job.recipe.steps[-1], input=paths[0]))
    result = pictures_of(tmp_path / "x.jsonl")
    assert [p.failed for p in result] == [reason] + [None] * (len(names) - 1)
    assert done.failed == (reason is not None)


def test_a_missing_package_ends_the_run(
    finished: tuple[Job, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data_engine import tasks

    job, paths = finished
    name = pictures_of(paths[0])[0].name
    monkeypatch.setattr(tasks, "_built", lambda step: FailsAt(name, ImportError("no module")))
    task = Task(job.images, tmp_path / "x.jsonl", job.recipe.steps[-1], input=paths[0])
    with pytest.raises(ImportError):
        do(task)
    assert not (tmp_path / "x.jsonl").exists()


def test_the_budget_is_a_share_rounded_up() -> None:
    budget = Budget(0.02, 120)
    budget.add(3)
    with pytest.raises(FailedRunError, match="4 pictures failed"):
        budget.add(1)


def test_a_damaged_shard_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_shard(path, {"step": "x"}, [picture(thing("o0", "car", "red car", 5))])
    whole = path.read_bytes()
    shard = read_shard(path)
    assert shard is not None and shard.pictures[0].items[0].text == "red car"
    for damaged in (whole[:-9], whole.replace(b"red", b"rad"), b"", b"{}\n"):
        path.write_bytes(damaged)
        assert read_shard(path) is None
    assert read_shard(tmp_path / "none.jsonl") is None


class DyingWorker:
    """Does its tasks here, but dies as a killed process does: at some pictures, or at once."""

    def __init__(self, deadly: set[str], loads: bool) -> None:
        self.deadly, self.loads = deadly, loads

    def start(self, task: Task) -> Future[object]:
        future: Future[object] = Future()
        input_ = pictures_of(task.input) if task.input is not None else ()
        for item in input_ if self.loads else ():
            if task.careful and item.name not in task.dead:
                task.note.write_text(item.name)
            if item.name in self.deadly and item.name not in task.dead:
                future.set_exception(BrokenProcessPool())
                return future
        if self.loads:
            future.set_result(do(task))
        else:
            future.set_exception(BrokenProcessPool())
        return future

    def stop(self) -> None:
        pass


class DyingExecutor(LocalExecutor):
    def __init__(self, deadly: set[str], loads: bool = True) -> None:
        super().__init__(in_process=True)
        self.deadly, self.loads, self.started = deadly, loads, 0

    def worker(self, step: object) -> DyingWorker:
        self.started += 1
        return DyingWorker(self.deadly, self.loads)


def test_where_a_worker_dies_twice_the_picture_is_in_quarantine(
    finished: tuple[Job, list[Path]], tmp_path: Path
) -> None:
    job, paths = finished
    names = [p.name for p in pictures_of(paths[0])]
    task = Task(job.images, tmp_path / "x.jsonl", job.recipe.steps[-1], input=paths[0])
    executor = DyingExecutor(set(names[-1:]))
    run_tasks([[task]], executor, lambda *_: None)
    assert executor.started == 3  # it dies, dies again with notes, and goes on without the picture
    result = pictures_of(tmp_path / "x.jsonl")
    assert [p.failed for p in result] == [None] * (len(names) - 1) + ["combine: its worker died there twice"]
    assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_workers_that_cannot_load_a_model_end_the_run(
    finished: tuple[Job, list[Path]], tmp_path: Path
) -> None:
    job, paths = finished
    task = Task(job.images, tmp_path / "x.jsonl", job.recipe.steps[-1], input=paths[0])
    with pytest.raises(FailedRunError, match="its workers die before any picture"):
        run_tasks([[task]], DyingExecutor(set(), loads=False), lambda *_: None)


# -- pictures --------------------------------------------------------------------------------------------


def test_near_duplicates_are_all_pairs_in_order() -> None:
    rng = np.random.default_rng(0)
    looks = [int(value) for value in rng.integers(0, 2**63, 60)]
    looks += [look ^ sum(1 << int(bit) for bit in rng.choice(64, count, replace=False))
              for look, count in zip(looks[:20], [0, 1, 2, 3, 4] * 4, strict=True)]  # fmt: skip
    found = [picture(name=f"{n:03d}", sha256=f"{n}", look=f"{look:016x}") for n, look in enumerate(looks)]
    expected: dict[str, str] = {}
    stays: list[int] = []
    for n, look in enumerate(looks):
        near = [m for m in stays if (looks[m] ^ look).bit_count() <= 3]
        if near:
            expected[f"{n:03d}"] = f"{near[0]:03d}"
        else:
            stays.append(n)
    assert near_duplicates(found) == expected and len(expected) == 16


def test_a_scaled_copy_looks_the_same_and_another_scene_does_not() -> None:
    scenes = [build_scene(preset_of("scenes_easy"), "val", n, 0).pixels_yx3 for n in range(20)]
    looks = [look_hash(photo) for photo in scenes]
    larger = np.asarray(Image.fromarray(scenes[0]).resize((128, 128), Image.Resampling.BILINEAR))
    assert (look_hash(larger) ^ looks[0]).bit_count() <= 3
    assert min((a ^ b).bit_count() for n, a in enumerate(looks) for b in looks[:n]) > 3


def test_shards_hold_every_picture_once_in_order() -> None:
    found = [Source(f"{number:04d}.jpg", "", "", "") for number in range(500)]
    groups = list(in_shards(found, 8))
    assert [item for group in groups for item in group] == found
    assert max(map(len, groups)) <= 16 and 4 < np.mean([len(group) for group in groups]) < 12
    fewer = list(in_shards(found[:100] + found[101:], 8))
    assert len(set(groups) - set(fewer)) <= 3


def test_pictures_are_named_with_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        sources(tmp_path / "none", "own", None)
    with pytest.raises(InputError, match="holds no picture"):
        sources(tmp_path, "own", None)
    draw_scenes(tmp_path, 1)
    (tmp_path / "a.csv").write_text("picture,licence\nb.png,CC0\n")
    with pytest.raises(InputError, match=r"b\.png is not below"):
        sources(tmp_path, "own", tmp_path / "a.csv")


# -- filters ---------------------------------------------------------------------------------------------


class Given:
    """A segmenter that gives what it was given."""

    def __init__(self, found: list[FoundMask]) -> None:
        self.found = found

    def segment(self, photo_yx3: np.ndarray, boxes: object) -> list[FoundMask]:
        return self.found


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (FoundMask(square(20, 20, 40, 40), 0.9, 0.9), None),
        (FoundMask(square(20, 20, 40, 40), 0.7, 0.9), "segment: quality below 0.75"),
        (FoundMask(square(20, 20, 40, 40), 0.9, 0.8), "segment: stability below 0.85"),
        (FoundMask(square(20, 20, 22, 22), 0.9, 0.9), "segment: area below 0.0008"),
        (FoundMask(square(0, 0, 100, 59), 0.9, 0.9), "segment: area above 0.9"),
        (FoundMask(square(20, 20, 60, 22), 0.9, 0.9), "segment: side below 4"),
        (FoundMask(square(0, 0, 6, 6), 0.9, 0.9), "segment: edge above 0.45"),
        (FoundMask(square(0, 0, 0, 0), 0.9, 0.9), "segment: empty mask"),
        (FoundMask(np.pad(np.eye(50, dtype=bool), ((5, 5), (25, 25))), 0.9, 0.9), "segment: fill below 0.15"),
    ],
)
def test_each_rule_for_masks_rejects_with_its_number(found: FoundMask, reason: str | None) -> None:
    options = Segment(model=Model(kind="sam"), min_area=0.0008)
    item = Item("o0", Granularity.OBJECT, "car", (1.0, 1.0, 9.0, 9.0))
    [result] = _segmented(
        options, Given([found]), picture(item), np.zeros((60, 100, 3), dtype=np.uint8)
    ).items
    assert result.rejected == reason


def test_the_second_of_two_equal_masks_is_a_duplicate() -> None:
    items = [
        Item(f"o{n}", Granularity.OBJECT, name, (1.0, 1.0, 9.0, 9.0))
        for n, name in enumerate(["car", "truck"])
    ]
    same = FoundMask(square(20, 20, 40, 40), 0.9, 0.9)
    result = _segmented(
        Segment(model=Model(kind="sam")),
        Given([same, same]),
        picture(*items),
        np.zeros((60, 100, 3), dtype=np.uint8),
    )
    assert [item.rejected for item in result.items] == [None, "segment: duplicate"]


def test_the_share_of_a_box_on_the_border() -> None:
    assert edge_share((10, 10, 20, 20), picture()) == 0
    assert edge_share((0, 10, 10, 20), picture()) == 0.25
    assert edge_share((0, 0, 100, 60), picture()) == 1


class GivenParts:
    def __init__(self, found: list[FoundPart]) -> None:
        self.found = found

    def parts(self, photo_yx3: np.ndarray, region: object, definitions: object) -> list[FoundPart]:
        return list(self.found)


def test_parts_keep_their_object_and_lie_on_it() -> None:
    found = [
        FoundPart("wheel", square(20, 25, 24, 32), 0.9),  # two of seven rows are beside the object
        FoundPart("door", square(21, 12, 26, 20), 0.3),
        FoundPart("window", square(20, 10, 30, 29), 0.8),  # nearly all of it
        FoundPart("roof", square(50, 10, 60, 20), 0.8),
        FoundPart("hood", square(22, 11, 24, 13), 0.7),
    ]
    options = Parts(model=Model(kind="clipseg"), min_inside=0.7)
    before = picture(thing("o0", "car", "", 20))
    after = _with_parts(
        options, GivenParts(found), load_vocabulary("coco"), before, np.zeros((60, 100, 3), np.uint8)
    )
    by_name = {item.part: item for item in after.items[1:]}
    assert {item.parent for item in by_name.values()} == {"o0"}
    assert by_name["wheel"].rejected is None and by_name["wheel"].box == (20.0, 25.0, 24.0, 30.0)
    reasons = {name: (item.rejected or "").removeprefix("parts: ") for name, item in by_name.items()}
    assert reasons == {
        "wheel": "", "door": "score below 0.4", "window": "share of its object above 0.85",
        "roof": "outside its object", "hood": "pixels below 12",
    }  # fmt: skip


# -- groups and negatives --------------------------------------------------------------------------------

VOCABULARY = Vocabulary(
    {"car": {"wheel": "x", "door": "x"}, "dog": {"tail": "x"}, "bus": {"wheel": "x"}}, {"words": "x"}
)


MANY = [thing(f"x{n}", "thing", f"number {n}", n) for n in range(90)]  # so that many negatives are wanted


def combine(*items: Item, **options: int | str) -> list[Item]:
    made = combined(
        replace(Combine(wordings=0, groups=9, negatives=99), **options), VOCABULARY, picture(*items)
    )
    return list(made.items)


def texts_of(items: list[Item], level: Granularity) -> set[str]:
    return {item.text for item in items if item.granularity is level and item.is_kept}


def test_words_that_fit_several_are_rejected_but_name_a_group() -> None:
    items = combine(
        thing("o0", "car", "red car", 0),
        thing("o1", "car", "red car", 20),
        thing("o2", "car", "blue car", 40),
    )
    assert texts_of(items, Granularity.OBJECT) == {"blue car"}
    groups = {item.text.split(maxsplit=1)[1]: item for item in items if item.granularity is Granularity.MULTI}
    assert set(groups) == {"cars", "red cars"}
    assert groups["red cars"].members == ("o0", "o1")
    rle = groups["cars"].rle
    assert rle is not None and masks.area(rle) == 600


def test_a_text_within_another_is_ambiguous() -> None:
    items = combine(thing("o0", "dog", "dog", 0), thing("o1", "dog", "the brown dog", 20))
    assert texts_of(items, Granularity.OBJECT) == {"the brown dog"}
    assert content_words("The two red cars.") == {"red", "car"} and content_words("a t-shirt") == {"t-shirt"}


def test_all_is_not_said_where_one_was_doubtful() -> None:
    doubtful = thing("o2", "car", "", 40, rejected="segment: stability below 0.85")
    items = combine(thing("o0", "car", "red car", 0), thing("o1", "car", "blue car", 20), doubtful)
    assert not texts_of(items, Granularity.MULTI)


def test_a_part_of_an_ambiguous_object_is_ambiguous() -> None:
    part = Item("o0.p0", Granularity.PART, "car", (0.0, 10.0, 5.0, 15.0), masks.encode(square(0, 10, 5, 15)),
                part="wheel", parent="o0", text="wheels of the red car")  # fmt: skip
    items = combine(thing("o0", "car", "red car", 0), thing("o1", "car", "red car", 20), part)
    assert not texts_of(items, Granularity.PART)
    clear = replace(part, text="wheels of the red car by the tree")
    items = combine(thing("o0", "car", "red car", 0), thing("o1", "car", "red car", 20), clear)
    assert texts_of(items, Granularity.PART) == {"wheels of the red car by the tree"}


def test_negatives_change_one_slot_to_what_is_nowhere() -> None:
    part = Item("o0.p0", Granularity.PART, "car", (0.0, 10.0, 5.0, 15.0), masks.encode(square(0, 10, 5, 15)),
                part="wheel", parent="o0", text="wheels of the red car")  # fmt: skip
    items = combine(
        thing("o0", "car", "red car on the left", 0), thing("o1", "dog", "brown dog", 80), part, negatives=999
    )
    found = [item for item in items if item.granularity is Granularity.NONE]
    by_slot = {slot: {i.text for i in found if i.slot == slot} for slot in {i.slot for i in found}}
    assert len(found) == 1  # a quarter of the others, rounded up
    found = [
        i for i in combine(thing("o0", "car", "red car on the left", 0), part, *MANY, groups=0) if i.slot
    ]
    by_slot = {slot: {i.text for i in found if i.slot == slot} for slot in {i.slot for i in found}}
    assert by_slot["relation"] == {"red car on the right"}
    assert "doors of the red car" in by_slot["part"]
    assert "red bus on the left" in by_slot["category"] and "wheels of the red bus" in by_slot["category"]
    assert not any("red" in text for text in by_slot["attribute"]) and len(by_slot["attribute"]) >= 10
    assert all(item.rle is None and item.negative_of in {"o0", "o0.p0"} for item in found)


def test_short_words_for_the_only_one_and_for_one_of_two() -> None:
    wheel = Item("o1.p0", Granularity.PART, "car", (50.0, 25.0, 55.0, 30.0), masks.encode(square(50, 25, 55, 30)),
                 part="wheel", parent="o1", text="wheels of the red car")  # fmt: skip
    cars = [thing("o0", "car", "red car", 0), thing("o1", "car", "red car", 50)]
    items = combine(*cars, thing("o2", "dog", "brown dog", 80), wheel, wordings=9, negatives=0, groups=0)
    assert texts_of(items, Granularity.OBJECT) == {"brown dog", "the dog", "the left car", "the right car"}
    assert texts_of(items, Granularity.PART) == {"wheels of the right car"}
    by_text = {item.text: item for item in items if item.is_kept}
    assert by_text["the right car"].rle == cars[1].rle and by_text["the left car"].rle == cars[0].rle


@pytest.mark.parametrize(
    "others",
    [
        [thing("o1", "car", "", 50, rejected="segment: area below 0.0008")],  # not sure that there is one
        [thing("o1", "car", "blue car", 4)],  # beside one another, of one size
        [thing("o1", "car", "blue car", 40), thing("o2", "car", "green car", 80)],
    ],
)
def test_no_short_words_where_they_are_not_clear(others: list[Item]) -> None:
    items = combine(thing("o0", "car", "red car", 0), *others, wordings=9, negatives=0)
    assert not any(text.startswith("the ") for text in texts_of(items, Granularity.OBJECT))


def test_words_for_all_of_a_kind_may_mean_nothing_too() -> None:
    cars = [thing(f"o{number}", "car", f"car {number}", number) for number in range(40)]
    found = {item.text.split()[1] for item in combine(*cars) if item.slot and item.text.startswith("all ")}
    assert found == {"dogs", "buses"}


def test_a_noun_without_a_plural_of_its_own_is_replaced_in_its_number() -> None:
    vocabulary = Vocabulary({"fish": {}, "dog": {}, "sheep": {}}, {"words": "x"})
    fish = [thing(f"o{number}", "fish", f"fish {number}", number) for number in range(40)]
    made = combined(Combine(groups=9, negatives=99), vocabulary, picture(*fish))
    groups = {item.text for item in made.items if item.slot and item.text.startswith("all ")}
    assert groups == {"all dogs", "all sheep"}
    singular = {item.text.split()[0] for item in made.items if item.slot and item.text[-1].isdigit()}
    assert singular == {"dog", "sheep"}


def test_negatives_have_colours_of_the_recipe_alone() -> None:
    found = [
        i.text
        for i in combine(thing("o0", "car", "red car", 0), *MANY, groups=0, colours="red green blue")
        if i.slot == "attribute"
    ]
    assert set(found) <= {"green car", "blue car"} and found
    pink = combine(thing("o0", "car", "pink car", 0), *MANY, groups=0, colours="red green")
    assert {i.slot for i in pink if i.slot} == {"category"}


def test_a_negative_never_names_what_was_found_or_rejected() -> None:
    bus = thing("o1", "bus", "", 40, rejected="segment: area below 0.0008")
    blue = thing("o2", "car", "blue car", 60)
    found = [i.text for i in combine(thing("o0", "car", "red car", 0), bus, blue) if i.slot]
    assert not any("bus" in text or text in ("blue car", "red car") for text in found)


# -- plan, review, truth ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(finished: tuple[Job, list[Path]]) -> Store:
    job, paths = finished
    return make_store(job, paths, False, lambda *_: None)


def test_a_review_tells_the_precision_and_makes_a_corrected_store(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "review"
    assert main(["review", "export", str(store.path), "--out", str(out), "--per-level", "4"]) == 0
    lines = [json.loads(line) for line in (out / "sample.jsonl").read_text().splitlines()]
    assert len(lines) == 16 and all((out / line["shown"]).is_file() for line in lines)
    with pytest.raises(InputError, match="holds no verdict"):
        main(["review", "read", str(out), "--store", str(store.path)])
    with pytest.raises(InputError, match="there is a sample already"):
        main(["review", "export", str(store.path), "--out", str(out)])
    for line in lines:
        line["verdict"] = "accept"
    lines[0]["verdict"] = "reject"
    lines[1] |= {"verdict": "fix", "text": "a better name"}
    lines.append({"expression_id": "no/such/id", "verdict": None})
    (out / "sample.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    capsys.readouterr()
    assert main(["review", "read", str(out), "--store", str(store.path), "--out", str(tmp_path / "new")]) == 0
    shown = capsys.readouterr().out
    assert "part: 50.0 % [15.0, 85.0], 2 of 4 reviewed" in shown and "none: 100.0 %" in shown
    before = {item.expression_id: item for record in store for item in record.expressions}
    after = {
        item.expression_id: item for record in Store.open(tmp_path / "new") for item in record.expressions
    }
    assert before.keys() - after.keys() == {lines[0]["expression_id"]}
    changed = [name for name, item in after.items() if item != before[name]]
    assert changed == [lines[1]["expression_id"]] and after[changed[0]].text == "a better name"


def test_the_interval_is_wilson_s() -> None:
    found = wilson(8, 10)  # Wilson 1927; values of R's binom.confint(8, 10, method = "wilson")
    assert (found.low, found.high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)


def test_a_plan_says_what_many_pictures_would_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_scenes(tmp_path / "images", 2)
    monkeypatch.setitem(BUILT_IN, "drawn", lambda: few_labels(drawn()))
    command = ["plan", "drawn", "--images", str(tmp_path / "images"), "--pictures", "1000"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "for 1,000 pictures" in shown and "segment: " in shown and "GB of shards" in shown
    assert lines_of({"seconds": {"a": 3.6, "b": 0.0}, "expressions": 2, "shard_bytes": 1e6}, 1000, 3)[3] == (
        "  in all 1.00 hours, 3.00 at 3 an hour"
    )


def test_precision_on_scenes_is_that_of_the_scene_graph(finished: tuple[Job, list[Path]]) -> None:
    _, paths = finished
    pictures = [picture for path in paths for picture in pictures_of(path)]
    scenes = [build_scene(preset_of("scenes_easy"), "val", int(Path(p.name).stem), 0) for p in pictures]
    found = measure(zip(pictures, scenes, strict=True)).precision["combine"]
    assert found["object"].value >= 0.85 and found["part"].value >= 0.75, found
    others = measure(zip(pictures, scenes[1:] + scenes[:1], strict=True)).precision["combine"]
    assert others["object"].value < 0.2  # against other scenes nothing is right


@pytest.mark.parametrize(
    ("text", "query", "granularity"),
    [
        ("red car", Query("car", ("red",)), "object"),
        ("wheels of the red car", Query("car", ("red",), part="wheel"), "part"),
        ("both houses", Query("house", number=2), "multi"),
        ("all red fish", Query("fish", ("red",), number=0), "multi"),
        ("the red car and the blue cup", Query("car", ("red",), also=Query("cup", ("blue",))), "multi"),
    ],
)
def test_words_are_read_back_as_a_query(text: str, query: Query, granularity: str) -> None:
    assert query_of(text) == (query, granularity)
    assert query_of("lorem ipsum") is None and query_of("striped car") is None


def test_a_mask_without_words_is_right_where_its_thing_is() -> None:
    scene = build_scene(preset_of("scenes_easy"), "val", 0, 0)
    one = next(thing for thing in scene.things if thing.parts)
    name, instances = next(iter(one.parts.items()))
    whole = Item("o0", Granularity.OBJECT, one.kind, rle=masks.encode(scene.mask(one.paints)))
    part = replace(whole, part=name, rle=masks.encode(scene.mask([found.paint for found in instances])))
    absent = next(
        kind for kind in preset_of("scenes_easy").kinds if kind not in {t.kind for t in scene.things}
    )
    assert mask_is_right(whole, scene) and mask_is_right(part, scene)
    assert not mask_is_right(replace(whole, category=absent), scene)
    assert not mask_is_right(replace(part, rle=whole.rle), scene) and not mask_is_right(
        replace(part, rle=None), scene
    )


# -- given boxes -----------------------------------------------------------------------------------------


def test_given_boxes_stand_in_for_a_detector(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "categories": [{"id": 7, "name": "car"}],
        "annotations": [
            {"image_id": 1, "category_id": 7, "bbox": [90, 10, 30, 20]},
            {"image_id": 1, "category_id": 7, "bbox": [200, 10, 30, 20]},
            {"image_id": 2, "category_id": 7, "bbox": [0, 0, 9, 9]},
        ],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    step = Boxes(file=str(tmp_path / "boxes.json"))
    after = step.build()(picture(name="train/a.png"), np.zeros((60, 100, 3), np.uint8))
    assert [(item.category, item.box) for item in after.items] == [("car", (90.0, 10.0, 100.0, 30.0))]
    before = step.identity()
    (tmp_path / "boxes.json").write_text(json.dumps({**content, "annotations": content["annotations"][:1]}))
    assert step.identity() != before
    (tmp_path / "boxes.json").write_text(json.dumps({**content, "annotations": [{"image_id": 1}]}))
    with pytest.raises(InputError, match="no COCO JSON with bbox"):
        step.build()


# -- recipes and vocabularies ----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [drawn, drawn_1000, photographs])
def test_a_recipe_file_is_the_recipe(make: object, tmp_path: Path) -> None:
    recipe = make()  # type: ignore[operator]
    (tmp_path / "a.json").write_text(json.dumps(recipe.as_json()))
    assert recipe_named(str(tmp_path / "a.json")) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": []}, "must start with"),
        ({"stepps": []}, "unknown option 'stepps'"),
        ({"pictures_per_shard": "x"}, "pictures_per_shard must be int"),
        ({"budget": 3}, "budget between 0 and 1"),
    ],
)
def test_a_wrong_recipe_is_one_line(change: dict[str, object], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(drawn().as_json() | change))
    with pytest.raises(InputError, match=message):
        recipe_named(str(tmp_path / "a.json"))


def test_steps_that_cannot_follow_one_another_are_refused(tmp_path: Path) -> None:
    content = drawn().as_json()
    content["steps"] = [content["steps"][n] for n in (0, 1, 3, 2, 4)]  # parts after their captions
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="parts comes too early or too late"):
        recipe_named(str(tmp_path / "a.json"))
    content["steps"] = [{"step": "detekt"}]
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="did you mean 'detect'"):
        recipe_named(str(tmp_path / "a.json"))


def test_the_shipped_vocabulary_has_coco_s_categories_with_definitions() -> None:
    from uniresxx.data.readers.part_names import definition
    from uniresxx.data.scenes.kinds import KINDS

    coco = load_vocabulary("coco")
    assert len(coco.categories) == 80 and sum(map(len, coco.categories.values())) > 350
    assert all(2 <= len(parts) <= 13 for parts in coco.categories.values())
    words = [text for parts in coco.categories.values() for text in parts.values()]
    assert all(text[0].islower() and text[-1].isalnum() and len(text.split()) <= 12 for text in words)
    assert coco.parts_of("chair")["back"] == definition("chair", "back")
    easy = load_vocabulary("drawn").categories
    assert {kind: set(parts) for kind, parts in easy.items()} == {
        kind: set(KINDS[kind].parts) for kind in preset_of("scenes_easy").kinds
    }


def test_a_vocabulary_is_compared_with_another_hierarchy() -> None:
    found = VOCABULARY.comparison(
        [("car_(automobile)", "left_wheel"), ("car_(automobile)", "hood"), ("cat", "paw")]
    )
    assert found == {"lacking": ["car: hood"], "more": ["car: door"]}


def test_a_vocabulary_is_compared_with_paco_s_own_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        "car_(automobile)",
        "car_(automobile):left_wheel",
        "car_(automobile):antenna",
        "scarf",
        "scarf:fringes",
    ]
    box = [[4.0, 4.0, 20.0, 4.0, 20.0, 20.0, 4.0, 20.0]]
    content = {
        "images": [{"id": 9, "file_name": "train2017/000000000009.jpg", "height": 32, "width": 40}],
        "categories": [{"id": n, "name": name} for n, name in enumerate(names)],
        "annotations": [
            {"id": n, "image_id": 9, "category_id": n, "segmentation": box, "obj_ann_id": 0 if n < 3 else 3}
            for n in range(len(names))
        ],
    }
    for path in ("paco/annotations", "images/train2017"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "paco" / "annotations" / "paco_lvis_v1_train.json").write_text(json.dumps(content))
    Image.new("RGB", (40, 32)).save(tmp_path / "images" / "train2017" / "000000000009.jpg")
    command = ["vocabulary", "coco", "--against", "paco/train", "--data", str(tmp_path)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert (
        shown.startswith("1 categories of both") and "1 parts only in paco/train:\n  car: antenna\n" in shown
    )
    assert "  car: door\n" in shown and "car: wheel" not in shown
    with pytest.raises(InputError, match="has no category of drawn"):
        content["categories"] = [{"id": n, "name": f"x{name}"} for n, name in enumerate(names)]
        (tmp_path / "paco" / "annotations" / "paco_lvis_v1_train.json").write_text(json.dumps(content))
        main(["vocabulary", "drawn", *command[2:]])


def test_a_damaged_vocabulary_is_one_line(tmp_path: Path) -> None:
    path, head = tmp_path / "a.json", {"format": "uniresxx-parts", "version": 1}
    for content, message in (
        ("{", "is no JSON"), ("{}", "must be an object with format"),
        (json.dumps(head | {"categories": {}}), "provenance"),
        (json.dumps(head | {"provenance": {"x": 1}, "categories": {"a": {"": ""}}}),
         "a: must map"),
    ):  # fmt: skip
        path.write_text(content)
        with pytest.raises(InputError, match=message):
            load_vocabulary(str(path))


def test_drawn_scenes_take_a_count() -> None:
    with pytest.raises(InputError, match="scenes_easy:COUNT"):
        DrawnScenes.named("scenes_easy:many")
    assert digest({"a": 1}) == digest({"a": 1}) != digest({"a": 2})
