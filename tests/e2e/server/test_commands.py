"""`twinlock device` and `twinlock rollout` against a running server, and `twinlock server` on folders."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server.conftest import MadeServer
from tests.e2e.server.process import ServerProcess
from tests.e2e.server.test_server_process import Client
from twinlock.cli.main import main
from twinlock.core.device_key import DeviceKey, DevicePublicKey, generate

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(
    shared: tuple[MadeServer, ServerProcess],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Command:
    """Runs one command with the server's address and token set; exit code, standard output and error."""
    made, server = shared
    monkeypatch.setenv("TWINLOCK_SERVER", server.address)
    monkeypatch.setenv("TWINLOCK_TOKEN", made.token)

    def run(*args: str) -> tuple[int, str, str]:
        code = main(list(args))
        done = capsys.readouterr()
        return code, done.out, done.err

    return run


def data(done: tuple[int, str, str]) -> Any:
    code, out, err = done
    assert (code, err) == (0, "")
    return json.loads(out)


def failure(done: tuple[int, str, str]) -> tuple[int, str]:
    """Exit code and error code of a refusal, which is one line."""
    code, out, err = done
    (line,) = err.strip().splitlines()
    assert line.startswith("error["), line
    assert " -- hint: " in line
    assert out == ""
    return code, line[len("error[") :].partition("]")[0]


def test_a_fleet_by_command(shared: tuple[MadeServer, ServerProcess], command: Command) -> None:
    made, server = shared
    client = Client(server, made.token)
    client.enrol()
    client.publish(made)
    assert data(command("device", "list", "--json"))["devices"][0]["device_id"] == "dev-1"
    out = data(command("rollout", "create", "demo", "1.1", "--device", "dev-1", "--json"))
    rollout = out["rollout"]["rollout_id"]
    offered = client.poll().assignment
    assert offered is not None
    client.report(1, "downloading", offered.id)
    assert client.report(2, "rolled_back", offered.id) == (2,)
    shown = data(command("rollout", "show", rollout, "--json"))
    assert [one["state"] for one in shown["rollout"]["assignments"]] == ["rolled_back"]
    deadline = time.monotonic() + 30
    while client.admin("GET", "/devices/dev-1")["last_seen"] is None:  # check-ins are written behind
        assert time.monotonic() < deadline
        time.sleep(0.05)
    fingerprint = DevicePublicKey(client.key.public_pem).fingerprint
    name = client.leave("Kernel panic \x1b[31m")
    for args, words in (
        (("device", "list"), ("dev-1", "accepted", "demo 1.0", "rolled_back")),
        (("device", "show", "dev-1"), ("dev-1 (accepted)", "downloading")),
        (("device", "show", "dev-1"), ("device evidence dev-1 NAME", name[:12], "pstore")),
        (("device", "evidence", "dev-1", name[:12]), ("Kernel panic  [31m",)),
        (("rollout", "list"), (rollout, "demo 1.1", "1 rolled back")),
        (("rollout", "show", rollout), ("dev-1", "rolled_back", "finished")),
        (("rollout", "halt", rollout), (f"{rollout} is halted",)),
        (("device", "reject", "dev-1"), ("dev-1 is rejected",)),
        (
            ("device", "accept", "dev-1"),
            ("dev-1 is accepted", fingerprint),
        ),
        (("rollout", "create", "demo", "1.1", "--all"), ("demo 1.1 for all (1 device now)",)),
    ):
        code, text, err = command(*args)
        assert (code, err) == (0, ""), args
        assert [word for word in words if word not in text] == [], (args, text)


