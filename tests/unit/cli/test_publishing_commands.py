"""`keys` and `release` from end to end on one machine: what they do, print and leave; their JSON's shapes."""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.project_files import ROOT
from tests.unit.cli.operator_server import TOKEN, OperatorServer
from tests.unit.cli.world import PACK
from tests.unit.publish.tools import files_under
from twinlock.cli import keys, release
from twinlock.cli.main import main

Capture = pytest.CaptureFixture[str]
SHAPES: dict[str, Any] = json.loads((ROOT / "tests/vectors/cli-json-v1.json").read_text())


def shape(value: Any) -> Any:
    """A value's shape: names with their shapes, of lists that of the first, of the rest the kind of value."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in sorted(value.items())}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return {str: "text", bool: "bool", int: "number", float: "number", type(None): "null"}[type(value)]


def run_json(capsys: Capture, *args: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*args, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    data: dict[str, Any] = json.loads(out)
    assert data["version"] == 1
    return data


def text(capsys: Capture, *args: str) -> str:
    capsys.readouterr()
    assert main(args) == 0
    return capsys.readouterr().out


def commands(server: OperatorServer) -> dict[str, list[str]]:
    to_server = ["--server", server.address, "--token-file", "token"]
    return {
        "keys create": ["--keys", "more"],
        "keys init": ["--repo", "repo2"],
        "keys list": ["--keys", "keys", "--repo", "repo"],
        "release pack": ["image", "--version", "1.2", *PACK],
        "release sign": ["demo-1.1"],
        "release delta": ["--from", "demo/1.0", "--to", "demo-1.1", "--jobs", "1"],
        "release publish": to_server,
        "release list": ["--repo", "repo"],
        "release refresh": [],
        "keys rotate": [],
        "release inspect": ["demo-1.1"],
        "release verify": ["repo"],
        "release abandon": [],
    }


def test_every_command_speaks_json_of_a_pinned_shape(
    world: Path, server: OperatorServer, capsys: Capture
) -> None:
    found = {}
    for name, args in commands(server).items():
        found[name] = shape(run_json(capsys, *name.split(), *args))
    for name, path in {
        "release inspect REPOSITORY": "repo",
        "release inspect MANIFEST": "demo-1.1/1.1.manifest",
        "release inspect PAYLOAD": str(next((world / "repo/payloads").iterdir())),
        "release inspect METADATA": "repo/metadata/1.root.json",
    }.items():
        found[name] = shape(run_json(capsys, "release", "inspect", path))
    assert found == SHAPES["commands"]


def test_errors_have_a_pinned_shape(world: Path, capsys: Capture) -> None:
    assert main(["release", "inspect", "none", "--json"]) == 2
    assert shape(json.loads(capsys.readouterr().err)) == SHAPES["error"]


def test_the_way_of_a_release(world: Path, server: OperatorServer, capsys: Capture) -> None:
    assert "In force now: targets 2, snapshot 2, timestamp 2." in text(capsys, "release", "sign", "demo-1.1")
    assert "Nothing to do" in text(capsys, "release", "sign", "demo-1.1")
    listed = text(capsys, "release", "list", "--repo", "repo")
    assert re.search(r"demo +1\.0 +3 +demo-board +1\.0 MiB +published", listed)
    args = ["--server", server.address, "--token-file", "token"]
    sent = text(capsys, "release", "publish", "demo/1.1", *args)
    assert "demo/1.1.manifest: published" in sent
    assert list(server.releases) == ["demo/1.1"]
    assert "0 B sent" in text(capsys, "release", "publish", "demo/1.1", *args)
    assert "demo/1.0.manifest: published" in text(capsys, "release", "publish", *args)
    assert re.search(r"demo +1\.1", text(capsys, "release", "list", *args))
    assert "ok: a new device accepts the metadata now" in text(capsys, "release", "verify")


def test_what_was_signed_is_said_to_be_published(world: Path, capsys: Capture) -> None:
    data = run_json(capsys, "release", "sign", "demo-1.1")
    assert [(one["release"], one["published"]) for one in data["releases"]] == [("1.1", True)]
    assert [one["role"] for one in data["signed"]] == ["targets", "snapshot", "timestamp"]


def test_variables_stand_for_options(
    world: Path, server: OperatorServer, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world / "repo").rename(world / "r")
    (world / "keys").rename(world / "k")
    for name, value in {"REPO": "r", "KEYS": "k", "SERVER": server.address, "TOKEN": TOKEN}.items():
        monkeypatch.setenv(f"TWINLOCK_{name}", value)
    text(capsys, "release", "sign", "demo-1.1")
    text(capsys, "release", "publish")
    assert len(server.releases) == 2
    monkeypatch.delenv("TWINLOCK_TOKEN")
    monkeypatch.setenv("TWINLOCK_TOKEN_FILE", "token")
    text(capsys, "release", "publish")


@pytest.mark.parametrize("given", ["file", "variable"])
def test_keys_behind_a_passphrase(
    world: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    (world / "secret").write_text("correct horse\n")
    options = ["--passphrase-file", "secret"] if given == "file" else []
    if given == "variable":
        monkeypatch.setenv("TWINLOCK_PASSPHRASE", "correct horse")
    text(capsys, "keys", "create", "--keys", "k", "--passphrase", *options)
    assert b"ENCRYPTED" in (world / "k/root-main.pem").read_bytes()
    text(capsys, "keys", "init", "--keys", "k", "--repo", "r", *options)
    text(capsys, "release", "sign", "demo-1.1", "--keys", "k", "--repo", "r", *options)
    text(capsys, "release", "refresh", "--keys", "k", "--repo", "r", *options)


def test_a_passphrase_may_come_by_a_pipe(world: Path, capsys: Capture) -> None:
    os.mkfifo(world / "pipe")
    writer = threading.Thread(target=(world / "pipe").write_text, args=("correct horse\n",))
    writer.start()
    try:
        text(capsys, "keys", "create", "--keys", "k", "--passphrase-file", "pipe")
    finally:
        writer.join()
    assert b"ENCRYPTED" in (world / "k/root-main.pem").read_bytes()


def test_a_passphrase_is_asked_for_on_a_terminal(
    world: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    answers = ["correct horse", "wrong horse"]
    monkeypatch.setattr("getpass.getpass", lambda prompt: answers.pop(0))
    assert main(["keys", "create", "--keys", "k", "--passphrase"]) == 2
    assert "the two passphrases differ" in capsys.readouterr().err
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return "correct horse"

    monkeypatch.setattr("getpass.getpass", ask)
    text(capsys, "keys", "create", "--keys", "k", "--passphrase")
    text(capsys, "keys", "init", "--keys", "k", "--repo", "r")
    assert asked == ["New passphrase: ", "Once more: ", "Passphrase of k/root-main.pem: "]


def test_two_holders_and_a_robot(world: Path, capsys: Capture) -> None:
    for holder in ("ann", "bob"):
        text(
            capsys,
            "keys",
            "create",
            "--keys",
            holder,
            "--name",
            holder,
            "--role",
            "root",
            "--role",
            "targets",
        )
    text(capsys, "keys", "create", "--keys", "robot", "--role", "snapshot", "--role", "timestamp")
    for name in ("bob/root-bob", "bob/targets-bob", "robot/snapshot-main", "robot/timestamp-main"):
        path = world / f"{name}.pub"
        (world / "ann" / path.name).write_bytes(path.read_bytes())
    thresholds = ["--threshold", "root=2", "--threshold", "targets=2"]
    assert main(["keys", "init", "--repo", "r", "--keys", "ann", *thresholds]) == 2
    err = capsys.readouterr().err
    assert "root version 1 has 1 of 2 signatures, 1 more needed" in err
    text(capsys, "keys", "init", "--repo", "r", "--keys", "bob")
    assert main(["release", "sign", "demo-1.1", "--repo", "r", "--keys", "ann"]) == 2
    assert "targets version 1 has 1 of 2" in capsys.readouterr().err
    shown = json.dumps(run_json(capsys, "release", "inspect", "r")["facts"]["waiting"])
    assert '"have": 1' in shown
    assert main(["release", "sign", "--repo", "r", "--keys", "bob"]) == 2
    out, err = capsys.readouterr()
    assert "Signing demo 1.1 for demo-board." in out
    assert "snapshot version 1 has 0 of 1" in err
    assert "In force now" in text(capsys, "release", "refresh", "--repo", "r", "--keys", "robot")


def test_a_lower_counter_is_signed_with_a_warning(world: Path, capsys: Capture) -> None:
    text(capsys, "release", "pack", "image", "--version", "1.2", "--counter", "2", *PACK)
    assert main(["release", "sign", "demo-1.2"]) == 5
    capsys.readouterr()
    assert main(["release", "sign", "demo-1.2", "--allow-lower"]) == 0
    assert capsys.readouterr().err.startswith("warning: demo/1.2.manifest has counter 2")


def test_what_waits_can_be_abandoned(world: Path, capsys: Capture) -> None:
    before = files_under(world / "repo/metadata")
    (world / "keys/targets-main.pem").rename(world / "away")
    assert main(["release", "sign", "demo-1.1"]) == 2
    assert "Forgotten: targets 2." in text(capsys, "release", "abandon")
    assert "Nothing was waiting." in text(capsys, "release", "abandon")
    assert files_under(world / "repo/metadata") == before


def test_changed_content_voids_signatures_with_a_warning(world: Path, capsys: Capture) -> None:
    (world / "keys/snapshot-main.pem").rename(world / "away")
    assert main(["release", "sign", "demo-1.1"]) == 2
    text(capsys, "release", "pack", "image", "--version", "1.2", "--counter", "3", *PACK)
    assert main(["release", "sign", "demo-1.2"]) == 2
    assert "1 signatures on what waited before are void" in capsys.readouterr().err


def test_metadata_that_ends_soon_is_warned_of(world: Path, capsys: Capture) -> None:
    text(capsys, "release", "sign", "demo-1.1")
    assert main(["release", "refresh", "--timestamp-days", "1"]) == 0
    assert "warning: timestamp metadata expires in 0 days" in capsys.readouterr().err


def test_root_keys_are_rotated(world: Path, capsys: Capture) -> None:
    text(capsys, "keys", "create", "--keys", "keys", "--role", "root", "--name", "next")
    old = run_json(capsys, "keys", "list", "--repo", "repo")["roles"][0]["key_ids"][0]
    args = ["--add", "root=keys/root-next.pub", "--remove", f"root={old[:10]}"]
    assert "In force now: root 2." in text(capsys, "keys", "rotate", *args)
    assert old not in json.dumps(run_json(capsys, "keys", "list", "--repo", "repo"))
    assert "ok:" in text(capsys, "release", "verify", "--root", "repo/metadata/1.root.json")
    assert "ok:" in text(capsys, "release", "verify", "--root", "repo/metadata/2.root.json")


def test_a_root_of_later_than_the_repository_is_noticed(world: Path, capsys: Capture) -> None:
    text(capsys, "keys", "rotate")
    (world / "2.root.json").write_bytes((world / "repo/metadata/2.root.json").read_bytes())
    (world / "repo/metadata/2.root.json").unlink()
    assert main(["release", "verify", "--root", "2.root.json"]) == 4
    assert "error[metadata-rollback]" in capsys.readouterr().err


@pytest.mark.parametrize("app", [keys.app, release.app], ids=["keys", "release"])
def test_every_command_explains_itself_with_an_example(app: typer.Typer) -> None:
    group = typer.main.get_command(app)
    found: dict[str, Any] = getattr(group, "commands", {})
    assert found
    for name, command in found.items():
        assert re.search(r"Example: twinlock (keys|release) " + name, command.help or ""), name
        for option in command.params:
            assert getattr(option, "help", None), f"{name} {option.name}"
