"""One training step on a few photographs with 7 expressions each, in three ways of working with the same model.

    python -m benchmarks.training_step [--record]

ours: `model.forward` and `model.loss` as trained: one row per image whose branches share the visual prefix, logits at
label positions only, everything visual once per image, mask loss at the resolution of the recipe `uniresxx_7b`.
lisa: one row per expression under plain causal attention, logits of the whole row, and everything that makes the
visual prefix (low tower, fusion, region tokens, MGFE) once per *expression*, as LISA's `images_clip.expand` does
with CLIP and projector; the mask loss at the photograph's size (logits resized to the high frame, cut, resized to
640 x 480; image by image). The high tower and the mask head's maps are made once per image, as LISA's SAM encoder
is, though here the high tower feeds the prefix too.
gsva: one row per image, all its expressions in one question and one answer (`a: [SEG], b: [SEG], …`), vision once,
logits of the whole row, mask loss as in lisa.

Sizes are those of `uniresxx_7b` (576 image, 32 object and 64 part tokens, three marks) with widths divided by 16 and
depths by 8; what that recipe freezes and adapts (LoRA) is so here. The vocabulary is a sixteenth too: at hidden size
256 all 32,064 rows would let the full logits decide the figure. Boxes are given (drawn at random, all valid), so the
box head is in no arm. The two baselines have no quality and presence terms. `ours_on_points` in the details is ours
with the mask loss of the recipe `uniresxx_7b_24gb` (sampled points). On a busy machine the processor's seconds in the
details say more. The baselines are our own, by description; no code of others is run.

Shapes: B images, K expressions of each, E = B K, R rows, L prefix, T text tokens, D width, V vocabulary, y x photo.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._common import finish, interleaved, median_of, parser
from mllm.chat import IGNORE, ChatTurn, Mark, render
from mllm.config import MLLMConfig, TuningConfig, llava_7b
from mllm.modeling import Boxes, ImageFeatures
from mllm.tokens import Vocabulary
from train.recipes.uniresxx_7b import uniresxx_7b
from train.recipes.uniresxx_7b_24gb import uniresxx_7b_24gb
from uniresxx.data.store.photos import photo_of
from uniresxx.imaging.geometry import Letterbox
from uniresxx.imaging.masks import encode
from uniresxx.model.collate import collate, make_sample
from uniresxx.model.config import PyramidHeadConfig, UniRESPlusPlusConfig
from uniresxx.model.losses import photo_logits
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.regions.classical import random_boxes
from uniresxx.types import Batch, Expression, Granularity, ImageRecord

IMAGES, EXPRESSIONS, REPEATS = 2, 7, 5
HEIGHT, WIDTH = 480, 640
VOCABULARY, LORA = 2048, 4  # rank 64 / 16
TEXTS = (
    "the left wheel of the red car", "man in the blue shirt", "the two dogs on the sofa", "handle of the white mug",
    "woman holding an umbrella", "all legs of the brown horse", "the umbrella that is not open",
)  # fmt: skip
TOLERANCE = 1e-4
SETTLE = 1.0  # dice smoothing, pixels


@dataclass(frozen=True)
class Sizes:
    """What is measured; smaller in the tests."""

    mllm: MLLMConfig
    images: int = IMAGES
    repeats: int = REPEATS
    photo: tuple[int, int] = (HEIGHT, WIDTH)


def full() -> Sizes:
    """`uniresxx_7b`, widths / 16, depths / 8."""
    m = replace(
        llava_7b(),
        low_width=64, low_layers=3, low_heads=2, low_mlp=256,
        high_widths=(12, 24, 48, 96), high_depths=(1, 1, 3, 1),
        llm_width=256, llm_layers=4, llm_heads=4, llm_mlp=688, mgfe_width=64,
        vocabulary=VOCABULARY, bos=None, init_std=0.05, embedding_std=0.05,
    )  # fmt: skip
    return Sizes(m)


def small() -> Sizes:
    """The tiny model: shows that it runs."""
    m = MLLMConfig(llm_layers=1, llm_width=64, llm_mlp=64, vocabulary=VOCABULARY)
    return Sizes(m, images=1, repeats=1, photo=(48, 64))


@dataclass(frozen=True)
class Text:
    """Token rows of a baseline, with the position of the state that predicts each [SEG], in order of expressions."""

    ids_RT: Tensor
    labels_RT: Tensor
    image_R: Tensor
    row_of_expr_E: Tensor
    seg_E: Tensor


@dataclass(frozen=True)
class Case:
    """The same images and expressions for all arms."""

    model: UniRESPlusPlusModel
    batch: Batch
    per_expression: Text
    per_image: Text
    truth_Eyx: Tensor
    letterbox: Letterbox


def make_case(sizes: Sizes) -> Case:
    """Random weights, photographs and ellipses from seed 0."""
    torch.manual_seed(0)
    recipe = uniresxx_7b().model
    config = UniRESPlusPlusConfig(
        mllm=sizes.mllm,
        head=PyramidHeadConfig(width=16, heads=2),
        loss=recipe.loss,
        boxes="grid",
        tuning=TuningConfig(frozen=recipe.tuning.frozen, lora_rank=LORA, token_rows=recipe.tuning.token_rows),
    )
    vocabulary = Vocabulary.train(TEXTS, sizes.mllm.vocabulary)
    model = UniRESPlusPlusModel(config, vocabulary)
    records = [make_record(number, sizes.photo) for number in range(sizes.images)]
    samples = [
        make_sample(r, photo_of(r), r.expressions, [], range(EXPRESSIONS), config, vocabulary)
        for r in records
    ]
    batch = with_boxes(collate(samples, config, vocabulary), sizes.mllm)
    truth = np.stack([mask for number in range(sizes.images) for mask in ellipses(number, sizes.photo)])
    return Case(
        model, batch, rows_of(batch, vocabulary.pad), packed_rows(sizes.images, vocabulary),
        torch.from_numpy(truth), samples[0].view.letterbox,
    )  # fmt: skip


def with_boxes(batch: Batch, m: MLLMConfig) -> Batch:
    """The batch with every object and part box there, so that no visual token is padding in any arm."""
    B, side = len(batch.branch_BT), m.high_size
    objects, parts = (
        torch.from_numpy(np.stack([random_boxes(side, count, seed) for seed in range(B)]))
        for count in (m.max_objects, m.max_parts)
    )
    there = partial(torch.ones, dtype=torch.bool)
    return replace(
        batch,
        object_boxes_BO4=objects,
        object_valid_BO=there(B, m.max_objects),
        part_boxes_BP4=parts,
        part_valid_BP=there(B, m.max_parts),
    )


def ellipses(number: int, size: tuple[int, int]) -> list[np.ndarray]:
    """The truth masks of an image, bool (y, x)."""
    draw, (height, width) = np.random.default_rng(number), size
    y, x = np.mgrid[:height, :width] / np.array(size).reshape(2, 1, 1)
    found = []
    for _ in range(EXPRESSIONS):
        (cy, cx), (ry, rx) = draw.uniform(0.25, 0.75, 2), draw.uniform(0.05, 0.25, 2)
        found.append(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1)
    return found


def make_record(number: int, size: tuple[int, int]) -> ImageRecord:
    """A photograph of noise with its expressions."""
    photo = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
    expressions = tuple(
        Expression(f"made/train/{number}_{index}", text, Granularity.OBJECT, encode(mask))
        for index, (text, mask) in enumerate(zip(TEXTS, ellipses(number, size), strict=True))
    )
    return ImageRecord(str(number), *size, expressions, pixels=photo)


def rows_of(batch: Batch, pad: int) -> Text:
    """One row per expression, cut from the packed rows: the very same tokens."""
    ids, labels, images, seg = [], [], [], []
    for expression, image in enumerate(batch.image_of_expr_E.tolist()):
        branch_T = batch.branch_BT[image]
        place = int(batch.seg_position_E[expression])
        own = (branch_T == branch_T[place]).nonzero()[:, 0]
        ids.append(batch.token_ids_BT[image, own])
        labels.append(batch.labels_BT[image, own])
        images.append(image)
        seg.append(place - int(own[0]))
    padded = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    return Text(
        padded(ids, padding_value=pad), padded(labels, padding_value=IGNORE), torch.tensor(images),
        torch.arange(len(images)), torch.tensor(seg),
    )  # fmt: skip


def packed_rows(images: int, vocabulary: Vocabulary) -> Text:
    """One row per image: one question with all expressions, one answer with all [SEG]."""
    answer: list[str | Mark] = []
    for index, text in enumerate(TEXTS):
        answer += [f"{text}:", Mark.SEG, "," if index + 1 < len(TEXTS) else "."]
    row = render([ChatTurn(f"Segment {', '.join(TEXTS)}.", tuple(answer))], vocabulary)
    return Text(
        torch.tensor([row.ids_T] * images), torch.tensor([row.labels_T] * images), torch.arange(images),
        torch.arange(images).repeat_interleave(EXPRESSIONS), torch.tensor(row.decisions * images),
    )  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What an arm computed: the loss that was differentiated, its text term, the states that predict [SEG]."""

    loss: float
    text: float
    prompts_ED: Tensor


