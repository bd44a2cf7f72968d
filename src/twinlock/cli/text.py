"""Texts that every command prints, whatever is installed: error lines, JSON, sizes.

Nothing here needs an extra's library, so that a missing one can still be reported in one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from twinlock.core.errors import TwinlockError
from twinlock.core.limits import KIB

JSON_VERSION: Final = 1


def clean(text: str) -> str:
    """`text` on one line without control characters: safe for a terminal, whoever wrote it."""
    return "".join(char if char.isprintable() else " " for char in text)


def error_text(problem: TwinlockError, as_json: bool) -> str:
    """The one line that reports a failure."""
    if as_json:
        body = {"code": problem.code, "what": problem.what, "hint": problem.hint}
        return json_text({"error": body})
    return f"error[{problem.code}]: {clean(problem.what)} -- hint: {clean(problem.hint)}"


def json_text(data: Mapping[str, Any]) -> str:
    """`data` as one line of JSON with the version of its shape in front. bytes become hex."""
    assert "version" not in data, "the top level's `version` is that of the JSON's shape"
    return msgspec.json.encode(_hexed({"version": JSON_VERSION, **data})).decode("utf-8")


def _hexed(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {key: _hexed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hexed(item) for item in value]
    return value


def size_text(size_bytes: int) -> str:
    """A size for people: `931 B`, `1.5 KiB`, `64.0 MiB`."""
    if size_bytes < KIB:
        return f"{size_bytes} B"
    units = ("KiB", "MiB", "GiB")
    power = next((n for n in range(1, len(units)) if size_bytes < KIB ** (n + 1)), len(units))
    return f"{size_bytes / KIB**power:.1f} {units[power - 1]}"
