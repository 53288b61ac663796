r"""Fine-tune a checkpoint on your own classes: photos and one COCO file, as annotation tools export it.

python -m examples.finetune_own_classes --photos photos --annotations instances.json \
    --checkpoint runs/demo --out runs/mine

Every fifth photo is kept for measuring. All other words go to `python -m train finetune`, as `--optim.steps 200`.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

MEASURED = 5  # of so many photos, one is kept for measuring


def write_splits(annotations: Path, table: Path) -> None:
    """Write which photo is trained on and which is measured."""
    names = sorted(
        image["file_name"] for image in json.loads(annotations.read_text(encoding="utf-8"))["images"]
    )
    splits = [(name, "val" if place % MEASURED == 0 else "train") for place, name in enumerate(names)]
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("photo", "split"), *splits])


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare, fine-tune, measure; stops at the first program that fails and returns its exit code."""
    parser = argparse.ArgumentParser("python -m examples.finetune_own_classes", description=__doc__)
    parser.add_argument("--photos", required=True)
    parser.add_argument("--annotations", type=Path, required=True)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--name", default="mine", help="what reports call the data")
    parser.add_argument("--licence", default="own")
    parser.add_argument("--out", type=Path, required=True)
    options, training = parser.parse_known_args(argv)
    out, table = options.out, options.out / "splits.csv"
    store, run = str(out / "store"), str(out / "run")
    write_splits(options.annotations, table)
    given = ["--photos", options.photos, "--annotations", str(options.annotations), "--sentences", str(table)]
    about = ["--name", options.name, "--licence", options.licence]
    for command in (
        ["uniresxx", "data", "prepare", "own", *given, *about, "--out", store],
        ["train", "finetune", "--from", options.checkpoint, "--data", store, "--out", run, *training],
        ["eval", "run", "--checkpoint", run, "--benchmark", f"{store}/val", "--out", str(out / "scores")],
    ):
        code = subprocess.run([sys.executable, "-m", *command], check=False).returncode
        if code:
            return code
    print(f"scores: {out / 'scores' / 'metrics.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
