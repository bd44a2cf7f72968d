"""What `status` and the display show, healthy and damaged."""

from __future__ import annotations

import io
import json
from pathlib import Path

import msgspec
import pytest

from tests.unit.agent.fakes import FakeClock, MemoryStore, image_of, job_for, pack
from tests.unit.agent.test_processes import device
from twinlock.agent import journal, memory
from twinlock.agent.display import AgentDisplay, Shown
from twinlock.agent.main import main
from twinlock.agent.outbox import Outbox
from twinlock.agent.run import LastRun
from twinlock.agent.states import Phase, State
from twinlock.agent.store import FolderStore
from twinlock.core import bootrecord
from twinlock.core.bootrecord import BootRecord
from twinlock.core.protocol import Report

JOB = job_for(pack(image_of("a")))


def status(config: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    code = main(["--config", str(config), "status", *options])
    out, err = capsys.readouterr()
    assert err == ""
    return code, out


def test_a_new_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = status(device(tmp_path), capsys)
    assert code == 0
    assert "not enrolled yet (board, demo)" in out
    assert "slot a      an unknown release (running, committed)" in out
    assert "slot b      nothing bootable" in out
    assert "agent       idle" in out


def test_a_device_at_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = device(tmp_path)
    store = FolderStore(tmp_path / "state")
    memory.note_committed(store, BootRecord(seq=1, default="a"), msgspec.structs.replace(JOB, slot="a"))
    store.write(memory.CARD_FILE, msgspec.json.encode(memory.Card(device_id="d-1", fingerprint="ff" * 32)))
    journal.save(store, State(phase=Phase.INSTALLING, job=JOB))
    store.write("progress.json", msgspec.json.encode(Shown("fetch", 25, 100, 0.0)))
    store.write("last.json", msgspec.json.encode(LastRun(0.0, 3, "installing", "connection-lost", "cut")))
    Outbox(store).add(Report(device_id="", seq=0, nonce="n", state="failed"))
    armed = bootrecord.arm(BootRecord(seq=1, default="a"), "b", 2, "t")
    (tmp_path / "record").write_bytes(bootrecord.encode(armed) * 16)
    code, out = status(config, capsys)
    assert code == 0
    for line in (
        "device      d-1 (board, demo)",
        f"key         {'ff' * 32}",
        "slot a      demo 1.1 (running, committed)",
        "slot b      an unknown release (on trial, 2 tries left)",
        "agent       installing: demo 1.1, fetch 25%",
        "reports     1 wait for the server",
        "last run    cut [connection-lost]",
    ):
        assert line in out, out
    code, out = status(config, capsys, "--json")
    said = json.loads(out)
    assert (said["version"], said["phase"], said["tries_left"]) == (1, "installing", 2)
    assert said["slots"][1]["on_trial"] is True
    assert said["device"]["fingerprint"] == "ff" * 32


def test_what_cannot_be_read_is_named_instead(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = device(tmp_path)
    (tmp_path / "record").write_bytes(bytes(8192))
    (tmp_path / "booted.json").unlink()
    (tmp_path / "state/journal.json").write_bytes(b"x")
    code, out = status(config, capsys)
    assert code == 6
    assert "problem     no copy of the boot record is valid [boot-record]" in out
    assert "[boot-control]" in out
    assert "[journal-corrupt]" in out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_and_a_file_for_programs() -> None:
    store, clock, stream = MemoryStore(), FakeClock(), Terminal()
    display = AgentDisplay(store, clock, stream)
    for done in range(11):
        display.progress("fetch", done * 10, 100)
        clock.passed_s += 0.25
    display.note("ready\x1b[2J")
    text = stream.getvalue()
    assert text.count("\r") == 4
    assert "[###############...............]  50%" not in text.replace("\r", "\n").splitlines()[0]
    assert text.endswith("100%\ntwinlock-agent: ready [2J\n")
    assert json.loads(store.files["progress.json"])["done_bytes"] == 100
    assert store.writes == 4


def test_no_bar_elsewhere_and_a_full_disk_is_no_matter() -> None:
    stream = io.StringIO()
    display = AgentDisplay(MemoryStore(full=True), FakeClock(), stream)
    display.progress("verify", 0, 0)
    display.progress("verify", 5, 10)
    assert stream.getvalue() == ""