def ours(case: Case) -> Result:
    """As trained."""
    model, batch = case.model, case.batch
    seen: list[Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1].detach()))
    counts = model.counts(batch)
    terms = model.loss(model(batch), batch)
    hook.remove()
    loss = terms.total(counts)
    loss.backward()
    return Result(float(loss.detach()), float(terms.sums["text"].detach()) / counts["text"], seen[0])


def see(case: Case, text: Text) -> ImageFeatures:
    """What each row sees: the high tower once per image, the rest once per row."""
    batch, mllm, image_R = case.batch, case.model.mllm, text.image_R
    stages = mllm.high(batch.pixels_high_B3HW)
    boxes = (batch.object_boxes_BO4, batch.object_valid_BO, batch.part_boxes_BP4, batch.part_valid_BP)
    if len(image_R) == len(batch.pixels_high_B3HW):
        return mllm.encode_image(batch.pixels_low_B3hw, batch.pixels_high_B3HW, Boxes(*boxes), stages)
    rows = mllm.encode_image(
        batch.pixels_low_B3hw[image_R], batch.pixels_high_B3HW, Boxes(*(value[image_R] for value in boxes)),
        [stage[image_R] for stage in stages],
    )  # fmt: skip
    return replace(rows, stages=stages)


def head_features(model: UniRESPlusPlusModel, sight: ImageFeatures, image_R: Tensor) -> Any:
    """The mask head's maps, once per image: from its first row."""
    g, first = (
        model.config.mllm.low_grid,
        (image_R.diff(prepend=image_R.new_tensor([-1])) > 0).nonzero()[:, 0],
    )
    layout = sight.layout
    image_BDhw = sight.prefix_BLD[first][:, layout.image].transpose(1, 2).unflatten(2, (g, g))
    regions = torch.cat((sight.object_BOD, sight.part_BPD), dim=1)[first]
    valid = torch.cat((sight.valid_BL[:, layout.objects], sight.valid_BL[:, layout.parts]), dim=1)[first]
    return model.head.encode(sight.stages, image_BDhw, regions, valid)


