"""Record what the public code of each peer gives on made cases: `tests/data/protocols/*.json`.

    python tools/record_protocols.py --rela DIR --gsva DIR --lisa DIR --cris DIR --detectron2 DIR --fvcore DIR

Each DIR is a git checkout of the public repository. Its own functions run here, on the CPU, without a
network: packages they import but do not need for counting are stand-ins, and the "model" hands out the masks
of the cases as logits. What ran is written into each file with repository and commit.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec
from itertools import groupby
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from protocol_cases import Case, cases_of, truth_of
from pycocotools import mask as coco
from torch.utils.data import DistributedSampler

from uniresxx.imaging import masks

SEED = 4
OUT = Path(__file__).resolve().parents[1] / "tests" / "data" / "protocols"
STAND_INS = (
    *("accelerate", "bleach", "cv2", "deepspeed", "detectron2", "ftfy", "fvcore", "imageio", "iopath"),
    *("loguru", "matplotlib", "model", "peft", "regex", "skimage", "termcolor", "torchvision", "tqdm"),
    *("transformers", "wandb"),
)
LOGIT = 4.0


class Stub(ModuleType):
    """A package that is not there: every name in it is a mock."""

    __path__: list[str] = []  # noqa: RUF012  (a package, as the import system asks for it)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = MagicMock(name=name)
        setattr(self, name, value)
        return value


class StubFinder:
    """Serves a Stub for every module of the named packages."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The spec of a stand-in, or None."""
        if name.split(".")[0] not in self.packages:
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """An empty stand-in."""
        return Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


@contextlib.contextmanager
def peer(root: Path, stand_ins: Sequence[str] = STAND_INS) -> Iterator[None]:
    """Imports see the peer's checkout first, and stand-ins for what it needs elsewhere; undone afterwards."""
    before = dict(sys.modules)
    for name in [n for n in sys.modules if n.split(".")[0] in (*stand_ins, "utils", "data", "tools")]:
        del sys.modules[name]
    finder = StubFinder(stand_ins)
    sys.meta_path.insert(0, finder)
    sys.path.insert(0, str(root))
    sys.modules["torch.utils.tensorboard"] = Stub("torch.utils.tensorboard")
    kept = torch.histc, torch.Tensor.cuda

    def histc(values: torch.Tensor, **bins: Any) -> torch.Tensor:
        # as on a GPU, which counts whole numbers; the CPU kernel takes floats only
        return kept[0](values.float(), **bins).to(values.dtype)

    torch.histc, torch.Tensor.cuda = histc, lambda self, *a, **k: self  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        torch.histc, torch.Tensor.cuda = kept  # type: ignore[method-assign]
        sys.path.remove(str(root))
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - set(before):
            if name == "torch.utils.tensorboard" or not name.startswith(("torch.", "numpy.", "PIL.")):
                del sys.modules[name]
        sys.modules.update(before)


def load(path: Path, name: str) -> ModuleType:
    """One file as a module, without its package."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commit_of(root: Path) -> str:
    """The checkout's commit."""
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


# ------------------------------------------------------------------------------------------- the cases' masks


def dense(case: Case, key: str) -> np.ndarray:
    """A mask of a case, bool (y, x); empty where it is null."""
    rle = case[key]
    return np.zeros(case["size"], bool) if rle is None else masks.decode(rle)


def logits(mask: np.ndarray) -> torch.Tensor:
    """What a sure network would say."""
    return torch.where(torch.from_numpy(mask), LOGIT, -LOGIT)


def compressed(segmentation: Any, size: Sequence[int]) -> list[Any]:
    """An annotation's `segmentation` as RefClef writes it: polygons, or a list of compressed codes."""
    if isinstance(segmentation, list):
        return segmentation
    return [coco.frPyObjects(segmentation, *size)]


def one_annotation(case: Case) -> list[Any]:
    """All annotations of a case as one `segmentation`: the form in which LISA and CRIS know several."""
    return [piece for item in case["anns"] for piece in compressed(item, case["size"])]


# ------------------------------------------------------------------------------------------------ LISA, GSVA


