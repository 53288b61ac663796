"""The comparison of models that learn from the data engine's store: its stores, its arithmetic, its words."""

from __future__ import annotations

import numpy as np
import pytest

from tools.engine_training import ARMS, lines_of
from tools.paired_runs import SCORES, interval, scene_store
from uniresxx.data.scenes.record import scene_record
from uniresxx.data.store.read import Store


def test_the_interval_is_student_s() -> None:
    half = 4.302653 * (7 / 3) ** 0.5 / 3**0.5  # printed tables: 97.5 % point of t with 2 degrees of freedom
    assert interval([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, 7 / 3 - half, 7 / 3 + half), abs=1e-5)
    assert interval([3.0]) == (3.0, -float("inf"), float("inf"))


def test_differences_are_paired_by_seed() -> None:
    def arm(value: float) -> dict[str, float]:
        return dict.fromkeys(SCORES, value)

    found = {
        seed: {
            "labelled": arm(10.0 * seed),
            "engine": arm(10.0 * seed + 5),
            "truth": arm(50.0),
        }
        for seed in (1, 2, 3)
    }
    lines = lines_of(found)
    assert "engine - labelled, mIoU: +5.0 [+5.0, +5.0]" in lines
    assert lines[-1].startswith("engine / truth, mIoU: 50.0 %") and set(ARMS) == set(found[1])


def test_the_truth_is_that_of_the_scenes_and_second_stages_have_no_dense_labels(tmp_path) -> None:
    for dense in (True, False):
        [record, _] = Store.open(scene_store(tmp_path / str(dense), [7, 9], dense))
        scene = scene_record("scenes_easy", "train", 7)
        assert record.expressions == scene.expressions and not record.dialogues
        assert np.array_equal(record.pixels, scene.pixels) and (record.dense is not None) is dense
