"""Key files: who may sign for which role of a repository.

    KEYS/ROLE-NAME.pem     private, PKCS#8 PEM, mode 0600, with a passphrase or without
    KEYS/ROLE-NAME.pub     public, PEM (SubjectPublicKeyInfo); this is what others get
    KEYS/ROLE-NAME.uri     instead of the first: where a key is that never leaves it, see `publish.outside`

A folder may hold keys of several roles, and public halves whose private ones are elsewhere. A private key is
read only when its signature is needed. It is never overwritten, and never read while others could read it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from securesystemslib.signer import CryptoSigner, Signer, SSlibKey

from twinlock.core.durable import fsync_dir, os_errors, read_bounded, write_all
from twinlock.core.errors import error
from twinlock.core.names import check_name
from twinlock.core.trust.keys import public_key
from twinlock.publish import outside

ROLES: Final = ("root", "targets", "snapshot", "timestamp")
KINDS: Final = ("ed25519", "ecdsa", "rsa", "ml-dsa")
KIND_DEFAULT: Final = "ed25519"
RSA_BITS: Final = 3072
KEY_FILE_SIZE_BYTES_MAX: Final = 16 * 1024
KEYS_MAX: Final = 256
SUFFIXES: Final = (".pem", ".pub", ".uri")
PASSPHRASE_LENGTH_MIN: Final = 8

# The passphrase for the key file at this path, or None when there is none to be had.
AskPassphrase = Callable[[Path], bytes | None]


@dataclass(frozen=True, slots=True)
class KeyFile:
    """One key of a folder. `key.keyid` is its id in metadata; `private` is None when only `.pub` is here.

    `private` is the `.pem` file, or the `.uri` file of a key that lies on a token or in a key service.
    """

    role: str
    name: str
    public: Path
    private: Path | None
    key: SSlibKey

    @property
    def keyid(self) -> str:
        return str(self.key.keyid)


def create(
    folder: Path, roles: Iterable[str], name: str, kind: str, passphrase: bytes | None
) -> list[KeyFile]:
    """Makes a key pair for each role in `folder`, which is made with mode 0700 if it is missing.

    A power cut leaves no key, a private one alone, or both; a private one alone is of no use to anyone and is
    named by the error when the same name is asked for again. Raises InputError `input-invalid`,
    `input-exists`.
    """
    if kind not in KINDS:
        raise error("input-invalid", f"there is no key type {kind!r}", hint=f"use one of {', '.join(KINDS)}")
    if passphrase is not None and len(passphrase) < PASSPHRASE_LENGTH_MIN:
        raise error("input-invalid", f"a passphrase has at least {PASSPHRASE_LENGTH_MIN} bytes")
    stems = {role: f"{check_role(role)}-{check_name(name, 'key name')}" for role in roles}
    for stem in stems.values():
        _check_free(folder, stem)
    with os_errors(f"key folder {folder}"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = [_create(folder, role, name, kind, passphrase) for role in stems]
        fsync_dir(folder)
    return made


def _create(folder: Path, role: str, name: str, kind: str, passphrase: bytes | None) -> KeyFile:
    private, public = folder / f"{role}-{name}.pem", folder / f"{role}-{name}.pub"
    made = _generate(kind)
    _write_new(private, _private_pem(made, passphrase), 0o600)
    try:
        _write_new(public, _public_pem(made), 0o644)
    except BaseException:
        private.unlink(missing_ok=True)  # nobody knows this key yet
        raise
    return KeyFile(role, name, public, private, SSlibKey.from_crypto(made.public_key()))


def _check_free(folder: Path, stem: str) -> None:
    for path in (folder / f"{stem}{suffix}" for suffix in SUFFIXES):
        if path.exists():
            raise error("input-exists", f"key file {path} exists; keys are never overwritten")


def import_outside(
    folder: Path, roles: Iterable[str], name: str, uri: str, ask: AskPassphrase
) -> list[KeyFile]:
    """Takes a key on a token or in a key service into `folder`: its public half and where it is.

    A power cut leaves nothing, a public half alone, or both. Raises as `outside.import_public` does, and
    InputError `input-invalid`, `input-exists`, `key-unreadable` for a key that devices do not accept.
    """
    stems = {role: f"{check_role(role)}-{check_name(name, 'key name')}" for role in roles}
    for stem in stems.values():
        _check_free(folder, stem)
    found_uri, key = outside.import_public(uri, lambda: ask(Path(uri)))
    if public_key(key.keytype, key.scheme, str(key.keyval["public"])) is None:
        raise error("key-unreadable", f"{uri} is a key that devices do not accept")
    loaded = key._crypto_key()
    pem = loaded.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    made = []
    with os_errors(f"key folder {folder}"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for role, stem in stems.items():
            public, private = folder / f"{stem}.pub", folder / f"{stem}.uri"
            _write_new(public, pem, 0o644)
            _write_new(private, f"{found_uri}\n".encode(), 0o600)
            made.append(KeyFile(role, name, public, private, SSlibKey.from_crypto(loaded)))
        fsync_dir(folder)
    return made


def check_role(role: str) -> str:
    """`role` if it is one of `ROLES`; else InputError `input-invalid`."""
    if role not in ROLES:
        raise error("input-invalid", f"there is no role {role!r}", hint=f"use one of {', '.join(ROLES)}")
    return role


def _generate(kind: str) -> PrivateKeyTypes:
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind == "ecdsa":
        return ec.generate_private_key(ec.SECP256R1())
    if kind == "ml-dsa":
        return _generate_ml_dsa()
    return rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)


def _generate_ml_dsa() -> PrivateKeyTypes:
    """An ML-DSA-65 key (FIPS 204). Raises DeviceError `package-missing`: older libraries have none."""
    try:
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

        return MLDSA65PrivateKey.generate()
    except (ImportError, UnsupportedAlgorithm) as problem:
        raise error(
            "package-missing",
            "the installed cryptography library has no ML-DSA",
            hint="run: pip install --upgrade cryptography",
        ) from problem


def _private_pem(key: PrivateKeyTypes, passphrase: bytes | None) -> bytes:
    lock: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        lock = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)


def _public_pem(key: PrivateKeyTypes) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Writes a file that must not exist yet, and flushes it; a failed one does not stay. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        write_all(fd, data)
        os.fsync(fd)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def list_keys(folder: Path, role: str | None = None) -> list[KeyFile]:
    """The keys in `folder`, by role and name. Only public halves are read.

    Raises InputError `input-missing` for a folder that is not there, `key-unreadable` for a public half that
    is broken or of a type that devices do not accept.
    """
    with os_errors(f"key folder {folder}"):
        paths = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if len(paths) > len(SUFFIXES) * KEYS_MAX:
        raise error("input-too-large", f"key folder {folder} holds more than {KEYS_MAX} keys")
    found = []
    for stem in sorted({path.stem for path in paths}):
        kind, _, name = stem.partition("-")
        if kind not in ROLES or not name or (role is not None and kind != role):
            continue
        public, private = folder / f"{stem}.pub", folder / f"{stem}.pem"
        if not private.exists():
            private = folder / f"{stem}.uri"
        if not public.exists():
            raise error(
                "key-unreadable",
                f"key {private} has no public half beside it",
                hint=f"put {public.name} beside it, or remove it if no repository knows this key",
            )
        key = read_public(public)
        found.append(KeyFile(kind, name, public, private if private.exists() else None, key))
    return sorted(found, key=lambda one: (ROLES.index(one.role), one.name))


def read_public(path: Path) -> SSlibKey:
    """The key in a `.pub` file. Raises InputError `key-unreadable`."""
    data = read_bounded(path, KEY_FILE_SIZE_BYTES_MAX, "key")
    try:
        key = SSlibKey.from_crypto(serialization.load_pem_public_key(data))
    except (ValueError, TypeError, UnsupportedAlgorithm) as problem:
        raise error("key-unreadable", f"{path} holds no public key: {_short(problem)}") from problem
    if public_key(key.keytype, key.scheme, str(key.keyval["public"])) is None:
        raise error("key-unreadable", f"{path} holds a key that devices do not accept")
    return key


def load_signer(key: KeyFile, ask: AskPassphrase) -> Signer:
    """The signer of a key whose private half is in the folder.

    Raises InputError `key-missing`, or `key-unreadable` when others could read it, it does not load, the
    passphrase is wrong or missing, or it belongs to another public half.
    """
    if key.private is None:
        raise error("key-missing", f"the private half of {key.public} is not here")
    if key.private.suffix == ".uri":
        place = key.private
        return outside.signer(outside.read_uri(place), key.key, lambda: ask(place))
    data = _read_private(key.private)
    passphrase = None
    if b"ENCRYPTED" in data:
        passphrase = ask(key.private)
        if passphrase is None:
            raise error(
                "key-unreadable",
                f"key {key.private} has a passphrase, and none was given",
                hint="use --passphrase-file, or set TWINLOCK_PASSPHRASE, or run it in a terminal",
            )
    try:
        loaded = serialization.load_pem_private_key(data, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as problem:
        why = "the passphrase is wrong, or it is damaged" if passphrase is not None else _short(problem)
        raise error("key-unreadable", f"key {key.private} does not load: {why}") from problem
    try:
        own = SSlibKey.from_crypto(loaded.public_key())
    except (ValueError, AttributeError) as problem:
        raise error(
            "key-unreadable", f"key {key.private} is of a type that does not sign metadata"
        ) from problem
    if own.keyval != key.key.keyval:
        raise error("key-unreadable", f"key {key.private} does not belong to {key.public}")
    return CryptoSigner(loaded, key.key)


def _read_private(path: Path) -> bytes:
    with os_errors(f"key {path}"), path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise error(
                "key-unreadable",
                f"key {path} can be read or changed by others (mode {stat.S_IMODE(mode):04o})",
                hint=f"if nobody has: chmod 600 {path}; else make a new key and rotate",
            )
        data = file.read(KEY_FILE_SIZE_BYTES_MAX + 1)
    if len(data) > KEY_FILE_SIZE_BYTES_MAX:
        raise error("key-unreadable", f"key {path} has more than {KEY_FILE_SIZE_BYTES_MAX} bytes")
    return data


def _short(problem: BaseException) -> str:
    """The first sentence of a library's complaint; the rest speaks to programmers."""
    return str(problem).split("(")[0].split("\n")[0].strip(" .") or type(problem).__name__


class KeyRing:
    """The keys of one or more folders, each loaded once and only when it has to sign."""

    def __init__(self, keys: Iterable[KeyFile], ask: AskPassphrase) -> None:
        self._keys: Final = {key.keyid: key for key in keys if key.private is not None}
        self._ask: Final = ask
        self._loaded: Final[dict[str, Signer]] = {}

    def __contains__(self, keyid: object) -> bool:
        return keyid in self._keys

    def signer(self, keyid: str) -> Signer | None:
        """The signer of the key with this id, or None when its private half is not here."""
        if keyid not in self._loaded:
            key = self._keys.get(keyid)
            if key is None:
                return None
            self._loaded[keyid] = load_signer(key, self._ask)
        return self._loaded[keyid]
