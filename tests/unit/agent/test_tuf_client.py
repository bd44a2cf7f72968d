"""The client's command line: what a user gets wrong, and what a machine does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.driver import Driver, serve
from tests.conformance.repository import Repository
from twinlock.agent import tuf_client
from twinlock.agent.repository import RoleFiles
from twinlock.agent.store import FolderStore
from twinlock.core import limits
from twinlock.core.errors import TwinlockError
from twinlock.core.trust.verifier import Floors


def said(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], "input-invalid"),
        (["--metadata-dir", "D"], "input-invalid"),
        (["--metadata-dir", "D", "unknown"], "input-invalid"),
        (["--metadata-dir", "D", "--unknown", "refresh"], "input-invalid"),
        (["--metadata-dir", "D", "init"], "input-invalid"),
        (["--metadata-dir", "D", "refresh"], "input-invalid"),
        (["--metadata-dir", "D", "--metadata-url", "http://127.0.0.1:1/m", "download"], "input-invalid"),
        (["--metadata-dir", "D", "--metadata-url", "http://update.example/m", "refresh"], "config-invalid"),
        (["--metadata-dir", "D", "--metadata-url", "ftp://127.0.0.1/m", "refresh"], "config-invalid"),
        (["--metadata-dir", "D", "--metadata-url", "http://127.0.0.1:1/m", "refresh"], "metadata-missing"),
        (["--metadata-dir", "D", "init", "missing"], "input-missing"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: str
) -> None:
    paths = [str(tmp_path / text) if text in ("D", "missing") else text for text in arguments]
    assert tuf_client.main(paths) == tuf_client.FAILED
    assert said(capsys).startswith(f"error[{code}]: ")


def test_a_server_that_is_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root.json"
    root.write_bytes(Repository().served("root"))
    common = ["--metadata-dir", str(tmp_path / "D")]
    assert tuf_client.main([*common, "init", str(root)]) == 0
    assert tuf_client.main([*common, "--metadata-url", "http://127.0.0.1:9/m", "refresh"]) == 1
    assert said(capsys).startswith("error[server-unreachable]: ")


def test_a_fault_of_ours_is_one_line_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuf_client, "RoleFiles", None)
    assert tuf_client.main(["--metadata-dir", str(tmp_path), "refresh"]) == 1
    assert said(capsys).startswith("error[internal]: TypeError")


def test_a_root_that_is_too_large(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root.json"
    root.write_bytes(b" " * (limits.METADATA_SIZE_BYTES_MAX["root"] + 1))
    assert tuf_client.main(["--metadata-dir", str(tmp_path / "D"), "init", str(root)]) == 1
    assert said(capsys).startswith("error[input-too-large]: ")


def test_init_again_begins_again(tmp_path: Path) -> None:
    """Another root is another trust: what was seen under the first does not count for it."""
    old, new = Repository(), Repository(kind="ecdsa")
    for _ in range(3):
        old.publish("timestamp")
    with serve(old) as address:
        client = Driver(old, address, tmp_path)
        assert client.init() == client.refresh() == 0
        assert client.floors().timestamp == 4
        client.root.write_bytes(new.served("root"))
        old.files = new.files
        assert client.init() == client.refresh() == 0
        assert client.floors().timestamp == 1


def test_floors_that_somebody_changed_are_refused(tmp_path: Path) -> None:
    files = RoleFiles(FolderStore(tmp_path))
    assert files.load_floors() == Floors()
    files.save_floors(Floors(timestamp=3, delegated={"a.json": 2}))
    assert files.load_floors() == Floors(timestamp=3, delegated={"a.json": 2})
    (tmp_path / "floors").write_text('{"timestamp": 4, "from_later": 1}')
    assert files.load_floors() == Floors(timestamp=4)
    for text in ("", "{", "[]", '{"timestamp": "4"}', '{"timestamp": true}'):
        (tmp_path / "floors").write_text(text)
        with pytest.raises(TwinlockError, match="metadata-malformed"):
            files.load_floors()


def test_a_file_larger_than_any_is_not_begun(tmp_path: Path) -> None:
    repository = Repository()
    repository.add_file(b"data", "file").length = tuf_client.FILE_SIZE_BYTES_MAX + 1
    repository.publish("targets", "snapshot", "timestamp")
    with serve(repository) as address:
        client = Driver(repository, address, tmp_path)
        assert client.init() == 0
        assert client.download("file") == 1
        assert client.code == "transfer-oversized"
    assert not any(path.startswith("targets/") for path in repository.asked)


def test_a_stored_file_larger_than_any_is_passed_over(tmp_path: Path) -> None:
    files = RoleFiles(FolderStore(tmp_path), "metadata")
    assert files.load("timestamp") is None
    files.save("timestamp", b"x")
    assert files.load("timestamp") == b"x"
    (tmp_path / "metadata/timestamp.json").write_bytes(
        b"x" * (limits.METADATA_SIZE_BYTES_MAX["timestamp"] + 1)
    )
    assert files.load("timestamp") is None
    files.delete("timestamp")
    files.delete("timestamp")
    assert list((tmp_path / "metadata").iterdir()) == []
