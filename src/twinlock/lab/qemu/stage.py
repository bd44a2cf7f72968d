"""A virtual device with all that it needs around it, set up once: what scenarios, cuts and benches play on.

The device leaves the factory with its image in slot a, makes its key on the first boot, and is let in by the
operator. From then on it does everything by itself; the stage rolls out releases, watches what the server and
the device's own service say, and takes the power away when it is asked to.
"""

from __future__ import annotations

import re
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from twinlock.core.bootrecord import next_boot
from twinlock.core.errors import error
from twinlock.core.names import SLOTS
from twinlock.lab import images
from twinlock.lab.qemu.accel import accelerator
from twinlock.lab.qemu.build import SERVICE_PORT, Builder, Settings
from twinlock.lab.qemu.device import QemuDevice
from twinlock.lab.qemu.rig import FINAL_STATES, Rig
from twinlock.lab.qemu.service import ServiceWatch, gaps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from twinlock.lab.qemu.build import Flaw
    from twinlock.lab.qemu.machine import Architecture
    from twinlock.lab.qemu.service import Gap
    from twinlock.lab.qemu.volatile import CutPlan
    from twinlock.provision.layout import DiskSpec
    from twinlock.publish.upload import Operator

FACTORY: Final = "1.0"
DOWN_S_MIN: Final = 3.0  # a pause of the service that is worth telling; a busy emulator makes shorter ones
_OUTCOME_CPU_S_MAX: Final = 900.0
_BOOTING: Final = re.compile(r"twinlock: booting (?:slot )?(a|b|recovery)\b")


def note_nothing(text: str) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Updated:
    """How a rollout ended at the server; `seconds` from the rollout's start, `boots` since then."""

    version: str
    state: str
    code: str
    detail: str
    bytes_fetched: int
    bytes_again: int
    seconds: float
    cpu_s: float
    boots: tuple[str, ...]
    away: tuple[Gap, ...]

    @property
    def away_s(self) -> float:
        """For how long the device's service did not answer, in all."""
        return sum(gap.seconds for gap in self.away)


