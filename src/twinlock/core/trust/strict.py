"""Reading metadata that nobody has vouched for yet: everything ambiguous is refused.

JSON leaves open what duplicate keys, NaN, deep nesting or differently composed characters mean; two readers
that disagree are an attack surface. So bytes are checked here before any other parser sees them (RFC 8259,
section 4 and 9; the TUF specification's canonical form).
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any, Final

from twinlock.core import limits
from twinlock.core.errors import error

_DIGITS_MAX: Final = 19


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(limits.JSON_DEPTH_MAX):
        inner = (item.values() if isinstance(item, dict) else item for item in level)
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
        if not level:
            return False
    return True


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result


def _refuse(text: str) -> Any:
    raise ValueError(f"{text[:40]} is no number that metadata may hold")


def _integer(text: str) -> int:
    if len(text) > _DIGITS_MAX or text == "-0":
        _refuse(text)
    return int(text)


def _check_texts(value: Any) -> None:
    """Every text is NFC and holds whole characters (a lone surrogate has no UTF-8 form)."""
    if isinstance(value, str):
        if not value.isascii():
            value.encode("utf-8")
            if not unicodedata.is_normalized("NFC", value):
                raise ValueError("a text is not in Unicode's normal form C")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_texts(key)
            _check_texts(item)
    elif isinstance(value, list):
        for item in value:
            _check_texts(item)


def load(data: bytes, size_bytes_max: int, what: str) -> dict[str, Any]:
    """The JSON object in `data`. Raises TrustError `metadata-malformed`.

    Refused: more than `size_bytes_max` bytes, nesting over `JSON_DEPTH_MAX`, duplicate keys, numbers that are
    not integers or are longer than 19 digits, texts that are not NFC, anything that is not one object.
    """
    if len(data) > size_bytes_max:
        raise error("metadata-malformed", f"{what} is larger than {size_bytes_max} bytes")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_pairs,
            parse_constant=_refuse,
            parse_float=_refuse,
            parse_int=_integer,
        )
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
        if _too_deep(value):
            raise ValueError(f"it is nested deeper than {limits.JSON_DEPTH_MAX} levels")
        if not data.isascii() or b"\\u" in data:
            _check_texts(value)
    except ValueError as problem:
        raise error("metadata-malformed", f"{what} does not parse: {problem}") from problem
    except RecursionError as problem:
        raise error("metadata-malformed", f"{what} is nested too deeply to parse") from problem
    return value