def truths(dataset_class: Any, groups: Sequence[Sequence[Case]], general: bool) -> list[torch.Tensor]:
    """Per group the truth tensor that the peer's own `ValDataset.__getitem__` makes; a group is one image."""
    images: list[dict[str, Any]] = []
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
    dataset = dataset_class.__new__(dataset_class)
    dataset.data_type, dataset.ds = "refer_seg", "grefcoco" if general else "refcoco"
    dataset.refer_seg_ds = {"images": images, "annotations": annotations, "img2refs": refs}
    dataset.transform = SimpleNamespace(apply_image=lambda image: image)
    dataset.preprocess = lambda image: image
    dataset.clip_image_processor = MagicMock()
    return [dataset[index][4] for index in range(len(groups))]


def stand_in_photos(module: Any) -> None:
    """Black photos of the size that their name tells."""
    module.cv2.imread = lambda name: np.zeros((*map(int, name.split("x")), 3), np.uint8)
    module.cv2.cvtColor = lambda image, code: image
    module.DEFAULT_IMAGE_TOKEN = "<image>"


class Engine:
    """The model of a loop: answers with what the loader put beside the truth."""

    def eval(self) -> None:
        """Nothing to switch."""

    def __call__(self, **batch: Any) -> dict[str, Any]:
        return {key: batch[key] for key in ("pred_masks", "gt_masks", "output_ids")}


class Loader(list[dict[str, Any]]):
    """Batches, as the loops want them."""

    dataset = SimpleNamespace(ds="grefcoco")


def batches(
    groups: Sequence[Sequence[Case]], truth: Sequence[torch.Tensor], mask_of: Callable[[Case], np.ndarray]
) -> Loader:
    """One batch per image."""
    nothing = torch.zeros(1)
    return Loader(
        {
            "images": nothing,
            "images_clip": nothing,
            "gt_masks": [gt],
            "pred_masks": [torch.stack([logits(mask_of(case)) for case in group])],
            "output_ids": [torch.tensor([2 if case["rejected"] else 1 for case in group])],
        }
        for group, gt in zip(groups, truth, strict=True)
    )


def metered(module: Any) -> list[dict[str, Any]]:
    """Replace the module's meters by ones that also note each update; a dict per batch, keyed by meter."""
    notes: list[dict[str, Any]] = []
    plain = module.AverageMeter

    class Noting(plain):  # type: ignore[misc,valid-type]
        def update(self, val: Any, n: int = 1) -> None:
            notes[-1][self.name] = float(np.atleast_1d(val)[-1])
            super().update(val, n)

    module.AverageMeter = Noting

    def progress(batches: Any) -> Iterator[Any]:
        for batch in batches:
            notes.append({})
            yield batch

    module.tqdm.tqdm = progress
    return notes


def by_size(cases: Sequence[Case]) -> list[list[Case]]:
    """Images of several sentences: up to five cases of one size."""
    found = []
    for _, some in groupby(sorted(cases, key=lambda case: case["size"]), key=lambda case: case["size"]):
        same = list(some)
        found += [same[k : k + 5] for k in range(0, len(same), 5)]
    return found


def record_lisa(cases: Sequence[Case], root: Path) -> dict[str, Any]:
    """LISA: its loader's truth through its `validate`."""
    with peer(root):
        loop: Any = importlib.import_module("train_ds")
        data: Any = importlib.import_module("utils.dataset")
        stand_in_photos(data)
        loop.dict_to_cuda = lambda batch: batch
        notes = metered(loop)
        args = SimpleNamespace(precision="fp32", local_rank=1)

        def run(groups: Sequence[Sequence[Case]]) -> dict[str, float]:
            made = batches(groups, truths(data.ValDataset, groups, False), lambda case: dense(case, "mask"))
            giou, ciou = loop.validate(made, Engine(), 0, None, args)
            return {"gIoU": 100 * float(giou), "cIoU": 100 * float(ciou)}

        single = run([[case] for case in cases])
        rows = [[note["gIoU"], note["Intersec"], note["Union"]] for note in notes]
        grouped = run(by_size(cases))
    ran = "utils/dataset.py ValDataset.__getitem__; train_ds.py validate; utils/utils.py AverageMeter, "
    return {
        "ran": ran + "intersectionAndUnionGPU (its histc on CPU)",
        "columns": ["iou", "intersection", "union"],
        "cases": rows,
        "aggregate": single,
        "aggregate_by_image": grouped,
        "padding": padding_of(root),
    }


