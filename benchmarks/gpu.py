"""What the 7B recipe costs on one GPU, with random weights: training steps, answers, memory, both mask heads.

    python -m benchmarks.gpu --record        (one GPU of 140 GB: plan predicts 98 GB at K = 32)
    python -m benchmarks.gpu --small         (anywhere: tiny sizes, shows that it runs; no figures)

Training: the recipe's own step (its images per micro-batch, K expressions each; forward, backward, update). Answers:
one photo encoded and K expressions answered, the text cut after ANSWER tokens. Peak memory is what torch allocated.

Model FLOP utilisation = FLOPs of a step / seconds / the GPU's dense bf16 peak. FLOPs of a step are those the method
needs: recomputed activations and what a dense attention mask wastes do not count.

    frozen weights of the LLM       2 N per token forward, 2 N backward (gradient of the activations only)
    adapters (LoRA)                 6 n per token
    attention                       12 D per layer and pair (query, key it may see), forward and backward
    output matrix, frozen           4 V D per label position
    everything else                 forward as torch counts it, times 1 where frozen (low tower), 3 where trained

Shapes: B images, K expressions of an image, L prefix, T tokens of a branch, D LLM width, V vocabulary.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks._common import finish, median_of, parser
from mllm.config import MLLMConfig, tiny_llama
from mllm.lora import is_adapter
from mllm.tokens import Vocabulary
from mllm.tower_families import clip_vit, convnext
from train.engines.base import Engine
from train.plan import plan
from train.recipe import Recipe
from train.recipes.uniresxx_7b import uniresxx_7b
from train.step import do_step
from uniresxx.data.store.photos import photo_of
from uniresxx.imaging.masks import area, encode
from uniresxx.model.collate import collate, make_sample
from uniresxx.model.config import (
    BoxHeadConfig,
    HeadKind,
    PyramidHeadConfig,
    SamHeadConfig,
    UniRESPlusPlusConfig,
)
from uniresxx.model.modeling import UniRESPlusPlusModel
from uniresxx.model.templates import TRAINING_TEMPLATES
from uniresxx.model.tuning import cast_frozen
from uniresxx.types import Batch, Decoding, Expression, Granularity, ImageRecord

NAME = "gpu"
Details = dict[str, float]  # medians by name
TRAIN_K, INFER_K = (1, 8, 32), (1, 7, 32)
HEADLINE_TRAIN_K, HEADLINE_INFER_K = 8, 7
WARM_UP, REPEATS = 2, 5
ANSWER = 3  # tokens: a mark, a full stop, the end
HEIGHT, WIDTH = 480, 640
SENTENCE = "the left wheel of the small red car that stands in front of the old house"
# Dense bf16 peak in FLOP/s, of the makers' data sheets; the first name found in that of the GPU counts.
PEAK = {
    "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12,
    "4090": 165e12, "3090": 71e12,
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """What is measured; smaller in the tests."""

    train_k: Sequence[int] = TRAIN_K
    infer_k: Sequence[int] = INFER_K
    warm_up: int = WARM_UP
    repeats: int = REPEATS
    small: bool = False


SMALL = Sizes(warm_up=0, repeats=1, small=True)


def recipe_of(sizes: Sizes, head: HeadKind, count: int) -> Recipe:
    """The 7B recipe with K expressions per image, without pretrained weights, and one of the mask heads."""
    recipe = uniresxx_7b()
    model: UniRESPlusPlusConfig = replace(recipe.model, mask_head=head)
    if sizes.small:
        tiny = MLLMConfig(
            low=clip_vit(32, 2, 2, patch=14), low_size=28, low_stats="clip",
            high=convnext((8, 16, 24, 32), (1, 1, 1, 1), 4), high_size=64, high_stats="clip", projector="mlp2x_gelu",
            llm=tiny_llama(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=400
            ),
            max_objects=3, max_parts=4, mgfe_width=16, mgfe_heads=4, activation_checkpointing=True,
        )  # fmt: skip
        sam = SamHeadConfig(
            size=64, width=32, layers=2, heads=2, global_blocks=(1,), window=2, decoder_width=16,
            decoder_mlp=32, decoder_heads=2,
        )  # fmt: skip
        model = replace(
            model, mllm=tiny, sam=sam, head=PyramidHeadConfig(width=16, heads=2),
            box_head=BoxHeadConfig(width=16, convs=1), loss=replace(model.loss, points=100),
        )  # fmt: skip
    if head == "pyramid":  # it reads the high tower, which is trained with it
        model = replace(model, tuning=replace(model.tuning, frozen=("low",)))
    optim = replace(recipe.optim, lr_scale=(("mllm.high", 0.1),) if head == "pyramid" else ())
    data = replace(recipe.data, expressions_per_image=count, accumulate=1)
    return replace(recipe, model=model, data=data, optim=optim)


def vocabulary_of(config: MLLMConfig) -> Vocabulary:
    """Words that cost about a token each, as LLaVA's do."""
    return Vocabulary.train([SENTENCE, *TRAINING_TEMPLATES] * 5, min(config.token_count, 600), config.chat)


