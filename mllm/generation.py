"""Greedy answers: which branches are decoded together, and when each of them ends.

Shapes: B images of a chunk, A branches of an image, R rows of a chunk (one per branch), T tokens of a branch,
N generated tokens, K decisions of one answer, D width, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mllm.config import MLLMConfig
from mllm.prefix import PrefixCache
from mllm.tokens import Vocabulary

OnTokens = Callable[[int, list[int]], None]  # row, and the tokens of its answer so far
BRANCHES = 32  # of an image in one chunk: the cost of attention among packed branches grows with the square


@dataclass(frozen=True, slots=True)
class GeneratedAnswer:
    """One generated answer: tokens, and for each [SEG]/[REJ] the mask prompt and P([SEG] | [SEG] or [REJ]).

    Without any decision in the text, `prompts_KD` holds the state where the answer begins (a forced [SEG]).
    """

    ids: list[int]
    decisions: list[int]
    prompts_KD: Tensor
    p_seg_K: Tensor
    truncated: bool  # the answer had not ended when the number of tokens was used up


def chunks(
    prefix: PrefixCache, image_of_row: Sequence[int], tokens: int, cache_bytes: int
) -> Iterator[slice]:
    """Runs of rows whose cache fits into `cache_bytes`, at least one row each.

    Args:
        prefix: of the images.
        image_of_row: the image of each row.
        tokens: room for each row's text.
        cache_bytes: limit of one chunk.
    """
    start, counts = 0, Counter[int]()
    for row, image in enumerate(image_of_row):
        counts[image] += 1
        most = max(counts.values())
        if row > start and (most > BRANCHES or prefix.chunk_bytes(len(counts), most, tokens) > cache_bytes):
            yield slice(start, row)
            start, counts = row, Counter([image])
    if counts:
        yield slice(start, len(image_of_row))


def in_words(
    on_text: Callable[[int, str], None] | None, decode: Callable[[list[int]], str]
) -> OnTokens | None:
    """The listener of tokens for one of words, if there is one."""
    return None if on_text is None else lambda row, ids: on_text(row, decode(ids))


def counted_from(first_row: int, on_tokens: OnTokens | None) -> OnTokens | None:
    """The listener of all rows, if there is one, for a chunk whose rows are counted from 0."""
    return None if on_tokens is None else lambda row, ids: on_tokens(first_row + row, ids)


@dataclass(frozen=True, slots=True)
class Branches:
    """The rows of a chunk by image; an image with fewer branches than another has empty places of length 0."""

    images: list[int]  # number of each of the B images
    places: list[tuple[int, int]]  # image and branch of each row
    ids_BAT: Tensor
    lengths_BA: Tensor
    branch_BA: Tensor  # number of each branch in its image, -1 for an empty place
    branch_BAT: Tensor  # the same for each token, -1 on padding

    def last_of(self, states_BATD: Tensor) -> Tensor:
        """The state (B, A, D) of each branch's last token."""
        index_BA11 = (self.lengths_BA - 1).clamp(min=0)[..., None, None]
        return states_BATD.gather(2, index_BA11.expand(-1, -1, 1, states_BATD.shape[3])).squeeze(2)


def by_image(
    branches: Sequence[Sequence[int]], image_of_row: Sequence[int], pad: int, device: torch.device
) -> Branches:
    """Sort the rows of a chunk by image; `pad` fills the ids."""
    counts, filled = Counter(image_of_row), Counter[int]()
    images = list(counts)
    B, A, T = len(images), max(counts.values()), max(map(len, branches))
    ids_BAT = torch.full((B, A, T), pad)
    lengths_BA = torch.zeros(B, A, dtype=torch.long)
    places = []
    for branch, image in zip(branches, image_of_row, strict=True):
        place = (images.index(image), filled[image])
        filled[image] += 1
        ids_BAT[place][: len(branch)] = torch.tensor(branch)
        lengths_BA[place] = len(branch)
        places.append(place)
    numbers_A = torch.arange(A)
    branch_BA = torch.where(lengths_BA > 0, numbers_A, -1)
    branch_BAT = torch.where(torch.arange(T) < lengths_BA[..., None], numbers_A[:, None], -1)
    tensors = (ids_BAT, lengths_BA, branch_BA, branch_BAT)
    return Branches(images, places, *(x.to(device) for x in tensors))


