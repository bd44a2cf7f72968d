"""What this device refused because it was not what was signed: counts by code, for the next report.

`noticed.json` holds what no report has told yet. A report that is queued takes the counts along; a power cut
between the two tells them twice, never not at all. Only failures of the kind TRUST count, also those that
cost a fetch and nothing more: a part that came right the second time was wrong the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from twinlock.core import limits
from twinlock.core.errors import Kind, TwinlockError

if TYPE_CHECKING:
    from twinlock.agent.ports import Store

NOTICED: Final = "noticed.json"


def note(store: Store, problem: TwinlockError) -> None:
    """Counts a refusal; other failures are none. That it cannot be written holds nothing up."""
    if problem.kind is not Kind.TRUST:
        return
    known = waiting(store)
    if problem.code not in known and len(known) >= limits.NOTICED_CODES_MAX:
        return
    known[problem.code] = min(known.get(problem.code, 0) + 1, limits.NOTICED_COUNT_MAX)
    try:
        store.write(NOTICED, msgspec.json.encode(known))
    except TwinlockError:  # the failure that is being counted is the one to be told
        return


def waiting(store: Store) -> dict[str, int]:
    """The counts that no report has told; none when the file is damaged."""
    try:
        data = store.read(NOTICED, limits.MESSAGE_SIZE_BYTES_MAX)
        return {} if data is None else msgspec.json.decode(data, type=dict[str, int])
    except (msgspec.MsgspecError, UnicodeDecodeError, TwinlockError):
        return {}


def told(store: Store) -> None:
    """A report holds the counts durably: they begin anew."""
    store.remove(NOTICED)
