"""Reading metadata that nobody has vouched for yet: everything ambiguous is refused.

JSON leaves open what duplicate keys, NaN, deep nesting or differently composed characters mean; two readers
that disagree are an attack surface. So bytes are checked here before any other parser sees them (RFC 8259,
section 4 and 9; the TUF specification's canonical form).
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any, Final

from twinlock.core import limits
from twinlock.core.errors import error

_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKET: Final = re.compile(rb"[\[\]{}]")


def _depth(data: bytes) -> int:
    depth = deepest = 0
    for match in _BRACKET.finditer(_STRING.sub(b'""', data)):
        depth += 1 if match.group() in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    for key, value in pairs:
        for text in (key, value):
            if isinstance(text, str) and not unicodedata.is_normalized("NFC", text):
                raise ValueError("a text is not in Unicode's normal form C")
    return result


def _refuse(text: str) -> Any:
    raise ValueError(f"{text[:40]} is no number that metadata may hold")


def load(data: bytes, size_bytes_max: int, what: str) -> dict[str, Any]:
    """The JSON object in `data`. Raises TrustError `metadata-malformed`.

    Refused: more than `size_bytes_max` bytes, nesting over `JSON_DEPTH_MAX`, duplicate keys, numbers that are
    not integers or are longer than 19 digits, texts that are not NFC, anything that is not one object.
    """
    if len(data) > size_bytes_max:
        raise error("metadata-malformed", f"{what} is larger than {size_bytes_max} bytes")
    if _depth(data) > limits.JSON_DEPTH_MAX:
        raise error("metadata-malformed", f"{what} is nested deeper than {limits.JSON_DEPTH_MAX} levels")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_pairs,
            parse_constant=_refuse,
            parse_float=_refuse,
            parse_int=lambda text: int(text) if len(text) <= 19 else _refuse(text),
        )
    except (ValueError, RecursionError) as problem:
        raise error("metadata-malformed", f"{what} does not parse: {problem}") from problem
    if not isinstance(value, dict):
        raise error("metadata-malformed", f"{what} is not a JSON object")
    return value
