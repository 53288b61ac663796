"""Errors of wrong input: programs print their line and exit with 2."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave is wrong; the message says what, where, and what to do."""


class NotThereError(InputError):
    """The files or the split asked for are not among the data; other splits may be."""


class MissingPhotoError(InputError):
    """A photo is not where the data says; programs add the option that says where it lies."""