def theirs(case: Case, text: Text) -> Result:
    """Plain causal rows, logits of whole rows, mask loss at the photograph's size."""
    model = case.model
    mllm, batch = model.mllm, case.batch
    sight = see(case, text)
    hidden_RLD = torch.cat((sight.prefix_BLD, mllm.embed(text.ids_RT)), dim=1)
    states_RLD = mllm.llm.model(inputs_embeds=hidden_RLD, use_cache=False).last_hidden_state
    logits_RLV = mllm.logits(states_RLD)
    labels_RL = F.pad(text.labels_RT, (sight.layout.length, 0), value=IGNORE)
    said = F.cross_entropy(logits_RLV.float().flatten(0, 1), labels_RL.flatten(), ignore_index=IGNORE)
    prompts_ED = states_RLD[text.row_of_expr_E, sight.layout.length + text.seg_E]
    features = head_features(model, sight, text.image_R)
    masks_Ehw = model.head(features, prompts_ED, batch.image_of_expr_E).masks_Ehw
    bce, dice = photo_loss(masks_Ehw, case)
    w, count = model.config.loss, len(prompts_ED)
    loss = w.text * said + (w.mask * bce + w.dice * dice) / count
    loss.backward()
    return Result(float(loss.detach()), float(said.detach()), prompts_ED.detach())


