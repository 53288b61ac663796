"""The layout: what may import what, and what must start without torch."""

from __future__ import annotations

import ast
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("train", "eval", "chat_demo", "data_engine", "benchmarks")
FOLDERS = ("mllm", "uniresxx", *PROGRAMS)

# heavy dependency -> the only files (or folders, with a slash) that may import it, lazily or not
OWNERS = {
    "gradio": ("chat_demo/web/",),
    "fastapi": ("uniresxx/serve/",),
    "uvicorn": ("uniresxx/serve/",),
    "prometheus_client": ("uniresxx/serve/",),
    "ray": ("data_engine/executors/ray.py", "data_engine/ray.py"),
    "deepspeed": ("train/engines/zero.py",),
    "accelerate": ("uniresxx/model/spread.py",),
    "pycocotools": ("uniresxx/imaging/masks.py", "uniresxx/data/"),
    "pyarrow": ("uniresxx/data/",),
    "grain": ("uniresxx/data/mixture/mix.py",),
    "jinja2": ("eval/report/write.py",),
    "peft": ("mllm/lora.py",),
    "bitsandbytes": ("mllm/quantization.py",),
    "tensorboard": (),  # torch's writer, train/trackers.py
    "trackio": (),  # train/trackers.py imports the one that is asked for, by name
    "wandb": (),
    "yaml": ("uniresxx/data/own/yolo.py", "uniresxx/annotations/yolo.py"),
    "lmdb": ("uniresxx/data/readers/cris.py",),
    "lmms_eval": ("uniresxx/suites/lmms_eval.py",),
    "vlmeval": (
        "uniresxx/suites/vlmevalkit.py",
        "eval/suites/vlmevalkit.py",
        "eval/suites/vlmevalkit_dataset.py",
    ),
    "pandas": ("eval/suites/vlmevalkit_dataset.py",),
    "torchvision": (),
    "flash_attn": (),
}

# these must start fast: readers, scores and the command line never wait for torch
WITHOUT_TORCH = (
    "uniresxx",
    "uniresxx.types",
    "uniresxx.segmenters.base",
    "uniresxx.errors",
    "uniresxx.cli",
    "uniresxx.cli.doctor",
    "uniresxx.cli.serve",
    "uniresxx.imaging.masks",
    "uniresxx.imaging.geometry",
    "uniresxx.imaging.decode",
    "uniresxx.scoring.metrics",
    "uniresxx.scoring.protocols",
    "uniresxx.imaging.overlay",
    "uniresxx.annotations",
    "uniresxx.data.catalog",
    "uniresxx.data.scenes",
    "eval.report.write",
)


def sources() -> Iterator[tuple[str, ast.Module]]:
    """Every source file of these folders: path from the root, and its tree."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def packages_of(tree: ast.AST) -> set[str]:
    """Top-level names of everything imported in a file."""
    return {module.split(".")[0] for module in imports_of(tree)}


def imports_of(tree: ast.AST) -> set[str]:
    """Dotted names of everything imported in a file, at the top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
    return found


def allowed(name: str, owners: tuple[str, ...]) -> bool:
    return any(name == owner or (owner.endswith("/") and name.startswith(owner)) for owner in owners)


def loaded_after(code: str) -> set[str]:
    """Top-level packages in sys.modules after running `code` in a fresh Python."""
    program = f"import sys\n{code}\nprint('|'.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split("|"))


@pytest.mark.parametrize("package", sorted(OWNERS))
def test_a_heavy_dependency_has_one_owner(package: str) -> None:
    importers = [
        name
        for name, tree in sources()
        if package in packages_of(tree) and not allowed(name, OWNERS[package])
    ]
    assert importers == []


def test_folders_import_only_what_lies_below() -> None:
    below = {"mllm": set(), "uniresxx": {"mllm"}} | {name: {"mllm", "uniresxx"} for name in PROGRAMS}
    below["benchmarks"] |= set(PROGRAMS)  # they measure the programs; nothing imports them
    wrong = []
    for name, tree in sources():
        folder = name.split("/")[0]
        reached = packages_of(tree) & set(FOLDERS)
        wrong += [f"{name} imports {other}" for other in reached - below[folder] - {folder}]
    assert wrong == []


def test_a_planted_import_is_found() -> None:
    tree = ast.parse("def late():\n    from gradio.themes import Soft\n    import ray.data\n")
    assert imports_of(tree) == {"gradio.themes", "ray.data"}
    assert not allowed("uniresxx/predictor.py", OWNERS["pycocotools"])
    assert allowed("uniresxx/data/readers/refcoco.py", OWNERS["pycocotools"])


