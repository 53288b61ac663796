"""UniRES++: the multimodal LLM and the mask head; trains by `forward` and `loss`, answers as a `Segmenter`.

Shapes: B images, E expressions, T tokens, Y label positions, V vocabulary, D LLM width, O objects, P parts,
M region tokens, h w low frame or grid, H W high frame, S mask frame.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.config import Part
from mllm.modeling import MLLM, Boxes, ImageFeatures
from mllm.tokens import Vocabulary
from uniresxx.errors import InputError
from uniresxx.model.answering import (
    EncodedPhotos,
    answer_texts,
    attention_shares,
    join_photos,
    split_photos,
)
from uniresxx.model.collate import PackedCollator
from uniresxx.model.config import UniRESPlusPlusConfig
from uniresxx.model.criterion import ModelOutput, all_counts, instance_counts, loss_terms
from uniresxx.model.forced import forced
from uniresxx.model.heads.base import HeadInputs, HeadOutput, MaskHead, RegionBoxes
from uniresxx.model.heads.clicks import region_at
from uniresxx.model.heads.instances import InstanceOutput, InstanceQueries
from uniresxx.model.heads.pyramid import PyramidHead
from uniresxx.model.heads.sam import Sam2Head, SamHead
from uniresxx.model.losses import Counts, LossTerms, photo_extent
from uniresxx.model.placement import autocast_of, sent, wait_for
from uniresxx.model.processing import (
    FROM_FEATURES,
    PixelNorm,
    View,
    tensors_of,
    view_photo,
    with_boxes,
)
from uniresxx.model.regions.learned import BoxHead, BoxOutput
from uniresxx.model.tuning import apply_tuning
from uniresxx.prediction import Prediction
from uniresxx.types import EVALUATION_TEMPLATE, Batch, DecisionRule, Decoding, ImageRecord, OnText, Question

RARE = -5.0  # logit of a word that few questions have
BOX_FIELDS = ("object_boxes_BO4", "object_valid_BO", "part_boxes_BP4", "part_valid_BP")


@dataclass(frozen=True, slots=True)
class FoundBoxes:
    """Region proposals, and what finding them computed."""

    boxes: Boxes
    stages: list[Tensor] | None = None  # of the high tower
    output: BoxOutput | None = None  # of the learned box head
    seconds: float = 0.0  # 0 for boxes prepared with the photo, and in training


class UniRESPlusPlusModel(nn.Module):
    """The full method; the tiny model is this class with small numbers. `hub.classes.UniRESPlusPlus` wraps it."""

    def __init__(
        self, config: UniRESPlusPlusConfig, vocabulary: Vocabulary, from_files: Collection[Part] = ()
    ) -> None:
        """Random weights.

        Args:
            config: sizes and switches.
            vocabulary: tokenizer with the project's special tokens.
            from_files: parts (llm, low, high, mask_encoder) left without values, because all of their weights,
                and those of all of SAM, are loaded next.
        """
        super().__init__()
        m = config.mllm
        self.config, self.vocabulary = config, vocabulary
        self.normalise_low, self.normalise_high = (PixelNorm(stats) for stats in m.pixel_stats)
        self.normalise_mask = PixelNorm("imagenet")
        self.mllm = MLLM(m, vocabulary, from_files)
        self.head = _mask_head(config, "mask_encoder" in from_files)
        self.instances = InstanceQueries(config.instances, m.llm_width) if config.instances else None
        classes = sum(config.dense_classes)
        self.dense = nn.Conv2d(config.head.width, classes, 1) if classes else None
        self.words = _word_head(m.llm_width, m.token_count) if config.loss.words else None
        learned = config.boxes == "learned"
        self.box_head = BoxHead(config.box_head, m.high_widths, m.high_strides) if learned else None
        # of boxes "owlv2", pixels and extent -> boxes; not a submodule, never saved
        self.detector: Callable[[Tensor, Tensor], Boxes] | None = None
        apply_tuning(self, self.mllm.llm, vocabulary.special, config.tuning)

    def forward(self, batch: Batch) -> ModelOutput:
        """One pass over packed rows."""
        boxes = Boxes(*(getattr(batch, name) for name in BOX_FIELDS))
        extent_B2 = photo_extent(batch.pixel_valid_BHW)
        image, found = self._encode(batch.pixels_low_B3hw, batch.pixels_high_B3HW, boxes, extent_B2)
        states_BTD = self.mllm(image, batch.token_ids_BT, batch.branch_BT, batch.position_BT)
        own = int(self.config.mllm.prompt_state == "own")
        prompts_ED = states_BTD[batch.image_of_expr_E, batch.seg_position_E + own]
        masks: HeadOutput | None = None
        dense: tuple[Tensor, ...] = ()
        instances: InstanceOutput | None = None
        if self.config.loss.teaches_masks:
            features = self._mask_features(image, batch.pixels_mask_B3SS)
            masks, instances = self.masks(features, prompts_ED, batch.image_of_expr_E, batch.most_expressions)
            if self.dense is not None:
                dense = self.dense(features.fine_BChw).split(self.config.dense_classes, dim=1)
        return ModelOutput(
            self.mllm.logits(states_BTD.flatten(0, 1)[batch.labelled_Y]),
            batch.labels_BT.flatten()[batch.labelled_Y],
            masks,
            dense,
            found.output,
            instances,
            None if self.words is None else self.words(prompts_ED),
        )

    def counts(self, batch: Batch) -> Counts:
        """Denominators of the loss terms, known before the forward pass."""
        counts = all_counts(batch, self.config.loss)
        if self.config.instances and self.config.loss.teaches_masks:
            counts |= instance_counts(batch, self.config.instances)
        return counts

    def loss(self, output: ModelOutput, batch: Batch) -> LossTerms:
        """Sums over this micro-batch."""
        return loss_terms(output, batch, self.config.loss, self.box_head)

    @property
    def collator(self) -> PackedCollator:
        """What prepares its training samples."""
        return PackedCollator(self.config, self.vocabulary)

    @property
    def tokenizer(self) -> Vocabulary:
        """What a checkpoint stores as tokenizer.json."""
        return self.vocabulary

    @property
    def decision_rule(self) -> DecisionRule:
        """The rule of the config."""
        return self.config.decision_rule

    @property
    def question_template(self) -> str:
        """The project's."""
        return EVALUATION_TEMPLATE

    @property
    def wants_truth_boxes(self) -> bool:
        """True for the labelled ablation `boxes = "truth"`."""
        return self.config.boxes == "truth"

    @property
    def finds_instances(self) -> bool:
        """Whether the mask head has instance queries."""
        return self.instances is not None

    def encode_images(self, photos: Sequence[np.ndarray]) -> EncodedPhotos:
        """Encode photos once: proposals, both towers, MGFE, the LLM's prefix, the mask head's features."""
        return self.encode_views([view_photo(photo, self.config) for photo in photos])

    def encode_images_with_truth_boxes(
        self, photos: Sequence[np.ndarray], records: Sequence[ImageRecord]
    ) -> EncodedPhotos:
        """`encode_images` of that ablation: uses the boxes, and only the boxes, of the records."""
        pairs = zip(photos, records, strict=True)
        return self.encode_views([view_photo(photo, self.config, record) for photo, record in pairs])

    @torch.no_grad()
    def encode_views(self, views: list[View], tensors: Mapping[str, Any] | None = None) -> EncodedPhotos:
        """Encode prepared photos; `tensors` is `tensors_of(views, config)`, where the caller has it already."""
        device = next(self.parameters()).device
        tensors = tensors_of(views, self.config) if tensors is None else tensors
        given = {name: sent(value, device) for name, value in tensors.items() if isinstance(value, Tensor)}
        boxes = Boxes(*(given[name] for name in BOX_FIELDS))
        with autocast_of(self):
            image, found = self._encode(
                given["pixels_low_B3hw"], given["pixels_high_B3HW"], boxes, given["extent_B2"]
            )
            features = self._mask_features(image, given.get("pixels_mask_B3SS"))
            prefix = self.mllm.prefill(image)
        seconds = found.seconds + sum(view.box_seconds for view in views)
        if self.config.boxes in FROM_FEATURES:
            views = with_boxes(views, found.boxes)
        return EncodedPhotos(views, prefix, features, seconds)

    def join_images(self, encoded: Sequence[EncodedPhotos]) -> EncodedPhotos:
        """Photos encoded apart, as if they had been encoded together."""
        return join_photos(encoded)

    def split_images(self, encoded: EncodedPhotos) -> list[EncodedPhotos]:
        """Each encoded photo alone."""
        return split_photos(encoded)

    def regions(self, encoded: EncodedPhotos) -> list[dict[str, np.ndarray]]:
        """The region proposals of each photo: xyxy (N, 4) in the image frame by "object" and "part"."""
        regions = []
        for view in encoded.views:
            to_image, boxes = view.letterbox.unboxes, view.boxes
            regions.append({"object": to_image(boxes.objects), "part": to_image(boxes.parts)})
        return regions

    def proposal_seconds(self, encoded: EncodedPhotos) -> float:
        """Time to find the boxes of all photos, without the high tower, which is needed anyway."""
        return encoded.proposal_seconds

    def region_at(self, encoded: EncodedPhotos, x: float, y: float) -> np.ndarray | None:
        """What lies at a click, as in `FindsAtClick`; None where the head is neither SAM nor SAM 2."""
        if not isinstance(self.head, SamHead | Sam2Head):
            return None
        with autocast_of(self):
            return region_at(self.head, encoded.features, encoded.views[0], x, y)

    def attention_shares(
        self, encoded: EncodedPhotos, question: str | Question, decoding: Decoding
    ) -> list[dict[str, float]]:
        """Where the state of each [SEG] and [REJ] looked, as in `TellsAttention`."""
        with autocast_of(self):
            return attention_shares(self.mllm, encoded, question, decoding)

    @torch.no_grad()
    def answer(
        self,
        encoded: EncodedPhotos,
        texts: Sequence[Sequence[str | Question]],
        decoding: Decoding,
        on_text: OnText | None = None,
    ) -> list[Prediction]:
        """Generate the answers of all texts of all photos together; flat, photo by photo.

        `on_text`: hears the words of each answer as they come.
        """
        rule = decoding.rule or self.decision_rule
        if decoding.mode == "forced":  # the state before the first token is the one that a given [SEG] has
            decoding = replace(decoding, max_new_tokens=1)
        with autocast_of(self):
            asked = texts, decoding, rule, on_text, self.config.ask_together
            predictions = answer_texts(self.mllm, self.masks, encoded, *asked)
        return forced(predictions) if decoding.mode == "forced" else predictions

    def head_inputs(self, image: ImageFeatures, pixels_mask_B3SS: Tensor | None) -> HeadInputs:
        """What the mask head may read; `blind_to_image` zeroes the pixels of its own frame as well.

        The boxes are those that MGVF used: none of them is valid where an ablation switches a stream off.
        """
        m, layout, b = self.config.mllm, image.layout, image.boxes
        g = m.low_grid
        if pixels_mask_B3SS is not None and m.blind_to_image:
            pixels_mask_B3SS = pixels_mask_B3SS * 0
        return HeadInputs(
            image.stages,
            image.prefix_BLD[:, layout.image].transpose(1, 2).unflatten(2, (g, g)),
            torch.cat((image.object_BOD, image.part_BPD), dim=1),
            torch.cat((image.valid_BL[:, layout.objects], image.valid_BL[:, layout.parts]), dim=1),
            RegionBoxes(b.objects_BO4, b.object_valid_BO, b.parts_BP4, b.part_valid_BP, float(m.high_size)),
            pixels_mask_B3SS,
        )

    def masks(
        self, features: Any, prompts_ED: Tensor, image_of_expr_E: Tensor, most: int | None = None
    ) -> tuple[HeadOutput, InstanceOutput | None]:
        """The mask head's output for all expressions; with instance queries also what it unites.

        `most` expressions of one image, where the caller knows it: on a GPU counting them is waited for.
        """
        none = prompts_ED.shape[0] == 0
        if none:  # one in their place, dropped again: every process of a job has to reach the same weights
            prompts_ED, image_of_expr_E, most = (
                F.pad(prompts_ED, (0, 0, 0, 1)),
                F.pad(image_of_expr_E, (0, 1)),
                1,
            )
        if self.instances is None:
            output: HeadOutput = self.head(features, prompts_ED, image_of_expr_E, most)
            return HeadOutput(*(value[:0] for value in output)) if none else output, None
        found = self.instances.decode(self.head, features, prompts_ED, image_of_expr_E, most)
        if none:
            found = InstanceOutput(*(value[:0] for value in found))
        return found.united(), found

    def _mask_features(self, image: ImageFeatures, pixels_mask_B3SS: Tensor | None) -> Any:
        """The mask head's features."""
        head: MaskHead = self.head
        if pixels_mask_B3SS is not None:
            pixels_mask_B3SS = self.normalise_mask(pixels_mask_B3SS)
        return head.encode(self.head_inputs(image, pixels_mask_B3SS))

    def _encode(
        self, low_B3hw: Tensor, high_B3HW: Tensor, given: Boxes, extent_B2: Tensor
    ) -> tuple[ImageFeatures, FoundBoxes]:
        """Image features of uint8 pixels with the configured boxes."""
        low_B3hw, high_B3HW = self.normalise_low(low_B3hw), self.normalise_high(high_B3HW)
        found = self._find_boxes(high_B3HW, given, extent_B2)
        return self.mllm.encode_image(low_B3hw, high_B3HW, found.boxes, found.stages), found

    def _find_boxes(self, high_B3HW: Tensor, given: Boxes, extent_B2: Tensor) -> FoundBoxes:
        """The configured boxes: those prepared with the photo, or found on the model's own input."""
        if self.box_head is not None:
            stages = self.mllm.high(high_B3HW)
            start = self._clock()
            output = self.box_head(stages)
            m = self.config.mllm
            boxes = self.box_head.propose(output, extent_B2, m.max_objects, m.max_parts)
            return FoundBoxes(boxes, stages, output, self._clock() - start)
        if self.config.boxes == "owlv2":
            if self.detector is None:
                raise InputError(
                    "boxes='owlv2' needs its detector: name it by --model.weights.owlv2 FOLDER_OR_HUB_ID"
                )
            start = self._clock()
            boxes = self.detector(high_B3HW, extent_B2)
            return FoundBoxes(boxes, seconds=self._clock() - start)
        return FoundBoxes(given)

    def _clock(self) -> float:
        """Seconds once the GPU is done; 0 in training, which never waits for it."""
        if self.training:
            return 0.0
        wait_for(next(self.parameters()).device)
        return perf_counter()


def _word_head(width: int, words: int) -> nn.Linear:
    """Logits that start where nearly no word is there."""
    head = nn.Linear(width, words)
    nn.init.constant_(head.bias, RARE)
    return head


def _mask_head(config: UniRESPlusPlusConfig, from_file: bool) -> PyramidHead | SamHead | Sam2Head:
    """The configured mask head."""
    D, stage_widths = config.mllm.llm_width, config.mllm.high_widths
    if config.mask_head == "sam":
        return SamHead(config.sam, D, stage_widths, from_file)
    if config.mask_head == "sam2":
        return Sam2Head(config.sam2, D, stage_widths, from_file)
    return PyramidHead(config.head, D, stage_widths)
