"""Attacks on the device itself, cases 33 to 36: full disks, other users, crashes, keys that anybody has."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest

from tests.attacks.agent_scene import OFFSETS_BYTES
from tests.attacks.payload_scene import PACKED, PayloadScene, Ranges, payload_scene
from tests.attacks.scene import LISTED
from tests.conformance.repository import Repository
from tests.unit.agent.fakes import MIB, image_of, job_for, pack
from twinlock.agent import main, memory
from twinlock.agent import plan as plans
from twinlock.agent.plan import Running
from twinlock.core import bootrecord, manifest
from twinlock.core.bootrecord import BootRecord

EVIL = pack(image_of("xy", tail_bytes=512 * 7), "6.6", 99)


class CrashError(BaseException):
    """The process ends here; no handler of the agent's may stop it."""


def path_of(fd: int) -> Path:
    """What a descriptor is open on."""
    return Path(f"/proc/self/fd/{fd}").readlink()


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """The disk of this folder takes no more bytes."""
    write = os.write

    def refuse(fd: int, data: bytes) -> int:
        if path_of(fd).is_relative_to(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    with patch("os.write", refuse):
        yield


def save(device: PayloadScene, record: BootRecord) -> None:
    """Writes both copies of the boot record."""
    sector = bootrecord.encode(record)
    with (device.folder / "record").open("r+b") as file:
        for offset in OFFSETS_BYTES:
            file.seek(offset)
            file.write(sector)


def boot(device: PayloadScene, boot_id: str) -> str:
    """What the bootloader does: takes a slot by the record, and notes the try."""
    slot, after = bootrecord.next_boot(device.ports.boot.read())
    save(device, after)
    (device.folder / "booted.json").write_bytes(msgspec.json.encode({"slot": slot, "boot_id": boot_id}))
    return slot


def test_case_33_the_state_has_no_room(tmp_path: Path) -> None:
    """Nothing is begun that could not be remembered; with room again, it goes on by itself."""
    with payload_scene(tmp_path) as device:
        device.install(PACKED)
        with full(device.settings.state):
            device.refuses("disk-full")
        assert device.run() == ""
        assert device.ports.boot.read().trying == "b"


def test_case_33_the_slot_has_no_room(tmp_path: Path) -> None:
    """The first segment is in a slot that could boot, the second does not fit: it must not boot now."""
    pwrite = os.pwrite

    def refuse(fd: int, data: bytes, offset: int) -> int:
        if path_of(fd).name == "b.img" and offset >= MIB:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data, offset)

    with payload_scene(tmp_path) as device:
        save(device, BootRecord(seq=2, default="a"))
        device.install(PACKED)
        with patch("os.pwrite", refuse):
            device.refuses("disk-full", but=("b.img", "record"))
        assert (tmp_path / "b.img").read_bytes()[:512] == PACKED.image[:512]


def test_case_34_a_plan_swapped_after_its_check(tmp_path: Path) -> None:
    """Whole and consistent, but for another release than the one that was verified; its payload is served."""
    with payload_scene(tmp_path) as device:
        device.install(PACKED)
        evil = Ranges(lambda first, end: EVIL.payload[first:end], len(EVIL.payload))
        device.repository.scripts[f"device/v1/payloads/{EVIL.offer.sha256.hex()}"] = evil
        path = "/device/v1/reports"
        take = device.repository.calls[path]

        def swap(body: bytes) -> bytes:
            """The device tells that it begins, which is after its check and before its download."""
            plan = plans.load(device.ports.store)
            if plan is not None:
                forged = msgspec.structs.replace(
                    plan, job=job_for(EVIL), manifest=manifest.encode(EVIL.manifest), payloads=(EVIL.offer,)
                )
                device.ports.store.write(plans.PLAN, msgspec.json.encode(forged))
            return take(body)

        device.repository.calls[path] = swap
        device.refuses("journal-corrupt")
        assert evil.asked == []


