"""What the public code of each peer counts on the made cases; `tools/record_protocols.py` writes it into files.

A function per peer runs the peer's own loader and evaluation loop. It needs the checkouts on the import path, and
mocks for what they import but do not need for counting: `use` in `tools/record_protocols.py`.
"""

from __future__ import annotations

import importlib
import json
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from PIL import Image
from protocol_cases import SEED, Case, truth_of
from pycocotools import mask as coco
from torch.utils.data import DistributedSampler

from uniresxx.imaging import masks

LOGIT = 4.0
COUNTED = ["iou", "intersection", "union"]
Record = dict[str, Any]
NETWORK = MagicMock(side_effect=lambda **batch: batch)  # of LISA and GSVA: answers with what the batch holds


def commit_of(root: Path) -> str:
    """The checkout's commit."""
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def dense(case: Case, key: str = "mask") -> np.ndarray:
    """A mask of a case, bool (y, x); empty where it is null."""
    rle = case[key]
    return np.zeros(case["size"], bool) if rle is None else masks.decode(rle)


def logits(mask: np.ndarray) -> torch.Tensor:
    """The output of a network that is sure of this mask."""
    return torch.where(torch.from_numpy(mask), LOGIT, -LOGIT)


def one_annotation(case: Case) -> list[Any]:
    """All annotations of a case as one `segmentation` of polygons and compressed codes: LISA and CRIS read that."""
    found: list[Any] = []
    for ann in case["anns"]:
        found += ann if isinstance(ann, list) else [coco.frPyObjects(ann, *case["size"])]
    return found


# ------------------------------------------------------------------------------------------------ LISA, GSVA


def truths(module: Any, groups: Sequence[Sequence[Case]], general: bool) -> list[torch.Tensor]:
    """Per image (a group of cases) the truth tensor that the peer's own `ValDataset.__getitem__` makes."""
    module.cv2.imread = lambda name: np.zeros((*map(int, name.split("x")), 3), np.uint8)
    module.cv2.cvtColor = lambda image, code: image
    module.DEFAULT_IMAGE_TOKEN = "<image>"
    images: list[Record] = []
    annotations: dict[int, Any] = {}
    refs: dict[int, list[Any]] = {}
    for index, group in enumerate(groups):
        height, width = group[0]["size"]
        images.append({"id": index, "file_name": f"{height}x{width}", "height": height, "width": width})
        refs[index] = []
        for case in group:
            first = len(annotations)
            parts = case["anns"] if general else [one_annotation(case)]
            annotations |= {first + k: {"segmentation": part} for k, part in enumerate(parts)}
            ids: Any = [first + k for k in range(len(parts))] or [-1]
            refs[index].append({"ann_id": ids if general else first, "sentences": [{"sent": "it"}]})
            annotations.setdefault(first, {})
    dataset = module.ValDataset.__new__(module.ValDataset)
    dataset.data_type, dataset.ds = "refer_seg", "grefcoco" if general else "refcoco"
    dataset.refer_seg_ds = {"images": images, "annotations": annotations, "img2refs": refs}
    dataset.transform = SimpleNamespace(apply_image=lambda image: image)
    dataset.preprocess = lambda image: image
    dataset.clip_image_processor = MagicMock()
    return [dataset[index][4] for index in range(len(groups))]


class Batches(list[Record]):
    """A loader: what the loops read from it."""

    dataset = SimpleNamespace(ds="grefcoco")


def count_in(loop: Any) -> list[dict[str, float]]:
    """Make the loop's meters also write each update into a list: one dict per batch, keyed by meter."""
    notes: list[dict[str, float]] = []

    class Meter(loop.AverageMeter):
        def update(self, val: Any, n: int = 1) -> None:
            notes[-1][self.name] = float(np.atleast_1d(val)[-1])
            super().update(val, n)

    def progress(batches: Any) -> Iterator[Any]:
        for batch in batches:
            notes.append({})
            yield batch

    loop.AverageMeter, loop.tqdm.tqdm, loop.dict_to_cuda = Meter, progress, lambda batch: batch
    return notes


