"""Protocols: how one answer to one expression is judged. Every entry of metrics.json names its protocol.

`strict` is ours. The others repeat what public code counts, quirks included, given binary masks at the photo's
size (docs/eval.md lists what those cannot carry). To add a protocol, add a `Protocol` value to PROTOCOLS.
"""

from __future__ import annotations

from uniresxx.errors import InputError
from uniresxx.scoring.protocols.base import Protocol, has_target
from uniresxx.scoring.protocols.cris import CRIS, CRIS_VALIDATE
from uniresxx.scoring.protocols.gsva import GSVA
from uniresxx.scoring.protocols.lisa import LISA, LISA_BINARISED
from uniresxx.scoring.protocols.rela import EMPTY_IS_NONE, RELA, RELA_480
from uniresxx.scoring.protocols.strict import STRICT

__all__ = ["PROTOCOLS", "STRICT", "Protocol", "has_target", "protocol_of"]

PROTOCOLS = (STRICT, RELA, RELA_480, GSVA, LISA, LISA_BINARISED, CRIS, CRIS_VALIDATE, EMPTY_IS_NONE)


def protocol_of(name: str) -> Protocol:
    """The protocol of that name. InputError lists the known ones."""
    for protocol in PROTOCOLS:
        if protocol.name == name:
            return protocol
    raise InputError(f"unknown protocol {name!r}; known: {', '.join(p.name for p in PROTOCOLS)}")
