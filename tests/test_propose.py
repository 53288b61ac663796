"""`uniresxx data propose`: stored proposals, whose they are, and their recall."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from mllm.tokens import Vocabulary
from tests.test_box_levels import LEARNED
from tests.test_boxes import owlv2
from tests.test_model import picture
from uniresxx.checkpoints.folders import save_pretrained
from uniresxx.cli import main
from uniresxx.data.store.read import Store
from uniresxx.data.store.write import Preparation, write_store
from uniresxx.evaluation.propose import write_proposals
from uniresxx.evaluation.regions import box_recall
from uniresxx.imaging.boxes import boxes_of_masks
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.templates import TRAINING_TEMPLATES


@pytest.fixture
def store(tmp_path):
    records = [replace(picture(i), dense=None) for i in range(3)]
    return write_store(tmp_path / "store", Preparation("toy", {"train": lambda: (records, {})}))


def stored(store, name):
    head, *lines = map(json.loads, (store.path / f"proposals-{name}.jsonl").read_text().splitlines())
    assert head["format"] == "uniresxx-proposals" and head["store"] == store.fingerprint
    assert head["proposer"] == name
    assert [line["image_id"] for line in lines] == [record.image_id for record in store]
    return head, lines


@pytest.mark.parametrize("name", ["classical", "grid"])
def test_proposals_lie_beside_the_records_with_their_recall(store, capsys, name):
    assert main(["data", "propose", str(store.path), "--proposer", name]) == 0
    printed = capsys.readouterr().out
    _, lines = stored(store, name)
    found, total = {"object": 0, "part": 0}, {"object": 0, "part": 0}
    for record, line in zip(store, lines, strict=True):
        boxes = {kind: np.array(line[kind]).reshape(-1, 4) for kind in total}
        assert all((box[:, 2:] <= (record.width, record.height)).all() for box in boxes.values())
        here, of = box_recall(record, boxes)
        for kind in total:
            found[kind] += here[kind]
            total[kind] += of[kind]
    for kind, count in total.items():
        assert f"{kind} {100 * found[kind] / count:.1f} %" in printed
    assert Store.open(store.path).fingerprint == store.fingerprint


def test_the_truth_as_proposals_is_found_whole(store):
    truth = iter([boxes_of_masks(record) for record in store])
    _, recall = write_proposals(store, lambda photos: [next(truth)], {"proposer": "truth"}, lambda *_: None)
    assert recall == {"object": 100.0, "part": 100.0}


def test_owlv2_proposes(store, tmp_path):
    source = owlv2(tmp_path / "owl")
    assert main(["data", "propose", str(store.path), "--proposer", "owlv2", "--checkpoint", source]) == 0
    head, lines = stored(store, "owlv2")
    assert head["source"] == source and any(line["object"] for line in lines)


@pytest.mark.parametrize("name", ["learned", "owlv2"])
def test_a_proposer_without_its_checkpoint_says_what_it_needs(store, capsys, name):
    assert main(["data", "propose", str(store.path), "--proposer", name]) == 2
    assert f"--proposer {name} needs --checkpoint" in capsys.readouterr().err
    assert not list(store.path.glob("*proposals*"))


def test_a_trained_model_proposes(store, tmp_path, capsys):
    vocabulary = Vocabulary.train([*TRAINING_TEMPLATES, "the red square"] * 3, 340)
    save_pretrained(tmp_path / "run", UniRESPlusPlusModel(LEARNED, vocabulary))
    words = [
        "data",
        "propose",
        str(store.path),
        "--proposer",
        "learned",
        "--checkpoint",
        str(tmp_path / "run"),
    ]
    assert main(words) == 0
    head, _ = stored(store, "learned")
    assert head["checkpoint"]
    save_pretrained(tmp_path / "other", UniRESPlusPlusModel(replace(LEARNED, boxes="classical"), vocabulary))
    assert main([*words[:-1], str(tmp_path / "other")]) == 2
    assert "has no learned boxes" in capsys.readouterr().err
