"""Public keys as metadata holds them, and what it takes for a signature to be theirs.

| type    | scheme                                            | public value      | source           |
|---------|---------------------------------------------------|-------------------|------------------|
| ed25519 | ed25519                                           | 32 bytes in hex   | RFC 8032         |
| ecdsa   | ecdsa-sha2-nistp256, -nistp384, -nistp521         | PEM               | FIPS 186-5       |
| rsa     | rsassa-pss-sha256/384/512, rsa-pkcs1v15-sha256... | PEM, >= 2048 bits | RFC 8017         |
| ml-dsa  | ml-dsa-44/1, ml-dsa-65/1, ml-dsa-87/1             | PEM               | FIPS 204, TAP 21 |

Anything else is a key of a type that this version does not know: it verifies nothing. A key is known by the
number that it is (`identity`), not by the id or the spelling that it is listed under.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

if TYPE_CHECKING:
    from collections.abc import Callable

RSA_BITS_MIN: Final = 2048
RSA_BITS_MAX: Final = 8192
PUBLIC_LENGTH_MAX: Final = 8192
SIGNATURE_HEX_LENGTH_MAX: Final = 16384

_CURVES: Final[dict[str, tuple[type[ec.EllipticCurve], hashes.HashAlgorithm]]] = {
    "ecdsa-sha2-nistp256": (ec.SECP256R1, hashes.SHA256()),
    "ecdsa-sha2-nistp384": (ec.SECP384R1, hashes.SHA384()),
    "ecdsa-sha2-nistp521": (ec.SECP521R1, hashes.SHA512()),
}
_RSA_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


def _ml_dsa_types() -> dict[str, type]:
    try:
        from cryptography.hazmat.primitives.asymmetric import mldsa
    except ImportError:  # an older cryptography: keys of this type stay unknown
        return {}
    return {
        "ml-dsa-44/1": mldsa.MLDSA44PublicKey,
        "ml-dsa-65/1": mldsa.MLDSA65PublicKey,
        "ml-dsa-87/1": mldsa.MLDSA87PublicKey,
    }


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key of a known type. `identity` is the SHA-256 of its SubjectPublicKeyInfo (RFC 5280)."""

    identity: bytes
    _check: Callable[[bytes, bytes], object]

    def verifies(self, signature_hex: str, text: bytes) -> bool:
        """True when the hex signature is this key's over `text`."""
        if len(signature_hex) > SIGNATURE_HEX_LENGTH_MAX:
            return False
        try:
            self._check(bytes.fromhex(signature_hex), text)
        except (InvalidSignature, ValueError):
            return False
        return True


@lru_cache(maxsize=256)
def public_key(keytype: str, scheme: str, public: str) -> PublicKey | None:
    """The key with this type, scheme and public value; None when it is of no known type, or malformed."""
    if len(public) > PUBLIC_LENGTH_MAX:
        return None
    try:
        if keytype == "ed25519":
            return _ed25519(scheme, public)
        loaded = serialization.load_pem_public_key(public.encode("ascii"))
        check = {"ecdsa": _ecdsa, "rsa": _rsa, "ml-dsa": _ml_dsa}[keytype](loaded, scheme)
    except (ValueError, TypeError, KeyError, UnsupportedAlgorithm):
        return None
    return PublicKey(_identity(loaded), check)


def _identity(key: object) -> bytes:
    der: bytes = key.public_bytes(  # type: ignore[attr-defined]  # every loaded public key has it
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(der).digest()


def _ed25519(scheme: str, public: str) -> PublicKey:
    if scheme != "ed25519":
        raise ValueError(scheme)
    key = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
    return PublicKey(_identity(key), key.verify)


def _ecdsa(key: object, scheme: str) -> Callable[[bytes, bytes], object]:
    curve, algorithm = _CURVES[scheme]
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, curve):
        raise TypeError(scheme)
    signing = ec.ECDSA(algorithm)
    return lambda signature, text: key.verify(signature, text, signing)


def _rsa(key: object, scheme: str) -> Callable[[bytes, bytes], object]:
    family, _, name = scheme.rpartition("-")
    algorithm = _RSA_HASHES[name]
    if not isinstance(key, rsa.RSAPublicKey) or not RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX:
        raise TypeError(scheme)
    pad: padding.AsymmetricPadding
    if family == "rsassa-pss":
        pad = padding.PSS(mgf=padding.MGF1(algorithm), salt_length=padding.PSS.AUTO)
    elif family == "rsa-pkcs1v15":
        pad = padding.PKCS1v15()
    else:
        raise ValueError(scheme)
    return lambda signature, text: key.verify(signature, text, pad, algorithm)


def _ml_dsa(key: object, scheme: str) -> Callable[[bytes, bytes], object]:
    if not isinstance(key, _ml_dsa_types()[scheme]):
        raise TypeError(scheme)
    return lambda signature, text: key.verify(signature, ml_dsa_text(text))  # type: ignore[attr-defined]


def ml_dsa_text(text: bytes) -> bytes:
    """What an ML-DSA key signs for `text` (TAP 21): the purpose, the version and the hash."""
    return b"tuf\x01" + hashlib.sha512(text).digest()
