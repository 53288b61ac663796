"""From a query to English. A style fixes every choice of wording, so that a negative gets its positive's template."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from uniresxx.data.scenes import words as w
from uniresxx.data.scenes.kinds import KINDS
from uniresxx.data.scenes.solver import Query

WORDS = (4, 14)  # fewest and most in an expression of `scenes` that is not telegraphic


@dataclass(frozen=True, slots=True)
class Style:
    """Choices of wording: `synonyms` picks words, `form` places adjectives, `frame` picks the sentence around."""

    frame: int = 0
    form: int = 0
    synonyms: int = 0
    telegraphic: bool = False
    plain: bool = False  # scenes_easy: plain words only
    new_words: bool = False  # held-out synonyms
    new_frame: bool = False  # held-out template


def draw_style(rng: np.random.Generator, easy: bool, paraphrase: bool) -> Style:
    """A random style; in `paraphrase` at least the template or the words are held out."""
    rolls = rng.integers(0, 1 << 30, 3)
    if easy:
        return Style(int(rolls[0]), 0, 0, plain=True)
    chance = rng.random(4)
    new_frame = bool(paraphrase and chance[2] < 0.6)
    telegraphic = bool(chance[0] < 0.10 and not paraphrase)
    synonyms = int(rolls[2]) if chance[1] < 0.6 else 0
    new_words = paraphrase and (not new_frame or bool(chance[3] < 0.6))
    return Style(int(rolls[0]), int(rolls[1]), synonyms, telegraphic, False, new_words, new_frame)


def _word(word: str, style: Style) -> str:
    # another synonym choice per word, the same one whenever the word comes up in this style
    return w.word_for(word, (style.synonyms >> (len(word) + ord(word[0])) % 20) & 1, style.new_words)


def _noun(query: Query, style: Style, many: bool) -> str:
    noun = _word(query.kind, style)
    return w.plural(noun) if many else noun


def _form(query: Query, style: Style) -> tuple[bool, bool]:
    """(colour after the noun, order after the noun)."""
    if style.plain or style.telegraphic:
        return False, False
    # "the second car that is red from the top" is not English: with a rank the colour stays in front
    colour_after = bool(query.colours) and query.rank == 0 and style.form % 4 == 3
    order_after = query.order is not None and (style.form >> 2) % 3 == 2
    return colour_after, order_after and not colour_after


def noun_phrase(query: Query, style: Style, many: bool) -> str:
    """The things of a query without an article: "leftmost red car", "cars that are not red"."""
    colour_after, order_after = _form(query, style)
    are = "are" if many else "is"
    front: list[str] = []
    tail: list[str] = []
    ranked = query.order is not None and query.rank > 0
    if query.order is not None:
        plain = "big" if query.order == "large" else query.order
        word = plain if style.plain else _word(w.ORDER_WORDS[query.order], style)
        if query.take > 1:
            front.append(("", "one", "two", "three")[query.take])
        if ranked:
            rank = w.ORDINALS[query.rank]
            where = f"from the {query.order}" if not style.telegraphic else f"from {query.order}"
            if order_after:
                tail.append(f"that is {rank} {where}")
            else:
                front.append(rank)
                tail.append(where)
        elif order_after:
            tail.append(w.ORDER_TAILS[query.order])
        else:
            front.append(word)
    if query.colours:
        joined = (" or " if colour_after else " and ").join(_word(c, style) for c in query.colours)
        if colour_after:
            tail.insert(0, f"that {are} {joined}")
        else:
            front.append(joined)
    if query.without is not None:
        verb = f"that {are} not" if style.form % 2 else f"which {are} not"
        tail.insert(0, f"{'not' if style.telegraphic else verb} {_word(query.without, style)}")
    if query.relation is not None and query.anchor is not None:
        link = "" if style.telegraphic or style.form % 3 else f"that {are} "
        article = "" if style.telegraphic else "the "
        anchor = noun_phrase(query.anchor, replace(style, form=0), False)
        tail.append(f"{link}{_word(query.relation, style)} {article}{anchor}")
    return " ".join([*front, _noun(query, style, many), *tail])


def _frames(query: Query, style: Style) -> tuple[str, ...]:
    name = "object"
    if query.part is not None:
        name = "part"
    elif query.also is not None:
        name = "union"
    elif query.number == 0:
        name = "all"
    elif query.number > 1 and query.take == 1:
        name = {2: "two", 3: "three"}[query.number]
    trained, held_out = w.FRAMES[name]
    return held_out if style.new_frame else trained


def _frame(query: Query, style: Style) -> str:
    frames = _frames(query, style)
    return frames[style.frame % len(frames)]


def _part_is_plural(query: Query) -> bool:
    """Whether several parts are meant: the kind has more than one of them, or several things are meant."""
    return query.number != 1 or sum(piece.part == query.part for piece in KINDS[query.kind].pieces) > 1


def _part_words(query: Query, style: Style) -> str:
    assert query.part is not None
    noun = _word(query.part, style)
    if query.side is not None:
        return f"{query.side} {noun}"
    return w.plural(noun) if _part_is_plural(query) else noun


def _things(query: Query, style: Style) -> str:
    """A noun phrase with its article or count."""
    many = query.number != 1
    bare = noun_phrase(query, style, many)
    if query.number == 0:
        return f"all {bare}"
    if query.number == 2 and query.take == 1:
        return f"both {bare}"
    return f"the {bare}"


def _easy_text(query: Query, style: Style) -> str:
    if query.part is not None:
        return f"{_part_words(query, style)} of {_things(query, style)}"
    if query.also is not None:
        return f"{_things(query, style)} and {_things(query.also, style)}"
    if query.number == 3:
        return f"all three {noun_phrase(query, style, True)}"
    return _things(query, style)


def _short_text(query: Query, style: Style) -> str:
    """Telegraphic: no articles, the part last ("red car wheels")."""
    if query.also is not None:
        return f"{noun_phrase(query, style, query.number != 1)} and {noun_phrase(query.also, style, False)}"
    many = query.number != 1
    if query.part is None:
        bare = noun_phrase(query, style, many)
        return f"{('all', '', 'both', 'three')[query.number]} {bare}".strip() if query.take == 1 else bare
    part = _part_words(query, style)
    simple = query.relation is None and query.without is None and query.rank == 0
    if simple and query.side is None:
        return f"{noun_phrase(query, style, many)} {part}"
    return f"{part} {noun_phrase(query, style, many)}"


def template_of(query: Query, style: Style) -> str:
    """The name of the template of a query in a style: its frame and the form of its noun phrase."""
    frame = "plain" if style.plain else "telegraphic" if style.telegraphic else _frame(query, style)
    colour_after, order_after = _form(query, style)
    shape = [
        str(len(query.colours)),
        "colour after" if colour_after else "",
        "order after" if order_after else "",
        query.order or "",
        str(query.rank),
        "related" if query.relation else "",
        "not" if query.without else "",
        query.side or "",
    ]
    return f"{frame} | {' '.join(item for item in shape if item)}"


def phrase(query: Query, style: Style) -> str:
    """The words of a query in a style, lower case, without a final stop."""
    if style.plain:
        return _easy_text(query, style)
    if style.telegraphic:
        return _short_text(query, style)
    frame = _frame(query, style)
    if query.part is not None:
        part = _part_words(query, style)
        many = _part_is_plural(query) and query.side is None
        belong, are = ("belong", "are") if many else ("belongs", "is")
        return frame.format(p=f"the {part}", bare=part, owner=_things(query, style), belong=belong, are=are)
    if query.also is not None:
        return frame.format(a=_things(query, style), b=_things(query.also, style))
    if "{x}" in frame:
        return frame.format(x=f"the {noun_phrase(query, style, query.number != 1)}")
    return frame.format(xs=noun_phrase(query, style, True), one=noun_phrase(query, style, False))


def fits(text: str, style: Style) -> bool:
    """Whether the length of a text is allowed: 4-14 words, 2-14 if it is telegraphic or easy."""
    count = len(text.split())
    return (2 if style.plain or style.telegraphic else WORDS[0]) <= count <= WORDS[1]


def has_new_words(query: Query, style: Style) -> bool:
    """Whether a word of the query has a held-out synonym in this style."""
    return phrase(query, style) != phrase(query, replace(style, new_words=False))


def fitting_style(query: Query, style: Style) -> Style | None:
    """The style, changed so that its text has an allowed length and, in `paraphrase`, is new to training.

    The frame is the first from the style's own on that fits; None if there is none.
    """
    if style.new_words and not has_new_words(query, style):
        style = replace(style, new_frame=True)
    for step in range(len(_frames(query, style)) + 1):
        candidate = replace(style, frame=style.frame + step)
        if fits(phrase(query, candidate), candidate):
            return candidate
    return None


def negative_phrase(query: Query, positive: Query, style: Style) -> str | None:
    """The words of a negative in the template of its positive; None where they do not fit.

    In `paraphrase` a negative is as new to training as its positive.
    """
    text = phrase(query, style)
    if template_of(query, style) != template_of(positive, style) or not fits(text, style):
        return None
    must_be_new = style.new_words and not style.new_frame
    return text if not must_be_new or has_new_words(query, style) else None


def misspell(text: str, rng: np.random.Generator) -> str:
    """The text with a typo in a word of at least five letters: two swapped, one missing, or one doubled."""
    parts = text.split(" ")
    long_ones = [number for number, word in enumerate(parts) if len(word) >= 5 and word.isalpha()]
    if not long_ones:
        return text
    number = long_ones[int(rng.random() * len(long_ones))]
    word = parts[number]
    at = 1 + int(rng.random() * (len(word) - 3))
    slip = int(rng.random() * 3)
    if slip == 0:
        word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    elif slip == 1:
        word = word[:at] + word[at + 1 :]
    else:
        word = word[: at + 1] + word[at] + word[at + 1 :]
    parts[number] = word
    return " ".join(parts)
