"""Commands of the documentation, taken from its pages and run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.project_files import ROOT

WAIT_S = 300
_BLOCK = re.compile(r"(?:^    .*\n(?:\n(?=    ))?)+", re.MULTILINE)


def sections(page: str) -> dict[str, list[str]]:
    """The code blocks of `docs/PAGE`, by the heading that they stand under."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^(?=#)", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.MULTILINE):
        title, _, text = part.partition("\n")
        blocks = [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in _BLOCK.findall(text)]
        if title:
            found[title.lstrip("# ")] = blocks
    return found


def blocks(page: str) -> list[str]:
    """All code blocks of the page, in order."""
    return [block for found in sections(page).values() for block in found]


def replaced(text: str, words: Mapping[str, str]) -> str:
    """The text with what stands for something of the reader's own replaced; each word has to be there."""
    for word, by in words.items():
        assert word in text, f"the page no longer says {word!r}"
        text = text.replace(word, by)
    return text


def shell(
    script: str, folder: Path, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The script run in `folder` by a shell that ends at the first failure; asserts that there was none."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("TWINLOCK_")}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"set -eu\n{script}"],
        cwd=folder,
        env=env | dict(variables or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    return done
