"""A TUF repository in memory, for tests: change what it says, publish it, serve it, see what was asked.

Roles are edited in place (`repository.root`, `.timestamp`, `.snapshot`, `.targets`, `.role(name)`), then
`publish` signs them and puts the files where clients look. What a test wants to lie about it does by hand:
`files` maps a path below the repository's address to bytes, and is what is served.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler
from typing import Any

from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)

from twinlock.core.trust.delegations import file_name

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
TOP = (Root.type, Timestamp.type, Snapshot.type, Targets.type)
ALL = (Root.type, Targets.type, Snapshot.type, Timestamp.type)


@cache
def _pool(kind: str, number: int) -> CryptoSigner:
    """Key `number` of a kind; made once in a run, since RSA keys take long."""
    make: dict[str, Callable[[], CryptoSigner]] = {
        "ecdsa": CryptoSigner.generate_ecdsa,
        "ed25519": CryptoSigner.generate_ed25519,
        "rsa": lambda: CryptoSigner.generate_rsa(size=2048),
        "rsa-pkcs1v15": lambda: CryptoSigner.generate_rsa(scheme="rsa-pkcs1v15-sha256", size=2048),
        "ml-dsa": CryptoSigner.generate_mldsa,
    }
    return make[kind]()


class Repository:
    """Starts with the four top-level roles, one key each, version 1, published, good for 30 days."""

    def __init__(self, now: datetime = NOW, *, consistent: bool = True, kind: str = "ed25519") -> None:
        self.kind = kind
        self.expires = now + timedelta(days=30)
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.statuses: dict[str, int] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.calls: dict[str, Callable[[bytes], bytes]] = {}  # what a device server answers to POST
        self.scripts: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}  # answers GET by hand
        self.list_hashes = False
        self.signers: dict[str, list[CryptoSigner]] = {}
        self._taken: dict[str, int] = {}
        self._published: set[str] = set()
        self.metadata: dict[str, Metadata] = {  # type: ignore[type-arg]  # of four types
            Root.type: Metadata(Root(expires=self.expires, consistent_snapshot=consistent)),
            Timestamp.type: Metadata(Timestamp(expires=self.expires)),
            Snapshot.type: Metadata(Snapshot(expires=self.expires)),
            Targets.type: Metadata(Targets(expires=self.expires)),
        }
        for role in TOP:
            self.add_key(role)
        self.publish(*ALL)

    # What it says

    @property
    def root(self) -> Root:
        signed = self.metadata[Root.type].signed
        assert isinstance(signed, Root)
        return signed

    @property
    def timestamp(self) -> Timestamp:
        signed = self.metadata[Timestamp.type].signed
        assert isinstance(signed, Timestamp)
        return signed

    @property
    def snapshot(self) -> Snapshot:
        signed = self.metadata[Snapshot.type].signed
        assert isinstance(signed, Snapshot)
        return signed

    @property
    def targets(self) -> Targets:
        return self.role(Targets.type)

    def role(self, name: str) -> Targets:
        signed = self.metadata[name].signed
        assert isinstance(signed, Targets)
        return signed

    # Keys

    def new_key(self, kind: str | None = None) -> CryptoSigner:
        """A key that no other call on this repository gave."""
        kind = kind or self.kind
        self._taken[kind] = self._taken.get(kind, 0) + 1
        signer = _pool(kind, self._taken[kind])
        return CryptoSigner(signer._private_key, copy.deepcopy(signer.public_key))

    def add_key(
        self, role: str, signer: CryptoSigner | None = None, delegator: str | None = None
    ) -> CryptoSigner:
        """Adds a key, a new one if none is given, to a role, and makes it sign."""
        signer = signer or self.new_key()
        if delegator is None:
            self.root.add_key(signer.public_key, role)
        else:
            self.role(delegator).add_key(signer.public_key, role)
        self.signers.setdefault(role, []).append(signer)
        return signer

    def rotate(self, role: str) -> None:
        """Takes a top-level role's keys away and gives it as many new ones as its threshold asks for."""
        for keyid in list(self.root.roles[role].keyids):
            self.root.revoke_key(keyid, role)
        self.signers[role] = []
        for _ in range(self.root.roles[role].threshold):
            self.add_key(role)

    # Files and delegations

    def add_file(
        self, data: bytes, name: str, role: str = Targets.type, hashes: Iterable[str] = ("sha256",)
    ) -> TargetFile:
        """Lists a file in a role, and serves it; publish the role for clients to see it."""
        entry = TargetFile.from_data(name, data, list(hashes))
        self.role(role).targets[name] = entry
        for path in entry.get_prefixed_paths() if self.root.consistent_snapshot else [name]:
            self.files[f"targets/{path}"] = data
        return entry

    def delegate(
        self,
        delegator: str,
        name: str,
        *,
        paths: list[str] | None = None,
        prefixes: list[str] | None = None,
        terminating: bool = False,
    ) -> None:
        """Delegates to `name`, for all names unless paths or prefixes are given, with a key of its own."""
        if paths is None and prefixes is None:
            paths = ["*"]
        targets = self.role(delegator)
        if targets.delegations is None:
            targets.delegations = Delegations({}, roles={})
        assert targets.delegations.roles is not None
        targets.delegations.roles[name] = DelegatedRole(name, [], 1, terminating, paths, prefixes)
        if name not in self.metadata:
            self.metadata[name] = Metadata(Targets(expires=self.expires))
        first = next(iter(self.signers.get(name, [])), None)
        signer = self.add_key(name, first, delegator)
        if first is not None:
            self.signers[name].remove(signer)

    def delegate_bins(self, bits: int, prefix: str) -> SuccinctRoles:
        """Delegates everything to 2^bits hash bins that share one key (TAP 15)."""
        bins = SuccinctRoles([], 1, bits, prefix)
        self.targets.delegations = Delegations({}, None, bins)
        signer = self.new_key()
        self.targets.add_key(signer.public_key)
        for name in bins.get_roles():
            self.metadata[name] = Metadata(Targets(expires=self.expires))
            self.signers[name] = [signer]
        return bins

    # Publishing

    def publish(self, *roles: str, bump: bool = True, version: int | None = None) -> None:
        """Signs the roles in this order and serves them, each one version up unless it is its first time.

        Each is noted in the metadata that lists it; publish that one too for clients to see it. `version` is
        the one in the file's name, when it shall not be the one inside.
        """
        for role in roles:
            metadata = self.metadata[role]
            if role in self._published and bump:
                metadata.signed.version += 1
            self._published.add(role)
            self.files[self.path(role, version)] = self.signed(role)
            self._note(role)

    def signed(self, role: str) -> bytes:
        """The role's file as it would be published now."""
        metadata = self.metadata[role]
        metadata.signatures.clear()
        for signer in self.signers[role]:
            metadata.sign(signer, append=True)
        return json.dumps(metadata.to_dict(), indent=1).encode("utf-8")

    def resign(self, role: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Serves the role's file with its signed part changed in ways that no library would write."""
        value = json.loads(self.served(role))
        change(value["signed"])
        payload = str(encode_canonical(value["signed"])).encode("utf-8")
        value["signatures"] = [signer.sign(payload).to_dict() for signer in self.signers[role]]
        self.files[self.path(role)] = json.dumps(value).encode("utf-8")
        self._note(role)

    def path(self, role: str, version: int | None = None) -> str:
        """Where the role's file is served."""
        name = f"{file_name(role)}.json"
        versioned = role == Root.type or (self.root.consistent_snapshot and role != Timestamp.type)
        prefix = f"{version or self.metadata[role].signed.version}." if versioned else ""
        return f"metadata/{prefix}{name}"

    def served(self, role: str) -> bytes:
        """The role's file as it is served now."""
        return self.files[self.path(role)]

    def _note(self, role: str) -> None:
        version, data = self.metadata[role].signed.version, self.files.get(self.path(role), b"")
        meta = MetaFile.from_data(version, data, ["sha256"]) if self.list_hashes else MetaFile(version)
        if role == Snapshot.type:
            self.timestamp.snapshot_meta = meta
        elif role not in (Root.type, Timestamp.type):
            self.snapshot.meta[f"{role}.json"] = meta

    # Serving

    def get(self, path: str) -> bytes | None:
        """What a server answers to GET `path`; None is 404."""
        self.asked.append(path)
        return self.files.get(path)

    def asked_metadata(self) -> list[str]:
        """The metadata files asked for, in order, without the folder."""
        return [path.removeprefix("metadata/") for path in self.asked if path.startswith("metadata/")]
