"""The director's side: what it refuses to sign, what it signs, and its keys."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from tuf.api.metadata import Metadata, TargetFile, Targets

from tests.conformance.repository import NOW, Repository
from twinlock.core import limits
from twinlock.core.errors import TwinlockError
from twinlock.core.trust import director
from twinlock.core.trust.verifier import Floors

ENTRY = TargetFile.from_data("demo/1.1.manifest", b"data", ["sha256"])
DAY_S = 24 * 3600


@pytest.fixture(params=["ed25519", "ecdsa"])
def repository(request: pytest.FixtureRequest) -> Repository:
    found = Repository(kind=request.param)
    key = found.new_key()
    for role in ("timestamp", "snapshot", "targets"):
        found.root.roles[role].keyids = [key.public_key.keyid]
        found.signers[role] = [key]
    found.root.keys[key.public_key.keyid] = key.public_key
    found.publish("root", bump=False)
    return found


def key_of(repository: Repository) -> director.OnlineKey:
    return director.online_key(repository.signers["targets"][0].private_bytes)


def test_a_key_has_the_id_that_signing_tools_give_it(repository: Repository) -> None:
    assert key_of(repository).keyid == repository.signers["targets"][0].public_key.keyid


def test_an_answer_is_plain_metadata(repository: Repository) -> None:
    """Any TUF client can read it, and verifies it by the root's keys."""
    answer = director.sign_answer(key_of(repository), "device-1", ENTRY, version=7, now=NOW, lifetime_s=DAY_S)
    for role in ("targets", "snapshot", "timestamp"):
        data: bytes = getattr(answer, role)
        metadata = Metadata.from_bytes(data)
        repository.root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        assert metadata.signed.version == 7
        assert metadata.signed.expires == NOW + timedelta(days=1)
    targets: Metadata[Targets] = Metadata.from_bytes(answer.targets)
    assert targets.signed.targets == {ENTRY.path: ENTRY}
    assert json.loads(answer.targets)["signed"]["twinlock"] == {"device": "device-1"}


@pytest.mark.parametrize("release", [ENTRY, None])
def test_a_device_reads_its_answer(repository: Repository, release: TargetFile | None) -> None:
    answer = director.sign_answer(key_of(repository), "device-1", release, version=7, now=NOW)
    found = director.verify_answer(answer, "device-1", repository.served("root"), NOW)
    assert found.release == release
    assert (found.floors.timestamp, found.floors.snapshot, found.floors.targets) == (7, 7, 7)


def test_a_new_root_of_the_director(repository: Repository) -> None:
    first = repository.served("root")
    for role in ("timestamp", "snapshot", "targets"):
        repository.rotate(role)
    shared = repository.signers["targets"]
    for role in ("timestamp", "snapshot"):
        for keyid in list(repository.root.roles[role].keyids):
            repository.root.revoke_key(keyid, role)
        repository.root.add_key(shared[0].public_key, role)
    repository.publish("root")
    answer = director.sign_answer(key_of(repository), "device-1", None, version=1, now=NOW)
    floors = Floors(timestamp=90, snapshot=90, targets=90, root=1)
    with pytest.raises(TwinlockError, match="metadata-signature"):
        director.verify_answer(answer, "device-1", first, NOW, floors)
    found = director.verify_answer(answer, "device-1", first, NOW, floors, [repository.served("root")])
    assert (found.floors.root, found.floors.timestamp) == (2, 1)


@pytest.mark.parametrize(
    ("device", "version", "lifetime_s"),
    [
        ("", 1, DAY_S),
        ("../x", 1, DAY_S),
        ("d" * 65, 1, DAY_S),
        ("d", 0, DAY_S),
        ("d", limits.METADATA_VERSION_MAX + 1, DAY_S),
        ("d", 1, DAY_S - 1),
        ("d", 1, 7 * DAY_S + 1),
    ],
)
def test_what_is_not_signed(repository: Repository, device: str, version: int, lifetime_s: int) -> None:
    with pytest.raises(TwinlockError, match="input-invalid"):
        director.sign_answer(
            key_of(repository), device, None, version=version, now=NOW, lifetime_s=lifetime_s
        )


def test_an_answer_expires(repository: Repository) -> None:
    answer = director.sign_answer(key_of(repository), "d", None, version=1, now=NOW, lifetime_s=DAY_S)
    with pytest.raises(TwinlockError, match="metadata-expired"):
        director.verify_answer(answer, "d", repository.served("root"), NOW + timedelta(days=1))


def test_keys_that_do_not_serve() -> None:
    formats = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
        with pytest.raises(TwinlockError, match="key-unreadable"):
            director.online_key(key.private_bytes(*formats, serialization.NoEncryption()))
    locked = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        *formats, serialization.BestAvailableEncryption(b"secret")
    )
    for passphrase in (None, b"wrong"):
        with pytest.raises(TwinlockError, match="key-unreadable"):
            director.online_key(locked, passphrase)
    assert director.online_key(locked, b"secret").keyid
    with pytest.raises(TwinlockError, match="key-unreadable"):
        director.online_key(b"no key")
