"""Listening, and the log: what can be wrong before anything is served."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import socket
import sys
from pathlib import Path

import msgspec
import pytest

from tests.unit.server.rig import Server
from twinlock.core.errors import TwinlockError
from twinlock.server import run
from twinlock.server.logs import LineFormatter


def test_a_free_port_is_picked() -> None:
    with run.listen("127.0.0.1", 0) as listener:
        assert run.address_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
    with run.listen("::1", 0) as listener:
        assert run.address_of(listener).startswith("http://[::1]:")
    with run.listen("0.0.0.0", 0) as listener:
        assert run.address_of(listener).startswith("http://127.0.0.1:")


@pytest.mark.parametrize(
    ("host", "port", "match"),
    [
        ("no.such.host.invalid", 0, "no address"),
        ("192.0.2.1", 0, "cannot be listened on"),
        ("127.0.0.1", 70_000, "no port"),
        ("127.0.0.1", -1, "no port"),
        ("a" * 80 + ".example", 0, "no address"),
    ],
)
def test_an_address_that_is_not_here_is_refused(host: str, port: int, match: str) -> None:
    with pytest.raises(TwinlockError, match=match) as caught:
        run.listen(host, port)
    assert caught.value.code == "input-invalid"


def test_a_port_in_use_is_told() -> None:
    with run.listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(TwinlockError, match=f"port {port} of 127.0.0.1 is in use") as caught:
            run.listen("127.0.0.1", port)
    assert "--port" in caught.value.hint


def test_a_port_that_needs_more_rights_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(self: socket.socket, address: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket.socket, "bind", bind)
    with pytest.raises(TwinlockError, match="may not be used") as caught:
        run.listen("127.0.0.1", 80)
    assert "1024" in caught.value.hint


def test_an_open_page_is_for_loopback_only(server: Server) -> None:
    opened = msgspec.structs.replace(server.settings, page_open=True)
    with run.listen("0.0.0.0", 0) as listener, pytest.raises(TwinlockError, match="page_open"):
        run.check_page(opened, listener)
    with run.listen("0.0.0.0", 0) as listener:
        run.check_page(server.settings, listener)
    with run.listen("127.0.0.1", 0) as listener:
        run.check_page(opened, listener)


def test_as_many_files_as_allowed_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_NOFILE: (1024, 4096)}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    monkeypatch.setattr(resource, "setrlimit", limits.__setitem__)
    run.raise_file_limit()
    assert limits == {resource.RLIMIT_NOFILE: (4096, 4096)}
    limits[resource.RLIMIT_NOFILE] = (1024, resource.RLIM_INFINITY)
    run.raise_file_limit()
    assert limits[resource.RLIMIT_NOFILE] == (run.FILES_MAX, resource.RLIM_INFINITY)
    limits[resource.RLIMIT_NOFILE] = (run.FILES_MAX * 2, run.FILES_MAX * 4)
    run.raise_file_limit()
    assert limits[resource.RLIMIT_NOFILE] == (run.FILES_MAX * 2, run.FILES_MAX * 4)


@pytest.mark.parametrize("part", ["payloads", "tmp", "repository"])
def test_a_folder_that_lost_a_part_is_told(server: Server, part: str, tmp_path: Path) -> None:
    run.check_writable(server.settings)
    (server.folder / part).rename(tmp_path / "away")
    with pytest.raises(TwinlockError, match=part) as caught:
        run.check_writable(server.settings)
    assert caught.value.code == "input-missing"


def test_a_folder_that_cannot_be_written_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("payloads"))
    with pytest.raises(TwinlockError, match="payloads") as caught:
        run.check_writable(server.settings)
    assert caught.value.code == "permission-denied"


def test_a_log_line_is_one_line_whatever_is_in_it() -> None:
    try:
        raise ValueError("inner\nlines")
    except ValueError:
        record = logging.LogRecord(
            "twinlock.x", logging.ERROR, "", 0, "a %s", ("b\n2026 level=info forged",), sys.exc_info()
        )
    line = LineFormatter().format(record)
    assert "\n" not in line
    head, _, rest = line.partition(" at=")
    assert head.endswith("Z level=error")
    message, _, trace = rest.removeprefix("twinlock.x ").partition(" trace=")
    assert json.loads(message) == "a b\n2026 level=info forged"
    assert "ValueError: inner\nlines" in json.loads(trace)
