"""The agent, killed for real at a chosen step of its work.

    python -m twinlock.lab.killable --ledger FILE [--kill N[:MODE]]... [--seed S] -- run --config agent.toml

runs `twinlock-agent` with every port wrapped: each call that leaves a mark outside of the process is
counted and noted in the ledger (see `ledger`), and the call with the number N ends this very process with
SIGKILL: `before` it begins (the default), `after` it is done, or `torn`, in the middle of it. The metadata
process that `run` starts is counted and killed in the same way, and takes its parent along, as a power cut
would. Numbers go on over restarts and reboots as long as the ledger is the same file.

| call         | what it leaves behind when torn                        |
|--------------|--------------------------------------------------------|
| store.write  | part of the temporary file, or all of it and no rename |
| store.append | part of what was to be added                           |
| slot.write   | the first sectors                                      |
| boot.*       | part of the record's sector                            |
| net.read     | part of what was asked for was received                |
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from twinlock.agent import main as agent
from twinlock.agent import wiring
from twinlock.agent.boot.file import FileBootControl
from twinlock.agent.checker import ChildChecker
from twinlock.agent.journal import JOURNAL
from twinlock.agent.parent import PARENT
from twinlock.agent.ports import BlockDevice, HookResult, Ports, Request, Response
from twinlock.agent.store import TEMPORARY, FolderStore
from twinlock.core.limits import KIB
from twinlock.lab.ledger import BEFORE, MODES, TORN, Ledger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from twinlock.agent.config import Config
    from twinlock.agent.plan import CheckAnswer, CheckRequest
    from twinlock.agent.ports import Checker, Hooks, Network, Power, Slots
    from twinlock.core.bootrecord import BootRecord

READ_SIZE_BYTES: Final = 64 * KIB  # reads from the network come in these, so that every run counts alike
SECTOR_SIZE_BYTES: Final = 512
PROGRAM: Final = (sys.executable, "-m", "twinlock.lab.killable")


class Killer:
    """Counts calls and ends this process at the chosen ones."""

    def __init__(self, ledger: Ledger, kills: Mapping[int, str], seed: int) -> None:
        self.ledger: Final = ledger
        self._kills: Final = kills
        self._seed: Final = seed

    def begin(self, label: str) -> str:
        """Counts a call; returns how it shall end, "" for in peace. Does not return for `before`."""
        mode = self._kills.get(self.ledger.next(label), "")
        if mode == BEFORE:
            self.die()
        return mode

    def end(self, mode: str) -> None:
        """The call is done."""
        if mode:
            self.die()

    def part(self, size: int, step: int = 1) -> int:
        """How much of `size` a torn call does, in whole steps: less than all of it, maybe nothing."""
        steps = max(1, -(-size // step))
        return random.Random(f"{self._seed}:{self.ledger.count}").randrange(steps) * step

    def die(self) -> None:
        """SIGKILL for this process, and for its parent if this is the metadata process."""
        parent = os.environ.get(PARENT, "")
        if parent.isdecimal():
            os.kill(int(parent), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


class KillableStore(FolderStore):
    """Is a `ports.Store`."""

    def __init__(self, folder: Path, killer: Killer) -> None:
        super().__init__(folder)
        self._killer = killer

    def write(self, name: str, data: bytes) -> None:
        mode = self._killer.begin(f"store.write {_named(name, data)}")
        if mode == TORN:
            self._tear(name, data)
        super().write(name, data)
        self._killer.end(mode)

    def write_volatile(self, name: str, data: bytes) -> None:
        mode = self._killer.begin(f"store.write {_named(name, data)}")
        if mode == TORN:
            self._tear(name, data)
        super().write_volatile(name, data)
        self._killer.end(mode)

    def append(self, name: str, data: bytes) -> None:
        mode = self._killer.begin(f"store.append {name}")
        if mode == TORN:
            data = data[: self._killer.part(len(data))]
        super().append(name, data)
        self._killer.end(mode)

    def remove(self, name: str) -> None:
        mode = self._killer.begin(f"store.remove {_short(name)}")
        super().remove(name)
        self._killer.end(mode)

    def _tear(self, name: str, data: bytes) -> None:
        """As far as `write` comes before its rename."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = self._killer.part(2 * len(data) + 1)
        path.with_name(path.name + TEMPORARY).write_bytes(data[:part])
        self._killer.die()


