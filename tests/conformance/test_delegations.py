"""Delegated roles: who may speak for which name, in which order they are asked, and where a search ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tests.conformance.driver import Driver
from tests.conformance.repository import Repository
from twinlock.core import limits

LISTED = ("targets", "snapshot", "timestamp")


@dataclass(frozen=True)
class Edge:
    """One delegation, in order of appearance."""

    delegator: str
    name: str
    paths: tuple[str, ...] = ("*",)
    terminating: bool = False


GRAPHS: dict[str, tuple[list[Edge], str]] = {
    "one": ([Edge("targets", "A")], "A"),
    "two": ([Edge("targets", "A"), Edge("targets", "B")], "A B"),
    "two levels": ([Edge("targets", "A"), Edge("targets", "B"), Edge("B", "C")], "A B C"),
    "depth first": ([Edge("targets", "A"), Edge("targets", "B"), Edge("A", "C"), Edge("A", "D")], "A C D B"),
    "three levels": ([Edge("targets", "A"), Edge("targets", "B"), Edge("A", "C"), Edge("C", "D")], "A C D B"),
    "terminating": (
        [Edge("targets", "A"), Edge("targets", "B"), Edge("A", "C", terminating=True), Edge("A", "D")],
        "A C",
    ),
    "terminating with children": (
        [Edge("targets", "A"), Edge("targets", "B"), Edge("A", "C", terminating=True), Edge("C", "D")],
        "A C D",
    ),
    "terminating for other names": (
        [Edge("targets", "A", ("*.py",), terminating=True), Edge("targets", "B")],
        "B",
    ),
    "other paths": ([Edge("targets", "A", ("*.py",)), Edge("targets", "B"), Edge("A", "C")], "B"),
    "other paths below": (
        [Edge("targets", "A"), Edge("targets", "B"), Edge("A", "C", ("*.py",)), Edge("C", "D")],
        "A B",
    ),
    "cycle": (
        [Edge("targets", "A"), Edge("targets", "B"), Edge("B", "C"), Edge("C", "D"), Edge("D", "B")],
        "A B C D",
    ),
    "self": ([Edge("targets", "A"), Edge("A", "A"), Edge("A", "B")], "A B"),
    "one of two parents": (
        [Edge("targets", "A"), Edge("targets", "B"), Edge("B", "C"), Edge("A", "C")],
        "A C B",
    ),
    "the other of two parents": (
        [Edge("targets", "A"), Edge("targets", "B"), Edge("B", "C"), Edge("A", "C", ("*.py",))],
        "A B C",
    ),
}


def build(repository: Repository, edges: list[Edge]) -> list[str]:
    for edge in edges:
        repository.delegate(edge.delegator, edge.name, paths=list(edge.paths), terminating=edge.terminating)
    names = list(dict.fromkeys(edge.name for edge in edges))
    repository.publish(*names, *LISTED)
    return names


def asked_delegated(repository: Repository) -> list[str]:
    return [path for path in repository.asked_metadata() if path.split(".")[-2] not in (*LISTED, "root")]


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_order_of_a_search(client: Driver, repository: Repository, graph: str) -> None:
    edges, order = GRAPHS[graph]
    build(repository, edges)
    assert client.download("missing") == 1
    assert client.code == "release-unknown"
    assert asked_delegated(repository) == [f"1.{name}.json" for name in order.split()]
    repository.asked.clear()
    assert client.download("missing") == 1
    assert asked_delegated(repository) == []


TREE = [
    Edge("targets", "A", ("*.doc", "*.md")),
    Edge("targets", "B", ("releases/*/*",)),
    Edge("B", "C", ("releases/x/*",)),
    Edge("B", "D", ("releases/y/*.zip",)),
]


@pytest.mark.parametrize(
    ("name", "order", "found"),
    [
        ("file", "", True),
        ("README.md", "A", True),
        ("releases/x/x_v1", "B C", True),
        ("releases/y/y_v1.zip", "B D", True),
        ("releases/z/z_v1.zip", "B", False),
        ("releases/x/deeper/x_v2", "", False),
        ("folder/README.md", "", False),
    ],
)
def test_a_name_is_found_where_every_role_on_the_way_delegates_it(
    client: Driver, repository: Repository, name: str, order: str, found: bool
) -> None:
    build(repository, TREE)
    for role, names in {
        "targets": ["file"],
        "A": ["README.md", "folder/README.md"],
        "C": ["releases/x/x_v1", "releases/x/deeper/x_v2"],
        "D": ["releases/y/y_v1.zip", "releases/z/z_v1.zip"],
    }.items():
        for one in names:
            repository.add_file(f"{one} by {role}".encode(), one, role)
    repository.publish("A", "B", "C", "D", *LISTED)
    assert client.download(name) == (not found)
    assert asked_delegated(repository) == [f"2.{role}.json" for role in order.split()]
    assert len(client.downloaded()) == found


def test_the_more_trusted_role_wins(client: Driver, repository: Repository) -> None:
    build(repository, [Edge("targets", "A"), Edge("targets", "B")])
    repository.add_file(b"by B", "file", "B")
    repository.add_file(b"by A", "file", "A")
    repository.publish("A", "B", *LISTED)
    assert client.download("file") == 0
    assert client.downloaded() == [b"by A"]


@pytest.mark.parametrize(("prefixes", "asked"), [(["0", "c"], 0), (["2c26b46b"], 1), (["ff", "2"], 1)])
def test_prefixes_of_the_hash_of_a_name(
    client: Driver, repository: Repository, prefixes: list[str], asked: int
) -> None:
    repository.delegate("targets", "A", prefixes=prefixes)  # the SHA-256 of "foo" begins with 2c26b46b
    repository.publish("A", *LISTED)
    assert client.download("foo") == 1
    assert len(asked_delegated(repository)) == asked


def test_a_role_must_be_signed_as_its_delegator_says(client: Driver, repository: Repository) -> None:
    build(repository, [Edge("targets", "A")])
    repository.add_file(b"forged", "file", "A")
    repository.signers["A"] = repository.signers["targets"]
    repository.publish("A", *LISTED)
    assert client.download("file") == 1
    assert client.code == "metadata-signature"
    assert client.version("A") is None


def test_a_role_that_the_snapshot_does_not_list(client: Driver, repository: Repository) -> None:
    build(repository, [Edge("targets", "A")])
    del repository.snapshot.meta["A.json"]
    repository.publish("snapshot", "timestamp")
    assert client.download("file") == 1
    assert client.code == "metadata-mismatch"


def test_a_role_that_is_missing_ends_the_search(client: Driver, repository: Repository) -> None:
    """Going on to B would let whoever can withhold A's file choose what B says instead."""
    build(repository, [Edge("targets", "A"), Edge("targets", "B")])
    repository.add_file(b"by B", "file", "B")
    repository.publish("B", *LISTED)
    del repository.files["metadata/1.A.json"]
    assert client.download("file") == 1
    assert client.code == "metadata-missing"
    assert client.downloaded() == []


