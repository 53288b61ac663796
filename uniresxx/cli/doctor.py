"""`uniresxx doctor`: does this machine have what the project needs? Exit 1 where it does not."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Literal

from uniresxx.cli import OneLineParser


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
        attention = "flash_attention_2" if version_of("flash-attn") else "sdpa"
        rows.append(Finding("attention", "ok", attention))
    else:
        detail = "no GPU seen: --device auto takes cpu; float32, bfloat16 (slow on most CPUs)"
        rows.append(Finding("device", "note", detail))
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


def main(argv: Sequence[str]) -> int:
    """Print the report; 0 where nothing is wrong, else 1."""
    parser = OneLineParser(prog="uniresxx doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON list instead of lines")
    options = parser.parse_args(argv)
    findings = [*check_machine(), *check_packages(), *check_torchvision(), *check_devices()]
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{finding.state:<8} {finding.topic:<14} {finding.detail}")
    return 1 if any(finding.state == "problem" for finding in findings) else 0
