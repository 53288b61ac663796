"""The command line of training: every recipe, overrides, launchers' flags, one line for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.__main__ import main
from train.command_line import parse, plain, without_rank
from train.job import Job
from train.recipe import DataConfig, OptimConfig, Recipe, check
from train.recipe_changes import differences, flatten, recipe_differences, recipe_values
from train.recipes import KNOWN
from uniresxx.data.catalog import SCENES, known_benchmarks
from uniresxx.data.mixture.parts import MixturePart, mixture_named
from uniresxx.errors import InputError
from uniresxx.files import versions

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Inner:
    use_parts: bool = True


@dataclass(frozen=True)
class Model:
    width: int = 8
    inner: Inner = field(default_factory=Inner)


def toy() -> Recipe:
    """A toy."""
    return Recipe("toy", Model(), optim=OptimConfig(steps=9))


RECIPES = {"toy": toy, "other": toy}


def test_overrides_reach_every_section():
    line = (
        "toy --out runs/x --optim.lr 3e-4 --model.inner.use_parts False --model.width=4 --data d --fresh "
        "--optim.betas 0.8 0.99 --optim.max_minutes 2.5 --data.batch_images 2 --seed 5 "
        "--optim.lr_scale a.b 0.1 c 0.2 --log.save_every 7"
    )
    command = parse(line.split(), RECIPES)
    recipe = command.recipe
    assert (recipe.optim.lr, recipe.optim.betas, recipe.optim.max_minutes) == (3e-4, (0.8, 0.99), 2.5)
    assert recipe.model == Model(4, Inner(use_parts=False))
    assert recipe.optim.lr_scale == (("a.b", 0.1), ("c", 0.2))
    assert (recipe.data.batch_images, recipe.seed, recipe.optim.steps, recipe.log.save_every) == (2, 5, 9, 7)
    assert (command.out, command.data, command.fresh) == (Path("runs/x"), Path("d"), True)


def test_without_overrides_the_recipe_is_unchanged():
    command = parse(["toy", "--out", "x"], RECIPES)
    assert command.recipe == toy() and command.data is None and not command.fresh


@pytest.mark.parametrize(
    "spelling", [["--local_rank=0"], ["--local_rank", "0"], ["--local-rank=3"], ["--local-rank", "3"]]
)
@pytest.mark.parametrize("place", [0, 1, 3, 5])
def test_local_rank_is_ignored_anywhere(spelling, place):
    arguments = ["toy", "--out", "x", "--seed", "4"]
    assert parse(arguments[:place] + spelling + arguments[place:], RECIPES) == parse(arguments, RECIPES)


@given(st.lists(st.sampled_from(["a", "--out", "x", "--seed", "1"]), max_size=6))
def test_other_arguments_are_left_alone(arguments):
    assert without_rank(arguments) == arguments


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["tyo", "--out", "x"], "unknown recipe 'tyo'; did you mean 'toy'\\?; known: other, toy"),
        ([], "recipe's name comes first"),
        (["--out", "x", "toy"], "recipe's name comes first"),
        (["toy"], "--out"),
        (["toy", "--out", "x", "--optim.lrr", "1"], "--optim.lrr, 1; did you mean '--optim.lr'\\?; see"),
        (["toy", "--ou", "x"], "did you mean '--out'\\?"),
        (["toy", "--out", "x", "--model.widht=3"], "did you mean '--model.width'\\?"),
        (
            ["toy", "--out", "x", "--data.lesson_images", "7"],
            "; --data.lesson_images is now --data.warmup_images",
        ),
        (["toy", "--out", "x", "--data.bad-share=0.1"], "; --data.bad_share is now --data.max_bad_fraction"),
        (
            ["toy", "--out", "x", "--data.feature_cache", "d"],
            "; --data.feature_cache no longer exists: leave it",
        ),
        (["toy", "--out", "x", "--optim.lr", "fast"], "fast"),
        (["toy", "--out", "x", "--name", "me"], "--name"),
        (["toy", "--out", "x", "--engine.precision", "fp8"], "fp8"),
        (["toy", "--out", "x", "--optim.steps", "0"], "--optim.steps 0: must be at least 1"),
        (["toy", "--out", "x", "--optim.lr", "nan"], "--optim.lr nan: must be above 0"),
        (["toy", "--out", "x", "--optim.eps", "0"], "--optim.eps 0.0: must be above 0"),
        (["toy", "--out", "x", "--optim.weight_decay", "nan"], "--optim.weight_decay nan: must be at least"),
        (["toy", "--out", "x", "--optim.betas", "0.9", "1"], "--optim.betas 0.9 1.0: each must be at least"),
        (["toy", "--out", "x", "--optim.betas", "-0.1", "0.9"], "--optim.betas -0.1 0.9: each must be"),
        (["toy", "--out", "x", "--optim.final_lr", "-1"], "--optim.final_lr -1.0: must be from 0 to 1"),
        (["toy", "--out", "x", "--data.dialogue_share", "1.5"], "--data.dialogue_share 1.5: must be from"),
        (["toy", "--out", "x", "--data.dialogue_share", "nan"], "--data.dialogue_share nan: must be from"),
        (["toy", "--out", "x", "--engine.zero_stage", "4"], "--engine.zero_stage 4: must be 0, 1, 2 or 3"),
        (
            ["toy", "--out", "x", "--engine.offload", "optimizer"],
            "--engine.offload optimizer: needs --engine",
        ),
        (
            ["toy", "--out", "x", "--engine.timeout_minutes", "0"],
            "--engine.timeout_minutes 0.0: must be above",
        ),
        (["toy", "--out", "x", "stray"], "stray"),
    ],
)
def test_wrong_command_lines_get_one_line(arguments, line, capsys):
    with pytest.raises(InputError, match=line.replace("[", r"\[")) as error:
        parse(arguments, RECIPES)
    assert "\n" not in str(error.value) and "│" not in str(error.value)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_process_0_prints_its_message_before_another_ends(rank, monkeypatch, capsys):
    """A launcher ends all with the first that ends: a silent one that was quicker took the line with it."""
    waited = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("train.__main__.time.sleep", waited.append)
    assert main(["tiny_scene", "--out", "x"]) == 2
    output = capsys.readouterr().err.splitlines()
    assert (len(output), waited) == ((1, []) if rank == "0" else (0, [10]))


def test_root_is_another_name_of_data():
    assert parse(["toy", "--out", "x", "--root", "d"], RECIPES).data == Path("d")


@pytest.mark.parametrize("arguments", ["--help", "tiny_scenes --help", "plan --help", "finetune --help"])
def test_help_into_a_closed_pipe_ends_quietly(arguments):
    command = f"{sys.executable} -m train {arguments} | head -c 1 > /dev/null"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_help_names_recipes_and_options(capsys):
    with pytest.raises(SystemExit) as end:
        parse(["--help"], RECIPES)
    assert end.value.code == 0 and "recipes: other, toy" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        parse(["toy", "--help"], RECIPES)
    output = capsys.readouterr().out
    assert end.value.code == 0 and "--optim.lr" in output and "A toy." in output


def test_main_prints_one_line_and_returns_2(capsys):
    assert main(["no such recipe"]) == 2
    out, err = capsys.readouterr()
    assert (
        out == ""
        and err.startswith("error: unknown recipe 'no such recipe'; known:")
        and err.count("\n") == 1
    )


def test_sizes_that_do_not_fit_together_get_one_line_when_the_job_is_built(tmp_path, monkeypatch, capsys):
    def refuse(recipe, data, newest):
        raise ValueError("width 7 must divide\nby heads 4")

    monkeypatch.setattr("train.assemble.open_job", refuse)
    assert main(["tiny_scenes", "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err == "error: width 7 must divide by heads 4\n"
    assert not (tmp_path / "x").exists()


def test_a_bug_while_training_is_not_wrong_input(tmp_path, monkeypatch):
    def fail(*arguments):
        raise ValueError("a mistake of ours")

    monkeypatch.setattr(
        "train.assemble.open_job", lambda recipe, data, newest: Job(None, lambda step, micro: None)
    )
    monkeypatch.setattr("train.loop.train", fail)
    with pytest.raises(ValueError, match="a mistake of ours"):
        main(["tiny_scenes", "--out", str(tmp_path / "x")])


def test_a_run_records_versions_as_metrics_do(tmp_path, monkeypatch):
    kept = []

    def train(recipe, job, *rest):
        kept.append(job.extra)
        return 0

    job = Job(None, lambda step, micro: None, extra={"templates": {}})
    monkeypatch.setattr("train.assemble.open_job", lambda recipe, data, newest: job)
    monkeypatch.setattr("train.loop.train", train)
    assert main(["tiny_scenes", "--out", str(tmp_path / "x")]) == 0
    assert kept == [{"templates": {}, "versions": versions()}]
    assert {"python", "torch", "tokenizers", "commit"} <= kept[0]["versions"].keys()


def test_plain_reads_boxes():
    assert plain("╭─ E ─╮\n│ one   │\n│ two   │\n│ ───── │\n│ more  │\n╰──╯\n") == "one two"
    assert plain(" E     \n ------- \n  one    \n  two.   \n  -------\n  more   \n") == "one two"
    assert plain("") == "wrong arguments"


def test_a_wrong_command_line_is_refused_without_loading_torch():
    code = (
        "import sys; from train.__main__ import main; r = main(['nope']); "
        "sys.exit(r if 'torch' not in sys.modules else 99)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr


def test_differences_name_key_old_and_new_and_skip_what_changes_no_weight():
    saved = toy().to_dict()
    now = replace(toy(), seed=1, model=Model(9), data=DataConfig(workers=3)).to_dict()
    now["log"]["save_every"] = 1
    del now["optim"]["eps"]
    assert differences(saved, now) == ["model.width: 8 -> 9", "optim.eps: 1e-08 -> (absent)", "seed: 0 -> 1"]
    assert differences(saved, toy().to_dict()) == []


def test_a_recipe_of_an_earlier_version_is_read_under_its_former_names():
    now = {"recipe": toy().to_dict(), "data": "x"}
    saved = json.loads(json.dumps(now))
    data = saved["recipe"]["data"]
    data["lesson_images"], data["bad_share"] = data.pop("warmup_images"), 0.5
    del data["max_bad_fraction"]
    data["feature_cache"] = "cache"
    assert recipe_differences(saved, now) == []
    data["lesson_images"] = 7
    assert recipe_differences(saved, now) == ["data.warmup_images: 7 -> 0"]


def test_a_former_value_of_a_model_is_its_name_of_today():
    values = [recipe_values({"recipe": {"model": {"boxes": boxes}}}) for boxes in ("segmenter", "classical")]
    assert values[0] == values[1] == {"model.boxes": "classical", "data set": ""}


def test_a_run_that_kept_no_frozen_part_in_fp32_goes_on():
    now = {"recipe": KNOWN["uniresxx_7b"]().to_dict(), "data": "x"}
    saved = json.loads(json.dumps(now))
    del saved["recipe"]["model"]["tuning"]["keep_fp32"]
    assert recipe_differences(saved, now) == []
    now["recipe"]["model"]["tuning"]["keep_fp32"] = ["high"]
    assert recipe_differences(saved, now) == ['model.tuning.keep_fp32: [] -> ["high"]']


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}


def test_check_accepts_the_defaults():
    check(toy())


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_every_shipped_recipe_parses_and_documents_itself(name):
    command = parse([name, "--out", "x"], KNOWN)
    assert command.recipe == KNOWN[name]() and command.recipe.name == name
    text = KNOWN[name].__doc__ or ""
    assert f"python -m train {name}" in text and "Expected" in text


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_every_benchmark_and_every_training_set_of_a_shipped_recipe_is_known(name):
    recipe = KNOWN[name]()
    d = recipe.data
    parts = mixture_named(d.mixture) if d.mixture else d.parts or (MixturePart(d.source, d.split),)
    assert set(recipe.eval.benchmarks) <= set(known_benchmarks())
    trained = {f"{part.source}/{part.split}" for part in parts}
    assert trained and trained <= {*known_benchmarks(), *(f"{scenes}/train" for scenes in SCENES)}
