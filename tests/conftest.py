"""What holds for every test: no wall-clock deadline, because machines are shared; signal handlers as they were."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

settings.register_profile("shared machines", deadline=None)
settings.load_profile("shared machines")


@pytest.fixture(autouse=True)
def handlers_as_they_were():
    """Programs called in this process set handlers that later tests, and what they fork, must not inherit."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
