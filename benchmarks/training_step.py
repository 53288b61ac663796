"""One training step on a few photographs with 7 expressions each, by three methods on the same model.

    python -m benchmarks.training_step [--record]

ours: `model.forward` and `model.loss` as in training. One row per image, whose branches share the visual prefix;
logits at label positions only; everything visual once per image; mask loss at the resolution of `uniresxx_7b`.
lisa: one row per expression under plain causal attention, logits of the whole row. Low tower, fusion, region tokens
and MGFE run once per *expression*, as LISA's `images_clip.expand` does with CLIP and projector. The high tower and
the mask head's maps are made once per image, as LISA's SAM encoder is. Mask loss at the photograph's size.
gsva: one row per image with all its expressions in one question and one answer (`a: [SEG], b: [SEG], …`), vision
once, logits of the whole row, mask loss as in lisa.

In the details, ours in three other ways, against gsva (`ratio_gsva_*`): mask loss at the photograph's size, as in
both baselines; on sampled points, as in `uniresxx_7b_24gb`; with the features of the frozen tower kept from before.

Sizes are those of `uniresxx_7b` (576 image, 32 object and 64 part tokens, three marks) with widths divided by 16,
depths by 8 and the vocabulary by 16: with all 32,064 rows the logits would decide the figure at this width. Frozen
weights and LoRA are as in that recipe. Boxes are random and given, so no arm runs the box head; the two baselines
have no quality and presence terms. We wrote both baselines after their descriptions; no code of others runs here.

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
from torch import Tensor, nn

from benchmarks._common import finish, interleaved, median_of, parser
from benchmarks._photographs import EXPRESSIONS, TEXTS, Text, ellipses, make_record, packed_rows, rows_of
from mllm.chat import IGNORE
from mllm.chat_templates import ChatTemplate
from mllm.config import MLLMConfig, TuningConfig, llava_7b, tiny_llama, vicuna
from mllm.modeling import Boxes, ImageFeatures
from mllm.tokens import Vocabulary
from mllm.tower_families import clip_vit, convnext
from train.recipes.uniresxx_7b import uniresxx_7b
from uniresxx.data.store.photos import photo_of
from uniresxx.imaging.geometry import Letterbox
from uniresxx.model.collate import collate, make_sample
from uniresxx.model.config import MaskResolution, PyramidHeadConfig, UniRESPlusPlusConfig
from uniresxx.model.losses import resized
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.regions.classical import random_boxes
from uniresxx.types import Batch

VOCABULARY, LORA = 2048, 4  # rank 64 / 16
TOLERANCE = 1e-4
DICE_SMOOTHING = 1.0  # pixels


@dataclass(frozen=True)
class Sizes:
    """What is measured; smaller in the tests."""

    mllm: MLLMConfig
    images: int = 2
    repeats: int = 5
    photo: tuple[int, int] = (480, 640)


def full() -> Sizes:
    """`uniresxx_7b` with the pyramid head, widths / 16, depths / 8."""
    m = replace(
        llava_7b(),
        low=clip_vit(64, 3, 2, 256, 14), high=convnext((12, 24, 48, 96), (1, 1, 3, 1), 4, 1e-6),
        llm=vicuna(256, 688, 4) | {"vocab_size": VOCABULARY},
        chat=ChatTemplate(), count_padding=True, mgfe_width=64, init_std=0.05, embedding_std=0.05,
    )  # fmt: skip
    return Sizes(m)


def small() -> Sizes:
    """The tiny model: shows that it runs."""
    llm = tiny_llama(hidden_size=64, num_hidden_layers=1, intermediate_size=64, vocab_size=VOCABULARY)
    m = MLLMConfig(llm=llm)
    return Sizes(m, images=1, repeats=1, photo=(48, 64))


@dataclass(frozen=True)
class Case:
    """The same images and expressions for all arms."""

    config: UniRESPlusPlusConfig
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
        tuning=TuningConfig(frozen=("low",), lora_rank=LORA, token_rows=recipe.tuning.token_rows),
    )
    vocabulary = Vocabulary.train(TEXTS, sizes.mllm.token_count)
    model = UniRESPlusPlusModel(config, vocabulary)
    records = [make_record(number, sizes.photo) for number in range(sizes.images)]
    at_photo = replace(
        config, loss=replace(config.loss, resolution="photo")
    )  # the batch holds truth of both sizes
    samples = [
        make_sample(r, photo_of(r), r.expressions, [], range(EXPRESSIONS), at_photo, vocabulary)
        for r in records
    ]
    batch = with_boxes(collate(samples, at_photo, vocabulary), sizes.mllm)
    truth = np.stack([mask for number in range(sizes.images) for mask in ellipses(number, sizes.photo)])
    return Case(
        config, model, batch, rows_of(batch, vocabulary.pad), packed_rows(sizes.images, vocabulary),
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


@dataclass(frozen=True)
class Result:
    """What an arm computed: the loss that was differentiated, its text term, the states that predict [SEG]."""

    loss: float
    text: float
    prompts_ED: Tensor


def ours(case: Case) -> Result:
    """As trained."""
    model, batch = case.model, case.batch
    prompts: list[Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda _, inputs: prompts.append(inputs[1].detach()))
    counts = model.counts(batch)
    terms = model.loss(model(batch), batch)
    hook.remove()
    loss = terms.total(counts)
    loss.backward()
    return Result(float(loss.detach()), float(terms.sums["text"].detach()) / counts["text"], prompts[0])


def ours_with(case: Case, resolution: MaskResolution, kept: Tensor | None = None) -> Result:
    """`ours` with another resolution of the mask loss; `kept`: what the frozen low tower gave before."""
    own, tower = case.model.config, case.model.mllm.low
    try:
        case.model.config = replace(own, loss=replace(own.loss, resolution=resolution))
        if kept is not None:
            case.model.mllm.low = Kept(kept)  # type: ignore[assignment]
        return ours(case)
    finally:
        case.model.config, case.model.mllm.low = own, tower


class Kept(nn.Module):
    """Gives the same features again."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features

    def forward(self, _: Tensor) -> Tensor:
        """Those of the first pass."""
        return self.features


