"""Numbers beside the scores: the examples of docs/eval.md, public code, and computations on dense arrays."""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eval.more import more_rows
from eval.score import score
from uniresxx.data.beside import beside_of, parts_by_place, parts_of_scene, second_masks
from uniresxx.data.catalog import load_benchmark
from uniresxx.data.store.rows import record_of, row_of
from uniresxx.imaging import masks
from uniresxx.prediction import Instance, Prediction
from uniresxx.scoring.beside import Beside, PartOf
from uniresxx.scoring.instances import Pairs, pairs_of
from uniresxx.scoring.metrics import ABSENT
from uniresxx.scoring.more import MORE_KEYS
from uniresxx.scoring.predictions import to_json
from uniresxx.scoring.protocols import PROTOCOLS, STRICT
from uniresxx.scoring.tally import entry_of, tally_answers
from uniresxx.scoring.trivial import all_objects
from uniresxx.types import Expression, Granularity, ImageRecord

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "eval.md").read_text(encoding="utf-8").partition("### More numbers")[2]
PUBLIC = json.loads((Path(__file__).parent / "data" / "instances" / "saco.json").read_text())
SHARED = ROOT.parent / "shared" / "mini_real"


def scored(records, given, beside=None, protocol=STRICT):
    """The entry of metrics.json of these answers."""
    found = tally_answers(given.items(), records, protocol, beside=beside or Beside())
    assert not found.missing
    return json.loads(json.dumps(entry_of(found, "made/val", protocol), allow_nan=False))


def asked(granularity, *truths, name="q", instances=None, **source):
    """An expression whose truth is the union of bool masks."""
    rles = tuple(masks.encode(truth) for truth in truths)
    rle = masks.union(rles, truths[0].shape) if rles else None
    return Expression(name, "it", granularity, rle, source=source, instances=instances and rles)


def answer(mask=None, **more):
    return Prediction(mask is None, None if mask is None else masks.encode(mask), None, **more)


def listing(found, scores):
    """An answer with instances."""
    items = tuple(Instance(masks.encode(m), s) for m, s in zip(found, scores, strict=True))
    return replace(answer(np.any(found, axis=0)), instances=items)


# ---- the examples of docs/eval.md


def grids():
    """Heading -> grid of letters, of all drawings of the section."""
    found = {}
    for block in re.findall(r"```text\n(.*?)```", PAGE, re.S):
        columns = [re.split(r" {2,}", line.strip()) for line in block.strip().splitlines()]
        for k, heading in enumerate(columns[0]):
            rows = [line[k].split() for line in columns[1:]]
            found.setdefault(heading, []).append(np.array(rows))
    return found


def stated(name):
    """All numbers of the line of a metric, in their order."""
    line = re.search(rf"^\*\*{re.escape(name)}\*\* .*$", PAGE, re.M)
    assert line is not None, name
    return [float(number) for number in re.findall(r"(?<![\w@])[+-]?\d+(?:\.\d+)?(?!\w)", line[0])]


def as_printed(*values):
    return [round(float(value), 1) for value in values]


def test_the_example_of_what_is_absent():
    rows = re.findall(r'^\| ".*" \| (\w+) \| (\w+) \|$', PAGE, re.M)
    slots = {"category": "kind", "attribute": "colour", "part": "part", "relation": "relation"}
    expressions = [asked(Granularity.NONE, name=str(k), slot=slots[what]) for k, (what, _) in enumerate(rows)]
    # the last one changes the other thing of the relation
    expressions[-1] = replace(expressions[-1], source={"slot": "anchor"})
    given = {
        str(k): answer(None if how == "rejected" else np.ones((3, 8), bool))
        for k, (_, how) in enumerate(rows)
    }
    entry = scored([ImageRecord("i", 3, 8, tuple(expressions))], given)
    assert stated("N-acc by what is absent") == [entry["by_absent"][what]["N-acc"] for what in ABSENT]
    assert [entry["counts"]["by_absent"][what]["n"] for what in ABSENT] == [1, 1, 1, 2]


