"""Changing keys: every way to go from one set and threshold to the next, and those that are no way."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from securesystemslib.signer import CryptoSigner

from tests.conformance.driver import Driver
from tests.conformance.repository import Repository


@dataclass(frozen=True)
class Step:
    """One version of a role: the numbers of its keys, how many must sign, and who signs."""

    keys: tuple[int, ...]
    threshold: int
    signed: tuple[int, ...]


FIVE = (0, 1, 2, 3, 4)
WAYS: dict[str, list[Step]] = {
    "one key to another": [Step((1,), 1, (1,)), Step((2,), 1, (2, 1)), Step((2,), 1, (2,))],
    "with strangers' signatures": [Step((1,), 1, (3, 1, 4)), Step((2,), 1, (3, 2, 1)), Step((2,), 1, (2, 3))],
    "three of five, others each time": [
        Step(FIVE, 3, (0, 2, 4)),
        Step(FIVE, 3, (0, 4, 1)),
        Step(FIVE, 3, (3, 1, 0)),
    ],
    "one of five": [Step(FIVE, 3, (0, 2, 4)), Step((0, 1, 3, 4, 5), 3, (0, 4, 1))],
    "one of five, over both": [Step(FIVE, 3, (0, 2, 4)), Step((0, 1, 3, 4, 5), 3, (0, 2, 4, 5))],
    "all of five": [Step(FIVE, 3, (0, 2, 4)), Step((5, 6, 7, 8, 9), 3, (0, 2, 4, 5, 6, 7))],
    "higher threshold": [Step((1, 2, 3), 1, (1,)), Step((1, 2, 3), 2, (1, 2))],
    "lower threshold": [Step((1, 2), 2, (1, 2)), Step((1, 2), 1, (1, 2)), Step((1, 2), 1, (2,))],
    "one more key": [Step((1,), 1, (1,)), Step((1, 2), 2, (1, 2))],
}
NO_WAYS: dict[str, list[Step]] = {
    "not by the old key": [Step((1,), 1, (1,)), Step((2,), 1, (2, 3, 4))],
    "not by the new key": [Step((1,), 1, (1,)), Step((2,), 1, (1, 3, 4))],
    "not by enough new keys": [Step(FIVE, 3, (0, 2, 4)), Step((0, 1, 3, 4, 5), 3, (0, 2, 4))],
    "not by enough old keys": [Step(FIVE, 3, (0, 2, 4)), Step((0, 1, 3, 4, 5), 3, (0, 4, 5))],
    "below the new threshold": [Step((1, 2, 3), 1, (1,)), Step((1, 2, 3), 2, (2,))],
    "below the old threshold": [Step((1, 2, 3), 2, (1, 2)), Step((1, 2, 3), 1, (1,))],
}


def set_role(repository: Repository, role: str, step: Step, keys: list[CryptoSigner]) -> None:
    for keyid in list(repository.root.roles[role].keyids):
        repository.root.revoke_key(keyid, role)
    repository.root.roles[role].threshold = step.threshold
    for number in step.keys:
        repository.root.add_key(keys[number].public_key, role)
    repository.signers[role] = [keys[number] for number in step.signed]


def go(client: Driver, repository: Repository, steps: list[Step]) -> int:
    keys = [repository.new_key() for _ in range(10)]
    for number, step in enumerate(steps):
        set_role(repository, "root", step, keys)
        repository.publish("root", bump=number > 0)
    client.root.write_bytes(repository.files["metadata/1.root.json"])
    assert client.init() == 0
    return client.refresh()


@pytest.mark.parametrize("way", WAYS)
def test_a_root_leads_to_the_next(client: Driver, repository: Repository, way: str) -> None:
    assert go(client, repository, WAYS[way]) == 0
    assert client.files()["root.json"] == repository.served("root")


@pytest.mark.parametrize("way", NO_WAYS)
def test_a_root_that_does_not_follow_is_refused(client: Driver, repository: Repository, way: str) -> None:
    assert go(client, repository, NO_WAYS[way]) == 1
    assert client.code == "metadata-signature"
    assert client.files()["root.json"] == repository.files["metadata/1.root.json"]


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
@pytest.mark.parametrize(
    ("step", "holds"),
    [
        (Step((2,), 1, (2,)), True),
        (Step((1,), 1, (3, 1, 4)), True),
        (Step((2,), 1, (1, 3, 4)), False),
        (Step((0, 1, 3, 4, 5), 3, (0, 2, 4)), False),
        (Step((0, 1, 3, 4, 5), 3, (0, 4)), False),
        (Step(FIVE, 3, (0, 2, 4)), True),
        (Step(FIVE, 3, (4, 3, 2, 1, 0)), True),
    ],
)
def test_the_root_says_who_signs_the_others(
    client: Driver, repository: Repository, role: str, step: Step, holds: bool
) -> None:
    keys = [repository.new_key() for _ in range(6)]
    set_role(repository, role, step, keys)
    repository.publish("root", "targets", "snapshot", "timestamp")
    assert client.refresh() == (not holds)
    assert client.code == ("" if holds else "metadata-signature")
    kept = (client.metadata / f"{role}.json").exists()
    assert kept is holds
    assert not kept or (client.metadata / f"{role}.json").read_bytes() == repository.served(role)


def test_many_roots_at_once(client: Driver, repository: Repository) -> None:
    for _ in range(40):
        repository.rotate("targets")
        repository.publish("root")
    repository.publish("targets", "snapshot", "timestamp")
    assert client.refresh() == 0
    assert client.version("root") == 41


def test_a_broken_root_in_the_chain_keeps_those_before_it(client: Driver, repository: Repository) -> None:
    for _ in range(4):
        repository.publish("root")
    good = repository.files["metadata/4.root.json"]
    repository.files["metadata/4.root.json"] = good.replace(b'"version": 4', b'"version": 9')
    assert client.refresh() == 1
    assert client.code == "metadata-signature"
    assert client.versions() == {"root": 3}
    repository.files["metadata/4.root.json"] = good
    assert client.refresh() == 0
    assert client.version("root") == 5
