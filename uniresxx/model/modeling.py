"""UniRES++: wires the multimodal LLM to the mask head; trains through `forward` and `loss`, answers as a Segmenter.

Shapes: B images, E expressions, T tokens, L label positions, V vocabulary, D LLM width, N C tokens and channels of
the low tower, h w mask grid, H W high frame, K decisions of one answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.chat import IGNORE
from mllm.modeling import MLLM, Boxes, GeneratedAnswer, ImageFeatures, PrefixCache
from mllm.tokens import Vocabulary
from uniresxx.errors import InputError
from uniresxx.hub.classes import HubConfig, HubModel
from uniresxx.imaging.masks import encode, union
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.model.heads.base import HeadOutput, MaskHead
from uniresxx.model.heads.pyramid import PyramidHead
from uniresxx.model.heads.sam import Sam2Head, SamHead
from uniresxx.model.losses import (
    Counts,
    LossTerms,
    cells,
    mask_point_sums,
    mask_sums,
    photo_sums,
    resized,
    text_sum,
    true_iou,
)
from uniresxx.model.processing import (
    FROM_FEATURES,
    View,
    photo_masks,
    tensors_of,
    view_photo,
)
from uniresxx.model.regions.classical import Proposals
from uniresxx.model.regions.detector import Detector
from uniresxx.model.regions.learned import BoxHead, BoxOutput
from uniresxx.model.templates import asked_branches
from uniresxx.model.tuning import tune
from uniresxx.types import Batch, DecisionRule, Decoding, ImageRecord, Prediction, Question, Segment

BOX_FIELDS = ("object_boxes_BO4", "object_valid_BO", "part_boxes_BP4", "part_valid_BP")
NOT_TAUGHT = 255  # dense label of pixels that must not be supervised
ANSWERS_AT_ONCE = 64  # whose masks exist at the same time, at the size of the photo; no answer depends on it


class ModelOutput(NamedTuple):
    """What training needs: logits only at label positions, and the mask head's answers."""

    logits_LV: Tensor
    labels_L: Tensor
    head: HeadOutput
    dense: tuple[Tensor, ...]  # kind, colour, part logits (B, classes, h, w); empty without a dense head
    boxes: BoxOutput | None = None  # of the learned box head


@dataclass(frozen=True, slots=True)
class EncodedPhotos:
    """Photos encoded once: what the LLM prefilled and what the mask head keeps."""

    views: list[View]
    prefix: PrefixCache
    features: Any  # the mask head's own
    proposal_seconds: float  # that finding the boxes of all photos took


@dataclass(frozen=True, slots=True)
class _Found:
    """Boxes, and what finding them has computed already."""

    boxes: Boxes
    stages: list[Tensor] | None
    output: BoxOutput | None
    seconds: float = 0.0  # that it took; 0 for boxes prepared with the photo, and in training


