"""The repository folder: what is published, what waits for signatures, and the one step between them.

    REPO/metadata/       N.root.json, N.targets.json, N.snapshot.json, timestamp.json: what devices read;
                         N.ROLE.json of delegated lists, see `publish.lists`
    REPO/targets/        PRODUCT/SHA256.VERSION.manifest
    REPO/payloads/       SHA256.payload
    REPO/releases/       PRODUCT/VERSION.json: which payloads a release has (a `release.json`)
    REPO/pending/        ROLE.json that lacks signatures; devices and servers never see it
    REPO/commit.json     exists only while a step is under way

Signatures may come from several people in several runs: each run adds those of the keys it has. As soon as a
new state has every signature, all its files go in at once: they are written to `commit.json` first, which is
the moment that counts. A power cut before it leaves the former state; after it, the next command finishes the
step (and readers take the files from it meanwhile). The timestamp, which brings the rest into force, is
written last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import msgspec
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from twinlock.core import limits
from twinlock.core.durable import os_errors, read_bounded, remove_durably, write_atomic
from twinlock.core.errors import error
from twinlock.core.trust.delegations import delegated_roles, file_name
from twinlock.core.trust.verifier import TrustedSet
from twinlock.publish import lists, signing
from twinlock.publish.locking import folder_lock

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)  # when nothing had expired yet
FOLDERS: Final = ("metadata", "targets", "payloads", "releases", "pending")
COMMIT: Final = "commit.json"
COMMIT_SIZE_BYTES_MAX: Final = 64 * limits.MIB


class Commit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One step: files to write, by path below the repository, in order; then files to remove."""

    files: dict[str, bytes]
    remove: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """The files of one state, as devices fetch them; the last three are None before the first release."""

    roots: tuple[bytes, ...]
    timestamp: bytes | None = None
    snapshot: bytes | None = None
    targets: bytes | None = None
    delegated: Mapping[str, bytes] = field(default_factory=dict)

    def verify(self, now: datetime) -> TrustedSet:
        """What a new device that pins the first root makes of it. Raises TrustError."""
        trusted = TrustedSet(self.roots[0], now)
        for root in self.roots[1:]:
            trusted.update_root(root)
        if self.timestamp is None or self.snapshot is None or self.targets is None:
            trusted.check_root_fresh()
            return trusted
        trusted.update_timestamp(self.timestamp)
        trusted.update_snapshot(self.snapshot)
        trusted.update_targets(self.targets)
        waiting = [("targets", trusted.targets)]
        seen = set[tuple[str, str]]()
        while waiting:
            role, signed = waiting.pop(0)
            for child in delegated_roles(signed):
                if (child, role) in seen:
                    continue
                seen.add((child, role))
                if child not in self.delegated:
                    raise error(
                        "metadata-missing", f"the list {child}, which {role} delegates to, is missing"
                    )
                waiting.append((child, trusted.update_role(self.delegated[child], child, role)))
        return trusted


@contextmanager
def open_repository(folder: Path, *, write: bool) -> Iterator[Repository]:
    """The repository in `folder`; with `write` it is locked, and a step that was cut off is finished.

    Raises InputError `input-missing` when there is none, PolicyError `conflict` when another command writes
    to it, TrustError when what is published does not verify.
    """
    with os_errors(f"repository {folder}"):
        if not (folder / "metadata").is_dir():
            raise error(
                "input-missing",
                f"{folder} is no repository: it has no folder `metadata`",
                hint="make one with `twinlock keys init`",
            )
    with folder_lock(folder) if write else nullcontext():
        if write:
            _finish_commit(folder)
        yield Repository(folder)


def make_folders(folder: Path) -> None:
    """Makes an empty repository, or what is missing of it. Raises DeviceError."""
    with os_errors(f"repository {folder}"):
        for name in FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)


