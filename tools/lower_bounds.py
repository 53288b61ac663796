"""Test the lowest version of every direct dependency that `pyproject.toml` allows.

    python tools/lower_bounds.py [--venv DIR] [--except torch] [pytest arguments]

The script creates a virtual environment in DIR (default: a temporary folder), installs the project and its
development tools at their lowest allowed versions, and runs the fast tests, or what the pytest arguments name.
A package named by `--except` is installed at the newest allowed version instead: torch 2.6 of the package index
is a GPU build of several GB.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)")


def lowest(pyproject: str, skipped: Sequence[str] = ()) -> dict[str, str]:
    """Package -> lowest version, over the dependencies and all extras; references to extras have none."""
    project = tomllib.loads(pyproject)["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    matches = [REQUIREMENT.match(text) for group in groups for text in group]
    return {found[1]: found[2] for found in matches if found is not None and found[1] not in skipped}


def test(folder: Path, skipped: Sequence[str], words: Sequence[str]) -> int:
    """Install into `folder`, run pytest there, return its exit code."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    constraints = folder / "constraints.txt"
    bounds = lowest((ROOT / "pyproject.toml").read_text(encoding="utf-8"), skipped)
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in bounds.items()))
    pip = [str(python), "-m", "pip"]
    install = [*pip, "install", "--progress-bar=off", f"--constraint={constraints}", "-e", f"{ROOT}[dev]"]
    subprocess.run(install, check=True)
    subprocess.run([*pip, "list"], check=True)
    tests = [str(python), "-m", "pytest", "-q", "-m", "not system and not slow and not interop", *words]
    return subprocess.run(tests, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False).returncode


def main() -> int:
    """The command; returns pytest's exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venv", type=Path, metavar="DIR", help="keep the environment in DIR")
    parser.add_argument("--except", dest="skipped", action="append", default=[], metavar="PACKAGE")
    args, words = parser.parse_known_args()
    if args.venv is not None:
        return test(args.venv.resolve(), args.skipped, words)
    with tempfile.TemporaryDirectory(prefix="lower-bounds-") as folder:
        return test(Path(folder), args.skipped, words)


if __name__ == "__main__":
    sys.exit(main())
