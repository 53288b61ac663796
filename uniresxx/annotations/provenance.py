"""What the files of an export say about the model."""

from __future__ import annotations

import os

from uniresxx.annotations.records import Provenance


def provenance_of(checkpoint: str | os.PathLike[str]) -> Provenance:
    """The record of a checkpoint, with the SHA-256 of its weights: of all shards, one after another.

    Args:
        checkpoint: a name of a model, as in `Predictor.from_pretrained`.

    Raises:
        InputError: there is nothing to load.
    """
    from uniresxx import __version__
    from uniresxx.checkpoints.resolve import find

    digest = find(checkpoint, log=lambda line: None).weights_sha256()
    return Provenance(model=os.fspath(checkpoint), weights_sha256=digest, version=__version__)
