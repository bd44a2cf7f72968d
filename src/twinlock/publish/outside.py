"""Keys that never leave where they are: PKCS#11 tokens and the key services of clouds.

    KEYS/ROLE-NAME.uri     one line: which key it is, in the form that securesystemslib's signers know
    KEYS/ROLE-NAME.pub     its public half, as of any other key

| address                                   | where the key is          | what it needs            |
|-------------------------------------------|---------------------------|--------------------------|
| hsm:KEYID?label=TOKEN                     | PKCS#11 token, ECDSA only | twinlock[hsm], PYKCS11LIB|
| awskms:KEY                                | AWS KMS                   | securesystemslib[awskms] |
| gcpkms:projects/P/.../cryptoKeyVersions/V | Google Cloud KMS          | securesystemslib[gcpkms] |
| azurekms://VAULT.vault.azure.net/keys/N/V | Azure Key Vault, EC only  | securesystemslib[azurekms]|
| hv:NAME/VERSION                           | Vault's transit, Ed25519  | securesystemslib[vault]  |

None of these libraries is needed for anything else. What they raise differs from service to
service, so whatever it is becomes `key-unreadable` with its first words; every signature that they give is
verified before it is kept.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar
from urllib import parse

from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import Key, SecretsHandler, Signature, Signer, SSlibKey

from twinlock.core.durable import read_bounded
from twinlock.core.errors import TwinlockError, error
from twinlock.core.trust.keys import public_key

T = TypeVar("T")

URI_SIZE_BYTES_MAX: Final = 1024
# What to install for each kind of address.
LIBRARIES: Final = {
    "hsm": "twinlock[hsm]",
    "awskms": "securesystemslib[awskms]",
    "gcpkms": "securesystemslib[gcpkms]",
    "azurekms": "securesystemslib[azurekms]",
    "hv": "securesystemslib[vault]",
}
_PLAIN: Final = re.compile(r"[!-~]+", re.ASCII)
_AZURE: Final = re.compile(r"//([A-Za-z0-9-]{1,63})\.vault\.azure\.net/keys/([A-Za-z0-9-]{1,127})(?:/.*)?")
_HSM_KEY_MAX: Final = 1 << 31

# The PIN of a token, or None when there is none to be had.
AskPin = Callable[[], bytes | None]


def check_uri(uri: str) -> str:
    """`uri` if it may be a key's address; else InputError `input-invalid`."""
    scheme = uri.partition(":")[0]
    if len(uri) > URI_SIZE_BYTES_MAX or not _PLAIN.fullmatch(uri) or scheme not in LIBRARIES:
        raise error(
            "input-invalid",
            f"{uri[:80]!r} is no address of a key",
            hint="it is one of those that `twinlock keys import --help` names",
        )
    return uri


def read_uri(path: Path) -> str:
    """The address in a `.uri` file. Raises InputError."""
    data = read_bounded(path, URI_SIZE_BYTES_MAX, "key address")
    return check_uri(data.decode("ascii", "replace").strip())


def import_public(uri: str, ask: AskPin) -> tuple[str, SSlibKey]:
    """Asks where the key is for its public half; the address to keep, and the key.

    Raises DeviceError `package-missing`, InputError `key-unreadable`, `input-invalid`.
    """
    scheme, _, rest = check_uri(uri).partition(":")

    def fetch() -> tuple[str, SSlibKey]:
        from securesystemslib.signer import AWSSigner, AzureSigner, GCPSigner, HSMSigner, VaultSigner

        if scheme == "hsm":
            number, label = _token(rest)
            return HSMSigner.import_(number, label, _pin(uri, ask))
        if scheme == "awskms":
            return AWSSigner.import_(rest)
        if scheme == "gcpkms":
            return GCPSigner.import_(rest)
        if scheme == "hv":
            return VaultSigner.import_(rest.partition("/")[0])
        match = _AZURE.fullmatch(rest)
        if match is None:
            raise error("input-invalid", f"{uri} names no key of an Azure vault")
        return AzureSigner.import_(match.group(1), match.group(2))

    return _guarded(uri, fetch)


def _token(rest: str) -> tuple[int | None, str | None]:
    path, _, query = rest.partition("?")
    if path and not (path.isdecimal() and len(path) < 11 and int(path) < _HSM_KEY_MAX):
        raise error("input-invalid", f"{path[:40]!r} is no number of a key on a token")
    return (int(path) if path else None), dict(parse.parse_qsl(query)).get("label")


@dataclass(frozen=True, slots=True)
class _Outside(Signer):
    """A signer whose failures speak, and whose signatures are verified."""

    uri: str
    key: SSlibKey
    ask: AskPin

    @property
    def public_key(self) -> SSlibKey:
        return self.key

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> Signer:
        """The same as `signer`; the handler is asked for the PIN. Raises InputError."""
        if not isinstance(public_key, SSlibKey):
            raise error("key-unreadable", f"the public half of {priv_key_uri} is of no known kind")
        handler = secrets_handler
        return cls(
            check_uri(priv_key_uri), public_key, lambda: None if handler is None else handler("pin").encode()
        )

    def sign(self, payload: bytes) -> Signature:
        def make() -> Signature:
            found = Signer.from_priv_key_uri(self.uri, self.key, _pin(self.uri, self.ask))
            return found.sign(payload)

        made = _guarded(self.uri, make)
        known = public_key(self.key.keytype, self.key.scheme, str(self.key.keyval["public"]))
        if made.keyid != self.key.keyid or known is None or not known.verifies(made.signature, payload):
            raise error(
                "key-unreadable",
                f"the key at {self.uri} is not the one whose public half is here",
                hint="import its public half again with `twinlock keys import`",
            )
        return made


def signer(uri: str, key: SSlibKey, ask: AskPin) -> Signer:
    """The signer of the key at `uri`, whose public half is `key`; nothing is contacted until it signs."""
    return _Outside(check_uri(uri), key, ask)


def _pin(uri: str, ask: AskPin) -> Callable[[str], str]:
    def answer(secret: str) -> str:
        pin = ask()
        if pin is None:
            raise error(
                "key-unreadable",
                f"the token of {uri} wants its {secret}, and none was given",
                hint="use --passphrase-file, or set TWINLOCK_PASSPHRASE, or run it in a terminal",
            )
        return pin.decode("utf-8", "replace")

    return answer


def _guarded(uri: str, step: Callable[[], T]) -> T:
    """What `step` gives; what a library raises becomes one of our errors."""
    scheme = uri.partition(":")[0]
    try:
        return step()
    except TwinlockError:
        raise
    except UnsupportedLibraryError as problem:
        raise error(
            "package-missing",
            f"the key {uri} needs a Python library that is not installed: {problem}",
            hint=f"run: pip install '{LIBRARIES[scheme]}'",
        ) from problem
    except Exception as problem:  # each service has exceptions of its own
        hint = "check the address, the PIN, your rights to this key, and the way to it"
        if scheme == "hsm" and not os.environ.get("PYKCS11LIB"):
            hint = "set PYKCS11LIB to the token's PKCS#11 library, such as /usr/lib/softhsm/libsofthsm2.so"
        said = str(problem).strip().split("\n")[0][:200] or type(problem).__name__
        raise error("key-unreadable", f"the key {uri} cannot be used: {said}", hint=hint) from problem