def test_fast_modules_start_without_torch() -> None:
    lines = [
        f"import {module}\nassert not {{'torch', 'transformers'}} & set(sys.modules), {module!r}"
        for module in WITHOUT_TORCH
    ]
    assert not {"torch", "transformers"} & loaded_after("\n".join(lines))


def test_help_starts_without_torch() -> None:
    code = (
        "from uniresxx.cli import main\n"
        "assert main(['--help']) == 0\n"
        "assert main(['--version']) == 0\n"
        "assert main(['fly']) == 2"
    )
    assert not {"torch", "transformers"} & loaded_after(code)


def test_help_lists_exactly_the_commands_that_exist() -> None:
    from uniresxx.cli import COMMANDS, usage

    folder = ROOT / "uniresxx" / "cli"
    files = {path.stem for path in (*folder.glob("[a-z]*.py"), *folder.glob("[a-z]*/"))}
    assert {name for name, _ in COMMANDS} == files
    assert all(f"  {name}" in usage() for name in files)


def test_public_names_exist() -> None:
    import uniresxx

    assert set(dir(uniresxx)) == set(uniresxx.__all__)
    for name in uniresxx.__all__:
        assert getattr(uniresxx, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Unires'"):
        _ = uniresxx.Unires


def test_errors_become_one_line_and_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    from uniresxx.cli import exit_code
    from uniresxx.errors import InputError

    def fails(error: BaseException) -> int:
        def work() -> int:
            raise error

        return exit_code("program", work)

    assert exit_code("program", lambda: 0) == 0
    assert fails(InputError("no file 'a.jpg': check the path")) == 2
    assert fails(OSError(28, "No space left on device")) == 1
    assert fails(KeyboardInterrupt()) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "error: no file 'a.jpg': check the path",
        "error: [Errno 28] No space left on device",
        "program: stopped",
    ]
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        fails(ZeroDivisionError())


@pytest.fixture(scope="module")
def rules() -> ModuleType:
    """tools/check_rules.py as a module."""
    spec = spec_from_file_location("check_rules", ROOT / "tools" / "check_rules.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["check_rules"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        ("try:\n    pass\nexcept:\n    pass\n", "bare except"),
        ("from os import *\n", "star import"),
        ("def long() -> None:\n" + "    pass\n" * 100, "101 lines"),
        ("import os\n", "__future__"),
        ("x = 1\n" * 350, "351 lines"),
    ],
)
def test_rule_breakers_are_listed(rules: ModuleType, source: str, finding: str) -> None:
    tally = rules.Tally()
    head = "" if finding == "__future__" else "from __future__ import annotations\n"
    rules.check_source("x.py", head + source, False, tally)
    assert len(tally.problems) == 1 and finding in tally.problems[0]


def test_totals_and_machine_paths(rules: ModuleType, tmp_path: Path) -> None:
    tally = rules.Tally(lengths=[10] * 8 + [46] * 2, annotated=96, arguments=100)
    rules.check_totals(tally)
    assert len(tally.problems) == 2
    here = "/".join(("", "home", "someone", "data"))
    (tmp_path / "a.md").write_text(f"see {here}\nsee ../work/data and https://x.org/root/y\n")
    tally = rules.Tally()
    rules.check_file(tmp_path, Path("a.md"), tally)
    assert [line.split(": ")[0] for line in tally.problems] == ["a.md:1"]


def test_clean_source_passes(rules: ModuleType) -> None:
    tally = rules.Tally()
    source = (ROOT / "uniresxx" / "cli" / "__init__.py").read_text(encoding="utf-8")
    rules.check_source("x.py", source, False, tally)
    assert tally.problems == [] and tally.arguments == tally.annotated


def test_every_dependency_has_a_lowest_version_that_can_be_installed() -> None:
    """What `make lower-bounds` installs: one exact version for each requirement of pyproject.toml."""
    lowest = runpy.run_path(str(ROOT / "tools" / "lower_bounds.py"))["lowest"]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = {
        item.partition(">=")[0] for group in groups for item in group if not item.startswith("uniresxx")
    }
    assert set(lowest(text)) == wanted and set(lowest(text, ["torch"])) == wanted - {"torch"}
    made = '[project]\ndependencies = ["a.b>=1,<3"]\n[project.optional-dependencies]\nx = ["uniresxx[y]", "c[e]>=4"]'
    assert lowest(made) == {"a.b": "1", "c": "4"}
