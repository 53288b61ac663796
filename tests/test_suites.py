"""Tasks of other harnesses, without the harnesses: their files, what they ask, what they score, and our model."""

from __future__ import annotations

import json
import math
import sys
import tomllib
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from eval.suites import tasks
from eval.suites.lmms_tasks import utils
from uniresxx.data.catalog import splits_of
from uniresxx.evaluation.metrics_file import score_file
from uniresxx.imaging import masks
from uniresxx.prediction import Prediction
from uniresxx.scoring.metrics import COUNTERS
from uniresxx.suites.answers import answer_text, line_of
from uniresxx.suites.model import HarnessModel
from uniresxx.testing import ColourSegmenter
from uniresxx.types import EVALUATION_TEMPLATE

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "eval" / "suites" / "lmms_tasks"
MINI_REAL = ROOT.parent / "shared" / "mini_real"
HELD = (
    "refcoco_res_val",
    "grefcoco_res_val",
    "grefcoco_res_testA",
    "refcocom_res_val_object_part",
)  # by mini_real
real = pytest.mark.skipif(not MINI_REAL.is_dir(), reason="needs ../shared/mini_real")


class Loader(yaml.SafeLoader):
    """YAML with lmms-eval's mark for functions: `!function module.name` becomes the function."""


def function(loader: Loader, node: yaml.ScalarNode) -> object:
    module, _, name = str(loader.construct_scalar(node)).rpartition(".")
    assert module == "utils"
    return getattr(utils, name)


Loader.add_constructor("!function", function)


def config_of(path: Path) -> dict:
    """A task as lmms-eval reads it: the keys of what it includes, then its own."""
    own = yaml.load(path.read_text(), Loader)
    included = own.pop("include", None)
    return (config_of(FOLDER / included) if included else {}) | own


TASKS = {path.stem: config_of(path) for path in sorted(FOLDER.glob("*.yaml"))}


class Rows(list):
    """Stands for a `datasets.Dataset`: rows of a split."""

    split = ""

    @classmethod
    def from_list(cls, rows: list[dict]) -> Rows:
        return cls(rows)


