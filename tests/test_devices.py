"""Where a model computes: choosing a device, loading onto it, and no tensor left behind on the CPU.

No GPU is needed: `FakeGpu` makes tensors that say they are on MPS, compute on the CPU, and refuse to meet tensors of
the CPU, as those of a real GPU do.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from chat_demo.__main__ import main as chat
from eval.__main__ import main as evaluate
from mllm.chat_templates import ChatTemplate
from mllm.language import parameters_without_memory
from mllm.tokens import Vocabulary
from tests.test_boxes import CLIP_PIXELS, LEARNED, owlv2
from tests.test_film_unet import TOY
from tests.test_heads import SAM, SAM2
from tests.test_model import CONFIG, picture
from tests.test_tuning import LORA
from uniresxx import Predictor, load_segmenter
from uniresxx.checkpoints.folders import save_pretrained
from uniresxx.checkpoints.tensors import load_weights, write_tensors
from uniresxx.cli import exit_code
from uniresxx.cli import main as command
from uniresxx.cli.doctor import check_devices
from uniresxx.errors import InputError
from uniresxx.hub.classes import UniRESPlusPlus
from uniresxx.model.build import load_model
from uniresxx.model.config import LossConfig, WeightsConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.placement import computed_on, device_of, placement_of
from uniresxx.model.templates import TRAINING_TEMPLATES
from uniresxx.model.tuning import cast_frozen
from uniresxx.segmenters.film_unet.modeling import FilmUNet
from uniresxx.types import Decoding

ROOT = Path(__file__).resolve().parents[1]
ASKED, SHORT = [["the red square", "both squares"], ["wheel"]], Decoding(max_new_tokens=4)
PHOTOS = [picture(0).pixels, picture(1, 24, 40).pixels]
GPU, CPU = torch.device("mps"), torch.device("cpu")
JOINS = ("copy_", "to", "__getitem__", "__setitem__", "_pack_padded_sequence", "gru")  # as on a real GPU


class OnGpu(torch.Tensor):
    """A tensor that says it is on the GPU; its values are on the CPU."""

    values: torch.Tensor

    @staticmethod
    def __new__(cls, values: torch.Tensor) -> Any:
        made = torch.Tensor._make_wrapper_subclass(cls, values.size(), dtype=values.dtype, device="meta")
        made.values = values
        return made

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(function, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{operation} was called below torch functions")


def compute(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Call a function of torch with values on the CPU; AssertionError where tensors of both devices meet."""
    with torch._C.DisableTorchFunctionSubclass():
        name, leaves = function.__name__, tree_leaves((args, kwargs))
        on_gpu = [isinstance(x, OnGpu) for x in leaves if isinstance(x, torch.Tensor)]
        if function == torch.Tensor.device.__get__ and all(on_gpu):
            return GPU
        if function is torch.device or name == "_parse_to":
            return function(*args, **kwargs)
        if name == "_has_compatible_shallow_copy_type" and any(on_gpu) and not all(on_gpu):
            return False
        assert name not in ("numpy", "__array__") or not any(on_gpu), "numpy reads tensors of the CPU alone"
        met = [isinstance(x, OnGpu) for x in leaves if isinstance(x, torch.Tensor) and x.dim()]
        if name in ("__getitem__", "__setitem__") and any(met):
            assert met[0], "indices of the GPU on a tensor of the CPU"
        if name not in JOINS:
            assert all(met) or not any(met), f"{name} joins tensors of the GPU and the CPU"
        named = [x for x in leaves if isinstance(x, torch.device)]
        named += [torch.device(x) for x in (kwargs.get("device"),) if isinstance(x, str)]
        stays = named[0].type == GPU.type if named else any(on_gpu) and name != "cpu"
        plain, words = tree_map(_to_cpu, (args, kwargs))
        result = function(*plain, **words)
        if name == "_pack_padded_sequence":
            return OnGpu(result[0]), result[1]  # sizes stay on the CPU
        return tree_map(lambda x: OnGpu(x) if isinstance(x, torch.Tensor) else x, result) if stays else result


def _to_cpu(value: Any) -> Any:
    if isinstance(value, OnGpu):
        return value.values
    return CPU if isinstance(value, torch.device | str) and str(value) == GPU.type else value


