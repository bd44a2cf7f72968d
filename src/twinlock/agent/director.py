"""The director's side of trust on a device: which release the server may install here, signed for it alone.

A device has a director when it was provisioned with its root: `director.json` in the state folder, or the
file that the configuration names (part of the image; losing the state folder does not lose it). From then on
it installs nothing without the director's signed word: an answer left out is refused like a forged one.

| file                | what                                                  |
|---------------------|-------------------------------------------------------|
| director.json       | the pinned root; never written by the agent           |
| director/ROLE.json  | the newest root, and the last answer, byte for byte   |
| director-trust.json | the lowest versions still accepted, durable like files |

Nothing of an answer is kept before all of it holds, the device's own id included: an answer that was signed
for another device must not raise what this one remembers. Roots are kept as soon as they are verified.
A power cut between two writes leaves raised floors and the answer before, which the next poll replaces.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from twinlock.agent import memory
from twinlock.agent.metadata import FilesApart, pinned_root
from twinlock.agent.repository import Repository
from twinlock.core import limits, protocol
from twinlock.core.errors import error
from twinlock.core.trust.client import Client
from twinlock.core.trust.director import Directed, check_answer

if TYPE_CHECKING:
    from twinlock.agent.config import Config
    from twinlock.agent.ports import Ports, Store
    from twinlock.core.protocol import DirectorAnswer
    from twinlock.core.trust.client import Fetch

PINNED: Final = "director.json"
FOLDER: Final = "director"
TRUST: Final = "director-trust.json"


def is_directed(store: Store, config: Config) -> bool:
    """Whether this device was provisioned with a director's root. A missing file is no way out of it."""
    return (
        config.director is not None or store.read(PINNED, limits.METADATA_SIZE_BYTES_MAX["root"]) is not None
    )


class Director:
    """Trust in this device's director. Make it only for a device that has one (`is_directed`)."""

    def __init__(self, ports: Ports, config: Config, device_id: str) -> None:
        self._ports = ports
        self._config = config
        self._device_id = device_id

    def take(self, answer: DirectorAnswer | None) -> Directed:
        """What the answer says, once all of it was verified and kept.

        Raises TrustError: `director-missing` without an answer, `metadata-missing` without a root,
        `metadata-device` for another device's, and as `Client.refresh` does.
        """
        if answer is None:
            raise error("director-missing", f"the server has no director's answer for {self._device_id}")
        store = self._ports.store
        pinned = pinned_root(store, self._config.director, PINNED)
        files = FilesApart(store, FOLDER, TRUST)
        now = datetime.fromtimestamp(memory.trusted_s(store, self._ports.clock), UTC)
        trusted = Client(self._roots(answer.root_version), files, now, pinned).follow_roots()
        before = trusted.floors
        directed = check_answer(trusted, answer, self._device_id)
        if directed.floors != before:
            files.save_floors(directed.floors)
        for role in ("targets", "snapshot", "timestamp"):
            data: bytes = getattr(answer, role)
            if files.load(role) != data:
                files.save(role, data)
        return directed

    def _roots(self, newest: int) -> Fetch:
        """Fetches the director's roots up to the version that the server says is the newest."""
        base = f"{self._config.server.rstrip('/')}{protocol.DIRECTOR}/metadata"
        repository = Repository(self._ports.network, base)

        def fetch(path: str, size_bytes_max: int) -> bytes | None:
            version = int(path.partition(".")[0])
            return repository(path, size_bytes_max) if version <= newest else None

        return fetch
