"""What a trial or a panic left behind: kept by whoever sees it first, once, within bounds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.unit.agent.fakes import (
    Device,
    MemoryBoot,
    config_for,
    hook,
    image_of,
    memory_slots,
    pack,
    plan_for,
)
from twinlock.agent import aftermath, evidence, journal
from twinlock.agent.clock import SystemClock
from twinlock.agent.outbox import Outbox
from twinlock.agent.plan import CheckAnswer
from twinlock.agent.run import run_once
from twinlock.agent.states import Phase, State
from twinlock.agent.system import LastEnd, Unmanaged
from twinlock.core import bootrecord, limits
from twinlock.core.bootrecord import BootRecord
from twinlock.core.errors import error
from twinlock.core.protocol import Evidence
from twinlock.core.zstd import ZstdDecompressor

PACKED = pack(image_of("a"))
PLAN = plan_for(PACKED)
JOB = PLAN.job


def text_of(piece: Evidence) -> str:
    return ZstdDecompressor().decompress(piece.data).decode()


def pieces(device: Device) -> list[tuple[str, str, str]]:
    return [(one.kind, one.version, text_of(one)) for _, one in evidence.waiting(device.store)]


def with_trial(*, booted: str, tries_left: int = 3, phase: Phase = Phase.ARMED) -> Device:
    armed = bootrecord.arm(BootRecord(seq=1, default="a"), "b", 3, JOB.trial_id)
    record = BootRecord(seq=armed.seq, default="a", trying="b", tries_left=tries_left, trial_id=JOB.trial_id)
    device = Device(
        boot=MemoryBoot(record=record, slot=booted),
        slots=memory_slots(b"", PACKED.image, size_bytes=4 << 20),
    )
    device.network.serve(PACKED)
    device.plan(PLAN)
    state = State(phase=phase, job=JOB, record=record, booted="a", boot_id="old", armed_boot_id="old")
    journal.save(device.store, state)
    return device


def test_a_trial_that_fails_its_gate_keeps_its_own_journal() -> None:
    device = with_trial(booted="b")
    device.hooks.required = [hook("10-app", 1, "no")]
    device.system.journals = {False: "app: cannot open /dev/x", True: "another boot"}
    assert run_once(device.ports, config_for()) == 10
    assert pieces(device) == [("journal", "1.1", "app: cannot open /dev/x")]
    device.boot.slot = "a"
    assert run_once(device.ports, config_for()) == 0
    assert len(pieces(device)) == 1, "the old slot does not keep it again"


def test_a_trial_that_passes_keeps_nothing() -> None:
    device = with_trial(booted="b")
    device.system.journals = {False: "all well", True: "x"}
    assert run_once(device.ports, config_for()) == 0
    assert pieces(device) == []


@pytest.mark.parametrize(
    ("phase", "ended", "said"),
    [
        (Phase.ARMED, "", "slot b never came up"),
        (Phase.TRIAL, "", "slot b came up but did not get as far as a verdict"),
        (Phase.ARMED, "panic", "slot b never came up: the kernel panicked"),
        (Phase.TRIAL, "watchdog", "as a verdict: it hung, and the watchdog reset the device"),
        (Phase.TRIAL, "cut", "as a verdict: its journal ends without a shutdown"),
    ],
)
def test_a_trial_without_a_verdict_says_how_it_ended_and_leaves_its_journal(
    phase: Phase, ended: LastEnd, said: str
) -> None:
    device = with_trial(booted="a", tries_left=0, phase=phase)
    device.system.ended = ended
    device.system.journals = {True: "the last words of the trial"}
    device.system.words = {"sys/fs/pstore/dmesg-efi-1": "Kernel panic"} if ended == "panic" else {}
    assert run_once(device.ports, config_for()) == 0
    (told,) = [one for one in Outbox(device.store).waiting() if one.state == "rolled_back"]
    assert (told.code, said in told.detail) == ("trial-exhausted", True), told.detail
    wanted = [("pstore", "1.1", "sys/fs/pstore/dmesg-efi-1:\nKernel panic")] if ended == "panic" else []
    assert sorted(pieces(device)) == sorted([("journal", "1.1", "the last words of the trial"), *wanted])
    assert device.system.words == {}


def test_a_panic_outside_of_a_trial_is_kept_too() -> None:
    device = Device(boot=MemoryBoot())
    device.system.words = {"dmesg-1": "Oops", "dmesg-2": "Kernel panic"}
    device.system.journals = {True: "x"}
    run_once(device.ports, config_for())
    assert [one[:2] for one in pieces(device)] == [("pstore", ""), ("pstore", "")]
    assert device.system.words == {}


def test_the_kernels_words_stay_where_they_are_until_they_are_kept() -> None:
    device = Device(boot=MemoryBoot())
    device.system.words = {"dmesg-1": "Kernel panic"}

    def full(name: str) -> None:
        if name.startswith("evidence/"):
            raise error("disk-full", "no space")

    device.store.before = full
    assert run_once(device.ports, config_for()) == 0
    assert device.system.words == {"dmesg-1": "Kernel panic"}
    assert any("is not kept" in note for note in device.display.notes)


def test_evidence_is_bounded_in_number_and_size() -> None:
    device = Device()
    for number in range(evidence.WAITING_MAX + 3):
        assert evidence.keep(device.ports, "pstore", f"piece {number}", None)
        device.clock.sleep(1)
    assert [text for _, _, text in pieces(device)] == [
        f"piece {number}" for number in range(3, evidence.WAITING_MAX + 3)
    ]
    noise = random.Random(1).randbytes(4 * limits.EVIDENCE_TEXT_SIZE_BYTES_MAX).hex()
    frame = evidence.packed(noise)
    assert len(frame) <= limits.EVIDENCE_SIZE_BYTES_MAX
    assert noise.endswith(ZstdDecompressor().decompress(frame).decode())
    assert not evidence.keep(device.ports, "journal", " \n", None)


def test_a_damaged_piece_is_removed() -> None:
    device = Device()
    evidence.keep(device.ports, "pstore", "x", JOB)
    device.store.write("evidence/0-broken.json", b"{")
    assert len(evidence.waiting(device.store)) == 1
    assert len(device.store.names("evidence")) == 1


# --- what Linux leaves behind


def put(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def journalctl(folder: Path, text: str, exit_code: int = 0) -> str:
    program = put(
        folder,
        "journalctl",
        f"#!/bin/sh\necho \"$*\" >>{folder}/asked\ncat <<'X'\n{text}\nX\nexit {exit_code}\n",
    )
    program.chmod(0o755)
    return str(program)


def test_the_kernels_words_are_found_in_both_places(tmp_path: Path) -> None:
    assert aftermath.panics(tmp_path) == {}
    mine = put(tmp_path, "sys/fs/pstore/dmesg-ramoops-0", "Panic#1 Part1\nx")
    put(tmp_path, "sys/fs/pstore/console-ramoops-0", "every boot leaves this")
    put(tmp_path, "var/lib/systemd/pstore/1800/dmesg.txt", "old")
    found = aftermath.panics(tmp_path)
    assert sorted(found) == ["sys/fs/pstore/dmesg-ramoops-0", "var/lib/systemd/pstore/1800/dmesg.txt"]
    aftermath.forget(tmp_path, "sys/fs/pstore/dmesg-ramoops-0")
    aftermath.forget(tmp_path, "sys/fs/pstore/dmesg-ramoops-0")
    assert not mine.exists()
    for number in range(aftermath.PANICS_MAX + 5):
        put(tmp_path, f"sys/fs/pstore/dmesg-efi-{number:02}", "x" * (aftermath.PANIC_SIZE_BYTES_MAX + 9))
    found = aftermath.panics(tmp_path)
    assert len(found) == aftermath.PANICS_MAX
    assert max(map(len, found.values())) == aftermath.PANIC_SIZE_BYTES_MAX


def test_how_the_last_boot_ended(tmp_path: Path) -> None:
    clock = SystemClock()
    well = journalctl(tmp_path / "well", "x systemd-journald[1]: Journal stopped")
    cut = journalctl(tmp_path / "cut", "x app[7]: working")
    none = journalctl(tmp_path / "none", "", exit_code=1)
    assert aftermath.last_end(tmp_path, well, clock) == ""
    assert aftermath.last_end(tmp_path, none, clock) == ""
    assert aftermath.last_end(tmp_path, str(tmp_path / "nothing"), clock) == ""
    assert aftermath.last_end(tmp_path, cut, clock) == "cut"
    put(tmp_path, "sys/class/watchdog/watchdog0/bootstatus", "rubbish")
    put(tmp_path, "sys/class/watchdog/watchdog1/bootstatus", "0")
    assert aftermath.last_end(tmp_path, cut, clock) == "cut"
    put(tmp_path, "sys/class/watchdog/watchdog2/bootstatus", "32")
    assert aftermath.last_end(tmp_path, well, clock) == "watchdog"
    put(tmp_path, "sys/fs/pstore/dmesg-efi-1", "Oops")
    assert aftermath.last_end(tmp_path, well, clock) == "watchdog"
    put(tmp_path, "sys/fs/pstore/dmesg-efi-2", "Kernel panic - not syncing")
    assert aftermath.last_end(tmp_path, well, clock) == "panic"


def test_the_journal_has_errors_first_and_is_bounded(tmp_path: Path) -> None:
    clock = SystemClock()
    found = aftermath.journal(journalctl(tmp_path, "line"), clock, last=True)
    assert found == "Errors:\nline\n\nLast entries:\nline\n"
    asked = (tmp_path / "asked").read_text().splitlines()
    assert all("--boot=-1" in line for line in asked)
    assert "--priority=err" in asked[1]
    assert aftermath.journal(journalctl(tmp_path / "b", "", 1), clock, last=False) == ""


def test_nothing_is_known_without_a_system() -> None:
    nothing = Unmanaged()
    nothing.forget("x")
    assert (nothing.last_end(), nothing.journal(last=True), nothing.panics()) == ("", "", {})


def test_an_unknown_trial_has_no_evidence_of_its_own() -> None:
    device = with_trial(booted="a", tries_left=0)
    device.store.remove(journal.JOURNAL)
    device.store.remove("plan.json")
    device.system.journals = {True: "whose?"}
    device.checker.answers = [CheckAnswer()] * 3
    run_once(device.ports, config_for())
    assert pieces(device) == []
