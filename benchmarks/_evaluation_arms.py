"""Two ways to evaluate the same weights on the same photographs: LISA's loop, and ours.

lisa: one row per expression under plain causal attention, each with the whole visual prefix and the answer `[SEG].`
given; low tower, fusion, region tokens and MGFE run once per row, as LISA's `images_clip.expand` does with CLIP and
projector; the high tower and the mask head's maps are made once per photograph, as LISA's SAM encoder is; masks are
dense, at the photograph's size, and counted by three histograms of two bins.
ours: `encode_images` and `answer` as `python -m eval run` calls them, one photograph at a time as LISA's loader has
it. Answers are generated, at most ANSWER tokens (what a trained model says: `[SEG]`, a full stop, the end), and
written as JSON lines; masks are run lengths, judged by the strict protocol. Random weights accept nothing, so the
mask that a given [SEG] has is judged.

We wrote the first after its description; no code of others runs here.

Shapes: K expressions of a photograph, L prefix, T text, D width, h w the head's grid, y x photo.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks._photographs import TEXTS, ellipses
from mllm.chat import ChatTurn, Mark, render
from mllm.config import MLLMConfig, tiny_llama
from mllm.modeling import Boxes, ImageFeatures
from mllm.tokens import Vocabulary
from mllm.tower_families import clip_vit
from uniresxx.imaging import masks
from uniresxx.model.config import PyramidHeadConfig, UniRESPlusPlusConfig
from uniresxx.model.forced import forced
from uniresxx.model.losses import photo_logits
from uniresxx.model.modeling import BOX_FIELDS, UniRESPlusPlusModel
from uniresxx.model.processing import tensors_of, view_photo
from uniresxx.scoring.metrics import Counts
from uniresxx.scoring.predictions import to_json
from uniresxx.scoring.protocols import STRICT
from uniresxx.types import EVALUATION_TEMPLATE, Decoding, Expression, Granularity, ImageRecord

ANSWER = 3  # tokens
VOCABULARY = 2048
COUNTS = (7, 7, 7, 7, 8)  # expressions of the photographs: 7.2, as many as a photograph of RefCOCO's val has
PREFIX = 616  # tokens
TOLERANCE = 1e-3  # of states, fp32
SAME = (
    0.95  # share of pixels that both arms decide alike: masks of noise, resized twice by LISA and once by us
)


@dataclass(frozen=True)
class Sizes:
    """What is measured; smaller in the tests."""

    mllm: MLLMConfig
    counts: Sequence[int] = COUNTS
    photo: tuple[int, int] = (480, 640)


def full() -> Sizes:
    """Towers of the tiny size, a low frame of 24 x 24 patches and 37 regions: a prefix of 616; a larger LLM."""
    llm = tiny_llama(hidden_size=256, num_hidden_layers=4, intermediate_size=704, vocab_size=VOCABULARY)
    return Sizes(MLLMConfig(low=clip_vit(), low_size=192, llm=llm, max_objects=12, max_parts=25))


def small() -> Sizes:
    """The tiny model: shows that it runs."""
    llm = tiny_llama(hidden_size=64, num_hidden_layers=1, intermediate_size=64, vocab_size=VOCABULARY)
    return Sizes(MLLMConfig(llm=llm), counts=(2, 3), photo=(48, 64))


@dataclass(frozen=True)
class Case:
    """The same model, photographs and expressions for both arms."""

    model: UniRESPlusPlusModel
    records: tuple[ImageRecord, ...]

    @property
    def expressions(self) -> int:
        """Of all photographs."""
        return sum(len(record.expressions) for record in self.records)


@dataclass(frozen=True)
class Result:
    """What an arm found: states that predict [SEG] (K, D) and masks (K, y, x) by photograph, and seconds."""

    seconds: float
    llm_seconds: float
    prompts: list[Tensor]
    masks: list[np.ndarray]
    intersections: list[int]


def make_case(sizes: Sizes) -> Case:
    """Random weights, photographs of noise and ellipses, seed 0."""
    torch.manual_seed(0)
    config = UniRESPlusPlusConfig(mllm=sizes.mllm, head=PyramidHeadConfig(), boxes="grid")
    model = UniRESPlusPlusModel(config, Vocabulary.train(TEXTS, sizes.mllm.token_count)).eval()
    return Case(model, tuple(photograph(k, count, sizes.photo) for k, count in enumerate(sizes.counts)))


def photograph(number: int, count: int, size: tuple[int, int]) -> ImageRecord:
    """A photograph of noise with so many expressions."""
    shapes = [*ellipses(number, size), *ellipses(1000 + number, size)][:count]
    expressions = tuple(
        Expression(f"made/val/{number}_{k}", TEXTS[k % len(TEXTS)], Granularity.OBJECT, masks.encode(shape))
        for k, shape in enumerate(shapes)
    )
    pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    return ImageRecord(str(number), *size, expressions, pixels=pixels)


class Clock:
    """CPU seconds of one thread, which other programs hardly change."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def of(self, function: Callable[[], Any]) -> Any:
        """Call the function and add its time."""
        start = time.process_time()
        found = function()
        self.seconds += time.process_time() - start
        return found


