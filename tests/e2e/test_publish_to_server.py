"""The build side against the real server: publish, refresh, rotate, be refused, outlive its absence."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.world import PACK, Worlds
from twinlock.agent.clock import SystemClock
from twinlock.agent.config import NetworkConfig
from twinlock.agent.http import HttpNetwork
from twinlock.agent.metadata import MetadataClient
from twinlock.agent.store import FolderStore
from twinlock.cli.main import main
from twinlock.publish import lists

Capture = pytest.CaptureFixture[str]


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server process on `folder`."""
    command = [
        sys.executable,
        "-m",
        "twinlock.cli.main",
        "server",
        "run",
        str(folder),
        "--port",
        "0",
        "--json",
    ]
    with (folder.parent / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, (folder.parent / "server.log").read_text()
            yield json.loads(line)["address"]
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Path:
    """A builder's folder (see tests/unit/cli/world.py) with a server's folder `server` beside the keys."""
    (tmp_path / "here").mkdir()
    made = Worlds(tmp_path).enter(tmp_path / "here", monkeypatch)
    capsys.readouterr()
    assert main(["server", "init", "server", "--root", "repo/metadata/1.root.json", "--json"]) == 0
    token = json.loads(capsys.readouterr().out)["token"]
    (made / "token").write_text(token)
    monkeypatch.setenv("TWINLOCK_TOKEN_FILE", "token")
    return made


def ok(capsys: Capture, *args: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*args, "--json"]) == 0, capsys.readouterr().err
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    return data


def refused(capsys: Capture, *args: str) -> str:
    capsys.readouterr()
    assert main([*args, "--json"]) != 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    return str(lines[-1]["error"]["code"])


def test_a_release_reaches_the_server_and_stays(
    world: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(world / "server") as address:
        monkeypatch.setenv("TWINLOCK_SERVER", address)
        (sent,) = ok(capsys, "release", "publish")["releases"]
        assert sent["new"]
        (again,) = ok(capsys, "release", "publish")["releases"]
        assert (again["new"], again["sent_bytes"]) == (False, 0)
        ok(capsys, "release", "sign", "demo-1.1")
        ok(capsys, "release", "publish", "demo/1.1")
        ok(capsys, "release", "refresh")
        ok(capsys, "release", "publish")
    assert refused(capsys, "release", "publish") == "server-unreachable"
    with serving(world / "server") as address:
        monkeypatch.setenv("TWINLOCK_SERVER", address)
        listed = ok(capsys, "release", "list")["releases"]
        assert sorted(one["release"] for one in listed) == ["1.0", "1.1"]


def test_rotated_keys_are_followed_and_an_older_state_is_refused(
    world: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(world / "server") as address:
        monkeypatch.setenv("TWINLOCK_SERVER", address)
        before = world / "before"
        subprocess.run(["cp", "-r", "repo", "before"], cwd=world, check=True)
        ok(capsys, "keys", "create", "--role", "targets", "--role", "timestamp", "--name", "next")
        roles = ok(capsys, "keys", "list", "--repo", "repo")["roles"]
        old = {one["role"]: one["key_ids"][0][:12] for one in roles}
        change = ["--add", "targets=keys/targets-next.pub", "--remove", f"targets={old['targets']}"]
        change += ["--add", "timestamp=keys/timestamp-next.pub", "--remove", f"timestamp={old['timestamp']}"]
        ok(capsys, "keys", "rotate", *change)
        ok(capsys, "release", "publish")
        assert refused(capsys, "release", "publish", "--repo", str(before)) in (
            "metadata-signature",
            "metadata-rollback",
        )
        ok(capsys, "release", "publish")


def test_a_strangers_repository_is_refused(
    world: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok(capsys, "keys", "create", "--keys", "theirs")
    ok(capsys, "keys", "init", "--keys", "theirs", "--repo", "stranger")
    ok(capsys, "release", "pack", "image", "--version", "9.0", *PACK)
    ok(capsys, "release", "sign", "demo-9.0", "--keys", "theirs", "--repo", "stranger")
    with serving(world / "server") as address:
        monkeypatch.setenv("TWINLOCK_SERVER", address)
        assert refused(capsys, "release", "publish", "--repo", "stranger") in (
            "metadata-signature",
            "conflict",
        )
        ok(capsys, "release", "publish")
        assert refused(capsys, "release", "publish", "--repo", "stranger") in (
            "metadata-signature",
            "conflict",
        )
        listed = ok(capsys, "release", "list")["releases"]
        assert [one["release"] for one in listed] == ["1.0"]


def test_other_bytes_under_a_published_name_are_refused(
    world: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build side refuses it itself, and so does the server when a second repository tries."""
    with serving(world / "server") as address:
        monkeypatch.setenv("TWINLOCK_SERVER", address)
        ok(capsys, "release", "publish")
        for name in (
            "repo/metadata/timestamp.json",
            "repo/metadata/1.snapshot.json",
            "repo/metadata/1.targets.json",
        ):
            (world / name).unlink()
        subprocess.run(["rm", "-r", "demo-1.0"], cwd=world, check=True)
        ok(capsys, "release", "pack", "image", "--version", "1.0", *PACK)
        ok(capsys, "release", "sign", "demo-1.0")
        assert refused(capsys, "release", "publish") == "conflict"


def test_a_wrong_token_is_refused(world: Path, capsys: Capture) -> None:
    with serving(world / "server") as address:
        assert (
            refused(capsys, "release", "publish", "--server", address, "--token", "x" * 43) == "unauthorised"
        )


def resolve(address: str, device: Path, name: str) -> list[str]:
    """Lets the agent's metadata client on the state folder `device` find a release; the lists it keeps."""
    clock, store = SystemClock(), FolderStore(device)
    network = HttpNetwork(clock, NetworkConfig())
    try:
        client = MetadataClient(network, store, clock, address, Path("repo/metadata/1.root.json"))
        client.refresh()
        assert client.manifest(*client.claims(name))[1].name == name
    finally:
        network.done(keep=False)
    kept = {path.stem for path in (device / "metadata").iterdir()}
    return sorted(kept - {"root", "timestamp", "snapshot", "targets"})


def test_delegated_lists_and_bins_reach_a_device(
    world: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ok(capsys, "keys", "create", "--keys", "line", "--role", "targets", "--name", "line")
    for name in ("targets-line.pem", "targets-line.pub"):
        shutil.copy(world / "line" / name, world / "keys" / name)
    ok(capsys, "keys", "delegate", "demo", "--key", "line/targets-line.pub")
    ok(capsys, "release", "sign", "demo-1.1")
    device, late = world / "device", world / "late"
    with serving(world / "server") as address:
        monkeypatch.setenv("TWINLOCK_SERVER", address)
        ok(capsys, "release", "publish")
        assert resolve(address, device, "demo/1.1.manifest") == ["demo"]
        monkeypatch.setattr(lists, "NAMES_MAX", 1)
        ok(capsys, "release", "pack", "image", "--version", "1.2", "--counter", "3", *PACK)
        ok(capsys, "release", "sign", "demo-1.2")
        ok(capsys, "release", "publish", "demo/1.2")
        for state in (device, late):  # one that knew the list before it was cut, and a new one
            kept = resolve(address, state, "demo/1.2.manifest")
            assert kept[0] == "demo"
            assert [name[:10] for name in kept[1:]] == ["demo-bins-"]
        assert resolve(address, late, "demo/1.0.manifest") == kept  # still listed by the top list
