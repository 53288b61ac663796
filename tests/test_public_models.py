"""Public models as Segmenters: each equals the model of transformers called by hand, on tiny random weights.

The folders are made by transformers' own `save_pretrained`, so that names of files and keys are its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel

from tests.test_heads import SAM, SAM2
from uniresxx.imaging import masks
from uniresxx.model.heads.sam import _sam2_config, _sam_config
from uniresxx.model.placement import Placement
from uniresxx.segmenters.load import load_segmenter
from uniresxx.segmenters.public.base import absence, answering_with
from uniresxx.segmenters.public.box_masks import load_box_masks
from uniresxx.segmenters.public.florence2 import polygons_in
from uniresxx.segmenters.public.qwenvl import boxes_in
from uniresxx.types import Decoding

torch.set_num_threads(1)
CLOSE = {"atol": 1e-5, "rtol": 0}
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CHARACTERS = sorted(ByteLevel.alphabet())
QWEN_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
]
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def numbered(pieces: list[str]) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(pieces)}


def save(folder: Path, model: Any, *others: Any) -> Path:
    """A folder with random weights larger than transformers', so that answers differ from prompt to prompt."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, value in sorted(model.named_parameters()):
            if value.ndim > 1:
                value.add_(torch.randn(value.shape, generator=generator) * 0.1)
    for item in (model, *others):
        item.save_pretrained(folder)
    return folder


def clip_tokenizer(longest: int) -> Any:
    """A tokenizer of CLIP's class, over characters."""
    pieces = ["<|startoftext|>", "<|endoftext|>", *CHARACTERS, *(f"{c}</w>" for c in CHARACTERS)]
    return hf.CLIPTokenizer(vocab=numbered(pieces), merges=[], model_max_length=longest)


def clip_text(longest: int) -> dict[str, Any]:
    return SIZES | {
        "vocab_size": 520, "max_position_embeddings": longest, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1
    }  # fmt: skip


def clipseg(root: Path) -> str:
    config = hf.CLIPSegConfig(
        text_config=clip_text(77), vision_config=SIZES | {"image_size": 64, "patch_size": 16}, projection_dim=16,
        extract_layers=[0, 1], reduce_dim=16, decoder_num_attention_heads=2, decoder_intermediate_size=32,
    )  # fmt: skip
    images = hf.ViTImageProcessorPil(size={"height": 64, "width": 64})
    return f"clipseg:{save(root / 'clipseg', hf.CLIPSegForImageSegmentation(config), images, clip_tokenizer(77))}"


def grounding_dino(root: Path) -> Path:
    swin = hf.SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = hf.GroundingDinoConfig(
        backbone_config=swin, text_config=hf.BertConfig(**SIZES, vocab_size=1100), d_model=32, num_queries=12,
        encoder_layers=1, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2,
        decoder_attention_heads=2,
    )  # fmt: skip
    ids = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}  # as the model expects
    pieces = [c for c in map(chr, range(33, 127)) if c not in ids]
    ids |= {piece: 103 + n for n, piece in enumerate([*pieces, *(f"##{c}" for c in pieces)])}
    images = hf.GroundingDinoImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 192})
    model = hf.GroundingDinoForObjectDetection(config)
    return save(root / "grounding_dino", model, images, hf.BertTokenizer(vocab=ids))


def owlv2(root: Path) -> Path:
    config = hf.Owlv2Config(
        text_config=clip_text(16),
        vision_config=SIZES | {"image_size": 64, "patch_size": 16},
        projection_dim=32,
    )
    images = hf.Owlv2ImageProcessorPil(size={"height": 64, "width": 64})
    return save(root / "owlv2", hf.Owlv2ForObjectDetection(config), images, clip_tokenizer(16))


def sam(root: Path) -> Path:
    frame, low = {"height": 64, "width": 64}, {"height": 16, "width": 16}
    images = hf.SamImageProcessorPil(
        size={"longest_edge": 64}, pad_size=frame, mask_size={"longest_edge": 16}, mask_pad_size=low
    )
    return save(root / "sam", hf.SamModel(_sam_config(SAM)), images)


