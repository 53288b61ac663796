"""`python -m tools.readme_terminal`: runs the commands of the README's first minutes and puts what they print there.

The commands run in a pseudo-terminal of 80 columns, as a person would see them, with the model of the package; the
text between the two marks in README.md is replaced. Exit codes: 0 written; 1 a command failed.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

from uniresxx.files import write_atomic

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- terminal: tools/readme_terminal.py -->\n", "<!-- end of terminal -->\n"
SEGMENT = [
    "uniresxx",
    "segment",
    "assets/scenes/01.png",
    "the red house",
    "the roof of the red house",
    "the dog",
]
CHAT = ["python", "-m", "chat_demo", "--terminal", "--no-pictures", "--image", "assets/scenes/01.png"]
SAID = ("the red house and all houses", "and its window?", "what colour is the hammer?", "the dog", ":quit")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")
PROMPT = "> "


def main() -> int:
    """Run both commands and write the README."""
    before, rest = README.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    with tempfile.TemporaryDirectory() as folder:
        found = captured([*SEGMENT, "--out", folder], ()).replace(folder, "runs/segment")
    shown = f"$ {spelt(SEGMENT)}\n{found}\n$ {spelt(CHAT)}\n{captured(CHAT, SAID)}"
    write_atomic(README, f"{before}{BEGIN}```text\n{shown.rstrip()}\n```\n{END}{after}".encode())
    print(shown)
    return 0


def spelt(words: list[str]) -> str:
    """A command as it is typed."""
    return " ".join(f'"{word}"' if " " in word else word for word in words)


def captured(command: list[str], lines: tuple[str, ...]) -> str:
    """What a terminal of 80 columns shows of a command to which `lines` are typed, each after the prompt."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (40, 80))
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NO_COLOR": "1",
    }
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, env=environment, close_fds=True
    )
    os.close(slave)
    shown, waiting = "", list(lines)
    try:
        while data := os.read(master, 4096):
            shown += _CONTROL.sub("", data.decode("utf-8", "replace"))
            if waiting and shown.endswith(PROMPT) and lines_of(shown)[-1] == PROMPT:
                os.write(master, waiting.pop(0).encode() + b"\n")
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(master)
    if process.wait():
        raise RuntimeError(f"{spelt(command)} ended with {process.returncode}:\n{shown}")
    return "\n".join(lines_of(shown))


def lines_of(printed: str) -> list[str]:
    """The lines that are left to see: what a carriage return takes back is written over."""
    return [line.rstrip("\r").rpartition("\r")[2] for line in printed.split("\n")]


if __name__ == "__main__":
    sys.exit(main())
