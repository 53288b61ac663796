"""Recipes of the full-size model on LLaVA-1.5-7B: three stages, each starting from the one before.

Published weights of each option, with sizes and licences in docs/weights.md; a refusal says what another model needs.

    --model.weights.llava    llava-hf/llava-1.5-7b-hf, or converted liuhaotian/llava-v1.5-7b (with low);
                             llava-hf/llava-v1.6-vicuna-7b-hf, llava-hf/llava-v1.6-mistral-7b-hf,
                             converted liuhaotian/llava-v1.6-vicuna-7b, liuhaotian/llava-v1.6-mistral-7b;
                             llava-hf/llava-onevision-qwen2-0.5b-ov-hf, llava-hf/llava-onevision-qwen2-7b-ov-hf,
                             lmms-lab/llava-onevision-qwen2-7b-ov
    --model.weights.low      converted openai/clip-vit-large-patch14-336; openai/clip-vit-large-patch14,
                             google/siglip-so400m-patch14-384, facebook/dinov2-large
    --model.weights.high     laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup;
                             facebook/convnextv2-large-22k-384, microsoft/swin-large-patch4-window12-384-in22k
    --model.weights.sam      facebook/sam2.1-hiera-large; facebook/sam2.1-hiera-tiny, facebook/sam2.1-hiera-small,
                             facebook/sam2.1-hiera-base-plus; with --model.mask_head sam facebook/sam-vit-huge;
                             facebook/sam-vit-base, facebook/sam-vit-large
    --model.weights.owlv2    google/owlv2-base-patch16-ensemble, with --model.boxes owlv2
"""

from __future__ import annotations

from dataclasses import replace

from mllm.config import MLLMConfig, Part, TuningConfig, llava_7b
from train.recipe import DataConfig, EngineConfig, EvalConfig, LogConfig, OptimConfig, Recipe
from uniresxx.model.config import PyramidHeadConfig, UniRESPlusPlusConfig, WeightsConfig, sam2_large, sam_huge

BENCHMARKS = (
    "refcocom/val_part_only", "refcocom/val_object_part", "grefcoco/val", "refcoco/val", "refcoco+/val",
    "refcocog_umd/val",
)  # fmt: skip


def full_model(mllm: MLLMConfig, tuning: TuningConfig) -> UniRESPlusPlusConfig:
    """UniRES++ around an LLM, as docs/method.md describes it: learned boxes, SAM 2.1 head, decision by the token.

    The head is Hiera-L with our streams on. `mask_head` "sam" is ViT-H with the same, "pyramid" is for comparison.
    """
    return UniRESPlusPlusConfig(
        mllm=mllm,
        mask_head="sam2",
        sam2=replace(sam2_large(), region_memory=True, fuse_early=True, paint_regions=True),
        sam=replace(sam_huge(), region_memory=True, fuse_early=True, paint_regions=True),
        head=PyramidHeadConfig(width=256, heads=8, paint_regions=True),
        boxes="learned",
        decision_rule="token",
        tuning=tuning,
        weights=WeightsConfig(required=("llava", "high")),
    )


def joint(name: str, mllm: MLLMConfig, tuning: TuningConfig) -> Recipe:
    """Stage C. LoRA and heads 2e-4; 80 images x 8 expressions a step, 2 images per GPU of 8.

    The mixture `joint` has all granularities (docs/data.md); `--data.mixture` takes another, written or named.
    """
    return Recipe(
        name=name,
        model=full_model(mllm, tuning),
        data=DataConfig(
            source="",
            mixture="joint",
            batch_images=16,
            accumulate=5,
            expressions_per_image=8,
            compose_dialogues=True,
            workers=4,
        ),
        optim=OptimConfig(steps=5000, lr=2e-4, warmup_steps=150),
        engine=EngineConfig(precision="bf16"),
        log=LogConfig(save_every=500),
        eval=EvalConfig(benchmarks=BENCHMARKS),
    )


def ground(name: str, stage_c: Recipe) -> Recipe:
    """Stage B from stage C: part and object grounding at scale, lr 3e-4."""
    return replace(
        stage_c,
        name=name,
        data=replace(stage_c.data, mixture="ground"),
        optim=replace(stage_c.optim, lr=3e-4),
    )


def align(name: str, stage_c: Recipe) -> Recipe:
    """Stage A from stage C: only fusion, projector, region tokens, MGFE and new token rows; 256 images.

    Captions of photos and of regions teach them, by the loss of the text alone: no gradient passes the mask head,
    which is random, or published and not ours yet. Region tokens see the boxes of the captioned regions (our choice:
    boxes of an untrained box head have no meaning to align); the box head is new in stage B. Parts that stages B and
    C train keep their published fp32 weights.
    """
    frozen: tuple[Part, ...] = ("low", "high", "llm", "head", "mask_encoder")
    later = stage_c.model.tuning
    keep = tuple(
        part for part in frozen if part not in later.frozen and not (part == "llm" and later.lora_rank)
    )
    tuning = TuningConfig(
        frozen=frozen,
        token_rows="new",
        frozen_dtype="bf16",
        keep_fp32=keep,
        quantization=later.quantization,
    )
    return replace(
        stage_c,
        name=name,
        model=replace(stage_c.model, boxes="truth", loss=stage_c.model.loss.text_only(), tuning=tuning),
        data=replace(
            stage_c.data, mixture="captions", compose_dialogues=False, batch_images=16, accumulate=16
        ),
        optim=replace(stage_c.optim, lr=1e-3),
        eval=EvalConfig(),
    )


def uniresxx_7b() -> Recipe:
    """python -m train uniresxx_7b --model.weights.start runs/7b_b --data DIR --out runs/7b_c

    Stage C (joint). Without stages A and B: --model.weights.llava, high and sam instead of start.
    Hardware: 8 GPUs of 80 GB (launch: docs/train.md). Hours: not yet measured. Expected: not yet measured.
    """
    tuning = TuningConfig(
        frozen=("low", "high", "mask_encoder"), lora_rank=64, token_rows="new", frozen_dtype="bf16"
    )
    return joint("uniresxx_7b", replace(llava_7b(), activation_checkpointing=True), tuning)


def uniresxx_7b_ground() -> Recipe:
    """python -m train uniresxx_7b_ground --model.weights.start runs/7b_a --data DIR --out runs/7b_b

    Stage B (ground): adds LoRA and the mask decoder. Hardware: 8 GPUs of 80 GB (launch: docs/train.md).
    Hours: not yet measured. Expected: not yet measured.
    """
    return ground("uniresxx_7b_ground", uniresxx_7b())


def uniresxx_7b_align() -> Recipe:
    """python -m train uniresxx_7b_align --model.weights.llava llava-hf/llava-1.5-7b-hf \
    --model.weights.high laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup \
    --model.weights.sam facebook/sam2.1-hiera-large --out runs/7b_a

    Stage A (align). Hardware: 8 GPUs of 80 GB (launch: docs/train.md).
    Hours: not yet measured. Expected: not yet measured.
    """
    return align("uniresxx_7b_align", uniresxx_7b())
