"""A builder's folder as it is in the middle of a working day, for tests of commands.

keys/           one key for each role            image         an image of 1 MiB
repo/           demo 1.0 signed and published    demo-1.0/     its release folder
demo-1.1/       packed, not signed yet           token         an operator's token
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.unit.cli.operator_server import TOKEN
from tests.unit.publish.tools import image_bytes
from twinlock.cli.main import main
from twinlock.core.limits import MIB

PACK = ["--product", "demo", "--hardware", "demo-board", "--level", "1", "--jobs", "1"]


def run(*args: str) -> None:
    code = main(args)
    assert code == 0, f"twinlock {' '.join(args)} ended with {code}"


def build(folder: Path) -> None:
    """Makes the world in `folder`, by the commands themselves; needs the working directory to be there."""
    (folder / "image").write_bytes(image_bytes(random.Random(1), MIB))
    (folder / "token").write_text(TOKEN)
    run("keys", "create")
    run("keys", "init")
    run("release", "pack", "image", "--version", "1.0", "--counter", "3", *PACK)
    run("release", "sign", "demo-1.0")
    (folder / "image").write_bytes(image_bytes(random.Random(2), MIB))
    run("release", "pack", "image", "--version", "1.1", "--counter", "3", *PACK)


class Worlds:
    """Copies of one world, which is built once."""

    def __init__(self, folder: Path) -> None:
        self._base = folder / "world"

    def enter(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A fresh copy in `folder`, which becomes the working directory."""
        if not self._base.exists():
            self._base.mkdir()
            monkeypatch.chdir(self._base)
            build(self._base)
        shutil.copytree(self._base, folder / "world")
        monkeypatch.chdir(folder / "world")
        return folder / "world"
