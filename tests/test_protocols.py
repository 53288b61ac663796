"""Protocols against what the public code of each peer gave on the same cases, and each quirk beside strict.

The recorded numbers come from `tools/record_protocols.py`, which ran the peers' own functions; each file in
data/protocols names repository, commit and functions.
"""

from __future__ import annotations

import json
import runpy
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from uniresxx.data.catalog import load_benchmark
from uniresxx.data.polygons import with_polygons
from uniresxx.data.readers.instances import overlap_source
from uniresxx.errors import InputError
from uniresxx.evaluation.metrics_file import score_file
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.scoring.metrics import SCORE_KEYS, Tally
from uniresxx.scoring.protocols import PROTOCOLS, STRICT, protocol_of
from uniresxx.scoring.protocols.rela import squashed_truth
from uniresxx.scoring.rejection import Rejection
from uniresxx.types import Expression, Granularity, ImageRecord

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path(__file__).parent / "data" / "protocols"
SHARED = ROOT.parent / "shared" / "mini_real"
PEERS = tuple(p.name for p in PROTOCOLS if p is not STRICT)
CASES = json.loads((FOLDER / "cases.json").read_text())["cases"]
PUBLIC = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in PEERS}
H, W = 20, 30


def expression_of(anns, size, name="made/val/0", ref=0):
    """An expression as the readers make it."""
    rows = [{"segmentation": item} for item in anns]
    rles = [masks.from_coco(item, *size) for item in anns]
    kind = (Granularity.NONE, Granularity.OBJECT, Granularity.MULTI)[min(len(anns), 2)]
    source = {"ref_id": ref, **overlap_source(rows, rles, size)}
    return Expression(name, "it", kind, masks.union(rles, size) if rles else None, source=source)


def built(place, case, more=False):
    """The record of a case and its predictions; with `more`, all sentences about its referent."""
    size = (case["size"][0], case["size"][1])
    answers = [Prediction(case["rejected"], case["mask"], None, mask_if_forced=case["forced"])]
    answers += [Prediction(False, rle, None) for rle in case["more"]] if more else []
    names = [f"made/val/{place}_{k}" for k in range(len(answers))]
    expressions = tuple(expression_of(case["anns"], size, name, place) for name in names)
    return ImageRecord(str(place), *size, expressions), dict(zip(names, answers, strict=True))


SINGLE = [built(k, case) for k, case in enumerate(CASES)]


def judged(protocol, place):
    record, answers = SINGLE[place]
    (expression,) = record.expressions
    return protocol.judge(expression, answers[expression.expression_id])


def scores(protocol, every):
    tally = Tally()
    for record, answers in every:
        tally = tally.merge(protocol.tally_image(record, answers))
    return tally.overall.scores()


@pytest.mark.parametrize("name", PEERS)
def test_every_case_equals_the_public_code(name):
    protocol, public = protocol_of(name), PUBLIC[name]
    assert len(public["cases"]) == len(CASES) >= 200
    for place, theirs in enumerate(public["cases"]):
        ours = judged(protocol, place)
        who = (place, CASES[place]["kind"])
        assert ours.iou == pytest.approx(theirs[0], rel=1e-6, abs=0), who
        if "above" in public["columns"]:
            assert "".join(str(int(value)) for value in ours.above) == theirs[1], who
        else:
            assert [ours.intersection, ours.union] == theirs[1:], who


@pytest.mark.parametrize("name", PEERS)
def test_the_scores_equal_the_public_code(name):
    protocol, public = protocol_of(name), PUBLIC[name]
    every = SINGLE
    if name.startswith("cris"):  # which has a target in every record, and several sentences in some
        every = [built(k, case, more=True) for k, case in enumerate(CASES) if SINGLE[k][0].expressions[0].rle]
    ours = scores(protocol, every)
    assert set(public["aggregate"]) <= set(SCORE_KEYS) - set(protocol.undefined)
    assert set(SCORE_KEYS) - set(protocol.undefined) - set(public["aggregate"]) <= {"mIoU"}
    for found in (public["aggregate"], public.get("aggregate_by_image", {})):
        for key, value in found.items():
            assert ours[key] == pytest.approx(value, rel=1e-6), key


def test_there_are_enough_cases_of_every_kind():
    kinds = Counter(case["kind"] for case in CASES)
    assert len(kinds) == 12 and min(kinds.values()) >= 20
    twice = [k for k, (record, _) in enumerate(SINGLE) if "overlap" in record.expressions[0].source]
    assert Counter(CASES[k]["kind"] for k in twice)["overlapping polygons"] >= 20
    exact = [judged(STRICT, k).iou for k, case in enumerate(CASES) if case["kind"] == "exact threshold"]
    assert Counter(exact) == {0.5: 5, 0.6: 5, 0.7: 5, 0.8: 5, 0.9: 5}


