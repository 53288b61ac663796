"""Every role of the data engine by the public classes of transformers, with tiny random weights from folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizer,
    CLIPVisionConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2Processor,
    PreTrainedTokenizerFast,
    Sam2Config,
    Sam2Model,
    SamConfig,
    SamModel,
    SwinConfig,
)
from transformers.models.grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.owlv2 import Owlv2ImageProcessorPil

from data_engine.components.table import (
    box_segmenter_of,
    captioner_of,
    detector_of,
    part_segmenter_of,
    similarity_of,
)
from data_engine.executors.local import LocalExecutor
from data_engine.model import Model
from data_engine.pictures import sources
from data_engine.recipe import recipe_named
from data_engine.roles import Region
from data_engine.run import Job, pictures_of, run_steps
from uniresxx.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
PHOTO = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
BOXES = [(4.0, 6.0, 40.0, 30.0), (20.0, 10.0, 60.0, 44.0)]


def clip_tokenizer() -> CLIPTokenizer:
    pieces = [
        "!",
        "?",
        "<|startoftext|>",
        "<|endoftext|>",
        *LETTERS,
        *(f"{letter}</w>" for letter in LETTERS),
        ",</w>",
        ".</w>",
    ]
    return CLIPTokenizer(
        vocab={piece: number for number, piece in enumerate(pieces)}, merges=[], model_max_length=16
    )


def clip_text() -> dict[str, object]:
    return {**TOWER, "vocab_size": 64, "max_position_embeddings": 16, "bos_token_id": 2, "eos_token_id": 3}


def save(model: torch.nn.Module, folder: Path) -> None:
    model.save_pretrained(folder)


def owlv2(folder: Path) -> None:
    torch.manual_seed(0)
    vision = {**TOWER, "image_size": 64, "patch_size": 16}
    config = Owlv2Config(vision_config=vision, text_config=clip_text(), projection_dim=32)
    model = Owlv2ForObjectDetection(config)
    model.class_head.logit_shift.bias.data.fill_(0.5)  # so that random weights find something
    save(model, folder)
    pictures = Owlv2ImageProcessorPil(size={"height": 64, "width": 64})
    Owlv2Processor(image_processor=pictures, tokenizer=clip_tokenizer()).save_pretrained(folder)


def grounding_dino(folder: Path) -> None:
    torch.manual_seed(0)
    swin = SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    text = {
        "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "vocab_size": 64,
    }  # fmt: skip
    config = GroundingDinoConfig(
        backbone_config=swin, text_config=text, d_model=32, encoder_layers=1, decoder_layers=2, num_queries=6,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_text_len=24,
    )  # fmt: skip
    save(GroundingDinoForObjectDetection(config), folder)
    pictures = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "cat", "dog"]
    GroundingDinoProcessor(image_processor=pictures, tokenizer=word_tokenizer(words)).save_pretrained(folder)


def word_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **marks)


def sam(folder: Path) -> None:
    torch.manual_seed(0)
    vision = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 64, "patch_size": 16,
        "output_channels": 16, "window_size": 2, "global_attn_indexes": [0], "num_pos_feats": 8, "mlp_dim": 32,
    }  # fmt: skip
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    save(
        SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)),
        folder,
    )


def sam2(folder: Path) -> None:
    torch.manual_seed(0)
    hiera = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "num_attention_heads": 1, "image_size": [64, 64],
        "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2], "window_size_per_stage": [4, 2, 2, 2],
        "global_attention_blocks": [3], "window_positional_embedding_background_size": [4, 4],
    }  # fmt: skip
    vision = {
        "backbone_config": hiera, "backbone_channel_list": [64, 32, 16, 8], "fpn_hidden_size": 16,
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
    }  # fmt: skip
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    save(Sam2Model(config), folder)


def clipseg(folder: Path) -> None:
    torch.manual_seed(0)
    config = CLIPSegConfig(
        text_config=clip_text(), vision_config={**TOWER, "num_hidden_layers": 3, "image_size": 64, "patch_size": 16},
        projection_dim=16, extract_layers=[0, 1, 2], reduce_dim=16, decoder_num_attention_heads=2,
        decoder_intermediate_size=16, conditional_layer=0,
    )  # fmt: skip
    save(CLIPSegForImageSegmentation(config), folder)
    pictures = CLIPImageProcessorPil(size={"height": 64, "width": 64}, crop_size={"height": 64, "width": 64})
    CLIPSegProcessor(image_processor=pictures, tokenizer=clip_tokenizer()).save_pretrained(folder)


def clip(folder: Path) -> None:
    torch.manual_seed(0)
    vision = {**TOWER, "image_size": 32, "patch_size": 16}
    save(CLIPModel(CLIPConfig(text_config=clip_text(), vision_config=vision, projection_dim=16)), folder)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=pictures, tokenizer=clip_tokenizer()).save_pretrained(folder)


def llava(folder: Path) -> None:
    torch.manual_seed(0)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "<image>",
        "caption",
        "box",
        "red",
        "cat",
        *map(str, range(40)),
    ]
    tokens = word_tokenizer(words)
    tokens.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    vision = CLIPVisionConfig(**TOWER, image_size=32, patch_size=16)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=4, vision_feature_layer=-1)
    save(LlavaForConditionalGeneration(config), folder)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaProcessor(
        image_processor=pictures, tokenizer=tokens, patch_size=16, vision_feature_select_strategy="default",
        image_token="<image>", num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for make in (owlv2, grounding_dino, sam, sam2, clipseg, clip, llava):
        make(root / make.__name__)
    return root


def named(folders: Path, kind: str, name: str) -> Model:
    return Model(kind=kind, source=str(folders / name), device="cpu")


@pytest.mark.parametrize("name", ["owlv2", "grounding_dino"])
def test_detectors_answer_with_the_asked_words(folders: Path, name: str) -> None:
    detector = detector_of(named(folders, "zero_shot", name))
    found = detector.detect(PHOTO, ["cat", "dog"])
    assert {item.category for item in found} <= {"cat", "dog"} and (found or name != "owlv2")
    assert all(0 < item.score <= 1 and len(item.box) == 4 for item in found)
    scores = detector.best_scores(PHOTO, ["cat", "dog"])
    assert len(scores) == 2 and all(0 <= score <= 1 for score in scores)


@pytest.mark.parametrize("name", ["owlv2", "grounding_dino"])
def test_a_text_longer_than_a_detector_takes_is_asked_by_its_beginning(folders: Path, name: str) -> None:
    detector, long = (
        detector_of(named(folders, "zero_shot", name)),
        " ".join(["the cat beside the dog"] * 100),
    )
    [alone] = detector.best_scores(PHOTO, [long])
    together = detector.best_scores(PHOTO, ["cat", long])
    assert len(together) == 2 and 0 <= alone <= 1
    assert together[1] == pytest.approx(alone, abs=1e-5)


def test_owlv2_gives_the_boxes_of_its_own_post_processing(folders: Path) -> None:
    source = folders / "owlv2"
    processor = Owlv2Processor.from_pretrained(source)
    model = Owlv2ForObjectDetection.from_pretrained(source).eval()
    inputs = processor(images=PHOTO, text=[["cat"]], return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    best = output.logits.sigmoid()[0, :, 0]
    assert detector_of(named(folders, "zero_shot", "owlv2")).best_scores(PHOTO, ["cat"])[0] == pytest.approx(
        float(best.max()), abs=1e-5
    )


@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_sam_gives_a_mask_per_box_in_order(folders: Path, name: str) -> None:
    segmenter = box_segmenter_of(named(folders, "sam", name))
    both = segmenter.segment(PHOTO, BOXES)
    assert segmenter.segment(PHOTO, []) == []
    for box, found in zip(BOXES, both, strict=True):
        [alone] = segmenter.segment(PHOTO, [box])
        assert found.mask_yx.shape == PHOTO.shape[:2] and found.mask_yx.dtype == bool
        assert (found.mask_yx == alone.mask_yx).mean() > 0.999
        assert found.quality == pytest.approx(alone.quality, abs=1e-5)
        assert 0 <= found.stability <= 1


def test_clipseg_divides_a_box_among_its_parts(folders: Path) -> None:
    region = Region(BOXES[0], "cat", None, np.ones(PHOTO.shape[:2], dtype=bool))
    found = part_segmenter_of(named(folders, "clipseg", "clipseg")).parts(
        PHOTO, region, {"head": "it thinks with", "tail": "it wags"}
    )
    assert found and {part.name for part in found} <= {"head", "tail"}
    assert np.sum([part.mask_yx for part in found], axis=0).max() == 1
    outside = np.ones(PHOTO.shape[:2], dtype=bool)
    outside[4:33, 2:43] = False  # the box and its context
    assert not any((part.mask_yx & outside).any() for part in found)


def test_captions_do_not_depend_on_their_neighbours(folders: Path) -> None:
    captioner = captioner_of(named(folders, "chat", "llava"))
    regions = [Region(BOXES[0], "cat"), Region(BOXES[1], "cat", "head"), Region((0, 0, 64, 48))]
    together = captioner.captions(PHOTO, regions)
    assert len(together) == 3
    assert together == [captioner.captions(PHOTO, [region])[0] for region in regions]


def test_the_question_has_corners_on_a_grid(folders: Path) -> None:
    from data_engine.components.captioners import question_of

    assert "(0,0),(999,999)" in question_of(Region((0.0, 0.0, 64.0, 48.0)), (48, 64))
    assert "(500,250)" in question_of(Region((32.0, 12.0, 64.0, 48.0)), (48, 64))


def test_similarity_is_the_cosine_of_clip(folders: Path) -> None:
    found = similarity_of(named(folders, "two_towers", "clip")).similarity(
        [PHOTO, PHOTO[:20]], ["a cat", "a dog"]
    )
    processor = CLIPProcessor.from_pretrained(folders / "clip")
    inputs = processor(
        images=[PHOTO, PHOTO[:20]], text=["a cat", "a dog"], padding="max_length", return_tensors="pt"
    )
    with torch.no_grad():
        output = CLIPModel.from_pretrained(folders / "clip").eval()(**inputs)
    expected = (output.image_embeds * output.text_embeds).sum(dim=1).tolist()
    assert found == pytest.approx(expected, abs=1e-5)


def test_our_own_model_describes_regions() -> None:
    captioner = captioner_of(Model(kind="segmenter", device="cpu"))
    assert len(captioner.captions(PHOTO, [Region(BOXES[0], "car"), Region(BOXES[1], "car")])) == 2


def test_a_wrong_model_is_one_line(folders: Path) -> None:
    with pytest.raises(InputError, match=r"no model of kind 'samm'.*sam"):
        box_segmenter_of(Model(kind="samm"))
    with pytest.raises(InputError, match="model_type 'clip'"):
        box_segmenter_of(named(folders, "sam", "clip"))
    with pytest.raises(InputError, match="neither a folder nor a hub id"):
        detector_of(Model(kind="zero_shot", source="no/such/folder"))


def recipe_of_tiny_models(folders: Path, path: Path) -> Path:
    """A recipe file with all roles; limits so wide that random models keep something."""

    def model(kind: str, name: str) -> dict[str, str]:
        return {"kind": kind, "source": str(folders / name), "device": "cpu"}

    wide = {"min_quality": -9, "min_stability": 0, "min_area": 0, "max_area": 1, "min_side": 1, "max_edge": 1,
            "min_fill": 0, "same_mask": 1}  # fmt: skip
    steps = [
        {"step": "detect", "model": model("zero_shot", "owlv2"), "vocabulary": "drawn", "min_score": 0,
         "max_objects": 3},
        {"step": "segment", "model": model("sam", "sam2"), **wide},
        {"step": "parts", "model": model("clipseg", "clipseg"), "vocabulary": "drawn", "min_score": 0,
         "min_inside": 0, "max_share": 1},
        {"step": "caption", "model": model("chat", "llava"), "max_words": 99},
        {"step": "match", "model": model("two_towers", "clip"), "min_object": -1, "min_part": -1},
        {"step": "combine", "vocabulary": "drawn"},
        {"step": "absent", "model": model("zero_shot", "owlv2"), "max_score": 1},
        {"step": "round_trip", "model": {"kind": "segmenter", "device": "cpu"}, "min_object": 0, "min_part": 0,
         "min_multi": 0, "check_absent": False},
    ]  # fmt: skip
    path.write_text(json.dumps({"name": "tiny", "steps": steps, "pictures_per_shard": 2, "budget": 0}))
    return path


def noise(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        values = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{number}.png")
    return folder


def test_a_recipe_of_real_classes_runs_through(folders: Path, tmp_path: Path) -> None:
    recipe = recipe_named(str(recipe_of_tiny_models(folders, tmp_path / "recipe.json")))
    images = noise(tmp_path / "images", 3)
    job = Job(recipe, images, tmp_path / "store")
    finished = run_steps(job, sources(images, "own", None), LocalExecutor(in_process=True))
    pictures = [picture for path in finished for picture in pictures_of(path)]
    assert [picture.failed for picture in pictures] == [None] * 3
    items = [item for picture in pictures for item in picture.items]
    assert {"detector", "quality", "stability", "similarity"} <= {
        name for item in items for name in item.scores
    }
    assert any(item.text for item in items) and any(item.part for item in items)


@pytest.mark.system
def test_real_classes_make_the_same_store_on_ray(folders: Path, tmp_path: Path) -> None:
    recipe = recipe_of_tiny_models(folders, tmp_path / "recipe.json")
    content = json.loads(recipe.read_text())
    few = ("detect", "segment", "caption", "combine")  # each other step would import torch again, twice
    recipe.write_text(
        json.dumps(content | {"steps": [step for step in content["steps"] if step["step"] in few]})
    )
    images = noise(tmp_path / "images", 4)
    stores = {}
    for executor in ("local", "ray"):
        command = [sys.executable, "-m", "data_engine", "run", str(recipe), "--images", str(images),
                   "--out", str(tmp_path / executor / "store"), "--executor", executor, "--workers", "1"]  # fmt: skip
        (tmp_path / executor).mkdir()
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        stores[executor] = {
            path.name: path.read_bytes() for path in (tmp_path / executor / "store").iterdir()
        }
    assert stores["local"] == stores["ray"] and len(stores["ray"]["records.arrow"]) > 1000
