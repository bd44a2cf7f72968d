"""Settings and the making of a server's folder."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.repository import NOW, Repository
from tests.unit.server.rig import FakeClock, Server
from twinlock.core.errors import TwinlockError
from twinlock.server import settings as module
from twinlock.server import setup
from twinlock.server.settings import Settings, load


def root() -> bytes:
    return Repository().served("root")


def make(folder: Path, **changes: Any) -> str:
    return setup.initialise(folder, root(), clock=FakeClock(), **changes)


def test_what_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "server"
    token = make(folder)
    assert {path.name for path in folder.iterdir()} == {
        "server.toml",
        "root.json",
        "secret.key",
        "twinlock.db",
        "repository",
        "payloads",
        "tmp",
    }
    assert (folder / "repository/metadata/1.root.json").read_bytes() == root()
    assert (folder / "root.json").read_bytes() == root()
    for name in ("secret.key", "server.toml", "twinlock.db"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name
    assert load(folder, {}) == Settings(folder=folder)
    assert token.encode() not in (folder / "twinlock.db").read_bytes()


def test_what_was_asked_for_is_in_the_settings(tmp_path: Path) -> None:
    make(tmp_path / "server", poll_wait_s=2, page_open=True)
    found = load(tmp_path / "server", {})
    assert (found.poll_wait_s, found.page_open, found.database_url) == (2, True, "")


def test_a_settings_file_shows_every_default(tmp_path: Path) -> None:
    """What is commented out says what holds without it."""
    make(tmp_path / "server")
    path = tmp_path / "server/server.toml"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.removeprefix("# ") if " = " in line else line for line in lines))
    assert load(tmp_path / "server", {}) == Settings(folder=tmp_path / "server")


def test_two_servers_have_different_secrets_and_tokens(tmp_path: Path) -> None:
    tokens = {make(tmp_path / name) for name in ("one", "two")}
    secrets = {(tmp_path / name / "secret.key").read_bytes() for name in ("one", "two")}
    assert (len(tokens), len(secrets)) == (2, 2)


@pytest.mark.parametrize("content", ["server.toml", "notes.txt"])
def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / content).write_text("mine")
    with pytest.raises(TwinlockError) as caught:
        make(tmp_path)
    assert caught.value.code == "input-exists"
    assert [path.name for path in tmp_path.iterdir()] == [content]
    assert (tmp_path / content).read_text() == "mine"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(TwinlockError) as caught:
        make(tmp_path / "x")
    assert caught.value.code == "input-wrong-type"


@pytest.mark.parametrize("data", [b"", b"{}", b"x" * 1000])
def test_a_root_that_is_none_makes_nothing(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(TwinlockError) as caught:
        setup.initialise(tmp_path / "server", data, clock=FakeClock())
    assert caught.value.code == "metadata-malformed"
    assert list(tmp_path.iterdir()) == []


def test_a_root_that_is_not_signed_or_has_expired_makes_nothing(tmp_path: Path) -> None:
    stranger, other = Repository(), Repository(NOW.replace(year=2020))
    stranger.signers["root"] = [stranger.new_key()]
    stranger.publish("root", bump=False)
    for repository, code in ((stranger, "metadata-signature"), (other, "metadata-expired")):
        with pytest.raises(TwinlockError) as caught:
            setup.initialise(tmp_path / "server", repository.served("root"), clock=FakeClock())
        assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_making_is_completed_after_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """server.toml is last: until then the folder is no server, and the same command finishes it."""

    def cut(*args: object, **kwargs: object) -> bytes:
        raise InterruptedError

    monkeypatch.setattr(setup, "_config", cut)
    with pytest.raises((InterruptedError, TwinlockError)):
        make(tmp_path / "server")
    with pytest.raises(TwinlockError) as caught:
        load(tmp_path / "server", {})
    assert caught.value.code == "input-missing"
    monkeypatch.undo()
    make(tmp_path / "server")
    assert load(tmp_path / "server", {}).folder == tmp_path / "server"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("poll_wait_s = 0", "input-invalid"),
        ("poll_wait_s = '5'", "input-invalid"),
        ("session_s = 5", "input-invalid"),
        ("unknown = 1", "input-invalid"),
        ("folder = '/x'", "input-invalid"),
        ("page_open = 1", "input-invalid"),
        ("page_open = ", "input-unreadable"),
        ("\xff", "input-unreadable"),
        ("#" * 70_000, "input-too-large"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, text: str, code: str) -> None:
    (tmp_path / "server.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(TwinlockError) as caught:
        load(tmp_path, {})
    assert caught.value.code == code


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text("poll_wait_s = 5\n")
    found = load(
        tmp_path,
        {
            "TWINLOCK_SERVER_POLL_WAIT_S": "7",
            "TWINLOCK_SERVER_PAGE_OPEN": "true",
            "TWINLOCK_SERVER_DATABASE_URL": "sqlite:///x.db",
            "TWINLOCK_SERVER": "http://127.0.0.1:1",
            "OTHER": "x",
        },
    )
    assert (found.poll_wait_s, found.page_open, found.url) == (7, True, "sqlite:///x.db")
    with pytest.raises(TwinlockError, match="unknown"):
        load(tmp_path, {"TWINLOCK_SERVER_NOTHING": "1"})


@pytest.mark.parametrize("name", [module.SECRET_NAME, module.ROOT_NAME])
@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_server_whose_secret_or_root_is_damaged_does_not_start(
    server: Server, name: str, damage: str
) -> None:
    path = server.folder / name
    server.stop()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"short")
    with pytest.raises(TwinlockError):
        server.start()
    path.write_bytes(bytes(32) if name == module.SECRET_NAME else root())
    server.start()