def scored(
    data: Any, notes: list[dict[str, float]], cases: Sequence[Case], general: bool,
    mask_of: Callable[[Case], np.ndarray], loop: Callable[[Batches], Sequence[float]], names: Sequence[str],
) -> Record:  # fmt: skip
    """The loop's scores with one case per image and with up to five of one size, and its counts per case."""

    def scores(groups: Sequence[Sequence[Case]]) -> dict[str, float]:
        notes.clear()
        empty = {"images": torch.zeros(1), "images_clip": torch.zeros(1)}
        found = loop(Batches(
            empty | {
                "gt_masks": [truth],
                "pred_masks": [torch.stack([logits(mask_of(case)) for case in group])],
                "output_ids": [torch.tensor([2 if case["rejected"] else 1 for case in group])],
            }
            for group, truth in zip(groups, truths(data, groups, general), strict=True)
        ))  # fmt: skip
        return {name: 100 * float(score) for name, score in zip(names, found, strict=True)}

    single = scores([[case] for case in cases])
    rows = [[note["gIoU"], note.get("Intersec", 0.0), note.get("Union", 0.0)] for note in notes]
    size = itemgetter("size")
    same_size = [list(some) for _, some in groupby(sorted(cases, key=size), key=size)]
    several = [same[k : k + 5] for same in same_size for k in range(0, len(same), 5)]
    return {"aggregate": single, "columns": COUNTED, "cases": rows, "aggregate_by_image": scores(several)}


def lisa(cases: Sequence[Case], root: Path) -> dict[str, Record]:
    """LISA: its loader's truth through its `validate`."""
    loop, data = importlib.import_module("train_ds"), importlib.import_module("utils.dataset")
    args = SimpleNamespace(precision="fp32", local_rank=1)
    found = scored(
        data, count_in(loop), cases, False, dense,
        lambda batches: loop.validate(batches, NETWORK, 0, None, args), ("gIoU", "cIoU"),
    )  # fmt: skip
    ran = "utils/dataset.py ValDataset.__getitem__; train_ds.py validate; utils/utils.py AverageMeter, "
    ran += "intersectionAndUnionGPU (its histc on CPU)"
    origin = {"repository": "dvlab-research/LISA", "commit": commit_of(root), "ran": ran, "columns": COUNTED}
    return {"lisa": origin | found | {"padding": padding()}}


def padding() -> list[Record]:
    """The images that LISA's order and torch's sampler hand out, per world size."""
    rng = np.random.default_rng(SEED)
    refer = importlib.import_module("utils.refer").REFER
    found = []
    for count, world in ((1, 4), (3, 8), (10, 4), (23, 8), (150, 16), (16, 8)):
        ids = [int(value) for value in rng.choice(600_000, count, replace=False)]
        api = refer.__new__(refer)
        api.Refs = {k: {"image_id": image} for k, image in enumerate(ids)}
        order = api.getImgIds(list(api.Refs))
        ranks: list[Any] = [DistributedSampler(order, world, rank, shuffle=False) for rank in range(world)]
        given = sorted(order[index] for rank in ranks for index in rank)
        found.append({"image_ids": ids, "world_size": world, "given": given})
    return found


def gsva(cases: Sequence[Case], root: Path) -> dict[str, Record]:
    """GSVA: its loader's truth through `eval_gres` (gsva) and `validate` (lisa-binarised)."""
    loop, data = importlib.import_module("solver"), importlib.import_module("data.dataset")
    notes, args = count_in(loop), SimpleNamespace(precision="fp32", seg_token_idx=1, rej_token_idx=2)
    rest = (0, args, MagicMock())
    found = {
        "gsva": scored(
            data, notes, cases, True, lambda case: dense(case, "mask" if case["forced"] is None else "forced"),
            lambda batches: loop.eval_gres(batches, NETWORK, *rest), ("gIoU", "cIoU", "N-acc", "T-acc"),
        ),
        "lisa-binarised": scored(
            data, notes, cases, True, dense,
            lambda batches: loop.validate(batches, NETWORK, *rest), ("gIoU", "cIoU"),
        ),
    }  # fmt: skip
    origin = {"repository": "LeapLabTHU/GSVA", "commit": commit_of(root)}
    ran = "data/dataset.py ValDataset.__getitem__; solver.py {}, intersectionAndUnionGPU (its histc on CPU); "
    ran += "utils/meter.py AverageMeter"
    loops = {"gsva": "eval_gres", "lisa-binarised": "validate"}
    return {name: origin | record | {"ran": ran.format(loops[name])} for name, record in found.items()}


