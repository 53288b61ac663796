"""Rows about conversations: what an entry of metrics.json says of chats, lists of phrases and plain answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

HEADER = ("conversations", "N", "%", "compare")


def talk_rows(entry: Mapping[str, Any]) -> list[list[str]]:
    """What was asked, how many questions, the share right (follow-ups: mIoU), and what to compare it with."""
    return [*_dialogue_rows(entry.get("dialogues") or {}), *_chat_rows(entry.get("chats") or {})]


def _dialogue_rows(found: Mapping[str, Any]) -> Iterator[list[str]]:
    follow = found.get("follow_up")
    if follow and follow["n"]:
        beside = f"N-acc {_number(follow['N-acc'])} (N {follow['n_none']}), T-acc {_number(follow['T-acc'])}"
        yield ["follow-ups that point back, mIoU", str(follow["n_target"]), _number(follow["mIoU"]), beside]
    several = found.get("several_phrases")
    if several and several["n"]:
        beside = f"each phrase {_number(several['each_phrase']['right'])}"
        yield _row("several phrases at once, all right", several, beside)
        for count, share in several["by_number"].items():
            yield _row(f"  {count} phrases", share)
    for sort, share in (found.get("plain") or {}).items():
        yield _row(sort.replace("_", " or "), share, f"chance {_number(share['chance'])}")
        if sort == "counting":
            for number, part in share["by_answer"].items():
                yield _row(f"  {number}", part)


def _chat_rows(found: Mapping[str, Any]) -> Iterator[list[str]]:
    if found:
        turns = f"turns {found['turns']} of {found['n_pictures']} chats"
        yield _row(
            f"{turns}, right", found["chat"], f"the same asked fresh {_number(found['fresh']['right'])}"
        )
        yield _row("  with all earlier turns", found["full_history"])


def _row(name: str, share: Mapping[str, Any], beside: str = "") -> list[str]:
    return [name, str(share["n"]), _number(share["right"]), beside]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