def test_the_example_of_wrong_parts():
    drawn = grids()
    (cup,) = drawn["the cup"]
    handle, rim = cup == "h", cup == "r"
    of = PartOf(masks.encode(cup != "."), (masks.encode(rim),))
    names = ("whole cup", "rim and more", "handle")
    expressions = tuple(asked(Granularity.PART, handle, name=name) for name in names)
    given = {name: answer(drawn[name][0] == "a") for name in names}
    beside = Beside(lambda record: dict.fromkeys(names, of))
    found = scored([ImageRecord("i", 3, 8, expressions)], given, beside)["xIoU"]
    shown = as_printed(*(found[key] for key in ("xIoU", "sibling", "object", "outside")))
    assert stated("xIoU") == [*shown, found["n_wrong"], found["n_parts"]]


def test_the_example_of_instances():
    drawn = grids()
    truth, (given, _), invented = drawn["three things"][0], drawn["answer"], drawn["not there, answer"][0]
    row = re.search(r"^\| `score` \| (.*) \|$", PAGE, re.M)
    scores = dict(zip("ABCD", map(float, row[1].split(" | ")), strict=True))
    expressions = (
        asked(Granularity.MULTI, *(truth == n for n in "123"), name="three", instances=True),
        asked(Granularity.NONE, name="answered"),
        asked(Granularity.NONE, name="rejected"),
    )
    found = {
        "three": listing([given == letter for letter in "ABC"], [scores[letter] for letter in "ABC"]),
        "answered": listing([invented == "D"], [scores["D"]]),
        "rejected": answer(),
    }
    entry = scored([ImageRecord("i", 2, 8, expressions)], found)["instances"]
    assert stated("cgF1")[:3] == as_printed(*(entry[key] for key in ("cgF1", "pmF1", "IL_MCC")))
    assert stated("Mask AP") == as_printed(*(entry[key] for key in ("AP", "AP50", "AP75")))
    assert (entry["n"], entry["n_unknown"], entry["n_listed"]) == (3, 0, 2)


def test_the_example_of_a_second_truth():
    drawn = grids()
    (own,), (other,), (_, given) = drawn["polygons"], drawn["drawn again"], drawn["answer"]
    expression = asked(Granularity.OBJECT, own == "#")
    beside = Beside(truths={"q": masks.encode(other == "#")}, truths_of="other/val")
    entry = scored([ImageRecord("i", 2, 8, (expression,))], {"q": answer(given == "#")}, beside)
    found = entry["second_truth"]
    assert stated("A second truth") == as_printed(
        *(found[key]["mIoU"] for key in ("own", "other", "difference"))
    )
    assert (found["of"], found["n"], entry["overall"]["mIoU"]) == ("other/val", 1, found["own"]["mIoU"])


# ---- public code


def made(case, place):
    """An expression and an answer that lists instances, from a recorded case."""
    height, width = PUBLIC["size"]
    rles = [{"size": [height, width], "counts": counts} for counts in case["true"]]
    kind = Granularity.MULTI if rles else Granularity.NONE
    union = masks.union(rles, (height, width)) if rles else None
    expression = Expression(str(place), "it", kind, union, instances=tuple(rles) or None)
    found = tuple(Instance({"size": [height, width], "counts": counts}, None) for counts in case["found"])
    united = masks.union([item.rle for item in found], (height, width)) if found else None
    return expression, Prediction(not found, united, None, instances=found)


def record_and_answers(places):
    pairs = [made(PUBLIC["cases"][place], place) for place in places]
    record = ImageRecord("i", *PUBLIC["size"], tuple(expression for expression, _ in pairs))
    return record, {expression.expression_id: given for expression, given in pairs}


