"""The frame of a report page: one file, nothing loaded from anywhere, one script known by its hash."""

from __future__ import annotations

import base64
import re
from hashlib import sha256
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("report.css")


def page(title: str, body: str, styles: str = "", script: str = "") -> str:
    """The whole page. `styles` come after the common ones; `script` runs after the body, and only it may
    (Content-Security-Policy with its hash)."""
    allowed = f"; script-src '{hash_of(script)}'" if script else ""
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'{allowed}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(title)}</title><style>{common_style()}{styles}</style></head>"
        f"<body><main>{body}</main>{f'<script>{script}</script>' if script else ''}</body></html>\n"
    )


def common_style() -> str:
    """The style of all pages without its comments and line ends."""
    return re.sub(r"\s*\n\s*", "", re.sub(r"/\*.*?\*/", "", STYLE.read_text(encoding="utf-8"), flags=re.S))


def hash_of(script: str) -> str:
    """The source expression that allows exactly this inline script (Content Security Policy Level 2)."""
    return f"sha256-{base64.b64encode(sha256(script.encode()).digest()).decode()}"