class FakeGpu(TorchFunctionMode):
    """Tensors made out of nothing are on the device that they name."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(function, args, kwargs or {})


@contextmanager
def fake_gpu(patch: pytest.MonkeyPatch) -> Iterator[None]:
    patch.setattr(torch.backends.mps, "is_available", lambda: True)
    patch.setattr(torch.mps, "synchronize", lambda: None)
    with FakeGpu():
        yield


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train([*TRAINING_TEMPLATES, "the red square", "both squares"] * 3, 340)


def saved(name: str, vocabulary: Vocabulary, folder: Path) -> Path:
    """A random model of one kind as a folder."""
    torch.manual_seed(0)
    if name == "film_unet":
        save_pretrained(folder, FilmUNet(TOY, vocabulary))
        return folder
    configs = {
        "pyramid": CONFIG,
        "learned": LEARNED,
        "owlv2": replace(CLIP_PIXELS, boxes="owlv2", weights=WeightsConfig(owlv2=owlv2(folder / "owl"))),
        "sam": replace(CONFIG, mask_head="sam", sam=SAM, loss=LossConfig(), dense_classes=(0, 0, 0)),
        "sam2": replace(CONFIG, mask_head="sam2", sam2=SAM2, loss=LossConfig(), dense_classes=(0, 0, 0)),
        "lora": replace(CONFIG, tuning=LORA),
        "own state": replace(
            CONFIG,
            mllm=replace(
                CONFIG.mllm,
                prompt_state="own",
                blind_to_text=True,
                chat=ChatTemplate(before_image="[SEG]<image>"),
            ),
        ),
    }
    save_pretrained(folder, UniRESPlusPlusModel(configs[name], vocabulary))
    return folder


KINDS = ("pyramid", "learned", "owlv2", "sam", "sam2", "lora", "own state", "film_unet")


def answered(model: Any) -> list[Any]:
    return model.answer(model.encode_images(PHOTOS), ASKED, SHORT)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_moves_to_the_device(
    kind: str, vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(kind, vocabulary, tmp_path / "m")
    expected = answered(load_segmenter(folder, device="cpu"))
    with fake_gpu(monkeypatch):
        model = load_segmenter(folder, device="mps")
        assert isinstance(model, nn.Module)
        assert {p.device for p in (*model.parameters(), *model.buffers())} == {GPU}
        found = answered(model)
    assert [a.text for a in found] == [a.text for a in expected]
    assert [a.rle for a in found] == [a.rle for a in expected]


# ---- choosing


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_auto_takes_cuda_then_mps_then_the_cpu(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device_of("auto") == torch.device("cuda:1") == device_of("cuda") and device_of("cuda:0").index == 0
    assert device_of("mps").type == "mps" and device_of(torch.device("cpu")).type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto").type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device_of("auto").type == "cpu"


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "meta", "CPU", ""])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="is not one of auto, cpu, cuda, cuda:N, mps"):
        device_of(name)


def test_a_device_that_is_not_there_is_refused(two_gpus: None) -> None:
    with pytest.raises(InputError, match="'cuda:2' is not there: torch sees cpu, cuda:0, cuda:1;"):
        device_of("cuda:2")
    with pytest.raises(InputError, match="attention 'bogus' is not one of sdpa, "):
        placement_of("cpu", attention="bogus")
    with pytest.raises(InputError, match="needs a CUDA GPU, not cpu"):
        placement_of("cpu", attention="flash_attention_2")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--device", "cuda"], "device 'cuda' is not there: torch sees cpu;"),
        (["--device", "gpu"], "device 'gpu' is not one of auto, cpu, "),
        (["--dtype", "float16"], "invalid choice: 'float16'"),
        (["--attention", "flash"], "invalid choice: 'flash'"),
    ],
)
def test_every_command_refuses_a_wrong_placement_in_one_line(
    words: list[str],
    line: str,
    no_gpu: None,
    vocabulary: Vocabulary,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = str(saved("film_unet", vocabulary, tmp_path / "m"))
    model = ["--checkpoint", folder, *words]
    calls = {
        "segment": lambda: command(["segment", "a.png", "red", "--out", str(tmp_path / "o"), *model]),
        "chat": lambda: exit_code("chat_demo", lambda: chat(["--terminal", *model])),
        "eval": lambda: evaluate(["run", "--benchmark", "scenes/val", "--out", str(tmp_path / "e"), *model]),
    }
    for call in calls.values():
        assert call() == 2
        printed = capsys.readouterr()
        assert line in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_doctor_says_what_auto_takes(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 2**30
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: SimpleNamespace(name=f"GPU {index}")
    )
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (30 * gib, 80 * gib))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9 - 2 * index, 0))
    found = {finding.topic: finding.detail for finding in check_devices()}
    assert found["cuda:0"] == "GPU 0, 30 of 80 GiB free; float32, bfloat16"
    assert found["cuda:1"] == "GPU 1, 30 of 80 GiB free; float32; bfloat16 is emulated and slow"
    assert found["device"] == "--device auto takes cuda:1"


# ---- loading


def dtypes(model: Any) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters()}


def test_dtype_is_that_of_all_weights_and_positions_stay_exact(
    vocabulary: Vocabulary, tmp_path: Path
) -> None:
    config = replace(CONFIG, tuning=replace(LORA, frozen_dtype="bf16"))
    torch.manual_seed(0)
    save_pretrained(tmp_path, UniRESPlusPlusModel(config, vocabulary))
    mixed, full, half = (
        load_model(tmp_path, placement_of("cpu", dtype)) for dtype in ("auto", "float32", "bfloat16")
    )
    assert dtypes(mixed) == {torch.float32, torch.bfloat16}
    assert dtypes(full) == {torch.float32} and dtypes(half) == {torch.bfloat16}
    for model in (mixed, full, half):
        assert len(answered(model)) == 3
        assert all(buffer.dtype != torch.bfloat16 for buffer in model.buffers())
    assert computed_on(mixed) == {"device": "cpu", "dtype": "bfloat16, float32"}
    assert computed_on(object()) is None
    trained = {name for name, parameter in mixed.named_parameters() if parameter.requires_grad}
    assert trained == {
        n for n, p in UniRESPlusPlusModel(config, vocabulary).named_parameters() if p.requires_grad
    }


def test_the_baseline_takes_bfloat16_and_no_attention(vocabulary: Vocabulary, tmp_path: Path) -> None:
    folder = saved("film_unet", vocabulary, tmp_path / "m")
    half = load_segmenter(folder, device="cpu", dtype="bfloat16")
    assert dtypes(half) == {torch.bfloat16} and len(answered(half)) == 3
    with pytest.raises(InputError, match=r"attention 'sdpa': the FiLM-UNet of .* has none"):
        load_segmenter(folder, device="cpu", attention="sdpa")


def test_every_way_to_load_passes_the_choices_on(
    vocabulary: Vocabulary, tmp_path: Path, no_gpu: None
) -> None:
    folder = saved("pyramid", vocabulary, tmp_path / "m")
    predictor = Predictor.from_pretrained(folder, device="cpu", dtype="bfloat16", attention="eager")
    found = predictor.segmenter
    assert isinstance(found, UniRESPlusPlusModel)
    assert dtypes(found) == {torch.bfloat16} and found.config.mllm.attention == "eager"
    for load in (UniRESPlusPlus.from_pretrained, Predictor.from_pretrained, load_segmenter):
        with pytest.raises(InputError, match="'cuda' is not there"):
            load(folder, device="cuda")


def test_building_without_memory_keeps_ties_flags_and_buffers() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight
            self.a.bias.requires_grad_(False)
            self.register_buffer("sizes", torch.arange(3))

    with parameters_without_memory():
        tied = Tied()
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(Tied).result()
    assert tied.a.weight is tied.b.weight and tied.a.weight.is_meta and not tied.a.bias.requires_grad
    assert tied.sizes.tolist() == [0, 1, 2]
    assert not other.a.weight.is_meta and not Tied().a.weight.is_meta
    values = Tied()
    with TemporaryDirectory() as folder:
        write_tensors(Path(folder) / "model.safetensors", values.state_dict())
        load_weights(tied, Path(folder))
    assert tied.a.weight is tied.b.weight and not tied.a.bias.requires_grad
    assert all(torch.equal(tied.state_dict()[name], value) for name, value in values.state_dict().items())


MEASURE = """
import sys
from uniresxx.segmenters.load import load_segmenter

