"""Making a server's folder; see `settings` for what is in it.

`server.toml` is written last: a folder without it is no server, so after a power cut in the middle the same
command is given again, and finishes.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

from twinlock.core import limits
from twinlock.core.durable import fsync_dir, os_errors, read_bounded, write_atomic
from twinlock.core.errors import TrustError, error
from twinlock.core.names import check_name
from twinlock.core.trust.verifier import TrustedSet
from twinlock.server.audit.chain import append
from twinlock.server.clock import Clock, SystemClock, now_ms, now_utc
from twinlock.server.director import folder as directors
from twinlock.server.director.folder import DirectorFolder
from twinlock.server.operators import hash_of, make_token
from twinlock.server.settings import CONFIG_NAME, ROOT_NAME, SECRET_NAME, SECRET_SIZE_BYTES, Settings
from twinlock.server.store.database import SqlDatabase

OPERATOR: Final = "operator"

_CONFIG: Final = """\
# Settings of this Twinlock server; what is left out has the value shown. Restart the server after a change.

# SQLAlchemy URL of the database; empty: SQLite in this folder.
{database_url}
# How long a device waits between two polls, in seconds.
{poll_wait_s}
# Show the status page without a login. Only on 127.0.0.1 or ::1, and not behind a proxy.
{page_open}
# Uploads that would leave less free space than this are refused.
# free_bytes_min = 67108864
"""


def initialise(
    folder: Path,
    root: bytes,
    *,
    database_url: str = "",
    poll_wait_s: int | None = None,
    page_open: bool = False,
    director: tuple[bytes, bytes] | None = None,
    clock: Clock | None = None,
) -> str:
    """Makes a server in `folder` (new or empty) that trusts this root; returns the operator's token.

    `director` is the director's root and the PEM of its online key, which the root names.
    The token is shown this once; the server keeps a hash. Raises InputError `input-exists` when the folder
    holds something, TrustError when the root is malformed, not signed by itself or expired, and what the
    file system and the database refuse.
    """
    clock = clock or SystemClock()
    trusted = TrustedSet(root, now_utc(clock))
    trusted.check_root_fresh()
    _check_empty(folder)
    with os_errors(f"folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        for part in ("repository/metadata", "repository/targets", "payloads", "tmp"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        write_atomic(folder / SECRET_NAME, secrets.token_bytes(SECRET_SIZE_BYTES), mode=0o600)
        write_atomic(folder / ROOT_NAME, root)
        write_atomic(folder / f"repository/metadata/{trusted.root.version}.root.json", root)
    if director is not None:
        own = DirectorFolder(folder)
        own.add_key(director[1])
        own.add_root(director[0], now_utc(clock))
    settings = Settings(folder=folder, database_url=database_url)
    token = add_operator(settings, OPERATOR, clock)
    with os_errors(f"folder {folder}"):
        (folder / "twinlock.db").chmod(0o600) if not database_url else None
        write_atomic(folder / CONFIG_NAME, _config(database_url, poll_wait_s, page_open), mode=0o600)
        fsync_dir(folder)
    return token


def add_operator(settings: Settings, name: str, clock: Clock | None = None) -> str:
    """A new token for the operator of this name, in place of an old one; returns it."""
    at_ms = now_ms(clock or SystemClock())
    token = make_token()
    database = SqlDatabase(settings.url)
    database.open()
    try:
        with database.write() as transaction:
            transaction.operators.add(check_name(name, "operator"), hash_of(token), at_ms)
            append(transaction.audit, at_ms, f"user {os.getuid()}", "operator-token-made", name)
    finally:
        database.close()
    return token


def add_director_key(settings: Settings, private_pem: bytes, clock: Clock | None = None) -> str:
    """Keeps an online key of the director's; its id. Serves from the next start, once a root names it."""
    key = DirectorFolder(settings.folder).add_key(private_pem)
    _note(settings, clock, "director-key-added", key.keyid)
    return key.keyid


def add_director_root(settings: Settings, root: bytes, clock: Clock | None = None) -> int:
    """Keeps a root of the director's; its version. Serves from the next start. Raises as `add_root` does."""
    version = DirectorFolder(settings.folder).add_root(root, now_utc(clock or SystemClock()))
    _note(settings, clock, "director-root-added", f"version {version}")
    return version


def _note(settings: Settings, clock: Clock | None, action: str, subject: str) -> None:
    database = SqlDatabase(settings.url)
    database.open()
    try:
        with database.write() as transaction:
            at_ms = now_ms(clock or SystemClock())
            append(transaction.audit, at_ms, f"user {os.getuid()}", action, subject)
    finally:
        database.close()


def read_secret(settings: Settings) -> bytes:
    """The server's secret. Raises InputError when it is missing, unreadable or of another size."""
    data = read_bounded(settings.folder / SECRET_NAME, 4 * limits.KIB, "secret key")
    if len(data) != SECRET_SIZE_BYTES:
        raise error("input-invalid", f"{settings.folder / SECRET_NAME} is not {SECRET_SIZE_BYTES} bytes")
    return data


def read_root(settings: Settings, clock: Clock) -> bytes:
    """The pinned root. Raises InputError when it is missing or unreadable, TrustError when it is no root."""
    path = settings.folder / ROOT_NAME
    data = read_bounded(path, limits.METADATA_SIZE_BYTES_MAX["root"], "pinned root")
    try:
        TrustedSet(data, now_utc(clock))
    except TrustError as problem:
        hint = f"{path} is damaged: restore it from the file that `twinlock server init` was given"
        raise error(problem.code, f"the pinned root: {problem.what}", hint=hint) from problem
    return data


def _check_empty(folder: Path) -> None:
    with os_errors(f"folder {folder}"):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise error("input-wrong-type", f"{folder} is no folder")
        if (folder / CONFIG_NAME).exists():
            raise error("input-exists", f"{folder} holds a Twinlock server already")
        ours = {"repository", "payloads", "tmp", SECRET_NAME, ROOT_NAME, directors.NAME, "twinlock.db"}
        strange = sorted(path.name for path in folder.iterdir() if not path.name.startswith(tuple(ours)))
        if strange:
            raise error("input-exists", f"{folder} is not empty: {strange[0]!r} is in it")


def _config(database_url: str, poll_wait_s: int | None, page_open: bool) -> bytes:
    def line(name: str, value: str, is_default: bool) -> str:
        return f"{'# ' if is_default else ''}{name} = {value}"

    default = Settings()
    wait_s = default.poll_wait_s if poll_wait_s is None else poll_wait_s
    quoted = '"' + database_url.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return _CONFIG.format(
        database_url=line("database_url", quoted, not database_url),
        poll_wait_s=line("poll_wait_s", str(wait_s), wait_s == default.poll_wait_s),
        page_open=line("page_open", str(page_open).lower(), not page_open),
    ).encode("utf-8")
