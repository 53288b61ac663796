"""The multimodal LLM: `encode_image`, `forward` (training), `prefill` and `generate` (answers).

Shapes: B images, R rows to generate, T text tokens, L prefix length, S keys (prefix and text), N image tokens,
O objects, P parts, K decisions of one answer, D width, C channels of a tower, V vocabulary, h w pixels of the low
frame, H W of the high frame. Boxes are xyxy in the high frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from mllm.config import MLLMConfig
from mllm.exploitation import FeatureExploitation
from mllm.language import build_llama, cache_argument
from mllm.prefix import (
    CACHE_BYTES,
    PrefixCache,
    check_attention,
    check_packed,
    decoding_mask,
    packed_blocks,
    packed_mask,
    packed_positions,
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


@dataclass(frozen=True, slots=True)
class GeneratedAnswer:
    """One generated answer: tokens, and for each [SEG]/[REJ] the mask prompt and P([SEG] | [SEG] or [REJ]).

    Without any decision in the text, `prompts` holds the state where the answer begins (a forced [SEG]).
    """

    ids: list[int]
    decisions: list[int]
    prompts_KD: Tensor
    p_seg_K: Tensor


class MLLM(nn.Module):
    """LLaVA-style: visual prefix from MGVF and MGFE, then branches of text."""

    def __init__(self, config: MLLMConfig, vocabulary: Vocabulary, skip_llm_init: bool = False) -> None:
        """`skip_llm_init`: leave the LLM uninitialised, because all of its weights are loaded next."""
        super().__init__()
        if len(vocabulary) > config.vocabulary:
            raise ValueError(
                f"vocabulary of {len(vocabulary)} tokens exceeds config.vocabulary={config.vocabulary}"
            )
        check_attention(config.attention)
        self.config, self.vocabulary = config, vocabulary
        self.low = LowTower(config)
        self.high = HighTower(config)
        self.image_tokens = ImageTokens(config)
        self.object_tokens = RegionTokens(config, config.max_objects, config.use_objects)
        self.part_tokens = RegionTokens(config, config.max_parts, config.use_parts)
        self.exploitation = FeatureExploitation(config)
        self.llm = build_llama(config, vocabulary, skip_llm_init)
        self.cache_argument = cache_argument(self.llm.model.forward)
        if not skip_llm_init:
            nn.init.normal_(self.embed.weight, std=config.embedding_std)

    @property
    def embed(self) -> nn.Embedding:
        """The LLM's input embedding."""
        return self.llm.model.embed_tokens

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
        first = [v.image, v.object, v.part] + ([] if self.config.bos is None else [self.config.bos])
        marks = self.embed(torch.tensor(first, device=image.device))
        bos = None if self.config.bos is None else marks[3]
        prefix, valid, layout = splice(marks[:3], image, objects, parts, object_valid, part_valid, bos)
        return ImageFeatures(prefix, valid, layout, stages, objects, parts, boxes)

    def _embed_text(self, ids_BT: Tensor) -> Tensor:
        """Token embeddings; with `blind_to_text`, words are replaced by padding and only turn marks stay."""
        if self.config.blind_to_text:
            v = self.vocabulary
            is_mark_V = torch.zeros(self.config.vocabulary, dtype=torch.bool, device=ids_BT.device)
            is_mark_V[[v.user, v.assistant, v.seg, v.rej, v.end]] = True
            ids_BT = torch.where(is_mark_V[ids_BT], ids_BT, v.pad)
        return self.embed(ids_BT)

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
        hidden = torch.cat((features.prefix_BLD, self._embed_text(ids_BT)), dim=1)
        L = features.layout.length
        flex = self.config.attention == "flex_attention"
        output = self.llm.model(
            inputs_embeds=hidden,
            attention_mask=packed_blocks(features.valid_BL, branch_BT)
            if flex
            else packed_mask(features.valid_BL, branch_BT, hidden.dtype),
            position_ids=packed_positions(L, position_BT),
            use_cache=False,
        )
        return output.last_hidden_state[:, L:]

    def logits(self, states_D: Tensor) -> Tensor:
        """Vocabulary logits of selected states only."""
        return self.llm.lm_head(states_D)

    def prefill(self, features: ImageFeatures) -> PrefixCache:
        """Encode the visual prefix of B images once for generation."""
        B, L = features.valid_BL.shape
        position_BL = torch.arange(L, device=features.valid_BL.device).expand(B, -1)
        cache = DynamicCache()
        self._extend(features.prefix_BLD, position_BL, features.valid_BL, cache)
        return PrefixCache(tuple((layer.keys, layer.values) for layer in cache.layers), features.valid_BL)

    @torch.no_grad()
    def generate(
        self,
        prefix: PrefixCache,
        branches: Sequence[Sequence[int]],
        image_of_row: Sequence[int],
        max_new: int,
        cache_bytes: int = CACHE_BYTES,
    ) -> list[GeneratedAnswer]:
        """Greedy answers to R branches, decoded together in chunks of rows.

        Args:
            prefix: of B images, from `prefill`.
            branches: token ids of each row, ending with <assistant>.
            image_of_row: the image of each row.
            max_new: tokens of an answer at most.
            cache_bytes: a chunk holds as many rows as keep its keys and values within this, at least one;
                appending needs one layer twice for a moment. Answers do not depend on it.
        """
        longest = max((len(branch) for branch in branches), default=0)
        rows = max(1, cache_bytes // prefix.row_bytes(longest + max_new))
        answers: list[GeneratedAnswer] = []
        for start in range(0, len(branches), rows):
            stop = start + rows
            answers += self._generate_rows(prefix, branches[start:stop], image_of_row[start:stop], max_new)
        return answers

    def _generate_rows(
        self,
        prefix: PrefixCache,
        branches: Sequence[Sequence[int]],
        image_of_row: Sequence[int],
        max_new: int,
    ) -> list[GeneratedAnswer]:
        """One chunk: every row has its own copy of its image's prefix in the cache."""
        v, device = self.vocabulary, prefix.valid_BL.device
        rows = [torch.tensor(branch, device=device) for branch in branches]
        ids_RT = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=v.pad)
        lengths_R = torch.tensor([len(branch) for branch in branches], device=device)
        (R, T), L = ids_RT.shape, prefix.length
        cache, valid_RS = prefix.repeat(torch.tensor(image_of_row, device=device))
        step_RT = torch.arange(T, device=device).expand(R, -1)
        valid_RS = torch.cat((valid_RS, step_RT < lengths_R[:, None]), dim=1)
        states_RTD = self._extend(self._embed_text(ids_RT), step_RT + L, valid_RS, cache)
        state_RD = states_RTD[torch.arange(R, device=device), lengths_R - 1]

        tokens: list[Tensor] = []
        states: list[Tensor] = []
        p_seg: list[Tensor] = []
        done_R = torch.zeros(R, dtype=torch.bool, device=device)
        # the state after the last token is a prompt only where `prompt_state` is "own"
        last_step = max_new if self.config.prompt_state == "own" else max_new - 1
        for step in range(max_new):
            logits_RV = self.logits(state_RD)
            token_R = torch.where(done_R, v.end, logits_RV.argmax(dim=-1))
            pair_R2 = logits_RV[:, [v.seg, v.rej]].float().softmax(dim=-1)
            tokens.append(token_R)
            states.append(state_RD)
            p_seg.append(pair_R2[:, 0])
            done_R = done_R | (token_R == v.end)
            if bool(done_R.all()) or step >= last_step:
                break
            valid_RS = torch.cat((valid_RS, ~done_R[:, None]), dim=1)
            position_R1 = (L + lengths_R + step)[:, None]
            state_RD = self._extend(self._embed_text(token_R[:, None]), position_R1, valid_RS, cache)[:, 0]
        return self._collect(torch.stack(tokens, 1), torch.stack(states, 1), torch.stack(p_seg, 1), state_RD)

    def _extend(
        self, hidden_RTD: Tensor, position_RT: Tensor, valid_RS: Tensor, cache: DynamicCache
    ) -> Tensor:
        """States (R, T, D) of the T newest of S tokens; their keys and values are appended to `cache`."""
        mask = self._causal(valid_RS, hidden_RTD.shape[1], hidden_RTD.dtype)
        with self._sdpa_instead_of_flex():
            output = self.llm.model(
                inputs_embeds=hidden_RTD,
                attention_mask=mask,
                position_ids=position_RT,
                use_cache=True,
                **{self.cache_argument: cache},
            )
        return output.last_hidden_state

    def _causal(self, valid_RS: Tensor, new: int, dtype: torch.dtype) -> Tensor:
        """Mask of the last `new` of S tokens: causal, and no key that is not valid.

        Flash attention takes the validity alone, (R, S), and is causal by itself.
        """
        if self.config.attention == "flash_attention_2":
            return valid_RS
        return decoding_mask(valid_RS, new, dtype)

    @contextmanager
    def _sdpa_instead_of_flex(self) -> Iterator[None]:
        """Generate with SDPA: FlexAttention would be compiled anew for every length of the cache."""
        if self.config.attention != "flex_attention":
            yield
            return
        self.llm.set_attn_implementation("sdpa")
        try:
            yield
        finally:
            self.llm.set_attn_implementation("flex_attention")

    def _collect(
        self, ids_RT: Tensor, states_RTD: Tensor, p_seg_RT: Tensor, last_RD: Tensor
    ) -> list[GeneratedAnswer]:
        """Answers of R rows from the tokens of all steps and the states that predict them."""
        v, answers = self.vocabulary, []
        own = self.config.prompt_state == "own"
        after_RTD = torch.cat((states_RTD[:, 1:], last_RD[:, None]), dim=1)
        for row, ids in enumerate(ids_RT.tolist()):
            if v.end in ids:
                ids = ids[: ids.index(v.end)]
            places = [i for i, token in enumerate(ids) if token in (v.seg, v.rej)]
            used = places or [0]
            source = after_RTD if own and places else states_RTD
            answers.append(
                GeneratedAnswer(ids, [ids[i] for i in places], source[row, used], p_seg_RT[row, used])
            )
        return answers
