"""What can be set on a server: `DIR/server.toml`, overridden by variables named `TWINLOCK_SERVER_` + NAME.

DIR/server.toml                      this file
DIR/root.json                        the pinned root of trust that `twinlock server init` was given
DIR/director/                        the director's keys (0600) and roots (see `director.folder`)
DIR/secret.key                       32 random bytes (0600) behind challenges, sessions, cookies
DIR/twinlock.db                      the database, unless `database_url` names another
DIR/repository/metadata, /targets    signed metadata and manifests, served byte for byte
DIR/payloads/SHA256.payload          payload files
DIR/tmp/                             uploads that are under way
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from twinlock.core import limits
from twinlock.core.durable import read_bounded
from twinlock.core.errors import error
from twinlock.core.trust.director import LIFETIME_S_MAX, LIFETIME_S_MIN

CONFIG_NAME: Final = "server.toml"
SECRET_NAME: Final = "secret.key"  # noqa: S105  a file's name
ROOT_NAME: Final = "root.json"
SECRET_SIZE_BYTES: Final = 32
ENVIRONMENT_PREFIX: Final = "TWINLOCK_SERVER_"
_CONFIG_SIZE_BYTES_MAX: Final = 64 * limits.KIB


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One server's settings. `folder` is where it lives, all else is in server.toml."""

    folder: Path = Path()
    database_url: str = ""
    """SQLAlchemy URL; empty: SQLite in the folder."""
    page_open: bool = False
    """Show the status page without a login, to this machine only; not for use behind a proxy."""
    poll_wait_s: int = 300
    """How long a device waits between two polls."""
    enrolment_wait_s: int = 60
    """How long a device that waits for the operator asks again after."""
    enrolment_needs_token: bool = False
    """Refuse new devices that are not preauthorised and show no enrolment token."""
    fleet_ca: str = ""
    """A PEM file (a path, or a name in the folder): devices that its roots certified are accepted at once."""
    session_s: int = 24 * 3600
    """How long a device's session token is good for."""
    director_answer_s: int = 7 * 24 * 3600
    """How long what the director signs for a device lives; it is signed anew after half of that."""
    free_bytes_min: int = 64 * limits.MIB
    """An upload that would leave less free space than this is refused."""
    payload_size_bytes_max: int = limits.PAYLOAD_SIZE_BYTES_MAX
    """The largest payload file."""

    @property
    def repository(self) -> Path:
        """Signed metadata and manifests."""
        return self.folder / "repository"

    @property
    def payloads(self) -> Path:
        """Payload files."""
        return self.folder / "payloads"

    @property
    def temporary(self) -> Path:
        """Uploads under way; on the same file system as `payloads`."""
        return self.folder / "tmp"

    @property
    def url(self) -> str:
        """The database's SQLAlchemy URL."""
        return self.database_url or f"sqlite:///{self.folder.absolute() / 'twinlock.db'}"


_BOUNDS: Final = {
    "poll_wait_s": (limits.POLL_WAIT_S_MIN, limits.POLL_WAIT_S_MAX),
    "enrolment_wait_s": (1, limits.POLL_WAIT_S_MAX),
    "session_s": (60, 7 * 24 * 3600),
    "director_answer_s": (LIFETIME_S_MIN, LIFETIME_S_MAX),
    "free_bytes_min": (0, 1 << 50),
    "payload_size_bytes_max": (1, limits.PAYLOAD_SIZE_BYTES_MAX),
}


def load(folder: Path, environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of the server in `folder`.

    Raises InputError `input-missing` when nothing was initialised there, `input-invalid` for unknown names,
    wrong types and values out of bounds, `input-unreadable` when server.toml is no TOML.
    """
    path = folder / CONFIG_NAME
    if not path.exists():
        raise error(
            "input-missing",
            f"{folder} holds no Twinlock server: {CONFIG_NAME} is missing",
            hint=f"make one with `twinlock server init {folder} --root 1.root.json`",
        )
    data = read_bounded(path, _CONFIG_SIZE_BYTES_MAX, "settings")
    try:
        values: dict[str, Any] = tomllib.loads(data.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise error("input-unreadable", f"{path} is no TOML: {problem}", hint="correct the file") from problem
    values.update(_from_environment(os.environ if environment is None else environment))
    if "folder" in values:
        raise error("input-invalid", f"{path}: 'folder' cannot be set; it is where the file lies")
    try:
        settings = msgspec.convert({**values, "folder": folder}, Settings, strict=True)
    except msgspec.ValidationError as problem:
        raise error("input-invalid", f"{path}: {problem}", hint="correct the setting") from problem
    check(settings)
    return settings


def check(settings: Settings) -> None:
    """Raises InputError `input-invalid` when a setting is out of its bounds."""
    for name, (low, high) in _BOUNDS.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            raise error("input-invalid", f"the setting {name} = {value} is outside {low}..{high}")


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Values of `TWINLOCK_SERVER_*`: numbers and true/false as in TOML, anything else a text."""
    found: dict[str, Any] = {}
    for name, text in environment.items():
        if name.startswith(ENVIRONMENT_PREFIX):
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower()
            try:
                found[key] = tomllib.loads(f"value = {text}")["value"]
            except tomllib.TOMLDecodeError:
                found[key] = text
    return found