def answer_ends(config: MLLMConfig, vocabulary: Vocabulary) -> list[int]:
    """The tokens that end an answer: that of the chat format, then those that the model's own config names.

    Raises:
        ValueError: the end of the chat format is not one token of this tokenizer.
    """
    end = vocabulary.encode_template(config.chat.end)
    if len(end) != 1:
        raise ValueError(
            f"mllm.chat.end={config.chat.end!r} is {len(end)} tokens of this tokenizer: name its one end token"
        )
    own = config.llm.get("eos_token_id")
    others = [] if own is None else own if isinstance(own, list) else [own]
    return [*dict.fromkeys((*end, *others))]


def before_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The tokens before the end of an answer."""
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]


def report(tokens: Sequence[Tensor], branches: Branches, ends: Sequence[int], on_tokens: OnTokens) -> None:
    """Tell the answer of every row so far: `tokens` (B, A) of each step."""
    rows = torch.stack(list(tokens), 2).tolist()
    for row, (b, a) in enumerate(branches.places):
        on_tokens(row, before_end(rows[b][a], ends))


class Answers:
    """The answers of a chunk while they grow.

    An answer ends at an end token, and where the number of its decisions is limited, behind the last of them, with
    a full stop as in training.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        ends: Sequence[int],
        branches: Branches,
        most_decisions: Sequence[int] | None = None,
    ) -> None:
        """Begin the answers.

        Args:
            vocabulary: of the model.
            ends: as of `answer_ends`.
            branches: what is answered.
            most_decisions: of each row's answer; None: any number.
        """
        device = branches.ids_BAT.device
        self.vocabulary, self.ends, self.branches = vocabulary, ends, branches
        self._ends = torch.tensor(ends, device=device)
        self.done_BA = branches.lengths_BA == 0
        self._tokens: list[Tensor] = []
        self._states: list[Tensor] = []
        self._p_seg: list[Tensor] = []
        self._decided_BA = torch.zeros_like(branches.lengths_BA)
        self._decisions = torch.tensor([vocabulary.seg, vocabulary.rej], device=device)
        # a tokenizer may spell a full stop in two ways: on its own and at the end of a word
        full_stops = {vocabulary.encode(text)[-1] for text in (".", "a.")}
        self._full_stops = torch.tensor(sorted(full_stops), device=device)
        self._full_stop = vocabulary.encode(".")[-1]
        self._most_BA: Tensor | None = None
        if most_decisions is not None:
            self._most_BA = torch.ones_like(branches.lengths_BA)
            for place, number in zip(branches.places, most_decisions, strict=True):
                self._most_BA[place] = number

    def add(self, state_BAD: Tensor, logits_BAV: Tensor) -> Tensor:
        """Append the most likely token (B, A) of every branch; an answer that has ended gets end tokens."""
        end = self.ends[0]
        token_BA = torch.where(self.done_BA, end, logits_BAV.argmax(dim=-1))
        is_decision_BA = torch.isin(token_BA, self._decisions)
        if self._most_BA is not None:
            complete_BA = self._decided_BA >= self._most_BA
            is_stop_BA = torch.isin(token_BA, torch.cat((self._full_stops, self._ends)))
            token_BA = token_BA.masked_fill(complete_BA & ~is_stop_BA, self._full_stop)
            self.done_BA = self.done_BA | complete_BA
        self.done_BA = self.done_BA | torch.isin(token_BA, self._ends)
        self._decided_BA = self._decided_BA + is_decision_BA
        self._tokens.append(token_BA)
        self._states.append(state_BAD)
        self._p_seg.append(logits_BAV[..., self._decisions].float().softmax(dim=-1)[..., 0])
        return token_BA

    def tell(self, on_tokens: OnTokens) -> None:
        """Report the tokens of every answer so far."""
        report(self._tokens, self.branches, self.ends, on_tokens)

    def collect(self, last_BAD: Tensor, own: bool) -> list[GeneratedAnswer]:
        """The answers in the order of the rows.

        Args:
            last_BAD: states after the last tokens.
            own: a decision's prompt is its token's own state, not the state that predicts it.
        """
        ids_BAN, p_seg_BAN = torch.stack(self._tokens, 2), torch.stack(self._p_seg, 2)
        states_BAND = torch.stack(self._states, 2)
        after_BAND = torch.cat((states_BAND[:, :, 1:], last_BAD[:, :, None]), dim=2)
        rows, done = ids_BAN.tolist(), self.done_BA.tolist()
        answers, v = [], self.vocabulary
        for b, a in self.branches.places:
            ids = before_end(rows[b][a], self.ends)
            places = [i for i, token in enumerate(ids) if token in (v.seg, v.rej)]
            used = places or [0]
            source = after_BAND if own and places else states_BAND
            decisions = [ids[i] for i in places]
            answers.append(
                GeneratedAnswer(ids, decisions, source[b, a, used], p_seg_BAN[b, a, used], not done[b][a])
            )
        return answers
