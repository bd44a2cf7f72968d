"""Checks of the machine around the agent: watchdog, clock, kernel, pstore, systemd's units."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from twinlock.agent import memory
from twinlock.agent.doctor.findings import fine, found
from twinlock.agent.doctor.world import UNIT_FOLDERS
from twinlock.core import kernel_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twinlock.agent.doctor.case import Case
    from twinlock.agent.doctor.findings import Finding

KERNEL_TABLE: Final = "/usr/lib/twinlock/kernel"
OFF: Final = ("", "0", "off", "no", "infinity")
TRIAL: Final = "twinlock-trial.service"
SHOWN_MAX: Final = 40


def watchdog(case: Case) -> Iterator[Finding]:
    """There is one, and systemd feeds it."""
    known = [name for name in case.world.names("/sys/class/watchdog") if name.startswith("watchdog")]
    if not known and case.world.kind("/dev/watchdog") is None:
        yield found("watchdog", "watchdog-missing", "the kernel has no watchdog device")
        return
    value = ""
    for key, given in case.world.settings("system.conf"):
        value = given if key == "RuntimeWatchdogSec" else value
    if value.lower() in OFF:
        yield found("watchdog", "watchdog-unused", "systemd does not feed the watchdog")
    else:
        yield fine("watchdog", f"systemd feeds {known[0] if known else 'the watchdog'}: {value}")


def clock(case: Case) -> Iterator[Finding]:
    """The clock is neither before the agent was built nor before what signed metadata said."""
    now_s = case.clock.now_s()
    shown = datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    trusted_s = memory.trusted_s(case.store, case.clock)
    if now_s < memory.BUILD_TIME_S:
        yield found("clock", "clock-wrong", f"the clock says {shown}, before the agent was built")
    elif now_s < trusted_s:
        yield found("clock", "clock-behind", f"the clock says {shown}; signed metadata was fresh later")
    else:
        yield fine("clock", f"the clock says {shown}")


def kernel(case: Case) -> Iterator[Finding]:
    """The running kernel has what updates need, by the table that the image carries."""
    tables = {
        name.removesuffix(".config"): f"{KERNEL_TABLE}/{name}"
        for name in case.world.names(KERNEL_TABLE)
        if name.endswith(".config")
    }
    if "update" not in tables:
        yield found("kernel", "kernel-table-missing", f"there is no {KERNEL_TABLE}/update.config")
        return
    release = (case.world.text("/proc/sys/kernel/osrelease") or "").strip()
    places = ("/proc/config.gz", f"/boot/config-{release}", f"/usr/lib/modules/{release}/config")
    data = next((data for data in map(case.world.data, places) if data is not None), None)
    if data is None:
        yield found("kernel", "kernel-unknown", "the running kernel does not show its configuration")
        return
    options = kernel_options.parse_config(data)
    wanted = [
        option
        for name in kernel_options.fragments_for(options)
        if name in tables
        for option in kernel_options.parse_fragment(case.world.text(tables[name]) or "", name)
    ]
    wrong = kernel_options.check(options, wanted)
    for one in wrong[:SHOWN_MAX]:
        yield found("kernel", "kernel-required" if one.required else "kernel-wanted", one.show())
    if not wrong:
        yield fine("kernel", f"kernel {release} has the {len(wanted)} options that updates need")


def pstore(case: Case) -> Iterator[Finding]:
    """What a crashing kernel says last is kept, and can be read."""
    if case.world.mount_at("/sys/fs/pstore") is None:
        yield found("pstore", "pstore-unmounted", "nothing is mounted at /sys/fs/pstore")
    else:
        yield fine("pstore", "pstore is mounted")


def units(case: Case) -> Iterator[Finding]:
    """The timer that asks the server, and the service that settles a trial, are there and switched on."""
    if case.world.kind("/run/systemd/system") is None and case.world.kind("/usr/lib/systemd/system") is None:
        yield found(
            "units", "check-skipped", "the device does not run systemd: see that the agent is started"
        )
        return
    timer = case.config.health.timer or "twinlock-agent.timer"
    for name in (timer, TRIAL):
        places = [f"{folder}/{name}" for folder in UNIT_FOLDERS]
        place = next((one for one in places if case.world.linked(one)), None)
        if place is None:
            yield found("units", "unit-missing", f"{name} is not installed")
        elif case.world.path(place).is_symlink() and str(case.world.path(place).readlink()) == "/dev/null":
            yield found("units", "unit-disabled", f"{name} is masked", hint=f"systemctl unmask {name}")
        elif not _wanted(case, name):
            yield found("units", "unit-disabled", f"nothing starts {name}", hint=f"systemctl enable {name}")
        else:
            yield fine("units", f"{name} is enabled")


def _wanted(case: Case, name: str) -> bool:
    for folder in UNIT_FOLDERS:
        for one in case.world.names(folder):
            if one.endswith((".wants", ".requires")) and case.world.linked(f"{folder}/{one}/{name}"):
                return True
    return False
