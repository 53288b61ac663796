"""No shortcut: neither the text alone nor the kind alone passes the embedded benchmark."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from uniresxx.data.scenes import benchmark_records, preset_of, scene_record
from uniresxx.imaging.masks import decode
from uniresxx.types import Expression


def _counts(expressions: list[Expression], words: dict[str, int]) -> np.ndarray:
    """Word counts (n, words + 1), the last column constant."""
    table = np.zeros((len(expressions), len(words) + 1))
    table[:, -1] = 1
    for row, expression in enumerate(expressions):
        for word in expression.text.replace(",", "").split():
            if word in words:
                table[row, words[word]] += 1
    return table


def _fit(table: np.ndarray, absent: np.ndarray, steps: int = 250) -> np.ndarray:
    """Logistic regression with balanced classes by gradient descent with momentum."""
    weight = np.where(absent, 0.5 / absent.mean(), 0.5 / (~absent).mean())
    theta, speed = np.zeros(table.shape[1]), np.zeros(table.shape[1])
    for _ in range(steps):
        guess = 1 / (1 + np.exp(-table @ theta))
        speed = 0.9 * speed + table.T @ (weight * (guess - absent)) / len(absent) + 1e-4 * theta
        theta -= 0.5 * speed
    return theta


def _balanced(says: np.ndarray, absent: np.ndarray) -> float:
    return float((says[absent].mean() + (~says[~absent]).mean()) / 2)


@pytest.mark.parametrize("preset", ["scenes_easy", "scenes"])
def test_words_alone_do_not_tell_what_is_missing(preset: str) -> None:
    train = [e for index in range(400) for e in scene_record(preset, "train", index).expressions]
    test = [e for record in benchmark_records(preset, "test") for e in record.expressions]
    vocabulary: dict[str, int] = {}
    for expression in train:
        for word in expression.text.replace(",", "").split():
            vocabulary.setdefault(word, len(vocabulary))
    absent = np.array([e.rle is None for e in train])
    theta = _fit(_counts(train, vocabulary), absent)
    result = _balanced(_counts(test, vocabulary) @ theta > 0, np.array([e.rle is None for e in test]))
    assert result <= 0.57, f"a bag of words reaches {100 * result:.1f} % balanced accuracy"
    # the classifier is no straw man: it finds a leak that is put in
    leaky = np.concatenate(
        [_counts(train, vocabulary), (absent ^ (np.arange(len(absent)) % 4 == 0))[:, None]], 1
    )
    assert _balanced(leaky @ _fit(leaky, absent) > 0, absent) > 0.7


def test_the_kind_alone_does_not_give_the_mask() -> None:
    """A solver that answers everything of the kind in the text, and nothing where there is none."""
    kinds = preset_of("scenes").kinds
    scores = defaultdict(list)
    for record in benchmark_records("scenes", "val"):
        assert record.dense is not None
        for e in record.expressions:
            mask = record.dense[..., 0] == kinds.index(e.source["kind"]) + 1
            truth = np.zeros_like(mask) if e.rle is None else decode(e.rle)
            union = (mask | truth).sum()
            scores[e.granularity].append(1.0 if union == 0 else float((mask & truth).sum() / union))
    mean = 100 * np.mean([value for values in scores.values() for value in values])
    assert mean <= 40, f"a solver that knows only the kind reaches {mean:.1f} mIoU"
