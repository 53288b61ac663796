"""Records -> LisaBatch: the peers' own training questions and answers, photos and masks as they prepare them.

LISA and M2SA have a conversation for each expression; GSVA asks for all expressions of a photo in one. The
conversations of a photo are branches of one row, which do not see one another: the same loss as of a row each.

Shapes: as in uniresxx.segmenters.lisa.training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mllm.chat import Row
from mllm.tokens import REJ, SEG
from uniresxx.imaging.geometry import Letterbox
from uniresxx.model.collate import decoded, padded_rows
from uniresxx.segmenters.lisa.config import LisaConfig, Peer
from uniresxx.segmenters.lisa.photos import clip_pixels, sam_pixels
from uniresxx.segmenters.lisa.prompts import LisaVocabulary
from uniresxx.segmenters.lisa.training import LisaBatch
from uniresxx.types import RLE, Expression, Granularity, ImageRecord, Turn

Turns = list[tuple[str, list[str]]]  # questions with answers: text, mark, text, mark, …, text


@dataclass(frozen=True, slots=True)
class TrainingWording:
    """The words that a peer trains with on referring expressions; each question and answer is chosen at random."""

    questions: tuple[str, ...]
    answers: tuple[tuple[str, str], ...]  # the beginning, and what stands before the mark of each expression
    together: bool  # all expressions of a photo in one question


_LISA = (
    TrainingWording(  # utils/utils.py, SHORT_QUESTION_LIST and ANSWER_LIST; M2SA has the same for one target
        (
            "Can you segment the {expression} in this image?",
            "Please segment the {expression} in this image.",
            "What is {expression} in this image? Please respond with segmentation mask.",
            "What is {expression} in this image? Please output segmentation mask.",
        ),
        (
            ("It is ", ""),
            ("Sure, ", ""),
            ("Sure, it is ", ""),
            ("Sure, the segmentation result is ", ""),
            ("", ""),
        ),
        False,
    )
)
_GSVA = TrainingWording(  # model/llava/constants.py, the lists of MODE4
    (
        "Can you segment {expression} in this image?",
        "Please segment {expression} in this image.",
        "What are {expression} in this image? Please respond with segmentation masks.",
        "What are {expression} in this image? Please output segmentation masks.",
    ),
    (
        ("The segmentation results are ", "{expression} "),
        ("Sure, they are ", "{expression}:"),
        ("Sure, ", "the mask of {expression} is "),
        ("Sure, ", "the segmentation of {expression} is "),
        ("Sure, ", "the referred {expression} is "),
    ),
    True,
)
TRAINING_WORDINGS: Mapping[Peer, TrainingWording] = {"lisa": _LISA, "gsva": _GSVA, "m2sa": _LISA}


@dataclass(frozen=True, slots=True)
class LisaSample:
    """One prepared photo, its row, and the truth of each decision in the row, in order."""

    clip_13HW: Tensor
    sam_3SS: Tensor
    row: Row
    segmented: list[bool]  # whether the answer has [SEG]
    masks_Eyx: np.ndarray  # bool
    granularities: list[Granularity]
    expression_ids: list[str]


@dataclass(frozen=True, slots=True)
class LisaCollator:
    """Training samples in the format of the config's peer."""

    config: LisaConfig
    vocabulary: LisaVocabulary

    @property
    def reads_boxes(self) -> bool:
        """The model has no boxes."""
        return False

    @property
    def question_templates(self) -> Sequence[str]:
        """Those of the peer's training."""
        return TRAINING_WORDINGS[self.config.peer].questions

    def sample(self, record: ImageRecord, photo: np.ndarray, choices: Sequence[int]) -> LisaSample:
        """One image; its expressions, then its conversations. InputError where a mask does not fit the photo."""
        truth: list[tuple[str, Granularity, RLE | None]] = [
            (e.expression_id, e.granularity, e.rle) for e in record.expressions
        ]
        truth += [
            (dialogue.dialogue_id, phrase.granularity, phrase.rle)
            for dialogue in record.dialogues
            for turn in dialogue.turns
            for phrase in turn.phrases
        ]
        row = Row()
        for turns in self._conversations(record, choices):
            self._add(row, turns)
        assert len(row.decisions) == len(truth), (len(row.decisions), len(truth))
        nothing = np.zeros((record.height, record.width), dtype=bool)
        masks = [nothing if rle is None else decoded(rle, record) for _, _, rle in truth]
        box = Letterbox.fit(record.height, record.width, self.config.sam["vision_config"]["image_size"])
        return LisaSample(
            clip_pixels([photo], self.config.photo),
            sam_pixels(photo, box),
            row,
            [self._mark(rle) == SEG for _, _, rle in truth],
            np.stack(masks) if masks else nothing[None][:0],
            [granularity for _, granularity, _ in truth],
            [name for name, _, _ in truth],
        )

    def collate(self, samples: Sequence[LisaSample]) -> LisaBatch:
        """Stack prepared images; rows are padded to the longest, decisions are flattened image by image."""
        segmented = [yes for s in samples for yes in s.segmented]
        image_of_expr = [b for b, s in enumerate(samples) for _ in s.segmented]
        return LisaBatch(
            clip_B3HW=torch.cat([s.clip_13HW for s in samples]),
            sam_B3SS=torch.stack([s.sam_3SS for s in samples]),
            **padded_rows([s.row for s in samples], self.vocabulary.eos),
            image_of_expr_E=torch.tensor(image_of_expr, dtype=torch.long),
            seg_position_E=torch.tensor([p for s in samples for p in s.row.decisions], dtype=torch.long),
            segmented_P=torch.tensor(segmented, dtype=torch.bool).nonzero()[:, 0],
            masks_photo=[torch.from_numpy(s.masks_Eyx) for s in samples],
            expression_ids=[name for s in samples for name in s.expression_ids],
            granularities=[granularity for s in samples for granularity in s.granularities],
        )

    def _conversations(self, record: ImageRecord, choices: Sequence[int]) -> list[Turns]:
        """Questions and answers of an image."""
        wording = TRAINING_WORDINGS[self.config.peer]
        groups = [[e] for e in record.expressions]
        if wording.together and record.expressions:
            groups = [list(record.expressions)]
        asked = [[self._asked(group, choice)] for group, choice in zip(groups, choices, strict=False)]
        return asked + [[self._turn(turn) for turn in dialogue.turns] for dialogue in record.dialogues]

    def _asked(self, expressions: Sequence[Expression], choice: int) -> tuple[str, list[str]]:
        """A question for expressions and its answer, worded by `choice`; refer_seg_dataset.py of the peers."""
        wording = TRAINING_WORDINGS[self.config.peer]
        rest, question = divmod(choice, len(wording.questions))
        begin, before_mark = wording.answers[rest % len(wording.answers)]
        texts = [self.vocabulary.plain(e.text) for e in expressions]
        named = [
            (before_mark.format(expression=text), self._mark(e.rle))
            for text, e in zip(texts, expressions, strict=True)
        ]
        return wording.questions[question].format(expression=", ".join(texts).lower()), _parts(begin, named)

    def _turn(self, turn: Turn) -> tuple[str, list[str]]:
        """A turn of a conversation: `a: [SEG], b: [REJ].` for several phrases, `[SEG].` for one, else its words."""
        if not turn.phrases:
            return turn.question, [turn.answer or ""]
        several = len(turn.phrases) > 1
        named = [(f"{p.text}: " if several else "", self._mark(p.rle)) for p in turn.phrases]
        return turn.question, _parts("", named)

    def _mark(self, rle: RLE | None) -> str:
        """[REJ] for what is not there, if the peer has it; LISA learns [SEG] with an empty mask."""
        return REJ if rle is None and REJ in self.vocabulary.marks else SEG

    def _add(self, row: Row, turns: Turns) -> None:
        """Append a conversation as a branch."""
        branch, start = row.next_branch, len(row.ids_T)
        marks = self.vocabulary.marks.values()
        for ids, learned in self.vocabulary.answered(turns, self.config.conversation):
            first = len(row.ids_T)
            row.add(ids, learned, branch, start)
            if learned:
                row.decisions += [first + i - 1 for i, token in enumerate(ids) if token in marks]


def _parts(begin: str, named: Sequence[tuple[str, str]]) -> list[str]:
    """An answer: text, mark, text, mark, …, full stop."""
    parts = [begin]
    for place, (text, mark) in enumerate(named):
        parts[-1] += f"{', ' if place else ''}{text}"
        parts += [mark, ""]
    parts[-1] = "."
    return parts
