"""Everything that the agent needs of the world outside, as protocols.

The real ones are built in `wiring`; the lab and the tests give others with the same meaning. Every method
raises TwinlockError and nothing else for what the world does wrong. Sizes and offsets are bytes.

| port         | real one                  | what it stands for                                        |
|--------------|---------------------------|-----------------------------------------------------------|
| Clock        | clock.SystemClock         | wall clock (not trusted), monotonic clock, waiting        |
| Random       | clock.SystemRandom        | jitter and nonces                                         |
| Store        | store.FolderStore         | the state folder: whole files, durable when a call returns |
| Slots        | slots.ConfiguredSlots     | the two slots as block devices or ranges of a file        |
| BootControl  | boot.file.FileBootControl | the boot record                                           |
| Network      | http.HttpNetwork          | one request, one answer whose body is read in pieces      |
| Checker      | checker.ChildChecker      | the metadata process                                      |
| Hooks        | hooks.FolderHooks         | the device's own programs                                 |
| Power        | power.ConfiguredPower     | the reboot                                                |
| System       | linux.LinuxSystem         | service manager, data space, mounts                       |
| Display      | display.*                 | what a person or another program sees of the work         |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from twinlock.agent.boot.base import BootControl
from twinlock.agent.system import System, Unmanaged

if TYPE_CHECKING:
    from twinlock.agent.plan import CheckAnswer, CheckRequest

__all__ = [
    "BlockDevice",
    "BootControl",
    "Checker",
    "Clock",
    "Display",
    "HookResult",
    "Hooks",
    "Network",
    "Ports",
    "Power",
    "Random",
    "Request",
    "Response",
    "Slots",
    "Store",
    "System",
]


class Clock(Protocol):
    """Time. `now_s` is the wall clock in seconds since 1970 and may be wrong by decades."""

    def now_s(self) -> float: ...

    def monotonic_s(self) -> float: ...

    def sleep(self, wait_s: float) -> None: ...


class Random(Protocol):
    """Randomness. `fraction` is uniform in [0, 1); `token` is 32 hex digits that nobody can guess."""

    def fraction(self) -> float: ...

    def token(self) -> str: ...


class Store(Protocol):
    """The state folder. Names are relative, at most one folder deep; missing folders are made.

    `write` replaces a whole file and is durable when it returns; `write_volatile` replaces it without a
    flush, for what may be lost. `append` adds to a file in one write, not flushed: a power cut may lose or
    tear the tail. `read` gives None for a file that is not there and refuses one larger than
    `size_bytes_max`.
    """

    def read(self, name: str, size_bytes_max: int) -> bytes | None: ...

    def write(self, name: str, data: bytes) -> None: ...

    def write_volatile(self, name: str, data: bytes) -> None: ...

    def append(self, name: str, data: bytes) -> None: ...

    def remove(self, name: str) -> None: ...

    def names(self, folder: str) -> list[str]: ...


class BlockDevice(Protocol):
    """One open slot. Offsets count from the slot's start; nothing outside it can be reached.

    `write` is durable after `sync`. `drop_cache` makes later reads come from the medium.
    """

    @property
    def size_bytes(self) -> int: ...

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fills `buffer`; an end before that is `io-error`."""
        ...

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None: ...

    def sync(self) -> None: ...

    def drop_cache(self) -> None: ...

    def close(self) -> None: ...


class Slots(Protocol):
    """The configured slots. `open` is exclusive and for writing; raises `slot-busy`, `slot-unusable`.

    `look` is for reading only, also of the slot that runs; raises `slot-unusable`.
    """

    def size_bytes(self, slot: str) -> int: ...

    def open(self, slot: str) -> BlockDevice: ...

    def look(self, slot: str) -> BlockDevice: ...


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. `body` None means there is none."""

    method: Literal["GET", "POST"]
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


class Response(Protocol):
    """An answer whose body is read in pieces. Header names are lower case."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    def read_into(self, buffer: memoryview) -> int:
        """How many bytes were read into `buffer`; 0 at the end of the body."""
        ...

    def close(self) -> None: ...


class Network(Protocol):
    """Follows no redirect. Raises `server-unreachable`, `connection-lost`, `transfer-stalled`, ..."""

    def open(self, request: Request) -> Response: ...


class Checker(Protocol):
    """Runs the metadata process to its end; a process that dies is `internal`."""

    def check(self, request: CheckRequest) -> CheckAnswer: ...


@dataclass(frozen=True, slots=True)
class HookResult:
    """How one program ended. `output` is the bounded tail of what it wrote."""

    name: str
    exit_code: int
    timed_out: bool
    output: str


class Hooks(Protocol):
    """Runs the programs of folders in the order of their names, each within its time, until one fails."""

    def health(self, wanted: bool) -> list[HookResult]:
        """The results of required.d, or of wanted.d (all of them, failed or not).

        All together have until the deadline; what did not start before it has timed out.
        """
        ...

    def ask(self, point: str) -> list[HookResult]:
        """The results of the hooks at `pre-download`, `pre-install` or `pre-reboot`."""
        ...


class Power(Protocol):
    """`reboot` returns True when the caller has to see to the reboot itself (mode "exit").

    `trial` asks the loader for one boot of the slot on trial, where the reboot carries that wish.
    """

    def reboot(self, reason: str, *, trial: bool = False) -> bool: ...


class Display(Protocol):
    """What is going on, for people and for other programs; never fails."""

    def note(self, text: str) -> None: ...

    def progress(self, phase: str, done_bytes: int, total_bytes: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Ports:
    """All of them."""

    clock: Clock
    random: Random
    store: Store
    slots: Slots
    boot: BootControl
    network: Network
    checker: Checker
    hooks: Hooks
    power: Power
    display: Display
    system: System = field(default_factory=Unmanaged)
