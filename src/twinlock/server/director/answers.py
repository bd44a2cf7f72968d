"""What the director says to one device, signed anew only when there is something new to say.

An answer stays in force while it says the same, is signed by the same key, and has half of its life before
it. Its version rises with each new one of a device. It is kept with the device and made in one transaction
that holds the device's row: two polls at once get one answer, on any number of server processes.

The version is at least the minutes since 2026. So a server whose database was lost, or restored from a
backup, goes on above what its devices have seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
from tuf.api.metadata import TargetFile

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.protocol import ABILITY_DIRECTOR, DirectorAnswer
from twinlock.core.trust import canonical
from twinlock.core.trust.director import sign_answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twinlock.core.trust.director import OnlineKey
    from twinlock.server.devices.model import Facts
    from twinlock.server.ports import PollView, Transaction

FIRST_MINUTE: Final = 1_767_225_600 // 60  # 2026-01-01


@dataclass(frozen=True, slots=True)
class Director:
    """The online key, and the roots by version, of which the newest names this key."""

    key: OnlineKey
    roots: Mapping[int, bytes]
    lifetime_s: int

    @property
    def root_version(self) -> int:
        return max(self.roots)


@dataclass(frozen=True, slots=True)
class Kept:
    """A device's last answer. `basis` is what it was made from; `answer` the JSON of a DirectorAnswer."""

    version: int
    basis: str
    expires_ms: int
    answer: bytes


class DirectorStore(Protocol):
    """Answers in one transaction, and what the image repository says of releases."""

    def kept(self, device_id: str) -> Kept | None:
        """The device's last answer."""
        ...

    def keep(self, device_id: str, kept: Kept) -> None:
        """Replaces it."""
        ...

    def entry(self, release_id: int) -> str | None:
        """What the image repository signed of a release, as `encode_entry` wrote it."""
        ...

    def keep_entry(self, release_id: int, entry: str) -> None:
        """Replaces it; `entry_sha256` of a poll's view is its SHA-256."""
        ...


def encode_entry(signed: TargetFile) -> str:
    """A signed entry as text: canonical JSON of its path and content."""
    return canonical.encode({"path": signed.path, "entry": signed.to_dict()}).decode("utf-8")


def decode_entry(text: str) -> TargetFile:
    """The entry that `encode_entry` wrote."""
    value = msgspec.json.decode(text)
    return TargetFile.from_dict(value["entry"], value["path"])


def asks(facts: Facts) -> bool:
    """Whether the device has a director, and so wants an answer."""
    return ABILITY_DIRECTOR in facts.abilities


def basis_of(director: Director, view: PollView, *, offered: bool) -> str:
    """What an answer is made from: root, key, and the entry of the release that is offered, or nothing."""
    return f"{director.root_version}:{director.key.keyid}:{view.entry_sha256 if offered else ''}"


def in_force(director: Director, kept: Kept | None, basis: str, now_ms: int) -> bool:
    """Whether what was signed last may be said again: it is the same, with half of its life to come."""
    if kept is None or kept.basis != basis:
        return False
    left_ms = kept.expires_ms - now_ms
    return director.lifetime_s * 500 < left_ms <= director.lifetime_s * 1000


def issue(
    transaction: Transaction, director: Director, device_id: str, release_id: int, basis: str, now_ms: int
) -> Kept:
    """The answer that says this: the one in force, or a new one. `release_id` is 0 for no release.

    Raises PolicyError `conflict` when the release is not what it was when the basis was made: poll again.
    """
    transaction.devices.get(device_id, lock=True)
    known = transaction.director.kept(device_id)
    if known is not None and in_force(director, known, basis, now_ms):
        return known
    release = None
    if release_id:
        entry = transaction.director.entry(release_id)
        if entry is None:
            raise error("conflict", f"release {release_id} has no signed entry any more")
        release = decode_entry(entry)
    minutes = now_ms // 60_000 - FIRST_MINUTE
    version = min(max(minutes, 1, 0 if known is None else known.version + 1), limits.METADATA_VERSION_MAX)
    now_s = now_ms // 1000
    signed = sign_answer(
        director.key,
        device_id,
        release,
        version=version,
        now=datetime.fromtimestamp(now_s, UTC),
        lifetime_s=director.lifetime_s,
    )
    answer = msgspec.structs.replace(signed, root_version=director.root_version)
    made = Kept(version, basis, (now_s + director.lifetime_s) * 1000, msgspec.json.encode(answer))
    transaction.director.keep(device_id, made)
    return made


def decode(kept: Kept) -> DirectorAnswer:
    """The answer as it goes to the device."""
    return msgspec.json.decode(kept.answer, type=DirectorAnswer)
