"""Real 2-rank jobs over gloo: ZeRO 1-3, data parallel and one process agree, resume exactly and elastically.

The tiny model with LoRA on its language model (other weights of it frozen). Run as a script by a launcher
(`python test_engine_system.py PLAN.json`) this file does the command lines of a plan one after the other.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from mllm.config import MLLMConfig
from train.__main__ import parse, without_rank
from train.engine import join_ranks
from train.job import open_job
from train.loop import train
from train.recipe import DataConfig, EngineConfig, LogConfig, OptimConfig, Recipe
from uniresxx.model.config import UniRESPlusPlusConfig

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 400  # seconds for a launch on a machine that is busy with other work
STEPS, HALF = 6, 3
ENGINES = {"ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3}


def lora() -> Recipe:
    """The tiny model; `with_lora` freezes most of it."""
    return Recipe(
        "lora",
        UniRESPlusPlusConfig(mllm=MLLMConfig(llm_layers=2, llm_mlp=64, vocabulary=400)),
        DataConfig("scenes_easy", batch_images=4, expressions_per_image=3),
        OptimConfig(steps=STEPS, lr=1e-3, warmup_steps=2, weight_decay=0.01),
        EngineConfig(device="cpu", threads=1),
        LogConfig(save_every=HALF, keep_last=9, overlay_every=STEPS, print_every_seconds=0),
    )


def with_lora(model):
    """LoRA on the attention of the language model; its other weights and both towers frozen."""
    from peft import LoraConfig, inject_adapter_in_model

    model.mllm.requires_grad_(False)
    torch.manual_seed(5)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    inject_adapter_in_model(config, model.mllm.llm)
    return model


def as_script(path):
    """Every line of the plan as one run, all in the same job."""
    plan = [parse(line.split(), {"lora": lora}) for line in json.loads(Path(path).read_text())]
    ranks = join_ranks(max((c.recipe.engine for c in plan), key=lambda engine: engine.zero_stage))
    codes = [train(c.recipe, open_lora(c.recipe), c.out, c.fresh, "again", ranks) for c in plan]
    ranks.leave(together=True)
    return max(codes)


def open_lora(recipe):
    job = open_job(recipe, None)
    with_lora(job.model)
    return job


if __name__ == "__main__":
    sys.exit(as_script(without_rank(sys.argv[1:])[0]))
