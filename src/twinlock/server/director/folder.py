"""The director's folder in the server's: its online keys and its roots.

    director/keys/KEYID.pem     online keys, PKCS#8 PEM without a passphrase, mode 0600
    director/N.root.json        roots, signed offline; each follows the one before

Which key signs is what the newest root says; a key that waits for its root, or that a root took away, lies
there without effect. So a rotation is: make a key, have the root's holders sign the next root, add that root.
Each file is written whole or not at all; a cut between key and root leaves a key that nobody names yet.
"""

from __future__ import annotations

import re
import stat
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from tuf.api.metadata import Root

from twinlock.core import limits
from twinlock.core.durable import fsync_dir, os_errors, read_bounded, write_atomic
from twinlock.core.errors import TrustError, error
from twinlock.core.trust.director import online_key
from twinlock.core.trust.verifier import TrustedSet
from twinlock.server.director.answers import Director

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from twinlock.core.trust.director import OnlineKey

NAME: Final = "director"
ONLINE_ROLES: Final = ("targets", "snapshot", "timestamp")
KEY_FILE_SIZE_BYTES_MAX: Final = 16 * limits.KIB
_ROOT: Final = re.compile(r"([1-9][0-9]{0,9})\.root\.json", re.ASCII)


def make_key() -> bytes:
    """A new Ed25519 key, as an unprotected PKCS#8 PEM."""
    key = ed25519.Ed25519PrivateKey.generate()
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_half(private_pem: bytes) -> bytes:
    """The public half of a key that `add_key` took, as PEM."""
    key = serialization.load_pem_private_key(private_pem, None)
    assert isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey)
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


class DirectorFolder:
    """The director's folder in a server's folder; it need not exist."""

    def __init__(self, server: Path) -> None:
        self.folder: Final = server / NAME

    def add_key(self, private_pem: bytes) -> OnlineKey:
        """Keeps an online key. Raises InputError `key-unreadable`, also for one behind a passphrase."""
        if b"ENCRYPTED" in private_pem:
            raise error(
                "key-unreadable",
                "the director's key has a passphrase, and the server has nobody to ask for it",
                hint="give a key without one; it stays readable by the server's user only",
            )
        key = online_key(private_pem)
        keys = self.folder / "keys"
        with os_errors(f"folder {keys}"):
            for folder in (self.folder, keys):
                folder.mkdir(mode=0o700, exist_ok=True)
                fsync_dir(folder.parent)
            write_atomic(keys / f"{key.keyid}.pem", private_pem, mode=0o600)
        return key

    def add_root(self, data: bytes, now: datetime) -> int:
        """Keeps the first root, or one that follows the newest; its version. The same again is no change.

        Raises TrustError as a device would, InputError `key-missing` when the root names no key that is here,
        `input-exists` for another root under a version that is kept.
        """
        known = self.roots()
        trusted = TrustedSet(data, now)
        version = trusted.root.version
        if known:
            if known.get(version) == data:
                return version
            if version <= max(known):
                raise error("input-exists", f"the director has another root version {version} already")
            trusted = _newest(known, now)
            trusted.update_root(data)
        trusted.check_root_fresh()
        self._key_of(trusted.root)
        with os_errors(f"folder {self.folder}"):
            write_atomic(self.folder / f"{version}.root.json", data)
        return version

    def roots(self) -> dict[int, bytes]:
        """The roots by version."""
        found: dict[int, bytes] = {}
        with os_errors(f"folder {self.folder}"):
            paths = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        for path in paths:
            match = _ROOT.fullmatch(path.name)
            if match is not None:
                size_bytes_max = limits.METADATA_SIZE_BYTES_MAX[Root.type]
                found[int(match[1])] = read_bounded(path, size_bytes_max, "director's root")
        return found

    def load(self, now: datetime, lifetime_s: int) -> Director | None:
        """The director; None when this server has none.

        Raises TrustError when the roots do not follow each other, InputError `key-missing`, `key-unreadable`.
        """
        roots = self.roots()
        if not roots:
            return None
        try:
            newest = _newest(roots, now)
        except TrustError as problem:
            hint = f"{self.folder} is damaged: restore it from a backup"
            raise error(problem.code, f"the director's roots: {problem.what}", hint=hint) from problem
        return Director(self._key_of(newest.root), roots, lifetime_s)

    def _key_of(self, root: Root) -> OnlineKey:
        """The key here that the root trusts, alone, with all that the director signs."""
        named = [set(root.roles[role].keyids) for role in ONLINE_ROLES]
        alone = all(root.roles[role].threshold == 1 for role in ONLINE_ROLES)
        for keyid in sorted(set.intersection(*named)) if alone else ():
            path = self.folder / "keys" / f"{keyid}.pem"
            if re.fullmatch("[0-9a-f]{64}", keyid) and path.exists():
                return _read_key(path, keyid)
        raise error(
            "key-missing",
            f"the director's root version {root.version} names no key of this server alone for "
            f"{', '.join(ONLINE_ROLES)}",
            hint="make one with `twinlock server director key`, and have the root name it for all three",
        )


def _newest(roots: dict[int, bytes], now: datetime) -> TrustedSet:
    trusted = TrustedSet(roots[min(roots)], now)
    for version in sorted(roots)[1:]:
        trusted.update_root(roots[version])
    return trusted


def _read_key(path: Path, keyid: str) -> OnlineKey:
    with os_errors(f"key {path}"):
        mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise error(
            "key-unreadable",
            f"the director's key {path} can be read or changed by others (mode {mode:04o})",
            hint=f"if nobody has: chmod 600 {path}; else make a new key and rotate",
        )
    key = online_key(read_bounded(path, KEY_FILE_SIZE_BYTES_MAX, "director's key"))
    if key.keyid != keyid:
        raise error("key-unreadable", f"{path} holds another key than its name says")
    return key
