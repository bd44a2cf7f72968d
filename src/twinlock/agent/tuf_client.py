"""`python -m twinlock.agent.tuf_client`: the agent's metadata client as a command of its own.

    --metadata-dir D init ROOT
    --metadata-dir D --metadata-url U refresh
    --metadata-dir D --metadata-url U --target-name T --target-base-url B --target-dir X download

This is the command line that the conformance suite of The Update Framework drives. What it decides is decided
by `twinlock.core.trust`, the agent's own verifier; time is the process's clock. D holds the trusted metadata
as ROLE.json; a downloaded file is stored in X under the SHA-256 of its name, since names in metadata are
never used as paths. Exit code 0, or 1 with one line on standard error.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

from twinlock.agent import lean_check  # noqa: F401  before anything that imports what it imports
from twinlock.agent.clock import SystemClock
from twinlock.agent.config import NetworkConfig
from twinlock.agent.http import HttpNetwork
from twinlock.agent.main import internal, show
from twinlock.agent.repository import Repository, RoleFiles, served_path
from twinlock.agent.store import FolderStore
from twinlock.core import limits
from twinlock.core.durable import fsync_dir, os_errors, read_bounded, write_all
from twinlock.core.errors import TwinlockError, error
from twinlock.core.trust.client import Client
from twinlock.core.trust.hashes import Checker

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tuf.api.metadata import TargetFile

    from twinlock.agent.ports import Network

T = TypeVar("T")

FAILED: Final = 1
FILE_SIZE_BYTES_MAX: Final = limits.PAYLOAD_SIZE_BYTES_MAX
READ_SIZE_BYTES: Final = limits.MIB


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise error("input-invalid", message)


def _parser() -> _Parser:
    parser = _Parser(prog="twinlock.agent.tuf_client", description="A client of one TUF repository.")
    parser.add_argument("command", choices=("init", "refresh", "download"))
    parser.add_argument("root", nargs="?", type=Path, help="init: the root metadata to trust")
    parser.add_argument("--metadata-dir", type=Path, required=True, help="where trusted metadata is kept")
    parser.add_argument("--metadata-url", help="where the repository's metadata is")
    parser.add_argument("--target-name", help="download: the file's name in metadata")
    parser.add_argument("--target-base-url", help="download: where the repository's files are")
    parser.add_argument("--target-dir", type=Path, help="download: where the file is put")
    return parser


def main(
    argv: Sequence[str] | None = None, *, network: Network | None = None, now: datetime | None = None
) -> int:
    """Runs one command: 0 when all of it succeeded, else 1. By default network and time are the real ones."""
    try:
        args = _parser().parse_args(argv)
        _run(args, network, now or datetime.now(UTC))
    except TwinlockError as problem:
        show(problem, as_json=False)
        return FAILED
    except Exception as problem:  # noqa: BLE001  the boundary: no traceback reaches a user
        show(internal(problem), as_json=False)
        return FAILED
    return 0


def _run(args: argparse.Namespace, network: Network | None, now: datetime) -> None:
    files = RoleFiles(FolderStore(args.metadata_dir))
    if args.command == "init":
        root = _need(args.root, "ROOT")
        files.begin(read_bounded(root, limits.METADATA_SIZE_BYTES_MAX["root"], "the root"))
        return
    network = network or _network()
    fetch = Repository(network, _need(args.metadata_url, "--metadata-url"))
    client = Client(fetch, files, now, files.pinned())
    if args.command == "refresh":
        client.refresh()
        return
    name = _need(args.target_name, "--target-name")
    base = Repository(network, _need(args.target_base_url, "--target-base-url"))
    folder = _need(args.target_dir, "--target-dir")
    trusted = client.refresh()
    _download(base, client.find(name), folder, consistent=bool(trusted.root.consistent_snapshot))


def _need(value: T | None, name: str) -> T:
    if value is None:
        raise error("input-invalid", f"{name} is missing")
    return value


def _network() -> Network:
    return HttpNetwork(SystemClock(), NetworkConfig())


def _download(base: Repository, signed: TargetFile, folder: Path, *, consistent: bool) -> None:
    """Puts the signed file into `folder`, whole and verified, or leaves the folder as it was."""
    path = folder / hashlib.sha256(signed.path.encode("utf-8")).hexdigest()
    if path.exists() and _holds(path, signed):
        return
    if signed.length > FILE_SIZE_BYTES_MAX:
        raise error("transfer-oversized", f"{signed.path!r} is listed with {signed.length} bytes")
    served = served_path(signed, consistent=consistent)
    with os_errors(f"the file {path}"), closing(base.chunks(served, signed.length)) as chunks:
        folder.mkdir(parents=True, exist_ok=True)
        _write_checked(path, chunks, _checker(signed))


def _checker(signed: TargetFile) -> Checker:
    return Checker(signed.length, signed.hashes, "manifest-hash", repr(signed.path))


def _holds(path: Path, signed: TargetFile) -> bool:
    checker = _checker(signed)
    try:
        with os_errors(f"the file {path}"), path.open("rb") as file:
            while chunk := file.read(READ_SIZE_BYTES):
                checker.feed(chunk)
        checker.finish()
    except TwinlockError:
        return False
    return True


def _write_checked(path: Path, chunks: Iterable[bytes], checker: Checker) -> None:
    """Streams into a file beside `path` that takes its name only once length and hashes hold."""
    partial = path.with_name(f"{path.name}.part")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        for chunk in chunks:
            checker.feed(chunk)
            write_all(fd, chunk)
        checker.finish()
        os.fsync(fd)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    fsync_dir(path.parent)


if __name__ == "__main__":
    sys.exit(main())
