"""Where weights lie: layers over several devices, and one copy of frozen weights for all processes of a machine."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mllm.language import parameters_without_memory
from mllm.loading import load_part
from mllm.tokens import Vocabulary
from tests.test_film_unet import TOY
from tests.test_model import CONFIG, picture
from tests.test_tuning import LORA
from uniresxx.checkpoints.folders import save_pretrained
from uniresxx.checkpoints.tensors import load_weights, read_tensors
from uniresxx.errors import InputError
from uniresxx.model.build import load_model
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.placement import Placement, computed_on, placement_of
from uniresxx.model.spread import connect, device_by_name, spread_layers
from uniresxx.model.templates import TRAINING_TEMPLATES
from uniresxx.model.tuning import cast_frozen
from uniresxx.segmenters.film_unet.modeling import FilmUNet, load_film_unet
from uniresxx.segmenters.load import load_segmenter
from uniresxx.types import Decoding

ROOT = Path(__file__).resolve().parents[1]
FIRST, SECOND, HOST = torch.device("cuda:0"), torch.device("cuda:1"), torch.device("cpu")
PREFIX = "mllm.llm.model"
DEEP = replace(CONFIG, mllm=replace(CONFIG.mllm, llm=CONFIG.mllm.llm | {"num_hidden_layers": 6}))
ASKED = [["the red square", "both squares"], ["wheel"]]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.train([*TRAINING_TEMPLATES, "the red square", "both squares"] * 3, 340)


def without_memory(vocabulary: Vocabulary, config: UniRESPlusPlusConfig = DEEP) -> UniRESPlusPlusModel:
    with parameters_without_memory():
        return UniRESPlusPlusModel(config, vocabulary)


def sizes(model: UniRESPlusPlusModel) -> tuple[int, int, int]:
    """Bytes of one decoder layer, of the decoder, and of everything else."""
    layer, decoder, whole = (
        sum(p.nbytes for p in module.parameters())
        for module in (model.mllm.llm.model.layers[0], model.mllm.llm.model, model)
    )
    return layer, decoder, whole - decoder


def test_layers_go_where_there_is_room_and_the_rest_stays_on_the_main_gpu(vocabulary: Vocabulary) -> None:
    model = without_memory(vocabulary)
    decoder = model.mllm.llm.model
    layer, all_layers, rest = sizes(model)
    whole = spread_layers(model, decoder, {FIRST: rest + all_layers, SECOND: 10**9, HOST: 10**9})
    assert whole == {"": FIRST}
    embedding = all_layers - 6 * layer
    places = spread_layers(
        model, decoder, {FIRST: rest + embedding + 4 * layer, SECOND: 10 * layer, HOST: 10**9}
    )
    used = [places[f"layers.{i}"] for i in range(6)]
    assert places["embed_tokens"] == places["rotary_emb"] == FIRST
    assert set(used) == {FIRST, SECOND} and used == sorted(used, key=str)
    device_of = device_by_name(PREFIX, places, FIRST)
    on_first = sum(p.nbytes for name, p in model.named_parameters() if device_of(name) == FIRST)
    assert rest < on_first <= rest + embedding + 4 * layer
    for name, _ in model.named_parameters():
        inside = name.startswith(f"{PREFIX}.layers.")
        assert device_of(name) == (used[int(name.split(".")[4])] if inside else device_of(name))
        assert inside or name.startswith(f"{PREFIX}.norm") or device_of(name) == FIRST
    tight = {FIRST: rest + embedding + 3 * layer, SECOND: 3 * layer, HOST: 10**9}
    assert HOST in spread_layers(model, decoder, tight).values()


def test_devices_that_are_too_small_are_refused(vocabulary: Vocabulary) -> None:
    model = without_memory(vocabulary)
    layer, _, rest = sizes(model)
    with pytest.raises(InputError, match=r"the other parts alone \(0\.0 GiB\) do not fit on cuda:0"):
        spread_layers(model, model.mllm.llm.model, {FIRST: rest - 1, SECOND: 10**9, HOST: 10**9})
    with pytest.raises(InputError, match="does not fit into cuda:0, cuda:1, cpu together"):
        spread_layers(model, model.mllm.llm.model, {FIRST: rest + 2 * layer, SECOND: layer, HOST: layer})


def test_a_spread_model_answers_as_the_whole_one(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """Both "devices" are the CPU; accelerate's hooks run as between GPUs, and every weight is loaded by its place."""
    torch.manual_seed(0)
    save_pretrained(tmp_path, UniRESPlusPlusModel(replace(DEEP, tuning=LORA), vocabulary))
    whole = load_model(tmp_path)
    spread = without_memory(vocabulary, replace(DEEP, tuning=LORA))
    places = {"embed_tokens": HOST, "norm": HOST, "rotary_emb": HOST}
    places |= {f"layers.{i}": HOST for i in range(6)}
    load_weights(spread, tmp_path, device_by_name(PREFIX, places, HOST))
    connect(spread, spread.mllm.llm.model, places, HOST)
    spread.eval()
    hooked = [name for name, module in spread.mllm.llm.model.named_modules() if hasattr(module, "_hf_hook")]
    assert {"", "layers.0", "layers.5", "norm"} <= set(hooked)
    photos = [picture(0).pixels, picture(1, 24, 40).pixels]
    asked = Decoding(max_new_tokens=6)
    answers = [model.answer(model.encode_images(photos), ASKED, asked) for model in (whole, spread)]
    assert answers[0] == answers[1]
    assert computed_on(spread) == {"device": "cpu", "dtype": "float32"}


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_model_spread_over_two_gpus_answers_as_on_one(
    vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    save_pretrained(tmp_path, UniRESPlusPlusModel(DEEP, vocabulary))
    one = load_model(tmp_path, placement_of("cuda:0"))
    layer, decoder, rest = sizes(one)
    room = {FIRST: rest + decoder - 2 * layer, SECOND: 10**9, HOST: 10**9}
    monkeypatch.setattr("uniresxx.model.from_folder.free_memory", lambda main: room)
    two = load_model(tmp_path, placement_of("cuda:0", device_map="auto"))
    assert {p.device for p in two.parameters()} == {FIRST, SECOND}
    photos = [picture(0).pixels, picture(1, 24, 40).pixels]
    asked = Decoding(max_new_tokens=6)
    answers = [model.answer(model.encode_images(photos), ASKED, asked) for model in (one, two)]
    assert [a.text for a in answers[0]] == [a.text for a in answers[1]]


def test_a_map_needs_gpus_and_a_language_model(vocabulary: Vocabulary, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="device_map 'auto' spreads a model over CUDA GPUs, not cpu"):
        placement_of("cpu", device_map="auto")
    with pytest.raises(InputError, match="device_map 'balanced' is not auto"):
        placement_of("cpu", device_map="balanced")
    save_pretrained(tmp_path, FilmUNet(TOY, vocabulary))
    with pytest.raises(InputError, match=r"device_map='auto': the model of .* fits on one device"):
        load_film_unet(tmp_path, Placement(spread=True))


# ---- one copy of weights for all processes


LOAD = """
import sys
from uniresxx.segmenters.load import load_segmenter

def private():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))

load_segmenter(sys.argv[1], device="cpu")  # what the libraries need
before = private()
model = load_segmenter(sys.argv[2], device="cpu")
read = sum(float(p.detach().abs().sum()) for p in model.parameters())  # every page is there
print("ready", flush=True)
sys.stdin.readline()  # both have loaded
print(private() - before, sum(p.nbytes for p in model.parameters()), flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="reads the memory of a process from /proc"
)
def test_two_processes_hold_one_copy_of_the_weights(vocabulary: Vocabulary, tmp_path: Path) -> None:
    config = replace(CONFIG, tuning=replace(LORA, frozen_dtype="bf16"))
    wide = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 6}
    large = replace(config, mllm=replace(CONFIG.mllm, llm=CONFIG.mllm.llm | wide))
    for name, made in (("small", config), ("large", large)):
        model = UniRESPlusPlusModel(made, vocabulary)
        cast_frozen(model, made.tuning)
        save_pretrained(tmp_path / name, model)
    words = [sys.executable, "-c", LOAD, str(tmp_path / "small"), str(tmp_path / "large")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    children = [subprocess.Popen(words, **pipes) for _ in range(2)]
    assert [child.stdout.readline() for child in children] == ["ready\n"] * 2
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    found = [tuple(map(int, child.stdout.readline().split())) for child in children]
    for child in children:
        child.communicate("\n")
    weights = found[0][1]
    assert weights > 50e6
    assert sum(grown for grown, _ in found) < 0.3 * weights, (
        found
    )  # two private copies would be twice the weights


def test_a_loaded_weight_can_be_changed_and_its_file_stays(vocabulary: Vocabulary, tmp_path: Path) -> None:
    save_pretrained(tmp_path, UniRESPlusPlusModel(CONFIG, vocabulary))
    before = (tmp_path / "model.safetensors").read_bytes()
    model, other = load_segmenter(tmp_path, device="cpu"), load_segmenter(tmp_path, device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    saved = read_tensors(tmp_path / "model.safetensors")
    assert all(torch.equal(value, saved[name]) for name, value in other.state_dict().items())


def test_frozen_weights_of_training_are_those_of_the_file(tmp_path: Path) -> None:
    save_file(
        {"0.weight": torch.randn(4, 4).bfloat16(), "1.weight": torch.randn(4, 4)}, tmp_path / "a.safetensors"
    )
    part = nn.Sequential(nn.Linear(4, 4, bias=False).bfloat16(), nn.Linear(4, 4, bias=False))
    part[0].requires_grad_(False)
    weights = [layer.weight for layer in part]
    before = [weight.data_ptr() for weight in weights]
    load_part(part, str(tmp_path), ((r"(.*)", r"\1"),))
    saved = read_tensors(tmp_path / "a.safetensors")
    assert [layer.weight for layer in part] == weights
    assert all(torch.equal(value, saved[name]) for name, value in part.state_dict().items())
    assert weights[0].data_ptr() != before[0] and weights[1].data_ptr() == before[1]
    assert not weights[0].requires_grad and weights[1].requires_grad