def test_the_committed_generator_makes_these_cases():
    made = runpy.run_path(str(ROOT / "tools" / "protocol_cases.py"))
    assert made["cases_of"](json.loads((FOLDER / "cases.json").read_text())["seed"]) == CASES


def test_sampler_padding_is_that_of_the_public_order():
    for case in PUBLIC["lisa"]["padding"]:
        names = [str(value) for value in case["image_ids"]]
        records = [ImageRecord(n, 4, 4, (Expression(n, "it", Granularity.NONE, None),)) for n in names]
        for name in ("lisa", "lisa-binarised", "gsva"):
            again = protocol_of(name).padded(records, case["world_size"])
            assert sorted([*names, *again], key=int) == [str(value) for value in case["given"]]
        assert not protocol_of("rela").padded(records, case["world_size"])


def test_every_peer_says_where_it_comes_from():
    for name in PEERS:
        public = PUBLIC[name]
        assert public["repository"] in protocol_of(name).origin and len(public["commit"]) == 40
        assert public["commit"][:12] in protocol_of(name).origin
        assert protocol_of(name).summary and public["ran"]


# ------------------------------------------------------------------------- each quirk and its effect on strict


def bar(start, stop):
    flat = np.zeros(H * W, bool)
    flat[start:stop] = True
    return masks.encode(flat.reshape(H, W))


def target(rle, ref=0, name="made/val/0"):
    return Expression(name, "it", Granularity.OBJECT, rle, source={"ref_id": ref})


def pair(name, expression, prediction):
    """The outcomes of a peer and of strict."""
    return protocol_of(name).judge(expression, prediction), STRICT.judge(expression, prediction)


def test_gsva_credits_a_rejected_target():
    answer = Prediction(True, bar(0, 10), None, mask_if_forced=bar(0, 90))
    lenient, strict = pair("gsva", target(bar(0, 100)), answer)
    assert (strict.iou, strict.intersection, strict.union) == (0, 0, 100)
    assert lenient.iou == pytest.approx(0.9) and (lenient.intersection, lenient.union) == (90, 100)
    assert lenient.rejected and strict.rejected  # T-acc sees it all the same
    carried, _ = pair("gsva", target(bar(0, 100)), Prediction(True, bar(0, 10), None))
    assert carried.iou == pytest.approx(0.1)
    nothing, _ = pair("gsva", target(bar(0, 100)), Prediction(True, None, None))
    assert (nothing.iou, nothing.union) == (0, 100)


def test_rela_keeps_the_pixels_of_a_rejected_mask_in_the_union():
    theirs, strict = pair("rela", target(bar(0, 100)), Prediction(True, bar(50, 300), None))
    assert (theirs.iou, theirs.intersection, theirs.union) == (0, 0, 300)
    assert strict.union == 100


def test_rela_counts_an_exact_threshold():
    theirs, strict = pair("rela", target(bar(0, 10)), Prediction(False, bar(0, 7), None))
    assert theirs.above == (False, False, True, False, False)  # 0.5 and 0.6 are not its thresholds
    assert strict.above == (True, True, False, False, False)


def test_the_squash_changes_areas_and_can_lose_a_target():
    wide, thin = np.zeros((16, 960), bool), np.zeros((16, 960), bool)
    wide[:, :100], thin[:, 2::4] = True, True  # every second column is taken: 1, 3, 5, …
    record = target(masks.encode(thin))
    theirs, strict = pair("rela-480", record, Prediction(False, masks.encode(wide), None))
    assert strict.iou > 0.05 and theirs.targeted and theirs.iou == 0
    theirs, strict = pair("rela-480", target(bar(0, 60)), Prediction(False, bar(0, 30), None))
    assert (strict.union, theirs.union) == (60, 60 * 480 * 480 // (H * W)) and theirs.iou == strict.iou


def drawn_by_pycocotools(polygons, size):
    """Bool (480, 480): each polygon scaled by (480 / width, 480 / height), drawn there, all merged."""
    height, width = size
    scaled = [[v * (480 / height if k % 2 else 480 / width) for k, v in enumerate(p)] for p in polygons]
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(scaled, 480, 480))) > 0