def photo_loss(masks_Ehw: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """(BCE, dice) summed over masks, at the photograph's size, image by image."""
    box, side = case.letterbox, case.model.config.mllm.high_size
    bce, dice = masks_Ehw.new_zeros(()), masks_Ehw.new_zeros(())
    for image in case.batch.image_of_expr_E.unique().tolist():
        own = case.batch.image_of_expr_E == image
        truth = case.truth_Eyx[own].float()
        inner = box.inner_height, box.inner_width
        logits = photo_logits(masks_Ehw[own], (side, side), inner, truth.shape[-2:])
        bce = bce + F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((1, 2)).sum()
        p = logits.sigmoid()
        shared, total = (p * truth).sum((1, 2)), p.sum((1, 2)) + truth.sum((1, 2))
        dice = dice + (1 - (2 * shared + SETTLE) / (total + SETTLE)).sum()
    return bce, dice


def ours_on_points(case: Case) -> Result:
    """`ours` with the mask loss of `uniresxx_7b_24gb`."""
    model = case.model
    before = model.config
    model.config = replace(before, loss=uniresxx_7b_24gb().model.loss)
    try:
        return ours(case)
    finally:
        model.config = before


def timed(case: Case, arm: Callable[[Case], Result]) -> tuple[float, float]:
    """Seconds, and those of the processor, of one forward and backward pass."""
    case.model.zero_grad(set_to_none=True)
    start, busy = time.perf_counter(), time.process_time()
    arm(case)
    return time.perf_counter() - start, time.process_time() - busy


def ratio(theirs: Sequence[tuple[float, float]], ours: Sequence[tuple[float, float]]) -> float:
    """Median over the turns of how much longer theirs took: neighbours in time share what else the machine does."""
    return median_of([one[0] / other[0] for one, other in zip(theirs, ours, strict=True)])


def measure(sizes: Sizes) -> tuple[dict[str, float], dict[str, Any]]:
    """(headline, details). What must be equal is asserted first; that warms the arms up as well."""
    case = make_case(sizes)
    arms: dict[str, Callable[[Case], Result]] = {
        "ours": ours,
        "lisa": lambda c: theirs(c, c.per_expression),
        "gsva": lambda c: theirs(c, c.per_image),
        "ours_on_points": ours_on_points,
    }
    first = {name: arm(case) for name, arm in arms.items()}
    error = float((first["ours"].prompts_ED - first["lisa"].prompts_ED).abs().max())
    assert error < TOLERANCE, f"the states that predict [SEG] differ by {error}"
    assert abs(first["ours"].text - first["lisa"].text) < TOLERANCE, (first["ours"].text, first["lisa"].text)
    load = os.getloadavg()[0]
    times = interleaved({name: partial(timed, case, arm) for name, arm in arms.items()}, sizes.repeats)
    seconds = {name: median_of([wall for wall, _ in values]) for name, values in times.items()}
    busy = {name: median_of([processor for _, processor in values]) for name, values in times.items()}
    length = case.model.config.mllm.low_grid**2 + sizes.mllm.max_objects + sizes.mllm.max_parts + 3
    headline = {
        "expressions_ratio": ratio(times["lisa"], times["ours"]),
        "expressions_ratio_gsva_packing": ratio(times["gsva"], times["ours"]),
    }
    details = {
        **{f"seconds_{name}": round(value, 4) for name, value in seconds.items()},
        **{f"processor_seconds_{name}": round(value, 4) for name, value in busy.items()},
        **{f"all_{name}": [round(wall, 3) for wall, _ in times[name]] for name in arms},
        "processor_ratio": round(busy["lisa"] / busy["ours"], 3),
        "processor_ratio_gsva_packing": round(busy["gsva"] / busy["ours"], 3),
        "ratio_on_points": round(ratio(times["lisa"], times["ours_on_points"]), 3),
        "ratio_on_points_gsva_packing": round(ratio(times["gsva"], times["ours_on_points"]), 3),
        "expressions": sizes.images * EXPRESSIONS,
        "prefix_tokens": length,
        "row_tokens_ours": length + case.batch.token_ids_BT.shape[1],
        "row_tokens_lisa": length + case.per_expression.ids_RT.shape[1],
        "row_tokens_gsva": length + case.per_image.ids_RT.shape[1],
        "max_abs_error": error,
        "mask_loss_ours": case.model.config.loss.resolution,
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2), round(os.getloadavg()[0], 2)],
        "gpu": "not measured",
    }
    return headline, details


def main(argv: Sequence[str] | None = None) -> int:
    """The benchmark."""
    words = parser("training_step", __doc__).parse_args(argv)
    headline, details = measure(small() if words.small else full())
    finish("training_step", headline, details, words.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
