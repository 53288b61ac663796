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
from uniresxx.model.heads.base import RegionBoxes
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


class Encode(nn.Module):
    """Inputs of one photo -> the features that `Answer` takes, flat."""

    def __init__(self, head: PyramidHead | SamHead | Sam2Head, side: float | None) -> None:
        """`side`: of the square that the boxes are in; None where the head paints no regions and takes no boxes."""
        super().__init__()
        self.head, self.side = head, side

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Pyramid: stage maps, image map, regions, validity. SAM: its own pixels (1, 3, S, S), regions to paint.

        A head that paints regions also takes object boxes, their validity, part boxes, their validity.
        """
        boxes = None
        if self.side is not None:
            objects, object_valid, parts, part_valid = inputs[-4:]
            boxes = RegionBoxes(objects, object_valid, parts, part_valid, self.side)
            inputs = inputs[:-4]
        if isinstance(self.head, PyramidHead):
            *stages, image, regions, valid = inputs
            return tuple(self.head.encode(stages, image, regions, valid, None, boxes))
        pixels, none = inputs[0], inputs[0][:, :0]
        regions = none if boxes is None else inputs[1]
        features = self.head.encode([], none, regions, none, pixels, boxes)
        return features.image_BChw, *features.fine


class Answer(nn.Module):
    """[SEG] states and features of one photo -> mask logits, predicted-IoU and presence logits."""

    def __init__(self, head: PyramidHead | SamHead | Sam2Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, prompts_ED: Tensor, *features: Tensor) -> tuple[Tensor, ...]:
        """All expressions at once."""
        if isinstance(self.head, PyramidHead):
            return tuple(self.head.of_one_photo(MaskFeatures(*features), prompts_ED))
        first_E = torch.zeros(prompts_ED.shape[0], dtype=torch.long, device=prompts_ED.device)
        return tuple(self.head(SamFeatures(features[0], tuple(features[1:])), prompts_ED, first_E))


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


def programs_of(model: UniRESPlusPlusModel) -> list[Program]:
    """`encode` and `answer` of a model's mask head, in fp32 on the CPU."""
    m, head = model.config.mllm, model.head
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    def draw_boxes() -> list[Tensor]:
        """Boxes of objects, which are real, the same of parts."""
        drawn = []
        for count in (m.max_objects, m.max_parts):
            corner = torch.rand(1, count, 2, generator=generator) * m.high_size / 2
            drawn += [torch.cat((corner, 2 * corner), dim=-1), torch.arange(count)[None] % 2 == 0]
        return drawn

    paints, D = model.config.paints_regions, m.llm_width
    encode = Encode(head, float(m.high_size) if paints else None).eval()
    answer = Answer(_without_encoder(head)).eval()
    with torch.no_grad():
        if isinstance(head, PyramidHead):
            none = torch.zeros(1, m.max_objects, 4), torch.zeros(1, m.max_objects, dtype=torch.bool)
            parts = torch.zeros(1, m.max_parts, 4), torch.zeros(1, m.max_parts, dtype=torch.bool)
            low, high = draw(1, 3, m.low_size, m.low_size), draw(1, 3, m.high_size, m.high_size)
            stages, image, regions, valid = model.head_inputs(
                model.mllm.encode_image(low, high, Boxes(*none, *parts))
            )
            given = (*stages, image, draw(*regions.shape), torch.ones_like(valid))
            other = (*(s + 0.1 * draw(*s.shape) for s in stages), image, draw(*regions.shape), valid)
            names = (
                *(f"stage_{i}" for i in range(len(stages))),
                "image_BDhw",
                "regions_BMD",
                "region_valid_BM",
            )
            features: tuple[str, ...] = ("fine_BChw", "memory_BMC", "memory_bias_BM")
        else:
            side = model.config.mask_size or 0
            given, other = (draw(1, 3, side, side),), (draw(1, 3, side, side),)
            names = ("pixels_B3SS",)
            features = ("image_BChw", "fine_0", "fine_1")
            if paints:
                count = m.max_objects + m.max_parts
                given, other = (*given, draw(1, count, D)), (*other, draw(1, count, D))
                names = (*names, "regions_BMD")
        if paints:
            given, other, names = (*given, *draw_boxes()), (*other, *draw_boxes()), (*names, *BOX_FIELDS)
        encoded = [encode(*given), encode(*other)]
    features = features[: len(encoded[0])]
    asked = [(draw(count, D), *values) for count, values in zip((3, 5), encoded, strict=True)]
    return [
        Program("encode", encode, given, other, names, features, False),
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
