"""A whole agent against a hostile server: `run_once` with its real ports, slots and boot record in files.

Only the clock is the test's, and the metadata process runs in this one. The server answers the device's calls
and serves a repository, all on a real socket.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.metadata import TargetFile

from tests.attacks.scene import LISTED
from tests.conformance.driver import serve
from tests.conformance.repository import NOW, Repository
from twinlock.agent import config, identity, memory
from twinlock.agent.check import Check
from twinlock.agent.plan import CheckAnswer, CheckRequest
from twinlock.agent.ports import Ports
from twinlock.agent.run import run_once
from twinlock.agent.wiring import build_ports
from twinlock.core import bootrecord, limits, manifest, protocol
from twinlock.core.errors import TwinlockError
from twinlock.core.manifest import Manifest

SLOT_SIZE_BYTES = 4 * limits.MIB
OFFSETS_BYTES = (0, 4096)


class Clock:
    """A wall clock that the test sets; waiting moves it."""

    def __init__(self, now_s: float) -> None:
        self.wall_s = now_s
        self.waited_s = 0.0

    def now_s(self) -> float:
        return self.wall_s

    def monotonic_s(self) -> float:
        return self.waited_s

    def sleep(self, wait_s: float) -> None:
        self.waited_s += wait_s


class _CheckHere:
    """The metadata process without the process."""

    def __init__(self, ports: Ports, settings: config.Config) -> None:
        self._ports, self._settings = ports, settings

    def check(self, request: CheckRequest) -> CheckAnswer:
        return Check(self._ports, self._settings, request).answer()


def release(version: str, counter: int, image: bytes) -> Manifest:
    """A release of a small image for this scene's board."""
    return Manifest(
        format="twinlock-manifest",
        format_version=1,
        product="demo",
        version=version,
        hardware=("board",),
        counter=counter,
        image_size_bytes=len(image),
        image_sha256=hashlib.sha256(image).digest(),
        segment_size_bytes=limits.SEGMENT_SIZE_BYTES,
        segments=hashlib.sha256(image).digest(),
    )


def held(path: Path) -> bytes:
    """What a file holds where it is not a hole, each run behind its offset."""
    found = bytearray()
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        start = 0
        while start < end:
            try:
                start = os.lseek(file.fileno(), start, os.SEEK_DATA)
            except OSError as problem:
                if problem.errno == errno.ENXIO:  # holes only, from here on
                    break
                raise
            stop = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found += b"%d:" % start + os.pread(file.fileno(), stop - start, start)
            start = stop
    return bytes(found)