# ------------------------------------------------------------------------------------------------------ ReLA


def rela(cases: Sequence[Case], root: Path, detectron2: Path, fvcore: Path) -> dict[str, Record]:
    """ReLA's truth through its `ReferEvaluator`: as it is, squashed by detectron2, and with "empty" as "rejected"."""
    importlib.import_module("detectron2.evaluation.evaluator").DatasetEvaluator = object  # type: ignore[attr-defined]
    importlib.import_module("detectron2.utils.file_io").PathManager = SimpleNamespace(open=open)  # type: ignore[attr-defined]
    loop = runpy.run_path(str(root / "gres_model/evaluation/refer_evaluation.py"))
    mapper = runpy.run_path(str(root / "gres_model/data/dataset_mappers/refcoco_mapper.py"))
    transform = runpy.run_path(str(detectron2 / "detectron2/data/transforms/transform.py"))

    def plain(mask: np.ndarray) -> np.ndarray:
        return mask

    def squash(mask: np.ndarray) -> np.ndarray:
        return transform["ResizeTransform"](*mask.shape, 480, 480).apply_segmentation(mask).copy()

    def record(resize: Callable[[np.ndarray], np.ndarray], empty_is_rejected: bool = False) -> Record:
        with tempfile.TemporaryDirectory() as folder:
            evaluator = loop["ReferEvaluator"]("made", distributed=False, output_dir=folder)
            evaluator.reset()
            for case in cases:
                mask, truth = dense(case), torch.from_numpy(resize(rela_truth(mapper, case)))
                rejected = not mask.any() if empty_is_rejected else case["rejected"]
                given = {"image_id": 0, "source": "grefcoco", "gt_mask_merged": truth, "empty": not case["anns"],
                         "sentence": {"raw": "it"}}  # fmt: skip
                answer = logits(resize(mask.astype(np.uint8)) > 0)
                no_target = torch.tensor([0.0, 1.0] if rejected else [1.0, 0.0])
                evaluator.process(
                    [given], [{"ref_seg": torch.stack([-answer, answer]), "nt_label": no_target}]
                )
            scores = evaluator.evaluate()["grefcoco"]
            details = json.loads((Path(folder) / "made_detailed_results.json").read_text())
        fractions = {"N_acc": "N-acc", "T_acc": "T-acc"}
        return {
            "ran": "gres_model/evaluation/refer_evaluation.py ReferEvaluator.process, evaluate, computeIoU; "
            "gres_model/data/dataset_mappers/refcoco_mapper.py convert_coco_poly_to_mask, _merge_masks",
            "columns": COUNTED,
            "cases": [[row["cIoU"], row["I"], row["U"]] for row in details],
            "aggregate": {fractions.get(k, k): v * (100 if k in fractions else 1) for k, v in scores.items()},
        }

    origin = {"repository": "henghuiding/ReLA", "commit": commit_of(root)}
    resized = {"resize": f"facebookresearch/detectron2 ResizeTransform at {commit_of(detectron2)}"}
    return {
        "rela": origin | record(plain),
        "rela-480": origin | resized | record(squash),
        "empty_is_none": origin | record(plain, empty_is_rejected=True),
    }


def rela_truth(mapper: Mapping[str, Any], case: Case) -> np.ndarray:
    """The merged truth (y, x) uint8; run lengths, which its mapper cannot take, are decoded first."""
    size = case["size"]
    layers = [
        mapper["convert_coco_poly_to_mask"]([ann for ann in case["anns"] if isinstance(ann, list)], *size)
    ]
    codes = [ann for ann in case["anns"] if not isinstance(ann, list)]
    layers += [torch.from_numpy(coco.decode(coco.frPyObjects(code, *size)))[None] for code in codes]
    return mapper["RefCOCOMapper"]._merge_masks(torch.cat(layers))[0].numpy().astype(np.uint8)