@torch.no_grad()
def low_features(case: Case) -> Tensor:
    """What the low tower, which the recipe freezes, makes of the batch."""
    model = case.model
    assert not any(parameter.requires_grad for parameter in model.mllm.low.parameters())
    return model.mllm.low(model.normalise_low(case.batch.pixels_low_B3hw))


def encode_rows(case: Case, text: Text) -> ImageFeatures:
    """The image features of each row: the high tower once per image, the rest once per row."""
    batch, mllm, image_R = case.batch, case.model.mllm, text.image_R
    low_B3hw = case.model.normalise_low(batch.pixels_low_B3hw)
    high_B3HW = case.model.normalise_high(batch.pixels_high_B3HW)
    stages = mllm.high(high_B3HW)
    one_row_per_image = len(image_R) == len(high_B3HW)

    def of_rows(value: Tensor) -> Tensor:
        return value if one_row_per_image else value[image_R]

    boxes = (batch.object_boxes_BO4, batch.object_valid_BO, batch.part_boxes_BP4, batch.part_valid_BP)
    features = mllm.encode_image(
        of_rows(low_B3hw), high_B3HW, Boxes(*map(of_rows, boxes)),
        [of_rows(stage) for stage in stages],
    )  # fmt: skip
    return replace(features, stages=stages)


def head_features(case: Case, features: ImageFeatures, image_R: Tensor) -> Any:
    """The mask head's maps, once per image: from its first row."""
    inputs = case.model.head_inputs(features, None)
    first = (image_R.diff(prepend=image_R.new_tensor([-1])) > 0).nonzero()[:, 0]
    rows = {name: getattr(inputs, name)[first] for name in ("image_BDhw", "regions_BMD", "region_valid_BM")}
    return case.model.head.encode(inputs._replace(**rows))


def baseline(case: Case, text: Text) -> Result:
    """Plain causal rows, logits of whole rows, mask loss at the photograph's size."""
    mllm, batch, weights = case.model.mllm, case.batch, case.config.loss
    features = encode_rows(case, text)
    prefix = features.layout.length
    hidden_RLD = torch.cat((features.prefix_BLD, mllm.embed(text.ids_RT)), dim=1)
    states_RLD = mllm.llm.model(inputs_embeds=hidden_RLD, use_cache=False).last_hidden_state
    logits_RLV = mllm.logits(states_RLD)
    labels_RL = F.pad(text.labels_RT, (prefix, 0), value=IGNORE)
    text_loss = F.cross_entropy(logits_RLV.float().flatten(0, 1), labels_RL.flatten(), ignore_index=IGNORE)
    prompts_ED = states_RLD[text.row_of_expr_E, prefix + text.seg_E]
    maps = head_features(case, features, text.image_R)
    masks_Ehw = case.model.head(maps, prompts_ED, batch.image_of_expr_E).masks_Ehw
    bce, dice = photo_loss(masks_Ehw, case)
    loss = weights.text * text_loss + (weights.mask * bce + weights.dice * dice) / len(prompts_ED)
    loss.backward()
    return Result(float(loss.detach()), float(text_loss.detach()), prompts_ED.detach())


