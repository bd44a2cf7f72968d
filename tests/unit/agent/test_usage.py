"""The memory that a process needed, as the kernel tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinlock.agent.usage import peak_bytes


def test_this_process_needed_some() -> None:
    held = bytes(32 << 20)
    assert peak_bytes() > len(held)


@pytest.mark.parametrize("text", ["", "Name: x\n", "VmHWM:\n", "VmHWM: many kB\n"])
def test_a_kernel_that_does_not_tell(tmp_path: Path, text: str) -> None:
    path = tmp_path / "status"
    path.write_text(text)
    assert peak_bytes(path) == 0
    assert peak_bytes(tmp_path / "none") == 0
