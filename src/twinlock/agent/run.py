"""One run of the agent: the machine's effects performed through the ports, until it says that it is done.

The state is saved durably before the effects that follow from it. When it cannot be saved the effects are not
performed, except those that end a trial: going back to the committed slot needs no journal.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from twinlock.agent import effects as do
from twinlock.agent import events as on
from twinlock.agent import evidence, journal, machine, recovery, usage
from twinlock.agent import plan as plans
from twinlock.agent.gate import baseline
from twinlock.agent.perform import Performer
from twinlock.agent.states import Phase, State
from twinlock.core.errors import CATALOGUE, TwinlockError, error
from twinlock.core.limits import MIB
from twinlock.core.names import RECOVERY

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from twinlock.agent.boot.base import Booted
    from twinlock.agent.config import Config
    from twinlock.agent.ports import Ports
    from twinlock.agent.system import LastEnd
    from twinlock.core.bootrecord import BootRecord

LAST: Final = "last.json"
LAST_SIZE_BYTES_MAX: Final = 64 * 1024


class LastRun(msgspec.Struct, frozen=True):
    """How the last run ended, for `status`, and the memory that it and its polls needed at most."""

    time_s: float
    exit_code: int
    phase: str
    code: str = ""
    what: str = ""
    wait_s: int = 0
    peak_bytes: int = 0
    check_peak_bytes: int = 0


def run_once(ports: Ports, config: Config) -> int:
    """One run to its end; its exit code. Raises TwinlockError for a failure that is to be shown."""
    performer = Performer(ports, config)
    state, damaged = journal.load(ports.store)
    event: on.Event = _started(ports, performer, state, damaged=damaged)
    while True:
        after, effects = machine.step(state, event)
        failed = _save(ports, state, after)
        state = after
        if failed is not None and not _goes_on_unsaved(state, event):
            event = failed
            continue
        following = _perform(performer, effects, state)
        if isinstance(following, do.Reboot | do.Finish):
            return _end(ports, performer, state, following)
        event = following


def _started(ports: Ports, performer: Performer, state: State, *, damaged: bool) -> on.Started:
    """What the device is. Without a boot record nothing can be decided; then the server is told so, once."""
    restored = False
    try:
        try:
            record, booted = _read_record(ports)
        except TwinlockError as problem:
            if problem.code != "boot-record" or ports.boot.booted().slot != RECOVERY:
                raise
            recovery.restore(ports, state.record)
            restored = True
            record, booted = _read_record(ports)
    except TwinlockError as problem:
        last = _last(ports)
        if last is None or last.code != problem.code:
            performer.perform(do.Tell("idle", code=problem.code, detail=problem.what), state)
        performer.perform(do.Flush(), state)
        _note_end(ports, performer, state, do.Finish(problem.exit_code, problem.code, problem.what))
        raise
    planned = plans.load(ports.store)
    job = None if planned is None else planned.job
    ended = _look_back(ports, state, record, booted)
    return on.Started(record, booted.slot, booted.boot_id, job, damaged, restored, ended)


def _look_back(ports: Ports, state: State, record: BootRecord, booted: Booted) -> LastEnd:
    """Keeps what the boot before this one left behind; how it ended, if a trial is to be settled."""
    on_trial = state.job if state.phase in (Phase.ARMED, Phase.TRIAL, Phase.ROLLING_BACK) else None
    ended: LastEnd = ""
    try:
        if record.trying is not None and booted.slot != record.trying:
            ended = ports.system.last_end()  # before the kernel's words are given back
        evidence.keep_panics(ports, on_trial)
        over = record.trying is None or record.tries_left == 0
        if on_trial is not None and on_trial.known and over and booted.slot != on_trial.slot:
            evidence.keep_journal(ports, on_trial, last=True)
    except TwinlockError as problem:
        ports.display.note(f"what the last boot left behind is not kept: {problem}")
    return ended


def _read_record(ports: Ports) -> tuple[BootRecord, Booted]:
    for path in ports.boot.mend():
        ports.display.note(f"the loader did not follow the boot record: {path} is mended")
    return ports.boot.read(), ports.boot.booted()


def _save(ports: Ports, before: State, after: State) -> on.EffectFailed | None:
    if after == before:
        return None
    try:
        journal.save(ports.store, after)
    except TwinlockError as problem:
        return on.EffectFailed("Save", problem.code, problem.what)
    return None


def _goes_on_unsaved(state: State, event: on.Event) -> bool:
    return state.phase is Phase.ROLLING_BACK or isinstance(event, on.EffectFailed)


def _perform(
    performer: Performer, effects: tuple[do.Effect, ...], state: State
) -> on.Event | do.Reboot | do.Finish:
    """Performs the effects in order; what the last one brings, or the first failure."""
    for effect in effects:
        if isinstance(effect, do.Reboot | do.Finish):
            return effect
        try:
            event = performer.perform(effect, state)
        except TwinlockError as problem:
            return on.EffectFailed(type(effect).__name__, problem.code, problem.what)
        except Exception as problem:  # noqa: BLE001  a fault of ours must still end a trial
            from twinlock.agent.main import internal

            return on.EffectFailed(type(effect).__name__, "internal", internal(problem).what)
        if event is not None:
            return event
    raise error("internal", f"a step ended without an event while {state.phase}")


def _end(ports: Ports, performer: Performer, state: State, end: do.Reboot | do.Finish) -> int:
    if isinstance(end, do.Reboot):
        ports.display.note(f"rebooting {end.reason}")
        if state.phase is Phase.ARMED and state.job is not None:
            lame = recovery.lame_slot(ports, state.job) if state.booted == RECOVERY else ""
            baseline.take(ports, state.job.trial_id, performer.reached, lame)
        trial = _prepare_reboot(ports)
        code = machine.REBOOT_WANTED if ports.power.reboot(end.reason, trial=trial) else 0
        end = do.Finish(code)
    _note_end(ports, performer, state, end)
    if end.code:
        raise error(end.code if end.code in CATALOGUE else "internal", end.what)
    if end.what:
        ports.display.note(end.what)
    return end.exit_code


def _prepare_reboot(ports: Ports) -> bool:
    """A loader that cannot be prepared boots the committed slot, whose agent goes on from there."""
    try:
        return ports.boot.before_reboot()
    except TwinlockError as problem:
        ports.display.note(f"the loader was not prepared: {problem}")
        return False


def _note_end(ports: Ports, performer: Performer, state: State, end: do.Finish) -> None:
    peak_bytes, check_peak_bytes = usage.peak_bytes(), performer.check_peak_bytes
    if check_peak_bytes and not end.code:
        in_mib = f"{peak_bytes / MIB:.1f} MiB, its check {check_peak_bytes / MIB:.1f} MiB"
        ports.display.note(f"memory of this run: at most {in_mib}")
    last = LastRun(
        ports.clock.now_s(),
        end.exit_code,
        state.phase.value,
        end.code,
        end.what,
        performer.wait_s,
        peak_bytes,
        check_peak_bytes,
    )
    with suppress(TwinlockError):  # only a convenience for `status`
        ports.store.write_volatile(LAST, msgspec.json.encode(last))


def _last(ports: Ports) -> LastRun | None:
    try:
        data = ports.store.read(LAST, LAST_SIZE_BYTES_MAX)
        return None if data is None else msgspec.json.decode(data, type=LastRun)
    except (msgspec.MsgspecError, UnicodeDecodeError, TwinlockError):
        return None


def command(config_path: Path, args: argparse.Namespace) -> int:
    """`twinlock-agent run`."""
    from twinlock.agent import config as configs
    from twinlock.agent import lock, wiring
    from twinlock.agent.clock import SystemClock

    del args
    config = configs.load(config_path)
    with lock.held(config.state, SystemClock()) as lock_fd:
        return run_once(wiring.build_ports(config, config_path, lock_fd), config)
