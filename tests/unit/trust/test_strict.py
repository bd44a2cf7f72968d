"""Reading bytes that nobody has vouched for: one meaning or none."""

from __future__ import annotations

import sys

import pytest

from twinlock.core import limits
from twinlock.core.errors import TwinlockError
from twinlock.core.trust import strict

BOUND = 1000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"1",
        b"null",
        b"{} {}",
        b"\xef\xbb\xbf{}",
        b"\xff{}",
        '{"a": "\ud800"}'.encode("utf-8", "surrogatepass"),
        b'{"a": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"a": 1, "a": 1}',
        b'{"x": {"a": 1, "a": 2}}',
        b'{"x": [{"a": 1, "a": 2}]}',
        b'{"a": 1, "\\u0061": 2}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1.0}',
        b'{"a": 1e3}',
        b'{"a": -0}',
        b'{"a": 01}',
        b'{"a": 12345678901234567890}',
        b'{"a": -1234567890123456789}',
        b'{"a": "e\\u0301"}',
        '{"a": "e\u0301"}'.encode(),
        '{"e\u0301": 1}'.encode(),
        '{"a": ["e\u0301"]}'.encode(),
        b'{"a": "\x01"}',
        b"{'a': 1}",
        b'{"a": 1,}',
        b'{"a": /* */ 1}',
    ],
)
def test_what_is_refused(data: bytes) -> None:
    with pytest.raises(TwinlockError, match="metadata-malformed"):
        strict.load(data, BOUND, "it")


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"{}", {}),
        (b' {"a": [1, -2, true, null, "x"]}\n', {"a": [1, -2, True, None, "x"]}),
        (b'{"a": 9223372036854775807}', {"a": 2**63 - 1}),
        ('{"é": "é\\u00e9"}'.encode(), {"é": "éé"}),
        (b'{"a": "\\ud83d\\ude00"}', {"a": "\U0001f600"}),
    ],
)
def test_what_is_taken(data: bytes, value: object) -> None:
    assert strict.load(data, BOUND, "it") == value


def test_the_bound_on_the_size_is_exact() -> None:
    assert strict.load(b"{}" + b" " * (BOUND - 2), BOUND, "it") == {}
    with pytest.raises(TwinlockError, match="larger than 1000 bytes"):
        strict.load(b"{}" + b" " * (BOUND - 1), BOUND, "it")


@pytest.mark.parametrize(("opening", "closing"), [(b'{"a":', b"}"), (b"[", b"]")])
def test_the_bound_on_the_depth_is_exact(opening: bytes, closing: bytes) -> None:
    def nested(depth: int) -> bytes:
        return b'{"x":' + opening * (depth - 1) + b"0" + closing * (depth - 1) + b"}"

    assert strict.load(nested(limits.JSON_DEPTH_MAX), BOUND, "it")
    with pytest.raises(TwinlockError, match="metadata-malformed"):
        strict.load(nested(limits.JSON_DEPTH_MAX + 1), BOUND, "it")


@pytest.mark.parametrize("opening", [b'{"a":', b"["])
def test_depth_past_the_interpreters_own_bound(opening: bytes) -> None:
    data = opening * (sys.getrecursionlimit() * 10)
    with pytest.raises(TwinlockError, match="metadata-malformed"):
        strict.load(data, len(data), "it")
