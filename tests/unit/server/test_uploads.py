"""Uploads: whole and with their hash, or not there at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.unit.server.rig import Server, code_of
from twinlock.core import limits
from twinlock.server.blobs import payloads as files
from twinlock.server.blobs.payloads import PayloadFiles
from twinlock.server.operator_api import uploads

DATA = random.Random(22).randbytes(3 * limits.MIB + 17)
SHA256 = hashlib.sha256(DATA).hexdigest()


def put(server: Server, data: Any = DATA, sha256: str = SHA256, **headers: str) -> httpx.Response:
    named = {"Authorization": f"Bearer {server.token}"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return server.http("PUT", f"/api/v1/payloads/{sha256}", body=data, headers=named)


def stored(server: Server) -> list[Path]:
    return [path for folder in ("payloads", "tmp") for path in (server.folder / folder).iterdir()]


async def chunked(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def test_a_payload_is_stored_once(server: Server) -> None:
    first, second = put(server), put(server)
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json() == {"sha256": SHA256, "size_bytes": len(DATA)}
    assert [path.read_bytes() for path in stored(server)] == [DATA]
    head = server.operator("HEAD", f"/payloads/{SHA256}")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(DATA)), b"")


def test_an_unknown_payload_is_404_without_a_body(server: Server) -> None:
    answer = server.operator("HEAD", f"/payloads/{SHA256}")
    assert (answer.status_code, answer.content) == (404, b"")


@pytest.mark.parametrize(("data", "sha256"), [(DATA[:-1], SHA256), (DATA, "0" * 64), (b"", SHA256)])
def test_bytes_with_another_hash_are_refused(server: Server, data: bytes, sha256: str) -> None:
    answer = put(server, data, sha256)
    assert (answer.status_code, code_of(answer)) == (400, "payload-hash")
    assert stored(server) == []


@pytest.mark.parametrize("announced", [len(DATA) + 1, len(DATA) - 1, 0])
def test_a_length_that_does_not_hold_is_refused(server: Server, announced: int) -> None:
    answer = put(server, chunked(DATA), content_length=str(announced))
    assert code_of(answer) in ("payload-hash", "request-too-large")
    assert stored(server) == []


def test_a_body_without_a_length_is_411(server: Server) -> None:
    answer = put(server, chunked(DATA))
    assert (answer.status_code, code_of(answer)) == (411, "request-malformed")
    assert stored(server) == []


@pytest.mark.parametrize("announced", ["-1", "x", "1e3", "9" * 30])
def test_a_length_that_is_no_number_is_refused(server: Server, announced: str) -> None:
    assert code_of(put(server, chunked(DATA), content_length=announced)) == "request-malformed"


def test_a_payload_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    server = Server(tmp_path, payload_size_bytes_max=len(DATA) - 1)
    answer = put(server)
    assert (answer.status_code, code_of(answer)) == (413, "request-too-large")
    server.close()


def test_a_payload_that_does_not_fit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    server = Server(tmp_path, free_bytes_min=1 << 49)
    answer = put(server)
    assert (answer.status_code, code_of(answer)) == (507, "disk-full")
    assert stored(server) == []
    server.close()


@pytest.mark.parametrize(
    ("number", "status", "code"),
    [(errno.ENOSPC, 507, "disk-full"), (errno.EDQUOT, 507, "disk-full"), (errno.EIO, 500, "io-error")],
)
@pytest.mark.parametrize("call", ["write_all", "fsync"])
def test_a_disk_that_refuses_half_way_leaves_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch, call: str, number: int, status: int, code: str
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files if call == "write_all" else os, call, refuse)
    answer = put(server)
    assert (answer.status_code, code_of(answer)) == (status, code)
    monkeypatch.undo()
    assert stored(server) == []
    assert put(server).status_code == 201


def test_a_connection_that_breaks_leaves_nothing(server: Server) -> None:
    from starlette.requests import ClientDisconnect

    async def broken() -> AsyncIterator[bytes]:
        yield DATA[: 2 * limits.MIB]
        raise ClientDisconnect

    answer = put(server, broken(), content_length=str(len(DATA)))
    assert code_of(answer) == "connection-lost"
    assert stored(server) == []


def test_a_sender_that_stalls_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    async def stalled() -> AsyncIterator[bytes]:
        yield DATA[:10]
        await asyncio.Event().wait()

    monkeypatch.setattr(uploads, "STALL_WAIT_S", 0.05)
    answer = put(server, stalled(), content_length=str(len(DATA)))
    assert (answer.status_code, code_of(answer)) == (503, "transfer-stalled")
    assert stored(server) == []


def test_a_damaged_copy_is_replaced_by_an_upload(server: Server) -> None:
    put(server)
    path = server.settings.payloads / f"{SHA256}.payload"
    path.write_bytes(DATA[:-1] + b"?")
    assert put(server).status_code == 201
    assert path.read_bytes() == DATA


def test_leftovers_of_a_power_cut_are_removed_at_start_but_no_running_upload(server: Server) -> None:
    left = server.settings.temporary / f"{SHA256}.0123456789abcdef.part"
    running = server.settings.temporary / f"{SHA256}.fedcba9876543210.part"
    left.write_bytes(b"x")
    with running.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        server.stop()
        server.start()
        assert (left.exists(), running.exists()) == (False, True)


def test_an_upload_is_not_seen_before_it_is_finished(tmp_path: Path) -> None:
    stock = PayloadFiles(tmp_path, tmp_path)
    upload = stock.upload(SHA256, len(DATA))
    upload.write(DATA)
    assert stock.size_bytes(SHA256) is None
    upload.finish()
    upload.abandon()
    assert stock.size_bytes(SHA256) == len(DATA)
    with stock.open(SHA256) as file:
        assert file.read() == DATA


@pytest.mark.parametrize("name", ["..", "x", "A" * 64, "%2e%2e%2f" + "0" * 64])
def test_a_name_that_is_no_hash_is_refused(server: Server, name: str) -> None:
    answer = put(server, sha256=name)
    assert code_of(answer) in ("input-invalid", "not-found")
    assert stored(server) == []
