"""CPU memory: tensors written one by one, each process its files, weights mapped, and what `plan` says of it."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import weakref
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mllm.tokens import Vocabulary
from tests.test_model import CONFIG
from tests.test_tuning import LORA
from train.host_memory import host_memory
from train.plan import plan
from train.recipe import EngineConfig, LogConfig, Recipe
from uniresxx.checkpoints import folders as checkpoint
from uniresxx.checkpoints import shards
from uniresxx.checkpoints.publish import write_file
from uniresxx.checkpoints.saveable import Snapshot
from uniresxx.checkpoints.shards import copied, shards_of, write_shards
from uniresxx.checkpoints.tensors import LazyTensor, write_tensors
from uniresxx.model.config import UniRESPlusPlusConfig, WeightsConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.templates import TRAINING_TEMPLATES
from uniresxx.model.tuning import cast_frozen

ROOT = Path(__file__).resolve().parents[1]
DTYPES = [
    "uint64",
    "int64",
    "float64",
    "complex64",
    "float32",
    "uint32",
    "int32",
    "bfloat16",
    "float16",
    "uint16",
    "int16",
    "float8_e4m3fn",
    "float8_e5m2",
    "int8",
    "uint8",
    "bool",
]


# ---- one tensor at a time


def test_a_file_is_byte_for_byte_what_safetensors_writes(tmp_path: Path) -> None:
    tensors = {
        f"{name}.{dtype}": torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
        for dtype in DTYPES
        for name in ("b", "a", "é")
    }
    tensors |= {"one": torch.tensor(3.0), "none": torch.zeros(0, 3)}
    save_file(tensors, tmp_path / "theirs")
    write_tensors(tmp_path / "ours", tensors)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


class Alive:
    """Lazy tensors that count how many values exist at once, and in which order they were read."""

    def __init__(self, count: int = 6, rows: int = 10) -> None:
        self.now = self.most = 0
        self.read: list[str] = []
        self.tensors = {
            f"layer_{i}": LazyTensor(torch.float32, (rows, i + 1), self._reader(i, rows))
            for i in range(count)
        }

    def _reader(self, i: int, rows: int):
        def read() -> torch.Tensor:
            value = torch.full((rows, i + 1), float(i))
            self.now += 1
            self.most = max(self.most, self.now)
            self.read.append(f"layer_{i}")
            weakref.finalize(value, self._gone)
            return value

        return read

    def _gone(self) -> None:
        self.now -= 1


def test_a_save_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    alive = Alive()
    write_tensors(tmp_path / "x", alive.tensors)
    assert alive.most == 1 and alive.now == 0
    found = load_file(tmp_path / "x")
    assert all(torch.equal(found[f"layer_{i}"], torch.full((10, i + 1), float(i))) for i in range(6))


def test_large_models_are_cut_into_files_with_an_index(tmp_path: Path) -> None:
    alive = Alive()  # 40, 80, …, 240 bytes
    files = shards_of(alive.tensors, 200, "model")
    assert [sum(lazy.nbytes for lazy in file.values()) for file in files.values()] == [
        120,
        120,
        160,
        200,
        240,
    ]
    one = shards_of(alive.tensors, 10**9, "model")
    assert list(one) == ["model.safetensors"] and list(one["model.safetensors"]) == list(alive.tensors)

    class Config:
        def to_dict(self) -> dict:
            return {"model_type": "uniresxx"}

    checkpoint.save_pretrained(tmp_path, Snapshot(Config(), None, alive.tensors), 200)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 840}
    assert set(index["weight_map"]) == set(alive.tensors)
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / file)


# ---- several processes


@dataclass(frozen=True)
class Process:
    """One of several that write into the same folder, one after the other."""

    rank: int
    world_size: int


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_each_process_writes_its_own_files_and_reads_what_all_read(tmp_path: Path, world_size: int) -> None:
    """Where a read needs all processes, another order or number of reads on one of them would hang the others."""
    orders, written = [], []
    for rank in range(world_size):
        alive = Alive()
        files = shards_of(alive.tensors, 200, "model")
        written.append(write_shards(tmp_path, files, Process(rank, world_size), write_file))
        orders.append(alive.read)
        assert alive.most == 1
    assert all(order == orders[0] for order in orders) and sorted(orders[0]) == sorted(alive.tensors)
    names = [name for found in written for name in found]
    assert sorted(names) == sorted(files) and sum(map(bool, written)) == min(world_size, len(files))
    assert {name for file in files for name in load_file(tmp_path / file)} == set(alive.tensors)


def test_a_process_with_a_full_disk_reads_on(tmp_path: Path) -> None:
    alive, tries = Alive(), []

    def full(path: Path, content) -> None:
        tries.append(path.name)
        if len(tries) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write_file(path, content)

    with pytest.raises(OSError, match="No space left"):
        write_shards(tmp_path, shards_of(alive.tensors, 200, "model"), Process(0, 2), full)
    assert len(tries) == 2 and alive.read == [*alive.tensors]


def test_a_background_save_copies_only_what_its_process_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "LEAST_BYTES", 200)
    weights, moments = Alive(), Alive()
    optimizer = {f"{name}/exp_avg": lazy for name, lazy in moments.tensors.items()}
    kept: dict[str, int] = {}
    for rank in range(2):
        found = copied(weights.tensors, optimizer, Process(rank, 2))
        for tensors in found:
            for name, lazy in tensors.items():
                if lazy.read().numel():
                    kept[name] = kept.get(name, 0) + 1
    assert kept == dict.fromkeys([*weights.tensors, *optimizer], 1)
    assert weights.now == moments.now == 0


# ---- measured


def child(code: str, *words: object) -> dict:
    """The JSON object that a process of its own prints last."""
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict = json.loads(run.stdout.splitlines()[-1])
    return found


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads the memory of a process from /proc"
)
SAVE = """
import json, sys, torch
from pathlib import Path
from uniresxx.checkpoints.folders import save
from uniresxx.checkpoints.saveable import Snapshot

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))