class Stage:
    """Made by `opened`."""

    def __init__(
        self, rig: Rig, builder: Builder, device: QemuDevice, settings: Settings, note: Callable[[str], None]
    ) -> None:
        self.rig: Final = rig
        self.builder: Final = builder
        self.device: Final = device
        self.settings: Final = settings
        self.note: Final = note
        self.hashes: Final[dict[str, str]] = {}  # SHA-256 of an image -> its version
        self._life = ExitStack()
        self._watch: ServiceWatch | None = None

    @property
    def image_size_bytes(self) -> int:
        """How large every image is."""
        return self.builder.plan.slot_image_size_bytes_max

    @property
    def accelerator(self) -> str:
        """What runs the device's processor: `kvm` or `tcg` (emulation)."""
        return accelerator(self.device.architecture)

    # --- power

    def power_on(self, cut: CutPlan | None = None) -> None:
        """Switches the device on, and asks its service from then on."""
        machine = self.device.power_on(cut)
        watch = ServiceWatch(machine.forwarded_port())
        self._life.enter_context(watch)
        self._watch = watch

    def power_off(self, seed: int) -> None:
        """Takes the power away; see `QemuDevice.power_off`."""
        self._life.close()
        self._watch = None
        self.device.power_off(seed)

    @property
    def service(self) -> str:
        """The latest words of the device's service since it was switched on."""
        return self._watch.latest if self._watch is not None else ""

    def boots(self, since: int = 0) -> tuple[str, ...]:
        """Where the loader went, from byte `since` of the console on."""
        return tuple(_BOOTING.findall(self.device.machine.console.text(since)))

    # --- releases

    def release(self, version: str, flaw: Flaw | None = None) -> None:
        """Builds, packs, signs and publishes a release."""
        image = self.builder.image(version, flaw)
        self.rig.publish(image, version, self.builder.hardware)
        self._know(image, version)
        image.unlink()

    def _know(self, image: Path, version: str) -> None:
        self.hashes[images.sha256_range(image, 0, self.image_size_bytes)] = version

    def in_slot(self, slot: str) -> str | None:
        """Which release a slot holds, byte for byte; None when it is none whole. Only without power."""
        return self.hashes.get(self.device.slot_sha256(slot, self.image_size_bytes))

    def check_medium(self) -> tuple[str, str]:
        """What the loader will boot from the medium as it is, (slot, version); only without power.

        Raises InternalError `internal` when that is not a whole release: a device that such a cut leaves
        behind may not come back.
        """
        slot, _ = next_boot(self.device.record())
        version = self.in_slot(slot) if slot in SLOTS else None
        if version is None:
            raise error("internal", f"the loader would boot slot {slot}, which holds no whole release")
        return slot, version

    # --- a life

    def begin(self) -> float:
        """The first boot: the device enrols and is accepted. Gives the seconds until its service answered."""
        start_s = time.monotonic()
        self.power_on()
        self.device.wait(lambda: bool(self.service), "the device's service")
        boot_s = time.monotonic() - start_s
        device_id = self.settings.device_id
        self.device.wait(lambda: self.rig.device(device_id) is not None, "the enrolment")
        self.rig.accept(device_id)
        self.note(f"first boot: its service answered after {boot_s:.0f} s, then it enrolled")
        return boot_s

    def update(
        self, version: str, meanwhile: Callable[[dict[str, Any]], None] = lambda found: None
    ) -> Updated:
        """Rolls a published release out and waits for its outcome; `meanwhile` sees what the server knows."""
        watch, machine = self._watch, self.device.machine
        assert watch is not None, "the power is off"
        start_s, cpu_s, since = time.monotonic(), self.device.cpu_s(), machine.console.position()
        rollout = self.rig.roll_out(version, self.settings.device_id)
        found: dict[str, Any] = {}
        before = watch.latest

        def ended() -> bool:
            said = self.rig.assignment(rollout)
            if said["state"] != found.get("state"):
                self.note(f"{version}: {said['state']} after {time.monotonic() - start_s:.0f} s")
            found.update(said)
            meanwhile(found)
            return found["state"] in FINAL_STATES

        self.device.wait(ended, f"an outcome of {version}", cpu_s_max=_OUTCOME_CPU_S_MAX)
        served = version if found["state"] == "succeeded" else before.split(" ")[0]
        self.device.wait(lambda: watch.latest.startswith(served), f"the service of {served}")
        answers = [one for one in watch.answers if one.time_s >= start_s - DOWN_S_MIN]
        return Updated(
            version=version,
            state=found["state"],
            code=found["code"],
            detail=found["detail"],
            bytes_fetched=found["bytes_fetched"],
            bytes_again=found["bytes_again"],
            seconds=time.monotonic() - start_s,
            cpu_s=self.device.cpu_s() - cpu_s,
            boots=self.boots(since),
            away=tuple(gaps(answers, DOWN_S_MIN)),
        )

    def close(self) -> None:
        """Ends the watching thread."""
        self._life.close()


@contextmanager
def opened(
    architecture: Architecture,
    folder: Path,
    connect: Callable[[str, str], Operator],
    settings: Settings,
    *,
    spec: DiskSpec | None = None,
    tree: Path | None = None,
    more: Sequence[Path] = (),
    note: Callable[[str], None] = note_nothing,
) -> Iterator[Stage]:
    """A stage in an empty `folder`; leaving it ends everything that it started. `more` are further disks."""
    made = folder / "images"
    made.mkdir(parents=True)
    with ExitStack() as life:
        rig = life.enter_context(Rig(folder / "rig", connect))
        builder = Builder(architecture, made, rig, settings, spec=spec, tree=tree)
        image = builder.image(FACTORY)
        disk = builder.disk(image)
        device = life.enter_context(
            QemuDevice(
                architecture, builder.plan, disk, folder / "device", service_port=SERVICE_PORT, more=more
            )
        )
        stage = Stage(rig, builder, device, settings, note)
        life.callback(stage.close)
        stage._know(image, FACTORY)
        image.unlink()
        note(f"built a disk of {builder.plan.disk_size_bytes} bytes, slots of {stage.image_size_bytes}")
        yield stage
