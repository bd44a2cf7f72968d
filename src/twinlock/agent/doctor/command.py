"""Runs every check by itself: a check that fails is a finding, and keeps no other from being made."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import msgspec

from twinlock.agent import config as configs
from twinlock.agent.clock import SystemClock
from twinlock.agent.doctor import booting, online, platform, storage
from twinlock.agent.doctor.case import Case, placed
from twinlock.agent.doctor.findings import Diagnosis, Finding, found
from twinlock.agent.doctor.world import World
from twinlock.agent.main import internal
from twinlock.core.errors import EXIT_CODES, Kind, TwinlockError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from twinlock.agent.ports import Clock

    Check = Callable[[Case], Iterator[Finding]]

CHECKS: Final[dict[str, Check]] = {
    "slots": storage.slots,
    "inactive slot": storage.inactive_slot,
    "boot record": booting.record,
    "loader": booting.loader,
    "booted slot": booting.booted,
    "mounts": storage.mounts,
    "state": storage.state,
    "space": storage.space,
    "identity": storage.identity_and_trust,
    "watchdog": platform.watchdog,
    "clock": platform.clock,
    "kernel": platform.kernel,
    "pstore": platform.pstore,
    "units": platform.units,
}
_ONLINE: Final[dict[str, Check]] = {"server": online.server}
MARKS: Final = {"ok": "ok", "warning": "warning", "fault": "FAULT"}
EXIT_FAULT: Final = EXIT_CODES[Kind.DEVICE]


def diagnose(config_path: Path, world: World, clock: Clock, *, reach_server: bool = False) -> Diagnosis:
    """Every check, in order. Raises nothing."""
    try:
        config = placed(configs.load(config_path), world)
    except TwinlockError as problem:
        return _summed([found("configuration", "config-unusable", problem.what, hint=problem.hint)])
    case = Case(config, world, clock, config_path)
    findings: list[Finding] = []
    for name, check in (CHECKS | (_ONLINE if reach_server else {})).items():
        findings += _made(name, check, case)
    return _summed(findings)


def _made(name: str, check: Check, case: Case) -> list[Finding]:
    """What one check finds, and how it failed if it did."""
    findings: list[Finding] = []
    try:
        for one in check(case):
            findings.append(one)
    except TwinlockError as problem:
        findings.append(found(name, "check-failed", str(problem), hint=problem.hint))
    except OSError as problem:
        findings.append(found(name, "check-failed", f"{problem.filename or name}: {problem.strerror}"))
    except Exception as problem:  # noqa: BLE001  a fault of ours must not hide what the others find
        findings.append(found(name, "check-failed", internal(problem).what))
    return findings


def _summed(findings: list[Finding]) -> Diagnosis:
    levels = [one.level for one in findings]
    return Diagnosis(faults=levels.count("fault"), warnings=levels.count("warning"), findings=findings)


def lines(diagnosis: Diagnosis) -> list[str]:
    """The diagnosis for a person: one line for each finding, and what to do below what is wrong."""
    width = max(len(one.check) for one in diagnosis.findings)
    shown = []
    for one in diagnosis.findings:
        code = "" if one.level == "ok" else f" [{one.code}]"
        shown.append(f"{MARKS[one.level]:<8} {one.check:<{width}}  {_plain(one.what)}{code}")
        if one.hint:
            shown.append(f"{'':<8} {'':<{width}}  -> {_plain(one.hint)}")
    faults, warnings = diagnosis.faults, diagnosis.warnings
    shown.append("")
    shown.append(f"{faults} fault{'s' * (faults != 1)}, {warnings} warning{'s' * (warnings != 1)}")
    return shown


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def command(config_path: Path, args: argparse.Namespace) -> int:
    """Exit code 0 without faults, 6 with one."""
    diagnosis = diagnose(config_path, World(), SystemClock(), reach_server=args.online)
    if args.json:
        sys.stdout.write(msgspec.json.encode(diagnosis).decode() + "\n")
    else:
        sys.stdout.write("\n".join(lines(diagnosis)) + "\n")
    return EXIT_FAULT if diagnosis.faults else 0
