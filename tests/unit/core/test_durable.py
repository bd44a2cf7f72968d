"""Durable writes: what a failure or a power cut at each step leaves behind."""

from __future__ import annotations

import errno
import os
import resource
import threading
from pathlib import Path

import pytest

from twinlock.core import durable
from twinlock.core.errors import TwinlockError


class PowerCut(BaseException):
    """Ends the write as a power cut would: nothing after it runs but what the kernel had."""


@pytest.mark.parametrize("step", ["write", "fsync", "replace", "fsync-folder"])
def test_a_cut_at_each_step_leaves_the_old_or_the_new_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "state.json"
    durable.write_atomic(path, b"old")

    def cut(*_: object, **__: object) -> None:
        raise PowerCut

    if step == "write":
        monkeypatch.setattr(os, "write", cut)
    elif step == "fsync":
        monkeypatch.setattr(os, "fsync", cut)
    elif step == "replace":
        monkeypatch.setattr(Path, "replace", cut)
    else:
        monkeypatch.setattr(durable, "fsync_dir", cut)
    with pytest.raises(PowerCut):
        durable.write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == (b"new" if step == "fsync-folder" else b"old")
    durable.write_atomic(path, b"next")
    assert path.read_bytes() == b"next"
    assert sorted(tmp_path.iterdir()) == [path]


def test_data_is_flushed_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(fd: int) -> None:
        calls.append("fsync folder" if Path(f"/proc/self/fd/{fd}").resolve().is_dir() else "fsync file")
        real_fsync(fd)

    def replace(self: Path, target: Path) -> Path:
        calls.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    durable.write_atomic(tmp_path / "x", b"data", mode=0o600)
    assert calls == ["fsync file", "rename", "fsync folder"]
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_is_told_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "state"
    durable.write_atomic(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(TwinlockError) as problem, durable.os_errors("state"):
            durable.write_atomic(path, bytes(8192))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert problem.value.code == "disk-full"
    assert path.read_bytes() == b"old"


def test_a_link_in_the_temporary_files_place_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / "state.tmp").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        durable.write_atomic(tmp_path / "state", b"data")
    assert victim.read_bytes() == b"mine"


def test_bounded_reading_takes_the_bound_and_not_one_byte_more(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert durable.read_bounded(path, 5, "file") == b"12345"
    with pytest.raises(TwinlockError) as problem:
        durable.read_bounded(path, 4, "file")
    assert problem.value.code == "input-too-large"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "disk-full"),
        (errno.EDQUOT, "disk-full"),
        (errno.EACCES, "permission-denied"),
        (errno.EROFS, "permission-denied"),
        (errno.ENOENT, "input-missing"),
        (errno.EISDIR, "input-wrong-type"),
        (errno.EIO, "io-error"),
    ],
)
def test_every_system_error_has_its_code(number: int, code: str) -> None:
    problem = durable.os_error(OSError(number, os.strerror(number)), "the file")
    assert problem.code == code
    assert problem.what.startswith("the file: ")


def test_removing_twice_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"")
    durable.remove_durably(path)
    durable.remove_durably(path)
    assert not path.exists()


def test_a_pipe_is_read_only_where_a_program_may_hand_it_in(tmp_path: Path) -> None:
    """Nobody writes to it yet: opening it would wait for ever."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(TwinlockError) as caught:
        durable.read_bounded(path, 10, "key")
    assert caught.value.code == "input-wrong-type"
    writer = threading.Thread(target=path.write_bytes, args=(b"secret",))
    writer.start()
    try:
        assert durable.read_bounded(path, 10, "token file", pipes=True) == b"secret"
    finally:
        writer.join()
