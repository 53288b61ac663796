"""The mask head as programs that run without this package: torch.export (.pt2) or ONNX, checked against eager.

Two programs: `encode` runs once per photo, `answer` for any number of [SEG] states of that photo (the first size
of `prompts_ED` is dynamic). The multimodal LLM is not exported.

Shapes: B = 1 photo, E expressions, D LLM width, M regions, C channels, S side of the mask frame, h w grid.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mllm.modeling import Boxes
from uniresxx.checkpoints.publish import Content, publish
from uniresxx.errors import InputError
from uniresxx.files import to_json
from uniresxx.model.heads.base import HeadInputs, RegionBoxes
from uniresxx.model.heads.pyramid import MaskFeatures, PyramidHead
from uniresxx.model.heads.sam import Sam2Head, SamFeatures, SamHead
from uniresxx.model.modeling import BOX_FIELDS, UniRESPlusPlusModel

Form = Literal["torch", "onnx"]
TOLERANCE = 1e-4  # largest difference from eager, in logits
NEEDS_ONNX = (
    "onnx",
    "onnxscript",
    "onnxruntime",
)  # onnxruntime runs what was written before it is handed over
OUTPUTS = ("masks_Ehw", "quality_E", "presence_E")
STAGE, FINE = "stage_", "fine_"  # a number follows
PIXELS = "pixels_B3SS"
TOKENS = ("image_BDhw", "regions_BMD", "region_valid_BM")
MEMORY = ("memory_BMC", "memory_bias_BM")


class Encode(nn.Module):
    """Inputs of one photo -> the features that `Answer` takes, flat."""

    def __init__(self, head: PyramidHead | SamHead | Sam2Head, names: Sequence[str], side: float) -> None:
        """`names`: the inputs that the head reads, in order; `side`: of the square that the boxes are in."""
        super().__init__()
        self.head, self.names, self.side = head, tuple(names), side

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the head reads of one photo; it gets empty tensors for the rest."""
        given = dict(zip(self.names, inputs, strict=True))
        none = inputs[0].new_zeros(0)
        image, regions, valid = (given.get(name, none) for name in TOKENS)
        objects, object_valid, parts, part_valid = (given.get(name, none) for name in BOX_FIELDS)
        boxes = RegionBoxes(objects, object_valid, parts, part_valid, self.side)
        stages = [value for name, value in given.items() if name.startswith(STAGE)]
        features = self.head.encode(HeadInputs(stages, image, regions, valid, boxes, given.get(PIXELS)))
        return tuple(flat for part in features for flat in (part if isinstance(part, tuple) else (part,)))


class Answer(nn.Module):
    """[SEG] states and features of one photo -> mask logits, predicted-IoU and presence logits."""

    def __init__(self, head: PyramidHead | SamHead | Sam2Head, names: Sequence[str]) -> None:
        """`names`: of the features."""
        super().__init__()
        self.head = head
        self.fine = sum(name.startswith(FINE) for name in names)

    def forward(self, prompts_ED: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        """All expressions at once."""
        if isinstance(self.head, PyramidHead):
            return tuple(self.head.of_one_photo(MaskFeatures(*features), prompts_ED))
        first_E = torch.zeros(prompts_ED.shape[0], dtype=torch.long, device=prompts_ED.device)
        image, *rest = features
        parts = SamFeatures(image, tuple(rest[: self.fine]), tuple(rest[self.fine :]))
        return tuple(self.head(parts, prompts_ED, first_E))


@dataclass(frozen=True)
class Program:
    """One module with the inputs it is traced with, and others of another number of expressions to check it."""

    name: str
    module: nn.Module
    inputs: tuple[Tensor, ...]
    others: tuple[Tensor, ...]
    names: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: bool


def names_of(model: UniRESPlusPlusModel) -> tuple[list[str], list[str]]:
    """The inputs of `encode` that the model's mask head reads, and the features that it makes of them."""
    config = model.config
    kind, stages = config.mask_head, [f"{STAGE}{i}" for i in range(len(config.mllm.high_widths))]
    boxes = [*BOX_FIELDS] if config.paints_regions else []
    if kind == "pyramid":
        return [*stages, *TOKENS, *boxes], ["fine_BChw", *MEMORY]
    sizes = config.sam if kind == "sam" else config.sam2
    early = (stages[:1] if kind == "sam" else stages[:2]) if sizes.fuse_early else []
    regions = ["regions_BMD"] if config.paints_regions else []
    tokens = [*TOKENS] if sizes.region_memory else regions
    fine = [f"{FINE}{i}" for i in range(2 if kind == "sam2" else len(early))]
    memory = [*MEMORY] if sizes.region_memory else []
    return [PIXELS, *early, *tokens, *boxes], ["image_BChw", *fine, *memory]


def programs_of(model: UniRESPlusPlusModel) -> list[Program]:
    """`encode` and `answer` of a model's mask head, in fp32 on the CPU."""
    m, head = model.config.mllm, model.head
    generator = torch.Generator().manual_seed(0)
    names, features = names_of(model)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    def draw_boxes(count: int) -> tuple[Tensor, Tensor]:
        """Boxes, half of which are real."""
        corner = torch.rand(1, count, 2, generator=generator) * m.high_size / 2
        return torch.cat((corner, 2 * corner), dim=-1), torch.arange(count)[None] % 2 == 0

    def draw_inputs(valid: bool) -> tuple[Tensor, ...]:
        """One photo; `valid`: all of its regions are real."""
        given = Boxes(*draw_boxes(m.max_objects), *draw_boxes(m.max_parts))
        low, high = draw(1, 3, m.low_size, m.low_size), draw(1, 3, m.high_size, m.high_size)
        side = model.config.mask_size
        pixels = None if side is None else draw(1, 3, side, side)
        read = model.head_inputs(model.mllm.encode_image(low, high, given), pixels)
        drawn = {f"{STAGE}{i}": stage for i, stage in enumerate(read.stages)}
        tokens = read.image_BDhw, draw(*read.regions_BMD.shape), read.region_valid_BM | valid
        drawn |= dict(zip((*TOKENS, *BOX_FIELDS), (*tokens, *read.boxes[:4]), strict=True))
        if pixels is not None:
            drawn[PIXELS] = pixels
        return tuple(drawn[name] for name in names)

    encode = Encode(head, names, float(m.high_size)).eval()
    answer = Answer(_without_encoder(head), features).eval()
    with torch.no_grad():
        given, other = draw_inputs(True), draw_inputs(False)
        encoded = [encode(*given), encode(*other)]
    asked = [(draw(count, m.llm_width), *values) for count, values in zip((3, 5), encoded, strict=True)]
    return [
        Program("encode", encode, given, other, tuple(names), tuple(features), False),
        Program("answer", answer, asked[0], asked[1], ("prompts_ED", *features), OUTPUTS, True),
    ]


def _without_encoder(head: PyramidHead | SamHead | Sam2Head) -> PyramidHead | SamHead | Sam2Head:
    """A head whose image encoder, most of SAM's weights, is left out of the program that never runs it."""
    if isinstance(head, PyramidHead):
        return head
    return copy.deepcopy(head, {id(head.sam.vision_encoder): nn.Identity()})


def traced(program: Program) -> Any:
    """The program as torch.export gives it."""
    sizes: list[dict[int, Any]] = [{} for _ in program.inputs]
    if program.dynamic:
        sizes[0] = {0: torch.export.Dim("expressions", min=1)}
    # by the signature: `Answer` takes the states and then any number of features, `Encode` any number of inputs
    shapes = (sizes[0], tuple(sizes[1:])) if program.dynamic else (tuple(sizes),)
    with torch.no_grad():
        return torch.export.export(program.module, program.inputs, dynamic_shapes=shapes, strict=False)


def largest_error(program: Program, run: Callable[..., Sequence[Tensor]]) -> float:
    """Largest difference of `run` from the module, over other inputs than it was traced with, E = 1 among them."""
    worst = 0.0
    for inputs in (program.inputs, program.others, *([_first(program.others)] if program.dynamic else [])):
        with torch.no_grad():
            pairs = zip(run(*inputs), program.module(*inputs), strict=True)
            worst = max(worst, *(float((a - b).abs().max()) for a, b in pairs))
    return worst


def _first(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0][:1], *inputs[1:])