def sam2(root: Path) -> Path:
    folder = save(root / "sam2", hf.Sam2Model(_sam2_config(SAM2)))
    square(folder, 64, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return folder


def square(folder: Path, side: int, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
    """What the image processors of SAM 2 and SAM 3 save, which need torchvision."""
    values = {"size": {"height": side, "width": side}, "image_mean": mean, "image_std": deviation}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def dino_sam2(root: Path) -> str:
    return f"detect:{grounding_dino(root)}+{sam2(root)}"


def owl_sam(root: Path) -> str:
    return f"detect:{owlv2(root)}+{sam(root)}"


def sam3_config() -> Any:
    small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4}
    layers = small | {"num_layers": 1}
    vit = small | {
        "num_hidden_layers": 2, "image_size": 56, "patch_size": 14, "window_size": 2, "global_attn_indexes": [1],
        "pretrain_image_size": 28,
    }  # fmt: skip
    return hf.Sam3Config(
        vision_config={"backbone_config": {"model_type": "sam3_vit_model"} | vit, "fpn_hidden_size": 32,
                       "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]]},
        text_config=clip_text(32) | {"projection_dim": 16}, geometry_encoder_config=layers,
        detr_encoder_config=layers,
        detr_decoder_config=layers | {"num_queries": 10},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 4},
    )  # fmt: skip


def sam3(root: Path) -> str:
    folder = save(root / "sam3", hf.Sam3Model(sam3_config()), clip_tokenizer(32))
    square(folder, 56, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return f"sam3:{folder}"


def florence2(root: Path) -> str:
    places = [f"<loc_{n}>" for n in range(1000)]
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *CHARACTERS]
    tokenizer = hf.BartTokenizer(vocab=numbered(pieces), merges=[], model_max_length=1024)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>", *places]})
    text = hf.BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=1100,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
    )  # fmt: skip
    vision = {
        "embed_dim": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "num_groups": [1, 2], "patch_size": [7, 3],
        "patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True], "window_size": 4,
        "projection_dim": 32, "drop_path_rate": 0.0,
    }  # fmt: skip
    config = hf.Florence2Config(
        text_config=text, vision_config=vision, image_token_id=tokenizer.convert_tokens_to_ids("<image>")
    )
    images = hf.CLIPImageProcessorPil(
        size={"height": 64, "width": 64}, do_center_crop=False, resample=3, image_seq_length=65
    )
    model = hf.Florence2ForConditionalGeneration(config)
    return f"florence2:{save(root / 'florence2', model, images, tokenizer)}"


