"""`twinlock release show`: what the server has of a release, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.cli.operator_server import TOKEN, OperatorServer
from twinlock.cli.main import main

RELEASE = {
    "product": "demo",
    "version": "1.1",
    "counter": 3,
    "hardware": ["board", "board-2"],
    "manifest_sha256": "a" * 64,
    "image_sha256": "b" * 64,
    "image_size_bytes": 1048576,
    "notes": "",
    "published": "2026-11-22T10:00:00Z",
    "published_by": "alice",
    "payloads": [],
}
DETAILS = {
    "product": "demo",
    "version": "1.1",
    "kind": "security",
    "support_ends": "2031-12-31",
    "advisory": "first line\nsecond\x1b[31m line",
    "sbom": {"kind": "spdx", "spec_version": "2.3", "sha256": "c" * 64, "size_bytes": 9, "components": 4},
    "details_sha256": "d" * 64,
}


@pytest.fixture
def server() -> Iterator[OperatorServer]:
    with OperatorServer().running() as running:
        running.releases["demo/1.1"] = RELEASE
        yield running


def shown(
    server: OperatorServer, capsys: pytest.CaptureFixture[str], *options: str, code: int = 0
) -> tuple[str, str]:
    argv = ["release", "show", "demo/1.1", "--server", server.address, "--token", TOKEN, *options]
    assert main(argv) == code
    out, err = capsys.readouterr()
    return out, err


def test_a_release_with_details(server: OperatorServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.releases["demo/1.1/details"] = DETAILS
    out, _ = shown(server, capsys)
    for text in (
        "demo 1.1 for board, board-2, counter 3",
        "a security release, supported until 2031-12-31",
        "SBOM: spdx 2.3, 4 components, SHA-256 " + "c" * 64,
        "advisory: first line",
    ):
        assert text in out
    assert "\x1b" not in out
    found: dict[str, Any] = json.loads(shown(server, capsys, "--json")[0])
    assert (found["version"], found["release"], found["details"]) == (1, "1.1", DETAILS)


def test_a_release_without_details(server: OperatorServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing is signed of it for people" in shown(server, capsys)[0]
    assert json.loads(shown(server, capsys, "--json")[0])["details"] is None


def test_details_without_sbom_and_end(server: OperatorServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.releases["demo/1.1/details"] = DETAILS | {"sbom": None, "support_ends": None, "kind": "feature"}
    out, _ = shown(server, capsys)
    assert "a feature release\n" in out
    assert "SBOM" not in out


@pytest.mark.parametrize("missing", ["kind", "sbom", "advisory"])
def test_an_answer_that_lacks_something(
    server: OperatorServer, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    server.releases["demo/1.1/details"] = {name: DETAILS[name] for name in DETAILS if name != missing}
    argv = ["release", "show", "demo/1.1", "--server", server.address, "--token", TOKEN]
    assert main(argv) != 0
    assert "error[answer-malformed]" in capsys.readouterr().err
