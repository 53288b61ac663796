"""The vocabulary: special tokens are added once and looked up by name; user text can never forge one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mllm.chat_templates import ChatTemplate

IMAGE, OBJECT, PART, SEG, REJ = "<image>", "<object>", "<part>", "[SEG]", "[REJ]"
USER, ASSISTANT, END, PAD = "<user>", "<assistant>", "<end>", "<pad>"
SPECIAL_TOKENS = (PAD, END, USER, ASSISTANT, IMAGE, OBJECT, PART, SEG, REJ)


class Vocabulary:
    """A tokenizer with the project's special tokens as attributes (`seg`, `rej`, …: token ids).

    `encode` treats every input as plain text: "[SEG]" typed by a user becomes ordinary pieces.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        known = tokenizer.get_vocab(with_added_tokens=True)
        missing = [token for token in SPECIAL_TOKENS if token not in known]
        if missing:
            raise ValueError(f"the tokenizer has no {', '.join(missing)}: add them with Vocabulary.extend")
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True  # special tokens spelled in text stay plain text
        ids = {token: known[token] for token in SPECIAL_TOKENS}
        self.pad, self.end, self.user, self.assistant = ids[PAD], ids[END], ids[USER], ids[ASSISTANT]
        self.image, self.object, self.part = ids[IMAGE], ids[OBJECT], ids[PART]
        self.seg, self.rej = ids[SEG], ids[REJ]
        self.special = tuple(ids[token] for token in SPECIAL_TOKENS)
        self.rows = max(known.values()) + 1  # rows that the matrices of a model must have at least
        self._added = {token.content: row for row, token in tokenizer.get_added_tokens_decoder().items()}
        longest_first = sorted(self._added, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        self._templates: dict[str, tuple[int, ...]] = {}
        # the tiny model's tokenizer writes a space before every text that it encodes
        self._adds_space = tokenizer.decode(tokenizer.encode("a", add_special_tokens=False).ids) != "a"

    @classmethod
    def train(cls, corpus: Iterable[str], size: int, chat: ChatTemplate | None = None) -> Vocabulary:
        """Byte-level BPE of at most `size` tokens, lower-cased, for models without a pretrained tokenizer.

        Args:
            corpus: what it is trained on.
            size: tokens at most.
            chat: a chat format whose words are learned and whose end becomes one token; None: that of marks alone.
        """
        chat = chat or ChatTemplate()
        words = [text for text in asdict(chat).values() if text not in SPECIAL_TOKENS]
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[*dict.fromkeys((*SPECIAL_TOKENS, chat.end))],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(chain(corpus, words), trainer)
        return cls(tokenizer)

    @classmethod
    def extend(cls, tokenizer: Tokenizer) -> Vocabulary:
        """A pretrained tokenizer with the project's special tokens added where they are missing.

        It no longer adds a space before a text, so that text after a special token is encoded as it is written.
        """
        extended = Tokenizer.from_str(json.dumps(_without_prefix_space(json.loads(tokenizer.to_str()))))
        extended.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL_TOKENS])
        return cls(extended)

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read `tokenizer.json`."""
        return cls(Tokenizer.from_file(str(path)))

    def to_json(self) -> str:
        """The text of `tokenizer.json`."""
        return self.tokenizer.to_str(pretty=False)

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; special tokens spelled in it stay ordinary pieces."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_template(self, text: str) -> tuple[int, ...]:
        """Ids of a piece of a chat template, in which special tokens are meant; never for text of users."""
        if text not in self._templates:
            ids: list[int] = []
            for part in self._split.split(text):
                if part:
                    ids += [self._added[part]] if part in self._added else self.encode(part)
            self._templates[text] = tuple(ids)
        return self._templates[text]

    def template_ids(self, chat: ChatTemplate) -> list[int]:
        """The ids of all pieces of a chat template, each once."""
        return sorted({token for text in asdict(chat).values() for token in self.encode_template(text)})

    def decode(self, ids: list[int]) -> str:
        """Readable text of generated ids: [SEG] and [REJ] are shown after a space, other special tokens are not."""
        marks = {self.seg: SEG, self.rej: REJ}
        text, plain = "", []
        for token in [*ids, self.pad]:
            if token not in marks and token != self.pad:
                plain.append(token)
                continue
            text += self.tokenizer.decode(plain)
            plain = []
            if token in marks:
                text += marks[token] if not text or text[-1].isspace() else f" {marks[token]}"
        text = text.strip()
        for mark in ".,:?" if self._adds_space else "":
            text = text.replace(f" {mark}", mark)
        return text


def _without_prefix_space(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a tokenizer.json, none of which adds a space before a text or takes one away."""
    changed = dict(tokenizer)
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        changed[name] = _part_without_prefix_space(changed[name])
    return changed


def _part_without_prefix_space(part: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if part is None or part["type"] in ("Prepend", "Strip"):  # what Llama 2 has instead of Metaspace
        return None
    inner = {key: part[key] for key in ("normalizers", "pretokenizers", "decoders") if key in part}
    for key, parts in inner.items():
        inner[key] = [new for new in map(_part_without_prefix_space, parts) if new is not None]
    if part["type"] == "Metaspace":
        inner["prepend_scheme"] = "never"
    if "add_prefix_space" in part:
        inner["add_prefix_space"] = False
    return {**part, **inner}
