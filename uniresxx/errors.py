"""The one error class of wrong input: programs print its line and exit with 2."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave is wrong; the message says what, where, and what to do."""
