"""The state folder: names, modes, full disks; the lock; the slots of a disk file."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.agent.fakes import FakeClock
from twinlock.agent import lock
from twinlock.agent.clock import SystemClock, SystemRandom
from twinlock.agent.config import SlotConfig
from twinlock.agent.slots import ConfiguredSlots
from twinlock.agent.store import FolderStore
from twinlock.core.errors import TwinlockError


def test_files_and_folders_are_the_agents_alone(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "state")
    store.write("outbox/1.json", b"x")
    store.append("progress", b"a")
    store.append("progress", b"b")
    store.write_volatile("progress.json", b"{}")
    for name, mode in (("", 0o700), ("outbox", 0o700), ("outbox/1.json", 0o600), ("progress", 0o600)):
        assert stat.S_IMODE((tmp_path / "state" / name).stat().st_mode) == mode, name
    assert store.read("progress", 10) == b"ab"
    assert store.names("outbox") == ["1.json"]
    assert store.names("nothing") == []
    assert store.read("nothing", 10) is None
    store.remove("outbox/1.json")
    store.remove("outbox/1.json")
    assert store.names("outbox") == []


def test_an_unfinished_file_is_not_listed(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.write("outbox/1.json", b"x")
    (tmp_path / "outbox/2.json.tmp").write_bytes(b"half")
    assert store.names("outbox") == ["1.json"]


@pytest.mark.parametrize("name", ["../x", "a/../x", "a/b/c", "", "/etc/passwd", "a//b", ".", "x\0"])
def test_no_name_leaves_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(TwinlockError) as caught:
        FolderStore(tmp_path).write(name, b"")
    assert caught.value.code == "internal"


def test_a_file_that_grew_too_large_is_refused(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.write("x", b"12345")
    with pytest.raises(TwinlockError) as caught:
        store.read("x", 4)
    assert caught.value.code == "input-too-large"


FULL = """
import resource, signal, sys
from pathlib import Path
from twinlock.agent.store import FolderStore
from twinlock.core.errors import TwinlockError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
store = FolderStore(Path(sys.argv[1]))
for write in (store.write, store.append, store.write_volatile):
    try:
        write("x", b"n" * 1000)
    except TwinlockError as problem:
        print(problem.code)
"""


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    FolderStore(tmp_path).write("x", b"old")
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.split() == ["disk-full"] * 3, done.stderr
    assert (tmp_path / "x").read_bytes()[:3] == b"old"


def test_the_real_clock_and_randomness() -> None:
    clock, random = SystemClock(), SystemRandom()
    before = clock.monotonic_s()
    clock.sleep(0)
    assert clock.monotonic_s() >= before
    assert clock.now_s() > 1_700_000_000
    assert all(0 <= random.fraction() < 1 for _ in range(100))
    assert len({random.token() for _ in range(50)}) == 50
    assert len(random.token()) == 32


# --- the lock


def test_two_runs_exclude_each_other(tmp_path: Path) -> None:
    first = lock.take(tmp_path, FakeClock())
    clock = FakeClock()
    with pytest.raises(TwinlockError) as caught:
        lock.take(tmp_path, clock)
    assert caught.value.code == "agent-busy"
    assert clock.passed_s >= lock.WAIT_S
    os.close(first)
    os.close(lock.take(tmp_path, FakeClock()))


def test_a_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from twinlock.agent import lock, clock\n"
        "lock.take(Path(sys.argv[1]), clock.SystemClock()); print('held', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.readline() == b"held\n"
    with pytest.raises(TwinlockError):
        lock.take(tmp_path, FakeClock())
    child.kill()
    child.wait()
    child.stdin.close()
    child.stdout.close()
    os.close(lock.take(tmp_path, FakeClock()))


# --- the slots


def slots(tmp_path: Path, **given: object) -> ConfiguredSlots:
    path = tmp_path / "disk"
    if not path.exists():
        path.write_bytes(bytes(range(256)) * 64)
    where = SlotConfig(path=path, **given)  # type: ignore[arg-type]
    return ConfiguredSlots({"a": where, "b": SlotConfig(path=tmp_path / "gone")})


def test_a_slot_is_a_range_of_a_file(tmp_path: Path) -> None:
    known = slots(tmp_path, offset_bytes=512, size_bytes=1024)
    device = known.open("a")
    assert device.size_bytes == known.size_bytes("a") == 1024
    buffer = memoryview(bytearray(10))
    device.read_into(buffer, 0)
    assert bytes(buffer) == bytes(range(10))
    device.write(b"hello", 1019)
    device.sync()
    device.drop_cache()
    device.close()
    data = (tmp_path / "disk").read_bytes()
    assert data[512 + 1019 : 512 + 1024] == b"hello"
    assert data[:512] + data[1536:] == (bytes(range(256)) * 64)[:512] + (bytes(range(256)) * 64)[1536:]


def test_nothing_outside_the_slot_is_reached(tmp_path: Path) -> None:
    device = slots(tmp_path, offset_bytes=512, size_bytes=1024).open("a")
    acts: tuple[Callable[[], None], ...] = (
        lambda: device.write(b"x" * 6, 1019),
        lambda: device.write(b"x", -1),
        lambda: device.read_into(memoryview(bytearray(2)), 1023),
    )
    for act in acts:
        with pytest.raises(TwinlockError) as caught:
            act()
        assert caught.value.code == "internal"
    device.close()


@pytest.mark.parametrize(
    ("given", "slot"),
    [
        ({"offset_bytes": 512, "size_bytes": 1 << 20}, "a"),
        ({"offset_bytes": 1 << 20}, "a"),
        ({}, "b"),
        ({}, "c"),
    ],
)
def test_a_slot_that_is_not_there_is_unusable(tmp_path: Path, given: dict[str, int], slot: str) -> None:
    with pytest.raises(TwinlockError) as caught:
        slots(tmp_path, **given).open(slot)
    assert caught.value.code == "slot-unusable"


def test_a_folder_or_pipe_is_no_slot(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(TwinlockError) as caught:
            ConfiguredSlots({"a": SlotConfig(path=path)}).open("a")
        assert caught.value.code in ("slot-unusable", "permission-denied")


def test_a_block_device_is_opened_exclusively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel refuses O_EXCL on a block device that is mounted (open(2))."""
    real, asked = os.open, []

    def mounted(path: Path, flags: int, mode: int = 0o777) -> int:
        asked.append(flags)
        if flags & os.O_EXCL:
            raise OSError(errno.EBUSY, "Device or resource busy")
        return real(path, flags, mode)

    known = slots(tmp_path)
    monkeypatch.setattr(stat, "S_ISBLK", lambda mode: True)
    monkeypatch.setattr(os, "open", mounted)
    with pytest.raises(TwinlockError) as caught:
        known.open("a")
    assert caught.value.code == "slot-busy"
    assert known.size_bytes("a") == 16384, "to look at its size is no use of it"


def test_a_file_cut_short_under_our_hands_is_an_io_error(tmp_path: Path) -> None:
    device = slots(tmp_path).open("a")
    os.truncate(tmp_path / "disk", 100)
    with pytest.raises(TwinlockError) as caught:
        device.read_into(memoryview(bytearray(512)), 0)
    assert caught.value.code == "io-error"
    device.close()