# ------------------------------------------------------------------------------------------------------ CRIS


def cris(cases: Sequence[Case], root: Path) -> dict[str, Record]:
    """CRIS: masks as its tools write them, through its `inference` and its `validate`."""
    sys.modules["utils.dataset"] = MagicMock()
    loop: Any = importlib.import_module("engine.engine")
    refer = runpy.run_path(str(root / "tools/refer.py"))["REFER"]
    loop.time.sleep = lambda seconds: None
    loop.tqdm = lambda loader, **options: loader
    loop.cv2.imread = lambda path, flags: np.asarray(Image.open(path))
    loop.cv2.warpAffine = lambda image, matrix, size, **options: image
    args = SimpleNamespace(visualize=False, word_len=17, epochs=1)

    def network(given: Sequence[np.ndarray], batched: bool = False) -> MagicMock:
        return MagicMock(side_effect=[logits(mask)[None] if batched else logits(mask) for mask in given])

    with tempfile.TemporaryDirectory() as folder:
        made = [cris_item(refer, case, Path(folder) / f"{k}.png") for k, case in enumerate(cases)]

        def inference(rows: Sequence[int], more: bool) -> tuple[float, dict[str, float]]:
            given, items = [], []
            for k in rows:
                extra = [masks.decode(rle) for rle in cases[k]["more"]] if more else []
                given += [dense(cases[k]), *extra]
                items.append((made[k][0], made[k][1] | {"sents": [("it",)] * (1 + len(extra))}))
            return loop.inference(items, network(given), args)

        singles = [inference([k], False) for k in range(len(cases))]
        targeted = [k for k, case in enumerate(cases) if truth_of(case).any()]
        every = inference(targeted, True)
        batch = [(made[k][0], MagicMock(), made[k][1] | {"ori_size": [cases[k]["size"]]}) for k in targeted]
        first = loop.validate(batch, network([dense(cases[k]) for k in targeted], batched=True), 0, args)
    rows = [[iou, "".join(str(int(value)) for value in above.values())] for iou, above in singles]
    origin = {"repository": "DerrickWang005/CRIS.pytorch", "commit": commit_of(root)}
    ran = "engine/engine.py {}; tools/refer.py getMask (its PNG read and its identity warp without OpenCV)"
    files = {
        "cris": (ran.format("inference"), every),
        "cris-validate": (
            ran.format("validate, inference for the single cases") + "; utils/misc.py concat_all_gather", first
        ),
    }  # fmt: skip
    return {
        name: origin
        | {"ran": what, "columns": ["iou", "above"], "cases": rows, "aggregate": cris_scores(*scores)}
        for name, (what, scores) in files.items()
    }


def cris_scores(iou: float, above: Mapping[str, float]) -> dict[str, float]:
    """Our keys, percent."""
    return {"mIoU": 100 * iou} | {f"Pr@0.{key.removeprefix('Pr@')[0]}": 100 * v for key, v in above.items()}


def cris_item(refer: Any, case: Case, path: Path) -> tuple[torch.Tensor, Record]:
    """(image, parameters) as CRIS's loader gives them, and the mask file as CRIS's tools write it."""
    height, width = case["size"]
    api = refer.__new__(refer)
    api.refToAnn = {0: {"segmentation": one_annotation(case)}}
    api.Imgs = {0: {"height": height, "width": width}}
    empty = np.zeros((height, width), np.uint8)
    mask = api.getMask({"ref_id": 0, "image_id": 0})["mask"] if case["anns"] else empty
    Image.fromarray(mask * 255).save(path)
    size = torch.tensor([[height, width]])
    parameters = {"mask_dir": [str(path)], "ori_size": size, "inverse": torch.eye(2, 3)[None]}
    return torch.zeros(1, 3, height, width), parameters


PEERS: dict[str, Callable[..., dict[str, Record]]] = {"lisa": lisa, "gsva": gsva, "cris": cris, "rela": rela}