def padding_of(root: Path) -> list[dict[str, Any]]:
    """Which images LISA's order and torch's sampler hand out, per world size."""
    rng = np.random.default_rng(SEED)
    found = []
    with peer(root):
        refer = importlib.import_module("utils.refer").REFER
        for count, world in ((1, 4), (3, 8), (10, 4), (23, 8), (150, 16), (16, 8)):
            ids = [int(value) for value in rng.choice(600_000, count, replace=False)]
            api = refer.__new__(refer)
            api.Refs = {k: {"image_id": image} for k, image in enumerate(ids)}
            order = api.getImgIds(list(api.Refs))
            ranks: list[Any] = [
                DistributedSampler(order, world, rank, shuffle=False) for rank in range(world)
            ]
            given = sorted(order[index] for rank in ranks for index in rank)
            found.append({"image_ids": ids, "world_size": world, "given": given})
    return found


def record_gsva(cases: Sequence[Case], root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """GSVA: its loader's truth through `eval_gres` (gsva) and `validate` (lisa-binarised)."""

    def forced(case: Case) -> np.ndarray:
        return dense(case, "mask" if case["forced"] is None else "forced")

    with peer(root):
        loop: Any = importlib.import_module("solver")
        data: Any = importlib.import_module("data.dataset")
        stand_in_photos(data)
        loop.dict_to_cuda = lambda batch: batch
        notes = metered(loop)
        args = SimpleNamespace(precision="fp32", seg_token_idx=1, rej_token_idx=2)

        def gres(groups: Sequence[Sequence[Case]]) -> dict[str, float]:
            made = batches(groups, truths(data.ValDataset, groups, True), forced)
            scores = loop.eval_gres(made, Engine(), 0, args, MagicMock())
            return dict(
                zip(("gIoU", "cIoU", "N-acc", "T-acc"), (100 * float(s) for s in scores), strict=True)
            )

        def plain(groups: Sequence[Sequence[Case]]) -> dict[str, float]:
            made = batches(groups, truths(data.ValDataset, groups, True), lambda case: dense(case, "mask"))
            scores = loop.validate(made, Engine(), 0, args, MagicMock())
            return dict(zip(("gIoU", "cIoU"), (100 * float(s) for s in scores), strict=True))

        singles = [[case] for case in cases]
        gsva: dict[str, Any] = {"aggregate": gres(singles)}
        rows = [[note["gIoU"], note.get("Intersec", 0.0), note.get("Union", 0.0)] for note in notes]
        gsva |= {"columns": ["iou", "intersection", "union"], "cases": rows}
        gsva["aggregate_by_image"] = gres(by_size(cases))
        notes.clear()
        lisa: dict[str, Any] = {"aggregate": plain(singles)}
        rows = [[note["gIoU"], note["Intersec"], note["Union"]] for note in notes]
        lisa |= {"columns": ["iou", "intersection", "union"], "cases": rows}
        lisa["aggregate_by_image"] = plain(by_size(cases))
    ran = "data/dataset.py ValDataset.__getitem__; solver.py {}, intersectionAndUnionGPU (its histc on CPU); "
    gsva["ran"], lisa["ran"] = (
        ran.format(name) + "utils/meter.py AverageMeter" for name in ("eval_gres", "validate")
    )
    return gsva, lisa


# ------------------------------------------------------------------------------------------------------ ReLA


def record_rela(
    cases: Sequence[Case], root: Path, resize: Callable[[np.ndarray], np.ndarray], rule: str
) -> dict[str, Any]:
    """ReLA: its truth through its `ReferEvaluator`. `rule`: rejected by "flag" or by "empty" mask."""
    with peer(root), tempfile.TemporaryDirectory() as folder:
        evaluator_module: Any = importlib.import_module("detectron2.evaluation.evaluator")
        evaluator_module.DatasetEvaluator = object
        files: Any = importlib.import_module("detectron2.utils.file_io")
        files.PathManager = SimpleNamespace(open=open)
        loop = load(root / "gres_model/evaluation/refer_evaluation.py", "refer_evaluation")
        mapper = load(root / "gres_model/data/dataset_mappers/refcoco_mapper.py", "refcoco_mapper")
        evaluator = loop.ReferEvaluator("made", distributed=False, output_dir=folder)
        evaluator.reset()
        for case in cases:
            merged = rela_truth(mapper, case)
            mask = dense(case, "mask")
            rejected = case["rejected"] if rule == "flag" else not mask.any()
            given = {
                "image_id": 0,
                "source": "grefcoco",
                "gt_mask_merged": torch.from_numpy(resize(merged)),
                "empty": not case["anns"],
                "sentence": {"raw": "it"},
            }
            answer = logits(resize(mask.astype(np.uint8)) > 0)
            no_target = torch.tensor([0.0, 1.0] if rejected else [1.0, 0.0])
            evaluator.process([given], [{"ref_seg": torch.stack([-answer, answer]), "nt_label": no_target}])
        scores = evaluator.evaluate()["grefcoco"]
        details = json.loads((Path(folder) / "made_detailed_results.json").read_text())
    percent = {"N_acc": "N-acc", "T_acc": "T-acc"}
    return {
        "ran": "gres_model/evaluation/refer_evaluation.py ReferEvaluator.process, evaluate, computeIoU; "
        "gres_model/data/dataset_mappers/refcoco_mapper.py convert_coco_poly_to_mask, _merge_masks",
        "columns": ["iou", "intersection", "union"],
        "cases": [[row["cIoU"], row["I"], row["U"]] for row in details],
        "aggregate": {percent.get(k, k): v * (100 if k in percent else 1) for k, v in scores.items()},
    }


def rela_truth(mapper: Any, case: Case) -> np.ndarray:
    """The merged truth (y, x) uint8; run lengths, which its mapper cannot take, are decoded before."""
    height, width = case["size"]
    polygons = [item for item in case["anns"] if isinstance(item, list)]
    codes = [item for item in case["anns"] if not isinstance(item, list)]
    layers = mapper.convert_coco_poly_to_mask(polygons, height, width)
    others = [torch.from_numpy(coco.decode(coco.frPyObjects(code, height, width))) for code in codes]
    layers = torch.cat([layers, *(layer[None] for layer in others)])
    return mapper.RefCOCOMapper._merge_masks(layers)[0].numpy().astype(np.uint8)


def squash_of(detectron2: Path, fvcore: Path) -> Callable[[np.ndarray], np.ndarray]:
    """detectron2's own resize of a segmentation to 480 x 480."""
    stand_ins = [name for name in STAND_INS if name != "fvcore"]
    with peer(fvcore, stand_ins):
        transform = load(detectron2 / "detectron2/data/transforms/transform.py", "d2_transform")

    def squash(mask: np.ndarray) -> np.ndarray:
        return transform.ResizeTransform(*mask.shape, 480, 480).apply_segmentation(mask).copy()

    return squash


# ------------------------------------------------------------------------------------------------------ CRIS


class Answers:
    """CRIS's network: hands out the next mask."""

    def __init__(self, given: Sequence[np.ndarray], batched: bool) -> None:
        self.left = iter(given)
        self.batched = batched

    def eval(self) -> None:
        """Nothing to switch."""

    def __call__(self, image: Any, text: Any) -> torch.Tensor:
        answer = logits(next(self.left))
        return answer[None] if self.batched else answer


def record_cris(cases: Sequence[Case], root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """CRIS: masks as its tools write them, through its `inference` and its `validate`."""
    with peer(root), tempfile.TemporaryDirectory() as folder:
        sys.modules["utils.dataset"] = Stub("utils.dataset")
        loop: Any = importlib.import_module("engine.engine")
        refer = load(root / "tools/refer.py", "cris_refer").REFER
        loop.time.sleep, pause = (lambda seconds: None), loop.time.sleep
        loop.tqdm = lambda loader, **options: loader
        loop.cv2.imread = lambda path, flags: np.asarray(Image.open(path))
        loop.cv2.warpAffine = lambda image, matrix, size, **options: image
        made = [cris_item(refer, case, Path(folder) / f"{k}.png") for k, case in enumerate(cases)]
        args = SimpleNamespace(visualize=False, word_len=17)

        def inference(rows: Sequence[int], more: bool) -> tuple[float, dict[str, float]]:
            given, items = [], []
            for k in rows:
                extra = [masks.decode(rle) for rle in cases[k]["more"]] if more else []
                given += [dense(cases[k], "mask"), *extra]
                items.append((made[k][0], {**made[k][1], "sents": [("it",)] * (1 + len(extra))}))
            return loop.inference(items, Answers(given, False), args)

        singles = [inference([k], False) for k in range(len(cases))]
        targeted = [k for k, case in enumerate(cases) if truth_of(case).any()]
        every = inference(targeted, True)
        batch = [(made[k][0], MagicMock(), {**made[k][1], "ori_size": [cases[k]["size"]]}) for k in targeted]
        network = Answers([dense(cases[k], "mask") for k in targeted], True)
        first = loop.validate(batch, network, 0, SimpleNamespace(epochs=1))
        loop.time.sleep = pause
    rows = [[iou, "".join(str(int(value)) for value in above.values())] for iou, above in singles]
    shared = {"columns": ["iou", "above"], "cases": rows}
    ran = "engine/engine.py {}; tools/refer.py getMask (its PNG read and its identity warp without OpenCV)"
    return (
        {"ran": ran.format("inference"), **shared, "aggregate": cris_scores(every)},
        {
            "ran": ran.format("validate, inference for the single cases")
            + "; utils/misc.py concat_all_gather",
            **shared,
            "aggregate": cris_scores(first),
        },
    )


def cris_scores(given: tuple[float, Mapping[str, float]]) -> dict[str, float]:
    """Our keys, percent."""
    return {"mIoU": 100 * given[0]} | {
        f"Pr@0.{key.removeprefix('Pr@')[0]}": 100 * value for key, value in given[1].items()
    }


def cris_item(refer: Any, case: Case, path: Path) -> tuple[torch.Tensor, dict[str, Any]]:
    """(image, parameters) as CRIS's loader gives them, and the mask file as CRIS's tools write it."""
    height, width = case["size"]
    api = refer.__new__(refer)
    api.refToAnn = {0: {"segmentation": one_annotation(case)}}
    api.Imgs = {0: {"height": height, "width": width}}
    empty = np.zeros((height, width), np.uint8)
    mask = api.getMask({"ref_id": 0, "image_id": 0})["mask"] if case["anns"] else empty
    Image.fromarray(mask * 255).save(path)
    parameters = {
        "mask_dir": [str(path)],
        "ori_size": torch.tensor([[height, width]]),
        "inverse": torch.eye(2, 3)[None],
    }
    return torch.zeros(1, 3, height, width), parameters


# ------------------------------------------------------------------------------------------------- the files


def write(name: str, content: Mapping[str, Any], out: Path) -> None:
    """Compact JSON with one case per line; floats keep all their digits."""
    head = {key: value for key, value in content.items() if key != "cases"}
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in content["cases"])
    text = json.dumps(head, indent=1).removesuffix("\n}") + ',\n "cases": [\n' + lines + "\n]}\n"
    assert json.loads(text)["cases"] == content["cases"]
    (out / f"{name}.json").write_text(text)


def main() -> int:
    """Run every peer and write the files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("rela", "gsva", "lisa", "cris", "detectron2", "fvcore"):
        parser.add_argument(f"--{name}", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    cases = cases_of(SEED)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        rela = {"repository": "henghuiding/ReLA", "commit": commit_of(args.rela)}
        gsva = {"repository": "LeapLabTHU/GSVA", "commit": commit_of(args.gsva)}
        lisa = {"repository": "dvlab-research/LISA", "commit": commit_of(args.lisa)}
        cris = {"repository": "DerrickWang005/CRIS.pytorch", "commit": commit_of(args.cris)}
        resized = {"resize": f"facebookresearch/detectron2 ResizeTransform at {commit_of(args.detectron2)}"}
        squash = squash_of(args.detectron2, args.fvcore)
        found = {
            "rela": rela | record_rela(cases, args.rela, lambda mask: mask, "flag"),
            "rela-480": rela | resized | record_rela(cases, args.rela, squash, "flag"),
            "empty_is_none": rela | record_rela(cases, args.rela, lambda mask: mask, "empty"),
            "lisa": lisa | record_lisa(cases, args.lisa),
        }
        for name, record in zip(("gsva", "lisa-binarised"), record_gsva(cases, args.gsva), strict=True):
            found[name] = gsva | record
        for name, record in zip(("cris", "cris-validate"), record_cris(cases, args.cris), strict=True):
            found[name] = cris | record
        dist.destroy_process_group()
    for name, content in found.items():
        write(name, {"protocol": name, **content}, args.out)
        print(name, json.dumps(content["aggregate"]))
    write("cases", {"seed": SEED, "cases": cases}, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
