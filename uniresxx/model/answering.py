"""Answers: generated text, the mask head's output for each decision in it, and the predictions made of both.

Shapes: E decisions of all answers, K decisions of one answer, D LLM width, y x pixels of the photo.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mllm.attention_shares import attention_shares as shares_of
from mllm.chat import ChatTurn, Mark, render
from mllm.generation import GeneratedAnswer, in_words
from mllm.modeling import MLLM
from mllm.prefix import PrefixCache
from mllm.tokens import Vocabulary
from uniresxx.conversation.context import fitted, with_dropped
from uniresxx.conversation.phrases import asked_phrases
from uniresxx.imaging.masks import encode, union
from uniresxx.model.heads.base import HeadOutput
from uniresxx.model.heads.instances import InstanceOutput
from uniresxx.model.photo_batches import join_prefixes, join_tensors, split_prefix, split_tensors
from uniresxx.model.processing import View, photo_masks
from uniresxx.model.templates import asked_branches, marked
from uniresxx.prediction import Instance, Prediction, Segment, phrases_in
from uniresxx.text import asked_questions
from uniresxx.types import AS_TYPED, DecisionRule, Decoding, OnText, Question

# features, prompts and the image of each -> the head's output, with instance queries also what it unites
MasksOf = Callable[[Any, torch.Tensor, torch.Tensor, int], tuple[HeadOutput, InstanceOutput | None]]

SEGMENTED = 0.5  # of P([SEG] | [SEG] or [REJ]) in an answer whose words are given
ANSWERS_AT_ONCE = 64  # whose masks exist at the same time, at the size of the photo; no answer depends on it


@dataclass(frozen=True, slots=True)
class EncodedPhotos:
    """Photos encoded once: the LLM's prefix cache and the mask head's features."""

    views: list[View]
    prefix: PrefixCache
    features: Any  # of the mask head
    proposal_seconds: float  # time to find the boxes of all photos


def join_photos(encoded: Sequence[EncodedPhotos]) -> EncodedPhotos:
    """Photos encoded apart as one batch."""
    return EncodedPhotos(
        [view for photos in encoded for view in photos.views],
        join_prefixes([photos.prefix for photos in encoded]),
        join_tensors([photos.features for photos in encoded]),
        sum(photos.proposal_seconds for photos in encoded),
    )


def split_photos(encoded: EncodedPhotos) -> list[EncodedPhotos]:
    """Each photo of a batch alone, with an equal share of the time for proposals."""
    count = len(encoded.views)
    parts = zip(
        encoded.views, split_prefix(encoded.prefix), split_tensors(encoded.features, count), strict=True
    )
    return [
        EncodedPhotos([view], prefix, features, encoded.proposal_seconds / count)
        for view, prefix, features in parts
    ]


def answer_texts(
    mllm: MLLM,
    masks_of: MasksOf,
    encoded: EncodedPhotos,
    texts: Sequence[Sequence[str | Question]],
    decoding: Decoding,
    rule: DecisionRule,
    on_text: OnText | None = None,
    ask_together: bool = False,
) -> list[Prediction]:
    """Generate the answers of all texts of all photos together; flat, photo by photo.

    `ask_together`: as in the model's config; a text as a person typed it is asked alone nevertheless.
    """
    if ask_together and decoding.template != AS_TYPED:
        return _answer_together(mllm, masks_of, encoded, texts, decoding, rule)
    texts, dropped, image_of_row, branches = _fitted_branches(mllm, encoded.prefix, texts, decoding)
    if not branches:
        return []
    answers = mllm.generate(
        encoded.prefix,
        branches,
        image_of_row,
        decoding.max_new_tokens,
        decoding.cache_bytes,
        phrase_counts(texts, decoding),
        in_words(on_text, mllm.vocabulary.decode),
    )
    return with_dropped(_with_masks(answers, image_of_row, masks_of, encoded, mllm.vocabulary, rule), dropped)


def _answer_together(
    mllm: MLLM,
    masks_of: MasksOf,
    encoded: EncodedPhotos,
    texts: Sequence[Sequence[str | Question]],
    decoding: Decoding,
    rule: DecisionRule,
) -> list[Prediction]:
    """One answer for all texts of a photo, as `ask_together` trains it; flat, photo by photo.

    The words of the answer are those that were asked. Each [SEG] or [REJ] is the model's own, the earlier ones in
    the answer as well: GSVA's evaluation gives it the true ones instead.
    """
    asked = [[question.text for _, question in asked_questions([own])] for own in texts]
    marks: list[list[Mark]] = [[] for _ in asked]
    found: list[list[GeneratedAnswer]] = [[] for _ in asked]
    vocabulary = mllm.vocabulary
    for number in range(max(map(len, asked), default=0)):
        images = [image for image, own in enumerate(asked) if len(own) > number]
        branches = []
        for image in images:
            question = decoding.template.format(expression=", ".join(asked[image]))
            turn = ChatTurn(question, tuple(marked(asked[image], marks[image])))
            branches.append(render([turn], vocabulary, chat=mllm.config.chat).ids_T[:-1])  # without its end
        answers = mllm.generate(encoded.prefix, branches, images, 1, decoding.cache_bytes)
        for image, answer in zip(images, answers, strict=True):
            segmented = float(answer.p_seg_K[0]) > SEGMENTED
            token = vocabulary.seg if segmented else vocabulary.rej
            marks[image].append(Mark.SEG if segmented else Mark.REJ)
            found[image].append(replace(answer, ids=[token], decisions=[token], truncated=False))
    image_of_row = [image for image, own in enumerate(found) for _ in own]
    return _with_masks([a for own in found for a in own], image_of_row, masks_of, encoded, vocabulary, rule)


def _with_masks(
    answers: Sequence[GeneratedAnswer],
    image_of_row: Sequence[int],
    masks_of: MasksOf,
    encoded: EncodedPhotos,
    vocabulary: Vocabulary,
    rule: DecisionRule,
) -> list[Prediction]:
    """The predictions of generated answers with the masks of their decisions, photo by photo."""
    predictions: list[Prediction] = []
    for start in range(0, len(answers), ANSWERS_AT_ONCE):
        part = answers[start : start + ANSWERS_AT_ONCE]
        rows = zip(image_of_row[start : start + ANSWERS_AT_ONCE], part, strict=True)
        image_of_expr = [image for image, answer in rows for _ in range(len(answer.prompts_KD))]
        prompts_ED = torch.cat([answer.prompts_KD for answer in part])
        image_E = torch.tensor(image_of_expr, device=prompts_ED.device)
        most = max(Counter(image_of_expr).values(), default=0)
        output, instances = masks_of(encoded.features, prompts_ED, image_E, most)
        if instances is None:
            masks = photo_masks(output.masks_Ehw, image_of_expr, encoded.views)
            found: list[list[Instance]] = [[] for _ in masks]
        else:
            masks, found = photo_instances(instances, image_of_expr, encoded.views)
        predictions += predictions_of(part, output, masks, vocabulary, rule, found)
    return predictions


def attention_shares(
    mllm: MLLM, encoded: EncodedPhotos, question: str | Question, decoding: Decoding
) -> list[dict[str, float]]:
    """`mllm.attention_shares` of the decisions in the answer to a question about one photo, generated again."""
    texts, _, image_of_row, branches = _fitted_branches(mllm, encoded.prefix, [[question]], decoding)
    (answer,) = mllm.generate(
        encoded.prefix,
        branches,
        image_of_row,
        decoding.max_new_tokens,
        decoding.cache_bytes,
        phrase_counts(texts, decoding),
    )
    return shares_of(mllm, encoded.prefix, branches[0], answer.ids)


def _fitted_branches(
    mllm: MLLM, prefix: PrefixCache, texts: Sequence[Sequence[str | Question]], decoding: Decoding
) -> tuple[list[list[str | Question]], list[int], list[int], list[list[int]]]:
    """The texts with the earlier turns that fit, how many each has lost, and their `asked_branches`."""

    def branches_of(
        texts: Sequence[Sequence[str | Question]],
    ) -> tuple[list[int], list[list[int]]]:
        return asked_branches(texts, decoding, mllm.vocabulary, mllm.config.chat)

    room = mllm.room(prefix, decoding.max_new_tokens)
    kept, dropped = fitted(texts, room, lambda question: len(branches_of([[question]])[1][0]))
    return kept, dropped, *branches_of(kept)


def phrase_counts(texts: Sequence[Sequence[str | Question]], decoding: Decoding) -> list[int]:
    """How many phrases each text asks for: an expression of a template is one, and so is a plain question."""
    if decoding.template != AS_TYPED:
        return [1] * sum(map(len, texts))
    return [max(1, len(asked_phrases(question.text))) for _, question in asked_questions(texts)]


def photo_instances(
    output: InstanceOutput, image_of_expr: Sequence[int], views: Sequence[View]
) -> tuple[list[np.ndarray], list[list[Instance]]]:
    """Of each expression the united mask at the photo's size, and its accepted instances, best first."""
    accepted_EQ = output.accepted()
    presence_EQ, quality_EQ = output.presence_EQ.float().sigmoid(), output.quality_EQ.float().sigmoid()
    scores = (presence_EQ * quality_EQ)[accepted_EQ].tolist()
    expr_of_instance = accepted_EQ.nonzero()[:, 0].tolist()
    images = [image_of_expr[e] for e in expr_of_instance]
    alone = photo_masks(output.masks_EQhw[accepted_EQ], images, views)
    masks: list[np.ndarray] = []
    instances: list[list[Instance]] = []
    for e in range(len(image_of_expr)):
        own = [i for i, other in enumerate(expr_of_instance) if other == e]
        masks.append(np.any([alone[i] for i in own], axis=0))
        found = [Instance(encode(alone[i]), scores[i]) for i in own if alone[i].any()]
        instances.append(sorted(found, key=lambda instance: -(instance.score or 0.0)))
    return masks, instances


