"""The files for clusters start what they say: torchrun's and our own parser read their commands."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from train.command_line import Command, parse
from train.recipe import share_of
from train.recipes import KNOWN

LAUNCH = Path(__file__).resolve().parents[1] / "docs" / "launch"
SLURM, KUBERNETES = LAUNCH / "slurm.sbatch", LAUNCH / "kubernetes.yaml"


def launched(words: list[str]) -> tuple[Command, int]:
    """What torchrun starts, and the number of its processes over all nodes."""
    options = get_args_parser().parse_args(words)
    assert options.module and options.training_script == "train"
    return parse(options.training_script_args, KNOWN), int(options.nnodes) * int(options.nproc_per_node)


def check_time_to_save(seconds: str, patience: int) -> None:
    """torchrun kills its processes so long after a signal; the cluster kills torchrun after `patience`."""
    assert 300 <= int(seconds) < patience


def check(words: list[str]) -> None:
    command, processes = launched(words)
    assert share_of(command.recipe.data, processes) >= 1
    assert command.recipe.engine.zero_stage == 2 and command.data is not None
    assert command.recipe.model.weights.start is not None


def test_the_slurm_file_is_shell_and_starts_the_recipe() -> None:
    subprocess.run(["bash", "-n", SLURM], check=True)
    stubs = (
        'srun() { printf "%s\\n" "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT" "$@"; }; '
        'scontrol() { printf "node1\\nnode2\\n"; }; source "$0"'
    )
    variables = {"SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]"}
    shown = subprocess.run(
        ["bash", "-c", stubs, str(SLURM)],
        env=variables | {"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, program, *words = shown.stdout.split()
    assert program == "torchrun" and "node1:29500" in words
    check(words)
    asked = dict(
        line.removeprefix("#SBATCH --").split("=", 1)
        for line in SLURM.read_text().splitlines()
        if line.startswith("#SBATCH") and "=" in line
    )
    check_time_to_save(seconds, int(asked["signal"].removeprefix("TERM@")))
    assert (asked["nodes"], asked["gpus-per-node"], asked["ntasks-per-node"]) == ("2", "8", "1")


def test_the_kubernetes_file_is_yaml_and_starts_the_recipe() -> None:
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all(KUBERNETES.read_text())
    assert (service["kind"], job["kind"], job["apiVersion"]) == ("Service", "Job", "batch/v1")
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"] and spec["completionMode"] == "Indexed"
    [container] = pod["containers"]
    assert container["command"] == ["torchrun"]
    words = [word.replace("$(JOB_COMPLETION_INDEX)", "1") for word in container["args"]]
    check(words)
    options = get_args_parser().parse_args(words)
    assert spec["completions"] == spec["parallelism"] == int(options.nnodes) == 2
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(options.nproc_per_node)
    variables = {item["name"]: item["value"] for item in container["env"]}
    check_time_to_save(variables["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"], pod["terminationGracePeriodSeconds"])
    assert options.master_addr == f"{name}-0.{service['metadata']['name']}"
    mounts, volumes = (
        {item["name"] for item in place} for place in (container["volumeMounts"], pod["volumes"])
    )
    assert mounts == volumes
