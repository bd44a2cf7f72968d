"""What the metadata library's own client leaves open, each closed here: beside it where it can be shown.

The library is good at gzip bombs, endless data and a threshold of 0. These are the others.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import pytest
from tuf.ngclient import Updater

from tests.attacks.scene import LISTED, Scene, scene
from tests.conformance.driver import Driver, serve
from tests.conformance.repository import Repository
from twinlock.agent import tuf_client
from twinlock.agent.clock import SystemClock
from twinlock.agent.config import NetworkConfig
from twinlock.agent.http import HttpNetwork


def library(attack: Scene, folder: Path) -> Updater:
    """The library's client over the same repository, with files of its own."""
    (folder / "root.json").write_bytes(attack.repository.files["metadata/1.root.json"])
    return Updater(str(folder), f"{attack.client.address}/metadata", bootstrap=None)


def test_emptied_files_are_not_forgotten_history(tmp_path: Path) -> None:
    """The library's client takes version 1 again once both files are empty; ours keeps its floors apart."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    with scene(tmp_path / "ours", Repository(datetime.now(UTC))) as attack:
        attack.client.now = datetime.now(UTC)
        library(attack, theirs).refresh()
        for folder in (theirs, attack.client.metadata):
            for role in ("timestamp", "snapshot"):
                (folder / f"{role}.json").write_bytes(b"")
        attack.back(*LISTED)
        Updater(str(theirs), f"{attack.client.address}/metadata", bootstrap=None).refresh()
        assert b'"version": 1' in (theirs / "timestamp.json").read_bytes()
        attack.refused("metadata-rollback")


def test_every_file_is_flushed_before_it_takes_its_name(tmp_path: Path) -> None:
    """And the folder after it; the library's client flushes neither."""
    done: list[tuple[str, str]] = []
    open_files: dict[int, str] = {}
    real = {name: getattr(os, name) for name in ("open", "fsync", "replace")}

    def opened(path: str, *args: int) -> int:
        fd: int = real["open"](path, *args)
        open_files[fd] = str(path)
        return fd

    def flushed(fd: int) -> None:
        real["fsync"](fd)
        done.append(("flush", open_files[fd]))

    def replaced(source: str, goal: str) -> None:
        real["replace"](source, goal)
        done.append(("name", str(source)))

    with scene(tmp_path) as attack:
        attack.repository.publish("root", *LISTED)
        with (
            mock.patch.object(os, "open", opened),
            mock.patch.object(os, "fsync", flushed),
            mock.patch.object(os, "replace", replaced),
        ):
            assert attack.client.refresh() == 0
        folder = str(attack.client.metadata)
        named = [path for what, path in done if what == "name"]
        assert len(named) == 5
        assert done == [
            step for path in named for step in (("flush", path), ("name", path), ("flush", folder))
        ]


@contextmanager
def dripping(interval_s: float) -> Iterator[str]:
    """A server that sends its head at once and then one byte each interval, for ever."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
            while not over.wait(interval_s):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        thread.join()
        listener.close()


def test_a_drip_is_not_a_transfer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each byte comes well before any gap is too long; what is too low is the rate."""
    root = tmp_path / "root.json"
    root.write_bytes(Repository().served("root"))
    common = ["--metadata-dir", str(tmp_path / "state")]
    assert tuf_client.main([*common, "init", str(root)]) == 0
    bounds = NetworkConfig(stall_timeout_s=60, answer_timeout_s=60, rate_window_s=0.3, rate_bytes_s_min=256)
    with dripping(0.01) as address:
        started = time.monotonic()
        network = HttpNetwork(SystemClock(), bounds)
        assert tuf_client.main([*common, "--metadata-url", address, "refresh"], network=network) == 1
        assert time.monotonic() - started < 20
    assert "error[transfer-stalled]" in capsys.readouterr().err


def test_a_redirect_to_another_host_is_not_followed(tmp_path: Path) -> None:
    elsewhere = Repository()
    with serve(elsewhere) as other, scene(tmp_path) as attack:
        for path in ("metadata/timestamp.json", "metadata/3.root.json"):
            attack.repository.statuses[path] = 302
            attack.repository.headers[path] = {"Location": f"{other}/{path}"}
            attack.refused("redirect-refused")
            del attack.repository.statuses[path]
        assert elsewhere.asked == []


def test_a_file_is_written_where_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy in a temporary folder, which on a device may be memory; and no name before the hash holds."""
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.setenv(name, str(tmp_path / "missing"))
    with scene(tmp_path / "scene") as attack:
        content = b"x" * 3_000_000
        entry = attack.repository.add_file(content, "file")
        attack.repository.publish(*LISTED)
        path = f"targets/{entry.get_prefixed_paths()[0]}"
        attack.repository.files[path] = content[:-1] + b"y"
        attack.fails(lambda: attack.client.download("file"), "manifest-hash", but=LISTED)
        attack.repository.files[path] = content
        assert attack.client.download("file") == 0
        assert attack.client.downloaded() == [content]
        assert len(list(attack.client.downloads.iterdir())) == 1


def test_a_lost_root_costs_only_the_way_from_the_first(tmp_path: Path) -> None:
    with scene(tmp_path) as attack:
        for damage in (b"", b"{}", None):
            path = attack.client.metadata / "root.json"
            path.unlink()
            if damage is not None:
                path.write_bytes(damage)
            attack.repository.asked.clear()
            assert attack.client.refresh() == 0
            assert attack.repository.asked_metadata() == ["2.root.json", "3.root.json", "timestamp.json"]
            assert attack.client.version("root") == 2


def test_many_releases_cost_a_device_one_bin(tmp_path: Path) -> None:
    """A flat list of thousands would be fetched and parsed whole for each one of them."""
    repository = Repository()
    bins = repository.delegate_bins(6, "bin")
    for number in range(3000):
        name = f"demo/{number}.manifest"
        repository.add_file(b"%d" % number, name, bins.get_role_for_target(name))
    repository.publish(*bins.get_roles(), *LISTED)
    with serve(repository) as address:
        client = Driver(repository, address, tmp_path)
        assert client.init() == 0
        assert client.download("demo/1234.manifest") == 0
    fetched = sum(len(repository.files.get(path, b"")) for path in repository.asked)
    assert client.downloaded() == [b"1234"]
    assert fetched < 64 * 1024
    assert len(client.versions()) == 5
