"""The lock, and the folder that it is in: one agent at a time, and nobody else at all."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

import pytest

from twinlock.agent import lock
from twinlock.agent.clock import SystemClock
from twinlock.core.errors import TwinlockError


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o720])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(TwinlockError, match=f"mode {mode:o}") as caught:
        lock.take(folder, SystemClock(), 0)
    assert caught.value.code == "permission-denied"
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755])
def test_a_folder_that_others_may_read_is_the_doctors_business(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(mode)
    os.close(lock.take(folder, SystemClock(), 0))


def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    stranger = tmp_path.stat().st_uid + 1000
    if not tmp_path.stat().st_uid:  # root's own folder is fine for everybody: look at it as another's
        os.chown(tmp_path, stranger, -1)
        stranger = 0
    with patch("os.geteuid", return_value=stranger), pytest.raises(TwinlockError, match="owner"):
        lock.check_private(tmp_path)


def test_a_second_agent_is_told_to_wait(tmp_path: Path) -> None:
    with lock.held(tmp_path / "state", SystemClock()), pytest.raises(TwinlockError) as caught:
        lock.take(tmp_path / "state", SystemClock(), 0)
    assert caught.value.code == "agent-busy"
