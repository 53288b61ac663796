"""What is left out of own data, counted and listed by reason."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

SHOWN = 10  # of each reason; all are in the store's metadata
MAX_STORED = 10_000


class Reason(StrEnum):
    """Why something is left out. Annotations are counted, of some also rows and refs; of MISSING_PHOTO, photos."""

    BOX_ONLY = "box_only"  # a box, and no outline
    NO_PIXELS = "no_pixels"  # no outline, or one that is unreadable or covers no pixel
    MISSING_PHOTO = "missing_photo"
    UNKNOWN_IMAGE = "unknown_image"  # of an image that its file does not have
    NO_SENTENCE = "no_sentence"  # neither text nor name
    UNKNOWN_ANNOTATION = "unknown_annotation"  # a ref of an annotation that no file has
    MISSING_MASK = "missing_mask"  # a row of a mask file that is not there
    OTHER_SIZE = "other_size"  # width and height are of neither frame of the photo
    UNREADABLE = "unreadable"


class LeftOut:
    """What was left out, in the order it was found; the same thing is counted once."""

    def __init__(self) -> None:
        self.items: dict[Reason, dict[str, str]] = {}

    def add(self, reason: Reason, what: str, why: str = "") -> None:
        """Note one annotation, row, ref or photo."""
        self.items.setdefault(reason, {}).setdefault(what, why)

    def counts(self) -> dict[str, int]:
        """Counts by reason, in the order of `Reason`."""
        return {str(reason): len(self.items[reason]) for reason in Reason if reason in self.items}

    def about(self) -> dict[str, Any]:
        """JSON for the store's metadata: the counts, and what it is (at most MAX_STORED lines)."""
        listed = [
            f"{reason}: {_line(what, why)}"
            for reason, found in self.items.items()
            for what, why in found.items()
        ]
        return {"counts": self.counts(), "listed": listed[:MAX_STORED]}

    def lines(self) -> list[str]:
        """Reason and count on one line, and below it the first of what it is."""
        lines = []
        for reason in (reason for reason in Reason if reason in self.items):
            found = self.items[reason]
            lines.append(line_of_count(reason, len(found)))
            lines += [f"  {_line(what, why)}" for what, why in list(found.items())[:SHOWN]]
            lines += [f"  and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        return lines


def lines_of_counts(counts: Mapping[str, int]) -> list[str]:
    """The stored counts, for people."""
    return [line_of_count(reason, count) for reason, count in counts.items()]


def line_of_count(reason: str, count: int) -> str:
    """One reason with its count."""
    return f"left out: {reason} {count}"


def _line(what: str, why: str) -> str:
    return f"{what}: {why}" if why else what
