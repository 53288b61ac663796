"""What holds for every test: the same examples every time, no deadline, signal handlers as they were.

Machines are shared, so nothing is judged by the clock. Property tests draw the same examples in every run: one that
fails, fails for everyone. Search further with `pytest --hypothesis-profile search`.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "search", deadline=None, derandomize=False, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("the same", settings.get_profile("search"), derandomize=True, database=None)
settings.load_profile("the same")


@pytest.fixture(autouse=True)
def handlers_as_they_were():
    """Programs called in this process set handlers that later tests, and what they fork, must not inherit."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


PEERS = Path(__file__).parent / "data" / "lisa"


def sentencepiece_model(**trainer: object) -> bytes:
    """A tokenizer.model with the recorded pieces; `trainer` changes its trainer_spec."""
    from transformers.convert_slow_tokenizer import import_protobuf

    proto = import_protobuf().ModelProto()
    for piece, score, kind in json.loads((PEERS / "pieces.json").read_text()):
        proto.pieces.add(piece=piece, score=score, type=kind)
    proto.normalizer_spec.name, proto.normalizer_spec.remove_extra_whitespaces = "identity", False
    for name, value in ({"model_type": 2, "byte_fallback": True} | trainer).items():
        setattr(proto.trainer_spec, name, value)
    return proto.SerializeToString()


@contextmanager
def pickles_in_this_process() -> Iterator[None]:
    """`uniresxx convert` without a process for each file: torch is imported once."""
    from uniresxx.checkpoints import convert, convert_child

    def run(command: list[str], **_: object) -> SimpleNamespace:
        answer = convert_child.converted(Path(command[-2]), Path(command[-1]))
        return SimpleNamespace(stdout=json.dumps(answer), stderr="", returncode=0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "subprocess", SimpleNamespace(run=run))
        yield


@pytest.fixture(scope="session")
def converting_here():
    """The context in which pickles are opened by this process."""
    return pickles_in_this_process


@pytest.fixture(scope="session")
def tokenizer_model():
    """What makes a tiny tokenizer.model."""
    return sentencepiece_model
