"""Text files in UTF-8, with or without a byte order mark, with any line ends."""

from __future__ import annotations

import re
from pathlib import Path

from uniresxx.data.readers.files import read_bytes
from uniresxx.errors import InputError


def read_text(path: Path) -> str:
    """The text of a file, which is noted as read; InputError where it cannot be read or is no UTF-8."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 text (byte {error.start}); save it as UTF-8") from None


def lines_of(text: str) -> list[str]:
    """The lines of a text; only line ends end one, not the other separators that `splitlines` knows."""
    return re.split(r"\r\n|\n|\r", text)
