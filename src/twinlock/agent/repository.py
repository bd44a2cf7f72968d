"""Where the metadata client's bytes come from and where its files live: a repository's address, a folder.

`Repository` fetches metadata and files over the agent's network port. `RoleFiles` keeps verified metadata as
`ROLE.json`, byte for byte as it was served, and beside it the floors and the first root. Every write goes
through `core.durable`: a power cut leaves the old file or the new one, and `core.trust.client` orders the
writes so that each of those states is one to go on from.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

import msgspec

from twinlock.agent.ports import Request
from twinlock.core import limits
from twinlock.core.durable import os_errors, read_bounded, remove_durably, write_atomic
from twinlock.core.errors import error
from twinlock.core.trust import hashes
from twinlock.core.trust.delegations import file_name
from twinlock.core.trust.verifier import Floors

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from tuf.api.metadata import TargetFile

    from twinlock.agent.ports import Network, Response

CHUNK_SIZE_BYTES: Final = 64 * limits.KIB
URL_LENGTH_MAX: Final = 4096
# Names that do not end in .json, so that the folder's .json files are the trusted roles and nothing else.
FLOORS: Final = "floors"
PINNED: Final = "root.pinned"
FLOORS_SIZE_BYTES_MAX: Final = 2 * limits.METADATA_SIZE_BYTES_MAX["snapshot"]
# 403 is what object stores answer for a file that is not there.
_ABSENT: Final = frozenset({403, 404})


def check_address(url: str, what: str) -> str:
    """`url` with a slash at its end, if it may be fetched from: https, or http on loopback.

    Raises InputError `input-invalid`.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise error("input-invalid", f"{what} {url[:80]!r} is not the address of a repository")
    if parts.username is not None or parts.password is not None:
        raise error("input-invalid", f"{what} holds a user name; addresses may not")
    if parts.scheme == "http" and not _is_loopback(host):
        raise error("input-invalid", f"{what} is http to {host!r}; http is for loopback, use https")
    return url if url.endswith("/") else f"{url}/"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Repository:
    """One repository at one address. Is a `core.trust.client.Fetch`."""

    def __init__(self, network: Network, address: str) -> None:
        self._network = network
        self._address = check_address(address, "the address")

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
        url = self._address + path
        if len(url) > URL_LENGTH_MAX:
            raise error("metadata-malformed", f"the path {path[:60]!r}... is too long for an address")
        return self._network.open(Request("GET", url, {"accept-encoding": "identity"}))


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
    """Verified metadata in one folder. Is a `core.trust.client.Store`.

    A role's name becomes a file's name with every byte that is not plain written as %XX; nothing in a name
    can leave the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, role: str) -> Path:
        return self._folder / f"{file_name(role)}.json"

    def load(self, role: str) -> bytes | None:
        """The role's file; None when there is none, or one larger than any role may have."""
        path = self._path(role)
        kind = role if role in limits.METADATA_SIZE_BYTES_MAX else "targets"
        if not path.exists() or path.stat().st_size > limits.METADATA_SIZE_BYTES_MAX[kind]:
            return None
        return read_bounded(path, limits.METADATA_SIZE_BYTES_MAX[kind], "the metadata file")

    def save(self, role: str, data: bytes) -> None:
        """Replaces the role's file, durably."""
        self._write(self._path(role), data)

    def delete(self, role: str) -> None:
        """Removes the role's file, durably."""
        path = self._path(role)
        with os_errors(f"the metadata file {path}"):
            remove_durably(path)

    def load_floors(self) -> Floors:
        """The floors. Raises TrustError `metadata-malformed` when their file was tampered with."""
        path = self._folder / FLOORS
        if not path.exists():
            return Floors()
        data = read_bounded(path, FLOORS_SIZE_BYTES_MAX, "the floors")
        try:
            return msgspec.json.decode(data, type=Floors, strict=True)
        except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
            raise error(
                "metadata-malformed",
                f"the floors in {path} do not parse: {problem}",
                hint="somebody changed the file; begin again with `init` and a root that you trust",
            ) from problem

    def save_floors(self, floors: Floors) -> None:
        """Replaces the floors, durably."""
        self._write(self._folder / FLOORS, msgspec.json.encode(floors))

    def begin(self, root: bytes) -> None:
        """Starts from `root`: it becomes the stored and the pinned root, and no floor holds any more.

        A power cut leaves the old trust or the new: the floors go first, and without them the stored files
        still are the memory.
        """
        with os_errors(f"the folder {self._folder}"):
            self._folder.mkdir(parents=True, exist_ok=True)
            remove_durably(self._folder / FLOORS)
        self._write(self._folder / PINNED, root)
        self.save("root", root)

    def pinned(self) -> bytes | None:
        """The root that `begin` was given; None before that."""
        path = self._folder / PINNED
        if not path.exists():
            return None
        return read_bounded(path, limits.METADATA_SIZE_BYTES_MAX["root"], "the pinned root")

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        with os_errors(f"the file {path}"):
            write_atomic(path, data)