def build(recipe: Recipe, vocabulary: Vocabulary, device: torch.device) -> UniRESPlusPlusModel:
    """Random weights, made where they are used; frozen ones in bf16."""
    torch.manual_seed(0)
    with device:
        model = UniRESPlusPlusModel(recipe.model, vocabulary)
    cast_frozen(model, replace(model.config.tuning, frozen_dtype="bf16"))
    return model


def text_of(number: int) -> str:
    """Different expressions of the same length."""
    words = SENTENCE.split()
    return " ".join(words[number % len(words) :] + words[: number % len(words)])


def photograph(number: int) -> np.ndarray:
    """uint8 (y, x, 3) noise: the content does not change what is computed."""
    return np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def batch_of(recipe: Recipe, vocabulary: Vocabulary, count: int) -> Batch:
    """One micro-batch of the recipe, all expressions with a mask."""
    config, samples = recipe.model, []
    for image in range(recipe.data.batch_images):
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        mask[100:300, 50 + 20 * image : 250] = True
        rle = encode(mask)
        expressions = tuple(
            Expression(f"gpu/train/{image}_{n}", text_of(n), Granularity.OBJECT, rle, area(rle))
            for n in range(count)
        )
        record = ImageRecord(str(image), HEIGHT, WIDTH, expressions, pixels=photograph(image))
        samples.append(
            make_sample(record, photo_of(record), expressions, (), [0] * count, config, vocabulary)
        )
    return collate(samples, config, vocabulary)


def llm_flops(model: UniRESPlusPlusModel, prefix: int, branches: Sequence[int], labels: int) -> float:
    """FLOPs of the LLM in one training step on one image: the formula above."""
    m, llm = model.mllm.config, model.mllm.llm
    tokens = prefix + sum(branches)
    frozen = trained = adapters = 0
    for name, parameter in llm.model.layers.named_parameters():
        if parameter.ndim == 2:
            if is_adapter(name):
                adapters += parameter.numel()
            elif parameter.requires_grad:
                trained += parameter.numel()
            else:
                frozen += parameter.numel()
    pairs = prefix * (prefix + 1) / 2 + sum(t * prefix + t * (t + 1) / 2 for t in branches)
    output = (6 if llm.lm_head.weight.requires_grad else 4) * m.token_count * m.llm_width * labels
    weights = (4 * frozen + 6 * (trained + adapters)) * tokens
    return weights + 12 * m.attention_width * m.llm_config.num_hidden_layers * pairs + output


def step_flops(engine: Engine, model: UniRESPlusPlusModel, batch: Batch) -> float:
    """FLOPs of one training step on a micro-batch."""
    counter = FlopCounterMode(display=False)
    model.eval()
    with torch.no_grad(), counter:
        engine.forward(engine.place(batch))
    model.train()
    found = counter.get_flop_counts()

    def forward(path: str) -> int:
        return sum(sum(ops.values()) for name, ops in found.items() if name.endswith(path))

    def passes(module: nn.Module) -> int:
        return 3 if any(p.requires_grad for p in module.parameters()) else 1

    llm = forward(".mllm.llm.model") + forward(".mllm.llm.lm_head")
    low, high = forward(".mllm.low"), forward(".mllm.high")
    encoder = forward(".head.sam.vision_encoder")
    rest = forward("Global") - llm - low - high - encoder
    total = float(low * passes(model.mllm.low) + high * passes(model.mllm.high) + encoder + 3 * rest)
    prefix = model.mllm.prefix_length
    for branch_T, labels_T in zip(batch.branch_BT, batch.labels_BT, strict=True):
        branches = [int((branch_T == k).sum()) for k in range(int(branch_T.max()) + 1)]
        total += llm_flops(model, prefix, branches, int((labels_T >= 0).sum()))
    return total


