"""The kernel check: fragments that explain themselves, and configurations judged by them."""

from __future__ import annotations

import contextlib
import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlock.core.errors import InputError, TwinlockError
from twinlock.provision import kernel_check
from twinlock.provision.kernel_check import Option, check, parse_config, parse_fragment

GOOD = b"""#
# Linux/arm64 6.1
#
CONFIG_WATCHDOG=y
# CONFIG_HIGHMEM is not set
CONFIG_X=m
CONFIG_N=-5
CONFIG_S="a b"
"""


def test_a_configuration_is_read_plain_and_compressed() -> None:
    wanted = {"WATCHDOG": "y", "HIGHMEM": "n", "X": "m", "N": "-5", "S": '"a b"'}
    assert parse_config(GOOD) == wanted
    assert parse_config(gzip.compress(GOOD)) == wanted


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "input-wrong-type"),
        (b"hello", "input-wrong-type"),
        (b"\xff\xfe\x00", "input-wrong-type"),
        (b"\x1f\x8bgarbage", "input-wrong-type"),
        (gzip.compress(GOOD, mtime=0)[:-12], "input-wrong-type"),
        (gzip.compress(bytes(5 * 1024 * 1024), mtime=0), "input-too-large"),
        (b"#" * (4 * 1024 * 1024 + 1), "input-too-large"),
        (b"".join(b"CONFIG_A%d=y\n" % number for number in range(50_001)), "input-too-large"),
    ],
)
def test_what_is_no_configuration_is_refused(data: bytes, code: str) -> None:
    with pytest.raises(TwinlockError) as caught:
        parse_config(data)
    assert caught.value.code == code


@given(st.binary(max_size=300))
def test_any_bytes_are_a_configuration_or_refused(data: bytes) -> None:
    with contextlib.suppress(InputError):
        assert parse_config(data)


def option(value: str, **rules: bool) -> Option:
    return Option("X", value, "because", "test", **rules)


@pytest.mark.parametrize(
    ("found", "wanted", "fits"),
    [
        ("y", option("y"), True),
        ("m", option("y"), False),
        ("m", option("y", module=True), True),
        ("n", option("y", module=True), False),
        (None, option("y"), False),
        (None, option("n"), True),
        ("n", option("n"), True),
        ("y", option("n"), False),
        ("5", option("1", least=True), True),
        ("0", option("1", least=True), False),
        ("0x20", option("16", least=True), True),
        ('"x"', option("1", least=True), False),
        ('"bbr"', option('"bbr"'), True),
        ('"cubic"', option('"bbr"'), False),
    ],
)
def test_rules(found: str | None, wanted: Option, fits: bool) -> None:
    config = {} if found is None else {"X": found}
    assert check(config, [wanted]) == ([] if fits else [kernel_check.Finding(wanted, found)])


def test_required_findings_come_first_and_say_why() -> None:
    findings = check({"X": "m"}, [option("y", wanted=True), option("y")])
    assert [finding.required for finding in findings] == [True, False]
    assert findings[0].show() == "required: CONFIG_X=y (is m): because"
    assert "missing" in check({}, [option("y")])[0].show()


def test_every_shipped_option_has_a_reason_and_no_name_twice_in_one_file() -> None:
    assert set(kernel_check.fragment_names()) >= {
        "update",
        "efi",
        "devicetree",
        "low-memory",
        "emmc",
        "slow-links",
    }
    for name in kernel_check.fragment_names():
        options = kernel_check.shipped_fragment(name)
        assert options, name
        assert all(len(one.reason.split()) >= 3 for one in options), name
        assert len({one.name for one in options}) == len(options), name


def test_a_kernel_made_from_the_fragments_passes_its_own_check() -> None:
    for name in kernel_check.fragment_names():
        options = kernel_check.shipped_fragment(name)
        assert check({one.name: one.value for one in options}, options) == []
        for one in options:  # and each option is really looked at
            config = {other.name: other.value for other in options} | {
                one.name: "y" if one.value == "n" else "n"
            }
            assert [finding.option for finding in check(config, options)] == [one]


# What Kconfig wants first, and drops the option without: seen on a configuration with everything off.
MENUS = {
    "update": {"MISC_FILESYSTEMS": "PSTORE", "DEBUG_KERNEL": "SOFTLOCKUP_DETECTOR", "MD": "BLK_DEV_DM"},
    "low-memory": {"BLK_DEV": "ZRAM", "CRYPTO_LZO": "ZRAM"},
    "slow-links": {"NET_SCHED": "NET_SCH_FQ", "DEFAULT_BBR": "DEFAULT_TCP_CONG"},
}


def test_a_fragment_names_what_its_options_hang_on() -> None:
    for name, menus in MENUS.items():
        options = {one.name: one for one in kernel_check.shipped_fragment(name)}
        for menu, option_of_it in menus.items():
            assert options[option_of_it].wanted or not options[menu].wanted, menu


@pytest.mark.parametrize("line", ["CONFIG_X=maybe", "X=y", "CONFIG_X = y", "#: sometimes\nCONFIG_X=y"])
def test_a_fragment_with_a_line_that_means_nothing_is_refused(line: str) -> None:
    with pytest.raises(TwinlockError) as caught:
        parse_fragment(line, "test")
    assert caught.value.code == "input-invalid"


def test_an_unknown_fragment_is_named_with_those_that_exist() -> None:
    with pytest.raises(TwinlockError, match="low-memory"):
        kernel_check.shipped_fragment("../etc/passwd")


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({"X86": "y", "EFI": "y"}, ["update", "efi"]),
        ({"ARM64": "y", "OF": "y"}, ["update", "devicetree"]),
        ({"ARM64": "y", "OF": "y", "EFI": "y"}, ["update", "efi", "devicetree"]),
        ({}, ["update"]),
    ],
)
def test_the_fragments_follow_from_how_the_kernel_is_started(
    config: dict[str, str], names: list[str]
) -> None:
    assert kernel_check.fragments_for(config) == names