@torch.no_grad()
def ours(case: Case) -> Result:
    """As `python -m eval run` evaluates."""
    model, llm, whole = case.model, Clock(), Clock()
    decoding = Decoding(template=EVALUATION_TEMPLATE, max_new_tokens=ANSWER)
    prompts: list[Tensor] = []
    answers: list[np.ndarray] = []
    counts, found = Counts(), []
    prefill, generate = model.mllm.prefill, model.mllm.generate

    def timed_generate(*given: Any) -> Any:
        made = llm.of(lambda: generate(*given))
        prompts.append(torch.cat([answer.prompts_KD[:1] for answer in made]))
        return made

    timed: Any = model.mllm
    timed.prefill, timed.generate = lambda image: llm.of(lambda: prefill(image)), timed_generate
    try:
        for record in case.records:

            def work(record: ImageRecord = record) -> list[Any]:
                assert record.pixels is not None
                encoded = model.encode_images([record.pixels])
                said = model.answer(encoded, [[e.text for e in record.expressions]], decoding)
                lines = [to_json(e.expression_id, a) for e, a in zip(record.expressions, said, strict=True)]
                json.dumps(lines)
                given = forced(said)
                for expression, answer in zip(record.expressions, given, strict=True):
                    outcome = STRICT.judge(expression, answer)
                    counts.add(outcome)
                    found.append(outcome.intersection)
                return given

            given = whole.of(work)
            answers.append(np.stack([answer.mask for answer in given]))
    finally:
        del timed.prefill, timed.generate
    return Result(whole.seconds, llm.seconds, prompts, answers, found)


@torch.no_grad()
def lisa(case: Case) -> Result:
    """One row per expression, with the answer given."""
    llm, whole = Clock(), Clock()
    prompts: list[Tensor] = []
    answers: list[np.ndarray] = []
    found: list[int] = []
    for record in case.records:

        def work(record: ImageRecord = record) -> Tensor:
            states_KD, masks_Kyx = _lisa_masks(case.model, record, llm)
            prompts.append(states_KD)
            found.extend(_histograms(masks_Kyx, record))
            return masks_Kyx

        answers.append(whole.of(work).numpy())
    return Result(whole.seconds, llm.seconds, prompts, answers, found)


def _lisa_masks(model: UniRESPlusPlusModel, record: ImageRecord, llm: Clock) -> tuple[Tensor, Tensor]:
    """States that predict [SEG] (K, D), and dense masks (K, y, x)."""
    assert record.pixels is not None
    mllm, K = model.mllm, len(record.expressions)
    view = view_photo(record.pixels, model.config)
    given = tensors_of([view], model.config)
    stages = mllm.high(model.normalise_high(given["pixels_high_B3HW"]))
    low_K3hw = model.normalise_low(given["pixels_low_B3hw"]).expand(K, -1, -1, -1)
    boxes = Boxes(*(given[name].expand(K, *given[name].shape[1:]) for name in BOX_FIELDS))
    features = mllm.encode_image(
        low_K3hw, given["pixels_high_B3HW"], boxes, [stage.expand(K, -1, -1, -1) for stage in stages]
    )
    rows = [
        render([ChatTurn(EVALUATION_TEMPLATE.format(expression=e.text), (Mark.SEG, "."))], mllm.vocabulary)
        for e in record.expressions
    ]
    ids_KT = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row.ids_T) for row in rows], batch_first=True, padding_value=mllm.vocabulary.pad
    )
    hidden_KLD = torch.cat((features.prefix_BLD, mllm.embed(ids_KT)), dim=1)
    states_KLD = llm.of(lambda: mllm.llm.model(inputs_embeds=hidden_KLD, use_cache=False).last_hidden_state)
    places = torch.tensor([features.layout.length + row.decisions[0] for row in rows])
    prompts_KD = states_KLD[torch.arange(K), places]
    maps = model.head.encode(model.head_inputs(_first(features, stages), None))
    logits_Khw = model.head(maps, prompts_KD, torch.zeros(K, dtype=torch.long), K).masks_Ehw
    box, side = view.letterbox, model.config.mllm.high_size
    inner = box.inner_height, box.inner_width
    return prompts_KD, photo_logits(logits_Khw, side, inner, (record.height, record.width)) > 0


def _first(features: ImageFeatures, stages: list[Tensor]) -> ImageFeatures:
    """The features of the first row, which are those of all: the mask head encodes the photograph once."""
    b = features.boxes
    boxes = Boxes(*(x[:1] for x in (b.objects_BO4, b.object_valid_BO, b.parts_BP4, b.part_valid_BP)))
    one = {name: getattr(features, name)[:1] for name in ("prefix_BLD", "valid_BL", "object_BOD", "part_BPD")}
    return replace(features, stages=stages, boxes=boxes, **one)


def _histograms(masks_Kyx: Tensor, record: ImageRecord) -> list[int]:
    """The intersections with the truth, and unions beside them, as LISA-like evaluations count them."""
    found = []
    for mask_yx, expression in zip(masks_Kyx, record.expressions, strict=True):
        assert expression.rle is not None
        answer = mask_yx.float().flatten()
        truth = torch.from_numpy(masks.decode(expression.rle)).float().flatten()
        agreed, one, other = (
            torch.histc(values, bins=2, min=0, max=1) for values in (answer[answer == truth], answer, truth)
        )
        found.append(int(agreed[1]))
        assert int((one + other - agreed)[1]) >= found[-1]
    return found


def check_same(first: Result, second: Result) -> dict[str, float]:
    """AssertionError where two arms do not find the same; returns how far apart they are."""
    pairs = list(zip(first.prompts, second.prompts, strict=True))
    error = max(float((a - b).abs().max()) for a, b in pairs)
    assert error < TOLERANCE, f"the states that predict [SEG] differ by {error}"
    same = float(np.mean([np.mean(a == b) for a, b in zip(first.masks, second.masks, strict=True)]))
    assert same > SAME, f"only {same:.5f} of the pixels are decided alike"
    return {"max_abs_error_of_states": error, "same_pixels": same}
