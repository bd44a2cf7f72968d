"""What happens to a simulated device, decided by a seed: where it is cut, which calls fail."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

from twinlock.core.errors import error

BEFORE: Final = "before"
TORN: Final = "torn"
AFTER: Final = "after"
KILL: Final = "kill"
POWER: Final = "power"
ROT: Final = "a bit of a write is kept wrong"
CALLS_MAX: Final = 160  # a cut is somewhere in the first so many calls; an update has about 100


class CutError(BaseException):
    """The process ends here; no `except Exception` may stop it. `power`: what was not flushed is at risk."""

    def __init__(self, *, power: bool) -> None:
        super().__init__("cut")
        self.power = power


@dataclass(frozen=True, slots=True)
class Troubles:
    """How bad it gets. Shares are probabilities per call, the others are numbers per run of a world.

    `loader`: saving a try fails. `rot`: a slot keeps one bit of a write wrong. `clock`: starts decades off.
    """

    cuts_max: int = 3
    network: float = 0.0
    disk_full: float = 0.0
    loader: float = 0.0
    rot: float = 0.0
    postponements_max: int = 0
    clock: bool = False


@dataclass
class Fate:
    """Draws from one generator in the order of the calls; `calm` ends all troubles."""

    rng: random.Random
    troubles: Troubles
    calls: int = 0
    log: list[str] = field(default_factory=list)
    calm: bool = False
    _cuts: dict[int, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for _ in range(self.rng.randint(0, self.troubles.cuts_max)):
            at = self.rng.randint(1, CALLS_MAX)
            self._cuts[at] = (self.rng.choice((KILL, POWER)), self.rng.choice((BEFORE, TORN, AFTER)))

    def begin(self, label: str) -> str:
        """Counts a call; how it shall be cut, or "". Raises CutError for one that never begins."""
        self.calls += 1
        how, mode = ("", "") if self.calm else self._cuts.pop(self.calls, ("", ""))
        if not how:
            return ""
        self.log.append(f"{how} {mode} call {self.calls}: {label}")
        if mode == BEFORE:
            raise CutError(power=how == POWER)
        return f"{how} {mode}"

    def end(self, cut: str) -> None:
        """The call is done, or as much of it as a torn one does."""
        if cut:
            raise CutError(power=cut.startswith(POWER))

    @staticmethod
    def torn(cut: str) -> bool:
        """Whether `begin` wants only a part of the call done."""
        return cut.endswith(TORN)

    def part(self, size: int, step: int = 1) -> int:
        """How much of something torn is done: less than all of it."""
        return self.rng.randrange(max(1, -(-size // step))) * step

    def happens(self, share: float) -> bool:
        """Whether a trouble of this probability strikes now."""
        return not self.calm and share > 0 and self.rng.random() < share

    def check_space(self, name: str) -> None:
        """Raises DeviceError `disk-full` when the disk is full at this moment."""
        if self.happens(self.troubles.disk_full):
            self.log.append(f"disk full at {name}")
            raise error("disk-full", f"state file {name}: no space left on device")
