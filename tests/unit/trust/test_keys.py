"""Keys: what each type verifies, what makes two spellings one key, and what is no key at all."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import Key, Role

from tests.conformance.repository import Repository
from twinlock.core.errors import TwinlockError
from twinlock.core.trust.keys import SIGNATURE_HEX_LENGTH_MAX, PublicKey, public_key
from twinlock.core.trust.metadata import Document
from twinlock.core.trust.signatures import check_threshold

TEXT = b"what is signed"


def pem(key: object) -> str:
    data: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return data.decode("ascii")


def loaded(key: Key) -> PublicKey | None:
    return public_key(key.keytype, key.scheme, key.keyval["public"])


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa", "rsa-pkcs1v15", "ml-dsa"])
def test_what_a_signing_tool_signs_is_verified(kind: str) -> None:
    repository = Repository()
    signer, other = repository.new_key(kind), repository.new_key(kind)
    key = loaded(signer.public_key)
    assert key is not None
    signature = signer.sign(TEXT).signature
    assert key.verifies(signature, TEXT)
    assert key.verifies(signature.upper(), TEXT)
    for wrong in (other.sign(TEXT).signature, signer.sign(b"another").signature, "", "0", "zz", "é"):
        assert not key.verifies(wrong, TEXT)
    assert not key.verifies(signature + "0" * SIGNATURE_HEX_LENGTH_MAX, TEXT)


def test_larger_curves_and_hashes() -> None:
    for curve, scheme in ((ec.SECP384R1(), "ecdsa-sha2-nistp384"), (ec.SECP521R1(), "ecdsa-sha2-nistp521")):
        signer = CryptoSigner(ec.generate_private_key(curve))
        key = public_key("ecdsa", scheme, pem(signer._private_key.public_key()))
        assert key is not None
        assert key.verifies(signer.sign(TEXT).signature, TEXT)
    private = rsa.generate_private_key(65537, 2048)
    for scheme in ("rsassa-pss-sha384", "rsassa-pss-sha512", "rsa-pkcs1v15-sha384", "rsa-pkcs1v15-sha512"):
        signer = CryptoSigner(private, SSlibKey.from_crypto(private.public_key(), scheme=scheme))
        key = loaded(signer.public_key)
        assert key is not None
        assert key.verifies(signer.sign(TEXT).signature, TEXT)


P256 = pem(ec.generate_private_key(ec.SECP256R1()).public_key())
P384 = pem(ec.generate_private_key(ec.SECP384R1()).public_key())
RSA = pem(rsa.generate_private_key(65537, 2048).public_key())
SMALL_RSA = pem(rsa.generate_private_key(65537, 1024).public_key())
ED = pem(ed25519.Ed25519PrivateKey.generate().public_key())


@pytest.mark.parametrize(
    ("keytype", "scheme", "public"),
    [
        ("ecdsa", "ecdsa-sha2-nistp256", P384),
        ("ecdsa", "ecdsa-sha2-nistp384", P256),
        ("ecdsa", "ecdsa-sha2-nistp256", RSA),
        ("ecdsa", "ecdsa-sha2-nistp256", ""),
        ("ecdsa", "ecdsa-sha2-nistp256", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"),
        ("ecdsa", "ecdsa-sha2-nistp256", "é"),
        ("ecdsa", "ed25519", P256),
        ("ecdsa", "ecdsa-md5", P256),
        ("rsa", "rsassa-pss-sha256", SMALL_RSA),
        ("rsa", "rsassa-pss-sha256", P256),
        ("rsa", "rsassa-pss-sha224", RSA),
        ("rsa", "rsa-raw-sha256", RSA),
        ("rsa", "pgp+rsa-pkcsv1.5", RSA),
        ("ed25519", "ed25519", "00" * 31),
        ("ed25519", "ed25519", "zz" * 32),
        ("ed25519", "ed25519", ED),
        ("ed25519", "ed448", "00" * 32),
        ("ml-dsa", "ml-dsa-65/1", P256),
        ("ml-dsa", "ml-dsa-65/2", P256),
        ("sphincs", "sphincs", "00" * 32),
        ("ecdsa", "ecdsa-sha2-nistp256", P256 + "x" * 10_000),
    ],
)
def test_what_is_no_key(keytype: str, scheme: str, public: str) -> None:
    assert public_key(keytype, scheme, public) is None


def test_one_key_however_it_is_written() -> None:
    private = ed25519.Ed25519PrivateKey.generate().public_key()
    raw = private.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw).hex()
    first, second = public_key("ed25519", "ed25519", raw), public_key("ed25519", "ed25519", raw.upper())
    assert first is not None
    assert second is not None
    assert first.identity == second.identity
    spaced = public_key("ecdsa", "ecdsa-sha2-nistp256", f"\n{P256}\n\n")
    plain = public_key("ecdsa", "ecdsa-sha2-nistp256", P256)
    assert spaced is not None
    assert plain is not None
    assert spaced.identity == plain.identity
    pss, pkcs = public_key("rsa", "rsassa-pss-sha256", RSA), public_key("rsa", "rsa-pkcs1v15-sha512", RSA)
    assert pss is not None
    assert pkcs is not None
    assert pss.identity == pkcs.identity != plain.identity


def threshold(signers: list[CryptoSigner], keyids: list[str], needed: int) -> None:
    keys = {signer.public_key.keyid: signer.public_key for signer in signers}
    document = Document(
        Repository().timestamp, TEXT, {s.public_key.keyid: s.sign(TEXT).signature for s in signers}
    )
    check_threshold(Role(keyids, needed), keys, document, "it")


def test_a_threshold_counts_keys() -> None:
    repository = Repository()
    one, two, three = (repository.new_key() for _ in range(3))
    ids = [signer.public_key.keyid for signer in (one, two, three)]
    threshold([one, two], ids, 2)
    threshold([one, two, three], ids, 2)
    for signers, keyids, needed in (
        ([one], ids, 2),
        ([], ids, 1),
        ([one, two, three], ids[:1], 2),
        ([one, two], [], 1),
        ([one, two, three], ids, 4),
    ):
        with pytest.raises(TwinlockError, match="metadata-signature"):
            threshold(signers, keyids, needed)


def test_no_signature_is_never_enough() -> None:
    role = Role([], 1)
    role.threshold = 0
    document = Document(Repository().timestamp, TEXT, {})
    with pytest.raises(TwinlockError, match="metadata-signature"):
        check_threshold(role, {}, document, "it")
