"""What holds for every test: hypothesis asserts no wall-clock time, because machines are shared."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("shared machines", deadline=None)
settings.load_profile("shared machines")
