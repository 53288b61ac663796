"""Words as CLIP's text encoder takes them: a start, the tokens of an expression, an end.

An expression is encoded without the words that ask for it ("segment", "please"), in training and in use alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from uniresxx.conversation.phrases import asked_phrases
from uniresxx.errors import InputError

START, END = "<|startoftext|>", "<|endoftext|>"


class ClipVocabulary:
    """CLIP's tokenizer, with its two special tokens as ids; spelled in a text they are plain text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """ValueError where a special token is missing."""
        known = tokenizer.get_vocab(with_added_tokens=True)
        missing = [token for token in (START, END) if token not in known]
        if missing:
            raise ValueError(f"the tokenizer has no {', '.join(missing)}: it is not that of a CLIP")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        self.start, self.end = known[START], known[END]
        self.rows = max(known.values()) + 1  # that a text encoder must have at least

    @classmethod
    def train(cls, corpus: Iterable[str], size: int) -> ClipVocabulary:
        """Byte-level BPE of at most `size` tokens, lower-cased, for encoders that are trained from nothing."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[START, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(corpus, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: Path) -> ClipVocabulary:
        """Read tokenizer.json; InputError where it is missing or not a CLIP's."""
        if not path.is_file():
            raise InputError(f"{path} is missing: give a complete folder")
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:  # tokenizers raises nothing more precise
            raise InputError(f"{path} is not a tokenizer of CLIP ({error})") from error

    def to_json(self) -> str:
        """The text of tokenizer.json."""
        return str(self.tokenizer.to_str(pretty=False))

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def encode(self, text: str, most: int) -> list[int]:
        """Start, the expression's tokens, end; at most `most` ids, cut before the end as CLIP cuts them."""
        ids = self.tokenizer.encode(expression_of(text), add_special_tokens=False).ids
        return [self.start, *ids[: most - 2], self.end]


def expression_of(text: str) -> str:
    """The one phrase that a text asks for; the text itself where it asks for none or several."""
    phrases = asked_phrases(text)
    return phrases[0] if len(phrases) == 1 else text