class AgentScene:
    """A device on slot a, enrolled, with a release assigned to it that lies in the repository."""

    def __init__(self, repository: Repository, address: str, folder: Path, **network: Any) -> None:
        self.repository = repository
        self.folder = folder
        self.reports: list[protocol.Report] = []
        self.clock = Clock(NOW.timestamp())
        self._make_device()
        self.connect(address, **network)
        identity.load_or_make(self.ports.store, self.settings)
        self.ports.store.write("root.json", repository.files["metadata/1.root.json"])
        self._answer_calls()
        self.assign(release("1.1", 3, b"image" * 1024))

    def connect(self, address: str, **network: Any) -> None:
        """The agent's configuration names this server, and this of `[network]`."""
        self.settings = self._settings(address, network)
        ports = build_ports(self.settings, self.folder / "agent.toml")
        self.ports = replace(ports, clock=self.clock)
        self.ports = replace(self.ports, checker=_CheckHere(self.ports, self.settings))

    def _make_device(self) -> None:
        for slot in "ab":
            (self.folder / f"{slot}.img").write_bytes(slot.encode() * SLOT_SIZE_BYTES)
        sector = bootrecord.encode(bootrecord.initial())
        record = bytearray(OFFSETS_BYTES[1] + len(sector))
        for offset in OFFSETS_BYTES:
            record[offset : offset + len(sector)] = sector
        (self.folder / "record").write_bytes(record)
        (self.folder / "booted.json").write_bytes(msgspec.json.encode({"slot": "a", "boot_id": "1"}))

    def _settings(self, address: str, network: dict[str, Any]) -> config.Config:
        folder = str(self.folder)
        return config.parse(
            {
                "server": address,
                "hardware": "board",
                "product": "demo",
                "state": f"{folder}/state",
                "slots": {slot: {"path": f"{folder}/{slot}.img"} for slot in "ab"},
                "boot": {
                    "path": f"{folder}/record",
                    "booted": f"{folder}/booted.json",
                    "offset_bytes": list(OFFSETS_BYTES),
                },
                "reboot": {"mode": "exit"},
                "network": {"retries": 0, **network},
            }
        )

    # The server

    def _answer_calls(self) -> None:
        challenge = protocol.encode(protocol.ChallengeAnswer(challenge="c", expires_s=60))
        session = protocol.encode(protocol.SessionAnswer(token="t", expires_s=3600))
        self.repository.calls[f"{protocol.PREFIX}/challenge"] = lambda _: challenge
        self.repository.calls[f"{protocol.PREFIX}/session"] = lambda _: session
        self.repository.calls[f"{protocol.PREFIX}/reports"] = self._take_reports
        self.repository.calls[f"{protocol.PREFIX}/poll"] = lambda _: protocol.encode(self.poll_answer)

    def _take_reports(self, body: bytes) -> bytes:
        batch = protocol.decode_request(body, protocol.ReportBatch, 1 << 20)
        found = [msgspec.json.decode(signed.body, type=protocol.Report) for signed in batch.reports]
        self.reports += found
        return protocol.encode(protocol.ReportAnswer(durable=tuple(report.seq for report in found)))

    def assign(self, made: Manifest, assignment_id: str = "r1") -> None:
        """Signs the release, serves it and assigns it; its payload is nowhere."""
        data = manifest.encode(made)
        entry = self.repository.add_file(data, made.name)
        claims = msgspec.to_builtins(made.claims)
        entry.unrecognized_fields["custom"] = {"twinlock": claims}
        self.repository.publish(*LISTED)
        offer = protocol.PayloadOffer(kind="full", sha256=bytes(32), size_bytes=4096, index_size_bytes=100)
        self.poll_answer = protocol.PollAnswer(
            wait_s=60,
            assignment=protocol.Assignment(
                id=assignment_id, product=made.product, version=made.version, payloads=(offer,)
            ),
        )

    def signed(self, made: Manifest) -> TargetFile:
        """The signed entry of a release, to be changed and published again."""
        return self.repository.targets.targets[made.name]

    # The device

    def run(self) -> str:
        """One run of the agent; the code that it ends with, or nothing."""
        try:
            run_once(self.ports, self.settings)
        except TwinlockError as problem:
            return problem.code
        return ""

    def state(self) -> dict[str, bytes | None]:
        """What an attack must not change: slots, boot record, floor, what the slots hold, the time."""
        device = {name: held(self.folder / name) for name in ("a.img", "b.img", "record")}
        names = (memory.FLOOR_FILE, memory.SLOTS_FILE, memory.TIME_FILE, "plan.json")
        return {**device, **{name: self.ports.store.read(name, 1 << 20) for name in names}}

    def refused(self, code: str, *, but: tuple[str, ...] = ()) -> None:
        """The next run refuses the assignment with this code, tells the server so, and touches nothing."""
        before, told = self.state(), len(self.reports)
        ended = self.run()
        codes = {report.code for report in self.reports[told:]} - {""}
        assert code in codes | {ended}, f"ended with {ended!r}, reported {codes}"
        assert not any(path.startswith("device/v1/payloads") for path in self.repository.asked)
        after = self.state()
        changed = {name for name in after if before[name] != after[name]}
        assert changed <= set(but), changed


@contextmanager
def agent_scene(folder: Path) -> Iterator[AgentScene]:
    """A device in `folder` and its server."""
    repository = Repository()
    folder.mkdir(parents=True, exist_ok=True)
    with serve(repository) as address:
        yield AgentScene(repository, address, folder)