def native_layout(root, annotations, height=37, width=91):
    """A folder `grefcoco` of one photo: a sentence about each annotation and one about all of them."""
    folder = root / "grefcoco"
    folder.mkdir(parents=True)
    rows = [{"id": k, "image_id": 7, "segmentation": item} for k, item in enumerate(annotations)]
    image = {"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "height": height, "width": width}
    (folder / "instances.json").write_text(json.dumps({"images": [image], "annotations": rows}))
    asked = [*([k] for k in range(len(rows))), list(range(len(rows)))]
    refs = [
        {
            "ref_id": k,
            "image_id": 7,
            "ann_id": ids,
            "split": "val",
            "sentences": [{"sent_id": k, "sent": "it"}],
        }
        for k, ids in enumerate(asked)
    ]
    (folder / "grefs(unc).json").write_text(json.dumps(refs))
    return root


TRIANGLE, BLADE = [3.5, 2.25, 40.2, 9.1, 11.7, 30.6], [50.1, 5.3, 88.8, 6.2, 60.4, 12.9, 52.0, 33.3]


def test_rela_480_draws_polygons_at_its_own_size(tmp_path):
    data = native_layout(tmp_path, [[TRIANGLE, BLADE], [BLADE]])
    (record,) = with_polygons(load_benchmark("grefcoco/val", data), data)
    for expression, polygons in zip(
        record.expressions, ([TRIANGLE, BLADE], [BLADE], [TRIANGLE, BLADE]), strict=True
    ):
        expected = drawn_by_pycocotools(polygons, (37, 91))
        found, _ = pair(
            "rela-480", expression, Prediction(False, masks.encode(np.ones((37, 91), bool)), None)
        )
        assert found.union == 480 * 480 and found.intersection == expected.sum()
        assert np.array_equal(masks.decode(squashed_truth(expression)), expected)
        resized = masks.decode(squashed_truth(replace(expression, polygons=None)))
        assert (resized != expected).any()  # what the nearest pixel of the mask gave instead


def test_rela_480_resizes_a_truth_that_is_a_code_and_says_how_many(tmp_path):
    code = coco_mask.frPyObjects([TRIANGLE], 37, 91)[0]
    code = {"size": code["size"], "counts": code["counts"].decode()}
    data = native_layout(tmp_path, [[BLADE], code])
    records = with_polygons(load_benchmark("grefcoco/val", data), data)
    assert [e.polygons is not None for e in records[0].expressions] == [True, False, False]
    path = tmp_path / "predictions.jsonl"
    lines = [
        {"expression_id": e.expression_id, "rejected": False, "mask": e.rle} for e in records[0].expressions
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    entry = score_file(path, records, "grefcoco/val", "rela-480")
    assert entry["truth"] == {"polygons": 1, "masks": 2}
    assert 66 < entry["overall"]["gIoU"] < 100  # the two codes 1, the polygon below
    assert "truth" not in score_file(path, records, "grefcoco/val", "rela")
    assert with_polygons(records, None)[0].expressions[0].polygons is None


def test_lisa_takes_pixels_of_two_polygons_for_background():
    square, right = [2, 2, 12, 2, 12, 12, 2, 12], [7, 2, 17, 2, 17, 12, 7, 12]
    expression = expression_of([[square, right]], (H, W))
    assert masks.area(expression.source["overlap"]) == 50
    summed, strict = pair("lisa", expression, Prediction(False, expression.rle, None))
    assert strict.iou == 1 and (summed.intersection, summed.union) == (100, 150)
    assert summed.iou == pytest.approx(100 / 150)
    binarised, _ = pair("lisa-binarised", expression, Prediction(False, expression.rle, None))
    assert (binarised.intersection, binarised.union) == (150, 150)


def test_lisa_gives_one_where_nothing_is_left():
    square = [2, 2, 12, 2, 12, 12, 2, 12]
    expression = expression_of([[square, square]], (H, W))  # every pixel is 2: no truth remains
    summed, strict = pair("lisa", expression, Prediction(False, None, None))
    assert (summed.iou, summed.union) == (1, 0) and strict.iou == 0 and summed.targeted


def test_lisa_does_not_ask_whether_something_was_rejected():
    nothing = Expression("made/val/0", "it", Granularity.NONE, None)
    for answer, theirs_iou, strict_iou in (
        (Prediction(False, None, None), 1, 0),  # an empty mask is the right answer
        (Prediction(True, bar(0, 9), None), 0, 1),  # the mask counts, not the word
    ):
        theirs, strict = pair("lisa", nothing, answer)
        assert (theirs.iou, strict.iou) == (theirs_iou, strict_iou)
    kept, strict = pair("lisa", target(bar(0, 9)), Prediction(True, bar(0, 9), None))
    assert kept.iou == pytest.approx(1, rel=1e-5) and strict.iou == 0


def test_the_number_added_to_the_union_shows_on_one_pixel():
    answer = Prediction(False, bar(0, 1), None)
    lost = {name: 1 - protocol_of(name).judge(target(bar(0, 1)), answer).iou for name in PEERS}
    assert lost["lisa"] == pytest.approx(1e-5, rel=1e-3) and lost["cris"] == pytest.approx(1e-6, rel=1e-3)
    assert lost["gsva"] == pytest.approx(1e-8, rel=1e-3) and lost["rela"] == 0


def test_cris_lets_some_exact_thresholds_pass_on_large_masks():
    def above(tenth, tens):
        return pair("cris", target(bar(0, 10 * tens)), Prediction(False, bar(0, tenth * tens), None))

    for tenth, place in ((5, 0), (6, 1), (7, 2), (8, 3), (9, 4)):
        (small, strict), (large, _) = above(tenth, 1), above(tenth, 60)
        assert not strict.above[place] and not small.above[place]
        assert large.above[place] == (tenth in (7, 9))  # 0.7 and 0.9 lie above their float32


def test_cris_validate_sees_the_first_sentence_of_each_referent_only():
    expressions = tuple(target(bar(0, 100), ref, f"made/val/{ref}_{k}") for ref in (3, 5) for k in range(3))
    record = ImageRecord("7", H, W, expressions)
    answers = {
        e.expression_id: Prediction(False, bar(0, 100 if e.expression_id.endswith("_0") else 10), None)
        for e in expressions
    }
    assert scores(protocol_of("cris-validate"), [(record, answers)])["mIoU"] == pytest.approx(100)
    assert scores(protocol_of("cris"), [(record, answers)])["mIoU"] == pytest.approx(40)
    assert scores(STRICT, [(record, answers)])["mIoU"] == pytest.approx(40)
    assert protocol_of("cris-validate").padded([record], 4) == ["made/val/3_0", "made/val/5_0"]
    assert not protocol_of("cris").padded([record], 4)


def test_cris_knows_no_expression_without_a_target():
    for name in ("cris", "cris-validate"):
        with pytest.raises(
            InputError, match=r"grefcoco/val holds expressions without a target.*use --protocol strict"
        ):
            protocol_of(name).check("grefcoco/val")
        for benchmark in ("psalm_grefcoco/val", "mini_real/val"):  # which hold gRefCOCO too
            with pytest.raises(InputError, match=benchmark):
                protocol_of(name).check(benchmark)
        protocol_of(name).check("refcoco/val")


@pytest.mark.parametrize("key", ["ref_id", "segment_id", "ann_id"])
def test_a_referent_is_known_by_what_its_format_calls_it(key):
    every = [
        Expression(f"{place}/val/{k}", "it", Granularity.OBJECT, bar(0, 9), source={key: k // 2})
        for place in ("refcoco", "refcoco+")
        for k in range(4)
    ]
    record = ImageRecord("7", H, W, tuple(every))
    kept = [e.expression_id for e in protocol_of("cris-validate").counted(record)]
    assert kept == ["refcoco/val/0", "refcoco/val/2", "refcoco+/val/0", "refcoco+/val/2"]
    plain = ImageRecord("7", H, W, tuple(replace(e, source={}) for e in every))
    assert protocol_of("cris-validate").counted(plain) == list(plain.expressions)


@pytest.mark.parametrize("place", range(0, len(SINGLE), 7))
def test_empty_is_none_is_rela_with_the_rule_empty_mask(place):
    record, answers = SINGLE[place]
    (expression,), (answer,) = record.expressions, answers.values()
    ruled = Rejection("empty_mask").apply(answer)
    assert protocol_of("empty_is_none").judge(expression, answer) == protocol_of("rela").judge(
        expression, ruled
    )


def test_empty_is_none_asks_the_mask_and_not_the_flag():
    nothing = Expression("made/val/0", "it", Granularity.NONE, None)
    theirs, strict = pair("empty_is_none", nothing, Prediction(False, None, None))
    assert theirs.rejected and theirs.iou == 1 and strict.iou == 0
    theirs, strict = pair("empty_is_none", target(bar(0, 10)), Prediction(True, bar(0, 10), None))
    assert not theirs.rejected and theirs.iou == 1 and strict.iou == 0
    theirs, _ = pair("empty_is_none", target(bar(0, 10)), Prediction(False, bar(0, 0), None))
    assert theirs.rejected and (theirs.iou, theirs.union) == (0, 10)


def test_padding_counts_pictures_twice():
    good, bad = target(bar(0, 100), name="made/val/1"), target(bar(0, 100), name="made/val/2")
    records = [ImageRecord(str(k), H, W, (e,)) for k, e in ((1, good), (2, bad))]
    records.append(ImageRecord("3", H, W, (target(bar(0, 100), name="made/val/3"),)))
    answers = {f"made/val/{k}": Prediction(False, bar(0, n), None) for k, n in ((1, 100), (2, 50), (3, 0))}
    lisa = protocol_of("lisa")
    again = lisa.padded(records, 4)
    assert again == ["made/val/1"] and lisa.padded(records, 3) == []
    every = [(record, answers) for record in records]
    assert scores(lisa, every)["gIoU"] == pytest.approx(50)
    assert scores(lisa, [*every, every[0]])["gIoU"] == pytest.approx(62.5)
    with pytest.raises(InputError, match="at least 1, not 0"):
        lisa.padded(records, 0)


# --------------------------------------------------------------------------------------------- what always holds


@settings(max_examples=80, deadline=None)
@given(st.integers(0, H * W), st.integers(0, H * W), st.booleans(), st.booleans())
def test_peers_agree_with_strict_where_nothing_is_special(stop, answer_stop, rejected, no_target):
    """An unsquashed, single-polygon case differs from strict only where an answer was rejected or is empty."""
    truth = None if no_target or stop == 0 else bar(0, stop)
    kind = Granularity.NONE if truth is None else Granularity.OBJECT
    expression = Expression("made/val/0", "it", kind, truth)
    answer = Prediction(rejected, None if rejected else bar(0, answer_stop), None)
    ours = STRICT.judge(expression, answer)
    for name in ("rela", "gsva"):
        theirs = protocol_of(name).judge(expression, answer)
        assert theirs.iou == pytest.approx(ours.iou, rel=1e-7)
        assert (theirs.intersection, theirs.union) == (ours.intersection, ours.union)
        assert (theirs.rejected, theirs.targeted) == (ours.rejected, ours.targeted)
    if rejected == (answer_stop == 0):
        for name in ("lisa", "lisa-binarised", "empty_is_none"):
            assert protocol_of(name).judge(expression, answer).iou == pytest.approx(ours.iou, rel=1e-4)


corner = st.floats(-3, 33, allow_nan=False).map(lambda value: round(value, 1))
outline = st.lists(corner, min_size=6, max_size=12).filter(lambda points: len(points) % 2 == 0)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(outline, min_size=1, max_size=3), max_size=3))
def test_the_overlap_is_what_a_sum_of_layers_shows(anns):
    total = np.zeros((H, W), int)
    for polygons in anns:
        total += coco_mask.decode(coco_mask.frPyObjects(polygons, H, W)).sum(axis=2).astype(int)
    rles = [masks.from_coco(polygons, H, W) for polygons in anns]
    found = overlap_source([{"segmentation": polygons} for polygons in anns], rles, (H, W))
    assert bool(found) == bool((total > 1).any())
    if found:
        assert np.array_equal(masks.decode(found["overlap"]), total > 1)
        json.dumps(found)


def test_boxes_that_barely_meet_are_looked_at():
    left, right = [2, 2, 12, 2, 12, 12, 2, 12], [11, 2, 20, 2, 20, 12, 11, 12]
    for anns in ([[left, right]], [[left], [right]]):
        assert masks.area(expression_of(anns, (H, W)).source["overlap"]) == 10
    apart = [25, 2, 29, 2, 29, 12, 25, 12]
    assert "overlap" not in expression_of([[left, apart]], (H, W)).source


def test_overlap_of_run_lengths_and_flat_polygons():
    codes = [bar(0, 60), bar(50, 90)]
    assert masks.area(overlap_source([{"segmentation": codes}], [bar(0, 90)], (H, W))["overlap"]) == 10
    for single in (codes[0], [2.0, 2.0, 12.0, 2.0, 12.0, 12.0], []):
        rle = masks.from_coco(single, H, W)
        assert overlap_source([{"segmentation": single}], [rle], (H, W)) == {}
    pair_of = [{"segmentation": code} for code in codes]
    assert masks.area(overlap_source(pair_of, codes, (H, W))["overlap"]) == 10


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared photographs are not here")
def test_real_annotations_that_overlap_are_noticed():
    found = [e for record in load_benchmark("grefcoco/train", SHARED) for e in record.expressions]
    twice = [e for e in found if "overlap" in e.source]
    assert 0 < len(twice) < len(found) / 10
    for e in twice:
        overlap = e.source["overlap"]
        assert 0 < masks.area(overlap) == masks.intersection_area(overlap, e.rle) < e.area
