"""Questions and answers as LISA and GSVA put them, and their token ids.

The text of a conversation is LLaVA's (`conv_llava_v1`, `conv_llava_llama_2` of llava/conversation.py). Text between
special tokens is encoded on its own. LISA's release pins transformers 4.31, whose slow tokenizer also strips the
blanks and line ends around the tokens that LISA added; GSVA's pins 4.44, which does not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from mllm.tokens import REJ, SEG
from uniresxx.errors import InputError
from uniresxx.segmenters.lisa.config import Conversation, Peer
from uniresxx.types import AS_TYPED, Decoding, Question

BOS, EOS, IMAGE_START, IMAGE_END = "<s>", "</s>", "<im_start>", "<im_end>"
_MARK = re.compile(rf"({re.escape(SEG)}|{re.escape(REJ)})")


@dataclass(frozen=True, slots=True)
class Wording:
    """How a peer asks and answers in its own evaluation."""

    question: str
    forced: str  # the answer up to [SEG], where the answer is given
    tokens: tuple[str, ...]  # that its training adds to LLaVA's tokenizer, in this order
    strips_blanks: bool  # around these tokens
    dropped: str  # from both ends of an expression


_LISA = Wording(  # utils/dataset.py, ValDataset; M2SA (github.com/jdg900/MMR) has the same
    " What is {expression} in this image? Please output segmentation mask.",
    "",
    (SEG, IMAGE_START, IMAGE_END),
    True,
    "",
)
_GSVA = Wording(  # data/dataset.py, ValDataset, where a blank is missing before "in"
    " What are {expression}in this image? Please output segmentation masks.",
    "Sure,{expression}:",
    (SEG, REJ, IMAGE_START, IMAGE_END),
    False,
    ".",
)
WORDINGS: Mapping[Peer, Wording] = {"lisa": _LISA, "gsva": _GSVA, "m2sa": _LISA}


@dataclass(frozen=True, slots=True)
class Frame:
    """The pieces of text around questions and answers."""

    opening: str  # before the picture of the first question
    between: str  # from the end of an answer to the next question
    closing: str  # from the end of a question to its answer
    after_answer: str


FRAMES: Mapping[Conversation, Frame] = {
    "llava_v1": Frame(
        "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the human's questions. USER: ",
        "USER: ",
        " ASSISTANT:",
        "",
    ),
    "llava_llama_2": Frame(
        "[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to understand the visual "
        "content that the user provides, and assist the user with a variety of tasks using natural language.\n"
        "<</SYS>>\n\n",
        "[INST] ",
        " [/INST]",
        " ",
    ),
}


class LisaVocabulary:
    """The peer's tokenizer, with its special tokens as attributes. Text is plain: "[SEG]" in it is no token."""

    def __init__(self, tokenizer: Tokenizer, peer: Peer) -> None:
        """ValueError where a token of the peer is missing."""
        self.tokenizer, self.peer = tokenizer, peer
        wording = WORDINGS[peer]
        ids = tokenizer.get_vocab(with_added_tokens=True)
        missing = [name for name in (BOS, EOS, *wording.tokens) if name not in ids]
        if missing:
            raise ValueError(f"the tokenizer has no {', '.join(missing)}: convert the released folder again")
        tokenizer.encode_special_tokens = True  # spelled in text, they stay text
        self.bos, self.eos = ids[BOS], ids[EOS]
        self.image_start, self.image_end = ids[IMAGE_START], ids[IMAGE_END]
        self.marks = {name: ids[name] for name in wording.tokens if name in (SEG, REJ)}
        self.seg = self.marks[SEG]
        self.special = (
            *self.marks.values(),
            self.image_start,
            self.image_end,
        )  # added by the peer's training
        self.strips_blanks = wording.strips_blanks

    @classmethod
    def load(cls, path: Path, peer: Peer) -> LisaVocabulary:
        """Read tokenizer.json; InputError where it is missing or not the peer's."""
        if not path.is_file():
            raise InputError(f"{path} is missing: give a complete checkpoint folder")
        try:
            return cls(Tokenizer.from_file(str(path)), peer)
        except Exception as error:
            raise InputError(f"{path} is not a tokenizer of {peer} ({error})") from error

    def to_json(self) -> str:
        """The text of tokenizer.json."""
        return self.tokenizer.to_str(pretty=False)

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def encode(self, text: str, after_mark: bool = False, before_mark: bool = False) -> list[int]:
        """Ids of a piece of text that lies between special tokens; blanks beside a mark go where the peer's do."""
        if self.strips_blanks:
            text = text.lstrip() if after_mark else text
            text = text.rstrip() if before_mark else text
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids) if text else []

    def decode(self, ids: list[int]) -> str:
        """Readable text of generated ids: [SEG] and [REJ] are shown, other special tokens are not."""
        shown = {number: name for name, number in self.marks.items()}
        pieces: list[str] = []
        plain: list[int] = []
        for token in [*ids, self.eos]:
            if token in shown or token in (self.eos, self.bos, self.image_start, self.image_end):
                pieces.append(self.tokenizer.decode(plain))
                pieces.append(f" {shown[token]}" if token in shown else "")
                plain = []
            else:
                plain.append(token)
        return re.sub(r" ([.,:?])", r"\1", "".join(pieces)).strip()

    def prefix(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        """Ids before and after the image's tokens; the same for every question."""
        opening = self.encode(FRAMES[conversation].opening, before_mark=True)
        return [self.bos, *opening, self.image_start], [self.image_end]

    def branch(self, question: Question, decoding: Decoding, conversation: Conversation) -> list[int]:
        """Ids from behind the image to where the answer begins, earlier turns included."""
        frame = FRAMES[conversation]
        turns = [(asked, _MARK.split(answer)) for asked, answer in question.history]
        ids = [token for piece, _ in self.answered(turns, conversation) for token in piece]
        before = frame.between if turns else "\n"
        return ids + self.encode(before + self.worded(question.text, decoding) + frame.closing, not turns)

    def answered(
        self, turns: Sequence[tuple[str, Sequence[str]]], conversation: Conversation
    ) -> list[tuple[list[int], bool]]:
        """Ids of turns behind the image, piece by piece, and whether a piece is answer, which training teaches.

        An answer is text, mark, text, mark, …, text. LISA's utils/dataset.py (collate_fn) teaches what follows
        "ASSISTANT:", with the blank before a mark, and </s>.
        """
        frame = FRAMES[conversation]
        pieces: list[tuple[list[int], bool]] = []
        before, after_mark = "\n", True
        for asked, answer in turns:
            parts = [*answer[:-1], answer[-1] + frame.after_answer]
            blank = "" if parts[0] else " "  # text brings its own blank, a mark does not
            question = before + asked + frame.closing
            ids = self.encode(question + blank, after_mark, before_mark=not parts[0])
            begin = len(self.encode(question, after_mark))
            pieces += [(ids[:begin], False), ([*ids[begin:], *self._answer(parts), self.eos], True)]
            if conversation == "llava_llama_2":
                pieces.append(([self.bos], False))
            before, after_mark = frame.between, False
        return pieces

    def worded(self, text: str, decoding: Decoding) -> str:
        """The text inside the template; as a benchmark's expression it is put as the peer puts it."""
        if decoding.template == AS_TYPED:
            return text
        return decoding.template.format(expression=self._expression(text))

    def forced_answer(self, text: str) -> list[int]:
        """Ids of the answer up to [SEG], as the peer's evaluation gives it."""
        forced = WORDINGS[self.peer].forced.format(expression=self._expression(text))
        return self.encode(forced, before_mark=True)

    def plain(self, text: str) -> str:
        """An expression without what the peer drops at its ends."""
        return text.strip().strip(WORDINGS[self.peer].dropped or " ")

    def _expression(self, text: str) -> str:
        return self.plain(text.lower())

    def _answer(self, parts: Sequence[str]) -> list[int]:
        """Ids of an answer, cut at its marks, which have the odd places."""
        ids: list[int] = []
        for place, part in enumerate(parts):
            if place % 2 and part in self.marks:
                ids.append(self.marks[part])
            else:
                ids += self.encode(part, after_mark=place > 0, before_mark=place + 1 < len(parts))
        return ids
