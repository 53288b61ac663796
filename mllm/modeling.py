"""The multimodal LLM: `encode_image`, `forward` (training), `prefill` and `generate` (answers).

Shapes: B images, A branches of an image, T text tokens, Q newest of all tokens, L prefix length, N image tokens,
O objects, P parts, D width, C channels of a tower, V vocabulary, h w pixels of the low frame, H W of the high frame.
Boxes are xyxy in the high frame.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import Cache, DynamicCache

from mllm.config import Attention, MLLMConfig, Part
from mllm.exploitation import FeatureExploitation
from mllm.generation import (
    Answers,
    GeneratedAnswer,
    OnTokens,
    answer_ends,
    by_image,
    chunks,
    counted_from,
)
from mllm.language import build_language_model, cache_argument, in_compute_dtype, newest_states
from mllm.packed_attention import backend_of, real_first
from mllm.prefix import (
    CACHE_BYTES,
    PrefixCache,
    branch_mask,
    check_attention,
    check_packed,
    packed_blocks,
    packed_mask,
    packed_positions,
    prefix_branch,
    prefix_positions,
)
from mllm.splice import Layout, splice
from mllm.tokens import Vocabulary
from mllm.towers import HighTower, LowTower
from mllm.vision_flow import ImageTokens, RegionTokens


@dataclass(frozen=True, slots=True)
class Boxes:
    """Region proposals of B images with their validity."""

    objects_BO4: Tensor
    object_valid_BO: Tensor
    parts_BP4: Tensor
    part_valid_BP: Tensor

    def without(self, objects: bool, parts: bool) -> Boxes:
        """The same counts with no box at all in the named streams."""
        return Boxes(
            self.objects_BO4 * (not objects),
            self.object_valid_BO & (not objects),
            self.parts_BP4 * (not parts),
            self.part_valid_BP & (not parts),
        )


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """B images encoded: the LLM's prefix, the refined region tokens, the high tower's stage maps."""

    prefix_BLD: Tensor
    valid_BL: Tensor
    layout: Layout
    stages: list[Tensor]
    object_BOD: Tensor
    part_BPD: Tensor
    boxes: Boxes


class MLLM(nn.Module):
    """LLaVA-style: visual prefix from MGVF and MGFE, then branches of text."""

    def __init__(self, config: MLLMConfig, vocabulary: Vocabulary, from_files: Collection[Part] = ()) -> None:
        """`from_files`: parts (llm, low, high) left without values, because all of their weights are loaded next."""
        super().__init__()
        if vocabulary.rows > config.token_count:
            raise ValueError(
                f"the tokenizer needs {vocabulary.rows} token rows and mllm.llm has vocab_size="
                f"{config.token_count}: set vocab_size to at least {vocabulary.rows}"
            )
        check_attention(config.attention)
        self.config, self.vocabulary = config, vocabulary
        self.low = LowTower(config, "low" in from_files)
        self.high = HighTower(config, "high" in from_files)
        self.image_tokens = ImageTokens(config)
        self.object_tokens = RegionTokens(config, config.max_objects, config.use_objects)
        self.part_tokens = RegionTokens(config, config.max_parts, config.use_parts)
        self.exploitation = FeatureExploitation(config)
        self.llm: Any = build_language_model(config, vocabulary, "llm" in from_files)
        self._ends = answer_ends(config, vocabulary)
        self.cache_argument = cache_argument(self.llm.model.forward)
        if "llm" not in from_files:
            nn.init.normal_(self.embed.weight, std=config.embedding_std)

    @property
    def embed(self) -> nn.Embedding:
        """The LLM's input embedding."""
        embedding: nn.Embedding = self.llm.get_input_embeddings()
        return embedding

    @property
    def prefix_length(self) -> int:
        """Tokens before the first question: text, image, and both region streams with their marks."""
        c = self.config
        before = self.vocabulary.encode_template(c.chat.before_image)
        return len(before) + c.low_grid**2 + 1 + c.max_objects + 1 + c.max_parts

    def encode_image(
        self,
        pixels_low_B3hw: Tensor,
        pixels_high_B3HW: Tensor,
        boxes: Boxes,
        stages: list[Tensor] | None = None,
    ) -> ImageFeatures:
        """Encode B images once. With `blind_to_image`, pixels and boxes are replaced by zeros.

        Args:
            pixels_low_B3hw: normalised pixels of the low frame.
            pixels_high_B3HW: normalised pixels of the high frame.
            boxes: region proposals in the high frame.
            stages: `self.high(pixels_high_B3HW)`, where the caller has computed it already.
        """
        boxes = boxes.without(objects=not self.config.use_objects, parts=not self.config.use_parts)
        if self.config.blind_to_image:
            pixels_low_B3hw, pixels_high_B3HW = pixels_low_B3hw * 0, pixels_high_B3HW * 0
            stages = None
            boxes = boxes.without(objects=True, parts=True)
        if stages is None:
            stages = self.high(pixels_high_B3HW)
        low_BNC = self.low(pixels_low_B3hw)
        image = self.image_tokens(low_BNC, stages)
        objects = self.object_tokens(stages, boxes.objects_BO4)
        parts = self.part_tokens(stages, boxes.parts_BP4)
        object_valid = boxes.object_valid_BO | (not self.config.use_objects)
        part_valid = boxes.part_valid_BP | (not self.config.use_parts)
        image, objects, parts = self.exploitation(
            image, objects, parts, boxes.objects_BO4, boxes.parts_BP4, object_valid, part_valid
        )
        v = self.vocabulary
        first = v.encode_template(self.config.chat.before_image)
        marks = self.embed(torch.tensor([*first, v.object, v.part], device=image.device))
        prefix, valid, layout = splice(
            marks[:-2],
            marks[-2:],
            image,
            objects,
            parts,
            object_valid,
            part_valid,
            not self.config.count_padding,
        )
        return ImageFeatures(prefix, valid, layout, stages, objects, parts, boxes)

    def embed_text(self, ids_BT: Tensor) -> Tensor:
        """Token embeddings; with `blind_to_text`, words are replaced by padding and only turn marks stay."""
        if self.config.blind_to_text:
            v = self.vocabulary
            is_mark_V = torch.zeros(self.config.token_count, dtype=torch.bool, device=ids_BT.device)
            is_mark_V[[*v.template_ids(self.config.chat), v.seg, v.rej]] = True
            ids_BT = torch.where(is_mark_V[ids_BT], ids_BT, v.pad)
        return in_compute_dtype(self.embed(ids_BT))

    def forward(
        self, features: ImageFeatures, ids_BT: Tensor, branch_BT: Tensor, position_BT: Tensor
    ) -> Tensor:
        """Teacher-forced states (B, T, D) of packed branches after the prefix (training).

        Args:
            features: of B images, from `encode_image`.
            ids_BT: tokens of each image's branches, one after another.
            branch_BT: branch of each token, -1 on padding.
            position_BT: place of each token in its branch.

        Raises:
            ValueError: the attention backend cannot pack branches.
        """
        check_packed(self.config.attention)
        prefix_BLD, valid_BL = in_compute_dtype(features.prefix_BLD), features.valid_BL
        L, others = features.layout.length, {}
        position_BS = packed_positions(self._prefix_positions(valid_BL), position_BT)
        if self.config.attention == "sdpa":
            prefix_BLD, valid_BL, position_BL = real_first(prefix_BLD, valid_BL, position_BS[:, :L])
            position_BS, others = torch.cat((position_BL, position_BS[:, L:]), dim=1), {"prefix_length": L}
        output = self.llm.model(
            inputs_embeds=torch.cat((prefix_BLD, self.embed_text(ids_BT)), dim=1),
            attention_mask=self._packed_mask(valid_BL, branch_BT, prefix_BLD.dtype),
            position_ids=position_BS,
            use_cache=False,
            **others,
        )
        states: Tensor = output.last_hidden_state[:, L:]
        return states

    def _packed_mask(self, valid_BL: Tensor, branch_BT: Tensor, dtype: torch.dtype) -> Tensor | BlockMask:
        """The mask of packed rows, as the attention backend takes it; SDPA has that of the text alone."""
        if self.config.attention == "flex_attention":
            return packed_blocks(valid_BL, branch_BT)
        if self.config.attention == "sdpa":
            branch_BS = torch.cat((prefix_branch(valid_BL), branch_BT), dim=1)
            return branch_mask(branch_BS, branch_BT.shape[1], dtype)
        return packed_mask(valid_BL, branch_BT, dtype)

    def logits(self, states_D: Tensor) -> Tensor:
        """Vocabulary logits of selected states only."""
        logits: Tensor = self.llm.lm_head(states_D)
        return logits

    def prefill(self, features: ImageFeatures) -> PrefixCache:
        """Encode the visual prefix of B images once for generation."""
        position_BL = self._prefix_positions(features.valid_BL)
        cache, attention = DynamicCache(), self.config.attention
        hidden_BLD, mask = in_compute_dtype(features.prefix_BLD), features.valid_BL
        if attention != "flash_attention_2":  # flash takes the validity alone, and is causal by itself
            mask = branch_mask(prefix_branch(mask), mask.shape[1], hidden_BLD.dtype)
        with self.attention_backend("sdpa" if attention == "flex_attention" else attention):
            self._extend(hidden_BLD, position_BL, cache, mask)
        return PrefixCache(tuple((layer.keys, layer.values) for layer in cache.layers), features.valid_BL)

    def room(self, prefix: PrefixCache, new_tokens: int) -> int | None:
        """Tokens of text that fit into the language model's context between prefix and answer; None: no limit."""
        most = self.config.llm.get("max_position_embeddings")
        return None if most is None else most - prefix.length - new_tokens

    def _prefix_positions(self, valid_BL: Tensor) -> Tensor:
        return prefix_positions(valid_BL, self.config.count_padding)

    @torch.no_grad()
    def generate(
        self,
        prefix: PrefixCache,
        branches: Sequence[Sequence[int]],
        image_of_row: Sequence[int],
        max_new: int,
        cache_bytes: int = CACHE_BYTES,
        most_decisions: Sequence[int] | None = None,
        on_tokens: OnTokens | None = None,
    ) -> list[GeneratedAnswer]:
        """Greedy answers to the branches of B images; the branches of an image share its prefix.

        Args:
            prefix: of B images, from `prefill`.
            branches: token ids of each branch, ending where the answer begins.
            image_of_row: the image of each branch.
            max_new: tokens of an answer at most.
            cache_bytes: branches are decoded in chunks whose keys and values fit into this, at least one at a
                time. A chunk holds the prefix of each of its images once and the text of each branch, see
                `PrefixCache.chunk_bytes`. Answers do not depend on it.
            most_decisions: [SEG]s and [REJ]s of each branch's answer: it ends behind the last one. None: any number.
            on_tokens: called after each new token, with each row and its answer so far.
        """
        tokens = max((len(branch) for branch in branches), default=0) + max_new
        answers: list[GeneratedAnswer] = []
        # FlexAttention would be compiled anew for every length, and flash cannot hide branches from one another
        with self.attention_backend("eager" if self.config.attention == "eager" else "sdpa"):
            for rows in chunks(prefix, image_of_row, tokens, cache_bytes):
                part = branches[rows], image_of_row[rows]
                most = None if most_decisions is None else most_decisions[rows]
                tell = counted_from(rows.start, on_tokens)
                answers += self._generate_chunk(prefix, *part, max_new, most, tell)
        return answers

    def _generate_chunk(
        self,
        prefix: PrefixCache,
        branches: Sequence[Sequence[int]],
        image_of_row: Sequence[int],
        max_new: int,
        most_decisions: Sequence[int] | None,
        on_tokens: OnTokens | None,
    ) -> list[GeneratedAnswer]:
        """One row per image: its prefix, the texts of all its branches, then the newest token of each in turn."""
        device = prefix.valid_BL.device
        asked = by_image(branches, image_of_row, self.vocabulary.pad, device)
        _, A, T = asked.ids_BAT.shape
        valid_BL = prefix.valid_BL[asked.images]
        start_B1 = self._prefix_positions(valid_BL)[:, -1:] + 1  # the first position after the prefix
        own = self.config.prompt_state == "own"
        # the state after the last token is a prompt only where `prompt_state` is "own"
        last_step = max_new if own else max_new - 1
        cache = prefix.with_room(asked.images, A * (T + last_step))
        branch_BS = torch.cat((prefix_branch(valid_BL), asked.branch_BAT.flatten(1)), dim=1)
        position_BQ = start_B1 + torch.arange(T, device=device).repeat(A)
        hidden_BQD = self.embed_text(asked.ids_BAT.flatten(1))
        mask = branch_mask(branch_BS, A * T, hidden_BQD.dtype)
        states_BQD = self._extend(hidden_BQD, position_BQ, cache, mask)
        state_BAD = asked.last_of(states_BQD.unflatten(1, (A, T)))

        answers = Answers(self.vocabulary, self._ends, asked, most_decisions)
        for step in range(max_new):
            token_BA = answers.add(state_BAD, self.logits(state_BAD))
            if on_tokens is not None:
                answers.tell(on_tokens)
            if bool(answers.done_BA.all()) or step >= last_step:
                break
            branch_BS = torch.cat((branch_BS, asked.branch_BA), dim=1)
            hidden_BAD = self.embed_text(token_BA)
            mask = branch_mask(branch_BS, A, hidden_BAD.dtype)
            state_BAD = self._extend(hidden_BAD, start_B1 + asked.lengths_BA + step, cache, mask)
        return answers.collect(state_BAD, own)

    def _extend(self, hidden_BQD: Tensor, position_BQ: Tensor, cache: Cache, mask: Tensor) -> Tensor:
        """States (B, Q, D) of the newest tokens; their keys and values are appended to `cache`."""
        return newest_states(self.llm.model, hidden_BQD, position_BQ, cache, mask, self.cache_argument)

    @contextmanager
    def attention_backend(self, name: Attention) -> Iterator[None]:
        """Use this attention backend for a while."""
        if name == self.config.attention:
            yield
            return
        self.llm.set_attn_implementation(name)
        try:
            yield
        finally:
            self.llm.set_attn_implementation(backend_of(self.config.attention))
