"""LISA (Lai et al. 2024), GSVA (Xia et al. 2024), M2SA (Jang et al. 2025) from transformers' classes.

CLIP's patches go through the projector into LLaVA's language model; the state that predicts [SEG] becomes SAM's
only prompt. Where an answer has no [SEG] or [REJ], `mask_if_forced` comes from the answer that the peer's evaluation
gives.

Shapes: B images, E expressions (decisions), L prefix tokens, N image tokens, T tokens of a branch, A branches of an
image, S keys, D LLM width, C decoder width, V vocabulary, h w SAM's grid, Y X low-resolution masks, y x a photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    Cache,
    CLIPVisionConfig,
    CLIPVisionModel,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    SamConfig,
    SamModel,
)

from mllm.generation import Branches, OnTokens, by_image, chunks, counted_from, in_words, report
from mllm.language import cache_argument, in_compute_dtype, newest_states
from mllm.prefix import (
    PrefixCache,
    branch_mask,
    packed_mask,
    packed_positions,
    prefix_branch,
    prefix_positions,
)
from uniresxx.conversation.context import fitted, with_dropped
from uniresxx.errors import InputError
from uniresxx.imaging.geometry import Letterbox
from uniresxx.model.answering import prediction_of
from uniresxx.model.forced import forced
from uniresxx.model.losses import Counts, LossTerms
from uniresxx.model.placement import autocast_of
from uniresxx.model.tuning import apply_tuning
from uniresxx.prediction import Prediction
from uniresxx.segmenters.lisa.answer import Answer
from uniresxx.segmenters.lisa.collate import LisaCollator
from uniresxx.segmenters.lisa.config import PARTS, LisaConfig
from uniresxx.segmenters.lisa.photos import (
    EncodedPhotos,
    clip_pixels,
    join_photos,
    photo_mask,
    sam_pixels,
    split_photos,
)
from uniresxx.segmenters.lisa.prompts import WORDINGS, LisaVocabulary
from uniresxx.segmenters.lisa.sam import decoded_masks, early_layers, image_embedding
from uniresxx.segmenters.lisa.training import LisaBatch, LisaOutput, counts_of, loss_terms, with_zeros
from uniresxx.text import asked_questions
from uniresxx.types import DecisionRule, Decoding, OnText, Texts

DECODED_AT_ONCE = 32  # expressions in SAM's decoder; no answer depends on it


class Lisa(nn.Module):
    """The converted model; trains through `forward` and `loss`, answers as a Segmenter."""

    def __init__(self, config: LisaConfig, vocabulary: LisaVocabulary) -> None:
        """Random weights; ValueError where the vocabulary does not fit."""
        super().__init__()
        text = LlamaConfig(**config.text)
        if len(vocabulary) > text.vocab_size:
            raise ValueError(f"vocabulary of {len(vocabulary)} tokens, but {text.vocab_size} token rows")
        self.config, self.vocabulary = config, vocabulary
        self.llm = LlamaForCausalLM(text)
        self.clip = CLIPVisionModel(CLIPVisionConfig(**config.vision))
        self.sam = SamModel(SamConfig(**config.sam))
        D, C = text.hidden_size, self.sam.config.mask_decoder_config.hidden_size
        layers: list[nn.Module] = [nn.Linear(self.clip.config.hidden_size, D)]
        for _ in range(1, config.projector_layers):
            layers += [nn.GELU(), nn.Linear(D, D)]
        self.projector = nn.Sequential(*layers)
        self.prompt = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, C))
        width = self.sam.config.vision_config.hidden_size
        self.early = early_layers(width, C) if config.early else None
        self.cache_argument = cache_argument(self.llm.model.forward)
        apply_tuning(self, self.llm, vocabulary.special, config.tuning, PARTS)

    def forward(self, batch: LisaBatch) -> LisaOutput:
        """One pass over packed rows: each state that predicts [SEG] prompts SAM."""
        prefix_BLD = self.prefix(batch.clip_B3HW)
        hidden_BQD = torch.cat((prefix_BLD, self._embed(batch.token_ids_BT)), dim=1)
        L = prefix_BLD.shape[1]
        valid_BL = torch.ones(prefix_BLD.shape[:2], dtype=torch.bool, device=prefix_BLD.device)
        states_BQD = self.llm.model(
            inputs_embeds=hidden_BQD,
            attention_mask=packed_mask(valid_BL, batch.branch_BT, hidden_BQD.dtype),
            position_ids=packed_positions(prefix_positions(valid_BL, True), batch.position_BT),
            use_cache=False,
        ).last_hidden_state
        states_BTD = states_BQD[:, L:]
        image_P = batch.image_of_expr_E[batch.segmented_P]
        states_PD = states_BTD[image_P, batch.seg_position_E[batch.segmented_P]]
        image_BChw = torch.cat([image_embedding(self.sam, self.early, x[None]) for x in batch.sam_B3SS])
        low_PYX, _ = self.decode_masks(image_BChw, states_PD, image_P)
        return LisaOutput(
            self.llm.lm_head(states_BTD.flatten(0, 1)[batch.labelled_Y]),
            batch.labels_BT.flatten()[batch.labelled_Y],
            with_zeros(low_PYX, batch),
        )

    def counts(self, batch: LisaBatch) -> Counts:
        """Denominators of the loss terms, known before the forward pass."""
        return counts_of(batch)

    def loss(self, output: LisaOutput, batch: LisaBatch) -> LossTerms:
        """Sums over this micro-batch."""
        return loss_terms(output, batch, self.sam.config.vision_config.image_size, self.config.loss)

    @property
    def collator(self) -> LisaCollator:
        """What prepares its training samples."""
        return LisaCollator(self.config, self.vocabulary)

    @property
    def tokenizer(self) -> LisaVocabulary:
        """What a checkpoint stores as tokenizer.json."""
        return self.vocabulary

    @property
    def decision_rule(self) -> DecisionRule:
        """The generated token decides; there is no presence head."""
        return "token"

    @property
    def question_template(self) -> str:
        """The question of the peer's own evaluation."""
        return WORDINGS[self.config.peer].question

    @property
    def finds_instances(self) -> bool:
        """Never: one mask for all that is meant."""
        return False

    @torch.no_grad()
    def encode_images(self, photos: Sequence[np.ndarray]) -> EncodedPhotos:
        """Encode photos once: the LLM's prefix up to <im_end>, and SAM's image embeddings."""
        side = self.sam.config.vision_config.image_size
        boxes = [Letterbox.fit(photo.shape[0], photo.shape[1], side) for photo in photos]
        device = self.llm.device
        with autocast_of(self):
            prefix = self.prefill(clip_pixels(photos, self.config.photo).to(device))
            # one at a time: SAM ViT-H takes gigabytes for each photo
            image = [
                image_embedding(self.sam, self.early, sam_pixels(photo, box)[None].to(device))
                for photo, box in zip(photos, boxes, strict=True)
            ]
        return EncodedPhotos(boxes, prefix, torch.cat(image))

    join_images = staticmethod(join_photos)
    split_images = staticmethod(split_photos)

    def prefix(self, pixels_B3HW: Tensor) -> Tensor:
        """Embeddings (B, L, D) of the text before the image, the image, and <im_end>."""
        hidden = self.clip(pixels_B3HW, output_hidden_states=True).hidden_states
        image_BND = self.projector(hidden[self.config.select_layer][:, 1:])
        B = len(image_BND)
        before, after = (
            self._embed(torch.tensor(ids, device=image_BND.device)).expand(B, -1, -1)
            for ids in self.vocabulary.prefix(self.config.conversation)
        )
        return torch.cat((before.to(image_BND.dtype), image_BND, after.to(image_BND.dtype)), dim=1)

    def prefill(self, pixels_B3HW: Tensor) -> PrefixCache:
        """Keys and values of the prefix."""
        hidden_BLD = self.prefix(pixels_B3HW)
        B = len(hidden_BLD)
        valid_BL = torch.ones(hidden_BLD.shape[:2], dtype=torch.bool, device=hidden_BLD.device)
        cache = DynamicCache()
        position_BL = torch.arange(hidden_BLD.shape[1], device=hidden_BLD.device).expand(B, -1)
        mask = branch_mask(prefix_branch(valid_BL), hidden_BLD.shape[1], hidden_BLD.dtype)
        self._extend(hidden_BLD, position_BL, cache, mask)
        return PrefixCache(tuple((layer.keys, layer.values) for layer in cache.layers), valid_BL)

    @torch.no_grad()
    def answer(
        self, encoded: EncodedPhotos, texts: Texts, decoding: Decoding, on_text: OnText | None = None
    ) -> list[Prediction]:
        """Generate the answers of all texts of all photos together; flat, photo by photo.

        Raises:
            InputError: a decision rule that the model does not have.
        """
        if decoding.rule not in (None, "token"):
            raise InputError(f"rule {decoding.rule!r}: {self.config.peer} has no presence head, use 'token'")
        vocabulary, conversation = self.vocabulary, self.config.conversation
        room = self.llm.config.max_position_embeddings - encoded.prefix.length - decoding.max_new_tokens
        texts, dropped = fitted(texts, room, lambda q: len(vocabulary.branch(q, decoding, conversation)))
        asked = asked_questions(texts)
        branches = [vocabulary.branch(question, decoding, conversation) for _, question in asked]
        image_of_row = [image for image, _ in asked]
        tokens = max(map(len, branches), default=0) + decoding.max_new_tokens
        predictions: list[Prediction] = []
        for rows in chunks(encoded.prefix, image_of_row, tokens, decoding.cache_bytes):
            with autocast_of(self):
                part = branches[rows], image_of_row[rows]
                if decoding.mode == "forced":  # nothing is generated
                    answers = [Answer([], [], torch.empty(0), torch.empty(0), False) for _ in part[0]]
                else:
                    tell = counted_from(rows.start, in_words(on_text, vocabulary.decode))
                    answers = self.generate(encoded.prefix, *part, decoding.max_new_tokens, tell)
                given = [
                    branch + vocabulary.forced_answer(question.text)
                    for branch, (_, question) in zip(branches[rows], asked[rows], strict=True)
                ]
                answers = self._with_forced(answers, encoded.prefix, given, image_of_row[rows])
                predictions += self._predictions(answers, encoded, image_of_row[rows])
        predictions = with_dropped(predictions, dropped)
        return forced(predictions) if decoding.mode == "forced" else predictions

    def states(
        self, prefix: PrefixCache, branches: Sequence[Sequence[int]], image_of_row: Sequence[int]
    ) -> list[Tensor]:
        """States (T, D) of the tokens of each branch, after the last layer's norm."""
        asked, _, _, states_BATD = self._begun(prefix, branches, image_of_row, 0)
        return [
            states_BATD[place][: len(branch)] for place, branch in zip(asked.places, branches, strict=True)
        ]

    def _begun(
        self, prefix: PrefixCache, branches: Sequence[Sequence[int]], image_of_row: Sequence[int], new: int
    ) -> tuple[Branches, Cache, Tensor, Tensor]:
        """The branches by image behind their prefix, a cache with room for `new` more tokens of each, the branch of
        each token (B, S), and the states (B, A, T, D)."""
        asked = by_image(branches, image_of_row, 0, self.llm.device)
        (B, A, T), L = asked.ids_BAT.shape, prefix.length
        cache = prefix.with_room(asked.images, A * (T + new))
        prefix_BL = prefix_branch(prefix.valid_BL[asked.images])
        branch_BS = torch.cat((prefix_BL, asked.branch_BAT.flatten(1)), dim=1)
        position_BQ = (torch.arange(T, device=prefix_BL.device) + L).repeat(B, A)
        hidden_BQD = self._embed(asked.ids_BAT.flatten(1))
        mask = branch_mask(branch_BS, A * T, hidden_BQD.dtype)
        states_BQD = self._extend(hidden_BQD, position_BQ, cache, mask)
        return asked, cache, branch_BS, states_BQD.unflatten(1, (A, T))

    def generate(
        self,
        prefix: PrefixCache,
        branches: Sequence[Sequence[int]],
        image_of_row: Sequence[int],
        max_new: int,
        on_tokens: OnTokens | None = None,
    ) -> list[Answer]:
        """Greedy answers up to </s>; branches of an image share its prefix and do not see one another."""
        asked, cache, branch_BS, states_BATD = self._begun(prefix, branches, image_of_row, max_new - 1)
        state_BAD = asked.last_of(states_BATD)
        done_BA = asked.lengths_BA == 0
        tokens: list[Tensor] = []
        kept: list[Tensor] = []
        p_seg: list[Tensor] = []
        for step in range(max_new):
            logits_BAV = self.llm.lm_head(state_BAD)
            token_BA = torch.where(done_BA, self.vocabulary.eos, logits_BAV.argmax(dim=-1))
            done_BA = done_BA | (token_BA == self.vocabulary.eos)
            tokens.append(token_BA)
            if on_tokens is not None:
                report(tokens, asked, [self.vocabulary.eos], on_tokens)
            kept.append(state_BAD)
            p_seg.append(self._p_seg(logits_BAV))
            if bool(done_BA.all()) or step == max_new - 1:
                break
            branch_BS = torch.cat((branch_BS, asked.branch_BA), dim=1)
            hidden_BAD = self._embed(token_BA)
            mask = branch_mask(branch_BS, hidden_BAD.shape[1], hidden_BAD.dtype)
            state_BAD = self._extend(hidden_BAD, prefix.length + asked.lengths_BA + step, cache, mask)
        ids_BAn, states_BAnD, p_BAn = (torch.stack(x, 2) for x in (tokens, kept, p_seg))
        return [
            self._collected(ids_BAn[place].tolist(), states_BAnD[place], p_BAn[place], bool(done_BA[place]))
            for place in asked.places
        ]

    def _p_seg(self, logits_V: Tensor) -> Tensor:
        """P([SEG] | [SEG] or [REJ]) over the last dimension."""
        return logits_V[..., [*self.vocabulary.marks.values()]].float().softmax(dim=-1)[..., 0]

    def _collected(self, ids: list[int], states_nD: Tensor, p_n: Tensor, done: bool) -> Answer:
        if self.vocabulary.eos in ids:
            ids = ids[: ids.index(self.vocabulary.eos)]
        places = [i for i, token in enumerate(ids) if token in self.vocabulary.marks.values()]
        return Answer(ids, [ids[i] for i in places], states_nD[places], p_n[places], not done)

    def _with_forced(
        self, answers: list[Answer], prefix: PrefixCache, forced: list[list[int]], image_of_row: Sequence[int]
    ) -> list[Answer]:
        """The answers; those without a decision get the state that a given answer has before its [SEG]."""
        rows = [row for row, answer in enumerate(answers) if not answer.decisions]
        if rows:
            states = self.states(prefix, [forced[row] for row in rows], [image_of_row[row] for row in rows])
            for row, state_TD in zip(rows, states, strict=True):
                p_seg_K = self._p_seg(self.llm.lm_head(state_TD[-1:]))
                answers[row] = replace(answers[row], states_KD=state_TD[-1:], p_seg_K=p_seg_K)
        return answers

    def _predictions(
        self, answers: Sequence[Answer], encoded: EncodedPhotos, image_of_row: Sequence[int]
    ) -> list[Prediction]:
        image_E = [
            image for image, a in zip(image_of_row, answers, strict=True) for _ in range(len(a.states_KD))
        ]
        states_ED = torch.cat([answer.states_KD for answer in answers])
        masks: list[np.ndarray] = []
        scores: list[float] = []
        for start in range(0, len(states_ED), DECODED_AT_ONCE):
            part = slice(start, start + DECODED_AT_ONCE)
            images = image_E[part]
            low_EYX, score_E = self.decode_masks(encoded.image_BChw, states_ED[part], images)
            masks += [photo_mask(low, encoded.letterboxes[b]) for low, b in zip(low_EYX, images, strict=True)]
            scores += score_E.float().clamp(0, 1).tolist()
        rejects = len(self.vocabulary.marks) > 1
        predictions, start = [], 0
        for answer in answers:
            own = slice(start, start + len(answer.states_KD))
            start = own.stop
            accepted = [token == self.vocabulary.seg for token in answer.decisions]
            absent = (1 - answer.p_seg_K).tolist()
            text = self.vocabulary.decode(answer.ids)
            found = prediction_of(text, masks[own], accepted, scores[own], absent, answer.truncated)
            predictions.append(found if rejects else replace(found, p_absent=None))
        return predictions

    def decode_masks(
        self, image_BChw: Tensor, states_ED: Tensor, image_of_expr: Sequence[int] | Tensor
    ) -> tuple[Tensor, Tensor]:
        """SAM's mask logits (E, Y, X) over its whole frame and predicted IoU (E)."""
        return decoded_masks(self.sam, image_BChw, self.prompt(states_ED), image_of_expr)

    def _embed(self, ids: Tensor) -> Tensor:
        return in_compute_dtype(self.llm.model.embed_tokens(ids))

    def _extend(self, hidden_BQD: Tensor, position_BQ: Tensor, cache: Cache, mask: Tensor) -> Tensor:
        """States of the newest tokens; their keys and values are appended to `cache`."""
        return newest_states(self.llm.model, hidden_BQD, position_BQ, cache, mask, self.cache_argument)
