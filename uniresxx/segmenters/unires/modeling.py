"""UniRES: CLIP with group tokens, the region filters, two vision-language decoders, mask logits.

Vision runs once per picture; region filters and decoders run per expression.

Shapes: B images, E expressions, Q tokens of the longest expression, N patches, G groups of a level, M groups of both
levels, S cells of a patch, F fine channels, D width of the image encoder, C decoder width, h w the grid of cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextModel

from mllm.tokens import REJ, SEG
from uniresxx.errors import InputError
from uniresxx.imaging.geometry import Letterbox
from uniresxx.model.answering import prediction_of
from uniresxx.model.criterion import masks_and_iou, weighted
from uniresxx.model.forced import forced
from uniresxx.model.heads.attention import key_bias
from uniresxx.model.losses import Counts, LossTerms
from uniresxx.model.photo_batches import join_tensors, split_tensors
from uniresxx.model.placement import autocast_of, sent
from uniresxx.model.processing import PixelNorm, pixels, upsampled
from uniresxx.prediction import Prediction
from uniresxx.segmenters.unires.batch import UniresBatch, UniresCollator, padded
from uniresxx.segmenters.unires.config import UniresConfig
from uniresxx.segmenters.unires.decoder import DecoderLayer, RegionFilter, first_stage, second_stage
from uniresxx.segmenters.unires.encoder import GroupedVision
from uniresxx.segmenters.unires.heads import MaskHead, PresenceHead
from uniresxx.segmenters.unires.vocabulary import ClipVocabulary
from uniresxx.text import asked_questions
from uniresxx.types import AS_TYPED, DecisionRule, Decoding, OnText, Texts

DECODED_AT_ONCE = 32  # expressions in the decoders while answering; no answer depends on it


class ImageFeatures(NamedTuple):  # ZeRO-3 finds tensors only in tuples, lists and dicts
    """What all expressions of B images share."""

    patches_BNC: Tensor
    look_BNSF: Tensor  # of the cells of each patch
    low_BGC: Tensor
    high_BGC: Tensor


class UniresOutput(NamedTuple):
    """Mask logits on the grid of cells over the padded square; presence logits, None without that extension."""

    masks_Ehw: Tensor
    presence_E: Tensor | None


@dataclass(frozen=True, slots=True)
class EncodedPhotos:
    """Photos encoded once."""

    letterboxes: list[Letterbox]
    features: ImageFeatures


class Unires(nn.Module):
    """The model; trains through `forward` and `loss`, answers as a Segmenter.

    It answers every text with one mask. Without `config.presence` nothing is rejected, unless no pixel is found.
    Earlier turns of a conversation are not read.
    """

    def __init__(self, config: UniresConfig, vocabulary: ClipVocabulary) -> None:
        """Random weights; ValueError where sizes or the vocabulary do not fit."""
        super().__init__()
        rows = int(config.text_config.to_dict()["vocab_size"])
        if vocabulary.rows > rows:
            raise ValueError(f"vocabulary of {vocabulary.rows} tokens exceeds vocab_size={rows} of text")
        self.config, self.vocabulary = config, vocabulary
        self.normalise = PixelNorm(config.pixel_stats)
        self.vision = GroupedVision(config)
        self.text = CLIPTextModel(config.text_config)
        D, C = int(self.vision.clip.config.hidden_size), config.width
        self.patches, self.words = nn.Linear(D, C), nn.Linear(int(self.text.config.hidden_size), C)
        sizes = C, config.heads, config.mlp_ratio
        self.low_groups, self.high_groups = (
            nn.Sequential(nn.LayerNorm(D), nn.Linear(D, C)) if count else None
            for count in (config.low_groups, config.high_groups)
        )
        self.low_filter = RegionFilter(*sizes) if config.low_groups else None
        self.high_filter = RegionFilter(*sizes) if config.high_groups else None
        layer = partial(DecoderLayer, *sizes, config.mixing)
        self.stage1 = nn.ModuleList(layer() for _ in range(config.stage1_layers))
        grouped = bool(config.low_groups or config.high_groups)
        self.stage2 = nn.ModuleList(layer(grouped) for _ in range(config.stage2_layers))
        self.mask = MaskHead(D, C, config.cells)
        self.presence = PresenceHead(C) if config.presence else None

    def encode(self, pixels_B3HW: Tensor) -> ImageFeatures:
        """The features of B images, uint8; CLIP's last norm is on every patch (our choice)."""
        found = self.vision(self.normalise(pixels_B3HW))
        patches_BND = self.vision.clip.post_layernorm(found.tokens_BTD[:, 1:])
        patches_BNC = self.patches(patches_BND)
        return ImageFeatures(
            patches_BNC,
            self.mask.encode(found.tokens_BTD[:, 1:]),
            *(
                patches_BNC[:, :0] if project is None else project(groups_BGD)
                for project, groups_BGD in (
                    (self.low_groups, found.low_BGD),
                    (self.high_groups, found.high_BGD),
                )
            ),
        )

    def encode_text(self, ids_EQ: Tensor, length_E: Tensor) -> tuple[Tensor, Tensor]:
        """Words (E, Q, C), and what is added to the score of each: very negative on padding.

        The encoder is causal and padding stands at the end, so words never see it.
        """
        text_EQC = self.words(self.text(ids_EQ).last_hidden_state)
        step_Q = torch.arange(ids_EQ.shape[1], device=ids_EQ.device)
        return text_EQC, key_bias(step_Q < length_E[:, None])

    def filtered_groups(
        self, features: ImageFeatures, text_EQC: Tensor, bias_EQ: Tensor, image_E: Tensor
    ) -> Tensor:
        """Groups of both levels, low ones first, as the words filter them (E, M, C)."""
        levels = ((self.low_filter, features.low_BGC), (self.high_filter, features.high_BGC))
        return torch.cat(
            [
                groups_BGC[image_E] if region is None else region(groups_BGC[image_E], text_EQC, bias_EQ)
                for region, groups_BGC in levels
            ],
            dim=1,
        )

    def read(
        self, features: ImageFeatures, ids_EQ: Tensor, length_E: Tensor, image_E: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Patches after both decoders (E, N, C), and the sentences (E, C): the words' last token."""
        text_EQC, bias_EQ = self.encode_text(ids_EQ, length_E)
        groups_EMC = self.filtered_groups(features, text_EQC, bias_EQ, image_E)
        x_ENC = first_stage([*self.stage1], features.patches_BNC, text_EQC, bias_EQ, image_E)
        x_ENC = second_stage([*self.stage2], x_ENC, groups_EMC)
        return x_ENC, text_EQC[torch.arange(len(length_E), device=length_E.device), length_E - 1]

    def decode(
        self, features: ImageFeatures, ids_EQ: Tensor, length_E: Tensor, image_E: Tensor
    ) -> UniresOutput:
        """Answer each expression, at least one, on its image."""
        x_ENC, sentence_EC = self.read(features, ids_EQ, length_E, image_E)
        presence_E = None if self.presence is None else self.presence(x_ENC, sentence_EC)
        return UniresOutput(self.mask(x_ENC, features.look_BNSF, image_E), presence_E)

    def forward(self, batch: UniresBatch) -> UniresOutput:
        """Every expression of the batch; a batch without any gives empty outputs."""
        features = self.encode(batch.pixels_B3HW)
        if not len(batch.image_of_expr_E):
            side = self.config.grid * self.config.cells
            none_Ehw = features.look_BNSF.flatten(1)[:0, : side**2].unflatten(1, (side, side))
            return UniresOutput(none_Ehw, None if self.presence is None else none_Ehw[:, 0, 0])
        return self.decode(features, batch.text_EQ, batch.length_E, batch.image_of_expr_E)

    def counts(self, batch: UniresBatch) -> Counts:
        """Denominators of the loss terms, known before the forward pass."""
        masks = len(batch.present_P)
        presence = {} if self.presence is None else {"presence": len(batch.present_E)}
        return {"mask": masks, "dice": masks} | presence

    def loss(self, output: UniresOutput, batch: UniresBatch) -> LossTerms:
        """Sums over this micro-batch; masks are supervised only where the truth has one."""
        logits_Phw = output.masks_Ehw[batch.present_P].float()
        bce, dice, _ = masks_and_iou(logits_Phw, batch, self.config.loss)
        sums = {"mask": bce, "dice": dice}
        if output.presence_E is not None:
            sums["presence"] = F.binary_cross_entropy_with_logits(
                output.presence_E.float(), batch.present_E.float(), reduction="sum"
            )
        return weighted(sums, self.config.loss)

    @property
    def collator(self) -> UniresCollator:
        """What prepares its training samples."""
        return UniresCollator(self.config, self.vocabulary)

    @property
    def tokenizer(self) -> ClipVocabulary:
        """What a checkpoint stores as tokenizer.json."""
        return self.vocabulary

    @property
    def decision_rule(self) -> DecisionRule:
        """The presence score decides where there is one; it generates no tokens."""
        return "token" if self.presence is None else "token_and_presence"

    @property
    def question_template(self) -> str:
        """The expression alone."""
        return AS_TYPED

    @property
    def finds_instances(self) -> bool:
        """Never: one mask for all that is meant."""
        return False

    @torch.no_grad()
    def encode_images(self, photos: Sequence[np.ndarray]) -> EncodedPhotos:
        """Encode photos once."""
        boxes = [Letterbox.fit(photo.shape[0], photo.shape[1], self.config.size) for photo in photos]
        inputs = pixels([box.photo(photo) for box, photo in zip(boxes, photos, strict=True)])
        with autocast_of(self):
            return EncodedPhotos(boxes, self.encode(sent(inputs, self.patches.weight.device)))

    def join_images(self, encoded: Sequence[EncodedPhotos]) -> EncodedPhotos:
        """Photos encoded apart, as if they had been encoded together."""
        boxes = [box for photos in encoded for box in photos.letterboxes]
        return EncodedPhotos(boxes, join_tensors([photos.features for photos in encoded]))

    def split_images(self, encoded: EncodedPhotos) -> list[EncodedPhotos]:
        """Each encoded photo alone."""
        parts = split_tensors(encoded.features, len(encoded.letterboxes))
        return [EncodedPhotos([box], part) for box, part in zip(encoded.letterboxes, parts, strict=True)]

    @torch.no_grad()
    def answer(
        self, encoded: EncodedPhotos, texts: Texts, decoding: Decoding, on_text: OnText | None = None
    ) -> list[Prediction]:
        """Answer all texts of all photos; flat, photo by photo. It has no words to report.

        Raises:
            InputError: the rule asks for a presence score, and the model has none.
        """
        if decoding.rule == "token_and_presence" and self.presence is None:
            raise InputError("rule 'token_and_presence': this UniRES has no presence score, use 'token'")
        asked = asked_questions(texts)
        most = int(self.text.config.max_position_embeddings)
        ids = [
            self.vocabulary.encode(decoding.template.format(expression=question.text), most)
            for _, question in asked
        ]
        images = [image for image, _ in asked]
        found: list[Prediction] = []
        for start in range(0, len(ids), DECODED_AT_ONCE):
            part = slice(start, start + DECODED_AT_ONCE)
            found += self._answered(encoded, ids[part], images[part])
        return forced(found) if decoding.mode == "forced" else found

    def _answered(
        self, encoded: EncodedPhotos, ids: Sequence[Sequence[int]], images: Sequence[int]
    ) -> list[Prediction]:
        device = self.patches.weight.device
        ids_EQ, length_E = padded(ids, self.vocabulary.end)
        with autocast_of(self):
            output = self.decode(
                encoded.features,
                sent(ids_EQ, device),
                sent(length_E, device),
                sent(torch.tensor(images), device),
            )
        present = (
            [1.0] * len(ids) if output.presence_E is None else output.presence_E.float().sigmoid().tolist()
        )
        predictions = []
        for logits_hw, image, p in zip(output.masks_Ehw, images, present, strict=True):
            mask = upsampled(logits_hw[None], encoded.letterboxes[image])[0].cpu().numpy()
            text = f"{SEG if p > 0.5 else REJ}."
            predictions.append(prediction_of(text, [mask], [p > 0.5], [p], [1 - p]))
        if output.presence_E is None:
            return [replace(prediction, score=None, p_absent=None) for prediction in predictions]
        return predictions
