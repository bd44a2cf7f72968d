"""Who signs: thresholds, keys named twice, types of keys, and signatures that do not count."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conformance.driver import Driver
from tests.conformance.repository import ALL, Repository


def rewrite(repository: Repository, role: str, change: Any) -> None:
    """Changes the served file of a role as JSON, without signing it anew."""
    value = json.loads(repository.served(role))
    change(value)
    repository.files[repository.path(role)] = json.dumps(value).encode()


def test_fewer_signatures_than_the_threshold(client: Driver, repository: Repository) -> None:
    repository.root.roles["snapshot"].threshold = 3
    for _ in range(2):
        repository.add_key("snapshot")
    repository.publish(*ALL)
    assert client.refresh() == 0
    repository.signers["snapshot"].pop()
    repository.publish("targets", "snapshot", "timestamp")
    assert client.refresh() == 1
    assert client.code == "metadata-signature"
    assert client.version("snapshot") == 2


def test_fewer_keys_than_the_threshold(client: Driver, repository: Repository) -> None:
    assert client.refresh() == 0
    for _ in range(4):
        repository.add_key("snapshot")
    repository.root.roles["snapshot"].threshold = 6
    repository.publish(*ALL)
    assert client.refresh() == 1
    assert client.code == "metadata-signature"
    assert (client.version("root"), client.version("snapshot")) == (2, 1)


def test_a_key_of_the_root_does_not_sign_for_others(client: Driver, repository: Repository) -> None:
    stranger = repository.new_key()
    repository.root.keys[stranger.public_key.keyid] = stranger.public_key
    repository.signers["snapshot"] = [stranger]
    repository.publish("root", "snapshot", "timestamp")
    assert client.refresh() == 1
    assert client.code == "metadata-signature"


def test_two_signatures_under_one_key_id(client: Driver, repository: Repository) -> None:
    rewrite(repository, "snapshot", lambda value: value["signatures"].append(value["signatures"][0]))
    assert client.refresh() == 1
    assert client.code == "metadata-malformed"
    assert client.version("snapshot") is None


def test_one_key_id_listed_twice(client: Driver, repository: Repository) -> None:
    role = repository.root.roles["snapshot"]
    role.keyids *= 2
    role.threshold = 2
    repository.publish("root")
    assert client.refresh() == 1
    assert client.code == "metadata-malformed"
    assert client.version("root") == 1


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa", "rsa-pkcs1v15", "ml-dsa"])
def test_each_type_of_key_signs(client: Driver, repository: Repository, kind: str) -> None:
    signer = repository.add_key("root", repository.new_key(kind))
    repository.root.roles["root"].threshold = 2
    repository.publish("root")
    assert client.refresh() == 0
    assert client.version("root") == 2
    other = repository.new_key(kind).sign(b"another text").signature
    repository.publish("root")

    def forge(value: dict[str, Any]) -> None:
        for signature in value["signatures"]:
            if signature["keyid"] == signer.public_key.keyid:
                signature["sig"] = other

    rewrite(repository, "root", forge)
    assert client.refresh() == 1
    assert client.code == "metadata-signature"
    assert client.version("root") == 2


@pytest.mark.parametrize("other", ["", "00", "no hex", "ab" * 64, "é" * 8])
def test_a_bad_signature_beside_enough_good_ones(client: Driver, repository: Repository, other: str) -> None:
    repository.add_key("timestamp")
    repository.publish("root", "timestamp")
    rewrite(repository, "timestamp", lambda value: value["signatures"][0].update(sig=other))
    assert client.refresh() == 0


def test_signatures_of_strangers_beside_enough_good_ones(client: Driver, repository: Repository) -> None:
    for role in ("root", "timestamp"):
        repository.signers[role].insert(0, repository.new_key("ecdsa"))
    repository.publish(*ALL)
    assert client.refresh() == 0
    assert client.version("timestamp") == 2


def test_a_key_of_an_unknown_type_counts_for_nothing_and_spoils_nothing(
    client: Driver, repository: Repository
) -> None:
    """A root may name a key of a type from later beside those that old clients know."""
    signer = repository.new_key()
    signer.public_key.keytype, signer.public_key.scheme = "lattice-9", "lattice-9/3"
    repository.root.add_key(signer.public_key, "timestamp")
    repository.publish("root", "timestamp")
    assert client.refresh() == 0
    repository.signers["timestamp"] = [signer]
    repository.publish("timestamp")
    assert client.refresh() == 1
    assert client.code == "metadata-signature"


def test_a_gpg_key_is_of_an_unknown_type(client: Driver, repository: Repository) -> None:
    """Verifying one would start a program."""
    signer = repository.new_key("rsa")
    signer.public_key.scheme = "pgp+rsa-pkcsv1.5"
    repository.root.add_key(signer.public_key, "timestamp")
    repository.signers["timestamp"] = [signer]
    repository.publish("root", "timestamp")
    assert client.refresh() == 1
    assert client.code == "metadata-signature"


def test_the_older_name_of_the_ecdsa_type(client: Driver, repository: Repository) -> None:
    signer = repository.new_key("ecdsa")
    signer.public_key.keytype = "ecdsa-sha2-nistp256"
    repository.add_key("timestamp", signer)
    repository.root.roles["timestamp"].threshold = 2
    repository.publish("root", "timestamp")
    assert client.refresh() == 0


def test_the_role_of_mirrors_is_passed_over(client: Driver, repository: Repository) -> None:
    """Section 4.3 allows a fifth role in the root; what signs is the whole text."""
    repository.publish("root")
    repository.resign("root", lambda root: root["roles"].update(mirrors={"keyids": [], "threshold": 1}))
    assert client.refresh() == 0
    assert client.version("root") == 2
