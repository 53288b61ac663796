"""`uniresxx doctor [--json]`

Says whether this machine has what the project needs: Python, packages, memory, disk, which device `--device auto`
takes, which attention it computes with, whether a model comes with the installation, and what is missing for which
command. A `note` is no problem: it names what a command would need in addition.

Exit codes: 0 nothing is wrong; 1 something is, see the lines that begin with `problem`.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from typing import Literal

from uniresxx.cli import OneLineParser, parser_for
from uniresxx.errors import InputError

# extras of our metadata -> the command, or the option of one, that needs them
USED_BY = {
    "train": "train and eval",
    "engine": "train by DeepSpeed",
    "serve": "serve",
    "quant": "--quantization",
    "onnx": "export to ONNX",
    "cris": "LMDB of CRIS",
    "completion": "completion",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `problem` is what makes the command fail."""

    topic: str
    state: Literal["ok", "note", "problem"]
    detail: str


def version_of(package: str) -> str | None:
    """Installed version of a distribution, or None; imports nothing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_requirement(line: str) -> Finding:
    """Compare one requirement of our metadata ("numpy<3,>=1.26") with what is installed."""
    from packaging.requirements import Requirement  # comes with transformers

    wanted = Requirement(line)
    found = version_of(wanted.name)
    if found is None:
        return Finding(wanted.name, "problem", f"not installed, needs {wanted.specifier}: run `make setup`")
    if not wanted.specifier.contains(found, prereleases=True):
        return Finding(wanted.name, "problem", f"{found} is outside {wanted.specifier}: run `make setup`")
    return Finding(wanted.name, "ok", found)


def check_packages() -> list[Finding]:
    """Our own installation and everything it requires, without the extras."""
    try:
        wanted = metadata.requires("uniresxx") or []
    except metadata.PackageNotFoundError:
        return [Finding("uniresxx", "problem", "not installed in this Python: run `make setup`")]
    core = [line for line in wanted if "extra ==" not in line]
    return [Finding("uniresxx", "ok", metadata.version("uniresxx")), *map(check_requirement, core)]


def check_extras() -> list[Finding]:
    """What is missing for which command: the requirements of each extra that are not met."""
    from packaging.requirements import Requirement

    if version_of("uniresxx") is None:
        return []
    missing: dict[str, list[str]] = {extra: [] for extra in USED_BY}
    for line in metadata.requires("uniresxx") or []:
        wanted = Requirement(line)
        plain = f"{wanted.name}{wanted.specifier}"
        if wanted.marker is not None and "extra ==" in line and check_requirement(plain).state == "problem":
            for extra in USED_BY:
                missing[extra] += [wanted.name] if wanted.marker.evaluate({"extra": extra}) else []
    return [_extra(extra, names) for extra, names in missing.items()]


def _extra(extra: str, missing: list[str]) -> Finding:
    what = USED_BY[extra]
    if missing:
        detail = f"needs {', '.join(missing)}: run `pip install 'uniresxx[{extra}]'`"
        return Finding(what, "note", detail)
    return Finding(what, "ok", "has what it needs")


def check_photos() -> list[Finding]:
    """Kinds of pictures that depend on how Pillow was installed."""
    from PIL import features

    from uniresxx.imaging.formats import HEIF_PLUGIN

    heic = find_spec(HEIF_PLUGIN) is not None
    return [
        Finding("HEIC photos", "ok", "read") if heic
        else Finding("HEIC photos", "note", "not read: run `pip install pillow-heif`"),
        Finding("AVIF photos", "ok", "read") if features.check("avif")
        else Finding("AVIF photos", "note", "not read: this Pillow was built without AVIF"),
    ]  # fmt: skip


def check_model() -> list[Finding]:
    """The model that answers where --checkpoint is left out."""
    from uniresxx.checkpoints.resolve import model_name, shipped

    try:
        shipped()
    except InputError as error:
        return [Finding("model", "note", str(error))]
    return [Finding("model", "ok", model_name(None))]


def check_torchvision() -> list[Finding]:
    """A torchvision of another build than torch breaks transformers' image classes at import."""
    torch, vision = version_of("torch"), version_of("torchvision")
    if torch is None or vision is None:
        return []
    builds = [(re.findall(r"\+(\w+)", version) or ["default"])[0] for version in (torch, vision)]
    if builds[0] != builds[1]:
        detail = f"built for {builds[1]}, torch for {builds[0]}: run `pip uninstall torchvision`"
        return [Finding("torchvision", "problem", detail)]
    return [Finding("torchvision", "note", f"{vision}; not needed here")]


def check_devices() -> list[Finding]:
    """What torch can compute on, and what `--device auto` takes of it."""
    if version_of("torch") is None:
        return []
    import torch

    from uniresxx.model.placement import device_of

    rows = [Finding("threads", "ok", f"torch uses {torch.get_num_threads()}")]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        info = torch.cuda.get_device_properties(index)
        native = torch.cuda.get_device_capability(index) >= (8, 0) or torch.version.hip is not None
        dtypes = "float32, bfloat16" if native else "float32; bfloat16 is emulated and slow"
        memory = " of ".join(f"{number / 2**30:.0f}" for number in torch.cuda.mem_get_info(index))
        rows.append(Finding(f"cuda:{index}", "ok", f"{info.name}, {memory} GiB free; {dtypes}"))
    if torch.backends.mps.is_available():
        memory = f"{torch.mps.recommended_max_memory() / 2**30:.0f} GiB"
        rows.append(Finding("mps", "ok", f"Apple GPU, {memory}; float32, bfloat16 from macOS 14 on"))
    if len(rows) > 1:
        rows.append(Finding("device", "ok", f"--device auto takes {device_of('auto')}"))
    else:
        detail = "no GPU seen: --device auto takes cpu; float32, bfloat16 (slow on most CPUs)"
        rows.append(Finding("device", "note", detail))
    flash = torch.cuda.is_available() and version_of("flash-attn") is not None
    can = "sdpa, eager, flex_attention" + (", flash_attention_2" if flash else "")
    rows.append(Finding("attention", "ok", f"as in the checkpoint, or --attention {can}"))
    return rows


def check_machine() -> list[Finding]:
    """Python, processor, memory and disk."""
    rows = [
        Finding("python", "ok", platform.python_version()),
        Finding("machine", "ok", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"),
    ]
    if "SC_PHYS_PAGES" in os.sysconf_names:
        gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        rows.append(Finding("memory", "ok" if gib >= 4 else "note", f"{gib:.0f} GiB"))
    free = shutil.disk_usage(".").free / 2**30
    rows.append(Finding("disk", "ok" if free >= 1 else "problem", f"{free:.0f} GiB free in this folder"))
    return rows


def parser() -> OneLineParser:
    """The parser of the command."""
    made = parser_for("uniresxx doctor", __doc__)
    made.add_argument("--json", action="store_true", help="one JSON list instead of lines")
    return made


def main(argv: Sequence[str]) -> int:
    """Print the report; 0 where nothing is wrong, else 1."""
    options = parser().parse_args(argv)
    findings = [
        *check_machine(), *check_packages(), *check_torchvision(), *check_devices(), *check_model(), *check_extras(),
        *check_photos(),
    ]  # fmt: skip
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        wide = max(len(finding.topic) for finding in findings)
        for finding in findings:
            print(f"{finding.state:<8} {finding.topic:<{wide}} {finding.detail}")
    return 1 if any(finding.state == "problem" for finding in findings) else 0
