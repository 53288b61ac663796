"""`python -m uniresxx` and the `uniresxx` console script."""

from __future__ import annotations

import sys

from uniresxx.cli import main

if __name__ == "__main__":
    sys.exit(main())