def qwen(root: Path, name: str) -> Path:
    tokenizer = hf.Qwen2Tokenizer(vocab=numbered([*CHARACTERS]), merges=[], chat_template=QWEN_CHAT)
    tokenizer.add_special_tokens({"extra_special_tokens": QWEN_TOKENS})
    image, start, end = (
        tokenizer.convert_tokens_to_ids(t) for t in ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>")
    )
    text = SIZES | {
        "vocab_size": len(tokenizer) + 10, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"), "bos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    marks = {
        "image_token_id": image, "vision_start_token_id": start, "vision_end_token_id": end,
        "video_token_id": len(tokenizer) + 1,
    }  # fmt: skip
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    if name == "qwen2_5_vl":
        config = hf.Qwen2_5_VLConfig(
            text_config=text | {"rope_parameters": rope},
            vision_config=vision | {"window_size": 56, "fullatt_block_indexes": [1]}, **marks,
        )  # fmt: skip
        model: Any = hf.Qwen2_5_VLForConditionalGeneration(config)
    else:
        config = hf.Qwen3VLConfig(
            text_config=text | {"rope_parameters": rope, "head_dim": 8},
            vision_config=vision | {"deepstack_visual_indexes": [0], "num_position_embeddings": 64, "patch_size": 16},
            **marks,
        )  # fmt: skip
        model = hf.Qwen3VLForConditionalGeneration(config)
    patch = model.config.vision_config.patch_size
    images = hf.Qwen2VLImageProcessorPil(
        patch_size=patch, size={"shortest_edge": 16 * patch**2, "longest_edge": 64 * patch**2}
    )
    return save(root / name, model, images, tokenizer)


def qwen25_sam2(root: Path) -> str:
    return f"qwenvl:{qwen(root, 'qwen2_5_vl')}+{sam2(root)}"


def qwen3_sam(root: Path) -> str:
    return f"qwenvl:{qwen(root, 'qwen3_vl')}+{sam(root)}"


MAKERS: dict[str, Callable[[Path], str]] = {
    "clipseg": clipseg,
    "dino_sam2": dino_sam2,
    "owl_sam": owl_sam,
    "sam3": sam3,
    "florence2": florence2,
    "qwen25_sam2": qwen25_sam2,
    "qwen3_sam": qwen3_sam,
}


@pytest.fixture(scope="session")
def named(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The name of each tiny model, made when it is first asked for."""
    root, made = tmp_path_factory.mktemp("public"), {}

    def name(kind: str) -> str:
        if kind not in made:
            made[kind] = MAKERS[kind](root / kind)
        return made[kind]

    return name


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights never end a reply: let it be short."""
    monkeypatch.setattr("uniresxx.segmenters.public.florence2.LONGEST", 24)
    monkeypatch.setattr("uniresxx.segmenters.public.qwenvl.LONGEST", 12)


def photo_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Coloured squares and noise."""
    rng = np.random.default_rng(seed)
    blocks = (
        rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(-(-height // 4), 0).repeat(-(-width // 4), 1)
    )
    return blocks[:height, :width] // 2 + rng.integers(0, 128, (height, width, 3), dtype=np.uint8)


PHOTO = photo_of(40, 60)
TEXTS = ["the left dog", "a red ball on the grass"]


def loaded(name: str) -> tuple[Any, Any, list[Path]]:
    """The Segmenter, its photo, and its folders."""
    segmenter = load_segmenter(name, device="cpu")
    (photo,) = segmenter.encode_images([PHOTO])
    return segmenter, photo, [Path(folder) for folder in name.split(":", 1)[1].split("+")]


def decoding(segmenter: Any, **words: Any) -> Decoding:
    return Decoding(template=segmenter.question_template, max_new_tokens=8, **words)


def full_size(logits: torch.Tensor) -> torch.Tensor:
    """Logits over the whole photo, at its size."""
    return F.interpolate(logits[None, None].float(), PHOTO.shape[:2], mode="bilinear", align_corners=False)[
        0, 0
    ]


@torch.no_grad()
def test_clipseg_equals_transformers(named):
    segmenter, photo, (folder,) = loaded(named("clipseg"))
    model = hf.CLIPSegForImageSegmentation.from_pretrained(folder).eval()
    processor = hf.CLIPSegProcessor(
        hf.ViTImageProcessorPil.from_pretrained(folder), hf.CLIPTokenizer.from_pretrained(folder)
    )
    inputs = processor(text=TEXTS, images=[PHOTO] * 2, padding=True, return_tensors="pt")
    expected = model(**inputs).logits
    torch.testing.assert_close(segmenter.logits(photo.features, TEXTS), expected, **CLOSE)
    found = segmenter.answer([photo], [TEXTS], decoding(segmenter))
    for one, logits in zip(found, expected, strict=True):
        assert not one.rejected and (one.mask == (full_size(logits).sigmoid() > 0.5).numpy()).all()
    assert found[0].rle != found[1].rle


def test_a_folder_as_first_published_is_read(named, tmp_path):
    """CLIPSeg's files of 2022: no tokenizer.json, a feature extractor with one number as its size."""
    _, photo, (good,) = loaded(named("clipseg"))
    folder = tmp_path / "clipseg"
    shutil.copytree(good, folder)
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    files = {
        "vocab.json": vocab,
        "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77},
        "preprocessor_config.json": {
            "feature_extractor_type": "ViTFeatureExtractor", "do_resize": True, "size": 64, "resample": 2,
            "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        },
    }  # fmt: skip
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    old, other, _ = loaded(f"clipseg:{folder}")
    new = load_segmenter(named("clipseg"), device="cpu")
    assert torch.equal(old.logits(other.features, TEXTS), new.logits(photo.features, TEXTS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_published_in_bf16_stay_so_and_all_others_are_fp32(named, tmp_path, dtype):
    _, _, (good,) = loaded(named("clipseg"))
    hf.CLIPSegForImageSegmentation.from_pretrained(good, dtype=dtype).save_pretrained(tmp_path)
    for path in (*good.glob("*token*"), good / "preprocessor_config.json"):
        shutil.copy(path, tmp_path)
    found = {value.dtype for value in load_segmenter(f"clipseg:{tmp_path}", device="cpu").parameters()}
    assert found == {torch.bfloat16 if dtype == torch.bfloat16 else torch.float32}


@torch.no_grad()
def test_grounding_dino_equals_transformers(named):
    segmenter, photo, (folder, _) = loaded(named("dino_sam2"))
    model = hf.GroundingDinoForObjectDetection.from_pretrained(folder).eval()
    processor = hf.GroundingDinoProcessor(
        hf.GroundingDinoImageProcessorPil.from_pretrained(folder), hf.BertTokenizer.from_pretrained(folder)
    )
    for text in TEXTS:
        inputs = processor(images=PHOTO, text=f"{text}.", return_tensors="pt")
        expected = model(**inputs)
        found = segmenter.detector.output(photo.features[0], f"{text}.")
        torch.testing.assert_close(found.logits, expected.logits, **CLOSE)
        torch.testing.assert_close(found.pred_boxes, expected.pred_boxes, **CLOSE)
        (kept,) = processor.post_process_grounded_object_detection(
            expected, threshold=0, text_threshold=0, target_sizes=[PHOTO.shape[:2]]
        )
        boxes, scores = segmenter.detector.boxes(photo.features[0], f"{text}.", photo)
        torch.testing.assert_close(boxes, kept["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(scores, kept["scores"], **CLOSE)
    assert "forward" not in segmenter.detector.model.model.backbone.__dict__


@torch.no_grad()
def test_owlv2_equals_transformers(named):
    segmenter, photo, (folder, _) = loaded(named("owl_sam"))
    model = hf.Owlv2ForObjectDetection.from_pretrained(folder).eval()
    images = hf.Owlv2ImageProcessorPil.from_pretrained(folder)
    processor = hf.Owlv2Processor(images, hf.CLIPTokenizer.from_pretrained(folder))
    asked = ["a photo of a dog", "a cat"]  # at most 16 tokens
    expected = model(**processor(text=[asked], images=PHOTO, return_tensors="pt"))
    for place, text in enumerate(asked):
        logits, boxes = segmenter.detector.output(photo.features[0], text)
        torch.testing.assert_close(logits[..., 0], expected.logits[..., place], **CLOSE)
        torch.testing.assert_close(boxes, expected.pred_boxes, **CLOSE)
    (kept,) = images.post_process_object_detection(expected, threshold=-1, target_sizes=[PHOTO.shape[:2]])
    torch.testing.assert_close(
        segmenter.detector.boxes(photo.features[0], asked[0], photo)[0], kept["boxes"], atol=1e-3, rtol=0
    )


BOXES = torch.tensor([[5.0, 4, 30, 22], [28, 1, 59.5, 39]])


@torch.no_grad()
def test_sam_with_boxes_equals_transformers(named):
    segmenter, photo, (_, folder) = loaded(named("owl_sam"))
    model = hf.SamModel.from_pretrained(folder).eval()
    processor = hf.SamProcessor(hf.SamImageProcessorPil.from_pretrained(folder))
    inputs = processor(PHOTO, input_boxes=[BOXES.tolist()], return_tensors="pt")
    inputs["input_boxes"] = inputs["input_boxes"].float()
    sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
    output = model(**inputs, multimask_output=False)
    (expected,) = processor.image_processor.post_process_masks(output.pred_masks, *sizes)
    found = segmenter.segmenter.masks(photo.features[1], BOXES, photo)
    assert [(one.mask == mask[0].numpy()).all() for one, mask in zip(found, expected, strict=True)] == [
        True
    ] * 2
    assert [one.quality for one in found] == pytest.approx(
        output.iou_scores.clamp(0, 1).flatten().tolist(), abs=1e-5
    )


@torch.no_grad()
def test_sam_2_with_boxes_equals_transformers(named):
    segmenter, photo, (_, folder) = loaded(named("dino_sam2"))
    model = hf.Sam2Model.from_pretrained(folder).eval()
    pixels = segmenter.segmenter.square.pixels(PHOTO, torch.device("cpu"))
    frame = BOXES * torch.tensor([64 / 60, 64 / 40] * 2)
    output = model(pixel_values=pixels, input_boxes=frame[None], multimask_output=False)
    found = segmenter.segmenter.masks(photo.features[1], BOXES, photo)
    for one, logits in zip(found, output.pred_masks[0, :, 0], strict=True):
        assert (one.mask == (full_size(logits) > 0).numpy()).all() and one.mask.any()
    assert [one.quality for one in found] == pytest.approx(
        output.iou_scores.clamp(0, 1).flatten().tolist(), abs=1e-5
    )


def test_published_sam_2_has_a_memory_for_video_beside_it(tmp_path):
    own = _sam2_config(SAM2)
    memory = {
        "memory_attention_hidden_size": 32, "memory_attention_num_layers": 1, "memory_encoder_hidden_size": 32,
        "memory_attention_feed_forward_hidden_size": 32, "memory_encoder_output_channels": 16,
        "memory_fuser_embed_dim": 32, "memory_fuser_intermediate_dim": 32, "memory_fuser_num_layers": 1,
        "mask_downsampler_embed_dim": 32,
    }  # fmt: skip
    config = hf.Sam2VideoConfig(
        vision_config=own.vision_config, prompt_encoder_config=own.prompt_encoder_config,
        mask_decoder_config=own.mask_decoder_config, image_size=64, **memory,
    )  # fmt: skip
    video = hf.Sam2VideoModel(config)
    folder = save(tmp_path / "sam2", video)
    square(folder, 64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    found = load_box_masks(folder, Placement(), "detect").model.state_dict()
    expected = video.state_dict()
    assert found.keys() < expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


@torch.no_grad()
@pytest.mark.parametrize("present", [0.5, 0.01])
def test_sam_3_equals_transformers(named, monkeypatch, present):
    monkeypatch.setattr("uniresxx.segmenters.public.sam3.PRESENT", present)
    segmenter, photo, (folder,) = loaded(named("sam3"))
    model = hf.Sam3Model.from_pretrained(folder).eval()
    asked = hf.CLIPTokenizer.from_pretrained(folder)(
        TEXTS[0], return_tensors="pt", padding="max_length", max_length=32
    )
    pixels = segmenter.square.pixels(PHOTO, torch.device("cpu"))
    expected = model(pixel_values=pixels, **asked)
    found = segmenter.output(photo.features, TEXTS[0])
    for name in ("pred_masks", "pred_logits", "presence_logits"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), **CLOSE)
    scores = expected.pred_logits[0].sigmoid() * expected.presence_logits[0].sigmoid()
    masks_yx = [(full_size(mask.sigmoid()) > 0.5).numpy() for mask in expected.pred_masks[0]]
    (answer,) = segmenter.answer([photo], [TEXTS[:1]], decoding(segmenter))
    kept = [place for place, score in enumerate(scores.tolist()) if score >= present]
    assert answer.rejected == (not kept) and answer.p_absent == pytest.approx(
        absence(float(scores.max()), present)
    )
    best = masks_yx[int(scores.argmax())]
    if kept:
        assert (answer.mask == np.any([masks_yx[place] for place in kept], axis=0)).all()
        assert len(answer.instances) == sum(masks_yx[place].any() for place in kept)
    else:
        assert (masks.decode(answer.mask_if_forced) == best).all()


def test_published_sam_3_has_its_detector_beside_a_tracker(tmp_path):
    model = hf.Sam3Model(sam3_config())
    folder = save(tmp_path / "sam3", model, clip_tokenizer(32))
    square(folder, 56, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    config = json.loads((folder / "config.json").read_text())
    video = {"model_type": "sam3_video", "detector_config": config, "tracker_config": {}}
    (folder / "config.json").write_text(json.dumps(video))
    tensors = {
        f"detector_model.{key}": value for key, value in load_file(folder / "model.safetensors").items()
    }
    save_file(tensors | {"tracker_model.x": torch.ones(2)}, folder / "model.safetensors", {"format": "pt"})
    found = load_segmenter(f"sam3:{folder}", device="cpu").model.state_dict()
    assert found.keys() == model.state_dict().keys()
    assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())


def florence2_processor(folder: Path) -> Any:
    tokenizer = hf.BartTokenizer.from_pretrained(folder)
    tokenizer.image_token, tokenizer.image_token_id = "<image>", tokenizer.convert_tokens_to_ids("<image>")
    images = hf.CLIPImageProcessorPil.from_pretrained(folder)
    return hf.Florence2Processor(images, tokenizer, post_processor_config={"polygons": {}})


@torch.no_grad()
def test_florence_2_equals_transformers(named, short):
    segmenter, photo, (folder,) = loaded(named("florence2"))
    model = hf.Florence2ForConditionalGeneration.from_pretrained(folder).eval()
    processor = florence2_processor(folder)
    task = "<REFERRING_EXPRESSION_SEGMENTATION>"
    inputs = processor(text=task + TEXTS[0], images=PHOTO, return_tensors="pt")
    prompt = segmenter.wording.format(expression=TEXTS[0])
    assert segmenter.ids(photo.features.shape[1], prompt) == inputs["input_ids"][0].tolist()
    start = torch.tensor([[2, 10, 20]])
    expected = model(**inputs, decoder_input_ids=start).logits
    encoded = segmenter.encoded_prompt(photo.features, prompt)
    found = segmenter.model(
        encoder_outputs=encoded, attention_mask=inputs["attention_mask"], decoder_input_ids=start
    ).logits
    torch.testing.assert_close(found, expected, **CLOSE)
    ids = model.generate(**inputs, max_new_tokens=24, num_beams=1, do_sample=False)
    text = processor.tokenizer.decode(ids[0, 1:])
    assert segmenter.reply(photo.features, prompt, 24)[0] == text
    reply = "</s><s><loc_10><loc_20><loc_900><loc_20><loc_900><loc_700><loc_5><sep><loc_1><loc_2><loc_300><loc_4></s>"
    size = (photo.width, photo.height)
    theirs = processor.post_process_generation(text=reply, task=task, image_size=size)[task]["polygons"]
    corners = [polygon for instance in theirs for polygon in instance if len(polygon) >= 6]
    # transformers drops what follows the point
    assert [[int(x) for x in polygon] for polygon in polygons_in(reply, photo)] == corners and corners


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen25_sam2", "qwen3_sam"])
def test_qwen_vl_equals_transformers(named, kind, short):
    segmenter, photo, (folder, _) = loaded(named(kind))
    family = (
        hf.Qwen2_5_VLForConditionalGeneration if kind == "qwen25_sam2" else hf.Qwen3VLForConditionalGeneration
    )
    model = family.from_pretrained(folder).eval()
    tokenizer = hf.Qwen2Tokenizer.from_pretrained(folder)
    images = hf.Qwen2VLImageProcessorPil.from_pretrained(folder)(PHOTO, return_tensors="pt")
    prompt = segmenter.wording.format(expression=TEXTS[0])
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    places = int(images["image_grid_thw"].prod()) // 4
    ids = tokenizer(chat.replace("<|image_pad|>", "<|image_pad|>" * places), return_tensors="pt")["input_ids"]
    inputs = segmenter.inputs(photo.features, prompt)
    assert inputs["input_ids"].tolist() == ids.tolist()
    by_hand = inputs | {"pixel_values": images["pixel_values"], "image_grid_thw": images["image_grid_thw"]}
    expected = model(**by_hand).logits
    with answering_with(segmenter.model.model.visual, lambda: copy(photo.features[0])):
        torch.testing.assert_close(segmenter.model(**inputs).logits, expected, **CLOSE)
    new = model.generate(**by_hand, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    for _ in range(2):  # nothing is left over from one prompt to the next
        assert segmenter.reply(photo.features, prompt, 12)[0] == tokenizer.decode(
            new, skip_special_tokens=True
        )


@pytest.mark.parametrize(
    ("kind", "box"), [("qwen25_sam2", "14, 0, 42, 28"), ("qwen3_sam", "200, 0, 600.0, 500")]
)
def test_boxes_of_a_reply_become_masks(named, kind, box, monkeypatch):
    """Qwen2.5-VL counts pixels of the resized photo (84 x 56 here), Qwen3-VL thousandths of its sides."""
    segmenter, photo, _ = loaded(named(kind))
    replies = {
        "two": f'[{{"bbox_2d": [{box}], "label": "x"}}, {{"bbox_2d": [1, 2, 1, 9]}}, {{"bbox_2d": [1.2.3, 2, 1, 9]}},'
        ' {"bbox_2d": ["a", 2, 1, 9]}]',
        "none": "[]",
    }
    monkeypatch.setattr(segmenter, "reply", lambda features, prompt, longest: (replies[prompt[:-1]], False))
    (grid,) = photo.features[1].tolist()
    patch = segmenter.model.config.vision_config.patch_size
    if kind == "qwen25_sam2":
        assert [side * patch for side in grid] == [14, 56, 84]
        expected = [14 * 60 / 84, 0.0, 42 * 60 / 84, 28 * 40 / 56]
    else:
        expected = [12.0, 0.0, 36.0, 20.0]
    boxes = segmenter.scaled(boxes_in(replies["two"]), photo.features[1], photo)
    assert len(boxes) == 2 and boxes[0].tolist() == pytest.approx(expected)
    there, absent = segmenter.answer([photo], [["two", "none"]], Decoding(template="{expression}!"))
    (mask,) = segmenter.segmenter.masks(photo.features[3], torch.tensor([expected]), photo)
    assert (
        not there.rejected and (there.mask == mask.mask).all() and there.score == pytest.approx(mask.quality)
    )
    assert absent.rejected and absent.rle is None and absent.p_absent is None
