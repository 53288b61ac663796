"""Text files in UTF-8, with or without a byte order mark, with any line ends."""

from __future__ import annotations

import re
from pathlib import Path

from uniresxx.data.readers.files import MAX_JSON_BYTES, note_opened
from uniresxx.errors import InputError


def read_text(path: Path) -> str:
    """The text of a file, which is noted as read; InputError where it cannot be read or is no UTF-8."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    note_opened(path)
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{path}: is over the cap of {MAX_JSON_BYTES} bytes for an annotation file")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 text (byte {error.start}); save it as UTF-8") from None


def lines_of(text: str) -> list[str]:
    """The lines of a text; only line ends end one, not the other separators that `splitlines` knows."""
    return re.split(r"\r\n|\n|\r", text)
