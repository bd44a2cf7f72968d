"""Names reach file paths, URLs, boot records and terminals: what may be one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from twinlock.core import names
from twinlock.core.errors import InputError
from twinlock.core.limits import DEVICE_ID_LENGTH_MAX, NAME_LENGTH_MAX, VERSION_LENGTH_MAX

BAD = [
    "",
    ".",
    "..",
    ".hidden",
    "-option",
    "_x",
    "a/b",
    "a\\b",
    "a b",
    "a\n",
    "a\x00",
    "a\x1b[31m",
    "a..b",
    "a%2fb",
    "ä",
    "а",  # noqa: RUF001  a Cyrillic letter
    "\u0660",  # a digit, but not one of ASCII's
    "a\u200b",
    "a:b",
    "a*",
    "$(x)",
]


@pytest.mark.parametrize("check", [names.check_name, names.check_version, names.check_device_id])
@pytest.mark.parametrize("text", BAD)
def test_what_is_no_name(check: Callable[[str], str], text: str) -> None:
    with pytest.raises(InputError) as caught:
        check(text)
    assert caught.value.code == "input-invalid"


@pytest.mark.parametrize("text", ["a", "0", "demo-board", "rev.2_b", "A" * NAME_LENGTH_MAX])
def test_what_is_a_name(text: str) -> None:
    assert names.check_name(text) == names.check_device_id(text) == names.check_version(text) == text


@pytest.mark.parametrize("text", ["1.0+build", "1.0~rc1"])
def test_versions_may_hold_more(text: str) -> None:
    assert names.check_version(text) == text
    with pytest.raises(InputError):
        names.check_name(text)


@pytest.mark.parametrize(
    ("check", "length_max"),
    [
        (names.check_name, NAME_LENGTH_MAX),
        (names.check_version, VERSION_LENGTH_MAX),
        (names.check_device_id, DEVICE_ID_LENGTH_MAX),
    ],
)
def test_lengths_are_bounded(check: Callable[[str], str], length_max: int) -> None:
    assert check("x" * length_max)
    with pytest.raises(InputError) as caught:
        check("x" * (length_max + 1))
    assert "x" * 80 not in caught.value.what


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n", "\u0660" * 64])
def test_what_is_no_hash(text: str) -> None:
    with pytest.raises(InputError):
        names.check_sha256_hex(text)


def test_a_hash_and_a_release_name() -> None:
    assert names.check_sha256_hex("0a" * 32) == "0a" * 32
    assert names.release_name("demo", "1.0") == "demo/1.0.manifest"
    for product, version in [("../x", "1"), ("demo", "a/b"), ("", "1"), ("demo", "")]:
        with pytest.raises(InputError):
            names.release_name(product, version)
