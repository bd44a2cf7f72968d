"""The journal: the machine's state in `journal.json`, with a CRC so that a damaged one is not believed."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

import msgspec

from twinlock.agent.states import VERSION, State
from twinlock.core import limits
from twinlock.core.errors import TwinlockError

if TYPE_CHECKING:
    from twinlock.agent.ports import Store

JOURNAL: Final = "journal.json"


class _File(msgspec.Struct, frozen=True):
    crc32: int
    state: msgspec.Raw


def load(store: Store) -> tuple[State, bool]:
    """The state, and whether a journal was there that cannot be believed (then the state is a new one)."""
    try:
        data = store.read(JOURNAL, limits.MESSAGE_SIZE_BYTES_MAX)
        if data is None:
            return State(), False
        file = msgspec.json.decode(data, type=_File)
        state = msgspec.json.decode(file.state, type=State)
    except (msgspec.MsgspecError, UnicodeDecodeError, TwinlockError):
        return State(), True
    if zlib.crc32(file.state) != file.crc32 or state.version != VERSION:
        return State(), True
    return state, False


def save(store: Store, state: State) -> None:
    """Durable when it returns. Raises DeviceError `disk-full`, `io-error`, `permission-denied`."""
    raw = msgspec.json.encode(state)
    store.write(JOURNAL, msgspec.json.encode(_File(zlib.crc32(raw), msgspec.Raw(raw))))
