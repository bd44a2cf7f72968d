"""One device over a simulated kernel: its loader, the agent's own code and adapters, and a server.

The agent is the real one down to its calls of the operating system: `run_once`, the stores, the slots and the
boot control of `agent`. Left out are signatures, HTTP and processes (see `lab.sim.world`). Time stands still,
so that what a device does follows from what its storage and its server hold, and from nothing else.
"""

from __future__ import annotations

import errno
import functools
import os
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import PurePosixPath
from random import Random
from typing import TYPE_CHECKING, Final, Literal, cast
from unittest.mock import patch

import msgspec

from twinlock.agent import config as configs
from twinlock.agent import identity, memory
from twinlock.agent.boot import efivars
from twinlock.agent.boot.beside import BesideBootControl
from twinlock.agent.boot.choose import boot_control
from twinlock.agent.boot.efivars import EfiVariables
from twinlock.agent.boot.mounts import Mounts
from twinlock.agent.boot.place import BootPlace
from twinlock.agent.journal import JOURNAL
from twinlock.agent.plan import CHECKED, Running
from twinlock.agent.ports import HookResult, Ports
from twinlock.agent.run import run_once
from twinlock.agent.slots import ConfiguredSlots
from twinlock.core import bootrecord, device_key
from twinlock.core.bootrecord import BootRecord
from twinlock.core.errors import TwinlockError
from twinlock.core.names import SLOTS
from twinlock.core.protocol import Report
from twinlock.lab.crash.beside import BesideLoader, SlotKernels, kernel_of
from twinlock.lab.crash.disk import Content, Disk
from twinlock.lab.crash.kernel import BOOT, RUN, VARIABLES, Kernel, Switch
from twinlock.lab.crash.kinds import LOADERS
from twinlock.lab.crash.loaders import OFFSETS_BYTES, RECORD
from twinlock.lab.crash.paths import KernelPath
from twinlock.lab.killable import KillableHooks, KillablePower, KillableSlots, KillableStore, Killer
from twinlock.lab.sim import release as releases
from twinlock.lab.sim.clock import SimClock
from twinlock.lab.sim.fate import Fate, Troubles
from twinlock.lab.sim.link import URL, SimNetwork, SimServer
from twinlock.lab.sim.world import NOW_S, SimCheck

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from twinlock.agent.boot.base import BootControl, Booted, Capabilities
    from twinlock.agent.boot.kernels import Kernels
    from twinlock.agent.config import Config
    from twinlock.agent.plan import CheckAnswer, CheckRequest
    from twinlock.lab.crash.loaders import Loader
    from twinlock.lab.sim.release import SimRelease

Kind = Literal["good", "bad", "dead"]
STATE: Final = "/state"
BOOTED: Final = f"{RUN}/booted.json"
SLOT_PATHS: Final = {slot: f"/dev/slot-{slot}" for slot in SLOTS}
VERSIONS: Final = ("1.0", "1.1", "0.9")
WHOLE: Final = "whole release"
RUNS_MAX: Final = 16
REBOOT_WANTED: Final = 10
LOADER_SAVES: Final = "loader.save"
SHUTS_DOWN: Final = "power.reboot"
SWITCHED: Final = (
    "core.durable",
    "agent.store",
    "agent.slots",
    "agent.boot.file",
    "agent.boot.place",
    "agent.boot.efivars",
)

_switch: Final = Switch()


@contextmanager
def no_other_storage() -> Iterator[None]:
    """While it lasts the agent's storage code deals with the kernel of the machine that runs."""
    patches = [patch.object(import_module(f"twinlock.{name}"), "os", _switch) for name in SWITCHED]
    flags = patch.object(efivars, "fcntl", NoFlags())
    for one in patches:
        one.start()
    try:
        with flags:
            yield
    finally:
        for one in reversed(patches):
            one.stop()
        _switch.kernel = None


class NoFlags:
    """Stands in for `fcntl`: these variables have no immutable flag."""

    def ioctl(self, fd: int, request: int, flags: object) -> int:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))


