"""What Tab completes: commands and the paths of pictures. Pure, apart from reading folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from chat_demo.commands import SHOWN
from uniresxx.imaging.formats import SUFFIXES

_WITH_PATH = re.compile(r"^(?P<command>[:/](?:image|open|save) +)(?P<path>.*)$", re.IGNORECASE)


def completions(line: str) -> list[str]:
    """The lines that a half-typed one may become, in order; a folder ends with a separator."""
    found = _WITH_PATH.match(line)
    if found:
        return [found["command"] + path for path in _paths(found["path"])]
    commands = [
        mark + name for mark in ":/" for name in SHOWN if line and (mark + name).startswith(line.lower())
    ]
    return commands + list(_paths(line)) if line else [":" + name for name in SHOWN]


def _paths(typed: str) -> Iterator[str]:
    """The folders and pictures that a path may become, as it was typed: with its quote, `~` or `file://`."""
    opening = re.match(r"^(?:['\"]|file://)?", typed)
    before = opening.group() if opening else ""
    path = typed[len(before) :]
    folder, name = os.path.split(os.path.expanduser(path))
    shown = path[: len(path) - len(name)]
    try:
        entries = sorted(os.scandir(folder or "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        hidden = entry.name.startswith(".") and not name.startswith(".")
        if hidden or not entry.name.startswith(name):
            continue
        if entry.is_dir():
            yield before + shown + entry.name + os.sep
        elif entry.name.lower().endswith(SUFFIXES):
            yield before + shown + entry.name + (before if before in ("'", '"') else "")