def check_form(form: Form) -> None:
    """InputError that names the packages that ONNX needs and that are not installed."""
    missing = [name for name in NEEDS_ONNX if form == "onnx" and find_spec(name) is None]
    if missing:
        raise InputError(
            f"ONNX needs {', '.join(missing)}: pip install 'uniresxx[onnx]', or choose --mask-head torch"
        )


def export_mask_head(model: UniRESPlusPlusModel, out: Path, form: Form) -> list[str]:
    """Write mask_head_see and mask_head_answer (.pt2 or .onnx) and mask_head.json, which lists inputs, outputs and
    the largest difference from eager; returns the names of the files.

    Raises InputError where a package is missing or `out` holds such files of somebody else, RuntimeError where a
    written program differs from eager.
    """
    check_form(form)
    if model.config.instances:
        raise InputError(
            f"a mask head with instances={model.config.instances} cannot be exported: train one with instances 0"
        )
    about: dict[str, Any] = {"form": form, "mask_head": model.config.mask_head, "tolerance": TOLERANCE}

    def writer(program: Program) -> Content:
        def write(path: Path) -> None:
            exported = traced(program)
            run = _write_torch(exported, path) if form == "torch" else _write_onnx(exported, program, path)
            error = largest_error(program, run)
            if not error <= TOLERANCE:
                raise RuntimeError(f"{path.name} differs from eager by {error:.2g}")
            about[program.name] = {
                "file": path.name,
                "inputs": _shapes(program),
                "outputs": list(program.outputs),
                "max_abs_error": error,
            }

        return write

    suffix = "pt2" if form == "torch" else "onnx"
    files = {f"mask_head_{program.name}.{suffix}": writer(program) for program in programs_of(model.eval())}
    return publish(
        out,
        files | {"mask_head.json": lambda path: path.write_bytes(to_json(about))},
        lambda name: name.startswith("mask_head"),
    )


def _shapes(program: Program) -> dict[str, list[int | str]]:
    """Sizes of the inputs by name, "E" where any number goes."""
    shapes: dict[str, list[int | str]] = {
        name: list(value.shape) for name, value in zip(program.names, program.inputs, strict=True)
    }
    if program.dynamic:
        shapes[program.names[0]][0] = "E"
    return shapes


def _write_torch(exported: Any, path: Path) -> Callable[..., Sequence[Tensor]]:
    torch.export.save(exported, path)
    return torch.export.load(path).module()


def _write_onnx(exported: Any, program: Program, path: Path) -> Callable[..., Sequence[Tensor]]:
    import onnxruntime

    # SAM's encoder views attention's result in the memory layout of the plain formula, not of the fused kernel
    with sdpa_kernel(SDPBackend.MATH):
        torch.onnx.export(
            exported, (), str(path), dynamo=True, verbose=False,
            input_names=list(program.names), output_names=list(program.outputs), external_data=False,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        given = dict(zip(program.names, inputs, strict=True))
        return [torch.from_numpy(x) for x in session.run(None, {name: given[name].numpy() for name in names})]

    return run