@dataclass(frozen=True, slots=True)
class Case:
    """Which device goes through what: its loader, and whether the new release works, fails, or is dead."""

    loader: str
    kind: Kind = "good"

    @property
    def name(self) -> str:
        return f"{self.loader}/{self.kind}"


@dataclass(frozen=True, slots=True)
class State:
    """All that there is while nothing runs: the device's storage, and what the server was told.

    `epoch` and `tokens` make what a device calls random; `wish` is what a reboot carries to the loader.
    """

    disk: Disk
    reports: Mapping[int, Report]
    epoch: int = 0
    tokens: int = 0
    wish: bool = False


@functools.cache
def _key() -> bytes:
    return device_key.generate()


@functools.cache
def release(version: str) -> SimRelease:
    """0.9 was there before, 1.0 runs, 1.1 is assigned."""
    return releases.make(version, 2 if version == "1.1" else 1)


@functools.cache
def first_state(case: Case) -> State:
    """A device that went from 0.9 in slot b to 1.0 in slot a, and may still fall back."""
    image = {"a": release("1.0").image, "b": release("0.9").image}
    trial = BootRecord(seq=7, default="b", trying="a", tries_left=2, trial_id="0" * 32)
    raw = LOADERS[case.loader].first(bootrecord.commit(trial, trial.trial_id), trial)
    raw |= {SLOT_PATHS[slot]: image[slot].ljust(releases.SLOT_SIZE_BYTES, b"\0") for slot in SLOTS}
    running = {
        "a": Running(
            product=releases.PRODUCT,
            version="1.0",
            counter=1,
            image_sha256=release("1.0").manifest.image_sha256,
            image_size_bytes=release("1.0").manifest.image_size_bytes,
        )
    }
    files = {
        f"{STATE}/{identity.KEY}": _key(),
        f"{STATE}/{memory.SLOTS_FILE}": msgspec.json.encode(running),
    }
    files |= LOADERS[case.loader].first_files(bootrecord.commit(trial, trial.trial_id), trial)
    media = {name: Content(data) for name, data in raw.items()}
    folders = {str(folder) for name in files for folder in PurePosixPath(name).parents if folder.name}
    return State(Disk(files, frozenset(folders), media), {})


@functools.cache
def _parsed(control: str) -> Config:
    slots = {slot: {"path": path} for slot, path in SLOT_PATHS.items()}
    return configs.parse(
        {
            "server": URL,
            "hardware": releases.HARDWARE,
            "product": releases.PRODUCT,
            "device_id": "sim",
            "state": STATE,
            "slots": slots,
            "boot": {"control": control, "path": RECORD, "booted": BOOTED, "offset_bytes": OFFSETS_BYTES},
            "reboot": {"mode": "exit"},
        }
    )


class _Labels(Killer):
    """Hears which call is being made; ends none."""

    def __init__(self, hear: Callable[[str], None]) -> None:
        self._hear = hear

    def begin(self, label: str) -> str:
        self._hear(label)
        return ""


class _Store(KillableStore):
    """The real store; tells which reports are queued, once it says that they are."""

    def __init__(self, folder: Path, killer: Killer, queued: Callable[[Report], None]) -> None:
        super().__init__(folder, killer)
        self._queued = queued

    def write(self, name: str, data: bytes) -> None:
        super().write(name, data)
        if name.startswith("outbox/"):
            self._queued(msgspec.json.decode(data, type=Report))