def test_case_34_a_state_folder_that_others_may_write(tmp_path: Path) -> None:
    """Whoever may write there could replace the root of trust; the agent's own command refuses to begin."""
    with payload_scene(tmp_path) as device:
        device.install(PACKED)
        settings = device.settings
        (tmp_path / "agent.toml").write_text(
            f'server = "{settings.server}"\nhardware = "board"\nproduct = "demo"\n'
            f'state = "{settings.state}"\n'
            f'[slots]\na.path = "{tmp_path}/a.img"\nb.path = "{tmp_path}/b.img"\n'
            f'[boot]\npath = "{tmp_path}/record"\nbooted = "{tmp_path}/booted.json"\n'
            f'offset_bytes = {list(OFFSETS_BYTES)}\n[reboot]\nmode = "exit"\n[network]\nretries = 0\n',
            encoding="utf-8",
        )
        before = device.state()
        for mode in (0o777, 0o770, 0o702):
            settings.state.chmod(mode)
            with redirect_stderr(StringIO()) as stderr:
                code = main.main(["--config", str(tmp_path / "agent.toml"), "run"])
            assert (code, stderr.getvalue()[:24]) == (6, "error[permission-denied]"), stderr.getvalue()
            assert device.repository.asked == []
            assert device.state() == before


def test_case_34_the_state_is_the_agents_alone(tmp_path: Path) -> None:
    """Tokens, the key and the plan are for nobody else, whatever the umask of whoever started the agent."""
    umask = os.umask(0)
    try:
        with payload_scene(tmp_path) as device:
            device.install(PACKED, PACKED.payload[::-1])
            device.refuses("payload-malformed")
            state = device.settings.state
            assert state.stat().st_mode & 0o777 == 0o700
            files = {path.name: path.stat().st_mode & 0o777 for path in state.rglob("*") if path.is_file()}
            assert len(files) > 3
            assert set(files.values()) == {0o600}, files
    finally:
        os.umask(umask)


def test_case_35_a_crash_while_the_slot_is_written(tmp_path: Path) -> None:
    """A slot that could boot has half of a release when the process ends: the device boots the other one."""
    sync = os.fdatasync

    def crash(fd: int) -> None:
        sync(fd)
        if path_of(fd).name == "b.img":
            raise CrashError

    with payload_scene(tmp_path) as device:
        save(device, BootRecord(seq=2, default="a"))
        device.install(PACKED)
        before = device.state()
        with patch("os.fdatasync", crash), pytest.raises(CrashError):
            device.run()
        after = device.state()
        assert after[memory.FLOOR_FILE] == before[memory.FLOOR_FILE]
        assert after["a.img"] == before["a.img"]
        assert after["b.img"] != before["b.img"]
        device.runs_on()
        assert boot(device, "2") == "a"
        assert device.run() == ""
        assert boot(device, "3") == "b"


def test_case_35_a_crash_between_commit_and_floor(tmp_path: Path) -> None:
    """What the commit made certain comes after it all the same: an old release stays refused."""
    with payload_scene(tmp_path) as device:
        known = {"a": Running(product="demo", version="1.0", counter=2, image_size_bytes=4 * MIB)}
        device.ports.store.write(memory.SLOTS_FILE, msgspec.json.encode(known))
        device.ports.store.write(memory.FLOOR_FILE, msgspec.json.encode({"counter": 1}))
        device.install(PACKED)
        assert device.run() == ""
        assert boot(device, "2") == "b"
        with (
            patch("twinlock.agent.memory.note_committed", side_effect=CrashError),
            pytest.raises(CrashError),
        ):
            device.run()
        record = device.ports.boot.read()
        assert (record.default, record.trying) == ("b", None)
        old = pack(image_of("old", tail_bytes=512), "0.9", 1)
        device.install(old, assignment_id="r2")
        before = device.state()
        ended = [device.run() for _ in range(2)]
        codes = {report.code for report in device.reports}
        assert "release-older" in codes | set(ended), (ended, codes)
        after = device.state()
        assert msgspec.json.decode(after[memory.FLOOR_FILE] or b"") == {"counter": 2}
        for name in ("a.img", "b.img", "record"):
            assert after[name] == before[name], name


def test_case_36_a_repository_of_keys_that_anybody_has(tmp_path: Path) -> None:
    """Right in every way but for whose keys they are: those of tests and labs are nobody's here."""
    with payload_scene(tmp_path) as device:
        device.install(PACKED)
        stranger = Repository(kind="ecdsa")
        stranger.targets.targets.update(device.repository.targets.targets)
        stranger.publish(*LISTED)
        device.repository.files.update(
            {name: data for name, data in stranger.files.items() if "root" not in name}
        )
        device.refuses("metadata-signature")


def test_case_36_no_root_is_built_in(tmp_path: Path) -> None:
    """A device that nobody gave a root to trusts nobody, least of all the first one that it meets."""
    with payload_scene(tmp_path) as device:
        device.install(PACKED)
        device.ports.store.remove("root.json")
        device.refuses("metadata-missing")
        assert device.repository.asked_metadata() == []