def now(field):
    lines = open("/proc/self/status").read().split(field + ":")
    return int(lines[1].split()[0]) * 1024

load_segmenter(sys.argv[1], device="cpu")  # what the libraries need
before = now("VmRSS")
model = load_segmenter(sys.argv[2], device="cpu")
print(now("VmHWM") - before, sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process from /proc")
def test_loading_never_holds_the_weights_twice(vocabulary: Vocabulary, tmp_path: Path) -> None:
    children = {}
    for frozen_dtype in ("fp32", "bf16"):
        config = replace(CONFIG, tuning=replace(LORA, frozen_dtype=frozen_dtype))
        large = replace(
            config,
            mllm=replace(
                CONFIG.mllm,
                llm=CONFIG.mllm.llm | dict(hidden_size=512, intermediate_size=3072, num_hidden_layers=8),
            ),
        )
        folders = [tmp_path / frozen_dtype / name for name in ("small", "large")]
        for folder, sizes in zip(folders, (config, large), strict=True):
            model = UniRESPlusPlusModel(sizes, vocabulary, from_files=["llm"])
            cast_frozen(model, sizes.tuning)
            save_pretrained(folder, model)
        words = [sys.executable, "-c", MEASURE, *map(str, folders)]
        children[folders[1]] = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for folder, child in children.items():
        printed, _ = child.communicate()
        assert child.returncode == 0
        grown, weights = map(int, printed.split()[-2:])
        file = (folder / "model.safetensors").stat().st_size
        assert file > 90e6 and abs(weights / file - 1) < 0.01
        assert grown - weights < 0.3 * file, (folder, grown, weights)


def test_an_evaluation_says_what_it_was_computed_on(vocabulary: Vocabulary, tmp_path: Path) -> None:
    folder = saved("pyramid", vocabulary, tmp_path / "m")
    words = ["run", "--benchmark", "scenes_easy/val", "--limit", "1", "--out", str(tmp_path / "out")]
    assert evaluate([*words, "--checkpoint", str(folder), "--device", "cpu", "--dtype", "bfloat16"]) == 0
    about = json.loads((tmp_path / "out/scenes_easy/val/evaluation.json").read_text())
    (entry,) = json.loads((tmp_path / "out/metrics.json").read_text())
    expected = {"device": "cpu", "dtype": "bfloat16"}
    assert about["notes"]["computed_on"] == expected == entry["computed_on"]
