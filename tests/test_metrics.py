"""Scores against an independent dense computation; counters add up in any order and any split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniresxx.errors import InputError
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.scoring.metrics import SCORE_KEYS, Counts, Tally
from uniresxx.scoring.protocols import STRICT, protocol_of
from uniresxx.scoring.tally import entry_of, tally_answers
from uniresxx.types import Expression, Granularity, ImageRecord

H, W = 6, 7


@st.composite
def dense_masks(draw):
    """Masks with a good share of empty, full, and boundary cases."""
    kind = draw(st.sampled_from(["empty", "full", "random", "random", "bar"]))
    if kind == "empty":
        return np.zeros((H, W), bool)
    if kind == "full":
        return np.ones((H, W), bool)
    if kind == "bar":  # sizes that hit IoU thresholds exactly
        flat = np.zeros(H * W, bool)
        flat[: draw(st.integers(1, 20))] = True
        return flat.reshape(H, W)
    bits = draw(st.integers(0, 2 ** (H * W) - 1))
    return np.array([bits >> k & 1 for k in range(H * W)], bool).reshape(H, W)


@st.composite
def cases(draw):
    """(truth mask or None, granularity, level, predicted mask or None, rejected)."""
    granularity = draw(st.sampled_from(list(Granularity)))
    truth = None if granularity is Granularity.NONE else draw(dense_masks())
    mask = draw(st.none() | dense_masks())
    return truth, granularity, draw(st.sampled_from([None, 1, 2, 3])), mask, draw(st.booleans())


def build(image_cases, number=0):
    expressions, predictions = [], {}
    for k, (truth, granularity, level, mask, rejected) in enumerate(image_cases):
        rle = None if truth is None else masks.encode(truth)
        name = f"made/val/{number}_{k}"
        expressions.append(Expression(name, "x", granularity, rle, level=level))
        predictions[name] = Prediction(rejected, None if mask is None else masks.encode(mask), "")
    return ImageRecord(f"im{number}", H, W, tuple(expressions)), predictions


def brute(all_cases):
    """Every definition once more, on dense arrays and floats."""
    ious, hit, inter_sum, union_sum = [], [], 0, 0
    on_target, rejected_none, answered_target = [], [], []
    for truth, _, _, mask, rejected in all_cases:
        g = np.zeros((H, W), bool) if truth is None else truth
        p = np.zeros((H, W), bool) if mask is None or rejected else mask
        if not g.any():
            rejected_none.append(rejected)
            ious.append(1.0 if rejected else 0.0)
            union_sum += 0 if rejected else int(p.sum())
            continue
        answered_target.append(not rejected)
        if rejected:
            iou, inter, union = 0.0, 0, int(g.sum())
        else:
            inter, union = int((p & g).sum()), int((p | g).sum())
            iou = inter / union
        inter_sum, union_sum = inter_sum + inter, union_sum + union
        ious.append(iou)
        on_target.append(iou)
        hit.append((inter, union))

    def mean(values):
        return 100 * float(np.mean(values)) if values else None

    scores = {
        "gIoU": mean(ious),
        "mIoU": mean(on_target),
        "cIoU": 100 * inter_sum / union_sum if union_sum else None,
    }
    for tenth in (5, 6, 7, 8, 9):  # in whole numbers: exactly "greater than"
        scores[f"Pr@0.{tenth}"] = mean([10 * i > tenth * u for i, u in hit])
    return scores | {"N-acc": mean(rejected_none), "T-acc": mean(answered_target)}


def close(ours, theirs):
    assert ours.keys() == theirs.keys() == set(SCORE_KEYS)
    for key, value in theirs.items():
        assert (ours[key] is None) == (value is None), key
        assert value is None or ours[key] == pytest.approx(value, rel=1e-9, abs=1e-9), key


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(cases(), min_size=0, max_size=6), min_size=1, max_size=4))
def test_scores_equal_a_dense_computation(images):
    built = [build(image, k) for k, image in enumerate(images)]
    predictions = {key: value for _, given_ in built for key, value in given_.items()}
    scored = tally_answers(predictions.items(), [record for record, _ in built], STRICT)
    entry = entry_of(scored, "made/val", STRICT)
    every = [case for image in images for case in image]
    close(entry["overall"], brute(every))
    for granularity in Granularity:
        close(entry["by_granularity"][granularity.value], brute([c for c in every if c[1] == granularity]))
    for level in (1, 2, 3):
        chosen = [c for c in every if c[2] == level]
        assert (str(level) in entry["by_level"]) == bool(chosen)
        if chosen:
            close(entry["by_level"][str(level)], brute(chosen))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(cases(), max_size=5), min_size=2, max_size=5), st.randoms())
def test_merge_equals_all_at_once_in_any_order(images, random):
    tallies = [STRICT.tally_image(*build(image, k)) for k, image in enumerate(images)]
    cut = random.randrange(len(tallies) + 1)
    left, right, together = Tally(), Tally(), Tally()
    for tally in tallies[:cut]:
        left = left.merge(tally)
    for tally in tallies[cut:]:
        right = right.merge(tally)
    random.shuffle(tallies)
    for tally in tallies:
        together = together.merge(tally)
    assert left.merge(right) == together  # exact, not approximately


@settings(max_examples=40, deadline=None)
@given(st.lists(cases(), max_size=6))
def test_adding_one_by_one_equals_merging_singles(image):
    record, predictions = build(image)
    whole, merged = Counts(), Counts()
    for expression in record.expressions:
        outcome = STRICT.judge(expression, predictions[expression.expression_id])
        whole.add(outcome)
        single = Counts()
        single.add(outcome)
        merged = merged.merge(single)
    assert whole == merged


def one(truth, mask, rejected, granularity=Granularity.OBJECT):
    record, predictions = build([(truth, granularity, None, mask, rejected)])
    (expression,) = record.expressions
    return STRICT.judge(expression, predictions[expression.expression_id])


def bar(pixels):
    flat = np.zeros(H * W, bool)
    flat[:pixels] = True
    return flat.reshape(H, W)


def test_the_four_cases_of_the_strict_protocol():
    nothing = one(None, None, True, Granularity.NONE)
    assert (nothing.iou, nothing.intersection, nothing.union) == (1.0, 0, 0)
    false_accept = one(None, bar(9), False, Granularity.NONE)
    assert (false_accept.iou, false_accept.intersection, false_accept.union) == (0.0, 0, 9)
    false_reject = one(bar(8), bar(8), True)  # the mask it carries earns nothing
    assert (false_reject.iou, false_reject.intersection, false_reject.union) == (0.0, 0, 8)
    answer = one(bar(8), bar(10), False)
    assert (answer.iou, answer.intersection, answer.union) == (0.8, 8, 10)


@pytest.mark.parametrize("tenth", [5, 6, 7, 8, 9])
def test_precision_at_an_exact_threshold_does_not_count(tenth):
    above = one(bar(tenth), bar(10), False).above
    assert above == tuple(tenth > other for other in (5, 6, 7, 8, 9))


def test_an_empty_truth_mask_is_no_target():
    outcome = one(bar(0), None, True)
    assert not outcome.targeted and outcome.iou == 1.0


def twin_tally(part_iou, parts=True, rejected=False):
    members = [Granularity.OBJECT, Granularity.MULTI, *([Granularity.PART] if parts else [])]
    expressions, predictions = [], {}
    for granularity in members:
        size = part_iou if granularity is Granularity.PART else 9
        name = granularity.value
        expressions.append(Expression(name, "x", granularity, masks.encode(bar(10)), twin="t0"))
        predictions[name] = Prediction(rejected, masks.encode(bar(size)), "")
    expressions.append(
        Expression("n", "x", Granularity.NONE, None, twin="t0")
    )  # no-target twins do not enter
    predictions["n"] = Prediction(False, masks.encode(bar(3)), "")
    return STRICT.tally_image(ImageRecord("i", H, W, tuple(expressions)), predictions)


def test_twin_score_needs_all_three_above_half():
    assert twin_tally(6).twin_score == 100
    assert twin_tally(5).twin_score == 0  # IoU exactly 0.5
    assert twin_tally(9, rejected=True).twin_score == 0
    assert twin_tally(9, parts=False).twin_score is None  # incomplete group
    assert twin_tally(6).merge(twin_tally(5)).twin_score == 50


def test_the_same_twin_name_in_two_pictures_is_two_groups():
    both = twin_tally(6).merge(twin_tally(6))
    assert (both.twins, both.twins_answered) == (2, 2)


def test_nothing_gives_null_and_never_nan():
    assert set(Counts().scores().values()) == {None}
    assert Tally().twin_score is None


def test_sums_stay_exact_above_32_bits():
    outcome = replace(one(bar(8), bar(10), False), intersection=2**31, union=2**32)
    counts = Counts()
    for _ in range(3):
        counts.add(outcome)
    assert (counts["intersection"], counts["union"]) == (3 * 2**31, 3 * 2**32)
    assert counts.scores()["cIoU"] == 50


@pytest.mark.parametrize(
    ("text", "rejected", "expected"),
    [("[SEG].", False, 0), ("[REJ].", True, 0), ("I see a dog.", True, 1), ("", True, 1), (None, True, 0)],
)
def test_no_answer_is_counted(text, rejected, expected):
    record, _ = build([(bar(4), Granularity.OBJECT, None, None, False)])
    answer = (record.expressions[0].expression_id, Prediction(rejected, None, text))
    scored = tally_answers([answer], [record], STRICT)
    assert entry_of(scored, "made/val", STRICT)["no_answer"] == expected


@pytest.mark.parametrize(
    ("rejected", "mask", "truncated", "expected"),
    [
        (False, bar(4), False, (0, 0)),
        (False, bar(4), True, (1, 0)),
        (False, None, False, (0, 1)),
        (False, bar(0), False, (0, 1)),
        (True, bar(0), True, (1, 0)),
    ],
)
@pytest.mark.parametrize("protocol", ["strict", "rela", "gsva", "lisa"])
def test_cut_off_and_empty_answers_are_counted(protocol, rejected, mask, truncated, expected):
    record, _ = build([(bar(4), Granularity.OBJECT, None, None, False)])
    mask = None if mask is None else masks.encode(mask)
    answer = Prediction(rejected, mask, "[SEG]", truncated=truncated)
    how = protocol_of(protocol)
    scored = tally_answers([(record.expressions[0].expression_id, answer)], [record], how)
    entry = entry_of(scored, "made/val", how)
    assert (entry["truncated"], entry["empty"]) == expected
    assert (entry["counts"]["overall"]["truncated"], entry["counts"]["overall"]["empty"]) == expected


def test_unknown_protocol_names_the_known():
    with pytest.raises(InputError, match="known: strict"):
        protocol_of("lenient")


def test_a_protocol_can_refuse_a_benchmark():
    with pytest.raises(InputError, match="grefcoco/val"):
        replace(STRICT, refuses=("grefcoco",)).check("grefcoco/val")
    STRICT.check("grefcoco/val")