@pytest.mark.parametrize("name", PUBLIC["sets"])
def test_saco_numbers_are_those_of_its_public_evaluator(name):
    record, given = record_and_answers(PUBLIC["sets"][name])
    ours = scored([record], given)["instances"]
    for key, public in PUBLIC["public"][name].items():
        if name == "only with something to find" and key != "pmF1":
            assert (ours[key], public) == (None, 0.0)  # ours, as the page says
        else:
            assert ours[key] == pytest.approx(100 * public, abs=1e-12)
    assert abs(PUBLIC["public"]["all"]["cgF1"]) > 0.1, "the cases say something"


def test_the_recorded_cases_are_those_the_tool_makes():
    tool = runpy.run_path(str(ROOT / "tools" / "record_instances.py"))
    assert tool["cases_of"](len(PUBLIC["cases"])) == PUBLIC["cases"]
    assert PUBLIC["size"] == [tool["H"], tool["W"]] and set(PUBLIC["sets"]) == set(tool["SETS"])


@pytest.mark.parametrize("seed", range(3))
def test_mask_ap_is_that_of_pycocotools(seed):
    """With equal scores, answers in any order, and many pictures."""
    rng = np.random.default_rng(seed)
    places = range(0, len(PUBLIC["cases"]), 1 + seed)
    record, given = record_and_answers(places)
    records = [replace(record, image_id=str(k), expressions=(e,)) for k, e in enumerate(record.expressions)]
    for name, one in given.items():
        items = tuple(replace(item, score=float(rng.integers(0, 5)) / 4) for item in one.instances)
        given[name] = replace(one, instances=items)
    shuffled = dict(rng.permutation(np.array(list(given.items()), dtype=object)).tolist())
    ours = scored(records, shuffled)["instances"]
    found = [(k, item) for k, e in enumerate(record.expressions) for item in given[e.expression_id].instances]
    stats = public_ap(record.expressions, found)
    assert [ours[key] for key in ("AP", "AP50", "AP75")] == pytest.approx((100 * stats).tolist(), abs=1e-9)
    assert 5 < ours["AP"] < ours["AP50"]


