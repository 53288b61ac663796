"""The written rules that no linter knows: `python tools/check_rules.py` lists what breaks them and exits 1.

Files of at most 350 lines, tests excepted; functions of at most 100 lines, nine in ten of at most 45; at least 97 %
of arguments annotated; no bare except, no star import; `from __future__ import annotations` first; no
file over the size cap; no path of one machine.
"""

from __future__ import annotations

import ast
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MAX_FILE_LINES = 350
MAX_LINES = 100
P90_LINES = 45
MIN_ANNOTATED = 0.97
MAX_BYTES = 1_000_000
LARGER = {Path("uniresxx/assets/tiny/model.safetensors"): 8_000_000}  # the model that comes with the package
# absolute paths that exist on one machine only; "../shared" and URLs are not meant
MACHINE_PATH = re.compile(r"(?<![\w./:~-])/(?:work|root|tmp|home/\w+|Users/\w+)/[\w.]")


@dataclass(slots=True)
class Tally:
    """What was found over all files."""

    problems: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)  # lines per function, tests excluded
    annotated: int = 0
    arguments: int = 0


def project_files(root: Path) -> list[Path]:
    """Tracked files and new ones that git does not ignore, as paths relative to the root."""
    command = [
        "git",
        "-c",
        "safe.directory=*",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return sorted(Path(name) for name in listed.split("\0") if name and (root / name).is_file())


def arguments_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.arg]:
    """All arguments but self and cls."""
    spec = function.args
    named = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *filter(None, (spec.vararg, spec.kwarg))]
    return (argument for argument in named if argument.arg not in ("self", "cls"))


def check_source(name: str, source: str, is_test: bool, tally: Tally) -> None:
    """Check one Python file; findings go into the tally."""
    tree = ast.parse(source, name)
    docstring_only = len(tree.body) == 1 and ast.get_docstring(tree) is not None
    if tree.body and not docstring_only and "from __future__ import annotations" not in source:
        tally.problems.append(f"{name}:1: no `from __future__ import annotations`")
    lines = source.count("\n")
    if lines > MAX_FILE_LINES and not is_test:
        tally.problems.append(f"{name}: {lines} lines (at most {MAX_FILE_LINES}): split it")
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            tally.problems.append(f"{name}:{node.lineno}: bare except")
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            tally.problems.append(f"{name}:{node.lineno}: star import")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            check_function(name, node, is_test, tally)


def check_function(
    name: str, function: ast.FunctionDef | ast.AsyncFunctionDef, is_test: bool, tally: Tally
) -> None:
    """Length for all; annotations and the 90th percentile for what is not a test."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if lines > MAX_LINES:
        tally.problems.append(
            f"{name}:{function.lineno}: {function.name} has {lines} lines (at most {MAX_LINES})"
        )
    if is_test:
        return
    tally.lengths.append(lines)
    for argument in arguments_of(function):
        tally.arguments += 1
        tally.annotated += argument.annotation is not None


def check_totals(tally: Tally) -> None:
    """The rules about the whole project."""
    p90 = sorted(tally.lengths)[math.ceil(0.9 * len(tally.lengths)) - 1] if tally.lengths else 0
    if p90 > P90_LINES:
        tally.problems.append(f"one function in ten has more than {p90 - 1} lines (at most {P90_LINES})")
    if tally.annotated < MIN_ANNOTATED * tally.arguments:
        share = 100 * tally.annotated / tally.arguments
        tally.problems.append(f"{share:.1f} % of arguments annotated (at least {100 * MIN_ANNOTATED:.0f} %)")


def check_file(root: Path, path: Path, tally: Tally) -> None:
    """Size, machine paths and, for Python, the code rules."""
    size = (root / path).stat().st_size
    most = LARGER.get(path, MAX_BYTES)
    if size > most:
        tally.problems.append(f"{path}: {size} bytes (at most {most})")
        return
    try:
        text = (root / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return  # a picture
    for number, line in enumerate(text.splitlines(), 1):
        if MACHINE_PATH.search(line):
            tally.problems.append(f"{path}:{number}: a path of one machine")
    if path.suffix == ".py":
        check_source(str(path), text, path.parts[0] == "tests", tally)


def check(root: Path) -> Tally:
    """All rules over the project at `root`."""
    tally = Tally()
    for path in project_files(root):
        check_file(root, path, tally)
    check_totals(tally)
    return tally


def main() -> int:
    """Print the findings; 1 where there are any."""
    tally = check(Path(__file__).resolve().parents[1])
    for problem in tally.problems:
        print(problem)
    longest = max(tally.lengths, default=0)
    print(
        f"{len(tally.lengths)} functions, longest {longest} lines, "
        f"{tally.annotated}/{tally.arguments} arguments annotated, {len(tally.problems)} problems"
    )
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
