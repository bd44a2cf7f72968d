"""What the doctor can find: one catalogue of stable codes, each with its weight and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import msgspec

Level = Literal["ok", "warning", "fault"]
VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Spec:
    """A code's weight and its hint. A fault keeps the device from updating or from coming back."""

    level: Level
    hint: str


class Finding(msgspec.Struct, frozen=True):
    """One line of the diagnosis. `check` says what was looked at, `code` what was found (`ok`: nothing)."""

    check: str
    code: str
    level: Level
    what: str
    hint: str = ""


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """All that `doctor --json` prints."""

    version: int = VERSION
    faults: int
    warnings: int
    findings: list[Finding]


_INSTALL: Final = "install the agent's files into the image again (`twinlock disk install`)"
_RECORD: Final = "provision the device again, or write its boot record by `twinlock disk build`"

CATALOGUE: Final[dict[str, Spec]] = {
    "config-unusable": Spec("fault", "correct /etc/twinlock/agent.toml, or give another with --config"),
    # slots
    "slot-unusable": Spec(
        "fault", "check the slot's path in the agent's configuration, and the partition table"
    ),
    "slot-is-file": Spec("warning", "name the slot's partition, unless this is a virtual device"),
    "slots-are-one": Spec("fault", "let [slots.a] and [slots.b] name two partitions"),
    "slots-differ": Spec("warning", "make both slots the same size: an image must fit either"),
    "slot-in-use": Spec("fault", "unmount the inactive slot, and end what has it open"),
    "slot-not-root": Spec("fault", "correct the slots' paths: the running system is not where they say"),
    # boot record and loader
    "record-unreadable": Spec("fault", _RECORD),
    "record-copy-bad": Spec(
        "warning", "nothing now: the next change writes it; look at the medium if it comes back"
    ),
    "record-slot-bad": Spec(
        "fault", "install a release into the other slot; the committed one is marked bad"
    ),
    "trial-pending": Spec("warning", "let `twinlock-agent run` settle it; reboot if it waits for that"),
    "loader-unreadable": Spec("fault", "check [boot.loader], and the boot partition's file system"),
    "loader-differs": Spec("fault", "run `twinlock-agent run`: it lets the loader follow the record"),
    "booted-unknown": Spec("fault", "let /usr/lib/twinlock/preinit run first (init= on the command line)"),
    "booted-differs": Spec("fault", _INSTALL + "; the note of the booted slot is not of this boot"),
    "booted-elsewhere": Spec("warning", "reboot; if it stays so, the loader does not follow the record"),
    # machine
    "watchdog-missing": Spec(
        "warning", "enable the board's watchdog driver: a hang is not recovered without it"
    ),
    "watchdog-unused": Spec("warning", "set RuntimeWatchdogSec= in systemd's system.conf"),
    "clock-wrong": Spec("fault", "let the clock be set from the network, or fit a battery to the clock"),
    "clock-behind": Spec(
        "warning", "let the clock be set from the network; the agent goes on from its own time"
    ),
    "kernel-unknown": Spec(
        "warning", "build with CONFIG_IKCONFIG_PROC, or keep /boot/config-VERSION in the image"
    ),
    "kernel-table-missing": Spec("warning", _INSTALL),
    "kernel-required": Spec("fault", "build the kernel with `twinlock kernel fragment update` merged"),
    "kernel-wanted": Spec("warning", "build the kernel with `twinlock kernel fragment update` merged"),
    "pstore-unmounted": Spec(
        "warning", "mount pstore at /sys/fs/pstore: a crash's last words are lost without"
    ),
    "root-writable": Spec(
        "warning", "mount the root read-only: what is written to a slot is no longer signed"
    ),
    "data-failed": Spec(
        "fault", "look at /run/twinlock/fsck.log; the device runs on memory until it is mended"
    ),
    "unit-missing": Spec("fault", _INSTALL),
    "unit-disabled": Spec("fault", "enable it: systemctl enable UNIT"),
    # state
    "state-missing": Spec(
        "fault", "check `state` in the configuration, and that the data partition is mounted"
    ),
    "state-in-slot": Spec("fault", "move `state` to the data partition: the next release would not find it"),
    "state-open": Spec("fault", "chmod 0700 the state folder: keys and tokens are in it"),
    "state-unwritable": Spec("fault", "mount the data partition read-write, and run the agent as its owner"),
    "space-out": Spec("fault", "free space on the data partition"),
    "space-low": Spec("warning", "free space on the data partition"),
    "identity-none": Spec("fault", "run `twinlock-agent enrol`"),
    "identity-unusable": Spec(
        "fault", "restore device.key from a copy; else remove it and enrol the device again"
    ),
    "identity-lost": Spec("fault", "put the device's own token back, or enrol it with --new-identity"),
    "pkcs11-unusable": Spec("fault", "check the token, its PIN, and [identity] in the configuration"),
    "key-extractable": Spec(
        "warning", "let `twinlock-agent enrol --new-identity` make the key under another label"
    ),
    "enrolment-unknown": Spec("warning", "run `twinlock-agent enrol`; the server may not know this device"),
    "trust-missing": Spec("fault", "put the root of trust into the state folder; see the how-to on keys"),
    # server
    "server-failed": Spec("fault", "see the error's own hint"),
    # the doctor
    "check-failed": Spec(
        "fault", "the check itself failed: read its message, and report it if it is no fault of yours"
    ),
    "check-skipped": Spec("warning", "mend what kept this from being looked at, and run it again"),
}


def found(check: str, code: str, what: str, *, hint: str = "") -> Finding:
    """A finding of the catalogue; `hint` where the place that finds it knows better."""
    spec = CATALOGUE[code]
    return Finding(check, code, spec.level, what, hint or spec.hint)


def fine(check: str, what: str) -> Finding:
    """What was looked at is as it should be."""
    return Finding(check, "ok", "ok", what)
