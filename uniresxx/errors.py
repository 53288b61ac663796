"""Errors of wrong input: programs print their line and exit with 2."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave is wrong; the message says what, where, and what to do."""


class NotThereError(InputError):
    """The requested files or split are missing; other splits may be there."""


class BadAnnotationError(InputError):
    """One annotation can be no target; readers leave out what points at it, and go on."""


class MissingPhotoError(InputError):
    """A photo is missing at the path that the data names; programs add the option that names its folder."""
