"""A device's key: what it signs, for which purpose, and what passes for one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from twinlock.core import device_key
from twinlock.core.device_key import DeviceKey, DevicePublicKey
from twinlock.core.errors import DeviceError, InputError, TrustError


def pem_of(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem_of(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey) -> str:
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )


def test_a_signature_is_of_its_key_and_its_text() -> None:
    key, other = DeviceKey(device_key.generate()), DeviceKey(device_key.generate())
    public = DevicePublicKey(key.public_pem)
    signature = key.sign(b"text")
    public.verify(signature, b"text", "report")
    for bad, text in [
        (signature, b"texT"),
        (other.sign(b"text"), b"text"),
        (b"", b"text"),
        (signature[:-1], b"text"),
        (signature + b"\0", b"text"),
        (b"\x30" * 5000, b"text"),
    ]:
        with pytest.raises(TrustError) as caught:
            public.verify(bad, text, "report")
        assert caught.value.code == "signature-invalid"
        assert "report" in caught.value.what


def test_a_signature_serves_one_purpose_only() -> None:
    texts = {
        device_key.enrolment_bytes("d", "h", "k"),
        device_key.session_bytes("d", "h"),
        device_key.report_bytes(b"d"),
    }
    assert len({text.split(b"\0")[0] for text in texts}) == 3


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (("ab", "c", "d"), ("a", "bc", "d")),
        (("a", "b\0\0\0\1c", "d"), ("a", "b", "c\0d")),
        (("", "ab", ""), ("a", "b", "")),
    ],
)
def test_fields_cannot_flow_into_each_other(one: tuple[str, str, str], two: tuple[str, str, str]) -> None:
    assert device_key.enrolment_bytes(*one) != device_key.enrolment_bytes(*two)


def test_the_fingerprint_is_of_the_key_not_of_its_text() -> None:
    key = DeviceKey(device_key.generate())
    public = DevicePublicKey(key.public_pem)
    loaded = serialization.load_pem_public_key(key.public_pem.encode())
    der = loaded.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert public.fingerprint == hashlib.sha256(der).hexdigest()
    assert DevicePublicKey("\n" + key.public_pem + "\n\n").fingerprint == public.fingerprint


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: ec.generate_private_key(ec.SECP256K1()),
        ed25519.Ed25519PrivateKey.generate,
        lambda: rsa.generate_private_key(65537, 2048),
    ],
    ids=["p384", "secp256k1", "ed25519", "rsa"],
)
def test_keys_of_other_kinds_are_refused(make: Callable[[], ec.EllipticCurvePrivateKey]) -> None:
    key = make()
    with pytest.raises(DeviceError) as caught:
        DeviceKey(pem_of(key))
    assert caught.value.code == "identity-missing"
    with pytest.raises(InputError):
        DevicePublicKey(public_pem_of(key))


@pytest.mark.parametrize(
    "pem", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_what_is_no_key_is_refused(pem: bytes) -> None:
    with pytest.raises(DeviceError):
        DeviceKey(pem)
    with pytest.raises(InputError):
        DevicePublicKey(pem.decode())


def test_a_private_key_does_not_pass_for_a_public_one() -> None:
    with pytest.raises(InputError):
        DevicePublicKey(device_key.generate().decode())