def test_devices_are_preauthorised_by_fingerprint_or_key(command: Command, tmp_path: Path) -> None:
    public = DeviceKey(generate()).public_pem
    path = tmp_path / "device.pub"
    path.write_text(public)
    fingerprint = DevicePublicKey(public).fingerprint
    by_key = data(command("device", "preauthorise", "new-1", "--key-file", str(path), "--json"))["device"]
    assert (by_key["fingerprint"], by_key["status"]) == (fingerprint, "preauthorised")
    code, out, _ = command("device", "preauthorise", "new-2", "--fingerprint", fingerprint)
    assert (code, "will be accepted when it enrols" in out) == (0, True)
    both = ("--fingerprint", fingerprint, "--key-file", str(path))
    assert failure(command("device", "preauthorise", "new-3", *both)) == (2, "input-invalid")
    assert failure(command("device", "preauthorise", "new-3")) == (2, "input-invalid")
    path.write_text("no key")
    assert failure(command("device", "preauthorise", "x", "--key-file", str(path))) == (2, "input-invalid")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("device", "show", "nobody"), (2, "not-found")),
        (("device", "evidence", "nobody", "0"), (2, "not-found")),
        (("device", "accept", "../x"), (2, "input-invalid")),
        (("device", "list", "--status", "lost"), (2, "input-invalid")),
        (("device", "list", "--limit", "0"), (2, "input-invalid")),
        (("device", "list", "--token", ""), (2, "input-invalid")),
        (("device", "list", "--token", "wrong"), (8, "unauthorised")),
        (("device", "list", "--server", "http://127.0.0.1:1"), (3, "server-unreachable")),
        (("rollout", "create", "demo", "1.1"), (2, "input-invalid")),
        (("rollout", "create", "demo", "1.1", "--all", "--device", "dev-1"), (2, "input-invalid")),
        (("rollout", "create", "demo", "9.9", "--all"), (2, "not-found")),
        (("rollout", "create", "../x", "1", "--all"), (2, "input-invalid")),
        (("rollout", "show", "r99"), (2, "not-found")),
        (("rollout", "halt", "x/y"), (2, "input-invalid")),
        (("rollout", "fly"), (2, "input-invalid")),
    ],
)
def test_what_cannot_be_is_one_line(
    command: Command, args: tuple[str, ...], expected: tuple[int, str]
) -> None:
    assert failure(command(*args)) == expected


def test_more_devices_than_the_limit_are_mentioned(
    shared: tuple[MadeServer, ServerProcess], command: Command
) -> None:
    made, server = shared
    for name in ("many-1", "many-2"):
        client = Client(server, made.token)
        client.enrol(name)
    code, out, _ = command("device", "list", "--limit", "1")
    assert (code, "there are more devices" in out) == (0, True)
    found = data(command("device", "list", "--json"))
    assert {"many-1", "many-2"} <= {one["device_id"] for one in found["devices"]}
    assert found["next"] is None


def test_a_new_token_is_made_on_the_server(
    shared: tuple[MadeServer, ServerProcess], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = shared
    token = data(command("server", "token", str(made.folder), "--name", "alice", "--json"))["token"]
    monkeypatch.setenv("TWINLOCK_TOKEN", token)
    assert "devices" in data(command("device", "list", "--json"))
    assert failure(command("server", "token", str(made.folder / "none"))) == (2, "input-missing")
    assert failure(command("server", "token", str(made.folder), "--name", "../x")) == (2, "input-invalid")


def test_making_a_server_by_command(command: Command, tmp_path: Path) -> None:
    from datetime import UTC, datetime

    from tests.conformance.repository import Repository

    root = tmp_path / "1.root.json"
    root.write_bytes(Repository(datetime.now(UTC)).served("root"))
    folder = tmp_path / "made"
    code, out, err = command("server", "init", str(folder), "--root", str(root), "--poll-wait", "5")
    assert (code, err) == (0, "")
    assert "shown this once" in out
    assert "poll_wait_s = 5" in (folder / "server.toml").read_text()
    assert failure(command("server", "init", str(folder), "--root", str(root))) == (2, "input-exists")
    missing = command("server", "init", str(tmp_path / "x"), "--root", str(tmp_path / "none"))
    assert failure(missing) == (2, "input-missing")
    assert failure(command("server", "run", str(tmp_path / "x"))) == (2, "input-missing")