def public_ap(expressions, found):
    """AP, AP50 and AP75 of COCOeval, each expression as an image."""
    height, width = PUBLIC["size"]
    true = [(k, rle) for k, e in enumerate(expressions) for rle in e.instances or ()]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": k, "height": height, "width": width} for k in range(len(expressions))],
        "categories": [{"id": 1}],
        "annotations": [
            {
                "id": n + 1,
                "image_id": k,
                "category_id": 1,
                "iscrowd": 0,
                "segmentation": rle,
                "area": masks.area(rle),
            }
            for n, (k, rle) in enumerate(true)
        ],
    }
    results = [
        {"image_id": k, "category_id": 1, "score": item.score, "segmentation": dict(item.rle)}
        for k, item in found
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(results), "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats[:3]


# ---- instances: what counts as one


def columns(first, last, height=4, width=12):
    mask = np.zeros((height, width), bool)
    mask[:, first:last] = True
    return mask


@pytest.mark.parametrize(
    ("expression", "given", "ious"),
    [
        # the mask is the one instance of an answer that lists none
        (asked(Granularity.OBJECT, columns(0, 4)), answer(columns(0, 2)), [[0.5]]),
        # an object that two instances were found for
        (asked(Granularity.OBJECT, columns(0, 4)), listing([columns(0, 4), columns(6, 8)], [1, 1]), [[1.0], [0.0]]),
        # all pieces of a part are one instance
        (asked(Granularity.PART, columns(0, 2), columns(6, 8)),
         listing([columns(0, 2), columns(6, 8)], [1, 1]), [[1.0]]),
        # an answer without a pixel is an answer
        (asked(Granularity.OBJECT, columns(0, 4)), Prediction(False, None, None), [[0.0]]),
        (asked(Granularity.NONE), answer(columns(0, 4)), [[]]),
        (asked(Granularity.OBJECT, columns(0, 4)), answer(), []),
    ],
)  # fmt: skip
def test_what_counts_as_an_instance(expression, given, ious):
    found = pairs_of(expression, given)
    assert found.ious_DG.tolist() == ious and found.scores_D.shape == (len(ious),)


def test_several_objects_that_only_a_union_is_known_of_are_left_out():
    union = asked(Granularity.MULTI, columns(0, 2), columns(4, 6))
    assert pairs_of(union, answer(columns(0, 2))) is None
    alone = asked(Granularity.OBJECT, columns(0, 2), name="alone")
    given = {"q": answer(columns(0, 2)), "alone": answer(columns(0, 2))}
    found = scored([ImageRecord("i", 4, 12, (union, alone))], given)["instances"]
    assert (found["n"], found["n_unknown"]) == (1, 1)
    assert found["cgF1"] is None and found["AP"] is None and found["pmF1"] == pytest.approx(100, abs=0.02)
    assert scored([ImageRecord("i", 4, 12, (union,))], {"q": answer()})["instances"] is None


def test_a_missing_score_is_one():
    given = listing([columns(0, 2), columns(4, 6)], [None, 0.5])
    assert isinstance(found := pairs_of(asked(Granularity.OBJECT, columns(0, 2)), given), Pairs)
    assert found.scores_D.tolist() == [1.0, 0.5]


# ---- wrong parts


SCENES = {name: load_benchmark(name, None)[:12] for name in ("scenes/val", "scenes_easy/val")}


@pytest.mark.parametrize("name", SCENES)
def test_scenes_know_whose_part_a_part_is(name):
    """The object and its other parts, checked on the dense labels and boxes of the record alone."""
    seen = 0
    for record in SCENES[name]:
        found = parts_of_scene(record)
        by_id = {e.expression_id: e for e in record.expressions}
        assert set(found) == {k for k, e in by_id.items() if e.granularity is Granularity.PART}
        for key, of in found.items():
            truth, whole = masks.decode(by_id[key].rle), masks.decode(of.whole)
            assert (whole & truth).sum() == truth.sum() < whole.sum()
            assert len(set(record.dense[..., 0][whole])) == 1, "one kind"
            pieces = np.zeros_like(whole)
            for rle in of.siblings:
                sibling = masks.decode(rle)
                assert (
                    sibling.any() and not (sibling & (truth | pieces)).any() and not (sibling & ~whole).any()
                )
                pieces |= sibling
            assert ((record.dense[..., 2] > 0) & whole == pieces | truth).all(), (
                "every other part is a sibling"
            )
            seen += 1
    assert seen > 20


def test_the_object_of_a_twin_is_the_whole():
    """A part and its object that share `twin` are about the same thing."""
    for record in SCENES["scenes/val"]:
        twins = defaultdict(dict)
        for e in record.expressions:
            if e.twin is not None:
                twins[e.twin][e.granularity] = e
        found = parts_of_scene(record)
        for members in twins.values():
            if {Granularity.PART, Granularity.OBJECT} <= set(members):
                assert found[members[Granularity.PART].expression_id].whole == members[Granularity.OBJECT].rle


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def test_xiou_is_what_dense_masks_say():
    rng = np.random.default_rng(0)
    records = SCENES["scenes/val"]
    given, values = {}, []
    for record in records:
        of = parts_of_scene(record)
        for e in record.expressions:
            other = record.expressions[int(rng.integers(len(record.expressions)))].rle
            mask = (
                None
                if other is None
                else masks.decode(other) & (rng.random((record.height, record.width)) < 0.9)
            )
            given[e.expression_id] = answer(mask)
            if (
                e.granularity is Granularity.PART
                and mask is not None
                and iou(mask, masks.decode(e.rle)) <= 0.5
            ):
                whole = masks.decode(of[e.expression_id].whole)
                beside = [iou(mask, masks.decode(rle)) for rle in of[e.expression_id].siblings]
                outside = (mask & ~whole).sum() / mask.sum()
                values.append((max([iou(mask, whole), *beside]), iou(mask, whole), outside))
    found = scored(records, given, beside_of(records, "scenes/val", None))["xIoU"]
    ours = [found[key] for key in ("xIoU", "object", "outside")]
    assert ours == pytest.approx((100 * np.mean(values, axis=0)).tolist(), abs=1e-7)
    assert found["n_wrong"] == len(values) > 10 and found["n_parts"] == 36


def test_always_the_object_and_never_a_part_score_what_they_must():
    records = SCENES["scenes_easy/val"]
    beside = beside_of(records, "scenes_easy/val", None)
    wholes = {name: of.whole for record in records for name, of in parts_of_scene(record).items()}
    ids = [(e, record) for record in records for e in record.expressions]
    objects = {e.expression_id: Prediction(False, wholes.get(e.expression_id), None) for e, _ in ids}
    found = scored(records, objects, beside)["xIoU"]
    assert (found["xIoU"], found["object"], found["outside"]) == (100.0, 100.0, 0.0) and found["sibling"] < 60
    away = {e.expression_id: answer(~masks.decode(all_objects(record))) for e, record in ids}
    found = scored(records, away, beside)["xIoU"]
    assert (found["xIoU"], found["outside"], found["n_wrong"]) == (0.0, 100.0, found["n_parts"])
    nothing = {e.expression_id: answer() for e, _ in ids}
    found = scored(records, nothing, beside)["xIoU"]
    assert found["xIoU"] is None and found["n_wrong"] == 0 < found["n_parts"]


def test_a_part_belongs_to_the_one_object_that_holds_half_of_it():
    def of(**named):
        kinds = {"p": Granularity.PART, "o": Granularity.OBJECT}
        return ImageRecord(
            "i", 4, 12, tuple(asked(kinds[name[0]], mask, name=name) for name, mask in named.items())
        )

    thing, other = columns(0, 6), columns(4, 12)
    record = of(o=thing, o_again=thing, p=columns(0, 2), p_beside=columns(2, 4), p_same=columns(0, 2))
    found = parts_by_place(record)
    assert {name: part.whole for name, part in found.items()} == dict.fromkeys(
        ("p", "p_beside", "p_same"), masks.encode(thing)
    )
    assert found["p"].siblings == found["p_same"].siblings == (masks.encode(columns(2, 4)),)
    half = parts_by_place(of(o=thing, p=columns(5, 7)))
    assert set(half) == {"p"} and half["p"].siblings == ()
    assert parts_by_place(of(o=thing, p=columns(5, 8))) == {}, "less than half"
    assert parts_by_place(of(o=thing, o2=other, p=columns(4, 6))) == {}, "in two objects"
    assert parts_by_place(of(p=columns(4, 6))) == {}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the developers' photographs are not here")
def test_refcocom_knows_its_parts_where_the_list_has_objects():
    """Against the file that says from which annotation each part of the photographs was cut."""
    cut = {
        item["segment_id"]: item["obj_ann_id"]
        for item in json.loads((SHARED / "refcocom/parts.json").read_text())
    }
    owners, known = defaultdict(set), 0
    for record in load_benchmark("refcocom/val_object_part", SHARED):
        by_id = {e.expression_id: e for e in record.expressions}
        for name, of in parts_by_place(record).items():
            owners[cut[int(by_id[name].source["segment_id"])]].add(of.whole["counts"])
            known += 1
    assert known >= 10 and all(len(wholes) == 1 for wholes in owners.values()), "parts of one object agree"
    assert len({counts for wholes in owners.values() for counts in wholes}) == len(owners), (
        "of two objects differ"
    )
    for record in load_benchmark("refcocom/val_part_only", SHARED):
        assert parts_by_place(record) == {}


# ---- a second truth


def photo(number, *named):
    """A record with a COCO id; `named` are (id, words, mask)."""
    expressions = tuple(
        replace(asked(Granularity.OBJECT, mask, name=name), text=words) for name, words, mask in named
    )
    return ImageRecord(str(number), 4, 12, expressions, path=f"COCO_train2014_{number:012d}.jpg")


def test_second_masks_are_found_by_photo_and_words():
    a, b, c = columns(0, 4), columns(2, 6), columns(8, 12)
    own = [photo(1, ("x1", "the man.", a), ("x2", "him", a), ("x3", "twice", a), ("x4", "twice", c)),
           photo(2, ("y1", "the man", c))]  # fmt: skip
    other = [photo(1, ("z1", "The Man", b), ("z2", "twice", b), ("z3", "her", c)),
             photo(3, ("z4", "the man", b))]  # fmt: skip
    assert second_masks(own, other) == {"x1": masks.encode(b)}
    assert second_masks(other, own) == {"z1": masks.encode(a)}
    larger = [replace(other[0], expressions=tuple(
        replace(e, rle=masks.encode(columns(0, 4, 8, 12))) for e in other[0].expressions))]  # fmt: skip
    assert second_masks(own, larger) == {}, "another size"


def test_the_second_truth_is_looked_for_where_the_data_is(tmp_path, monkeypatch):
    own, other = [photo(1, ("x1", "the man", columns(0, 4)))], [photo(1, ("z1", "the man", columns(0, 2)))]
    opened = []
    monkeypatch.setattr(
        "uniresxx.data.beside.open_benchmark", lambda name, data: opened.append((name, data)) or other
    )
    beside = beside_of(own, "refcoco/val", tmp_path)
    assert (beside.truths_of, list(beside.truths), opened) == (
        "refcoco_m/val",
        ["x1"],
        [("refcoco_m/val", tmp_path)],
    )
    found = scored(own, {"x1": answer(columns(0, 2))}, beside)["second_truth"]
    assert found["difference"]["cIoU"] == 50.0 and found["other"]["mIoU"] == 100.0
    for name, data in (("refcoco/testA", tmp_path), ("scenes/val", tmp_path), ("refcoco/val", None)):
        assert beside_of(own, name, data).truths_of is None


@pytest.mark.skipif(not SHARED.is_dir(), reason="the developers' photographs are not here")
def test_without_the_other_data_set_there_is_no_second_truth():
    assert beside_of(load_benchmark("refcoco/val", SHARED), "refcoco/val", SHARED).truths_of is None


@pytest.mark.skipif(not SHARED.is_dir(), reason="the developers' photographs are not here")
def test_refcoco_is_scored_against_refcoco_m_and_the_other_way_round(tmp_path, capsys):
    """From the files of both; the second masks are the first ones moved by four pixels."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("refcoco", "images"):
        (data / name).symlink_to(SHARED / name)
    records = load_benchmark("refcoco/val", data)
    moved = {
        e.expression_id: masks.encode(np.roll(masks.decode(e.rle), 4, axis=1))
        for r in records
        for e in r.expressions
    }
    rows = [
        {
            "image": {"bytes": Path(r.path).read_bytes(), "path": None},
            "image_id": int(r.image_id),
            "file_name": Path(r.path).name,
            "samples": [
                {"id": k, "sentences": [e.text], "mask": dict(moved[e.expression_id])}
                for k, e in enumerate(r.expressions)
            ],
        }
        for r in records
    ]
    place = data / "moondream" / "refcoco-m" / "data" / "validation-00000-of-00001.parquet"
    place.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), place)
    for benchmark, other in (("refcoco/val", "refcoco_m/val"), ("refcoco_m/val", "refcoco/val")):
        path = tmp_path / benchmark.replace("/", "_")
        perfect = [e for r in load_benchmark(benchmark, data) for e in r.expressions]
        lines = [to_json(e.expression_id, Prediction(False, e.rle, None)) for e in perfect]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        (entry,) = score(path, benchmark, tmp_path / "out", data=data)
        found = entry["second_truth"]
        assert (found["of"], found["n"], found["own"]["mIoU"]) == (other, len(perfect), 100.0)
        values = [
            iou(masks.decode(e.rle), masks.decode(moved[e.expression_id]))
            for r in records
            for e in r.expressions
        ]
        assert found["other"]["mIoU"] == pytest.approx(100 * np.mean(values), abs=1e-7) and min(values) < 0.95
        assert f"mIoU, masks of {other}" in capsys.readouterr().out


# ---- what is absent


def test_scenes_say_what_is_absent_and_so_does_their_store():
    for record in SCENES["scenes/val"]:
        again = record_of(row_of(record, "val", None), None)
        for a, b in zip(record.expressions, again.expressions, strict=True):
            found = [STRICT.judge(e, answer()).absent for e in (a, b)]
            assert found[0] == found[1] and (found[0] in ABSENT) == (a.granularity is Granularity.NONE)


def test_the_split_adds_up():
    records = SCENES["scenes/val"]
    given = {
        e.expression_id: answer(None if k % 3 else columns(0, 1, r.height, r.width))
        for k, (r, e) in enumerate((r, e) for r in records for e in r.expressions)
    }
    entry = scored(records, given)
    sizes = [entry["counts"]["by_absent"][what]["n"] for what in ABSENT]
    rates = [entry["by_absent"][what]["N-acc"] for what in ABSENT]
    assert sum(sizes) == entry["counts"]["overall"]["n_none"] and min(sizes) > 0
    assert np.dot(sizes, rates) / sum(sizes) == pytest.approx(entry["overall"]["N-acc"])
    assert scored(records, given, protocol=PROTOCOLS[1])["by_absent"] is not None


# ---- where they are null


def test_they_are_null_where_nothing_is_known_and_under_other_protocols():
    expressions = (asked(Granularity.PART, columns(0, 2), name="p"), asked(Granularity.NONE, name="n"))
    record, given = ImageRecord("i", 4, 12, expressions), {"p": answer(columns(6, 8)), "n": answer()}
    entry = scored([record], given)
    assert [entry[key] for key in ("by_absent", "xIoU", "second_truth")] == [None] * 3
    assert "by_absent" not in entry["counts"]
    assert [row[0] for row in more_rows(entry)] == ["cgF1"]
    beside = Beside(
        lambda record: {"p": PartOf(masks.encode(columns(0, 8)), ())}, {"p": expressions[0].rle}, "x/val"
    )
    assert scored([record], given, beside)["xIoU"]["sibling"] is None
    for protocol in PROTOCOLS:
        if protocol is not STRICT:
            entry = scored([record], given, beside, protocol)
            assert {key: entry[key] for key in MORE_KEYS} == dict.fromkeys(MORE_KEYS)
            assert more_rows(entry) == []


def test_the_table_has_a_row_for_each():
    record = SCENES["scenes/val"][0]
    given = {e.expression_id: Prediction(False, all_objects(record), None) for e in record.expressions}
    first = next(e for e in record.expressions if e.granularity is Granularity.OBJECT)
    given[first.expression_id] = replace(
        given[first.expression_id], instances=(Instance(all_objects(record), 0.5),)
    )
    beside = replace(
        beside_of([record], "scenes/val", None), truths={first.expression_id: first.rle}, truths_of="x/val"
    )
    rows = more_rows(scored([record], given, beside))
    names = [row[0] for row in rows]
    assert all(len(row) == 4 and len(" ".join(row)) < 74 for row in rows), "80 columns hold them"
    assert names[-5:] == [
        "xIoU, wrong parts of 3",
        "cgF1",
        "mask AP",
        "mIoU, masks of x/val",
        "cIoU, masks of x/val",
    ]
    assert rows[-2][3] == f"+0.0 to {rows[-2][2]}"
    assert more_rows({}) == [], "entries of earlier versions"