def _read_commit(folder: Path) -> Commit | None:
    path = folder / COMMIT
    if not path.exists():
        return None
    data = read_bounded(path, COMMIT_SIZE_BYTES_MAX, "commit")
    try:
        commit = msgspec.json.decode(data, type=Commit, strict=True)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise error("input-wrong-type", f"{path} is damaged: {problem}") from problem
    for name in (*commit.files, *commit.remove):
        if name.split("/")[0] not in ("metadata", "pending") or ".." in name or name.count("/") != 1:
            raise error("input-invalid", f"{path} names a file outside the metadata")
    return commit


def _finish_commit(folder: Path) -> None:
    """Does what `commit.json` says, if there is one; it can be done any number of times."""
    commit = _read_commit(folder)
    if commit is None:
        return
    with os_errors(f"repository {folder}"):
        for name, data in commit.files.items():
            write_atomic(folder / name, data)
        for name in commit.remove:
            remove_durably(folder / name)
        remove_durably(folder / COMMIT)


class Repository:
    """What is in the folder. Get one from `open_repository`."""

    def __init__(self, folder: Path) -> None:
        self.folder: Final = folder
        commit = _read_commit(folder)
        self._overlay: Final[dict[str, bytes]] = {} if commit is None else commit.files
        self._removed: Final[tuple[str, ...]] = () if commit is None else commit.remove
        self.chain: Chain | None = self._load_chain()
        self.pending: Final[dict[str, Metadata[Any]]] = {}
        for role in self._pending_roles():
            name = f"pending/{file_name(role)}.json"
            data = None if name in self._removed else self._load(name, role)
            if data is not None:
                self.pending[role] = signing.decode(lists.kind_of(role), data)

    def _pending_roles(self) -> list[str]:
        with os_errors(f"repository {self.folder}"):
            here = {unquote(path.stem) for path in (self.folder / "pending").glob("*.json")}
        here |= {unquote(name[8:-5]) for name in self._overlay if name.startswith("pending/")}
        return [*signing.KINDS, *sorted(here - set(signing.KINDS))]

    def _load(self, name: str, role: str) -> bytes | None:
        if name in self._overlay:
            return self._overlay[name]
        path = self.folder / name
        if not path.exists():
            return None
        size_bytes_max = limits.METADATA_SIZE_BYTES_MAX[lists.kind_of(role)]
        return read_bounded(path, size_bytes_max, f"{role} metadata")

    def _load_chain(self) -> Chain | None:
        roots: list[bytes] = []
        while (data := self._load(f"metadata/{len(roots) + 1}.root.json", "root")) is not None:
            roots.append(data)
        if not roots:
            return None
        timestamp = self._load("metadata/timestamp.json", "timestamp")
        if timestamp is None:
            chain = Chain(tuple(roots))
        else:
            snapshot = self._need(
                signing.decode("timestamp", timestamp).signed.snapshot_meta.version, "snapshot"
            )
            meta = signing.decode("snapshot", snapshot).signed.meta
            files = {name.removesuffix(".json"): listed.version for name, listed in meta.items()}
            loaded = {role: self._need(version, role) for role, version in files.items()}
            chain = Chain(tuple(roots), timestamp, snapshot, loaded.pop("targets"), loaded)
        chain.verify(EPOCH)
        return chain

    def _need(self, version: int, role: str) -> bytes:
        name = f"metadata/{version}.{file_name(role)}.json"
        data = self._load(name, role)
        if data is None:
            raise error("metadata-missing", f"{self.folder / name} is missing")
        return data

    @property
    def root(self) -> Metadata[Root] | None:
        """The newest published root."""
        return None if self.chain is None else signing.decode("root", self.chain.roots[-1])

    def published(self, role: str) -> Metadata[Any] | None:
        """What is published of `role`."""
        if self.chain is None:
            return None
        if role == "root":
            return self.root
        data = getattr(self.chain, role) if role in signing.KINDS else self.chain.delegated.get(role)
        return None if data is None else signing.decode(lists.kind_of(role), data)

    def published_files(self) -> dict[str, bytes]:
        """What is published of each list of releases, by role, byte for byte."""
        if self.chain is None or self.chain.targets is None:
            return {}
        return {"targets": self.chain.targets, **self.chain.delegated}

    def newest(self, role: str) -> Metadata[Any] | None:
        """What waits for signatures, or else what is published, of `role`."""
        return self.pending.get(role) or self.published(role)

    def need_root(self) -> Metadata[Root]:
        """The root in force next. Raises InputError `input-missing` when the repository was never set up."""
        root = self.newest("root")
        if root is None:
            raise error("input-missing", f"{self.folder} has no root yet", hint="run `twinlock keys init`")
        return root

    def list_of(self, role: str, *, pending: bool = True) -> Targets | None:
        """One list of releases: the published one, or with `pending` the one that comes next."""
        metadata = self.newest(role) if pending else self.published(role)
        return None if metadata is None else metadata.signed

    def retired(self) -> dict[str, bytes]:
        """Published lists that nobody delegates to any more, by role, in the state that comes next.

        The snapshot goes on listing them: to a device, a list that was there and is not is an attack.
        """
        reached = {role for role, _, _ in lists.walk(self.list_of)}
        known = {} if self.chain is None else self.chain.delegated
        return {role: data for role, data in known.items() if role not in reached}

    def entries(self, *, pending: bool) -> dict[str, TargetFile]:
        """What all lists name: those published, or with `pending` those that come next."""
        found: dict[str, TargetFile] = {}
        for _, _, signed in lists.walk(lambda role: self.list_of(role, pending=pending)):
            if signed is not None:
                found = {**signed.targets, **found}  # who is asked first counts
        return found

    def save_pending(self) -> None:
        """Makes `pending` durable; a role that is no longer in it has its file removed."""
        with os_errors(f"repository {self.folder}"):
            names = {f"{file_name(role)}.json": metadata for role, metadata in self.pending.items()}
            for name, metadata in names.items():
                write_atomic(self.folder / "pending" / name, signing.encode(metadata))
            for path in (self.folder / "pending").glob("*.json"):
                if path.name not in names:
                    remove_durably(path)

    def commit(self, chain: Chain, now: datetime) -> None:
        """Puts a whole new state in force; see the module docstring. Raises TrustError if it is not sound."""
        trusted = chain.verify(now)
        files = {f"metadata/{number}.root.json": data for number, data in enumerate(chain.roots, 1)}
        if chain.timestamp and chain.snapshot and chain.targets and trusted.snapshot and trusted.targets:
            for role, data in chain.delegated.items():
                version = signing.decode("targets", data).signed.version
                files[f"metadata/{version}.{file_name(role)}.json"] = data
            files[f"metadata/{trusted.targets.version}.targets.json"] = chain.targets
            files[f"metadata/{trusted.snapshot.version}.snapshot.json"] = chain.snapshot
            files["metadata/timestamp.json"] = chain.timestamp
        known = self._known_files()
        changed = {name: data for name, data in files.items() if known.get(name) != data}
        here = sorted({*signing.KINDS, *self._pending_roles(), *self.pending})
        step = Commit(changed, tuple(f"pending/{file_name(role)}.json" for role in here))
        with os_errors(f"repository {self.folder}"):
            write_atomic(self.folder / COMMIT, msgspec.json.encode(step))
        _finish_commit(self.folder)
        self.chain = chain
        self.pending.clear()

    def _known_files(self) -> dict[str, bytes]:
        if self.chain is None:
            return {}
        known = {f"metadata/{number}.root.json": data for number, data in enumerate(self.chain.roots, 1)}
        for role, data in self.chain.delegated.items():
            version = signing.decode("targets", data).signed.version
            known[f"metadata/{version}.{file_name(role)}.json"] = data
        return known