class Config:
    def to_dict(self):
        return {"model_type": "uniresxx"}

run, size = Path(sys.argv[1]), int(sys.argv[2])
save(run / "warm", 1, Snapshot(Config(), None, {"a": torch.ones(3)}), {"b": torch.ones(3)}, {}, {})
before = peak()
weights = {f"layer_{i}": torch.empty(size // 64).uniform_() for i in range(16)}
save(run, 1, Snapshot(Config(), None, weights), {"step": torch.ones(())}, {}, {})
print(json.dumps({"ratio": (peak() - before) / size}))
"""


@needs_proc
@pytest.mark.parametrize("size", [2 * 10**8, pytest.param(10**9, marks=pytest.mark.slow)])
def test_a_random_model_saves_within_a_third_more_than_its_size(tmp_path: Path, size: int) -> None:
    assert child(SAVE, tmp_path, size)["ratio"] < 1.3


WIDE = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 12, "num_attention_heads": 8}
WIDE |= {"num_key_value_heads": 8}


def large() -> UniRESPlusPlusConfig:
    """A model of 300 MB, most of it a frozen language model in bf16."""
    mllm = replace(CONFIG.mllm, llm=CONFIG.mllm.llm | WIDE)
    return replace(CONFIG, mllm=mllm, tuning=replace(LORA, frozen_dtype="bf16"))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "model"
    vocabulary = Vocabulary.train([*TRAINING_TEMPLATES, "the red square"] * 3, 340)
    config = large()
    model = UniRESPlusPlusModel(config, vocabulary, from_files=["llm"])
    cast_frozen(model, config.tuning)
    checkpoint.save_pretrained(folder, model)
    return folder


MEASURE = """
import json, sys, threading, time, torch
from dataclasses import replace
from pathlib import Path
import train.assemble, train.loop, peft  # libraries of a run
from uniresxx.checkpoints.tensors import read_json
from uniresxx.model.build import build_for_training, open_vocabulary
from uniresxx.model.config import UniRESPlusPlusConfig, WeightsConfig

torch.set_num_threads(1)
start = sys.argv[1]
config = UniRESPlusPlusConfig.from_dict(read_json(Path(start) / "config.json"))
config = replace(config, weights=WeightsConfig(start=start))

def memory(name):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))

most, done = [0], threading.Event()
def watch():
    while not done.is_set():
        most[0] = max(most[0], memory("RssAnon"))
        time.sleep(0.002)

def watched(function):
    before = most[0] = memory("RssAnon")
    thread = threading.Thread(target=watch)
    thread.start()
    found = function()
    done.set()
    thread.join()
    return found, most[0] - before

def build():
    return build_for_training(config, open_vocabulary(config, []), lambda line: None)
"""
START = (
    MEASURE
    + """
