"""`python -m tools.compare_curves RUN`: the losses of a run beside the committed curve of `tiny_scenes`.

RUN is a run folder or its log.jsonl; `python -m train tiny_scenes --optim.max_minutes None --engine.threads 1
--out RUN` makes one (without a time limit the learning rate is a pure function of the step; stop it after any step).
A run must pass two comparisons:

  * the first FIRST steps: the total loss of each is within FIRST_TOLERANCE of the reference. Another machine, number
    of threads or version of torch changes only the rounding, which is still small; another order of data, another
    initialisation or another loss shows at once.
  * all steps: the mean of each BLOCK steps, of the total and of every loss term, is within BAND of the reference, or
    within FLOOR for terms near zero. Rounding has grown by then; what is learned must not differ.

A last block of fewer than 2 FIRST steps is left out. Prints a line per comparison and a verdict. Exit codes: 0 the
run follows the reference, 1 it does not, 2 wrong input. `--write` makes the reference from RUN instead.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarks._common import RESULTS, machine
from train.log import FIXED, read_steps
from uniresxx.errors import InputError
from uniresxx.files import write_atomic

REFERENCE = RESULTS / "tiny_scenes_curve.csv"
FIRST, FIRST_TOLERANCE = 5, 0.01
BLOCK, BAND, FLOOR = 25, 0.25, 0.03
TOTAL = "loss"

Curve = dict[int, dict[str, float]]  # step -> "loss" and the terms


@dataclass(frozen=True)
class Finding:
    """One comparison."""

    what: str
    run: float
    reference: float
    allowed: float  # greatest difference

    @property
    def fits(self) -> bool:
        """Whether the difference is allowed; NaN never is."""
        return abs(self.run - self.reference) <= self.allowed

    def line(self) -> str:
        """A line of the output."""
        verdict = "fits   " if self.fits else "DIFFERS"
        return (
            f"{verdict} {self.what}: {self.run:.4f}, reference {self.reference:.4f}, "
            f"at most {self.allowed:.4f} apart"
        )


def read_run(path: Path) -> Curve:
    """Losses by step of a run folder or log.jsonl. Raises InputError."""
    log = path / "log.jsonl" if path.is_dir() else path
    if not log.is_file():
        raise InputError(f"{log} does not exist: give a run folder or its log.jsonl")
    nan = float("nan")
    curve: Curve = {}
    for record in read_steps(log):
        names = [TOTAL, *(key for key in record if key not in FIXED)]
        curve[record["step"]] = {name: nan if record[name] is None else float(record[name]) for name in names}
    if 1 not in curve:
        raise InputError(f"{log} has no first step: give the log of a run from its beginning")
    return curve


def read_reference(path: Path) -> Curve:
    """The committed curve; lines that begin with # say where it comes from."""
    if not path.is_file():
        raise InputError(f"{path} does not exist: give --reference FILE, or make it by --write")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {
        int(row["step"]): {name: float(value) for name, value in row.items() if name != "step"}
        for row in csv.DictReader(lines)
    }


def compare(run: Curve, reference: Curve) -> list[Finding]:
    """Compare the steps that both have. Raises InputError if there are none, or their loss terms differ."""
    shared = [step for step in sorted(reference) if step in run]
    if not shared or shared != list(range(1, len(shared) + 1)):
        raise InputError("the run lacks steps of the reference: give the log of a run from its beginning")
    names, found = list(reference[1]), list(run[1])
    if sorted(names) != sorted(found):
        raise InputError(f"the run has the losses {', '.join(found)}, the reference {', '.join(names)}")
    findings = [
        Finding(f"step {step} {TOTAL}", run[step][TOTAL], was, FIRST_TOLERANCE * abs(was))
        for step in shared[:FIRST]
        for was in [reference[step][TOTAL]]
    ]
    for start in range(0, len(shared), BLOCK):
        block = shared[start : start + BLOCK]
        if len(block) < min(BLOCK, 2 * FIRST):
            break
        for name in names:
            was, now = (fmean(curve[step][name] for step in block) for curve in (reference, run))
            findings.append(
                Finding(f"steps {block[0]}-{block[-1]} {name}", now, was, max(BAND * abs(was), FLOOR))
            )
    return findings


def write_reference(run: Curve, path: Path, steps: int) -> None:
    """The first `steps` steps as CSV under a line that says where they come from."""
    about: Mapping[str, str] = machine()
    names = list(run[1])
    text = io.StringIO(newline="")
    text.write(f"# tiny_scenes, losses by step; {json.dumps(about)}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", *names])
    for step in sorted(run)[:steps]:
        writer.writerow([step, *(f"{run[step][name]:.6g}" for name in names)])
    write_atomic(path, text.getvalue().encode())


def main(argv: Sequence[str] | None = None) -> int:
    """The program: returns the exit code."""
    options = argparse.ArgumentParser(
        prog="python -m tools.compare_curves", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    options.add_argument("run", type=Path, help="run folder or log.jsonl")
    options.add_argument("--reference", type=Path, default=REFERENCE)
    options.add_argument("--write", action="store_true", help="make the reference from RUN")
    options.add_argument("--steps", type=int, default=200, help="steps that --write keeps")
    words = options.parse_args(argv)
    try:
        run = read_run(words.run)
        if words.write:
            write_reference(run, words.reference, words.steps)
            print(f"written: {words.reference}")
            return 0
        findings = compare(run, read_reference(words.reference))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for finding in findings:
        print(finding.line())
    wrong = sum(not finding.fits for finding in findings)
    steps = min(len(run), len(read_reference(words.reference)))
    verdict = f"differs from the reference in {wrong} of" if wrong else "follows the reference in all"
    print(f"{words.run} {verdict} {len(findings)} comparisons over {steps} steps")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