def photo_loss(masks_Ehw: Tensor, case: Case) -> tuple[Tensor, Tensor]:
    """(BCE, dice) summed over masks, at the photograph's size, image by image."""
    box, side = case.letterbox, case.config.mllm.high_size
    bce, dice = masks_Ehw.new_zeros(()), masks_Ehw.new_zeros(())
    for image in case.batch.image_of_expr_E.unique().tolist():
        own = case.batch.image_of_expr_E == image
        truth = case.truth_Eyx[own].float()
        inner = box.inner_height, box.inner_width
        square = resized(masks_Ehw[own], (side, side))  # all of it, as SAM's `postprocess_masks`
        logits = resized(square[:, : inner[0], : inner[1]], truth.shape[-2:])
        bce = bce + F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((1, 2)).sum()
        p = logits.sigmoid()
        shared, total = (p * truth).sum((1, 2)), p.sum((1, 2)) + truth.sum((1, 2))
        dice = dice + (1 - (2 * shared + DICE_SMOOTHING) / (total + DICE_SMOOTHING)).sum()
    return bce, dice


def timed(case: Case, arm: Callable[[Case], Result]) -> float:
    """Seconds of one forward and backward pass."""
    case.model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    arm(case)
    return time.perf_counter() - start


def ratio(baseline: Sequence[float], ours: Sequence[float]) -> float:
    """Median over the turns of baseline / ours: neighbours in time share what else the machine does."""
    return median_of([one / other for one, other in zip(baseline, ours, strict=True)])


def measure(sizes: Sizes) -> tuple[dict[str, float], dict[str, Any]]:
    """(headline, details). The arms must agree on states and text loss; checking that also warms them up."""
    case = make_case(sizes)
    kept = low_features(case)
    arms: dict[str, Callable[[Case], Result]] = {
        "ours": ours,
        "lisa": lambda c: baseline(c, c.per_expression),
        "gsva": lambda c: baseline(c, c.per_image),
        "ours_photo": lambda c: ours_with(c, "photo"),
        "ours_points": lambda c: ours_with(c, "points"),
        "ours_kept": lambda c: ours_with(c, case.config.loss.resolution, kept),
    }
    first = {name: arm(case) for name, arm in arms.items()}
    error = float((first["ours"].prompts_ED - first["lisa"].prompts_ED).abs().max())
    assert error < TOLERANCE, f"the states that predict [SEG] differ by {error}"
    assert abs(first["ours"].text - first["lisa"].text) < TOLERANCE, (first["ours"].text, first["lisa"].text)
    load = os.getloadavg()[0]
    times = interleaved({name: partial(timed, case, arm) for name, arm in arms.items()}, sizes.repeats)
    prefix = sizes.mllm.low_grid**2 + sizes.mllm.max_objects + sizes.mllm.max_parts + 3
    headline = {
        "expressions_ratio": ratio(times["lisa"], times["ours"]),
        "expressions_ratio_gsva_packing": ratio(times["gsva"], times["ours"]),
    }
    details = {
        **{f"seconds_{name}": round(median_of(values), 4) for name, values in times.items()},
        **{
            f"ratio_gsva_{way}": round(ratio(times["gsva"], times[f"ours_{way}"]), 3)
            for way in ("photo", "points", "kept")
        },
        "expressions": sizes.images * EXPRESSIONS,
        "prefix_tokens": prefix,
        "row_tokens_ours": prefix + case.batch.token_ids_BT.shape[1],
        "row_tokens_lisa": prefix + case.per_expression.ids_RT.shape[1],
        "row_tokens_gsva": prefix + case.per_image.ids_RT.shape[1],
        "max_abs_error": error,
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
