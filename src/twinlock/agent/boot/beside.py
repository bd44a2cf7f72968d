"""Boot control for loaders that cannot hold the record: it lies beside them, in two sectors of its own.

Every change is the record's one write, and steps on what the loader reads (`core.bootloader`), in this order:

| change       | order                   | if the power goes between                                   |
|--------------|-------------------------|-------------------------------------------------------------|
| `invalidate` | loader, record          | the slot does not boot any more, and is not written yet     |
| `arm`        | kernels, record, loader | before the record: as it was; after it: the default boots,  |
|              |                         | and the agent goes on                                       |
| `commit`     | loader, record          | the new slot boots, and its agent judges it again           |
| `roll_back`  | loader, record          | the old slot boots with the trial pending: it is rolled back |
|              |                         | again, or tried while it has tries                          |

So the loader never points at a slot that the record calls bad. `mend`, at every start, lets the loader follow
the record once more; it writes only when something differs. Where the agent counts the tries
(`LoaderRules.counts` is false), one is taken off in the record before the loader is asked for a trial boot: a
cut between the two costs a try.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from twinlock.agent.boot.base import Capabilities
from twinlock.agent.boot.file import BOOTED_SIZE_BYTES_MAX, FileBootControl
from twinlock.core import bootrecord
from twinlock.core.bootloader import Drop, Put
from twinlock.core.bootloader_efi import BOOT_ORDER
from twinlock.core.bootrecord import COPIES, BootRecord
from twinlock.core.durable import os_errors, read_bounded, write_atomic
from twinlock.core.errors import TwinlockError, error
from twinlock.core.limits import TRIES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from twinlock.core.bootloader import LoaderRules, Step

ASKED: Final = "trial-boot.json"
PROBE: Final = "twinlock/probe"


class OpenPlace(Protocol):
    """The loader's files while they can be reached. All raise DeviceErrors, nothing else."""

    def read(self, watches: Callable[[str], bool]) -> dict[str, bytes]: ...

    def perform(self, step: Step) -> None:
        """Durable when it returns, and read again from the medium."""
        ...

    def install(self, slot: str) -> None:
        """Copies what the loader loads from the slot to its folder; what is there already is not written."""
        ...


class Place(Protocol):
    """Where the loader's files are. `write` False leaves the medium as it is."""

    def open(self, *, write: bool) -> AbstractContextManager[OpenPlace]: ...


class Asked(msgspec.Struct, frozen=True):
    """A trial boot that was asked for in the boot with this id."""

    boot_id: str
    trial_id: str


class BesideBootControl(FileBootControl):
    """Is a `base.BootControl`: the record at `path`, the loader's files at `place` by `rules`.

    `booted` is the note of the running slot; a note beside it says that a trial boot was asked for, so that
    asking again in the same boot takes no second try.
    """

    def __init__(
        self, path: Path, offsets_bytes: tuple[int, int], booted: Path, rules: LoaderRules, place: Place
    ) -> None:
        super().__init__(path, offsets_bytes, booted)
        self._rules = rules
        self._place = place
        self._asked = booted.with_name(ASKED)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(name=self._rules.name, tries_max=TRIES_MAX, keeps_reason=True)

    def read(self) -> BootRecord:
        """The record that counts; of a trial, the tries that the loader has left.

        Raises DeviceError `boot-record`, `boot-control`.
        """
        record = super().read()
        if record.trying is None or not self._rules.counts:
            return record
        return replace(record, tries_left=self._rules.tries_left(self._state(), record))

    def astray(self) -> list[str]:
        """As in `FileBootControl`. Raises DeviceError `boot-record`, `boot-control`."""
        return [step.path for step in self._rules.follow(self._state(), super().read())]

    def mend(self) -> list[str]:
        """Makes the loader follow the record; names of what was not as it should be."""
        return self._follow(super().read())

    def arm(self, slot: str, tries: int, trial_id: str) -> BootRecord:
        """The slot's kernel goes to the loader's partition first, while nothing there names it."""
        record = super().read()
        new = bootrecord.arm(record, slot, tries, trial_id)
        if new != record:
            self._follow(record)
            with self._place.open(write=True) as place:
                place.install(slot)
            self._store(new)
        self._follow(new)
        return self.read()

    def restore(self, default: str, failed: frozenset[str]) -> BootRecord:
        """The record first: while it is lost, the loader boots as it did."""
        record = super().restore(default, failed)
        self._follow(record)
        return self.read()

    def before_reboot(self) -> bool:
        """See `base.BootControl`: the loader follows the record, and may be asked for one trial boot."""
        record, booted = super().read(), self.booted()
        if self._rules.counts or record.trying is None or booted.slot == record.trying:
            return False
        asked = Asked(booted.boot_id, record.trial_id)
        if self._last_asked() != asked:
            if record.tries_left == 0:
                return False
            record = self._store(bootrecord.next_boot(record)[1])
            self._note_asked(asked)
        steps = self._rules.one_shot(self._state(), record)
        if steps is None:
            return True
        self._perform(steps)
        return False

    def self_test(self) -> None:
        """Also writes to the loader's own place: a file on its partition, `BootOrder` with what it holds."""
        super().self_test()
        with self._place.open(write=True) as place:
            probe = str(super().read().seq).encode("ascii")
            place.perform(Put(PROBE, probe))
            state = place.read(lambda path: path == PROBE or self._rules.watches(path))
            if state.get(PROBE) != probe:
                raise error("boot-control", f"what {self._rules.name} reads cannot be written")
            if BOOT_ORDER in state:
                place.perform(Put(BOOT_ORDER, state[BOOT_ORDER]))
            place.perform(Drop(PROBE))

    def _note_asked(self, asked: Asked) -> None:
        with os_errors(f"note {self._asked}"):
            write_atomic(self._asked, msgspec.json.encode(asked))

    def _last_asked(self) -> Asked | None:
        try:
            data = read_bounded(self._asked, BOOTED_SIZE_BYTES_MAX, "note of a trial boot")
            return msgspec.json.decode(data, type=Asked)
        except (TwinlockError, msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def _change(self, make: Callable[[BootRecord], BootRecord]) -> BootRecord:
        record = super().read()
        new = make(record)
        self._follow(new)
        return record if new == record else self._store(new)

    def _store(self, new: BootRecord) -> BootRecord:
        number, _ = bootrecord.newest(self._copies())
        self._write(COPIES - 1 - number, self._encode(new))
        stored = super().read()
        if stored != new:
            raise error("boot-control", f"the boot record in {self._path} is not what was written")
        return stored

    def _state(self) -> dict[str, bytes]:
        with self._place.open(write=False) as place:
            return place.read(self._rules.watches)

    def _follow(self, record: BootRecord) -> list[str]:
        steps = self._rules.follow(self._state(), record)
        if not steps:
            return []
        self._perform(steps)
        if self._rules.follow(self._state(), record):
            raise error("boot-control", f"what {self._rules.name} reads is not what was written")
        return [step.path for step in steps]

    def _perform(self, steps: list[Step]) -> None:
        if not steps:
            return
        with self._place.open(write=True) as place:
            for step in steps:
                place.perform(step)
