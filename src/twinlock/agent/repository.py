"""Where the metadata client's bytes come from and where its files live: a repository's address, a folder.

`Repository` fetches metadata and files over the agent's network port. `RoleFiles` keeps verified metadata as
`ROLE.json`, byte for byte as it was served, and beside it the floors and the first root. A power cut during
a write leaves the old file or the new one, and `core.trust.client` orders the writes so that each of those
states is one to go on from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec
from tuf.api.metadata import Root, Targets

from twinlock.agent.address import check_url
from twinlock.agent.ports import Request
from twinlock.core import limits
from twinlock.core.errors import InputError, error
from twinlock.core.trust import hashes
from twinlock.core.trust.delegations import file_name
from twinlock.core.trust.verifier import Floors

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from tuf.api.metadata import TargetFile

    from twinlock.agent.ports import Network, Response, Store

CHUNK_SIZE_BYTES: Final = 64 * limits.KIB
# Names that do not end in .json, so that the folder's .json files are the trusted roles and nothing else.
FLOORS: Final = "floors"
PINNED: Final = "root.pinned"
FLOORS_SIZE_BYTES_MAX: Final = 2 * limits.METADATA_SIZE_BYTES_MAX["snapshot"]
# 403 is what object stores answer for a file that is not there.
_ABSENT: Final = frozenset({403, 404})


class Repository:
    """One repository at one address. Is a `core.trust.client.Fetch`.

    Raises DeviceError `config-invalid` when the agent may not talk to that address.
    """

    def __init__(self, network: Network, address: str) -> None:
        check_url(address)
        self._network = network
        self._address = address if address.endswith("/") else f"{address}/"

    def __call__(self, path: str, size_bytes_max: int) -> bytes | None:
        """The file at `path`; None when the server has none. Raises as `Fetch` says."""
        response = self._open(path)
        try:
            if response.status in _ABSENT:
                return None
            _check_status(response, path)
            return b"".join(_chunks(response, size_bytes_max, path))
        finally:
            response.close()

    def chunks(self, path: str, size_bytes_max: int) -> Generator[bytes]:
        """The file at `path` in pieces. Raises TrustError `metadata-missing` when the server has none."""
        response = self._open(path)
        try:
            if response.status in _ABSENT:
                raise error("metadata-missing", f"the repository lacks {path}, which its metadata lists")
            _check_status(response, path)
            yield from _chunks(response, size_bytes_max, path)
        finally:
            response.close()

    def _open(self, path: str) -> Response:
        return self._network.open(Request("GET", self._address + path))


def _check_status(response: Response, path: str) -> None:
    if 300 <= response.status < 400:
        raise error("redirect-refused", f"the server redirects the request for {path}")
    if response.status != 200:
        raise error("server-error", f"the server answers {response.status} to the request for {path}")


def _chunks(response: Response, size_bytes_max: int, path: str) -> Iterator[bytes]:
    buffer = memoryview(bytearray(CHUNK_SIZE_BYTES))
    seen = 0
    while read := response.read_into(buffer):
        seen += read
        if seen > size_bytes_max:
            raise error("transfer-oversized", f"{path} has more than {size_bytes_max} bytes")
        yield bytes(buffer[:read])


def served_path(signed: TargetFile, *, consistent: bool) -> str:
    """Where a signed file is served, below the files' address: `FOLDER/HASH.NAME`, or `FOLDER/NAME`.

    Raises TrustError `metadata-malformed` for a name with empty, `.` or `..` parts: an address made of it
    could leave the folder. `metadata-malformed` too when no strong hash is listed to name the file by.
    """
    folder, slash, name = signed.path.rpartition("/")
    if any(part in ("", ".", "..") for part in signed.path.split("/")):
        raise error("metadata-malformed", f"the signed name {signed.path[:80]!r} cannot be an address")
    if consistent:
        strong = hashes.strong(signed.hashes)
        if not strong:
            raise error("metadata-malformed", f"{signed.path[:80]!r} is listed without a strong hash")
        name = f"{next(iter(strong.values()))}.{name}"
    return quote(f"{folder}{slash}{name}", safe="/%~!$&'()*+,;=:@")


class RoleFiles:
    """Verified metadata in one folder of a store. Is a `core.trust.client.Store`.

    A role's name becomes a file's name with every byte that is not plain written as %XX; nothing in a name
    can leave the folder.
    """

    def __init__(self, store: Store, folder: str = "") -> None:
        self._store = store
        self._folder = f"{folder}/" if folder else ""

    def _name(self, role: str) -> str:
        return f"{self._folder}{file_name(role)}.json"

    def load(self, role: str) -> bytes | None:
        """The role's file; None when there is none, or one larger than this client would ever have saved."""
        kind = role if role in limits.METADATA_SIZE_BYTES_MAX else Targets.type
        try:
            return self._store.read(self._name(role), limits.METADATA_SIZE_BYTES_MAX[kind])
        except InputError:
            return None

    def save(self, role: str, data: bytes) -> None:
        """Replaces the role's file, durably."""
        self._store.write(self._name(role), data)

    def delete(self, role: str) -> None:
        """Removes the role's file, durably."""
        self._store.remove(self._name(role))

    def load_floors(self) -> Floors:
        """The floors. Raises TrustError `metadata-malformed` when their file was tampered with."""
        data = self._store.read(f"{self._folder}{FLOORS}", FLOORS_SIZE_BYTES_MAX)
        if data is None:
            return Floors()
        try:
            return msgspec.json.decode(data, type=Floors, strict=True)
        except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
            raise error(
                "metadata-malformed",
                f"the file {FLOORS!r} of versions seen before does not parse: {problem}",
                hint="somebody changed the file; begin again with `init` and a root that you trust",
            ) from problem

    def save_floors(self, floors: Floors) -> None:
        """Replaces the floors, durably."""
        self._store.write(f"{self._folder}{FLOORS}", msgspec.json.encode(floors))

    def begin(self, root: bytes) -> None:
        """Starts from `root`: it becomes the stored and the pinned root, and no floor holds any more.

        A power cut leaves the old trust or the new. The floors go first: without them the stored files still
        are the memory.
        """
        self._store.remove(f"{self._folder}{FLOORS}")
        self._store.write(f"{self._folder}{PINNED}", root)
        self.save(Root.type, root)

    def pinned(self) -> bytes | None:
        """The root that `begin` was given; None before that."""
        return self._store.read(f"{self._folder}{PINNED}", limits.METADATA_SIZE_BYTES_MAX[Root.type])