@pytest.fixture
def mini_real(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(tasks.DATA, str(MINI_REAL))
    return MINI_REAL


def asked(task: str) -> tuple[dict, Rows]:
    """The configuration of a task and its questions."""
    config = TASKS[task]
    rows = Rows([{"note": ""}])
    rows.split = config["test_split"]
    return config, config["process_docs"](rows)


def answer_to(document: dict, rng: np.random.Generator) -> str:
    """A made answer: the truth, the truth moved, a rejection, two masks, or words."""
    record = tasks.records_of(document["benchmark"])[document["image"]]
    truth = record.expressions[document["expression"]].rle
    mask = np.zeros((record.height, record.width), bool) if truth is None else masks.decode(truth)
    moved = np.roll(mask, (3, 11), axis=(0, 1))
    kind = rng.integers(6)
    if kind == 0:
        return "I cannot see that."
    if kind == 1:
        return json.dumps({"masks": [], "boxes": [], "scores": []})
    if kind == 2:
        return json.dumps({"masks": [masks.encode(mask), masks.encode(moved)], "scores": [0.2, 0.7]})
    return answer_text(
        Prediction(rejected=False, rle=masks.encode(moved if kind == 3 else mask), text="[SEG].")
    )


def test_every_task_has_its_file_and_every_group_its_tasks() -> None:
    assert {name for name, config in TASKS.items() if "group" not in config} == set(tasks.BENCHMARKS)
    for group, (_, splits) in tasks.GROUPS.items():
        assert TASKS[group] == {"group": group, "task": [f"{group}_{split}" for split in splits]}
    for name in tasks.BENCHMARKS.values():
        dataset, _, split = name.partition("/")
        assert split in splits_of(dataset, None)


def test_the_command_of_the_docs_names_this_folder_and_its_tasks() -> None:
    lines = (ROOT / "docs" / "eval.md").read_text().splitlines()
    words = next(line for line in lines if line.startswith("python -m lmms_eval ")).split()
    option = dict(pairwise(words))
    assert ROOT / option["--include_path"] == FOLDER
    assert set(option["--tasks"].split(",")) <= set(TASKS)


@pytest.mark.parametrize("task", tasks.BENCHMARKS)
def test_a_task_file_says_what_the_harness_needs(task: str) -> None:
    config = TASKS[task]
    assert config["task"] == task and config["output_type"] == "generate_until"
    assert list(config["dataset_kwargs"]["data_files"]) == [config["test_split"]]
    assert config["test_split"].isidentifier()  # what the datasets package accepts as a split
    rows = (FOLDER / config["dataset_kwargs"]["data_files"][config["test_split"]]).read_text().splitlines()
    assert config["dataset_path"] == "json" and len(rows) == 1 and json.loads(rows[0])
    for metric in config["metric_list"]:
        assert metric["metric"] in tasks.METRICS and metric["higher_is_better"]
        one = {"granularity": "part", "row": [1] * len(COUNTERS)}
        expected = tasks.score_of(metric["metric"])([one])
        assert metric["aggregation"]([one]) == pytest.approx(expected, nan_ok=True)
    named = {metric["metric"] for metric in config["metric_list"]}
    assert ("N-acc" in named) == task.startswith("grefcoco")


def test_the_aggregation_of_a_metric_is_the_metric_of_that_name() -> None:
    """Each score of one row differs from the others, so that a mistaken name shows."""
    from uniresxx.scoring.metrics import Outcome
    from uniresxx.types import Granularity

    judged = []
    for k, granularity in enumerate(("part", "object", "multi", "none")):
        target = granularity != "none"
        outcome = Outcome(
            Granularity(granularity), target, rejected=k in (1, 3), iou=(0.95, 0.0, 0.72, 1.0)[k],
            intersection=(9, 0, 70, 0)[k], union=(10, 5, 100, 0)[k],
            above=[(True,) * 5, (False,) * 5, (True, True, True, False, False), (False,) * 5][k],
        )  # fmt: skip
        judged.append({"granularity": granularity, "row": outcome.row()})
    expected = {
        "gIoU": (95 + 72 + 100) / 4, "cIoU": 7900 / 115, "mIoU": (95 + 72) / 3, "Pr@0.5": 200 / 3,
        "Pr@0.7": 200 / 3, "Pr@0.9": 100 / 3, "N-acc": 100, "T-acc": 200 / 3,
        "mIoU_part": 95, "mIoU_object": 0, "mIoU_multi": 72,
    }  # fmt: skip
    for config in TASKS.values():
        for metric in config.get("metric_list", ()):
            assert metric["aggregation"](judged) == pytest.approx(expected[metric["metric"]], abs=1e-9)
    assert math.isnan(tasks.score_of("N-acc")(judged[:1])) and math.isnan(tasks.score_of("mIoU")([]))


@real
@pytest.mark.parametrize("task", HELD)
def test_a_task_asks_every_expression_and_scores_as_eval_score(
    task: str, mini_real: Path, tmp_path: Path
) -> None:
    """The whole way of a task: rows, photo and text, answers, lines, scores."""
    config, rows = asked(task)
    records = tasks.records_of(tasks.BENCHMARKS[task])
    assert [row["expression_id"] for row in rows] == [e.expression_id for r in records for e in r.expressions]
    picture = config["doc_to_visual"](rows[0])[0]
    assert picture.size == (records[0].width, records[0].height) and picture.mode == "RGB"
    assert config["doc_to_text"](rows[0], config["lmms_eval_specific_kwargs"]["default"]) == rows[0]["text"]
    words = {"pre_prompt": "Find ", "post_prompt": "!"}
    assert config["doc_to_text"](rows[0], words) == f"Find {rows[0]['text']}!"
    assert config["doc_to_target"](rows[0]) == rows[0]["expression_id"]

    rng = np.random.default_rng(0)
    answers = {row["expression_id"]: answer_to(row, rng) for row in rows}
    results = [config["process_results"](row, [answers[row["expression_id"]]]) for row in rows]
    lines = tmp_path / "samples.jsonl"  # as the harness writes them: other keys beside ours
    lines.write_text(
        "".join(json.dumps({"doc_id": k, "target": "", **r}) + "\n" for k, r in enumerate(results))
    )
    entry = score_file(lines, records, tasks.BENCHMARKS[task])
    for metric in config["metric_list"]:
        name, _, part = metric["metric"].partition("_")
        scores = entry["by_granularity"][part] if part else entry["overall"]
        found = metric["aggregation"]([result[metric["metric"]] for result in results])
        assert found == pytest.approx(scores[name], abs=1e-9)
    assert entry["no_answer"] > 0 and 0 < entry["overall"]["gIoU"] < 100
    by_file = tasks.score_predictions(tasks.BENCHMARKS[task], answers, tmp_path / "predictions.jsonl")
    assert by_file.items() >= {k: v for k, v in entry["overall"].items() if v is not None}.items()


@real
def test_data_that_changed_and_data_that_nobody_named(
    mini_real: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, rows = asked("refcoco_res_val")
    with pytest.raises(ValueError, match="the data changed"):
        tasks.judge({**rows[0], "expression_id": "refcoco/val/0"}, "{}")
    monkeypatch.delenv(tasks.DATA)
    with pytest.raises(ValueError, match="UNIRESXX_DATA"):
        asked("refcoco_res_val")
    with pytest.raises(ValueError, match="known: refcoco_res_val"):
        tasks.benchmark_of("refcoco_val")


RLE = masks.encode(np.eye(4, 6, dtype=bool))
SIZE = (4, 6)


def test_an_answer_comes_back_as_the_prediction_it_was() -> None:
    from uniresxx.scoring.predictions import from_json

    given = (
        Prediction(rejected=False, rle=RLE, text="[SEG].", score=0.75, p_absent=0.1),
        Prediction(rejected=False, rle=masks.empty(4, 6), text="[SEG].", truncated=True),
        Prediction(rejected=False, rle=None, text="words"),
        Prediction(rejected=True, rle=None, text="[REJ].", p_absent=0.9, mask_if_forced=RLE),
    )
    for prediction in given:
        assert from_json(line_of("a/b/1", answer_text(prediction), SIZE), SIZE) == prediction
    answer = json.loads(answer_text(given[0]))
    assert answer["boxes"] == [{"x_min": 0, "y_min": 0, "x_max": 4 / 6, "y_max": 1}]
    assert json.loads(answer_text(given[3]))["masks"] == []


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "none",
        "[1]",
        "{}",
        '{"masks": "no"}',
        '{"masks": [{"size": [9, 9], "counts": "Q2"}]}',
        "[" * 5000,
        "7",
        '{"masks": [], "text": 7}',
        '{"masks": [], "scores": [1e999], "rejected": "yes"}',
    ],
)
def test_an_answer_that_cannot_be_read_is_wrong_and_no_rejection(answer: str) -> None:
    line = line_of("a/b/1", answer, SIZE)
    assert not line["rejected"] and line["mask"] is None and line["text"] == answer and line["problem"]