def predictions_of(
    answers: Sequence[GeneratedAnswer],
    output: HeadOutput,
    masks: Sequence[np.ndarray],
    vocabulary: Vocabulary,
    rule: DecisionRule,
    instances: Sequence[Sequence[Instance]],
) -> list[Prediction]:
    """One prediction per answer.

    Args:
        answers: generated by the LLM, photo by photo.
        output: of the mask head for the E prompts of all answers, in order.
        masks: E thresholded masks, bool (y, x) at the size of their photos.
        vocabulary: decodes the answers.
        rule: what accepts a mask, see `DecisionRule`.
        instances: of each mask.
    """
    p_seg_E = torch.cat([answer.p_seg_K for answer in answers])
    p_absent = (1 - p_seg_E * output.presence_E.float().sigmoid()).tolist()
    scores = output.quality_E.float().sigmoid().tolist()
    predictions, start = [], 0
    for answer in answers:
        own = slice(start, start + len(answer.prompts_KD))
        start = own.stop
        if rule == "token":
            accepted = [token == vocabulary.seg for token in answer.decisions]
        else:
            accepted = [p <= 0.5 for p in p_absent[own]] if answer.decisions else []
        text = vocabulary.decode(answer.ids)
        predictions.append(
            prediction_of(
                text, masks[own], accepted, scores[own], p_absent[own], answer.truncated, instances[own]
            )
        )
    return predictions