class UniRESPlusPlus(HubModel):
    """The full method; the tiny model is this class with small numbers.

    `settings` is its configuration, `config` the same as transformers takes it.
    """

    def __init__(
        self,
        config: UniRESPlusPlusConfig | HubConfig,
        vocabulary: Vocabulary | None = None,
        skip_llm_init: bool = False,
    ) -> None:
        """Random weights; InputError without a vocabulary, which no configuration holds."""
        if vocabulary is None:
            raise InputError(
                "a new model needs its vocabulary; a saved one: UniRESPlusPlus.from_pretrained(folder)"
            )
        config = config.settings if isinstance(config, HubConfig) else config
        super().__init__(config)
        self.vocabulary = vocabulary
        self.mllm = MLLM(config.mllm, vocabulary, skip_llm_init)
        self.head = _head(config)
        classes = sum(config.dense_classes)
        self.dense = nn.Conv2d(config.head.width, classes, 1) if classes else None
        m = config.mllm
        learned = config.boxes == "learned"
        self.box_head = BoxHead(config.box_head, m.high_widths, m.high_patch) if learned else None
        self.detector: Detector | None = None  # of boxes "owlv2": outside the model, never saved with it
        tune(self)

    # training -------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> ModelOutput:
        """One pass over packed rows."""
        boxes = Boxes(
            batch.object_boxes_BO4, batch.object_valid_BO, batch.part_boxes_BP4, batch.part_valid_BP
        )
        extent_B2 = photo_extent(batch.pixel_valid_BHW)
        high_B3HW = batch.pixels_high_B3HW
        found = self._find_boxes(high_B3HW, boxes, extent_B2)
        sight = self.mllm.encode_image(batch.pixels_low_B3hw, high_B3HW, found.boxes, found.stages)
        states_BTD = self.mllm(sight, batch.token_ids_BT, batch.branch_BT, batch.position_BT)
        learned_BT = batch.labels_BT != IGNORE
        own = int(self.settings.mllm.prompt_state == "own")
        prompts_ED = states_BTD[batch.image_of_expr_E, batch.seg_position_E + own]
        features = self._features(sight, batch.pixels_mask_B3SS)
        dense: tuple[Tensor, ...] = ()
        if self.dense is not None:
            dense = self.dense(features.fine_BChw).split(self.settings.dense_classes, dim=1)
        return ModelOutput(
            self.mllm.logits(states_BTD[learned_BT]),
            batch.labels_BT[learned_BT],
            self.head(features, prompts_ED, batch.image_of_expr_E),
            dense,
            found.output,
        )

    def _find_boxes(self, pixels_high_B3HW: Tensor, given: Boxes, extent_B2: Tensor) -> _Found:
        """The configured boxes: as prepared with the photo, or found here on the model's own input."""
        if self.box_head is not None:
            stages = self.mllm.high(pixels_high_B3HW)
            start = self._clock()
            output = self.box_head(stages)
            m = self.settings.mllm
            found = self.box_head.propose(output, extent_B2, m.max_objects, m.max_parts)
            return _Found(found, stages, output, self._clock() - start)
        if self.settings.boxes == "owlv2":
            if self.detector is None:
                raise InputError(
                    "boxes='owlv2' needs its detector: name it by --model.weights.owlv2 FOLDER_OR_HUB_ID"
                )
            start = self._clock()
            found = self.detector(pixels_high_B3HW, extent_B2)
            return _Found(found, None, None, self._clock() - start)
        return _Found(given, None, None)

    def _clock(self) -> float:
        """Seconds once the GPU is done; 0 in training, which never waits for it."""
        if self.training:
            return 0.0
        if next(self.parameters()).is_cuda:
            torch.cuda.synchronize()
        return perf_counter()

    def counts(self, batch: Batch) -> Counts:
        """Denominators of the loss terms, known before the forward pass."""
        masks = int(batch.present_E.sum())
        return {
            "text": int((batch.labels_BT != IGNORE).sum()),
            "mask": masks,
            "dice": masks,
            "quality": masks,
            "presence": len(batch.present_E),
            "dense": int(batch.pixel_valid_BHW.sum()) if batch.dense_BHW3 is not None else 0,
            "box": int(batch.truth_boxes_valid_BGM.sum()) if batch.truth_boxes_valid_BGM is not None else 0,
        }

    def loss(self, output: ModelOutput, batch: Batch) -> LossTerms:
        """Sums over this micro-batch; masks are supervised only where the truth has one."""
        w, present = self.settings.loss, batch.present_E
        bce, dice, iou_E = self._mask_terms(output.head.masks_Ehw[present].float(), batch)
        quality_E = output.head.quality_E[present].float()
        quality = F.binary_cross_entropy_with_logits(quality_E, iou_E, reduction="sum")
        presence = F.binary_cross_entropy_with_logits(
            output.head.presence_E.float(), present.float(), reduction="sum"
        )
        sums = {
            "text": text_sum(output.logits_LV, output.labels_L),
            "mask": bce,
            "dice": dice,
            "quality": quality,
            "presence": presence,
        }
        weights = {
            "text": w.text,
            "mask": w.mask,
            "dice": w.dice,
            "quality": w.quality,
            "presence": w.presence,
        }
        if output.dense and batch.dense_BHW3 is not None:
            sums["dense"] = self._dense_sum(output.dense, batch.dense_BHW3, batch.pixel_valid_BHW)
            weights["dense"] = w.dense
        if output.boxes is not None and self.box_head is not None:
            assert batch.truth_boxes_BGM4 is not None and batch.truth_boxes_valid_BGM is not None
            sums["box"] = self.box_head.loss_sum(
                output.boxes,
                batch.truth_boxes_BGM4,
                batch.truth_boxes_valid_BGM,
                photo_extent(batch.pixel_valid_BHW),
            )
            weights["box"] = w.box
        return LossTerms(sums, weights)

    def _mask_terms(self, logits_Ehw: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """BCE and dice sums at the configured resolution, and the true IoU of each mask.

        With "low" and "points" the IoU is that on the head's grid, else where the loss is. Points are drawn from
        torch's random numbers: a step that is cut differently draws others.
        """
        w, image_E = self.settings.loss, batch.image_of_expr_E[batch.present_E]
        if w.resolution == "photo":
            return photo_sums(logits_Ehw, image_E, batch.masks_photo, batch.pixel_valid_BHW, w.dice_smooth)
        truth_EHW, valid_EHW = batch.masks_EHW[batch.present_E], batch.pixel_valid_BHW[image_E]
        if w.resolution == "full":
            logits_EHW = resized(logits_Ehw, truth_EHW.shape[-2:])
            bce, dice = mask_sums(logits_EHW, truth_EHW, valid_EHW, w.dice_smooth)
            return bce, dice, true_iou(logits_EHW, truth_EHW, valid_EHW)
        h, w_ = logits_Ehw.shape[-2:]
        covered_Ehw, seen_Ehw = cells(truth_EHW, valid_EHW, (h, w_))
        if w.resolution == "points":
            bce, dice = mask_point_sums(logits_Ehw, truth_EHW, valid_EHW, w, w.dice_smooth)
        else:
            bce, dice = mask_sums(logits_Ehw, covered_Ehw * seen_Ehw, seen_Ehw, w.dice_smooth)
        return bce, dice, true_iou(logits_Ehw, (covered_Ehw >= 0.5) & seen_Ehw, seen_Ehw)

    @staticmethod
    def _dense_sum(dense: tuple[Tensor, ...], labels_BHW3: Tensor, valid_BHW: Tensor) -> Tensor:
        """Cross entropy at every stride-th pixel, scaled to the number of pixels."""
        stride = labels_BHW3.shape[1] // dense[0].shape[-1]
        offset = stride // 2
        labels = labels_BHW3[:, offset::stride, offset::stride].long()
        taught = valid_BHW[:, offset::stride, offset::stride, None] & (labels != NOT_TAUGHT)
        labels = torch.where(taught, labels, IGNORE)
        losses = [
            F.cross_entropy(d.float(), labels[..., i], ignore_index=IGNORE, reduction="sum")
            for i, d in enumerate(dense)
        ]
        return torch.stack(losses).sum() * stride * stride

    def _features(self, sight: ImageFeatures, pixels_mask_B3SS: Tensor | None) -> Any:
        """What the mask head keeps; the image-blind control hides the frame that it looks at itself as well."""
        head: MaskHead = self.head
        if pixels_mask_B3SS is not None and self.settings.mllm.blind_to_image:
            pixels_mask_B3SS = pixels_mask_B3SS * 0
        return head.encode(*self.head_inputs(sight), pixels_mask_B3SS)

    def head_inputs(self, sight: ImageFeatures) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """What a mask head sees beside pixels of its own: stage maps, image map, regions, their validity."""
        g = self.settings.mllm.low_grid
        image_BDhw = sight.prefix_BLD[:, sight.layout.image].transpose(1, 2).unflatten(2, (g, g))
        regions = torch.cat((sight.object_BOD, sight.part_BPD), dim=1)
        valid = torch.cat(
            (sight.valid_BL[:, sight.layout.objects], sight.valid_BL[:, sight.layout.parts]), dim=1
        )
        return sight.stages, image_BDhw, regions, valid

    # answering ------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Vocabulary:
        """What a checkpoint stores as tokenizer.json."""
        return self.vocabulary

    @property
    def decision_rule(self) -> DecisionRule:
        """The rule of the config."""
        return self.settings.decision_rule

    @torch.no_grad()
    def encode_images(self, photos: Sequence[np.ndarray]) -> EncodedPhotos:
        """Encode photos once: proposals, both towers, MGFE, the LLM's prefix, the mask head's maps."""
        with self._mixed():
            return self._look([view_photo(photo, self.settings) for photo in photos])

    @property
    def wants_truth_boxes(self) -> bool:
        """True for the labelled ablation `boxes = "truth"`."""
        return self.settings.boxes == "truth"

    @torch.no_grad()
    def encode_images_with_truth_boxes(
        self, photos: Sequence[np.ndarray], records: Sequence[ImageRecord]
    ) -> EncodedPhotos:
        """`encode_images` of that ablation: reads the boxes (and only the boxes) of the records."""
        with self._mixed():
            return self._look(
                [
                    view_photo(photo, self.settings, record)
                    for photo, record in zip(photos, records, strict=True)
                ]
            )

    def _mixed(self) -> AbstractContextManager[Any]:
        """Autocast where weights are kept in bf16, all or only the frozen ones; nothing elsewhere."""
        if any(parameter.dtype == torch.bfloat16 for parameter in self.parameters()):
            return torch.autocast(next(self.parameters()).device.type, dtype=torch.bfloat16)
        return nullcontext()

    @torch.no_grad()
    def predict(self, inputs: Mapping[str, Any]) -> list[Prediction]:
        """Answers to what `UniRESPlusPlusProcessor` prepared; flat, photo by photo."""
        with self._mixed():
            sight = self._see(inputs["views"], inputs)
        return self.answer(sight, inputs["texts"], inputs["decoding"])

    def _look(self, views: list[View]) -> EncodedPhotos:
        return self._see(views, tensors_of(views, self.settings))

    def _see(self, views: list[View], inputs: Mapping[str, Any]) -> EncodedPhotos:
        device = next(self.parameters()).device
        given = {name: value.to(device) for name, value in inputs.items() if isinstance(value, Tensor)}
        high = given["pixels_high_B3HW"]
        boxes = Boxes(*(given[name] for name in BOX_FIELDS))
        found = self._find_boxes(high, boxes, given["extent_B2"])
        seconds = found.seconds + sum(view.box_seconds for view in views)
        if self.settings.boxes in FROM_FEATURES:
            views = [replace(v, boxes=_proposals(found.boxes, b)) for b, v in enumerate(views)]
        sight = self.mllm.encode_image(given["pixels_low_B3hw"], high, found.boxes, found.stages)
        features = self._features(sight, given.get("pixels_mask_B3SS"))
        return EncodedPhotos(views, self.mllm.prefill(sight), features, seconds)

    def regions(self, sight: EncodedPhotos) -> list[dict[str, np.ndarray]]:
        """The proposals each photo was read with: xyxy (N, 4) in the image frame by "object" and "part"."""
        return [
            {
                "object": view.letterbox.unboxes(view.boxes.objects),
                "part": view.letterbox.unboxes(view.boxes.parts),
            }
            for view in sight.views
        ]

    def proposal_seconds(self, sight: EncodedPhotos) -> float:
        """What finding the boxes of all photos took; the high tower, which is needed anyway, is not in it."""
        return sight.proposal_seconds

    @torch.no_grad()
    def answer(
        self, sight: EncodedPhotos, texts: Sequence[Sequence[str | Question]], decoding: Decoding
    ) -> list[Prediction]:
        """Generate the answers of all texts of all photos together; flat, photo by photo."""
        image_of_row, branches = asked_branches(texts, decoding, self.vocabulary)
        if not branches:
            return []
        predictions: list[Prediction] = []
        with self._mixed():
            spoken = self.mllm.generate(
                sight.prefix, branches, image_of_row, decoding.max_new_tokens, decoding.cache_bytes
            )
            for start in range(0, len(spoken), ANSWERS_AT_ONCE):
                part = slice(start, start + ANSWERS_AT_ONCE)
                predictions += self._masked(sight, spoken[part], image_of_row[part], decoding)
        return predictions

    def _masked(
        self,
        sight: EncodedPhotos,
        spoken: Sequence[GeneratedAnswer],
        image_of_row: Sequence[int],
        decoding: Decoding,
    ) -> list[Prediction]:
        """Masks and decisions of generated answers, which come photo by photo."""
        prompts = torch.cat([s.prompts_KD for s in spoken])
        image_of_prompt = [
            b for b, s in zip(image_of_row, spoken, strict=True) for _ in range(len(s.prompts_KD))
        ]
        head = self.head(sight.features, prompts, torch.tensor(image_of_prompt, device=prompts.device))
        p_seg = torch.cat([s.p_seg_K for s in spoken])
        absent = (1 - p_seg * head.presence_E.float().sigmoid()).tolist()
        scores = head.quality_E.float().sigmoid().tolist()
        masks = photo_masks(head.masks_Ehw, image_of_prompt, sight.views)
        predictions, start = [], 0
        for item in spoken:
            stop = start + len(item.prompts_KD)
            predictions.append(
                self._prediction(item, masks[start:stop], scores[start:stop], absent[start:stop], decoding)
            )
            start = stop
        return predictions

    def _prediction(
        self,
        spoken: GeneratedAnswer,
        masks: list[np.ndarray],
        scores: list[float],
        absent: list[float],
        decoding: Decoding,
    ) -> Prediction:
        """Apply the decision rule to one generated answer; several accepted masks are united."""
        v, rule = self.vocabulary, decoding.rule or self.decision_rule
        text = v.decode(spoken.ids)
        rles = [encode(mask) for mask in masks]
        if rule == "token":
            accepted = [token == v.seg for token in spoken.decisions]
        else:
            accepted = [p <= 0.5 for p in absent] if spoken.decisions else []
        phrases = _phrases(text, len(spoken.decisions))
        segments = tuple(
            Segment(phrase, rle if yes else None, score)
            for phrase, rle, yes, score in zip(phrases, rles, accepted, scores, strict=False)
        )
        kept = [rle for rle, yes in zip(rles, accepted, strict=False) if yes]
        size = masks[0].shape
        return Prediction(
            rejected=not kept,
            mask=union(kept, size) if kept else None,
            text=text,
            score=max((s for s, yes in zip(scores, accepted, strict=False) if yes), default=scores[0]),
            p_absent=min(absent),
            mask_if_forced=None if kept else union(rles, size),
            segments=segments,
        )


def photo_extent(valid_BHW: Tensor) -> Tensor:
    """(x, y) size in pixels of the part of each square that shows the photo -> (B, 2) float."""
    return torch.stack((valid_BHW.any(dim=1).sum(dim=1), valid_BHW.any(dim=2).sum(dim=1)), dim=1).float()


def _proposals(boxes: Boxes, image: int) -> Proposals:
    return Proposals(
        boxes.objects_BO4[image][boxes.object_valid_BO[image]].float().cpu().numpy(),
        boxes.parts_BP4[image][boxes.part_valid_BP[image]].float().cpu().numpy(),
    )


def _head(config: UniRESPlusPlusConfig) -> PyramidHead | SamHead | Sam2Head:
    """The configured mask head."""
    D = config.mllm.llm_width
    if config.mask_head == "sam":
        return SamHead(config.sam, D)
    if config.mask_head == "sam2":
        return Sam2Head(config.sam2, D)
    return PyramidHead(config.head, D, config.mllm.high_widths)


def _phrases(text: str, count: int) -> list[str]:
    """Phrases of `a: [SEG], b: [REJ].`, empty strings where the answer names none."""
    pieces = [piece.strip(" ,.;:") for piece in text.replace("[REJ]", "[SEG]").split("[SEG]")]
    return (pieces + [""] * count)[:count]