model, own = watched(build)
weights = sum(p.nbytes for p in model.parameters())
read = sum(float(p.detach().float().abs().sum()) for p in model.parameters() if p.numel() < 2**22)
print(json.dumps({"own": own / weights, "weights": weights}))
"""
)
MERGE = (
    MEASURE
    + """
from uniresxx.hub.export import export
export(Path(start), Path(sys.argv[2]) / "copy", shard_bytes=10**8)  # what the libraries need
_, own = watched(lambda: export(Path(start), Path(sys.argv[2]) / "out", merge=True))
print(json.dumps({"own": own}))
"""
)


@needs_proc
def test_a_start_takes_no_private_copy_of_frozen_weights(start: Path) -> None:
    found = child(START, start)
    assert found["weights"] > 1.5e8 and found["own"] < 0.5, found


@needs_proc
def test_a_merge_keeps_the_dtype_and_holds_one_tensor(start: Path, tmp_path: Path) -> None:
    stored = (start / "model.safetensors").stat().st_size
    assert child(MERGE, start, tmp_path)["own"] < 0.35 * stored
    assert (tmp_path / "out/model.safetensors").stat().st_size < 1.02 * stored
    before, after = load_file(start / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    name = "mllm.llm.model.layers.3.self_attn.q_proj.weight"
    assert after[name].dtype == before[name.replace(".weight", ".base_layer.weight")].dtype == torch.bfloat16


PLANNED = (
    MEASURE
    + """
from train.engines.base import Engine
from train.recipe import EngineConfig, Recipe
from uniresxx.checkpoints.folders import save
from uniresxx.checkpoints.saveable import Snapshot
from uniresxx.hub.export import export

if sys.argv[3] == "export":
    export(Path(start), Path(sys.argv[2]) / "merged", merge=True)
else:
    model = build()
    read = sum(float(p.detach().abs().max()) for p in model.parameters())  # as a step does
if sys.argv[3] == "save":
    engine = Engine(model, Recipe("x", config, engine=EngineConfig(device="cpu", threads=1)))
    engine.update(0, 0.0, lambda norm: True)
    snapshot = Snapshot(model.config, model.tokenizer, engine.weights())
    save(Path(sys.argv[2]), 1, snapshot, engine.tensors(), {}, {})
print(json.dumps({"peak": memory("VmHWM")}))
"""
)


def recipe_on_cpu(config: UniRESPlusPlusConfig) -> Recipe:
    return Recipe("x", config, engine=EngineConfig(device="cpu", threads=1, precision="bf16"))


@needs_proc
@pytest.mark.parametrize("what", ["start", "save", "export"])
def test_the_planned_cpu_memory_is_that_measured(start: Path, tmp_path: Path, what: str) -> None:
    config = replace(large(), weights=WeightsConfig(start=str(start)))
    found = plan(recipe_on_cpu(config))
    planned = {"start": found.host_start, "save": found.host_save, "export": found.host_export}[what]
    assert planned == pytest.approx(child(PLANNED, start, tmp_path, what)["peak"], rel=0.25)


def test_processes_of_a_machine_share_what_is_mapped() -> None:
    recipe = recipe_on_cpu(large())
    found = host_memory(recipe, 10**7, 10**9, 10**6, 0, 8)
    own = found.start - 10**9
    assert found.machine_start == 8 * own + 10**9
    assert found.save - found.start == 2 * 4 * 10**7  # the moments
    background = host_memory(replace(recipe, log=LogConfig(save_async=True)), 10**7, 10**9, 10**6, 0, 8)
    assert background.save - found.save == (10**9 + 3 * 4 * 10**7) // 8
    gpu = replace(recipe, engine=EngineConfig())
    on_gpu, offloaded = (host_memory(gpu, 10**9, 10**10, 10**8, moved, 8) for moved in (0, 7 * 10**9))
    assert on_gpu.start < 10**10 and offloaded.save - on_gpu.save == 7 * 10**9


def test_a_file_may_be_written_over_the_one_that_its_tensors_are_mapped_from(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    values = torch.arange(100_000, dtype=torch.float32)
    write_tensors(path, {"a": values})
    with safe_open(path, framework="pt") as file:
        mapped = file.get_tensor("a")
    write_tensors(path, {"a": mapped})
    assert torch.equal(load_file(path)["a"], values) and torch.equal(mapped, values)

    def refuse() -> torch.Tensor:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_tensors(path, {"a": LazyTensor(torch.float32, (1,), refuse)})
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and torch.equal(load_file(path)["a"], values)