class KillableDevice:
    """Is a `ports.BlockDevice`."""

    def __init__(self, inner: BlockDevice, killer: Killer) -> None:
        self._inner = inner
        self._killer = killer

    @property
    def size_bytes(self) -> int:
        return self._inner.size_bytes

    def read_into(self, buffer: memoryview, offset: int) -> None:
        mode = self._killer.begin("slot.read")
        self._inner.read_into(buffer, offset)
        self._killer.end(mode)

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        mode = self._killer.begin("slot.write")
        if mode == TORN:
            data = memoryview(data)[: self._killer.part(len(data), SECTOR_SIZE_BYTES)]
        self._inner.write(data, offset)
        self._killer.end(mode)

    def sync(self) -> None:
        mode = self._killer.begin("slot.sync")
        self._inner.sync()
        self._killer.end(mode)

    def drop_cache(self) -> None:
        self._inner.drop_cache()

    def close(self) -> None:
        self._inner.close()


class KillableSlots:
    """Is a `ports.Slots`."""

    def __init__(self, inner: Slots, killer: Killer) -> None:
        self._inner = inner
        self._killer = killer

    def size_bytes(self, slot: str) -> int:
        return self._inner.size_bytes(slot)

    def open(self, slot: str) -> BlockDevice:
        return KillableDevice(self._inner.open(slot), self._killer)

    def look(self, slot: str) -> BlockDevice:
        return KillableDevice(self._inner.look(slot), self._killer)


class KillableBootControl(FileBootControl):
    """Is a `ports.BootControl`."""

    def __init__(self, path: Path, offsets: tuple[int, int], booted: Path, killer: Killer) -> None:
        super().__init__(path, offsets, booted)
        self._killer = killer
        self._torn = False

    def invalidate(self, slot: str) -> BootRecord:
        mode = self._begin("boot.invalidate")
        return self._end(super().invalidate(slot), mode)

    def arm(self, slot: str, tries: int, trial_id: str) -> BootRecord:
        mode = self._begin("boot.arm")
        return self._end(super().arm(slot, tries, trial_id), mode)

    def commit(self, trial_id: str) -> BootRecord:
        mode = self._begin("boot.commit")
        return self._end(super().commit(trial_id), mode)

    def roll_back(self, trial_id: str, reason: str) -> BootRecord:
        mode = self._begin("boot.roll_back")
        return self._end(super().roll_back(trial_id, reason), mode)

    def abandon(self, slot: str) -> BootRecord:
        mode = self._begin("boot.abandon")
        return self._end(super().abandon(slot), mode)

    def restore(self, default: str, failed: frozenset[str]) -> BootRecord:
        mode = self._begin("boot.restore")
        return self._end(super().restore(default, failed), mode)

    def self_test(self) -> None:
        mode = self._begin("boot.self_test")
        super().self_test()
        self._killer.end(mode)

    def _begin(self, label: str) -> str:
        mode = self._killer.begin(label)
        self._torn = mode == TORN
        return mode

    def _end(self, record: BootRecord, mode: str) -> BootRecord:
        self._killer.end(mode)
        return record

    def _write(self, copy: int, sector: bytes) -> None:
        if self._torn:
            fd = os.open(self._path, os.O_WRONLY | os.O_DSYNC)
            os.pwrite(fd, sector[: self._killer.part(len(sector))], self._offsets[copy])
            self._killer.die()
        super()._write(copy, sector)


class KillableResponse:
    """Is a `ports.Response`."""

    def __init__(self, inner: Response, label: str, killer: Killer) -> None:
        self._inner = inner
        self._label = label
        self._killer = killer

    @property
    def status(self) -> int:
        return self._inner.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self._inner.headers

    def read_into(self, buffer: memoryview) -> int:
        """As many bytes as fit, however they arrive: then the number of reads is the same in every run."""
        mode = self._killer.begin(f"net.read {self._label}")
        wanted = min(len(buffer), READ_SIZE_BYTES)
        if mode == TORN:
            wanted = self._killer.part(wanted)
        done = 0
        while done < wanted:
            got = self._inner.read_into(buffer[done:wanted])
            if not got:
                break
            done += got
        self._killer.end(mode)
        return done

    def close(self) -> None:
        self._inner.close()


class KillableNetwork:
    """Is a `ports.Network`."""

    def __init__(self, inner: Network, killer: Killer) -> None:
        self._inner = inner
        self._killer = killer

    def open(self, request: Request) -> Response:
        label = _endpoint(request.url)
        mode = self._killer.begin(f"net.open {label}")
        response = self._inner.open(request)
        self._killer.end(mode)
        return KillableResponse(response, label, self._killer)


