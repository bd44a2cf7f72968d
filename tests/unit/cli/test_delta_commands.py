"""`release delta`, and the deltas that `release publish` makes by itself."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.operator_server import OperatorServer
from tests.unit.cli.world import PACK
from twinlock.cli.main import main

Capture = pytest.CaptureFixture[str]


def text(capsys: Capture, *args: str) -> str:
    capsys.readouterr()
    assert main(args) == 0
    return capsys.readouterr().out


def refused(capsys: Capture, *args: str) -> str:
    capsys.readouterr()
    assert main(args) != 0
    return capsys.readouterr().err


def kinds(path: str) -> list[str]:
    return [one["kind"] for one in json.loads(Path(path).read_text())["payloads"]]


@pytest.fixture
def next_one(world: Path, capsys: Capture) -> Path:
    """1.2, a folder: 1.1 with some bytes changed. 1.0, 1.1 and 1.2 are in the repository."""
    image = bytearray((world / "image").read_bytes())
    image[5000:5100] = random.Random(1).randbytes(100)
    (world / "image").write_bytes(image)
    text(capsys, "release", "pack", "image", "--version", "1.2", "--counter", "3", *PACK)
    text(capsys, "release", "sign", "demo-1.1")
    text(capsys, "release", "sign", "demo-1.2")
    return world


def hash_of(capsys: Capture, folder: str) -> str:
    said: dict[str, Any] = json.loads(text(capsys, "release", "inspect", folder, "--json"))
    return str(said["facts"]["image_sha256"])


def test_between_releases_of_the_repository(next_one: Path, capsys: Capture) -> None:
    args = ["release", "delta", "--from", "demo/1.1", "--to", "demo/1.2", "--jobs", "1"]
    said = text(capsys, *args)
    assert "Made the delta from demo/1.1 to demo/1.2" in said
    assert "twinlock release publish demo/1.2" in said
    assert kinds("repo/releases/demo/1.2.json") == ["full", "delta"]
    assert "There is the delta already" in text(capsys, *args)
    assert "ok: " in text(capsys, "release", "verify")


def test_from_a_folder_into_a_folder_before_it_is_signed(next_one: Path, capsys: Capture) -> None:
    text(capsys, "release", "delta", "--from", "demo-1.1", "--to", "demo-1.2", "--jobs", "1")
    assert kinds("demo-1.2/release.json") == ["full", "delta"]
    text(capsys, "release", "sign", "demo-1.2")
    assert kinds("repo/releases/demo/1.2.json") == ["full", "delta"]


def test_a_folder_as_base_of_a_release_in_the_repository(next_one: Path, capsys: Capture) -> None:
    text(capsys, "release", "delta", "--from", "demo-1.1", "--to", "demo/1.2", "--jobs", "1")
    assert kinds("repo/releases/demo/1.2.json") == ["full", "delta"]


@pytest.mark.parametrize(
    ("older", "newer", "what"),
    [
        ("1.1", "demo/1.2", "neither a release folder nor PRODUCT/VERSION"),
        ("demo/9.9", "demo/1.2", "lists no release"),
        ("demo/1.1", "demo/9.9", "lists no release"),
        ("demo/1.2", "demo/1.2", "the same image"),
        ("keys", "demo/1.2", "is no release folder"),
    ],
)
def test_what_cannot_be_is_said(next_one: Path, capsys: Capture, older: str, newer: str, what: str) -> None:
    assert what in refused(capsys, "release", "delta", "--from", older, "--to", newer)
    assert kinds("repo/releases/demo/1.2.json") == ["full"]


def test_one_that_is_not_worth_it_is_not_kept(world: Path, capsys: Capture) -> None:
    (world / "zeros").write_bytes(bytes(1 << 20))
    text(capsys, "release", "pack", "zeros", "--version", "1.3", "--counter", "3", *PACK)
    said = text(capsys, "release", "delta", "--from", "demo-1.1", "--to", "demo-1.3", "--jobs", "1")
    assert "Not kept" in said
    assert kinds("demo-1.3/release.json") == ["full"]


def test_publishing_makes_deltas_from_what_the_fleet_runs(
    next_one: Path, server: OperatorServer, capsys: Capture
) -> None:
    args = ["--server", server.address, "--token-file", "token"]
    text(capsys, "release", "publish", "demo/1.0", "demo/1.1", "--deltas", "0", *args)
    server.fleet = [{"version": "1.1", "image_sha256": hash_of(capsys, "demo-1.1"), "devices": 7}]
    capsys.readouterr()
    assert main(["release", "publish", *args]) == 0  # all: only 1.2 is new to the server
    said = capsys.readouterr()
    assert "Made the delta from demo/1.1" in said.err + said.out
    assert kinds("repo/releases/demo/1.0.json") == kinds("repo/releases/demo/1.1.json") == ["full"]
    assert kinds("repo/releases/demo/1.2.json") == ["full", "delta"]
    assert len(server.payloads) == 4
    assert "Made the delta" not in text(capsys, "release", "publish", *args)


def test_publishing_without_deltas_asks_for_no_fleet(
    next_one: Path, server: OperatorServer, capsys: Capture
) -> None:
    text(capsys, "release", "publish", "--deltas", "0", "--server", server.address, "--token-file", "token")
    assert not any("fleet" in one for one in server.asked)
