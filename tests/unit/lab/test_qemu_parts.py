"""The console, the accelerator probe and the cache, without a device."""

from __future__ import annotations

import io
import re
import threading
from pathlib import Path

import pytest

from twinlock.core.errors import TwinlockError
from twinlock.lab.qemu import accel
from twinlock.lab.qemu.cache import cache_folder, cached
from twinlock.lab.qemu.console import Console, plain


class Feed(io.RawIOBase):
    """A console that prints when it is told to."""

    def __init__(self) -> None:
        self._data: list[bytes] = []
        self._ready = threading.Condition()

    def say(self, data: bytes) -> None:
        with self._ready:
            self._data.append(data)
            self._ready.notify_all()

    def read1(self, size: int) -> bytes:
        with self._ready:
            self._ready.wait_for(lambda: bool(self._data))
            return self._data.pop(0)


def test_control_sequences_are_left_out() -> None:
    assert plain("\x1b[2J\x1b[01;01Hab\n\r\x1b[=3hc\x00d") == "ab\ncd"


def test_a_mark_is_found_although_it_comes_in_pieces(tmp_path: Path) -> None:
    feed = Feed()
    console = Console(feed, tmp_path / "log")  # type: ignore[arg-type]
    for piece in (b"x ma", b"rk 7", b" y"):
        feed.say(piece)
    match = console.wait(re.compile(r"mark (\d) y"), 0, lambda: False)
    assert match is not None
    assert match[1] == "7"
    feed.say(b"")
    console.join()
    assert (tmp_path / "log").read_bytes() == b"x mark 7 y"


def test_a_wait_ends_with_the_console_or_when_told_to(tmp_path: Path) -> None:
    feed = Feed()
    console = Console(feed, tmp_path / "log")  # type: ignore[arg-type]
    feed.say(b"one")
    assert console.wait(re.compile("two"), 0, lambda: True) is None
    feed.say(b"")
    assert console.wait(re.compile("two"), 0, lambda: False) is None
    assert console.ended
    assert console.wait(re.compile("one"), 0, lambda: False) is not None
    assert console.wait(re.compile("one"), console.position(), lambda: False) is None


def test_the_probe_runs_to_its_end_under_emulation() -> None:
    assert accel.probe("tcg")


@pytest.mark.parametrize(("wanted", "expected"), [("tcg", "tcg"), ("kvm", "kvm")])
def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch, wanted: str, expected: str) -> None:
    monkeypatch.setenv(accel.ENVIRONMENT, wanted)
    assert accel.accelerator("x86-64") == expected


def test_another_word_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(accel.ENVIRONMENT, "hvf")
    with pytest.raises(TwinlockError) as caught:
        accel.accelerator("x86-64")
    assert caught.value.code == "input-invalid"


def test_arm_guests_are_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(accel.ENVIRONMENT, raising=False)
    assert accel.accelerator("arm64") == "tcg"


def test_a_cache_entry_is_made_once_and_appears_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TWINLOCK_CACHE", str(tmp_path / "cache"))
    made = []

    def make(out: Path) -> None:
        made.append(out.name)
        out.write_bytes(b"half")
        if len(made) == 1:
            raise OSError(28, "No space left on device")

    with pytest.raises(TwinlockError) as caught:
        cached("thing", "recipe", ".bin", make)
    assert caught.value.code == "disk-full"
    first = cached("thing", "recipe", ".bin", make)
    assert cached("thing", "recipe", ".bin", make) == first
    assert len(made) == 2
    assert first.parent == cache_folder()
    assert cached("thing", "another recipe", ".bin", make) != first