def peak_of(device: torch.device) -> float | None:
    """FLOP/s the GPU could do in bf16; None for one that is not in the table, and for a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK.items() if key in name), None)


def seconds(work: Callable[[], Any], device: torch.device, sizes: Sizes) -> float:
    """Median wall time after warming up, the GPU's queue emptied before and after."""
    times = []
    for turn in range(sizes.warm_up + sizes.repeats):
        _wait(device)
        start = time.perf_counter()
        work()
        _wait(device)
        if turn >= sizes.warm_up:
            times.append(time.perf_counter() - start)
    return median_of(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def train(sizes: Sizes, head: HeadKind, counts: Sequence[int], device: torch.device, found: Details) -> None:
    """Step time, tokens and expressions per second, memory and MFU at each K."""
    recipe = recipe_of(sizes, head, counts[0])
    vocabulary = vocabulary_of(recipe.model.mllm)
    model = build(recipe, vocabulary, device)
    engine = Engine(
        model,
        replace(recipe, engine=replace(recipe.engine, device="auto" if device.type == "cuda" else "cpu")),
    )
    model.train()
    for count in counts:
        batch = batch_of(recipe, vocabulary, count)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        taken = seconds(lambda batch=batch: do_step(engine, model, [batch], 0), device, sizes)  # type: ignore[misc]
        rows = len(batch.token_ids_BT)
        tokens = rows * model.mllm.prefix_length + int((batch.branch_BT >= 0).sum())
        at = f"{head}_k{count}"
        found |= {
            f"train_seconds_{at}": taken,
            f"train_tokens_per_s_{at}": tokens / taken,
            f"train_expressions_per_s_{at}": rows * count / taken,
        }
        if device.type == "cuda":
            used = torch.cuda.max_memory_allocated(device)
            found[f"train_peak_gb_{at}"] = used / 1e9
        flops, peak = step_flops(engine, model, batch), peak_of(device)
        found[f"train_tflop_{at}"] = flops / 1e12
        if peak is not None:
            found[f"mfu_{at}"] = flops / taken / peak
        branch = tokens // rows - model.mllm.prefix_length
        planned = plan(recipe_of(sizes, head, count), gpus=1, tokens=branch // count)
        found[f"train_planned_gb_{at}"] = planned.peak / 1e9


def infer(sizes: Sizes, head: HeadKind, counts: Sequence[int], device: torch.device, found: Details) -> None:
    """Expressions per second of one photo at a time; seconds of its encoding and of the mask head alone."""
    recipe = recipe_of(sizes, head, counts[0])
    model = build(recipe, vocabulary_of(recipe.model.mllm), device).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    photo, decoding = photograph(0), Decoding(max_new_tokens=ANSWER)
    found[f"encode_seconds_{head}"] = seconds(lambda: model.encode_images([photo]), device, sizes)
    encoded = model.encode_images([photo])
    for count in counts:
        texts = [[text_of(n) for n in range(count)]]

        def whole(texts: list[list[str]] = texts) -> None:
            model.answer(model.encode_images([photo]), texts, decoding)

        def masks(count: int = count) -> None:
            prompts = torch.zeros(count, recipe.model.mllm.llm_width, device=device)
            with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16):
                model.head(encoded.features, prompts, torch.zeros(count, dtype=torch.long, device=device))

        taken = seconds(whole, device, sizes)
        found |= {
            f"infer_seconds_{head}_k{count}": taken,
            f"infer_expressions_per_s_{head}_k{count}": count / taken,
            f"head_seconds_{head}_k{count}": seconds(masks, device, sizes),
        }


def measure(sizes: Sizes, device: torch.device) -> Details:
    """Everything, one model at a time."""
    found: Details = {}
    one_train, one_infer = (HEADLINE_TRAIN_K,), (HEADLINE_INFER_K,)
    for work, head, counts in (
        (train, "pyramid", sizes.train_k), (train, "sam", one_train),
        (infer, "pyramid", sizes.infer_k), (infer, "sam", one_infer),
    ):  # fmt: skip
        work(sizes, head, counts, device, found)  # type: ignore[arg-type]
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def headline_of(found: Details, measured: bool) -> dict[str, float | None]:
    """The keys of the benchmark; null where nothing was measured on a GPU."""
    k, q = HEADLINE_TRAIN_K, HEADLINE_INFER_K
    peaks = [value for name, value in found.items() if name.startswith("train_peak_gb")]
    return {
        "mfu": found.get(f"mfu_pyramid_k{k}"),
        f"train_expressions_per_s_k{k}": found[f"train_expressions_per_s_pyramid_k{k}"] if measured else None,
        f"infer_expressions_per_s_k{q}": found[f"infer_expressions_per_s_pyramid_k{q}"] if measured else None,
        "peak_gb": max(peaks) if measured else None,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The benchmark."""
    words = parser(NAME, __doc__).parse_args(argv)
    if words.small and words.record:
        print("gpu: error: --small measures nothing: leave out --record", file=sys.stderr)
        return 2
    if not words.small and not torch.cuda.is_available():
        print(
            "gpu: error: torch finds no GPU; --small shows on a CPU that the benchmark runs", file=sys.stderr
        )
        return 2
    device = torch.device("cpu" if words.small else "cuda")
    found = measure(SMALL if words.small else Sizes(), device)
    finish(NAME, headline_of(found, measured=not words.small), found, words.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
