"""Sets of parts, labels, questions and free layouts: each in its native form, made here, read to the known masks."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import savemat

from uniresxx.cli import main
from uniresxx.data.catalog import known_benchmarks, load_benchmark, splits_of
from uniresxx.data.guard import record_coco_id
from uniresxx.data.mixture.open import open_mixture
from uniresxx.data.mixture.parts import MIXTURES, MixturePart, mixture_named
from uniresxx.data.readers.collector import Collector
from uniresxx.data.readers.densepose import PARTS, in_box
from uniresxx.data.readers.paco import paco_images
from uniresxx.data.readers.part_names import category_noun, part_noun, pascal_part_noun, plural
from uniresxx.data.store.photos import photo_of
from uniresxx.errors import InputError
from uniresxx.imaging import masks

H, W = 20, 30


def rect(*boxes, size=(H, W)):
    """Bool (y, x) with x0 y0 x1 y1 boxes filled."""
    mask = np.zeros(size, dtype=bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


def corners(x0, y0, x1, y1):
    """The polygon that covers what `rect` fills."""
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def counts_of(mask):
    """Uncompressed run lengths of a mask, column by column, background first."""
    flat = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    return [0, *runs] if flat[0] else runs


def coded(mask, kind="str"):
    rle = masks.encode(mask)
    return {"size": list(mask.shape), "counts": rle["counts"] if kind == "str" else counts_of(mask)}


def save(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def photo(path, size=(H, W), colour=(90, 120, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], colour).save(path)


def png(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def image(number, name=None, **more):
    return {
        "id": number,
        "file_name": name or f"{number:012d}.jpg",
        "height": H,
        "width": W,
        "license": 4,
        **more,
    }


def ann(number, image_id, category, mask, **more):
    x, y, w, h = 1, 1, 5, 5
    return {"id": number, "image_id": image_id, "category_id": category, "bbox": [x, y, w, h], "area": 1.0,
            "segmentation": coded(mask) if isinstance(mask, np.ndarray) else mask, **more}  # fmt: skip


DOG, SECOND = rect((1, 1, 12, 12)), rect((15, 1, 28, 12))
LEG, LEG2, HEAD = rect((1, 8, 3, 12)), rect((8, 8, 10, 12)), rect((1, 1, 6, 5))


def paco(root):
    """One dog with parts and scissors that were not annotated exhaustively; two cars of which one shows a wheel."""
    names = [
        "dog",
        "dog:leg",
        "dog:head",
        "car_(automobile)",
        "car_(automobile):wheel",
        "scissors",
        "scissors:blade",
    ]
    content = {
        "images": [
            image(9, "train2017/000000000009.jpg", not_exhaustive_category_ids=[6], neg_category_ids=[]),
            image(25, "train2017/000000000025.jpg", not_exhaustive_category_ids=[]),
        ],
        "categories": [{"id": i, "name": name, "supercategory": "OBJECT"} for i, name in enumerate(names, 1)],
        "annotations": [
            ann(100, 9, 1, DOG, obj_ann_id=100),
            ann(101, 9, 2, LEG, obj_ann_id=100),
            ann(102, 9, 2, LEG2, obj_ann_id=100),
            ann(103, 9, 3, HEAD, obj_ann_id=100),
            ann(104, 9, 6, SECOND, obj_ann_id=104),
            ann(105, 25, 4, DOG, obj_ann_id=105),
            ann(106, 25, 4, SECOND, obj_ann_id=106),
            ann(107, 25, 5, rect((16, 9, 19, 12)), obj_ann_id=106),
            ann(108, 25, 5, np.zeros((H, W), bool), obj_ann_id=105),  # no pixel: left out
        ],
    }
    save(root / "paco" / "annotations" / "paco_lvis_v1_train.json", content)
    photo(root / "images" / "train2014" / "COCO_train2014_000000000009.jpg")  # of another year
    photo(root / "coco" / "train2017" / "000000000025.jpg")
    return {
        "9:dog": ("the dog", "object", DOG),
        "9:dog:leg": ("leg of the dog", "part", LEG | LEG2),
        "9:dog:head": ("head of the dog", "part", HEAD),
        "25:car": ("all cars", "multi", DOG | SECOND),
        "25:car:wheel": ("all wheels of the cars", "part", rect((16, 9, 19, 12))),
    }


def densepose(root):
    """One person with two arms of four drawn pieces, and a photo of two persons of whom one has no parts drawn."""
    drawn = [[] for _ in PARTS]
    half = np.zeros((256, 256), bool)
    half[:, :128] = True
    drawn[PARTS.index("upper arm left")] = coded(half)
    drawn[PARTS.index("lower arm right")] = coded(~half)
    drawn[PARTS.index("head")] = coded(half)
    person = ann(1, 7, 1, [corners(2, 2, 10, 10)], bbox=[2, 2, 8, 8], dp_masks=drawn, dp_x=[1.0])
    content = {
        "images": [image(7, "COCO_train2014_000000000007.jpg"), image(8, "COCO_train2014_000000000008.jpg")],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            person,
            person | {"id": 2, "image_id": 8},
            ann(3, 8, 1, [corners(12, 2, 20, 10)], bbox=[12, 2, 8, 8]),
        ],
    }
    save(root / "densepose" / "densepose_coco_2014_train.json", content)
    photo(root / "images" / "train2014" / "COCO_train2014_000000000007.jpg")
    photo(root / "images" / "train2014" / "COCO_train2014_000000000008.jpg")
    return {
        "7:person": ("the person", "object", rect((2, 2, 10, 10))),
        "7:person:arm": ("arm of the person", "part", rect((2, 2, 10, 10))),
        "7:person:head": ("head of the person", "part", rect((2, 2, 6, 10))),
        "8:person": ("all people", "multi", rect((2, 2, 10, 10), (12, 2, 20, 10))),
    }


def pascal_part(root):
    """One cat with two ears (`rear` is the right one) and a paw; the parts of the second file are one struct."""
    objects = np.empty(1, dtype=object)
    parts = np.empty(3, dtype=object)
    ears = rect((2, 2, 4, 4)), rect((6, 2, 8, 4))
    for place, (name, mask) in enumerate(
        (("lear", ears[0]), ("rear", ears[1]), ("lfpa", rect((2, 9, 4, 11))))
    ):
        parts[place] = {"part_name": name, "mask": mask.astype(np.uint8)}
    objects[0] = {"class": "cat", "class_ind": 8, "mask": DOG.astype(np.uint8), "parts": parts}
    folder = root / "pascal_part" / "Annotations_Part"
    folder.mkdir(parents=True)
    savemat(folder / "2008_000123.mat", {"anno": {"imname": "2008_000123", "objects": objects}})
    wheel = {"part_name": "wheel_1", "mask": rect((2, 9, 4, 11)).astype(np.uint8)}
    one = {"class": "motorbike", "class_ind": 14, "mask": DOG.astype(np.uint8), "parts": wheel}
    none = {"class": "sofa", "class_ind": 18, "mask": SECOND.astype(np.uint8), "parts": []}
    both = np.empty(2, dtype=object)
    both[:] = [one, none]
    savemat(folder / "2008_000124.mat", {"anno": {"imname": "2008_000124", "objects": both}})
    voc = root / "VOCdevkit" / "VOC2010"
    (voc / "ImageSets" / "Main").mkdir(parents=True)
    (voc / "ImageSets" / "Main" / "train.txt").write_text("2008_000123\n2008_000124\n2008_000999\n")
    for name in ("2008_000123", "2008_000124"):
        photo(voc / "JPEGImages" / f"{name}.jpg")
    return {
        "2008_000123:cat": ("the cat", "object", DOG),
        "2008_000123:cat:ear": ("ear of the cat", "part", ears[0] | ears[1]),
        "2008_000123:cat:paw": ("paw of the cat", "part", rect((2, 9, 4, 11))),
        "2008_000124:motorcycle": ("the motorcycle", "object", DOG),
        "2008_000124:motorcycle:wheel": ("wheel of the motorcycle", "part", rect((2, 9, 4, 11))),
        "2008_000124:couch": ("the couch", "object", SECOND),
    }


def partimagenet(root):
    """Ids from 0; a foot of two masks, one with a polygon of four numbers beside it; a tire spelt Tier."""
    content = {
        "images": [image(0, "n02085782_1.JPEG"), image(1, "n04285008_2.JPEG")],
        "categories": [
            {"id": i, "name": name} for i, name in enumerate(("Quadruped Head", "Quadruped Foot", "Car Tier"))
        ],
        "annotations": [
            ann(0, 0, 0, [corners(1, 1, 6, 5)]),
            ann(1, 0, 1, [corners(1, 8, 3, 12), [1, 1, 5, 5]]),
            ann(2, 0, 1, [corners(8, 8, 10, 12)]),
            ann(3, 1, 2, [[1, 1, 5, 5], [3, 3]]),  # no pixel: left out
            ann(4, 1, 2, [corners(1, 8, 3, 12)]),
        ],
    }  # fmt: skip
    save(root / "partimagenet" / "annotations" / "train.json", content)
    photo(root / "partimagenet" / "images" / "n02085782" / "n02085782_1.JPEG")
    photo(root / "imagenet" / "train" / "n04285008" / "n04285008_2.JPEG")
    return {
        "n02085782_1:quadruped:head": ("head of the quadruped", "part", HEAD),
        "n02085782_1:quadruped:foot": ("foot of the quadruped", "part", LEG | LEG2),
        "n04285008_2:car:tire": ("tire of the car", "part", LEG),
    }


def partimagenetpp(root):
    """Two classes: a buckle whose tongue lies in its frame, and two wheels in one photo."""
    base = root / "PartImageNetPP"
    names = {"n02910353": ["tongue", "frame"], "n04285008": ["wheel"]}
    for wnid, parts in names.items():
        rows = [image(0, f"{wnid}_3.JPEG")]
        anns = [ann(i, 0, i, [corners(1, 8, 3, 12)]) for i in range(len(parts))]
        if wnid == "n04285008":
            anns.append(ann(5, 0, 0, [corners(8, 8, 10, 12)]))
        categories = [{"id": i, "name": part} for i, part in enumerate(parts)]
        save(base / "json" / f"{wnid}.json", {"images": rows, "annotations": anns, "categories": categories})
        photo(root / "imagenet" / "train" / wnid / f"{wnid}_3.JPEG")
    save(base / "category_name.json", {"n02910353": "buckle", "n04285008": "sports car, sport car"})
    (base / "including").mkdir()
    (base / "including" / "n02910353.txt").write_text("tongue:frame")
    return {
        "n02910353_3:buckle:tongue": ("tongue of the buckle", "part", LEG),
        "n02910353_3:buckle:frame": ("frame of the buckle", "part", LEG),
        "n04285008_3:sports_car:wheel": ("all wheels of the sports cars", "part", LEG | LEG2),
    }


def ade20k(root):
    base = root / "ade20k" / "ADEChallengeData2016"
    base.mkdir(parents=True)
    (base / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1576\t11664\t1172\t1\twall\n"
        "2\t0.1\t6046\t612\t1\tbuilding, edifice\n21\t0.0\t1\t1\t0\tcar, auto, automobile\n"
    )
    labels = np.zeros((H, W), np.uint8)
    labels[DOG], labels[SECOND] = 2, 21
    png(base / "annotations" / "training" / "ADE_train_00000001.png", labels)
    photo(base / "images" / "training" / "ADE_train_00000001.jpg")
    return {
        "ADE_train_00000001:building": ("the building", "object", DOG),
        "ADE_train_00000001:car": ("all cars", "multi", SECOND),
    }


def cocostuff(root):
    base = root / "cocostuff"
    names = ["unlabeled", "person", *(f"thing {i}" for i in range(1, 91)), "banner", "wall-brick", "sky"]
    base.mkdir(parents=True)
    (base / "labels.txt").write_text("\n".join(f"{i}: {name}" for i, name in enumerate(names)))
    labels = np.full((H, W), 255, np.uint8)
    labels[DOG], labels[SECOND], labels[15:] = 0, 93, 92  # people, sky, a wall of brick
    png(base / "train2017" / "000000000009.png", labels)
    photo(root / "images" / "train2014" / "COCO_train2014_000000000009.jpg")
    return {"9:person": ("all people", "multi", DOG), "9:sky": ("the sky", "object", SECOND)}


def reasonseg(root):
    """A target, a region to ignore that lies on it, and a flag; the second file is no UTF-8."""
    folder = root / "reason_seg" / "ReasonSeg" / "train"
    shapes = [
        {
            "label": "ignore",
            "points": [[4, 4], [6, 4], [6, 6], [4, 6]],
        },  # smaller: painted last, over the target
        {"label": "target", "points": [[2, 2], [10.9, 2], [10.9, 10.2], [2, 10.2]]},
        {"label": "flag", "points": [[0, 0], [29, 0], [29, 19]]},
    ]
    content = {"text": ["the thing that barks", "who barks?"], "is_sentence": False, "shapes": shapes}
    save(folder / "a.json", content)
    one = {**content, "text": "the caf\xe9", "shapes": shapes[1:2], "is_sentence": True}
    (folder / "b.json").write_bytes(json.dumps(one, ensure_ascii=False).encode("cp1252"))
    photo(folder / "a.jpg")
    photo(folder / "b.jpg")
    target = rect((2, 2, 11, 11))
    seen = target & ~rect((4, 4, 7, 7))
    return {
        "a_0": ("the thing that barks", "object", seen),
        "a_1": ("who barks?", "object", seen),
        "b_0": ("the café", "object", target),
    }


def mmr(root):
    def answer(name, mask):
        return {"segmentation": coded(mask), "category_name": name, "bbox": [1.0, 1, 2, 2], "category_id": 1}

    record = {
        "file_name": "train2017/000000000009.jpg", "height": H, "width": W, "image_id": 9,
        "questions": ["What barks?", "What does it walk on?", "What is all there?"],
        "annotations": [],
        "answers": [
            [answer("dog", DOG)],
            [answer("dog:leg", LEG), answer("dog:leg", LEG2)],
            [answer("dog", DOG), answer("car_(automobile)", SECOND)],
        ],
        "text_answers": ["{seg}", "{seg} {seg}", "{seg} {seg}"],
    }  # fmt: skip
    save(root / "MMR" / "MMR_train.json", [record])
    photo(root / "coco" / "train2017" / "000000000009.jpg")
    return {
        "9_0": ("What barks?", "object", DOG),
        "9_1": ("What does it walk on?", "part", LEG | LEG2),
        "9_2": ("What is all there?", "multi", DOG | SECOND),
    }


def instructpart(root):
    base = root / "instructpart_part" / "InstructPart" / "train" / "train1800"
    texts = ["where to hold it?", "which part is held?", "the handle of the mug"]
    part = {
        "object": "coffee mug",
        "part": "handle",
        "affordance": "hold",
        "action": "lift",
        "instruction": texts,
    }
    save(base / "data_train.json", [{"image_path": "mug_1.jpg", "part_list": [part]}])
    png(base / "masks" / "mug_1-coffee_mug-handle.png", (LEG * 255).astype(np.uint8))
    photo(base / "images" / "mug_1-coffee_mug-handle.jpg")
    return {f"mug_1-coffee_mug-handle_{i}": (text, "part", LEG) for i, text in enumerate(texts)}


def refcoco_m(root):
    stream = io.BytesIO()
    Image.new("RGB", (W, H)).save(stream, "JPEG")
    samples = [
        {"id": 77, "image_id": 9, "category": "dog", "supercategory": "animal", "label": "dog",
         "sentences": ["the dog ", "left one"], "bbox": [1.0, 1.0, 11.0, 11.0], "mask": coded(DOG)},
    ]  # fmt: skip
    row = {"image": {"bytes": stream.getvalue(), "path": None}, "image_id": 9,
           "file_name": "COCO_train2014_000000000009.jpg", "samples": samples}  # fmt: skip
    path = root / "moondream" / "refcoco-m" / "data" / "validation-00000-of-00002.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row]), path)
    return {"77_0": ("the dog", "object", DOG), "77_1": ("left one", "object", DOG)}


def gseval(root):
    rows = [("the sky", 1, SECOND), ("legs", 2, LEG | LEG2), ("both", 3, DOG | SECOND), ("the dog", 4, DOG)]
    lines = [
        {"idx": i, "image_path": "unlabeled2017/000000000021.jpg", "class_id": number, "label": "x",
         "caption": text, "box": [1.0, 1, 2, 2], "segmentation": coded(mask)}
        for i, (text, number, mask) in enumerate(rows)
    ]  # fmt: skip
    (root / "GroundingSuite").mkdir(parents=True)
    text = "\n".join(map(json.dumps, lines)) + "\n\n"
    (root / "GroundingSuite" / "GroundingSuite-Eval.jsonl").write_text(text)
    photo(root / "images" / "unlabeled2017" / "000000000021.jpg")
    kinds = ("object", "part", "multi", "object")
    return {str(i): (row[0], kind, row[2]) for i, (row, kind) in enumerate(zip(rows, kinds, strict=True))}


def refer_set(root, folder, file, refs, image_name, place, anns=None):
    base = root / folder
    base.mkdir(parents=True, exist_ok=True)
    rows = anns or [ann(1, 7, 1, [coded(DOG, "list")]), ann(2, 7, 1, [corners(15, 1, 28, 12)])]
    names = [{"id": 1, "name": "ship"}]
    save(
        base / "instances.json", {"images": [image(7, image_name)], "annotations": rows, "categories": names}
    )
    if file.endswith(".p"):
        (base / file).write_bytes(pickle.dumps(refs, 2))
    else:
        save(base / file, refs)
    photo(root / place / image_name)


def ref(number, ann_id, *sents, split="train"):
    sentences = [
        {"sent": s, "raw": s, "sent_id": 10 * number + i, "tokens": []} | more
        for i, (s, more) in enumerate(sents)
    ]
    return {"ref_id": number, "ann_id": ann_id, "image_id": 7, "category_id": 1, "split": split,
            "file_name": "x_1.jpg", "sentences": sentences, "sent_ids": []}  # fmt: skip


def rrsisd(root):
    refer_set(
        root, "rrsisd", "refs(unc).p", [ref(1, 1, ("the ship", {}))], "00007.jpg", "images/rrsisd/JPEGImages"
    )
    return {"10": ("the ship", "object", DOG)}


def refzom(root):
    refs = [ref(1, [1, 2], ("both ships", {})), ref(2, [], ("the dog", {})), ref(3, [2], ("right ship", {}))]
    refer_set(root, "ref-zom", "refs(final).p", refs, "COCO_val2014_000000000007.jpg", "images/val2014")
    return {
        "10": ("both ships", "multi", DOG | SECOND),
        "20": ("the dog", "none", None),
        "30": ("right ship", "object", SECOND),
    }


def fprefcoco(root):
    sents = [("left ship", {"exist": True}), ("red ship", {"exist": False, "gt_sent": "left ship"}),
             ("green ship", {"is_false_premise": True})]  # fmt: skip
    name = "refs(berkeley_exclude_unified).p"
    refer_set(root, "refer_seg/fprefcoco", name, [ref(1, 1, *sents)], "COCO_train2014_000000000007.jpg",
              "refer_seg/images/mscoco/images/train2014")  # fmt: skip
    return {
        "10": ("left ship", "object", DOG),
        "11": ("red ship", "none", None),
        "12": ("green ship", "none", None),
    }


def refer_free(root):
    refer_set(root, "myset", "refs(mine).json", [ref(1, 2, ("it", {}))], "street/1.png", "myset/images")
    return {"10": ("it", "object", SECOND)}


def cris_free(root):
    """MedVLSM's form: JPEG masks, a blank sentence, prompts as text and as lists, a mask without a pixel."""
    base = root / "bkai_polyp"
    record = {"bbox": [1, 1, 5, 5], "cat": 0, "segment_id": "a9", "img_name": "a9.jpeg", "mask_name": "a9.jpeg",
              "sentences": [{"idx": 0, "sent_id": 0, "sent": ""}], "sentences_num": 1,
              "prompts": {"p0": "", "p1": "polyp", "p7": ["a growth", "a lump "]}}  # fmt: skip
    save(base / "anns" / "train.json", [record, {**record, "segment_id": "b", "mask_name": "b.png"}])
    big = np.kron(rect((8, 8, 24, 16), size=(32, 32)), np.ones((1, 1))).astype(np.uint8) * 255
    png(base / "masks" / "b.png", np.zeros((32, 32), np.uint8))
    Image.fromarray(big).save(base / "masks" / "a9.jpeg", quality=95)
    photo(base / "images" / "a9.jpeg", (32, 32))
    mask = rect((8, 8, 24, 16), size=(32, 32))
    return {f"a9_{key}": (text, "object", mask) for key, text in
            (("p1", "polyp"), ("p7_0", "a growth"), ("p7_1", "a lump"))}  # fmt: skip


