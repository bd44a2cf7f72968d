"""A device whose key is on a PKCS#11 token, its real processes against a real server over a real socket."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.e2e.server.conftest import MadeServer
from tests.e2e.server.process import ServerProcess
from tests.unit.agent import softhsm
from tests.unit.agent.test_processes import device
from twinlock.agent import identity
from twinlock.agent.plan import CHECKED, CheckAnswer, CheckRequest

PEAK_MIB_MAX = 42  # a check has 40; asking the token adds a pipe and what is mapped with it


class Enrolled:
    """One device's folder, and the commands of its agent."""

    def __init__(self, folder: Path, server: ServerProcess, tokens: softhsm.Tokens) -> None:
        self.config = device(folder, server.address)
        self.config.write_text(self.config.read_text() + tokens.table)
        self.state = folder / "state"

    def agent(self, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "twinlock.agent.main", "--config", str(self.config), "--json", *args]
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
        )

    def told(self, *args: str) -> dict[str, Any]:
        done = self.agent(*args)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def refused(self, *args: str, **environment: str) -> str:
        done = self.agent(*args, **environment)
        assert done.returncode != 0
        return str(json.loads(done.stderr.splitlines()[-1])["error"]["code"])


def test_a_device_on_a_token_lives_and_its_copy_does_not(
    made: MadeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    show: Any,
) -> None:
    tokens = softhsm.plugged_in(tmp_path / "hsm", monkeypatch)
    server = ServerProcess(made.folder)
    try:
        lives_and_its_copy_does_not(server, made.token, tokens, tmp_path, show)
    finally:
        server.stop()


def lives_and_its_copy_does_not(
    server: ServerProcess,
    token: str,
    tokens: softhsm.Tokens,
    tmp_path: Path,
    show: Any,
) -> None:
    operator = {"Authorization": f"Bearer {token}"}
    own = Enrolled(folder(tmp_path / "own"), server, tokens)
    enrolled = own.told("enrol")
    assert enrolled["status"] == "pending"
    path = f"/api/v1/devices/{enrolled['device_id']}"
    assert server.request("POST", f"{path}/accept", headers=operator).status == 200
    assert own.agent("run").returncode == 0
    shown = server.request("GET", path, headers=operator).json()
    assert (shown["status"], shown["fingerprint"]) == ("accepted", enrolled["fingerprint"])
    assert not (own.state / identity.KEY).exists()
    assert not [one for one in own.state.rglob("*") if one.is_file() and b"PRIVATE" in one.read_bytes()]
    assert own.told("enrol")["status"] == "accepted"  # by the same key
    show(f"check of a device with a PKCS#11 token: peak {peak_mib(own):.1f} MiB")

    # A copy of all files, on a machine that has not the token; another token changes nothing.
    shutil.copytree(tmp_path / "own", tmp_path / "copy")
    (own.state / "session.json").unlink()
    own.config = tmp_path / "copy" / "agent.toml"
    own.config.write_text(own.config.read_text().replace(str(tmp_path / "own"), str(tmp_path / "copy")))
    (tmp_path / "copy" / "state" / "session.json").unlink()
    other = softhsm.empty(tmp_path / "other")
    elsewhere = {"SOFTHSM2_CONF": str(other.configuration)}
    assert own.refused("run", **elsewhere) == "pkcs11-missing"
    other.add()
    assert own.refused("run", **elsewhere) == "identity-lost"
    assert own.refused("enrol", **elsewhere) == "identity-lost"
    again = server.request("GET", path, headers=operator).json()
    assert (again["status"], again["fingerprint"]) == ("accepted", enrolled["fingerprint"])


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def peak_mib(own: Enrolled) -> float:
    """What the check needs at most, without a session, so that the token signs."""
    (own.state / "session.json").unlink()
    request = CheckRequest(mode="poll", nonce="n", slot="a", is_committed=True, inactive="b")
    done = subprocess.run(
        [sys.executable, "-m", "twinlock.agent.main", "--config", str(own.config), "check"],
        input=msgspec.json.encode(request),
        capture_output=True,
        timeout=120,
        env={**os.environ, "TWINLOCK_AGENT_PARENT": str(os.getpid())},
    )
    assert done.returncode == 0, done.stderr
    answer = msgspec.json.decode((own.state / CHECKED).read_bytes(), type=CheckAnswer)
    assert 0 < answer.peak_bytes <= PEAK_MIB_MAX << 20
    return answer.peak_bytes / (1 << 20)
