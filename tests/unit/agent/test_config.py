"""The configuration: every mistake is named, nothing misspelt is ignored."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinlock.agent.config import load, parse
from twinlock.core.errors import TwinlockError

MINIMAL = """
server = "https://updates.example.com"
hardware = "board-1"
product = "gateway"
state = "/var/lib/twinlock"
[slots.a]
path = "/dev/mmcblk0p2"
[slots.b]
path = "/dev/mmcblk0p3"
[boot]
path = "/dev/mmcblk0p4"
booted = "/run/twinlock/booted.json"
"""


def refused(tmp_path: Path, text: str) -> str:
    path = tmp_path / "agent.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TwinlockError) as caught:
        load(path)
    assert caught.value.code == "config-invalid"
    assert caught.value.exit_code == 6
    return caught.value.what


def test_the_defaults_are_those_of_the_manual(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(MINIMAL, encoding="utf-8")
    config = load(path)
    assert config.slots["b"].path == Path("/dev/mmcblk0p3")
    assert (config.boot.offset_bytes, config.boot.tries) == ((0, 65536), 3)
    assert (config.reboot.mode, config.reboot.command) == ("command", ("systemctl", "reboot"))
    assert config.health.required == (Path("/etc/twinlock/health/required.d"),)
    assert (config.health.critical_units, config.health.timer, config.health.verify_image) == ((), "", "auto")
    assert (config.network.rate_bytes_s_min, config.network.retries) == (256, 8)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('product = "gateway"', "", "product"),
        ('product = "gateway"', 'product = "../x"', "product"),
        ('product = "gateway"', 'prodcut = "gateway"', "prodcut"),
        ('product = "gateway"', "product = 7", "product"),
        ('hardware = "board-1"', 'hardware = ""', "hardware"),
        ("https://updates", "http://updates", "loopback"),
        ("https://updates", "ftp://updates", "neither http nor https"),
        ("updates.example.com", "updates.example.com/?x=1", "query"),
        ("[slots.b]", "[slots.c]", "slots.a"),
        ("mmcblk0p3", "mmcblk0p2", "overlap"),
        ("[boot]", '[boot]\ncontrol = "magic"', "control"),
        ("[boot]", "[boot]\ntries = 8", "tries"),
        ("[boot]", "[boot]\ntries = 0", "tries"),
        ("[boot]", "[boot]\noffset_bytes = [0, 100]", "sectors"),
        ("[boot]", "[boot]\noffset_bytes = [1, 4096]", "unaligned"),
        ("[boot]", "[boot]\noffset_bytes = [0]", "offset_bytes"),
        ("mmcblk0p4", "mmcblk0p2", "boot record"),
        ("[boot]", "[reboot]\ncommand = []\n[boot]", "command"),
        ("[boot]", "[health]\ntimeout_s = -1\n[boot]", "timeout_s"),
        ("[boot]", '[health]\nunreachable = "hope"\n[boot]', "unreachable"),
        ("[boot]", "[health]\ncritical_units = ['--now']\n[boot]", "critical_units"),
        ("[boot]", "[health]\ncritical_units = ['a b.service']\n[boot]", "critical_units"),
        ("[boot]", "[health]\ntimer = 'x.service'\n[boot]", "timer"),
        ("[boot]", "[health]\ntimer = '-x.timer'\n[boot]", "timer"),
        ("[boot]", "[health]\nverify_image = 'maybe'\n[boot]", "verify_image"),
        ("[boot]", "[health]\nfree_bytes_min = -1\n[boot]", "free_bytes_min"),
        ("[boot]", "[network]\nbackoff_s_min = 9\nbackoff_s_max = 3\n[boot]", "backoff"),
        ("[boot]", "[network]\nretries = -1\n[boot]", "retries"),
        ("state = ", "device_id = 'a/b'\nstate = ", "device id"),
        ('state = "/var/lib/twinlock"', 'state = "relative"', "state"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    assert old in MINIMAL
    assert named in refused(tmp_path, MINIMAL.replace(old, new))


def test_a_file_that_is_not_there_or_no_toml(tmp_path: Path) -> None:
    with pytest.raises(TwinlockError) as caught:
        load(tmp_path / "gone.toml")
    assert "--config" in caught.value.hint
    refused(tmp_path, "this is not = = toml")
    refused(tmp_path, "x = '" + "y" * 100_000 + "'")
    (tmp_path / "agent.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(TwinlockError):
        load(tmp_path / "agent.toml")


def table(**slots: dict[str, object]) -> dict[str, object]:
    return {
        "server": "http://127.0.0.1:1",
        "hardware": "b",
        "product": "p",
        "state": "/s",
        "slots": slots,
        "boot": {"path": "/disk", "booted": "/x", "offset_bytes": [0, 512]},
    }


def test_slots_of_one_file_must_not_overlap() -> None:
    a = {"path": "/disk", "offset_bytes": 1024, "size_bytes": 1024}
    assert parse(table(a=a, b={**a, "offset_bytes": 2048})).slots["b"].offset_bytes == 2048
    for b in ({**a, "offset_bytes": 2047}, {**a, "size_bytes": None}, {"path": "/disk"}):
        with pytest.raises(TwinlockError):
            parse(table(a=a, b={key: value for key, value in b.items() if value is not None}))


def test_a_slot_must_not_hold_the_boot_record() -> None:
    a = {"path": "/disk", "offset_bytes": 512, "size_bytes": 1024}
    with pytest.raises(TwinlockError) as caught:
        parse(table(a=a, b={"path": "/other"}))
    assert "boot record" in caught.value.what
