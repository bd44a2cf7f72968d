"""One simulated device going through one update, with whatever a seed puts in its way.

    world = World(seed, Troubles(network=0.05), kind="good")
    assert world.run() == []

A `ruined` world begins with two slots that hold nothing that loads: recovery runs, with the same agent.

The agent is the real one: `run.run_once`, the machine, the installer, the outbox, and the metadata
process's own code except for signatures (`SimCheck`). Only its ports are simulated. After `CALM_STEP` steps
the troubles end, and from then on everything has to come to rest. `run` gives what was not as it must be.
"""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import msgspec

from twinlock.agent import identity, memory
from twinlock.agent.boot.base import Booted
from twinlock.agent.check import Check
from twinlock.agent.config import Config, parse
from twinlock.agent.hooks import POSTPONE
from twinlock.agent.plan import Running
from twinlock.agent.ports import HookResult, Ports, Request
from twinlock.agent.run import run_once
from twinlock.core import bootrecord, device_key
from twinlock.core.bootrecord import BootRecord
from twinlock.core.errors import TwinlockError, error
from twinlock.core.limits import SLOT_TAIL_SIZE_BYTES
from twinlock.core.names import RECOVERY, SLOTS
from twinlock.lab.sim import release as releases
from twinlock.lab.sim.clock import SimClock, SimRandom
from twinlock.lab.sim.fate import ROT, CutError, Fate, Troubles
from twinlock.lab.sim.link import URL, SimNetwork, SimServer
from twinlock.lab.sim.storage import SimBootControl, SimMedium, SimSlots, SimStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuf.api.metadata import TargetFile

    from twinlock.agent.metadata import MetadataClient
    from twinlock.agent.plan import CheckAnswer, CheckRequest
    from twinlock.core.manifest import Claims, Manifest
    from twinlock.lab.sim.release import SimRelease

Kind = Literal["good", "bad", "dead"]
STEPS_MAX: Final = 80
CALM_STEP: Final = 30
STEP_S: Final = 60.0
NOW_S: Final = 1_800_000_000.0
CLOCKS_S: Final = (0.0, NOW_S, 2_145_916_800.0)
_RUIN: Final = b"\xee" * (releases.SLOT_SIZE_BYTES - SLOT_TAIL_SIZE_BYTES)  # what is left of an image
_NOWHERE: Final = Path("/nonexistent")


@functools.cache
def _key() -> bytes:
    """One key for all simulated devices: making one takes longer than a simulation."""
    return device_key.generate()


@functools.cache
def _config() -> Config:
    slot = {"path": "/nonexistent/disk", "size_bytes": releases.SLOT_SIZE_BYTES}
    return parse(
        {
            "server": URL,
            "hardware": releases.HARDWARE,
            "product": releases.PRODUCT,
            "device_id": "sim",
            "state": "/nonexistent/state",
            "slots": {
                "a": {**slot, "offset_bytes": 0},
                "b": {**slot, "offset_bytes": releases.SLOT_SIZE_BYTES},
            },
            "boot": {"path": "/nonexistent/record", "booted": "/nonexistent/booted"},
            "reboot": {"mode": "exit"},
        }
    )


class _Listed:
    """What metadata says of the one release, without signatures; the link is used as the real client does."""

    def __init__(self, ports: Ports, release: SimRelease) -> None:
        self._ports = ports
        self._release = release

    def _get(self, path: str) -> bytes:
        response = self._ports.network.open(Request("GET", f"{URL}/repository/{path}"))
        if response.status != 200:
            raise error("server-busy", f"the server answers {response.status}")
        data = bytearray()
        buffer = memoryview(bytearray(65536))
        while got := response.read_into(buffer):
            data += buffer[:got]
        return bytes(data)

    def refresh(self) -> None:
        self._get("metadata/timestamp.json")
        memory.note_time(self._ports.store, memory.trusted_s(self._ports.store, self._ports.clock))

    def claims(self, name: str) -> tuple[TargetFile, Claims]:
        return cast("TargetFile", name), self._release.manifest.claims

    def manifest(self, signed: TargetFile, claims: Claims) -> tuple[bytes, Manifest]:
        return self._get("targets/manifest"), self._release.manifest


class SimCheck(Check):
    """The metadata process's own code, in this process."""

    def __init__(self, ports: Ports, request: CheckRequest, release: SimRelease) -> None:
        super().__init__(ports, _config(), request)
        self._listed = _Listed(ports, release)

    def _metadata(self) -> MetadataClient:
        return cast("MetadataClient", self._listed)


