"""Record what the public code of a peer gives on made cases: `tests/data/protocols/*.json`.

    python tools/record_protocols.py lisa LISA
    python tools/record_protocols.py gsva GSVA
    python tools/record_protocols.py cris CRIS
    python tools/record_protocols.py rela RELA DETECTRON2 FVCORE

Each capital word is a git checkout of the public repository. The peer's own loader and evaluation loop run here, on
the CPU and without a network. Packages that they import but do not need for counting are mocks, and the network hands
out the masks of the cases as logits. Each file names the repository, its commit and the functions that ran.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
import torch.distributed as dist
from protocol_cases import SEED, cases_of
from protocol_peers import PEERS, Record

OUT = Path(__file__).resolve().parents[1] / "tests" / "data" / "protocols"
MOCKED = (
    *("accelerate", "bleach", "cv2", "deepspeed", "detectron2", "ftfy", "fvcore", "imageio", "iopath"),
    *("loguru", "matplotlib", "model", "peft", "regex", "skimage", "termcolor", "torchvision", "tqdm"),
    *("transformers", "wandb"),
)


class MockedPackages:
    """Import hook: every module of these packages is a mock."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The spec of a mock, or None."""
        mocked = name.split(".")[0] in self.packages
        return ModuleSpec(name, self, is_package=True) if mocked else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> Any:
        """A module in which every name is a mock."""
        return MagicMock(name=spec.name)

    def exec_module(self, module: Any) -> None:
        """Nothing to run."""


def use(roots: Sequence[Path], real: Sequence[str]) -> None:
    """From here on, imports find the checkouts first, then mocks; torch counts as it does on a GPU."""
    packages = [name for name in MOCKED if name not in real]
    for name in [name for name in sys.modules if name.split(".")[0] in packages]:
        del sys.modules[name]
    sys.meta_path.insert(0, MockedPackages(packages))
    sys.path[:0] = map(str, roots)
    sys.modules["torch.utils.tensorboard"] = MagicMock()
    of_floats = torch.histc  # the CPU kernel takes floats only, a GPU whole numbers too
    torch.histc = lambda values, **bins: of_floats(values.float(), **bins).to(values.dtype)
    torch.Tensor.cuda = lambda self, *a, **k: self  # type: ignore[method-assign]


def write(name: str, content: Record) -> None:
    """Compact JSON with one case per line; floats keep all their digits."""
    head = {key: value for key, value in content.items() if key != "cases"}
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in content["cases"])
    text = json.dumps(head, indent=1).removesuffix("\n}") + ',\n "cases": [\n' + lines + "\n]}\n"
    assert json.loads(text)["cases"] == content["cases"]
    (OUT / f"{name}.json").write_text(text)


def main() -> None:
    """Run one peer and write its files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("checkouts", nargs="+", type=lambda text: Path(text).resolve())
    args = parser.parse_args()
    cases = cases_of(SEED)
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        use(args.checkouts, real=["fvcore"] if args.peer == "rela" else [])
        for name, content in PEERS[args.peer](cases, *args.checkouts).items():
            write(name, {"protocol": name, **content})
            print(name, json.dumps(content["aggregate"]))
        dist.destroy_process_group()
    write("cases", {"seed": SEED, "cases": cases})


if __name__ == "__main__":
    main()
