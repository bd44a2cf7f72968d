"""A device's own key (ECDSA P-256) and what it signs: enrolment, session challenges and reports.

Each signed text begins with its purpose, so that a signature for one can never serve for another. Signatures
are DER ECDSA over SHA-256 (FIPS 186-5, SEC 1). The private key is made on the device and never leaves it.
"""

from __future__ import annotations

import hashlib
from typing import Final, Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from twinlock.core.errors import error

PEM_SIZE_BYTES_MAX: Final = 1024
SIGNATURE_SIZE_BYTES_MAX: Final = 80
NUMBER_SIZE_BYTES: Final = 32  # each half of a raw signature over P-256
_ALGORITHM: Final = ec.ECDSA(hashes.SHA256())


def _text(purpose: str, *fields: bytes) -> bytes:
    parts = [b"twinlock-" + purpose.encode("ascii")]
    parts += [len(field).to_bytes(4, "big") + field for field in fields]
    return b"\0".join(parts)


def enrolment_bytes(device_id: str, hardware: str, public_key: str) -> bytes:
    """What the proof in an enrolment signs."""
    return _text("enrol-v1", device_id.encode(), hardware.encode(), public_key.encode())


def session_bytes(device_id: str, challenge: str) -> bytes:
    """What the answer to a challenge signs."""
    return _text("session-v1", device_id.encode(), challenge.encode())


def report_bytes(body: bytes) -> bytes:
    """What the signature of a report signs."""
    return _text("report-v1", body)


def evidence_bytes(body: bytes) -> bytes:
    """What the signature of a piece of evidence signs."""
    return _text("evidence-v1", body)


def generate() -> bytes:
    """A new private key as unencrypted PKCS#8 PEM, to be stored with mode 0600."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


class Signing(Protocol):
    """A device's private key, wherever it is."""

    @property
    def public_pem(self) -> str:
        """The public half as PEM (SubjectPublicKeyInfo)."""
        ...

    def sign(self, text: bytes) -> bytes:
        """The DER signature over `text`."""
        ...


def pem_of_point(point: bytes) -> str:
    """The public key with this uncompressed point (SEC 1, 2.3.3; 65 bytes) as PEM.

    Raises DeviceError `identity-missing` when no P-256 key has it.
    """
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError as problem:
        raise error("identity-missing", f"the device key is not a P-256 key: {problem}") from problem
    return _pem(key)


def der_signature(raw: bytes) -> bytes:
    """The DER form (RFC 3279, 2.2.3) of a signature that is two numbers of 32 bytes, as PKCS#11 gives it.

    Raises DeviceError `pkcs11-failed` for another length.
    """
    if len(raw) != 2 * NUMBER_SIZE_BYTES:
        raise error("pkcs11-failed", f"the token gave a signature of {len(raw)} bytes")
    halves = (raw[:NUMBER_SIZE_BYTES], raw[NUMBER_SIZE_BYTES:])
    return encode_dss_signature(*(int.from_bytes(half, "big") for half in halves))


def _pem(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode("ascii")


class DeviceKey:
    """The private half. Raises DeviceError `identity-missing` when the PEM holds no P-256 key."""

    def __init__(self, private_pem: bytes) -> None:
        try:
            key = serialization.load_pem_private_key(private_pem, password=None)
        except (ValueError, TypeError) as problem:
            raise error("identity-missing", f"the device key does not load: {problem}") from problem
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise error("identity-missing", "the device key is not a P-256 key")
        self._key = key
        self._public_pem = _pem(key.public_key())

    @property
    def public_pem(self) -> str:
        return self._public_pem

    def sign(self, text: bytes) -> bytes:
        """The DER signature over `text`."""
        return self._key.sign(text, _ALGORITHM)


class DevicePublicKey:
    """The public half. Raises InputError `input-invalid` when the PEM holds no P-256 key."""

    def __init__(self, public_pem: str) -> None:
        if len(public_pem) > PEM_SIZE_BYTES_MAX:
            raise error("input-invalid", f"the public key has more than {PEM_SIZE_BYTES_MAX} bytes")
        try:
            key = serialization.load_pem_public_key(public_pem.encode("utf-8"))
        except (ValueError, TypeError) as problem:
            raise error("input-invalid", f"the public key does not load: {problem}") from problem
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise error("input-invalid", "the public key is not a P-256 key")
        self._key = key

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the key's DER form (SubjectPublicKeyInfo), 64 hex digits."""
        der = self._key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return hashlib.sha256(der).hexdigest()

    @property
    def pem(self) -> str:
        """The key as PEM (SubjectPublicKeyInfo), in its one usual form, whatever text it was read from."""
        return _pem(self._key)

    def verify(self, signature: bytes, text: bytes, what: str) -> None:
        """Raises TrustError `signature-invalid` unless `signature` is this key's over `text`."""
        if len(signature) > SIGNATURE_SIZE_BYTES_MAX:
            raise error("signature-invalid", f"{what}: the signature is too long")
        try:
            self._key.verify(signature, text, _ALGORITHM)
        except InvalidSignature as problem:
            raise error("signature-invalid", f"{what}: the signature is not this device's") from problem


def prove(key: Signing, text: bytes) -> None:
    """Raises TrustError `signature-invalid` unless what `key` signs is good by its public half.

    And whatever the key raises when it cannot be asked.
    """
    DevicePublicKey(key.public_pem).verify(key.sign(text), text, "the probe of this key")