class World:
    """A device and its server. `log` says what happened to them."""

    def __init__(
        self, seed: object, troubles: Troubles, kind: Kind = "good", *, ruined: bool = False
    ) -> None:
        self.seed: Final = seed
        self.kind: Final = kind
        self.ruined: Final = ruined
        self._rng: Final = random.Random(f"world {seed}")
        self.fate: Final = Fate(random.Random(f"fate {seed}"), troubles)
        self.older: Final = releases.make("0.9", 1)
        self.old: Final = releases.make("1.0", 1)
        self.new: Final = releases.make("1.1", 2)
        # fresh from the factory the other slot is empty, later it holds the release before
        self._fresh = self._rng.random() < 0.5
        self._postponed = self._rng.randint(0, troubles.postponements_max)
        self.clock: Final = SimClock(self._rng.choice(CLOCKS_S) if troubles.clock else NOW_S)
        self.server: Final = SimServer(self.new)
        self.network: Final = SimNetwork(self.server, self.fate, self.clock)
        running = {
            "a": Running(
                product=releases.PRODUCT,
                version="1.0",
                counter=1,
                image_sha256=self.old.manifest.image_sha256,
                image_size_bytes=self.old.manifest.image_size_bytes,
            )
        }
        self.store: Final = SimStore(
            self.fate, {identity.KEY: _key(), memory.SLOTS_FILE: msgspec.json.encode(running)}
        )
        padding = bytes(releases.SLOT_SIZE_BYTES - len(self.old.image))
        self.media = {
            "a": SimMedium(self.old.image + padding),
            "b": SimMedium((b"" if self._fresh else self.older.image).ljust(releases.SLOT_SIZE_BYTES, b"\0")),
        }
        if ruined:
            self.media = {slot: SimMedium(_RUIN.ljust(releases.SLOT_SIZE_BYTES, b"\xee")) for slot in SLOTS}
        record = bootrecord.initial() if self._fresh else BootRecord(seq=7, default="a")
        self.boot_control: Final = SimBootControl(self.fate, _NOWHERE, record)
        self._known: dict[str, tuple[int, SimRelease | None]] = {}
        self.ports: Final = Ports(
            clock=self.clock,
            random=SimRandom(random.Random(f"random {seed}")),
            store=self.store,
            slots=SimSlots(self.media, self.fate),
            boot=self.boot_control,
            network=self.network,
            checker=self,
            hooks=self,
            power=self,
            display=self,
        )
        self._boots = 0
        self._trial_boots = 0
        self.violations: Final[list[str]] = []

    @property
    def log(self) -> list[str]:
        return self.fate.log

    # --- ports that are answered here -----------------------------------------------------------------------

    def check(self, request: CheckRequest) -> CheckAnswer:
        cut = self.fate.begin(f"check {request.mode}")
        answer = SimCheck(self.ports, request, self.new).answer()
        self.fate.end(cut)
        return answer

    def health(self, wanted: bool) -> list[HookResult]:
        cut = self.fate.begin("hooks.health")
        self.fate.end(cut)
        if wanted:
            return []
        healthy = self.kind == "good" or not self._holds(self.boot_control.running.slot, self.new)
        return [HookResult("10-app", 0 if healthy else 1, False, "ready" if healthy else "it does not start")]

    def ask(self, point: str) -> list[HookResult]:
        cut = self.fate.begin(f"hooks.{point}")
        self.fate.end(cut)
        if self._postponed > 0:
            self._postponed -= 1
            return [HookResult("busy", POSTPONE, False, "not now")]
        return []

    def reboot(self, reason: str, *, trial: bool = False) -> bool:
        cut = self.fate.begin("power.reboot")
        self.fate.end(cut)
        return True

    def note(self, text: str) -> None:
        self.log.append(text)

    def progress(self, phase: str, done_bytes: int, total_bytes: int) -> None:
        """Nobody looks."""

    # --- what happens ---------------------------------------------------------------------------------------

    def run(self) -> list[str]:
        """From the first boot to rest; everything that was wrong on the way and in the end."""
        self._boot()
        for step in range(STEPS_MAX):
            self.fate.calm = self.fate.calm or step >= CALM_STEP
            exit_code = self._process()
            self._check_bootable()
            if exit_code == 0 and self._at_rest():
                break
            self.clock.sleep(STEP_S)
            if exit_code == 10:
                self._boot()
        else:
            self._wrong(f"no rest in {STEPS_MAX} steps")
        self._check_end()
        return self.violations

    def _process(self) -> int | None:
        """One run of the agent: its exit code, None when it was cut."""
        try:
            return run_once(self.ports, _config())
        except TwinlockError as problem:
            self.log.append(f"ended: {problem}")
            if problem.code == "internal":
                self._wrong(f"a fault: {problem}")
            return problem.exit_code
        except CutError as cut:
            if cut.power:
                self.store.lose_power(self._rng)
                for medium in self.media.values():
                    medium.lose_power(self._rng)
                self._check_bootable()
                self._boot()
            return None

    def _boot(self) -> None:
        """A loader's way, until something runs that is not dead."""
        while True:
            record = bootrecord.newest(self.boot_control.records())[1]
            slot, to_save = bootrecord.next_boot(record)
            if to_save is not record:
                if self.fate.happens(self.fate.troubles.loader):
                    slot = bootrecord.fallback(record)
                    self.log.append("the loader could not save the try")
                else:
                    self.boot_control.save(to_save)
            if self.ruined:
                slot = self._loads(slot, to_save)
            self._boots += 1
            self.log.append(f"boot {self._boots}: slot {slot}")
            if slot == RECOVERY and self.ruined:
                self.boot_control.running = Booted(RECOVERY, f"boot{self._boots}")
                return
            if slot == RECOVERY or self._held(slot) is None:
                self._wrong(f"slot {slot} boots, which holds no complete release")
                return
            if not (self.kind == "dead" and self._holds(slot, self.new)):
                self.boot_control.running = Booted(slot, f"boot{self._boots}")
                return

    def _loads(self, slot: str, record: BootRecord) -> str:
        """What a loader starts that finds nothing to load in a ruined slot."""
        if slot != RECOVERY and self._is_ruin(slot):
            slot = bootrecord.next_when_unbootable(record, slot)
        return RECOVERY if slot != RECOVERY and self._is_ruin(slot) else slot

    def _is_ruin(self, slot: str) -> bool:
        """Whether nothing was installed there yet; what a gate probes lies behind every image."""
        return self.ruined and self.media[slot].now.startswith(_RUIN)

    def _at_rest(self) -> bool:
        record = bootrecord.newest(self.boot_control.records())[1]
        return bool(self.server.outcomes) and record.trying is None and not self.store.names("outbox")

    # --- what must hold -------------------------------------------------------------------------------------

    def _holds(self, slot: str, release: SimRelease) -> bool:
        return slot in SLOTS and self._held(slot) is release

    def _held(self, slot: str) -> SimRelease | None:
        """The release that a slot holds, byte for byte."""
        medium = self.media[slot]
        if slot not in self._known or self._known[slot][0] != medium.version:
            all_of_them = (self.old, self.new, self.older)
            held = next((one for one in all_of_them if medium.now.startswith(one.image)), None)
            self._known[slot] = (medium.version, held)
        return self._known[slot][1]

    def _wrong(self, what: str) -> None:
        self.violations.append(what)

    def _check_bootable(self) -> None:
        try:
            record = bootrecord.newest(self.boot_control.records())[1]
        except TwinlockError as problem:
            self._wrong(f"the boot record is lost: {problem.what}")
            return
        for slot in SLOTS:
            if slot not in record.failed and self._held(slot) is None and not self._is_ruin(slot):
                self._wrong(f"slot {slot} may boot and is not complete: {record}")
        if self._held(record.default) is None and record.default not in record.failed:
            if self._is_ruin(record.default):
                return
            self._wrong(f"the default is not complete: {record}")

    def _check_end(self) -> None:
        record = bootrecord.newest(self.boot_control.records())[1]
        states = [one.state for one in self.server.outcomes]
        succeeded = states == ["succeeded"]
        wanted = ("b", self.new) if succeeded else ("a", self.old)
        as_told = record.default == wanted[0] and self._holds(*wanted)
        if self.ruined:
            bad = record.default in record.failed
            as_told = self._holds(record.default, self.new) and not bad
            if not succeeded:
                as_told = bad or self._is_ruin(record.default)
        if not as_told:
            self._wrong(f"the server believes {states}, the device runs {record.default}: {record}")
        if len(states) != 1:
            self._wrong(f"one outcome should be told, these were: {states}")
        if self.kind != "good" and succeeded:
            self._wrong("a release that does not work was committed")
        numbers = sorted(self.server.reports)
        if numbers != list(range(1, len(numbers) + 1)) and not self.fate.troubles.disk_full:
            self._wrong(f"report numbers were left out: {numbers}")
        self.violations.extend(self.server.conflicts)
        self._check_expected(states)
        self._check_traffic()

    def _check_expected(self, states: Sequence[str]) -> None:
        """With nothing worse than two cuts a good release is committed, and a bad one is found out."""
        troubles = self.fate.troubles
        harmless = troubles == Troubles(cuts_max=troubles.cuts_max) and troubles.cuts_max <= 2
        wanted = ["succeeded"] if self.kind == "good" else ["rolled_back"]
        if harmless and states != wanted:
            told = [(one.state, one.code) for one in self.server.outcomes]
            self._wrong(f"the outcome should be {wanted}, it is {told}")

    def _check_traffic(self) -> None:
        """At most one part twice for each cut, failure of the link, write kept wrong, and probe of a gate."""
        cuts = sum(line.startswith(("kill ", "power ", ROT)) for line in self.log)
        gates = sum(line.endswith("checking its health") for line in self.log)
        most = (cuts + gates + self.network.faults) * self.new.part_size_bytes_max
        if self.network.twice_bytes > most and not self.fate.troubles.disk_full:
            self._wrong(f"{self.network.twice_bytes} bytes came twice, allowed are {most}")


def replay(seed: object, troubles: Troubles, kind: Kind) -> tuple[list[str], Any]:
    """A world's log and reports, for comparing two runs of one seed."""
    world = World(seed, troubles, kind)
    world.run()
    return world.log, sorted(world.server.reports.items())
