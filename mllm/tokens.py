"""The vocabulary: special tokens are added once and looked up by name; user text can never forge one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

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

    @classmethod
    def train(cls, corpus: Iterable[str], size: int) -> Vocabulary:
        """Byte-level BPE of at most `size` tokens, lower-cased, for the tiny model."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(corpus, trainer)
        return cls(tokenizer)

    @classmethod
    def extend(cls, tokenizer: Tokenizer) -> Vocabulary:
        """A pretrained tokenizer with the project's special tokens added where they are missing."""
        tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL_TOKENS])
        return cls(tokenizer)

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

    def decode(self, ids: list[int]) -> str:
        """Readable text of generated ids: [SEG] and [REJ] are shown, the other marks are not."""
        pieces: list[str] = []
        plain: list[int] = []
        shown = {self.seg: SEG, self.rej: REJ}
        hidden = {self.pad, self.end, self.user, self.assistant, self.image, self.object, self.part}
        for token in [*ids, self.pad]:
            if token in shown or token in hidden:
                if plain:
                    pieces.append(self.tokenizer.decode(plain))
                    plain = []
                if token in shown:
                    pieces.append(f" {shown[token]}")
            else:
                plain.append(token)
        text = "".join(pieces).strip()
        for mark in (".", ",", ":", "?"):
            text = text.replace(f" {mark}", mark)
        return text