class KillableChecker:
    """Is a `ports.Checker`. The child counts on in the same ledger."""

    def __init__(self, inner: Checker, killer: Killer) -> None:
        self._inner = inner
        self._killer = killer

    def check(self, request: CheckRequest) -> CheckAnswer:
        mode = self._killer.begin(f"check {request.mode}")
        answer = self._inner.check(request)
        self._killer.ledger.sync()
        self._killer.end(mode)
        return answer


class KillableHooks:
    """Is a `ports.Hooks`."""

    def __init__(self, inner: Hooks, killer: Killer) -> None:
        self._inner = inner
        self._killer = killer

    def health(self, wanted: bool) -> list[HookResult]:
        mode = self._killer.begin("hooks.wanted" if wanted else "hooks.required")
        results = self._inner.health(wanted)
        self._killer.end(mode)
        return results

    def ask(self, point: str) -> list[HookResult]:
        mode = self._killer.begin(f"hooks.{point}")
        results = self._inner.ask(point)
        self._killer.end(mode)
        return results


class KillablePower:
    """Is a `ports.Power`."""

    def __init__(self, inner: Power, killer: Killer) -> None:
        self._inner = inner
        self._killer = killer

    def reboot(self, reason: str, *, trial: bool = False) -> bool:
        mode = self._killer.begin("power.reboot")
        result = self._inner.reboot(reason, trial=trial)
        self._killer.end(mode)
        return result


def _short(name: str) -> str:
    """A state file's name without what differs from run to run."""
    folder, slash, _ = name.partition("/")
    return f"{folder}/*" if slash and folder == "outbox" else name


def _named(name: str, data: bytes) -> str:
    """The name, and for the journal the phase that it is about to hold."""
    if name != JOURNAL:
        return _short(name)
    return f"{name} {msgspec.json.decode(data)['state']['phase']}"


def _endpoint(url: str) -> str:
    """What a request is for, without hosts, versions and hashes."""
    parts = url.split("/")[3:]
    if parts[0] == "repository":
        return f"{parts[1]} {parts[-1].split('.')[-2]}"
    return parts[2]


def wrap(ports: Ports, config: Config, config_path: Path, lock_fd: int | None, killer: Killer) -> Ports:
    """The agent's real ports, counted."""
    store = KillableStore(config.state, killer)
    boot, network = config.boot, config.network
    checker = ChildChecker(
        store, ports.random, config_path, network.check_timeout_s, lock_fd, (*PROGRAM, *sys.argv[1 : _cut()])
    )
    return replace(
        ports,
        store=store,
        slots=KillableSlots(ports.slots, killer),
        boot=KillableBootControl(boot.path, boot.offset_bytes, boot.booted, killer),
        network=KillableNetwork(ports.network, killer),
        checker=KillableChecker(checker, killer),
        hooks=KillableHooks(ports.hooks, killer),
        power=KillablePower(ports.power, killer),
    )


def _cut() -> int:
    """Where the agent's own arguments begin: behind `--`."""
    return sys.argv.index("--") + 1


def kill_at(text: str) -> tuple[int, str]:
    """`N` or `N:MODE`. Raises ValueError."""
    number, _, mode = text.partition(":")
    mode = mode or BEFORE
    if mode not in MODES:
        raise ValueError(f"there is no way {mode!r} to be killed")
    return int(number), mode


def arguments() -> argparse.Namespace:
    """What stands before `--`."""
    top = argparse.ArgumentParser(prog="twinlock.lab.killable", description="The agent, killed at a call.")
    top.add_argument("--ledger", type=Path, required=True, help="where calls are counted and noted")
    top.add_argument("--kill", type=kill_at, action="append", default=[], metavar="N[:before|torn|after]")
    top.add_argument("--seed", type=int, default=0, help="decides how much of a torn call is done")
    if "--" not in sys.argv:
        top.error("give the agent's own arguments behind --")
    return top.parse_args(sys.argv[1 : _cut() - 1])


def main() -> int:
    """The agent's exit code, if it gets that far."""
    given = arguments()
    killer = Killer(Ledger(given.ledger), dict(given.kill), given.seed)
    build = wiring.build_ports

    def build_ports(config: Config, config_path: Path, lock_fd: int | None = None) -> Ports:
        return wrap(build(config, config_path, lock_fd), config, config_path, lock_fd, killer)

    args: Sequence[str] = sys.argv[_cut() :]
    wiring.build_ports = build_ports  # for as long as this process lives
    return agent.main(args)


if __name__ == "__main__":
    sys.exit(main())