def jsonl_set(root, folder="mres32m"):
    def line(name, granularity, text, **more):
        size = {"height": H, "width": W}
        return {"image": f"s/{name}.jpg", **size, "granularity": granularity, "text": text, **more}

    lines = [
        line(1, "part", "leg of it", segmentation=coded(LEG)),
        line(1, "none", "a bus"),
        line(2, "object", "dog", ann_ids=[4]),
        line(2, "multi", "both", ann_ids=[4, 5], source={"k": 1}),
    ]
    base = root / folder
    save(
        base / "instances.json",
        {"images": [image(1)], "annotations": [ann(4, 1, 1, DOG), ann(5, 1, 1, SECOND)]},
    )
    (base / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    photo(base / "images" / "s" / "1.jpg")
    photo(base / "images" / "s" / "2.jpg")
    return {
        "1": ("leg of it", "part", LEG),
        "2": ("a bus", "none", None),
        "3": ("dog", "object", DOG),
        "4": ("both", "multi", DOG | SECOND),
    }


SETS = {
    "paco/train": paco,
    "densepose/train": densepose,
    "pascal_part/train": pascal_part,
    "partimagenet/train": partimagenet,
    "partimagenetpp/train": partimagenetpp,
    "ade20k/train": ade20k,
    "cocostuff/train": cocostuff,
    "reasonseg/train": reasonseg,
    "mmr/train": mmr,
    "instructpart/train": instructpart,
    "refcoco_m/val": refcoco_m,
    "gseval/val": gseval,
    "rrsisd/train": rrsisd,
    "refzom/train": refzom,
    "fprefcoco/train": fprefcoco,
    "refer:myset/train": refer_free,
    "cris:bkai_polyp/train": cris_free,
    "mres32m/train": jsonl_set,
    "jsonl:mine/train": lambda root: jsonl_set(root, "mine"),
}


@pytest.mark.parametrize("name", SETS)
def test_a_set_in_its_native_form_gives_exactly_the_known_masks(tmp_path, name):
    expected = SETS[name](tmp_path)
    records = load_benchmark(name, tmp_path)
    found = {e.expression_id.removeprefix(f"{name}/"): e for record in records for e in record.expressions}
    assert list(found) == list(expected)
    for key, (text, granularity, mask) in expected.items():
        item = found[key]
        assert (item.text, str(item.granularity)) == (text, granularity)
        assert item.rle is None if mask is None else np.array_equal(masks.decode(item.rle), mask), key
    for record in records:
        assert photo_of(record).shape == (record.height, record.width, 3)
        assert record.source["licence"]


@pytest.mark.parametrize("name", SETS)
def test_a_set_goes_through_every_data_command(tmp_path, capsys, name):
    expected = SETS[name](tmp_path)
    out = str(tmp_path / "store")
    assert main(["data", "prepare", name, "--data", str(tmp_path), "--out", out, "--pack-images"]) == 0
    assert main(["data", "verify", out]) == 0
    assert main(["data", "inspect", out]) == main(["data", "inspect", name, "--data", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["data", "dump", out]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["expression_id"] for line in lines] == [f"{name}/{key}" for key in expected]
    assert name.partition("/")[2] in splits_of(name.partition("/")[0], tmp_path)


def everything(root):
    """All sets in one data folder, with a RefCOCO family on the photo that PACO calls 000000000009."""
    for name, write in SETS.items():
        if name not in ("jsonl:mine/train", "rrsisd/train", "refzom/train", "fprefcoco/train"):
            write(root)
    instances = {
        "images": [image(9, "COCO_train2014_000000000009.jpg")],
        "annotations": [ann(1, 9, 1, DOG, bbox=[1, 1, 11, 11]), ann(2, 9, 1, SECOND, bbox=[15, 1, 13, 11])],
        "categories": [{"id": 1, "name": "dog"}],
    }
    sets = {
        "refcoco/refs(unc)": 1,
        "refcoco+/refs(unc)": 1,
        "refcocog/refs(umd)": 1,
        "grefcoco/grefs(unc)": [1, 2],
    }
    for path, ann_id in sets.items():
        save(root / f"{path}.json", [])
        save((root / path).parent / "instances.json", instances)
        refs = [ref(1, ann_id, ("left dog", {}), ("that dog", {}))]
        if "gref" in path:
            refs.append(ref(2, [-1], ("a red bus", {})))
        save(root / f"{path}.json", [{**item, "image_id": 9} for item in refs])
    said = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dog."}]
    rows = [{"id": f"{i}", "image": f"gqa/images/{i}.jpg", "conversations": said} for i in range(3)]
    save(root / "llava_instruct" / "llava_v1_5_mix665k.json", rows)
    for row in rows:
        photo(root / row["image"])


def asked_at_most(record, count):
    """How many expressions of a record are shown; conversations, where it has none."""
    return min(count, len(record.expressions) or len(record.dialogues))


@pytest.mark.parametrize("name", ["joint", "ground", "joint,mres32m=10,cris:bkai_polyp/train=2.5"])
def test_a_named_or_written_mixture_draws_its_shares_from_native_files(tmp_path, name):
    everything(tmp_path)
    mixture = open_mixture(mixture_named(name), 2, seed=0, data=tmp_path)
    drawn = dict.fromkeys(mixture.shares, 0)
    for slot in range(300):
        drawn[mixture.origin(slot).data_set] += asked_at_most(mixture(slot), 2)
    for label, share in mixture.shares.items():
        assert drawn[label] / sum(drawn.values()) == pytest.approx(share, abs=0.02), label
    assert mixture.box_levels == {"object", "part"}


def test_the_shares_of_the_joint_mixture_are_those_of_the_method():
    shares = {}
    kinds = {
        **dict.fromkeys(("refcoco", "refcoco+", "refcocog_umd"), "object"),
        **dict.fromkeys(("ade20k", "cocostuff"), "semantic"),
        **dict.fromkeys(("reasonseg", "mmr", "instructpart"), "reasoning"),
        "llava_instruct": "conversations",
    }
    for part in MIXTURES["joint"]:
        kind = kinds.get(part.source) or ("part" if part.source != "grefcoco" else part.granularities[0])
        shares[kind] = shares.get(kind, 0) + part.weight
    named = {"part": 30, "object": 30, "multi": 19.5, "none": 5.5, "semantic": 5, "reasoning": 3}
    assert shares == {**named, "conversations": 7}
    known = {item.partition("/")[0] for item in known_benchmarks()}
    for parts in MIXTURES.values():
        assert all(part.source in known and part.split in splits_of(part.source, None) for part in parts)


@pytest.mark.parametrize(
    ("written", "part"),
    [
        ("refcoco=10", MixturePart("refcoco", weight=10.0)),
        ("mmr/val=1.5", MixturePart("mmr", "val", 1.5)),
        ("grefcoco[multi+none]=2", MixturePart("grefcoco", weight=2.0, granularities=("multi", "none"))),
        ("refer:set(unc)/train=1", MixturePart("refer:set(unc)", "train", 1.0)),
        ("a/b/c=1", MixturePart("a/b/c", weight=1.0)),
    ],
)
def test_a_mixture_is_written_on_the_command_line(written, part):
    assert mixture_named(written) == (part,)
    assert mixture_named(f"ground, {written}") == (*MIXTURES["ground"], part)


@pytest.mark.parametrize("written", ["", "nothing", "refcoco=", "refcoco=1.2.3", "=1", "joint,", "a[part=1"])
def test_a_wrong_mixture_is_refused_with_the_way_out(written):
    with pytest.raises(InputError, match=r"known: refcoco_family, captions, ground, joint|must be a number"):
        mixture_named(written)


# ---- traps of single sets


def test_what_was_left_out_is_listed_and_counted(tmp_path):
    paco(tmp_path)
    source = load_benchmark("paco/train", tmp_path)[0].source
    assert source["counts"] == {"categories that a photo may show more of than was annotated": 1}
    assert [line.partition(": ")[2] for line in source["left_out"]] == [
        "ann 108: its segmentation covers no pixel"
    ]


OTHER_SIZE = coded(rect((1, 1, 2, 2), size=(9, 9)))  # a mask that cannot be the photo's
PACO_DOG = ["9:dog", "9:dog:leg", "9:dog:head"]
FOOT, WHEEL = "n02085782_1:quadruped:foot", "n04285008_3:sports_car:wheel"
JSON_FILES = {
    "paco/train": "paco/annotations/paco_lvis_v1_train.json",
    "densepose/train": "densepose/densepose_coco_2014_train.json",
    "partimagenet/train": "partimagenet/annotations/train.json",
    "partimagenetpp/train": "PartImageNetPP/json/n04285008.json",
    "reasonseg/train": "reason_seg/ReasonSeg/train/a.json",
    "mmr/train": "MMR/MMR_train.json",
    "gseval/val": "GroundingSuite/GroundingSuite-Eval.jsonl",
    "refzom/train": "ref-zom/instances.json",
    "mres32m/train": "mres32m/train.jsonl",
}


@pytest.mark.parametrize(
    ("name", "find", "change", "lost"),
    [
        # a part of the only dog: its category says nothing any more
        ("paco/train", lambda c: c["annotations"][1], {"segmentation": OTHER_SIZE}, PACO_DOG),
        # one of two people: nobody knows what "all people" are
        ("densepose/train", lambda c: c["annotations"][2], {"segmentation": [[1, 2]] * 2 + ["x"]}, ["8:person"]),
        ("densepose/train", lambda c: c["annotations"][1], {"dp_masks": [[], {"size": 3}] + [[]] * 12}, ["8:person"]),
        ("densepose/train", lambda c: c["annotations"][1], {"dp_masks": []}, ["8:person"]),
        ("densepose/train", lambda c: c["annotations"][1], {"bbox": None}, ["8:person"]),
        # one of the two feet
        ("partimagenet/train", lambda c: c["annotations"][2], {"segmentation": OTHER_SIZE}, [FOOT]),
        ("partimagenetpp/train", lambda c: c["annotations"][1], {"segmentation": 5}, [WHEEL]),
        ("reasonseg/train", lambda c: c["shapes"][1], {"points": [["x", 1]]}, ["a_0", "a_1"]),
        ("mmr/train", lambda c: c[0]["answers"][1][0], {"segmentation": OTHER_SIZE}, ["9_1"]),
        ("gseval/val", lambda c: c[1], {"segmentation": {"size": [H, W], "counts": [3]}}, ["1"]),
        ("refzom/train", lambda c: c["annotations"][0], {"segmentation": []}, ["10"]),
        ("mres32m/train", lambda c: c[0], {"segmentation": OTHER_SIZE}, ["1"]),
    ],
)  # fmt: skip
def test_a_bad_annotation_takes_only_what_it_makes_untrue(tmp_path, name, find, change, lost):
    expected = SETS[name](tmp_path)
    path = tmp_path / JSON_FILES[name]
    by_line = path.suffix == ".jsonl"
    text = path.read_text()
    content = [json.loads(line) for line in text.split("\n") if line] if by_line else json.loads(text)
    find(content).update(change)
    path.write_text("\n".join(map(json.dumps, content)) if by_line else json.dumps(content))
    records = load_benchmark(name, tmp_path)
    found = [e.expression_id.removeprefix(f"{name}/") for r in records for e in r.expressions]
    assert found == [key for key in expected if key not in lost]
    assert sum(len(record.source.get("left_out", ())) for record in records) >= 1


def test_an_object_has_no_part_of_which_a_mask_cannot_be_read(tmp_path):
    paco(tmp_path)
    path = tmp_path / JSON_FILES["paco/train"]
    content = json.loads(path.read_text())
    content["annotations"][1]["segmentation"] = OTHER_SIZE  # one of two legs
    save(path, content)
    first, _ = paco_images(tmp_path, "train", Collector("paco", tmp_path, "paco/train"))
    assert set(first.objects[0].parts) == {"head"}


def test_a_mask_of_another_size_in_a_matlab_file_takes_only_its_photo(tmp_path):
    expected = pascal_part(tmp_path)
    path = tmp_path / "pascal_part" / "Annotations_Part" / "2008_000124.mat"
    part = {"part_name": "wheel_1", "mask": np.ones((3, 3), np.uint8)}
    bike = {"class": "motorbike", "class_ind": 14, "mask": DOG.astype(np.uint8), "parts": part}
    savemat(path, {"anno": {"imname": "2008_000124", "objects": bike}})
    (record,) = load_benchmark("pascal_part/train", tmp_path)
    found = [e.expression_id.removeprefix("pascal_part/train/") for e in record.expressions]
    assert found == [key for key in expected if key.startswith("2008_000123")]
    assert "its mask must be" in record.source["left_out"][0]


def test_inspect_prints_the_counts_of_a_reader(tmp_path, capsys):
    paco(tmp_path)
    assert main(["data", "inspect", "paco/train", "--data", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "categories that a photo may show more of than was annotated 1" in printed


def test_a_photo_is_found_under_the_name_of_another_year(tmp_path):
    paco(tmp_path)
    first, second = load_benchmark("paco/train", tmp_path)
    assert first.path.endswith("images/train2014/COCO_train2014_000000000009.jpg")
    assert second.path.endswith("coco/train2017/000000000025.jpg")
    assert (record_coco_id(first), record_coco_id(second)) == (9, 25)


def test_a_part_of_an_object_that_is_not_there_is_named(tmp_path):
    paco(tmp_path)
    path = tmp_path / "paco" / "annotations" / "paco_lvis_v1_train.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["obj_ann_id"] = 999
    save(path, content)
    assert "ann 999 has parts" in str(load_benchmark("paco/train", tmp_path)[0].source["left_out"])


def test_crowds_of_densepose_say_nothing_of_a_category(tmp_path):
    densepose(tmp_path)
    path = tmp_path / "densepose" / "densepose_coco_2014_train.json"
    content = json.loads(path.read_text())
    content["annotations"].append(ann(9, 7, 1, coded(SECOND, "list"), iscrowd=1))
    save(path, content)
    found = [e.text for record in load_benchmark("densepose/train", tmp_path) for e in record.expressions]
    assert found == ["all people"]


@pytest.mark.parametrize("box", [[2, 2, 8, 8], [2.4, 1.6, 8.2, 8.8], [-3, -2, 9, 30]])
def test_a_mask_drawn_in_a_box_lies_where_its_pixels_centres_are(box):
    rng = np.random.default_rng(0)
    drawn = rng.random((256, 256)) < 0.5
    found = masks.decode(in_box(coded(drawn), box, (H, W), "x"))
    for y in range(H):
        for x in range(W):
            at_x, at_y = (x + 0.5 - box[0]) / box[2], (y + 0.5 - box[1]) / box[3]
            inside = 0 <= at_x < 1 and 0 <= at_y < 1
            assert found[y, x] == (inside and drawn[int(at_y * 256), int(at_x * 256)])


def test_the_converted_json_of_pascal_part_names_all_objects_of_a_class(tmp_path):
    content = {
        "images": [image(1, "2008_000123.jpg")],
        "categories": [{"id": 1, "name": "dog:leg"}],
        "annotations": [ann(1, 1, 1, [corners(1, 8, 3, 12)]), ann(2, 1, 1, [corners(8, 8, 10, 12)])],
    }
    save(tmp_path / "vlpart" / "pascal_part" / "train.json", content)
    (record,) = load_benchmark("pascal_part/train", tmp_path)
    (found,) = record.expressions
    assert found.text == "all legs of the dogs" and np.array_equal(masks.decode(found.rle), LEG | LEG2)


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file" + bytes(200), b"\x89HDF"])
def test_a_damaged_matlab_file_is_one_line(tmp_path, content):
    pascal_part(tmp_path)
    (tmp_path / "pascal_part" / "Annotations_Part" / "2008_000123.mat").write_bytes(content)
    with pytest.raises(InputError, match=r"2008_000123\.mat: is no MATLAB file of Pascal-Part"):
        load_benchmark("pascal_part/train", tmp_path)


def test_the_hierarchy_of_parts_is_kept(tmp_path):
    partimagenetpp(tmp_path)
    tongue = load_benchmark("partimagenetpp/train", tmp_path)[0].expressions[0]
    assert tongue.source["objects"] == [{"inside": {"tongue": "frame"}}]


def test_labels_without_a_name_are_refused(tmp_path):
    ade20k(tmp_path)
    labels = np.full((H, W), 7, np.uint8)
    png(tmp_path / "ade20k/ADEChallengeData2016/annotations/training/ADE_train_00000002.png", labels)
    with pytest.raises(InputError, match=r"ADE_train_00000002\.png: holds the label 7, which has no name"):
        load_benchmark("ade20k/train", tmp_path)


def test_classes_with_a_dash_are_counted(tmp_path):
    cocostuff(tmp_path)
    base = tmp_path / "cocostuff"
    (base / "stuffthingmaps").mkdir()
    (base / "train2017").rename(
        base / "stuffthingmaps" / "train2017"
    )  # as the zip has it; labels.txt is above
    (record,) = load_benchmark("cocostuff/train", tmp_path)
    assert record.source["counts"] == {"regions of classes with `-` in their name": 1}


def test_pixels_to_ignore_are_kept_apart(tmp_path):
    reasonseg(tmp_path)
    first = load_benchmark("reasonseg/train", tmp_path)[0].expressions[0]
    assert np.array_equal(masks.decode(first.source["ignore"]), rect((4, 4, 7, 7)))


def test_questions_and_answers_of_mmr_that_do_not_pair_are_refused(tmp_path):
    mmr(tmp_path)
    path = tmp_path / "MMR" / "MMR_train.json"
    content = json.loads(path.read_text())
    content[0]["answers"].pop()
    save(path, content)
    with pytest.raises(InputError, match="record 0: has 3 questions and 2 answers"):
        load_benchmark("mmr/train", tmp_path)


@pytest.mark.parametrize(
    ("split", "texts"), [("val_stuff", ["the sky"]), ("val_part", ["legs"]), ("val_single", ["the dog"])]
)
def test_the_classes_of_gseval_are_splits(tmp_path, split, texts):
    gseval(tmp_path)
    assert [e.text for r in load_benchmark(f"gseval/{split}", tmp_path) for e in r.expressions] == texts


def test_a_folder_with_several_lists_of_refs_needs_one_named(tmp_path):
    refer_free(tmp_path)
    save(tmp_path / "myset" / "refs(other).json", [ref(1, 1, ("other", {}))])
    with pytest.raises(InputError, match=r"name one: myset\(mine\), myset\(other\)"):
        load_benchmark("refer:myset/train", tmp_path)
    assert load_benchmark("refer:myset(other)/train", tmp_path)[0].expressions[0].text == "other"


@pytest.mark.parametrize("name", ["refer:../x/train", "cris:../x/train", "jsonl:../x/train", "refer:/train"])
def test_names_of_folders_cannot_lead_out(tmp_path, name):
    with pytest.raises(InputError):
        load_benchmark(name, tmp_path)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"granularity": "thing"}, "granularity must be part, object"),
        ({"granularity": "none"}, "has no segmentation"),
        ({"segmentation": None, "ann_ids": [99]}, "ann_ids 99 is not in"),
        ({"segmentation": None, "ann_ids": []}, "ann_ids is empty"),
        ({"image": "../../x.jpg"}, "photo name"),
        ({"height": 0}, "no size of a photo"),
        ({"text": 3}, "text must be text"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, change, word):
    jsonl_set(tmp_path)
    path = tmp_path / "mres32m" / "train.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([*rest, json.dumps(json.loads(first) | change)]))
    with pytest.raises(InputError, match="line 4") as caught:
        load_benchmark("mres32m/train", tmp_path)
    assert word in str(caught.value)


def test_lines_of_several_files_have_their_own_ids(tmp_path):
    jsonl_set(tmp_path)
    base = tmp_path / "mres32m"
    (base / "train.jsonl").rename(base / "train-00000.jsonl")
    (base / "train-00001.jsonl").write_text((base / "train-00000.jsonl").read_text())
    ids = [e.expression_id for r in load_benchmark("mres32m/train", tmp_path) for e in r.expressions]
    assert (
        ids[0] == "mres32m/train/train-00000:1"
        and ids[-1] == "mres32m/train/train-00001:4"
        and len(set(ids)) == 8
    )


@pytest.mark.parametrize(
    ("name", "noun", "many"),
    [
        ("car_(automobile)", "car", "cars"),
        ("trash_can", "trash can", "trash cans"),
        ("television_set", "tv", "tvs"),
        ("person", "person", "people"),
        ("knife", "knife", "knives"),
        ("bus", "bus", "buses"),
        ("scissors", "scissors", "scissors"),
        ("berry", "berry", "berries"),
        ("toy", "toy", "toys"),
        ("wine glass", "wine glass", "wine glasses"),
    ],
)
def test_names_of_categories_become_nouns(name, noun, many):
    assert category_noun(name) == noun and plural(noun) == many


@pytest.mark.parametrize(
    ("name", "noun"),
    [
        ("left_button", "button"),
        ("Upper Leg Left", "leg"),
        ("Tier", "tire"),
        ("seat_tube", "seat tube"),
        ("left", "left"),
    ],
)
def test_sides_are_merged_in_names_of_parts(name, noun):
    assert part_noun(name) == noun


def test_codes_of_pascal_part_are_read_whole_not_by_what_they_contain():
    assert pascal_part_noun("rear", "x") == "ear" and pascal_part_noun("rfuleg", "x") == "leg"
    assert (
        pascal_part_noun("bliplate", "x") == "license plate" and pascal_part_noun("wheel_12", "x") == "wheel"
    )
    with pytest.raises(InputError, match="none of Pascal-Part's"):
        pascal_part_noun("lleghair", "x")


ROOT = Path(__file__).resolve().parents[1]


def test_mini_real_reads_through_the_free_layout():
    mini = ROOT.parent / "shared" / "mini_real"
    if not mini.is_dir():
        pytest.skip("needs ../shared/mini_real")
    ours, theirs = load_benchmark("refer:refcoco/train", mini), load_benchmark("refcoco/train", mini)
    pairs = zip(ours, theirs, strict=True)
    assert all([e.rle for e in a.expressions] == [e.rle for e in b.expressions] for a, b in pairs)