class _Boot:
    """The real boot control, with a label for each call that writes."""

    def __init__(self, inner: BootControl, hear: Callable[[str], None]) -> None:
        self._inner = inner
        self._hear = hear

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def booted(self) -> Booted:
        return self._inner.booted()

    def read(self) -> BootRecord:
        return self._inner.read()

    def invalidate(self, slot: str) -> BootRecord:
        self._hear("boot.invalidate")
        return self._inner.invalidate(slot)

    def arm(self, slot: str, tries: int, trial_id: str) -> BootRecord:
        self._hear("boot.arm")
        return self._inner.arm(slot, tries, trial_id)

    def commit(self, trial_id: str) -> BootRecord:
        self._hear("boot.commit")
        return self._inner.commit(trial_id)

    def roll_back(self, trial_id: str, reason: str) -> BootRecord:
        self._hear("boot.roll_back")
        return self._inner.roll_back(trial_id, reason)

    def abandon(self, slot: str) -> BootRecord:
        self._hear("boot.abandon")
        return self._inner.abandon(slot)

    def restore(self, default: str, failed: frozenset[str]) -> BootRecord:
        self._hear("boot.restore")
        return self._inner.restore(default, failed)

    def self_test(self) -> None:
        self._hear("boot.self_test")
        self._inner.self_test()

    def mend(self) -> list[str]:
        self._hear("boot.mend")
        return self._inner.mend()

    def before_reboot(self) -> bool:
        self._hear("boot.before_reboot")
        return self._inner.before_reboot()


class _Tape(Fate):
    """No troubles; hears the calls to the server, and that each is over."""

    def __init__(self, hear: Callable[[str], None], over: Callable[[], None]) -> None:
        super().__init__(Random(0), Troubles(cuts_max=0), calm=True)
        self._hear = hear
        self._over = over

    def begin(self, label: str) -> str:
        self._hear(label)
        return ""

    def end(self, cut: str) -> None:
        self._over()


def told(report: Report) -> tuple[str, ...]:
    """What a report says, wherever it is on its way; without what was measured."""
    return report.nonce, report.state, report.assignment_id, report.code, report.detail


