"""What the steps of the demo share: the things that they make, who is told, and how facts are checked."""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from twinlock.core import limits
from twinlock.core.durable import read_bounded
from twinlock.core.errors import error
from twinlock.publish.upload import Operator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from twinlock.lab.process import Finished
    from twinlock.lab.proxy import FaultProxy
    from twinlock.lab.virtual import Release, VirtualDevice
    from twinlock.lab.workshop import Director, Packed, ServerProcess, Workshop

DEVICE_ID: Final = "demo-device"
PRODUCT: Final = "demo"
_WATCH_S: Final = 0.05
SEEN_WAIT_S: Final = 15.0  # the server writes down in batches what a device said of itself


class Show(Protocol):
    """Who is told: a terminal, a program that reads JSON, or nobody."""

    def begin(self, number: int, title: str) -> None:
        """A step begins."""
        ...

    def bar(self, label: str, total_bytes: int) -> AbstractContextManager[Callable[[int], None]]:
        """A progress bar for as long as the block runs; it is told each number of bytes that is done."""
        ...

    def fact(self, text: str) -> None:
        """Something that the step found out."""
        ...

    def done(self, sentence: str, seconds: float) -> None:
        """The step is over; what it did, as one sentence."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """One release's fate, as the last step's table shows it; bytes, seconds and reason are the server's."""

    release: str
    outcome: str
    bytes_fetched: int
    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class Untouched:
    """What of a device a refused release must not change."""

    default: str
    booted: str
    image_sha256: str
    floor: int


@dataclass
class Scene:
    """The demo's world. Fields are filled by the steps in order; `life` ends what has to be ended."""

    folder: Path
    show: Show
    connect: Callable[[str, str], Operator]
    image_size_bytes: int
    life: ExitStack = field(default_factory=ExitStack)
    images: dict[str, Path] = field(default_factory=dict)
    packed: dict[str, Packed] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    _workshop: Workshop | None = None
    _server: ServerProcess | None = None
    _operator: Operator | None = None
    _device: VirtualDevice | None = None
    _proxy: FaultProxy | None = None
    _director: Director | None = None

    # What an earlier step made. Steps run in order, so a missing one is our own fault.

    @property
    def workshop(self) -> Workshop:
        assert self._workshop is not None
        return self._workshop

    @workshop.setter
    def workshop(self, made: Workshop) -> None:
        self._workshop = made

    @property
    def server(self) -> ServerProcess:
        assert self._server is not None
        return self._server

    @server.setter
    def server(self, made: ServerProcess) -> None:
        self._server = made
        self._operator = self.connect(made.url, made.token)

    @property
    def operator(self) -> Operator:
        assert self._operator is not None
        return self._operator

    @property
    def device(self) -> VirtualDevice:
        assert self._device is not None
        return self._device

    @device.setter
    def device(self, made: VirtualDevice) -> None:
        self._device = made

    @property
    def proxy(self) -> FaultProxy:
        assert self._proxy is not None
        return self._proxy

    @proxy.setter
    def proxy(self, made: FaultProxy) -> None:
        self._proxy = made

    @property
    def director(self) -> Director:
        assert self._director is not None
        return self._director

    @director.setter
    def director(self, made: Director) -> None:
        self._director = made

    # --- what steps do ----------------------------------------------------------------------------------

    def releases(self) -> list[Release]:
        """Every image that a slot may hold, as the lab knows them."""
        return [one.release for one in self.packed.values()]

    def run_agent(self, label: str = "", total_bytes: int = 0) -> Finished:
        """One run of the agent; with a label, a bar follows the payload bytes that cross the proxy."""
        if not label:
            return self.device.run_agent()
        with self.show.bar(label, total_bytes) as advance, self._following(advance):
            return self.device.run_agent()

    @contextmanager
    def _following(self, advance: Callable[[int], None]) -> Iterator[None]:
        over = threading.Event()
        start = self.proxy.counts().payload_bytes

        def follow() -> None:
            told = start
            ended = False
            while not ended:
                ended = over.wait(_WATCH_S)
                now = self.proxy.counts().payload_bytes
                advance(now - told)
                told = now

        thread = threading.Thread(target=follow, name="demo-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def roll_out(self, version: str) -> str:
        """Starts a rollout of this release to the device; the id of its rollout."""
        body = {"product": PRODUCT, "version": version, "devices": [DEVICE_ID]}
        return str(self.operator.post("/rollouts", body)["rollout_id"])

    def assignment(self, rollout_id: str) -> dict[str, Any]:
        """What the server knows of the device in this rollout."""
        found: list[dict[str, Any]] = self.operator.get(f"/rollouts/{rollout_id}")["assignments"]
        check(len(found) == 1, f"rollout {rollout_id} should have one assignment, it has {len(found)}")
        return found[0]

    def expect_running(self, slot: str, version: str) -> None:
        """The server comes to see this release running in this slot, by the image's hash."""
        wanted = (PRODUCT, version, self.packed[version].release.sha256, slot)
        until = clock() + SEEN_WAIT_S
        while True:
            said = self.operator.get(f"/devices/{DEVICE_ID}")["running"] or {}
            found = tuple(said.get(name) for name in ("product", "version", "image_sha256", "slot"))
            if found == wanted or clock() > until:
                break
            time.sleep(_WATCH_S)
        expect(found, wanted, "what the server sees running")

    def note_outcome(self, release: str, outcome: str, rollout_id: str) -> dict[str, Any]:
        """Checks the outcome that the server has for the device, and puts it into the table."""
        found = self.assignment(rollout_id)
        expect(found["state"], outcome, f"the server's outcome of {release}")
        reason = f"{found['code']}: {found['detail']}" if found["code"] else "healthy, committed"
        self.rows.append(Row(release, outcome, found["bytes_fetched"], found["duration_s"], reason))
        return found

    def directed(self) -> list[str]:
        """The releases that the director's last word to this device names, as the device verified it."""
        path = self.device.state / "director/targets.json"
        said = json.loads(read_bounded(path, limits.METADATA_SIZE_BYTES_MAX["targets"], "director's word"))
        return sorted(said["signed"]["targets"])

    def state_of_device(self) -> Untouched:
        """What a refused release must not change."""
        device = self.device
        record, booted = device.disk.record(), device.boot_id()
        check(booted is not None, "the device never booted")
        assert booted is not None
        running = device.release_in(booted.slot, self.releases())
        check(running is not None, f"slot {booted.slot} does not hold a complete release")
        assert running is not None
        return Untouched(record.default, booted.slot, running.sha256, device.floor())


def check(holds: bool, what: str) -> None:
    """Raises InternalError `internal` when something that the demo shows does not hold."""
    if not holds:
        raise error("internal", what, hint="the demo's folder has the logs; report it with them")


def expect(found: object, wanted: object, what: str) -> None:
    """`check` for a value."""
    check(found == wanted, f"{what} should be {wanted!r}, it is {found!r}")


def expect_run(done: Finished, wanted: int, what: str) -> None:
    """`check` for how a run of the agent ended; what the agent said last is told with it."""
    said = done.stderr.strip().splitlines()
    words = f"; it said: {said[-1]}" if said else ""
    check(done.exit_code == wanted, f"{what} should end with {wanted}, it ended with {done.exit_code}{words}")


def clock() -> float:
    """Seconds, for durations."""
    return time.monotonic()
