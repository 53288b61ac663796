"""Every way of writing the same answers down scores the same, or is refused with a line that names it."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from uniresxx.errors import InputError
from uniresxx.evaluation.metrics_file import score_file
from uniresxx.imaging import masks
from uniresxx.scoring.rejection import Rejection
from uniresxx.types import Expression, Granularity, ImageRecord

H, W = 12, 16
G = Granularity


def plane(*boxes):
    mask = np.zeros((H, W), bool)
    for y0, x0, y1, x1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


TRUTH = {
    "m/val/1": plane((1, 1, 6, 6)),
    "m/val/2": plane((2, 2, 4, 4)),
    "m/val/3": plane((1, 1, 6, 6), (7, 9, 11, 15)),
    "m/val/4": None,
}
RECORDS = [
    ImageRecord(
        "im", H, W,
        tuple(
            Expression(name, "x", G.NONE if mask is None else G.OBJECT, None if mask is None else masks.encode(mask))
            for name, mask in TRUTH.items()
        ),
    )
]  # fmt: skip
ANSWERS = {name: None if mask is None else np.roll(mask, 1, axis=1) for name, mask in TRUTH.items()}
LINES = [
    {"expression_id": n, "rejected": m is None, "mask": None if m is None else masks.encode(m), "score": 0.9}
    for n, m in ANSWERS.items()
]
JSONL = "".join(json.dumps(line) + "\n" for line in LINES)


def scored(path, **options):
    return score_file(path, RECORDS, "m/val", **options)


@pytest.fixture
def scores(tmp_path):
    """What the answers score as lines of our own form."""
    path = tmp_path / "plain.jsonl"
    path.write_text(JSONL)
    entry = scored(path)
    assert "assumed" not in entry and 40 < entry["overall"]["gIoU"] < 100
    return entry["overall"]


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(LINES).encode(),
        json.dumps(LINES, indent=1).encode(),
        ("[\n" + ",\n".join(map(json.dumps, LINES)) + "\n]").encode(),
        "\n".join(json.dumps(line, indent=2) for line in LINES).encode(),
        gzip.compress(JSONL.encode()),
        gzip.compress(json.dumps(LINES, indent=1).encode()),
        b"\xef\xbb\xbf" + JSONL.encode(),
        JSONL.replace("\n", "\r\n\r\n").encode(),
    ],
    ids=["list", "indented", "list by lines", "indented objects", "gz", "list gz", "BOM", "CRLF"],
)
def test_every_layout_of_the_file_scores_the_same(tmp_path, scores, data):
    path = tmp_path / "answers"
    path.write_bytes(data)
    entry = scored(path)
    assert entry["overall"] == scores and "assumed" not in entry


def coco_results(key):
    """One result per thing, as COCO has them: compressed, uncompressed, polygons; nothing there is null."""
    one, two, three = (ANSWERS[f"m/val/{k}"] for k in (1, 2, 3))
    runs = np.flatnonzero(np.diff(np.concatenate([[0], two.T.ravel().astype(int), [0]])))
    counts = np.diff([0, *runs.tolist(), H * W]).tolist()
    first, second = three.copy(), three.copy()
    first[:, 9:], second[:, :9] = False, False
    polygon = [2, 1, 7, 1, 7, 6, 2, 6]
    assert np.array_equal(coco.decode(coco.merge(coco.frPyObjects([polygon], H, W))), one)
    return [
        {key: "m/val/1", "category_id": 1, "segmentation": [polygon], "score": 0.9},
        {key: "m/val/2", "category_id": 1, "segmentation": {"size": [H, W], "counts": counts}, "score": 0.9},
        {key: "m/val/3", "category_id": 1, "segmentation": masks.encode(first), "score": 0.9},
        {key: "m/val/3", "category_id": 1, "segmentation": masks.encode(second), "score": 0.4},
        {key: "m/val/4", "category_id": 1, "segmentation": None, "score": 0.0},
    ]


def lmms_samples(place):
    """Log lines of lmms-eval, with the text that a mask task generates."""
    found = []
    for k, (name, mask) in enumerate(ANSWERS.items()):
        rles = [] if mask is None else [masks.encode(mask)]
        text = json.dumps({"masks": rles, "boxes": [], "scores": [0.9] * len(rles)})
        found.append({"doc_id": k, "target": "", "resps": [[text]], "filtered_resps": [text]} | place(name))
    return found


@pytest.mark.parametrize(
    ("values", "assumes"),
    [
        (coco_results("expression_id"), "COCO results"),
        (coco_results("image_id"), "COCO results"),
        (lmms_samples(lambda name: {"doc": {"expression_id": name}}), None),
        (lmms_samples(lambda name: {"expression_id": name}), None),
        ([{k: v for k, v in line.items() if k != "rejected"} for line in LINES], "rejected where `mask` is null"),
    ],
    ids=["COCO", "COCO by image_id", "lmms-eval doc", "lmms-eval id", "without rejected"],
)  # fmt: skip
def test_other_forms_score_the_same(tmp_path, scores, values, assumes):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(values))
    entry = scored(path)
    assert entry["overall"] == scores
    assert [assumes in text for text in entry.get("assumed", [])] == [True] * bool(assumes)


def test_xsam_has_masks_and_no_rejection(tmp_path, scores):
    values = [
        {"image_id": 7, "sample_id": 0, "expression_id": name, "file_name": "x.jpg", "segments_info": [],
         "pred_mask": masks.encode(plane() if mask is None else mask)}
        for name, mask in ANSWERS.items()
    ]  # fmt: skip
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(values))
    entry = scored(path)
    assert entry["overall"]["N-acc"] == 0 and "--rejected empty_mask" in entry["assumed"][0]
    assert scored(path, rejection=Rejection("empty_mask"))["overall"] == scores


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps([{"image_id": 7, "category_id": 1, "segmentation": None, "score": 1}]), "form of COCO without"),
        (json.dumps([{"image_id": 7, "sample_id": 0, "pred_mask": None}]), "form of X-SAM without"),
        (json.dumps(lmms_samples(lambda name: {})[0]) + "\n", "form of lmms-eval without `expression_id`"),
        (json.dumps({"m/val/1": LINES[0]}), "`expression_id` is missing; the object has `m/val/1`"),
        (JSONL.replace('"score"', '"rejected": true, "score"', 1), "line 1: the key 'rejected' is there twice"),
        (json.dumps(LINES)[:-20], "answer 4, line 1, and all that follows: not JSON"),
        (json.dumps(LINES)[:-1], "does not end after answer 4: the file is cut off"),
        (json.dumps(LINES) + " x", "something follows the list"),
        (gzip.compress(JSONL.encode())[:-30], "the gzip file is damaged"),
        (b"PK\x03\x04....", "is a zip archive: unpack it"),
        (b"\x80\x04....", "is a pickle, which is never opened"),
        (JSONL.encode("utf-16"), "is text in UTF-16"),
        (JSONL.replace('"score": 0.9', '"score": NaN', 1), "line 1: not JSON (NaN is not a JSON number)"),
        ('{"expression_id": "m/val/1", "filtered_resps": ["a cup"]}\n', "the response is not JSON with"),
        ('{"expression_id": "m/val/1", "segmentation": 3}\n', "line 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path, content, message):
    path = tmp_path / "answers"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as raised:
        scored(path)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_an_empty_answer_said_as_null_is_told(tmp_path):
    lines = [line | {"rejected": False} for line in LINES]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = scored(path)["assumed"]
    assert told[0].startswith("lines with `rejected` false and `mask` null")
    assert "--rejected empty_mask" in told[1]


# ---------------------------------------------------------------------------------------- PNG folders


def grey(mask):
    return Image.fromarray(mask.astype(np.uint8) * 255)


def palette(mask):
    picture = Image.fromarray(mask.astype(np.uint8), mode="P")
    picture.putpalette([0, 0, 0, 0, 0, 1] + [0] * 762)
    return picture


def alpha(mask):
    white = np.full((*mask.shape, 3), 255, np.uint8)
    return Image.fromarray(np.dstack([white, mask.astype(np.uint8) * 255]))


def colour(mask):
    return Image.fromarray(mask[..., None].astype(np.uint8) * np.array([9, 200, 0], np.uint8))


def soft(mask):
    return Image.fromarray(mask.astype(np.uint8) * 250 + 3)


def graded(mask):
    values = mask.astype(np.uint8) * 200
    values[mask & (np.indices(mask.shape).sum(axis=0) % 2 == 0)] = 90
    return Image.fromarray(values)


@pytest.mark.parametrize(
    ("form", "assumes", "same"),
    [
        (grey, None, True),
        (palette, "PNGs with a palette", True),
        (alpha, "alpha channel", True),
        (colour, "PNGs in colour", True),
        (graded, "more than two grey values", True),
        (soft, "without a pixel of value 0", False),
    ],
)
def test_what_a_png_leaves_open_is_told(tmp_path, scores, form, assumes, same):
    folder = tmp_path / "masks"
    folder.mkdir()
    for name, mask in ANSWERS.items():
        form(plane() if mask is None else mask).save(folder / f"{name.replace('/', '__')}.png")
    entry = scored(folder, rejection=Rejection("empty_mask"))
    told = entry.get("assumed", [])
    assert (entry["overall"] == scores) == same
    assert len(told) == bool(assumes) and (not assumes or assumes in told[0])
    told = scored(folder).get("assumed", [])
    assert any("--rejected empty_mask" in text for text in told) == (form is not soft)
