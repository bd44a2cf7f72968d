"""The doctor on devices made of folders: healthy ones, each fault alone, and half-broken ones."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.doctor import fake_device, test_doctor_token
from tests.unit.doctor.fake_device import MIB, Device, without
from twinlock.agent import memory
from twinlock.agent.boot.file import FileBootControl
from twinlock.agent.doctor import command, online
from twinlock.agent.doctor.case import Case
from twinlock.agent.doctor.findings import CATALOGUE, Finding
from twinlock.agent.doctor.world import World
from twinlock.agent.main import main
from twinlock.agent.plan import CheckAnswer, CheckRequest
from twinlock.agent.slots import ConfiguredSlots
from twinlock.agent.store import FolderStore
from twinlock.core import bootenv_uboot, bootrecord
from twinlock.core.errors import error

UNITS = "usr/lib/systemd/system"


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return fake_device.make(tmp_path / "device")


@pytest.mark.parametrize("kind", ["uboot", "systemd-boot"])
def test_a_healthy_device_has_nothing_to_mend_and_nothing_is_written(kind: str, tmp_path: Path) -> None:
    device = fake_device.make(tmp_path / "device", kind)
    before = snapshot(device.root)
    diagnosis = device.diagnose()
    assert [one for one in diagnosis.findings if one.level != "ok"] == []
    assert (diagnosis.faults, diagnosis.warnings) == (0, 0)
    assert {one.check for one in diagnosis.findings} == set(command.CHECKS)
    assert snapshot(device.root) == before


def snapshot(root: Path) -> dict[Path, tuple[int, int]]:
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*") if path.is_file()
    }


def both_copies(device: Device, record: bootrecord.BootRecord) -> None:
    device.record(bootenv_uboot.encode(record), bootenv_uboot.encode(record))


def kernel_without(device: Device, option: str) -> None:
    path = device.root / "proc/config.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    left = [line for line in lines if not line.startswith(f"CONFIG_{option}=")]
    assert len(left) == len(lines) - 1
    path.write_bytes(gzip.compress("\n".join(left).encode()))


def booted(device: Device, slot: str) -> None:
    device.write("run/twinlock/booted.json", json.dumps({"slot": slot, "boot_id": fake_device.BOOT_ID}))


def b_runs(device: Device) -> None:
    booted(device, "b")
    device.change("proc/cmdline", "twinlock.slot=a", "twinlock.slot=b")
    device.change("proc/self/mountinfo", "259:2 / /", "259:3 / /")


def link_to_null(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/null")


def small_b(device: Device) -> None:
    os.truncate(device.part("b"), 4 * MIB)


def one_device(device: Device) -> None:
    device.world.devices[device.part("b")] = "259:2"


Break = Callable[[Device], object]
TRIAL = bootrecord.arm(bootrecord.initial(), "b", 3, "one")
FAULTS: dict[str, tuple[Break, set[str]]] = {
    "no configuration": (lambda d: d.config.unlink(), {"config-unusable"}),
    "a slot is gone": (lambda d: d.part("b").unlink(), {"slot-unusable"}),
    "the slots differ": (small_b, {"slots-differ"}),
    "a slot is a file": (lambda d: d.world.devices.pop(d.part("b")), {"slot-is-file"}),
    "one device for both": (one_device, {"slots-are-one", "slot-in-use"}),
    "the root is elsewhere": (
        lambda d: d.change("proc/self/mountinfo", "259:2 / / ", "259:9 / / "),
        {"slot-not-root"},
    ),
    "the other slot is mounted": (
        lambda d: d.write("proc/self/mountinfo", fake_device.MOUNTS + "28 24 259:3 / /mnt rw - ext4 x rw\n"),
        {"slot-in-use"},
    ),
    "the root is written": (
        lambda d: d.change(
            "proc/self/mountinfo", "/ / ro,relatime - ext4 /dev/root ro", "/ / rw - ext4 r rw"
        ),
        {"root-writable"},
    ),
    "no mounts are known": (
        lambda d: without(d.root / "proc/self/mountinfo"),
        {"check-skipped", "pstore-unmounted"},
    ),
    "data in memory": (lambda d: d.write("run/twinlock/data-failed", "no\n"), {"data-failed"}),
    "one copy": (lambda d: d.record(bytes(512)), {"record-copy-bad"}),
    "no record": (lambda d: d.record(bytes(512), bytes(512)), {"record-unreadable", "check-failed"}),
    "no record's partition": (lambda d: d.part("record").unlink(), {"record-unreadable", "check-failed"}),
    "the committed slot is bad": (
        lambda d: both_copies(d, bootrecord.BootRecord(seq=1, default="a", failed=frozenset("a"))),
        {"record-slot-bad", "booted-elsewhere"},
    ),
    "a trial": (lambda d: both_copies(d, TRIAL), {"trial-pending"}),
    "another slot's note": (lambda d: booted(d, "b"), {"booted-differs", "slot-not-root", "slot-in-use"}),
    "a note of another boot": (
        lambda d: d.write("proc/sys/kernel/random/boot_id", "another\n"),
        {"booted-differs"},
    ),
    "no note": (lambda d: without(d.root / "run/twinlock/booted.json"), {"booted-unknown", "check-failed"}),
    "the loader went elsewhere": (b_runs, {"booted-elsewhere"}),
    "no watchdog": (lambda d: without(d.root / "sys/class/watchdog/watchdog0"), {"watchdog-missing"}),
    "nobody feeds the watchdog": (
        lambda d: d.write("etc/systemd/system.conf.d/zz.conf", "[Manager]\nRuntimeWatchdogSec=off\n"),
        {"watchdog-unused"},
    ),
    "the clock is of 1970": (lambda d: setattr(d.clock, "wall_s", 1000.0), {"clock-wrong"}),
    "the clock is behind": (
        lambda d: memory.note_time(FolderStore(d.state), fake_device.NOW_S + 7200),
        {"clock-behind"},
    ),
    "a kernel without what is required": (lambda d: kernel_without(d, "WATCHDOG"), {"kernel-required"}),
    "a kernel that does not show itself": (lambda d: without(d.root / "proc/config.gz"), {"kernel-unknown"}),
    "no kernel table": (lambda d: without(d.root / "usr/lib/twinlock/kernel"), {"kernel-table-missing"}),
    "no pstore": (
        lambda d: d.change("proc/self/mountinfo", "/sys/fs/pstore", "/elsewhere"),
        {"pstore-unmounted"},
    ),
    "the timer is off": (
        lambda d: without(d.root / UNITS / "timers.target.wants/twinlock-agent.timer"),
        {"unit-disabled"},
    ),
    "the timer is masked": (
        lambda d: link_to_null(d.root / UNITS / "twinlock-agent.timer"),
        {"unit-disabled"},
    ),
    "no trial unit": (lambda d: without(d.root / UNITS / "twinlock-trial.service"), {"unit-missing"}),
    "no systemd": (lambda d: without(d.root / UNITS), {"check-skipped"}),
    "no state": (
        lambda d: without(d.state),
        {"state-missing", "check-skipped", "identity-none", "trust-missing"},
    ),
    "the state is open": (lambda d: d.state.chmod(0o755), {"state-open"}),
    "the state goes with the slot": (
        lambda d: d.change("proc/self/mountinfo", " /data ", " /elsewhere "),
        {"state-in-slot"},
    ),
    "little space": (lambda d: setattr(d.world, "free", 3 * MIB), {"space-low"}),
    "no space": (lambda d: setattr(d.world, "free", 1000), {"space-out"}),
    "no key": (lambda d: without(d.state / "device.key"), {"identity-none"}),
    "a broken key": (lambda d: (d.state / "device.key").write_bytes(b"x"), {"identity-unusable"}),
    "an open key": (lambda d: (d.state / "device.key").chmod(0o644), {"state-open"}),
    "not enrolled": (lambda d: without(d.state / "identity.json"), {"enrolment-unknown"}),
    "no root of trust": (lambda d: without(d.state / "root.json"), {"trust-missing"}),
}


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_each_fault_is_named_and_nothing_else(name: str, device: Device) -> None:
    broken, codes = FAULTS[name]
    broken(device)
    diagnosis = device.diagnose()
    assert {one.code for one in diagnosis.findings if one.level != "ok"} == codes
    for one in diagnosis.findings:
        assert one.level == "ok" or one.hint
        assert "Traceback" not in one.what


def test_an_option_that_is_only_wanted_is_a_warning(device: Device) -> None:
    table = device.root / "usr/lib/twinlock/kernel/update.config"
    table.write_text(table.read_text() + "\n# For a test.\n#: wanted\nCONFIG_NOBODY_HAS_THIS=y\n")
    (one,) = [one for one in device.diagnose().findings if one.level != "ok"]
    assert (one.code, one.level) == ("kernel-wanted", "warning")
    assert "CONFIG_NOBODY_HAS_THIS" in one.what


@pytest.mark.parametrize(
    ("broken", "codes"),
    [
        (lambda d: without(d.root / "efi/loader/entries/twinlock-a.conf"), {"loader-differs"}),
        (lambda d: d.write("efi/loader/entries/twinlock-b+2-1.conf", "version 9\n"), {"loader-differs"}),
        (lambda d: d.write("efi/loader/entries/x.conf", "x" * 100_000), {"loader-unreadable"}),
        (
            lambda d: d.record(bytes(512), bytes(512)),
            {"record-unreadable", "loader-unreadable", "check-failed"},
        ),
    ],
)
def test_a_loader_beside_the_record(broken: Break, codes: set[str], tmp_path: Path) -> None:
    device = fake_device.make(tmp_path / "device", "systemd-boot")
    broken(device)
    assert device.codes() == codes


def test_recovery_running_is_no_fault_of_the_slots(device: Device) -> None:
    booted(device, "recovery")
    device.change("proc/cmdline", "twinlock.slot=a", "twinlock.slot=recovery")
    assert device.codes() == {"check-skipped", "booted-elsewhere"}


def test_the_root_of_trust_may_come_with_the_image(device: Device) -> None:
    without(device.state / "root.json")
    device.config.write_text('root = "/etc/twinlock/root.json"\n' + device.config.read_text())
    assert device.codes() == {"trust-missing"}
    device.write("etc/twinlock/root.json", "{}")
    assert device.codes() == set()


def test_a_slot_that_is_busy_is_in_use(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(slots: object, slot: str) -> None:
        raise error("slot-busy", f"slot {slot} is in use")

    monkeypatch.setattr(ConfiguredSlots, "open", busy)
    assert device.codes() == {"slot-in-use"}


def test_a_state_that_cannot_be_written(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert device.codes() == {"state-unwritable"}


def test_a_check_that_fails_is_a_finding_and_the_others_go_on(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(problem: Exception) -> command.Check:
        def check(case: Case) -> Iterator[Finding]:
            yield Finding("x", "ok", "ok", "seen before")
            raise problem

        return check

    for problem, said in (
        (ValueError("oops"), "ValueError: oops"),
        (PermissionError(13, "no", "/x"), "/x: no"),
        (error("io-error", "the disk"), "the disk"),
    ):
        monkeypatch.setitem(command.CHECKS, "slots", fails(problem))
        diagnosis = device.diagnose()
        first, second = diagnosis.findings[:2]
        assert first.what == "seen before"
        assert (second.check, second.code) == ("slots", "check-failed")
        assert said in second.what
        assert diagnosis.faults == 1
        assert len(diagnosis.findings) > len(command.CHECKS)


def test_garbage_everywhere_breaks_no_check(device: Device) -> None:
    """Every file that the doctor reads is replaced by something else, one at a time and all together."""
    names = [
        *("proc/self/mountinfo", "proc/cmdline", "proc/config.gz", "proc/sys/kernel/osrelease"),
        *("run/twinlock/booted.json", "etc/twinlock/agent.toml", "usr/lib/twinlock/kernel/update.config"),
        *("data/identity/agent/identity.json", "data/identity/agent/time.json"),
    ]
    for name in (*names[:5], *names[6:], names[5]):
        (device.root / name).write_bytes(b"\xff\x00garbage = [\n")
        found = device.diagnose().findings
        assert found
        assert not [one for one in found if "Traceback" in one.what]
        assert not [one for one in found if one.code == "check-failed" and "[internal]" in one.what]


def test_the_table_and_the_json_say_the_same(
    device: Device, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "World", lambda: device.world)
    monkeypatch.setattr(command, "SystemClock", lambda: device.clock)
    assert main(["--config", str(device.config), "doctor"]) == 0
    assert capsys.readouterr().out.endswith("\n0 faults, 0 warnings\n")
    without(device.state / "device.key")
    without(device.root / "sys/class/watchdog/watchdog0")
    assert main(["--config", str(device.config), "doctor"]) == 6
    text = capsys.readouterr().out
    assert "FAULT    identity" in text
    assert "[identity-none]" in text
    assert "-> run `twinlock-agent enrol`" in text
    assert text.endswith("\n1 fault, 1 warning\n")
    assert main(["--config", str(device.config), "--json", "doctor"]) == 6
    said = json.loads(capsys.readouterr().out)
    assert (said["version"], said["faults"], said["warnings"]) == (1, 1, 1)
    assert {"check", "code", "level", "what", "hint"} == set(said["findings"][0])


def test_nothing_from_a_file_reaches_the_terminal_raw(device: Device) -> None:
    device.write("run/twinlock/data-failed", "\x1b[2Jgone")
    assert "\x1b" not in "\n".join(command.lines(device.diagnose()))


class FakeChecker:
    problem = ""
    asked: CheckRequest

    def __init__(self, *options: object) -> None:
        """Takes what the real one takes."""

    def check(self, request: CheckRequest) -> CheckAnswer:
        FakeChecker.asked = request
        if self.problem == "dead":
            raise error("internal", "the metadata process died")
        return CheckAnswer(nonce=request.nonce, code=self.problem, what="the link is down")


@pytest.mark.parametrize("problem", ["", "server-unreachable", "dead"])
def test_the_server_is_asked_only_when_it_is_wanted(
    problem: str, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(online, "ChildChecker", FakeChecker)
    monkeypatch.setattr(FakeChecker, "problem", problem)
    assert "server" not in {one.check for one in device.diagnose().findings}
    found = command.diagnose(device.config, device.world, device.clock, reach_server=True).findings[-1]
    assert found.check == "server"
    assert found.code == ("server-failed" if problem else "ok")
    assert (FakeChecker.asked.mode, FakeChecker.asked.slot) == ("gate", "a")


def test_every_code_can_be_found_by_a_test() -> None:
    tested = {code for _, codes in FAULTS.values() for code in codes}
    tested |= {"loader-differs", "loader-unreadable", "kernel-wanted", "state-unwritable", "server-failed"}
    tested |= test_doctor_token.CODES
    assert tested == set(CATALOGUE)
    for code, spec in CATALOGUE.items():
        assert code == code.lower()
        assert spec.level != "ok"
        assert spec.hint


def test_systemds_settings_are_read_in_its_order(tmp_path: Path) -> None:
    for path, text in {
        "usr/lib/systemd/system.conf": "A=vendor\n",
        "etc/systemd/system.conf": "A=main\n# B=comment\n[Manager]\n",
        "usr/lib/systemd/system.conf.d/50.conf": "A=hidden\n",
        "etc/systemd/system.conf.d/50.conf": "A=drop\n",
        "run/systemd/system.conf.d/10.conf": "A=early\n",
        "etc/systemd/system.conf.d/README": "A=none\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert list(World(tmp_path).settings("system.conf")) == [("A", "main"), ("A", "early"), ("A", "drop")]


def test_the_real_world_is_read_too(tmp_path: Path) -> None:
    world = World()
    assert world.mount_at("/") is not None
    assert world.kind("/proc/self/mountinfo") == "file"
    assert world.kind("/proc/self/none") is None
    assert world.kind("/dev/null") == "char"
    assert world.free_bytes(tmp_path) > 0
    assert world.shown(tmp_path) == str(tmp_path)
    assert world.device_at(Path("/dev/null")).count(":") == 1
    assert world.names("/nonexistent") == []


def test_a_boot_control_that_reads_the_record_itself_is_never_astray(tmp_path: Path) -> None:
    assert FileBootControl(tmp_path, (0, 512), tmp_path).astray() == []