def test_answers_of_other_models_are_read() -> None:
    other = masks.encode(np.eye(4, 6, k=1, dtype=bool))
    line = line_of("a/b/1", json.dumps({"masks": [RLE, other], "boxes": [], "scores": [0.5, 0.9]}), SIZE)
    assert masks.area(line["mask"]) == 8 and line["score"] == 0.9 and not line["rejected"]
    assert line_of("a/b/1", json.dumps([RLE]), SIZE)["mask"] == RLE
    assert line_of("a/b/1", json.dumps({"masks": []}), SIZE)["rejected"]


def picture(*colours: str) -> np.ndarray:
    """Stripes of one colour each."""
    values = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
    return np.repeat(np.array([values[c] for c in colours], np.uint8)[:, None], 5, axis=1)


def test_the_model_encodes_neighbouring_questions_about_one_photo_once() -> None:
    segmenter = ColourSegmenter()
    first, second = picture("red", "blue"), picture("green", "blue")
    asked = [(first, "red"), (first.copy(), "green"), (second, "green"), (first, "blue")]
    answers = [json.loads(text) for text in HarnessModel(segmenter, batch_images=2).answers(asked)]
    assert [len(answer["masks"]) for answer in answers] == [1, 0, 1, 1]
    assert segmenter.encoded == 2  # two photos, then one
    assert {template for _, _, template in segmenter.asked} == {EVALUATION_TEMPLATE}


