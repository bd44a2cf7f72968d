"""Canonical JSON, the form that metadata is signed in (OLPC; the TUF specification, section 4.2).

Keys sorted by code point, no spaces, integers only, and in texts only `"` and `\\` escaped. Ordinary JSON
encoders escape control characters too, so those are put back.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

_ESCAPE: Final = re.compile(rb'\\(?:(["\\])|([bfnrt])|u00([01][0-9a-fA-F]))')
_SHORT: Final = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}


def _plain(match: re.Match[bytes]) -> bytes:
    kept, short, code = match.groups()
    if kept:
        return match.group()
    return _SHORT[short] if short else bytes([int(code, 16)])


def encode(value: Any) -> bytes:
    """The canonical bytes of `value`: a dict, list, str, int, bool or None, as `strict.load` gives them."""
    data = msgspec.json.encode(value, order="sorted")
    return _ESCAPE.sub(_plain, data) if b"\\" in data else data