def test_a_search_is_bounded(client: Driver, repository: Repository) -> None:
    edges = [Edge("targets", "R0")] + [Edge(f"R{n}", f"R{n + 1}") for n in range(limits.ROLES_VISITED_MAX)]
    build(repository, edges)
    repository.add_file(b"far", "far", edges[-1].name)
    repository.add_file(b"near", "near", edges[-2].name)
    repository.publish(edges[-1].name, edges[-2].name, *LISTED)
    assert client.download("near") == 0
    assert client.download("far") == 1
    assert client.code == "release-unknown"
    assert client.downloaded() == [b"near"]


@pytest.mark.parametrize(
    ("bits", "name", "role"),
    [
        (1, "boo", "bin-0"),
        (1, "too", "bin-1"),
        (2, "foo", "bin-0"),
        (2, "doo", "bin-1"),
        (2, "too", "bin-2"),
        (2, "bar", "bin-3"),
        (8, "bar", "bin-fc"),
    ],
)
def test_succinct_hash_bins(client: Driver, repository: Repository, bits: int, name: str, role: str) -> None:
    bins = repository.delegate_bins(bits, "bin")
    repository.publish(*bins.get_roles(), *LISTED)
    assert client.refresh() == 0
    repository.asked.clear()
    assert client.download(name) == 1
    assert asked_delegated(repository) == [f"1.{role}.json"]
    assert client.version(role) == 1
    repository.add_file(b"content", name, role)
    repository.publish(role, "snapshot", "timestamp")
    assert client.download(name) == 0
    assert client.downloaded() == [b"content"]


def test_a_bin_must_be_signed_by_the_bins_keys(client: Driver, repository: Repository) -> None:
    bins = repository.delegate_bins(1, "bin")
    repository.add_file(b"forged", "boo", "bin-0")
    repository.signers["bin-0"] = [repository.new_key()]
    repository.publish(*bins.get_roles(), *LISTED)
    assert client.download("boo") == 1
    assert client.code == "metadata-signature"


@pytest.mark.parametrize(
    "role", ["?", "#", "/delegatedrole", "../delegatedrole", ".", "..", "ü ß", "a%2Fb", "root.json"]
)
def test_odd_names_of_roles_stay_in_the_folder(client: Driver, repository: Repository, role: str) -> None:
    repository.delegate("targets", role)
    repository.publish(role, *LISTED)
    assert client.download("missing") == 1
    assert client.code == "release-unknown"
    assert repository.asked[-1] == repository.path(role)
    assert len(client.versions()) == 5
    assert {path.name for path in client.metadata.parent.iterdir()} == {"metadata", "initial_root.json"}


@pytest.mark.parametrize("role", ["r" * 201, "ü" * 34])
def test_a_role_name_too_long_for_a_file(client: Driver, repository: Repository, role: str) -> None:
    repository.delegate("targets", role)
    repository.metadata[role].signed.version = 1
    repository.snapshot.meta[f"{role}.json"] = repository.snapshot.meta["targets.json"]
    repository.publish(*LISTED)
    assert client.download("missing") == 1
    assert client.code == "metadata-malformed"


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets"])
def test_nobody_delegates_to_a_top_level_role(client: Driver, repository: Repository, role: str) -> None:
    repository.delegate("targets", "A")
    repository.publish("A", *LISTED)

    def rename(signed: dict[str, Any]) -> None:
        signed["delegations"]["roles"][0]["name"] = role

    repository.resign("targets", rename)
    assert client.refresh() == 1
    assert client.code == "metadata-malformed"