def prediction_of(
    text: str,
    masks: Sequence[np.ndarray],
    accepted: Sequence[bool],
    scores: Sequence[float],
    p_absent: Sequence[float],
    truncated: bool = False,
    instances: Sequence[Sequence[Instance]] = (),
) -> Prediction:
    """The prediction of one answer; accepted masks are united. A mask without a pixel is never accepted.

    Args:
        text: the answer, such as "a: [SEG], b: [REJ]."
        masks: bool (y, x) of each decision; without any decision, the one mask of a forced [SEG].
        accepted: whether each decision's mask counts; empty without any decision.
        scores: predicted IoU of each mask.
        p_absent: probability of each mask's target to be absent.
        truncated: the answer had not ended when the limit of its tokens was reached.
        instances: of each mask, where the model tells them apart.
    """
    accepted = [yes and bool(mask.any()) for yes, mask in zip(accepted, masks, strict=False)]
    rles = [encode(mask) for mask in masks]
    segments = tuple(
        Segment(phrase, rle if yes else None, score, span)
        for (phrase, span), rle, yes, score in zip(phrases_in(text), rles, accepted, scores, strict=False)
    )
    united = [rle for rle, yes in zip(rles, accepted, strict=False) if yes]
    size = masks[0].shape
    return Prediction(
        rejected=not united,
        rle=union(united, size) if united else None,
        text=text,
        score=max((s for s, yes in zip(scores, accepted, strict=False) if yes), default=scores[0]),
        p_absent=min(p_absent),
        mask_if_forced=None if united else union(rles, size),
        segments=segments,
        instances=tuple(
            instance for found, yes in zip(instances, accepted, strict=False) if yes for instance in found
        ),
        truncated=truncated,
    )