class Machine:
    """A device from the moment when its power comes on. `over_event` is called after each lasting change.

    `label` names the call that is under way, `queued` what the agent was told is queued, so far.
    """

    def __init__(self, case: Case, state: State, over_event: Callable[[], None] | None = None) -> None:
        self.case: Final = case
        self.loader: Final = LOADERS[case.loader]
        self.label = ""
        self.boots = 0
        self.log: Final[list[str]] = []
        self.queued: Final[list[Report]] = []
        self.epoch: Final = state.epoch
        self.tokens = state.tokens
        self._over_event = over_event or (lambda: None)
        self.kernel: Final = Kernel(state.disk, None if over_event is None else self._over_event)
        self.server: Final = SimServer(release("1.1"), reports=dict(state.reports))
        self.running = ""
        self.kernel.wish = state.wish
        config = _parsed("file" if isinstance(self.loader, BesideLoader) else case.loader)
        booted = cast("Path", KernelPath(self.kernel, BOOTED))
        self._config = msgspec.structs.replace(
            config, boot=msgspec.structs.replace(config.boot, booted=booted)
        )
        self.ports: Final = self._ports()

    def _ports(self) -> Ports:
        clock = SimClock(NOW_S)
        labels = _Labels(self.hear)
        fate = _Tape(self.hear, self._over_event)
        self.boot: BootControl = self._boot_control()
        return Ports(
            clock=clock,
            random=self,
            store=_Store(cast("Path", KernelPath(self.kernel, STATE)), labels, self.queued.append),
            slots=KillableSlots(ConfiguredSlots(self._config.slots), labels),
            boot=_Boot(self.boot, self.hear),
            network=SimNetwork(self.server, fate, clock),
            checker=self,
            hooks=KillableHooks(self, labels),
            power=KillablePower(self, labels),
            display=self,
        )

    def _boot_control(self) -> BootControl:
        boot = self._config.boot
        if not isinstance(self.loader, BesideLoader):
            return boot_control(boot, self._config.slots)
        kernels = SlotKernels(lambda slot: held(self.kernel, slot))
        variables = EfiVariables(cast("Path", KernelPath(self.kernel, VARIABLES)))
        place = BootPlace(
            cast("Path", KernelPath(self.kernel, BOOT)),
            None,
            Mounts(),
            cast("Kernels", kernels),
            variables if self.loader.name == "efi" else None,
        )
        return BesideBootControl(boot.path, boot.offset_bytes, boot.booted, self.loader.rules, place)

    def hear(self, label: str) -> None:
        self.label = label

    def state(self) -> State:
        """What is left after everything was flushed."""
        reports = dict(self.server.reports)
        return State(self.kernel.disk(), reports, self.epoch, self.tokens, self.kernel.wish)

    # --- ports that are answered here -----------------------------------------------------------------------

    def fraction(self) -> float:
        return 0.5

    def token(self) -> str:
        self.tokens += 1
        return f"{self.epoch}.{self.tokens}"

    def check(self, request: CheckRequest) -> CheckAnswer:
        self.hear(f"check {request.mode}")
        answer = SimCheck(self.ports, request, release("1.1")).answer()
        self.ports.store.write_volatile(CHECKED, msgspec.json.encode(answer))
        return answer

    def health(self, wanted: bool) -> list[HookResult]:
        if wanted:
            return []
        healthy = self.case.kind == "good" or held(self.kernel, self.running) != "1.1"
        return [HookResult("10-app", 0 if healthy else 1, False, "ready" if healthy else "it does not start")]

    def ask(self, point: str) -> list[HookResult]:
        return []

    def reboot(self, reason: str, *, trial: bool = False) -> bool:
        self.kernel.wish = trial
        return True

    def note(self, text: str) -> None:
        self.log.append(text)

    def progress(self, phase: str, done_bytes: int, total_bytes: int) -> None:
        """Nobody looks."""

    # --- from power on to rest ------------------------------------------------------------------------------

    def power_on(self) -> str:
        """The loader's way until something runs: that slot. One that hangs is reset by its watchdog."""
        _switch.kernel = self.kernel
        self.boots += 1
        slot = ""
        for _ in range(RUNS_MAX):
            self.hear(LOADER_SAVES)
            slot = next(iter(self.loader.start(self.kernel)), "")
            self.log.append(f"slot {slot} boots")
            if not (self.case.kind == "dead" and held(self.kernel, slot) == "1.1"):
                break
        self.running = slot
        journal = self.kernel.content(f"{STATE}/{JOURNAL}") or b""
        number = next(number for number in range(3) if b'"boot%d"' % number not in journal)
        note = {"slot": slot, "boot_id": f"boot{number}"}
        self.kernel.start_run({BOOTED: msgspec.json.encode(note)})
        return slot

    def run_agent(self) -> int:
        """One run of the agent, and of a reboot that it asks for the shutting down; its exit code."""
        _switch.kernel = self.kernel
        try:
            code = run_once(self.ports, self._config)
        except TwinlockError as problem:
            self.log.append(f"ended: {problem}")
            code = problem.exit_code
        if code == REBOOT_WANTED:
            self.hear(SHUTS_DOWN)
            self.kernel.flush_all()
        return code

    def record(self) -> BootRecord | None:
        """The boot record as the agent reads it; None when it cannot."""
        _switch.kernel = self.kernel
        try:
            return self.boot.read()
        except TwinlockError:
            return None

    def at_rest(self) -> bool:
        """Whether the update is over, and the server knows how."""
        record = self.record()
        waiting = self.kernel.names(f"{STATE}/outbox")
        return bool(self.server.outcomes) and record is not None and record.trying is None and not waiting


def held(kernel: Kernel, slot: str) -> str:
    """The version of the release that a slot holds, byte for byte; "" for none."""
    return "" if slot not in SLOTS else whole_release(kernel.medium(SLOT_PATHS[slot]))


def whole_release(content: Content) -> str:
    """The version of the release that a slot's bytes begin with; "" when it is not whole."""
    if WHOLE not in content.known:
        versions = (version for version in VERSIONS if content.data.startswith(release(version).image))
        content.known[WHOLE] = next(versions, "")
    return str(content.known[WHOLE])


def wrong_slot(loader: Loader, kernel: Kernel, slot: str) -> str:
    """What is wrong with starting this slot; "" for nothing."""
    version = held(kernel, slot)
    if not version:
        return "is not a complete release"
    started = loader.kernel(kernel, slot)
    if started is not None and started != kernel_of(version):
        return f"holds {version}, and starts the kernel of another release"
    return ""
