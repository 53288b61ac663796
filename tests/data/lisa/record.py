"""Runs the public code of LISA, GSVA or M2SA on tiny random weights and records what goes in and what comes out.

    python record.py lisa CLONE OUT      transformers 4.31.0; CLONE is github.com/dvlab-research/LISA
    python record.py gsva CLONE OUT      transformers 4.44.2; CLONE is github.com/LeapLabTHU/GSVA
    python record.py m2sa CLONE OUT      transformers 4.31.0; CLONE is github.com/jdg900/MMR

Needs sentencepiece and torch beside it. README.md says more. Nothing of the public code is changed on the disk; what
it needs and a CPU does not have is replaced in memory: calls of .cuda(), the registration of the model type "llava",
torchvision's resize of a PIL picture (Pillow's own), and SAM's sizes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

HERE = Path(__file__).parent
PEER, CLONE, OUT = sys.argv[1], Path(sys.argv[2]).resolve(), Path(sys.argv[3]).resolve()
SIDE = 64  # of SAM's frame
SHOWN = 40  # newest positions whose logits and projected states are recorded
CLIP_SIDE = {"lisa": 224, "gsva": 56, "m2sa": 224}[PEER]  # LISA takes 256 image tokens for granted
sys.path.insert(0, str(CLONE))
torch.Tensor.cuda = lambda self, *_, **__: self
transformers.AutoConfig.register = lambda *_, **__: None
transformers.AutoModelForCausalLM.register = lambda *_, **__: None
functional = types.ModuleType("torchvision.transforms.functional")
functional.resize = lambda picture, size: picture.resize(size[::-1], Image.Resampling.BILINEAR)
functional.to_pil_image = Image.fromarray
transforms = types.ModuleType("torchvision.transforms")
transforms.functional = functional
boxes = types.ModuleType("torchvision.ops.boxes")
boxes.batched_nms = boxes.box_area = None
ops = types.ModuleType("torchvision.ops")
ops.boxes = boxes
torchvision = types.ModuleType("torchvision")
sys.modules |= {
    "torchvision": torchvision, "torchvision.transforms": transforms, "torchvision.ops": ops,
    "torchvision.transforms.functional": functional, "torchvision.ops.boxes": boxes,
}  # fmt: skip
mpt = types.ModuleType("model.llava.model.language_model.llava_mpt")
mpt.LlavaMPTConfig = mpt.LlavaMPTForCausalLM = object
sys.modules[mpt.__name__] = mpt

from model.llava import conversation as conversation_lib  # noqa: E402
from model.llava.mm_utils import tokenizer_image_token  # noqa: E402
from model.segment_anything import modeling as sam_parts  # noqa: E402

if PEER == "lisa":
    import model.LISA as module  # noqa: N811
    from model.segment_anything.utils.transforms import ResizeLongestSide
elif PEER == "m2sa":
    import model.M2SA as module  # noqa: N811
    from model.segment_anything.utils.transforms import ResizeLongestSide
else:
    import model.modeling_lisa_gsva as module
    from model.segment_anything import ResizeLongestSide


def tiny_sam(checkpoint=None):
    """`_build_sam` of the clone with small numbers."""
    width, grid = 32, SIDE // 16
    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    encoder = sam_parts.ImageEncoderViT(
        depth=2, embed_dim=16, img_size=SIDE, mlp_ratio=4, norm_layer=norm, num_heads=2, patch_size=16,
        qkv_bias=True, use_rel_pos=True, global_attn_indexes=[1], window_size=3, out_chans=width,
    )  # fmt: skip
    prompts = sam_parts.PromptEncoder(
        embed_dim=width, image_embedding_size=(grid, grid), input_image_size=(SIDE, SIDE), mask_in_chans=16
    )
    two_way = sam_parts.TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=32, num_heads=8)
    decoder = sam_parts.MaskDecoder(
        num_multimask_outputs=3, transformer=two_way, transformer_dim=width, iou_head_depth=3,
        iou_head_hidden_dim=width,
    )  # fmt: skip
    if PEER == "m2sa":
        decoder.compress_vit[0] = torch.nn.Conv2d(16, width, 3, padding=1)  # 1280 there
    return sam_parts.Sam(encoder, prompts, decoder)


def tokenizer_of(folder):
    """The tiny sentencepiece model with the tokens that the peer adds, in its order, added as it adds them."""
    tokenizer = transformers.LlamaTokenizer.from_pretrained(
        folder, model_max_length=512, padding_side="right"
    )
    tokenizer.pad_token = tokenizer.unk_token
    for token in ["[SEG]"] + ["[REJ]"] * (PEER == "gsva"):
        tokenizer.add_tokens(token)
    tokenizer.add_tokens(["<im_start>", "<im_end>"], special_tokens=True)
    return tokenizer


def tiny_clip(folder):
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=CLIP_SIDE,
        patch_size=14,
    )  # fmt: skip
    transformers.CLIPVisionModel(config).save_pretrained(folder, safe_serialization=True)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": CLIP_SIDE}, crop_size={"height": CLIP_SIDE, "width": CLIP_SIDE}
    ).save_pretrained(folder)


def build(tokenizer, clip, seed):
    """The peer's model as its training script makes it, with random weights."""
    torch.manual_seed(seed)
    values = dict(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=1024, rms_norm_eps=1e-5, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, tie_word_embeddings=False, mm_vision_tower=str(clip), mm_hidden_size=16,
        mm_vision_select_layer=-2, mm_use_im_start_end=True, use_cache=False, vision_tower=str(clip),
    )  # fmt: skip
    if PEER == "gsva":
        values["mm_projector_type"] = "mlp2x_gelu"
    llava = sys.modules[module.LlavaLlamaForCausalLM.__module__]
    config = llava.LlavaConfig(**values)
    words = dict(
        train_mask_decoder=True, out_dim=32, ce_loss_weight=1.0, dice_loss_weight=0.5, bce_loss_weight=2.0,
        vision_tower=str(clip), use_mm_start_end=True, seg_token_idx=tokenizer.convert_tokens_to_ids("[SEG]"),
    )  # fmt: skip
    if PEER == "lisa":
        module.build_sam_vit_h = tiny_sam
        model = module.LISAForCausalLM(config, **words, vision_pretrained=None)
        model.get_model().initialize_lisa_modules(config)
    elif PEER == "m2sa":
        module.build_sam_vit_h = tiny_sam
        model = module.M2SAForCausalLM(config, **words, vision_pretrained=None)
        model.get_model().initialize_M2SA_modules(config)
    else:
        module.build_sam_vit_b = tiny_sam
        rej = tokenizer.convert_tokens_to_ids("[REJ]")
        model = module.LisaGSVAForCausalLM(config, **words, rej_token_idx=rej, segmentation_model_path="tiny")
        config.mm_projector_type = "mlp2x_gelu"
        model.get_model().init_seg_and_proj(config)
    model.get_model().initialize_vision_modules(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            norm = value.ndim == 1 and name.endswith("weight")
            value.copy_(torch.randn(value.shape, generator=generator) * (0.1 if norm else 0.25) + norm)
            value.copy_(value.bfloat16())  # so that the recording takes half the room
        model.lm_head.weight[words["seg_token_idx"]] *= 2  # so that a few tokens of an answer are [SEG]
        matrix = model.model.visual_model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
        matrix.copy_(matrix.bfloat16())
    return model


def photo_inputs(photo, clip):
    """A photo as chat.py and the validation set of the peer prepare it: for CLIP, for SAM, and its resized size."""
    processor = transformers.CLIPImageProcessor.from_pretrained(clip)
    clip_pixels = processor.preprocess(photo, return_tensors="pt")["pixel_values"]
    resized = ResizeLongestSide(SIDE).apply_image(photo)
    x = torch.from_numpy(resized).permute(2, 0, 1).contiguous()
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    x = (x - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    x = torch.nn.functional.pad(x, (0, SIDE - x.shape[-1], 0, SIDE - x.shape[-2]))
    return clip_pixels, x[None], resized.shape[:2]


def conversation(question, answer):
    conv = conversation_lib.conv_templates["llava_v1"].copy()
    conv.messages = []
    conv.append_message(conv.roles[0], question.replace("<image>", "<im_start><image><im_end>"))
    conv.append_message(conv.roles[1], answer)
    return conv.get_prompt()


LISA_ASKED = "<image>\n What is {} in this image? Please output segmentation mask."
GSVA_ASKED = "<image>\n What are {}in this image? Please output segmentation masks."
ROWS = {  # question and answer of each row of the batch, and the photo of each row
    "lisa": [
        (LISA_ASKED.format("the red car"), "[SEG]."),
        (LISA_ASKED.format("a man"), "Sure, it is [SEG] ."),
    ],
    "gsva": [
        (GSVA_ASKED.format("the red car, dogs, a man"), "Sure,the red car:[SEG], dogs:[REJ], a man:[SEG].")
    ],
}


ROWS["m2sa"] = ROWS["lisa"]


def forwards(model, tokenizer, photo, clip):
    """One training step and one teacher-forced validation step; the second needs a single photo."""
    clip_pixels, sam_pixels, resized = photo_inputs(photo, clip)
    texts = [conversation(*row) for row in ROWS[PEER]]
    ids = [tokenizer_image_token(text, tokenizer, return_tensors="pt") for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=0)
    labels = ids.masked_fill(ids == 0, -100)
    labels[:, : int((ids[0] < 0).nonzero()) + 3] = -100  # up to <im_end>, and what it predicts
    generator = torch.Generator().manual_seed(5)
    count = sum(text.count("[SEG]") + text.count("[REJ]") for text in texts)
    truth = (torch.rand(count, *photo.shape[:2], generator=generator) > 0.5).float()
    seen = {}
    model.lm_head.register_forward_hook(lambda _, __, out: seen.__setitem__("logits", out))
    model.model.text_hidden_fcs[0].register_forward_hook(lambda _, __, out: seen.__setitem__("prompts", out))
    words = dict(
        images=sam_pixels, images_clip=clip_pixels, input_ids=ids, labels=labels, attention_masks=ids.ne(0),
        offset=torch.tensor([0, len(ids)]), masks_list=[truth], label_list=[torch.ones(photo.shape[:2])],
        resize_list=[resized], do_segs=[True],
    )  # fmt: skip
    model.train()
    with torch.no_grad():
        losses = model(**words, inference=False)
        logits = seen["logits"]
        model.eval()
        if PEER == "gsva":
            words["input_ids"] = ids.clone()  # the second pass with reeval=True writes into it
        result = model(**words, inference=True, **({"reeval": True} if PEER == "gsva" else {}))
    tensors = {
        "photo": torch.from_numpy(photo), "clip_pixels": clip_pixels[..., ::8, ::8], "sam_pixels": sam_pixels,
        "ids": ids, "labels": labels, "truth": truth, "logits": logits[:, -SHOWN:],
        "masks": torch.cat(result["pred_masks"]), "prompts": seen["prompts"][:, -SHOWN:],
        "losses": torch.stack([losses[k].detach() for k in ("ce_loss", "mask_bce_loss", "mask_dice_loss", "loss")]),
    }  # fmt: skip
    if PEER == "gsva":
        tensors["decided"] = result["output_ids"][0]
    return tensors, texts, resized


def generated(model, tokenizer, photo, clip):
    """`evaluate` of LISA, as chat.py calls it; None where the answer has no [SEG]."""
    clip_pixels, sam_pixels, resized = photo_inputs(photo, clip)
    prompt = conversation(LISA_ASKED.format("the red car").replace("\n ", "\n"), "")
    ids = tokenizer_image_token(prompt, tokenizer, return_tensors="pt")[None]
    model.eval()
    out, masks = model.evaluate(
        clip_pixels, sam_pixels, ids, [resized], [photo.shape[:2]], max_new_tokens=12, tokenizer=tokenizer
    )
    new = out[0, ids.shape[1] :]
    seg = model.seg_token_idx
    if not 0 < int((new == seg).sum()) < 4:
        return None
    return {"generate_ids": ids, "generated": new, "generated_masks": masks[0]}


def token_table(tokenizer):
    """Token ids of texts, whole conversations among them."""
    texts = ["What is the red car", " two  blanks ", "Größe – 日本", "a\nb", "[SEG]", "it is [SEG].", "'s 42"]
    conversations = [conversation(*row) for row in ROWS[PEER]] + [conversation(ROWS[PEER][0][0], "")]
    return {
        "texts": {text: tokenizer(text, add_special_tokens=False).input_ids for text in texts},
        "conversations": {text: tokenizer_image_token(text, tokenizer) for text in conversations},
    }


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    work = OUT / "work"
    pieces = json.loads((HERE / "pieces.json").read_text())
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    for piece, score, kind in pieces:
        proto.pieces.add(piece=piece, score=score, type=kind)
    proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback = 2, True
    proto.normalizer_spec.name, proto.normalizer_spec.remove_extra_whitespaces = "identity", False
    work.mkdir(exist_ok=True)
    (work / "tokenizer.model").write_bytes(proto.SerializeToString())
    tokenizer, clip = tokenizer_of(work), work / "clip"
    tiny_clip(clip)
    photo = np.random.default_rng(3).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    photo = np.array(Image.fromarray(photo).resize((40, 30), Image.Resampling.BICUBIC))
    for seed in range(400):
        model = build(tokenizer, clip, seed)
        extra = generated(model, tokenizer, photo, clip) if PEER == "lisa" else {}
        if extra is not None:
            break
    tensors, conversations, resized = forwards(model, tokenizer, photo, clip)
    if PEER == "gsva":
        weights = with_lora(model, seed)
        tensors |= forwards(model, tokenizer, photo, clip)[0]
    else:
        weights = {k: v for k, v in model.state_dict().items() if "vision_tower" not in k}
    tower = {
        k.split("vision_tower.vision_tower.")[1]: v
        for k, v in model.state_dict().items()
        if "vision_tower" in k
    }
    commit = subprocess.run(
        ["git", "-C", CLONE, "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    about = {
        "repository": {"lisa": "dvlab-research/LISA", "gsva": "LeapLabTHU/GSVA", "m2sa": "jdg900/MMR"}[PEER],
        "commit": commit,
        "transformers": transformers.__version__, "torch": torch.__version__, "seed": seed,
        "config": model.config.to_dict() | {"mm_vision_tower": "clip", "vision_tower": "clip"},
        "clip_config": json.loads((clip / "config.json").read_text()),
        "clip_preprocessor": json.loads((clip / "preprocessor_config.json").read_text()),
        "added_tokens": tokenizer.get_added_vocab(), "conversations": conversations, "resized": list(resized),
        "tokens": token_table(tokenizer),
    }  # fmt: skip
    for name, values in (("weights", weights), ("clip", tower), ("run", tensors | extra)):
        half = name != "run"
        ready = {
            k: (v.bfloat16() if half and v.is_floating_point() else v).clone().contiguous()
            for k, v in values.items()
        }
        save_file(ready, OUT / f"{PEER}_{name}.safetensors")
    (OUT / f"{PEER}.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    print(seed, {k: tuple(v.shape) for k, v in (tensors | extra).items()}, tensors["losses"].tolist())


def with_lora(model, seed):
    """Adapters around the model in place, and its weights under the names that peft gives them."""
    from peft import LoraConfig, get_peft_model

    names = [
        n
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and n.endswith(("q_proj", "v_proj"))
    ]
    names = [n for n in names if not any(word in n for word in ("visual_model", "vision_tower"))]
    config = LoraConfig(
        r=4, lora_alpha=16, target_modules=names, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )
    wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_" in name:
                value.copy_((torch.randn(value.shape, generator=generator) * 0.2).bfloat16())
    return {k: v for k, v in wrapped.state_dict().items() if "vision_tower" not in k}


main()