def stub(monkeypatch: pytest.MonkeyPatch, **modules: dict) -> None:
    """Modules with these names and contents, for as long as a test runs; ours that import them are imported anew."""
    for name, content in modules.items():
        module = ModuleType(name.replace("__", "."))
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("uniresxx.suites.lmms_eval", "uniresxx.suites.vlmevalkit", "eval.suites.vlmevalkit_dataset"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(
        HarnessModel, "load", classmethod(lambda cls, *given, **named: cls(ColourSegmenter()))
    )


@pytest.fixture
def lmms_eval(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Our module over what it uses of lmms-eval."""

    class lmms:  # noqa: N801
        def __init__(self) -> None:
            self.task_dict: dict = {}

    stub(
        monkeypatch,
        lmms_eval={},
        lmms_eval__api={},
        lmms_eval__api__model={"lmms": lmms},
        lmms_eval__models={},
        lmms_eval__models__registry_v2={"ModelManifest": SimpleNamespace},
    )
    return import_module("uniresxx.suites.lmms_eval")


def test_the_entry_point_of_lmms_eval_names_our_class(lmms_eval: ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["lmms_eval.models"]["uniresxx"].partition(":")
    found = getattr(import_module(module), name)()
    path, _, kind = found.simple_class_path.rpartition(".")
    assert found.model_id == "uniresxx" and getattr(import_module(path), kind) is lmms_eval.LmmsEvalModel


def test_the_model_answers_the_requests_of_lmms_eval(
    lmms_eval: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lmms_eval.LmmsEvalModel(checkpoint="somewhere", batch_size="2")
    shown = [picture("red", "blue"), picture("green", "red")]
    model.task_dict = {"task": {"val": [{"shown": k} for k in (0, 0, 1)]}}

    def doc_to_visual(doc: dict) -> list[Image.Image]:
        return [Image.fromarray(shown[doc["shown"]])]

    requests = [
        SimpleNamespace(args=(text, {"max_new_tokens": 9}, doc_to_visual, k, "task", "val"))
        for k, text in enumerate(("red", "green", "green"))
    ]
    answers = model.generate_until(requests)
    assert [json.loads(text)["rejected"] for text in answers] == [False, True, False]
    for refused in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError):
            refused([])
    none = SimpleNamespace(args=("red", {}, lambda doc: [], 0, "task", "val"))
    with pytest.raises(ValueError, match="takes one picture"):
        model.generate_until([none])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="torchrun -m eval run"):
        lmms_eval.LmmsEvalModel()


class BaseModel:
    """What our model uses of VLMEvalKit's."""


class ImageBaseDataset:
    """What our data set uses of VLMEvalKit's: the table is loaded when it is made."""

    def __init__(self, dataset: str) -> None:
        self.dataset_name, self.img_root = dataset, ""
        self.data = self.load_data(dataset)  # type: ignore[attr-defined]
        assert "image" not in self.data  # the toolkit takes such a column for pixels in base64


@pytest.fixture
def toolkit(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The tables of VLMEvalKit that our program adds to."""
    pandas = pytest.importorskip("pandas")
    tables = SimpleNamespace(classes=[], names=[], models={})
    stub(
        monkeypatch,
        vlmeval={"__path__": []},
        vlmeval__vlm={"__path__": []},
        vlmeval__vlm__base={"BaseModel": BaseModel},
        vlmeval__config={"supported_VLM": tables.models},
        vlmeval__smp={"load": lambda path: pandas.read_csv(path, sep="\t")},
        vlmeval__dataset={
            "__path__": [],
            "DATASET_CLASSES": tables.classes,
            "SUPPORTED_DATASETS": tables.names,
        },
        vlmeval__dataset__image_base={"ImageBaseDataset": ImageBaseDataset},
    )
    monkeypatch.setattr(sys.modules["vlmeval"], "dataset", sys.modules["vlmeval.dataset"], raising=False)
    return tables


@real
def test_vlmevalkit_gets_our_data_sets_and_our_model(
    toolkit: SimpleNamespace, mini_real: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its run.py is played by a file that asks every question and scores the table, as the toolkit does."""
    from eval.suites.vlmevalkit import main

    (tmp_path / "run.py").write_text(PLAYED)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("PRED_FORMAT", raising=False)
    where = str(tmp_path / "out")
    assert main([str(tmp_path), "--data", "grefcoco_res_val", "--checkpoint", "x", "--work-dir", where]) == 0
    assert set(toolkit.names) == set(tasks.BENCHMARKS)
    found = json.loads((tmp_path / "out.json").read_text())
    assert json.loads((tmp_path / "out.scores.json").read_text()) == found
    predictions = tmp_path / "out.predictions.jsonl"
    entry = score_file(predictions, tasks.records_of("grefcoco/val"), "grefcoco/val")
    assert found["gIoU"] == pytest.approx(entry["overall"]["gIoU"], abs=1e-9)
    assert found["N-acc"] == pytest.approx(entry["overall"]["N-acc"], abs=1e-9)
    assert toolkit.classes[0].report_primary_metric(found) == {"gIoU": found["gIoU"]}
    assert toolkit.classes[0].report_primary_metric(None) == {}


PLAYED = """
import json, sys
from vlmeval.config import supported_VLM
from vlmeval.dataset import DATASET_CLASSES
_, _, name, _, model, _, where = sys.argv
data = DATASET_CLASSES[0](name)
model = supported_VLM[model]()
table = data.data.copy()
table["prediction"] = [
    model.generate_inner([dict(type="image", value=row.image_path), dict(type="text", value=row.question)])
    for row in table.itertuples()
]
table.to_csv(where + ".tsv", sep="\\t", index=False)
json.dump(data.evaluate(where + ".tsv", nproc=4), open(where + ".json", "w"))
"""


def test_vlmevalkit_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from eval.suites.vlmevalkit import main

    assert main([str(tmp_path), "--data", "gseval_val"]) == 2
    assert "has no run.py" in capsys.readouterr().err
    (tmp_path / "run.py").touch()
    monkeypatch.delenv(tasks.DATA, raising=False)
    assert main([str(tmp_path), "--data", "gseval_val"]) == 2
    assert "UNIRESXX_DATA" in capsys.readouterr().err
