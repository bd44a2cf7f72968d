"""Every crash state of an update: none is a violation, and each guard that is taken out makes some."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import pytest

from twinlock.agent import health, install, outbox, slots, store
from twinlock.agent.boot.beside import BesideBootControl
from twinlock.agent.boot.file import FileBootControl
from twinlock.agent.check import Check
from twinlock.agent.states import Verdict
from twinlock.core import durable, protocol
from twinlock.core.durable import write_all
from twinlock.core.errors import TwinlockError
from twinlock.lab.crash import kinds, loaders, recover, visit
from twinlock.lab.crash.beside import SlotKernels
from twinlock.lab.crash.choices import every
from twinlock.lab.crash.kernel import Kernel
from twinlock.lab.crash.machine import no_other_storage
from twinlock.lab.crash.visit import Enumeration, Result, Settings

STATES_MIN = 20_000
SEED = int(os.environ.get("TWINLOCK_SEED", "0"))


def enumerated(settings: Settings) -> Result:
    """The result of a whole run."""
    return Enumeration(settings).run(lambda total: lambda done: None)


def test_no_crash_state_of_any_loader_is_a_violation(tmp_path: Path) -> None:
    """As a user runs it."""
    command = [sys.executable, "-m", "twinlock.cli.main", "lab", "enumerate", "--json", "--seed", str(SEED)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    said = json.loads(done.stdout)
    counts = {name: sum(phases.values()) for name, phases in said["loaders"].items()}
    print(f"{said['states']} crash states, {said['boots']} boots: {counts}")
    assert said["violations"] == []
    assert said["states"] == sum(counts.values()) >= STATES_MIN
    assert list(counts) == list(kinds.LOADERS)
    for name, phases in said["loaders"].items():
        # the Raspberry Pi's firmware writes nothing when it boots
        idle = {phase for phase, count in phases.items() if count == 0}
        assert idle <= ({"boot"} if name == "tryboot" else set()), name
    assert 0 < said["crash_points_exhaustive"] < said["crash_points"]
    assert said["recoveries_run"] < said["states"]
    assert said["recoveries_checked"] >= len(kinds.LOADERS) * len(visit.KINDS)


@pytest.mark.long
def test_no_crash_state_is_a_violation_long() -> None:
    result = enumerated(Settings(seed=SEED, bound=512, again=24))
    assert result.violations == []


# --- guards taken out, one at a time ----------------------------------------------------------------------


def nothing(*args: object, **kwargs: object) -> None:
    """A guard that is gone."""


def write_unflushed(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """`durable.write_atomic` without the flush of the data."""
    system: Any = vars(durable)["os"]
    temporary = path.with_name(path.name + ".tmp")
    fd = system.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    write_all(fd, data)
    system.close(fd)
    temporary.replace(path)
    durable.fsync_dir(path.parent)


def write_unflushed_record(self: FileBootControl, copy: int, sector: bytes) -> None:
    """`FileBootControl._write` without the flush of what a loader left."""
    system: Any = vars(durable)["os"]
    fd = system.open(self._path, os.O_RDWR | os.O_DSYNC)
    system.pwrite(fd, sector, self._offsets[copy])
    system.close(fd)


def forget_first(self: Check, batch: list[protocol.Report]) -> bool:
    """`Check._send` that takes the reports out of the queue before the server has them."""
    self._outbox.sent([report.seq for report in batch])
    message = protocol.ReportBatch(reports=tuple(self._signed(report) for report in batch))
    self._call("reports", message, protocol.ReportAnswer)
    return True


@contextmanager
def newer_copy_written() -> Iterator[None]:
    real = FileBootControl._write

    def write(self: FileBootControl, copy: int, sector: bytes) -> None:
        real(self, 1 - copy, sector)

    with patch.object(FileBootControl, "_write", write):
        yield


@contextmanager
def tries_saved_after_the_jump() -> Iterator[None]:
    class Late(loaders.FileLoader):
        def start(self, kernel: Kernel) -> list[str]:
            return super().start(Kernel(kernel.disk()))

    with patch.dict(kinds.LOADERS, {"file": Late()}):
        yield


@contextmanager
def loader_believes_anything() -> Iterator[None]:
    with patch.object(loaders.GrubLoader, "_is_read", lambda self, block: bool(self._load(block).get("seq"))):
        yield


def passes(self: health.Gate) -> tuple[Verdict | None, str]:
    """A commit before the health checks."""
    return None, ""


MUTANTS: dict[str, tuple[str, Callable[[], object], str]] = {
    "arm before the slot is flushed": (
        "file", lambda: patch.object(slots.FileDevice, "sync", nothing), "not a complete release",
    ),
    "write over the newer copy": ("file", newer_copy_written, "the agent lost its memory"),
    "no invalidate before the first write": (
        "file", lambda: patch.object(install.Installer, "_invalidate", nothing), "not a complete release",
    ),
    "files without a flush": (
        "file", lambda: patch.object(store, "write_atomic", write_unflushed), "the agent lost its memory",
    ),
    "rename without a flush of the folder": (
        "file", lambda: patch.object(durable, "fsync_dir", nothing), "a queued report was lost",
    ),
    "loader saves tries after the jump": ("file", tries_saved_after_the_jump, "for ever"),
    "commit before health": ("file", lambda: patch.object(health.Gate, "judge", passes), "rolled_back"),
    "reports forgotten before the server has them": (
        "file", lambda: patch.object(Check, "_send", forget_first), "a queued report was lost",
    ),
    "report numbers used again": (
        "file", lambda: patch.object(outbox.Outbox, "_raise_counter", nothing), "was used for two reports",
    ),
    "loader's write not flushed before the other copy": (
        "uboot", lambda: patch.multiple(
            FileBootControl, _write=write_unflushed_record,
        ), "",
    ),
    "torn copy is left": (
        "grub", lambda: patch.object(FileBootControl, "mend", lambda self: []), "trial-exhausted",
    ),
    "kernel of another release": (
        "systemd-boot", lambda: patch.object(SlotKernels, "install", nothing), "the kernel of another",
    ),
    "firmware's files do not follow the record": (
        "tryboot", lambda: patch.object(BesideBootControl, "_follow", lambda self, record: []), "",
    ),
    "firmware's variables do not follow the record": (
        "efi", lambda: patch.object(BesideBootControl, "_follow", lambda self, record: []), "",
    ),
    "loader reads a torn block": ("grub", loader_believes_anything, ""),
}  # fmt: skip


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize("name", MUTANTS)
def test_a_guard_that_is_taken_out_is_found(name: str) -> None:
    loader, take_out, says = MUTANTS[name]
    with take_out():  # type: ignore[attr-defined]
        result = enumerated(Settings((loader,), bound=16, again=0, violations_max=1))
    found = [one.what for one in result.violations]
    assert found, f"{result.count} states, and nobody noticed"
    assert any(says in what for what in found), found


def test_with_its_guards_nothing_is_found() -> None:
    """Else the mutants would prove nothing; a rougher run than the one above, in this process."""
    result = enumerated(Settings(("file",), bound=8, again=1, proofs=2))
    assert result.violations == []
    assert {loader for loader, _ in result.states} == {"file"}


def test_a_wrong_likeness_of_states_is_found() -> None:
    """If the lab took states for alike that are not, the sample that is run all the same would tell."""
    with patch.object(recover, "observed", lambda case, state: case):
        result = enumerated(Settings(("file",), bound=8, again=0, violations_max=50))
    assert any("ends otherwise" in one.what for one in result.violations)


def test_a_seed_repeats_what_is_visited() -> None:
    def names(seed: int) -> list[str]:
        with no_other_storage():
            jobs = list(Enumeration(Settings(("file",), seed=seed))._jobs())
        rng = Random(seed)
        pending = max((job.point.snapshot.pending for job in jobs), key=len)
        chosen = [choice.name for choice in every(pending, 64, rng, frozenset())]
        return [f"{job.way}/{job.point.number}" for job in jobs] + chosen

    assert names(SEED) == names(SEED)
    assert names(SEED) != names(SEED + 1)


def test_a_violation_is_found_again_by_its_id() -> None:
    with patch.object(install.Installer, "_invalidate", nothing):
        result = enumerated(Settings(("file",), bound=16, again=0, violations_max=1))
        found = visit.replay(result.violations[0].state)
    assert result.violations[0].what in found.violations
    assert found.point.phase == result.violations[0].phase


def test_a_state_behind_a_second_cut_is_looked_at() -> None:
    found = visit.replay("file/good/20/kept-0/3/kept-0")
    assert found.violations == []
    assert found.starts[0] == "a"
    assert any("is lost" in fate for _, fate in found.units)


@pytest.mark.parametrize(
    "name",
    ["", "file", "file/good/1", "lilo/good/1/kept-0", "file/best/1/kept-0", "file/good/99999/kept-0",
     "file/good/1/kept-zz", "file/good/1/kept-fffff", "file/good/1/torn-0-1-lost", "file/good/x/kept-0"],
)  # fmt: skip
def test_an_id_that_no_enumeration_gives_is_refused(name: str) -> None:
    with pytest.raises(TwinlockError) as caught:
        visit.replay(name)
    assert caught.value.code == "input-invalid"
