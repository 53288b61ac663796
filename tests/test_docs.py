"""The documentation is true: its commands parse, its links and paths exist, its Python uses real names."""

from __future__ import annotations

import ast
import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:mllm|uniresxx|train|eval|chat_demo|tests|tools|docs)/[\w./-]*)`")
LAUNCHER_OPTIONS = {
    "torchrun": {
        "--nproc_per_node",
        "--nnodes",
        "--node_rank",
        "--master_addr",
        "--master_port",
        "--rdzv_endpoint",
    },
    "deepspeed": {"--num_gpus", "--num_nodes", "--hostfile", "--master_addr", "--master_port"},
}
OTHER_PROGRAMS = ("bash", "source", "git", "cd", "curl", "docker", "{", "printf", "base64")
SUBMITTED = {"sbatch": 1, "kubectl": 3}  # where the file stands; tests/test_launch.py reads it


def fenced(page: Path, *languages: str) -> Iterator[str]:
    """The fenced blocks of a page in one of the languages."""
    for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
        if language in languages:
            yield text


def commands_of(page: Path) -> list[list[str]]:
    """Every command line of the page's shell blocks, as words; comments and prompts dropped."""
    lines = "\n".join(fenced(page, "bash", "sh", "console")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [line for line in words if line]


COMMANDS = sorted({tuple(words) for page in PAGES for words in commands_of(page)})


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", text, re.M))


def help_of(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What `python -m MODULE WORDS --help` prints, run inside this process."""
    monkeypatch.setattr(sys, "argv", [module, *words, "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert stop.value.code in (0, None), f"{module} {words}: {err.getvalue()}"
    return out.getvalue()


def check_program(module: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The program has the subcommand, and its help names every option of the command."""
    first = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
    shown = help_of(module, words[:first], monkeypatch).replace("_", "-")
    options = [word.split("=")[0].replace("_", "-") for word in words if word.startswith("--")]
    assert [option for option in options if option not in shown] == []


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_is_accepted(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    match words:
        case ("make", *targets):
            assert {word for word in targets if "=" not in word} <= make_targets()
        case ("python", "-m", module, *rest):
            assert find_spec(module) is not None, f"no module {module}"
            check_program(module, rest, monkeypatch)
        case ("torchrun" | "deepspeed" as launcher, *rest):
            at = rest.index("-m" if launcher == "torchrun" else "--module")
            options = {word for word in rest[:at] if word.startswith("-")}
            assert options <= LAUNCHER_OPTIONS[launcher]
            check_program(rest[at + 1], rest[at + 2 :], monkeypatch)
        case ("uniresxx", *rest):
            check_program("uniresxx", rest, monkeypatch)
        case ("sbatch" | "kubectl" as program, *_):
            assert (ROOT / words[SUBMITTED[program]]).is_file()
        case ("bash", script, *_):
            assert (ROOT / script).is_file()
        case (program, *_):
            assert program in OTHER_PROGRAMS, f"nothing checks {program!r}"


@pytest.mark.parametrize(
    "words", [words for words in COMMANDS if words[:2] == ("uniresxx", "data")], ids=" ".join
)
def test_a_data_command_parses_with_its_values(words: tuple[str, ...]) -> None:
    """By the very parsers of the command; the data set and the split are real, or a store's folder."""
    from uniresxx.cli.data import dump, export_scenes, inspect, prepare, prepare_own, propose, verify
    from uniresxx.data.catalog import known_benchmarks

    action, *rest = words[2:]
    parsers = {
        "prepare": prepare, "verify": verify, "inspect": inspect, "dump": dump, "propose": propose,
        "export-scenes": export_scenes,
    }  # fmt: skip
    if rest[0] == prepare_own.NAME:
        own = prepare_own.parse(rest[1:])
        assert own.name and own.licence and own.out.parts[0] == "stores"
        return
    if action == "export-scenes":
        assert export_scenes.parse(rest).out.parts[0] in ("runs", "pictures")
        return
    found = parsers[action].parse(rest)
    name = "" if action in ("verify", "propose") else found.name
    known = known_benchmarks()
    if not name.startswith("stores/") and name:
        assert name in known or name in {item.partition("/")[0] for item in known}
    if action == "prepare":
        assert found.data is not None and found.out.parts[0] == "stores"


def test_training_commands_parse_with_their_values() -> None:
    """By the parser of the program; values that mean nothing are refused there."""
    from train.command_line import parse
    from train.recipes import KNOWN

    found = [words[3:] for words in COMMANDS if words[:3] == ("python", "-m", "train")]
    for words in found:
        if words[0] in KNOWN:
            assert parse(list(words), KNOWN).recipe.name == words[0]
    pyramid = next(parse(list(words), KNOWN).recipe for words in found if "pyramid" in words)
    assert pyramid.optim.lr_scale == (("mllm.high", 0.1),) and pyramid.model.tuning.frozen == ("low",)


def test_every_native_data_set_has_its_command() -> None:
    from uniresxx.data.readers.refcoco import REFCOCO

    names = {words[3].partition("/")[0] for words in COMMANDS if words[:3] == ("uniresxx", "data", "prepare")}
    assert {*REFCOCO, "grefcoco", "refcocom", "composed_parts", "paco", "mres32m", "gseval"} <= names
    starts = {name.partition("_")[0] for name in names}
    assert {"cris", "psalm", "jxu124", "lmms"} <= starts


def test_the_counts_of_the_data_page_are_those_inspect_compares_with() -> None:
    from uniresxx.data.published_counts import PUBLISHED

    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    table = text.split("## Counts to expect")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line[:1] == "|"
    ]
    shown = {(row[0], row[1]): row[2:] for row in rows[2:]}
    unread = ("arefcoco",)  # sets without a reader
    published = {
        (count.dataset, count.split): [
            "-" if (number := getattr(count, field)) is None
            else f"{number:,}" + " *recalled*" * (field in count.recalled)
            for field in ("images", "refs", "sentences")
        ]
        for count in PUBLISHED
        if count.dataset not in unread and (count.dataset, count.split) != ("grefcoco", "all")
    }  # fmt: skip
    assert shown == published
    for number in ("278,232", "259,859", "104,560", "70,000"):  # notes of the same file
        assert number in table and any(
            number in count.note or count.sentences == int(number.replace(",", "")) for count in PUBLISHED
        )


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_demo_runs_commands_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["make", "--no-print-directory", "-n", "demo", "VENV=venv", "RUN=runs/x"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    ours = [line for line in shown.splitlines() if re.match(r"venv/bin/python -m (train|eval)", line)]
    programs = [shlex.split(line)[2:] for line in ours]
    assert [words[0] for words in programs] == ["train", "eval", "eval"]
    assert all("runs/x" in words for words in programs)
    for module, *words in programs:
        check_program(module, words, monkeypatch)


def test_commands_were_found() -> None:
    heads = {words[0] for words in COMMANDS}
    assert {"make", "python", "uniresxx"} <= heads and len(COMMANDS) >= 12


def slug(heading: str) -> str:
    """The anchor a heading gets on common forges."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    prose = FENCE.sub("", text)
    missing = []
    for target in LINK.findall(prose):
        if "://" in target or target.startswith("mailto:"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists():
            missing.append(target)
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)
            missing += [target] if anchor not in map(slug, headings) else []
    missing += [name for name in PATH.findall(prose) if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_use_real_names(page: Path) -> None:
    import uniresxx

    for block in fenced(page, "python"):
        tree = ast.parse(block)
        names = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "uniresxx"
            for alias in node.names
        }
        assert names <= set(uniresxx.__all__)
        used = set(re.findall(r"\b(?:p|P)redictor\.(\w+)\(", block))
        assert used <= set(dir(uniresxx.Predictor)) if used else True


def test_every_page_is_reachable_from_the_readme() -> None:
    linked = set(LINK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    pages = {page.relative_to(ROOT).as_posix() for page in PAGES} - {"README.md"}
    assert pages <= linked


def test_versions_agree() -> None:
    import uniresxx

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert project["version"] == uniresxx.__version__
    assert f"\nversion: {uniresxx.__version__}\n" in citation
    assert f"## {uniresxx.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_architecture_page_names_every_package() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = [path.parent for path in ROOT.glob("[!u]*/__init__.py")] + [
        path.parent for path in (ROOT / "uniresxx").glob("*/__init__.py")
    ]
    names = [f"`{path.relative_to(ROOT).as_posix()}/`" for path in folders]
    assert len(names) > 10 and [name for name in names if name not in page] == []
