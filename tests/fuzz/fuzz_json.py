"""Annotation files in JSON, through every reader that takes them: InputError in one line, or sound records."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from uniresxx.data.catalog import load_benchmark
from uniresxx.errors import InputError
from uniresxx.imaging import masks

NAME = "COCO_train2014_000000000007.jpg"
BETWEEN = b"\0"  # the two files of a case


def check(data: bytes) -> None:
    """Raise anything but InputError where `instances.json` or the list beside it is misread."""
    instances, _, listed = data.partition(BETWEEN)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("refcoco", "grefcoco"):
            (root / name).mkdir()
            (root / name / "instances.json").write_bytes(instances)
        (root / "refcoco" / "refs(unc).json").write_bytes(listed)
        (root / "refcoco" / "val_psalm.json").write_bytes(listed)
        (root / "grefcoco" / "grefs(unc).json").write_bytes(listed)
        for benchmark in ("refcoco/val", "grefcoco/val", "psalm_refcoco/val"):
            try:
                records = load_benchmark(benchmark, root)
            except InputError as error:
                assert "\n" not in str(error) and len(str(error)) < 2000, str(error)[:3000]
                continue
            for record in records:
                for item in record.expressions:
                    assert item.text.strip() and item.text.encode() and item.expression_id.encode()
                    if item.rle is not None:
                        masks.validate(item.rle, (record.height, record.width))
                        assert masks.area(item.rle) == item.area > 0


def seeds() -> list[bytes]:
    """Files of each format, in the spellings that exist."""
    box = [2, 2, 8, 2, 8, 8, 2, 8]
    image = {"id": 7, "file_name": NAME, "height": 20, "width": 30}
    truths = (
        [box],
        [box, box],
        {"size": [20, 30], "counts": [50, 20, 530]},
        [masks.from_polygons([box], 20, 30)],
    )
    sentence = {"sent": "the man", "raw": "The man", "sent_id": 11, "tokens": ["the", "man"]}
    ref = {
        "ref_id": 5,
        "ann_id": 1,
        "image_id": 7,
        "split": "val",
        "sentences": [sentence],
        "file_name": NAME,
    }
    psalm = {"image_info": image, "anns": [{"segmentation": [box]}], "instruction": [sentence]}
    found = []
    for number, truth in enumerate(truths):
        annotation = {"id": 1, "image_id": 7, "category_id": 1, "iscrowd": 0, "segmentation": truth}
        instances = json.dumps({"images": [image], "annotations": [annotation], "categories": []})
        listed = ([ref], [{**ref, "ann_id": [1]}, {**ref, "ann_id": [-1]}], [psalm])[number % 3]
        found.append(instances.encode() + BETWEEN + json.dumps(listed).encode())
    return found


if __name__ == "__main__":
    from _fuzz import run

    run(__file__)
