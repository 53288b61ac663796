"""What a reader of answers has to say: what does not fit, and what it takes for granted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

_SHOWN_PROBLEMS = 8


@dataclass(slots=True)
class Problems:
    """What does not fit in a predictions file: how many problems of each kind, the first few in words.

    `assumed` counts the answers that were read under an assumption that the file itself does not state, by the
    assumption in words. `unanswered` has the reason why a model could not be asked, by expression id: no problem of
    the file.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)
    entries: int = 0
    assumed: Counter[str] = field(default_factory=Counter)
    unanswered: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, text: str, count: int = 1) -> None:
        """Note one problem that stands for `count` expressions or lines."""
        self.kinds[kind] += count
        self.entries += 1
        if len(self.first) < _SHOWN_PROBLEMS:
            self.first.append(text)

    def add_missing(self, missing: Iterable[str], total: int) -> None:
        """Note the expressions without an answer, if any; those in `unanswered` are none of them."""
        missing = [name for name in missing if name not in self.unanswered]
        if missing:
            first = next(iter(missing))
            text = f"{len(missing)} of {total} expressions missing, first {first[:100]!r}"
            self.add("missing", text, len(missing))

    def assumptions(self) -> list[str]:
        """One sentence for each assumption, with the number of answers that it concerns."""
        return [f"{text} (answers: {count:,})" for text, count in self.assumed.items()]

    def __bool__(self) -> bool:
        return self.entries > 0

    def __str__(self) -> str:
        more = f"; and {self.entries - len(self.first)} more" if self.entries > len(self.first) else ""
        counts = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        return f"{'; '.join(self.first)}{more} (in all: {counts})"
