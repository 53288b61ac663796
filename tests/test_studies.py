"""The studies: every arm is a training that can be started, and differences are paired by seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from eval.__main__ import parser
from tools import studies
from tools.paired_runs import SCORES, answers_of
from tools.studies import STUDIES, Size, finished, folder_of, main, table, words_of
from train.assemble import open_job
from train.command_line import parse
from train.recipe import Recipe
from train.recipes import KNOWN
from uniresxx.data.mixture.parts import mixture_named
from uniresxx.errors import InputError


def recipe_of(name: str, arm: str, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr(studies, "scene_store", lambda path, numbers, dense: path)
    words = words_of(STUDIES[name].arms[arm], Size(600, 12), Path("out"))
    return parse([*words, "--out=run"], KNOWN).recipe


def arms_of(trained: bool) -> list[tuple[str, str]]:
    arms = [(name, arm, about) for name, study in STUDIES.items() for arm, about in study.arms.items()]
    return [(name, arm) for name, arm, about in arms if (about.trained_as is None) is trained]


@pytest.mark.parametrize(("name", "arm"), arms_of(trained=True))
def test_an_arm_is_a_recipe_that_differs_from_the_first(
    name: str, arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = recipe_of(name, arm, monkeypatch)
    first = next(iter(STUDIES[name].arms))
    assert (found == recipe_of(name, first, monkeypatch)) is (arm == first)
    assert found.optim.steps == round(600 * STUDIES[name].arms[arm].updates)
    if found.data.mixture:
        [part] = mixture_named(found.data.mixture)
        assert f"{part.source}/{part.split}".startswith("out/scenes_")


@pytest.mark.parametrize(("name", "arm"), arms_of(trained=False))
def test_an_arm_that_is_asked_otherwise_has_options_of_eval(name: str, arm: str) -> None:
    about = STUDIES[name].arms[arm]
    assert about.trained_as in STUDIES[name].arms
    required = ["run", "--checkpoint=run", "--benchmark=scenes_easy/val", "--out=out"]
    assert parser().parse_args([*required, *about.asked]) != parser().parse_args(required)


def test_the_methods_have_one_input_about_as_many_parameters_and_no_dense_labels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = {}
    for arm in STUDIES["methods"].arms:
        recipe = recipe_of("methods", arm, monkeypatch)
        model = recipe.model
        own = (
            model.size
            if "unires" in recipe.name
            else (model.inputs if "film" in recipe.name else model).mllm.high_size
        )
        assert (own, model.loss.dense) == (64, 0)
        data = recipe.data
        shown = (
            data.source,
            data.batch_images,
            data.expressions_per_image,
            data.dialogue_share,
            data.first_images,
        )
        assert shown == ("scenes_easy", 12, 10, 0, 0)
        models[arm] = sum(weight.numel() for weight in open_job(recipe, None).model.parameters())
    assert all(abs(count / models["UniRES++"] - 1) < 0.04 for count in models.values()), models


def test_arms_have_folders_of_their_own() -> None:
    for study in STUDIES.values():
        folders = {folder_of(Path("out"), arm, seed) for arm in study.arms for seed in (0, 1)}
        assert len(folders) == 2 * len(study.arms)


def test_the_table_has_differences_from_the_first_arm() -> None:
    def scores(value: float) -> Mapping[str, float]:
        return dict.fromkeys(SCORES, value) | {"step_seconds": 1 + value / 10}

    found = {seed: {"all": scores(10.0 * seed), "none": scores(10.0 * seed - 4)} for seed in (1, 2, 3)}
    head, _, first, second = table(found, ["all", "none"])
    assert head.count("|") == first.count("|") == len(SCORES) + 4
    assert first == "| all | 3 |" + " 20.0 |" * len(SCORES) + " 1 |"
    ratio = (1.6 / 2 + 2.6 / 3 + 3.6 / 4) / 3
    assert second == "| none | 3 |" + " -4.0 (-4.0 to -4.0) |" * len(SCORES) + f" {ratio:.2f} |"
    *_, alone = table({1: found[1]}, ["all", "none"])
    assert alone == "| none | 1 |" + " -4.0 |" * len(SCORES) + " 0.80 |"


def test_what_other_commands_have_finished_counts(tmp_path: Path) -> None:
    study = STUDIES["streams"]
    levels = {name: {"mIoU": 50.0} for name in ("part", "object", "multi")}
    entry = {"by_granularity": levels, "overall": {"mIoU": 50.0, "N-acc": 20.0, "T-acc": 90.0}}
    for seed, arm in ((0, "all"), (0, "no MGFE"), (4, "all")):
        run = folder_of(tmp_path, arm, seed)
        answers = answers_of(run)
        answers.mkdir(parents=True)
        (answers / "metrics.json").write_text(json.dumps([entry]))
        run.mkdir()
        log = [{"step": step, "seconds": at} for step, at in enumerate((0.5, 0.75, 1.0, 9.0))]
        (run / "log.jsonl").write_text("\n".join(map(json.dumps, log)))
    found = finished(study, tmp_path)
    assert {seed: set(arms) for seed, arms in found.items()} == {0: {"all", "no MGFE"}, 4: {"all"}}
    assert (found[4]["all"]["N-acc"], found[4]["all"]["step_seconds"]) == (20.0, 0.25)


def test_unknown_arms_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'no part strem': unknown; did you mean 'no part stream'"):
        main(["streams", "--out", str(tmp_path), "--arms", "no part strem"])
