"""The scenarios that every team that updates devices writes by hand, on one virtual device after another's.

Each rolls out a release of its own, does something bad at the right moment, and says what the device, its
service and the server made of it. They follow one another on the same device: what one leaves behind is what
the next one finds, as in the field.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from twinlock.agent.api import RETRIES_MAX
from twinlock.core.limits import MIB
from twinlock.core.names import SLOTS
from twinlock.lab.proxy import Cut
from twinlock.lab.qemu import cuts
from twinlock.lab.qemu.build import HANG, PANIC, UNHEALTHY
from twinlock.lab.scenario import Recorder, Result, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from twinlock.lab.qemu.build import Flaw
    from twinlock.lab.qemu.stage import Stage, Updated

AWAY_S: Final = 10.0
REPEATED_BYTES_MAX: Final = 2 * MIB  # one part for each of two connections that ended
CUTS_BYTES: Final = (20_000, 60_000)
POWER_CUTS: Final = 3
_COME_BACK_CPU_S_MAX: Final = 900.0
# A run whose way to the server is broken asks so often at most, and ends: twice that holds a whole run.
_ASKED_IN_VAIN: Final = 2 * (1 + RETRIES_MAX)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One scenario: `play` does it on a device that runs and has nothing to do."""

    name: str
    title: str
    play: Callable[[Stage, Recorder, str], None]


def run(stage: Stage, wanted: Sequence[Scenario]) -> list[Result]:
    """Plays scenarios in order on a stage that has begun; a scenario that fails does not end the others,
    unless it leaves the device in a state in which nothing more can be said."""
    results = []
    for number, scenario in enumerate(wanted, start=1):
        result = Result(scenario.name, scenario.title)
        recorder = Recorder(result, stage.note)
        stage.note(f"scenario {number}/{len(wanted)}: {scenario.title}")
        start_s = time.monotonic()
        scenario.play(stage, recorder, f"3.{len(stage.rig.packed) + 1}")
        result.seconds = round(time.monotonic() - start_s, 1)
        results.append(result)
    return results


# --- what they have in common


def _release(stage: Stage, recorder: Recorder, version: str, flaw: Flaw | None = None) -> None:
    stage.release(version, flaw)
    size_bytes = stage.rig.packed[version].payload_size_bytes
    what = f" with a flaw: {flaw.name}" if flaw else ""
    recorder.note(f"release {version}{what} is published, {size_bytes / MIB:.1f} MiB to fetch")


def _update(
    stage: Stage,
    recorder: Recorder,
    version: str,
    meanwhile: Callable[[dict[str, Any]], None] = lambda found: None,
) -> Updated:
    start_s = time.monotonic()
    states: list[str] = []

    def seen(found: dict[str, Any]) -> None:
        if not states or states[-1] != found["state"]:
            states.append(found["state"])
            recorder.note(f"the server knows: {found['state']}")
        meanwhile(found)

    done = stage.update(version, seen)
    _tell(recorder, done, start_s - recorder.start_s)
    return done


def _tell(recorder: Recorder, done: Updated, offset_s: float) -> None:
    """The figures of an update, and its service's course as spans."""
    result = recorder.result
    if done.code:
        recorder.note(f"reason at the server: {done.code}: {done.detail}")
    recorder.note(f"the loader went to: {', '.join(done.boots) or 'nowhere'}")
    figures = result.figures
    figures["outcome"] = done.state
    figures["update, s"] = round(done.seconds, 1)
    figures["processor of the device's emulator, s"] = round(done.cpu_s, 1)
    figures["boots"] = len(done.boots)
    figures["bytes fetched"] = done.bytes_fetched
    figures["bytes fetched again"] = done.bytes_again
    figures["service away, s"] = round(done.away_s, 1)
    figures["service away at most at once, s"] = round(
        max((gap.seconds for gap in done.away), default=0.0), 1
    )
    at_s = 0.0
    label = done.away[0].before if done.away else done.version
    for gap in done.away:
        start_s = gap.start_s - recorder.start_s
        end_s = gap.end_s - recorder.start_s
        result.spans += [Span(at_s, start_s, gap.before), Span(start_s, end_s, "")]
        at_s, label = end_s, gap.after
    result.spans.append(Span(at_s, max(at_s, done.seconds + offset_s), label))


def _expect_good(stage: Stage, recorder: Recorder, done: Updated) -> None:
    result = recorder.result
    result.expect(done.state, "succeeded", "the outcome")
    result.check(stage.service.startswith(done.version), f"{stage.service!r} serves, not {done.version}")


def _expect_back(stage: Stage, recorder: Recorder, done: Updated, before: str, code: str) -> None:
    result = recorder.result
    result.expect(done.state, "rolled_back", "the outcome")
    result.expect(done.code, code, "the reason")
    result.expect(stage.service, before, "what serves")


# --- the scenarios


def update(stage: Stage, recorder: Recorder, version: str) -> None:
    """A good release, and what it costs those who use the device: the reboot."""
    _release(stage, recorder, version)
    done = _update(stage, recorder, version)
    _expect_good(stage, recorder, done)
    recorder.result.expect(len(done.boots), 1, "the number of boots")
    recorder.result.expect(len(done.away), 1, "the number of times that the service was away")
    recorder.result.expect(done.bytes_again, 0, "bytes fetched again")


def network_lost(stage: Stage, recorder: Recorder, version: str) -> None:
    """The link breaks twice during the download; the second time it stays away for a while."""
    _release(stage, recorder, version)
    size_bytes = stage.rig.packed[version].payload_size_bytes
    before = stage.rig.proxy.counts().payload_bytes
    # Early: the device fetches only what its current slot does not hold.
    stage.rig.proxy.add(Cut(before + CUTS_BYTES[0], reset=True))
    stage.rig.proxy.add(Cut(before + CUTS_BYTES[1], away=True))
    back_s: list[float] = []

    def meanwhile(found: dict[str, Any]) -> None:
        if stage.rig.proxy.down and not back_s:
            back_s.append(time.monotonic() + AWAY_S)
            recorder.note(f"the server is out of reach for {AWAY_S:g} s")
        elif back_s and stage.rig.proxy.down and time.monotonic() > back_s[0]:
            stage.rig.proxy.down = False
            recorder.note("the server is back")

    done = _update(stage, recorder, version, meanwhile)
    _expect_good(stage, recorder, done)
    recorder.result.check(bool(back_s), "the link did not break")
    again = stage.rig.proxy.counts().payload_bytes - before - size_bytes
    recorder.result.figures["bytes over the link beyond the payload"] = again
    recorder.result.check(again <= REPEATED_BYTES_MAX, f"{again} bytes crossed the link again")


def power_lost(stage: Stage, recorder: Recorder, version: str) -> None:
    """The power goes at random writes, with the loss of what was not flushed."""
    seed = random.Random(version).randrange(2**32)
    recorder.note(f"seed {seed}")
    stage.power_off(seed)
    done = cuts.run(stage, seed, POWER_CUTS, prefix=f"{version}.")
    for one in done.cuts:
        recorder.note(
            f"cut {one.number} at write {one.at_write} ({one.phase}): {one.kept} of {one.unflushed} "
            f"unflushed sectors survived; slot {one.next_slot} boots {one.next_version}"
        )
    for version_, state, code in done.outcomes:
        recorder.note(f"{version_}: {state} {code}".rstrip())
    recorder.result.problems += done.violations
    recorder.result.figures["power cuts"] = len(done.cuts)
    start_s = time.monotonic()
    stage.power_on()
    stage.device.wait(lambda: bool(stage.service), "the device's service after the cuts")
    recorder.result.figures["boot, s"] = round(time.monotonic() - start_s, 1)
    last = [name for name, state, _ in done.outcomes if state == "succeeded"]
    recorder.result.check(
        not last or stage.service.startswith(last[-1]), f"{stage.service!r} serves after the cuts"
    )


def _bad(flaw: Flaw, code: str) -> Callable[[Stage, Recorder, str], None]:
    def play(stage: Stage, recorder: Recorder, version: str) -> None:
        before = stage.service
        _release(stage, recorder, version, flaw)
        done = _update(stage, recorder, version)
        _expect_back(stage, recorder, done, before, code)
        recorder.result.check(bool(done.boots), "the loader never tried the release")

    return play


def server_down(stage: Stage, recorder: Recorder, version: str) -> None:
    """The server is away just when the new release has to prove itself: nobody's fault, so no release's.

    With required health checks of its own a device may stay on the new release; else it goes back, and takes
    the same release at the next attempt. The old release is the control: the server stays away until that has
    asked in vain, too, since what only the new one cannot reach is the new one's fault.
    """
    before = stage.service
    asked = -1
    _release(stage, recorder, version)
    told = [False]

    def meanwhile(found: dict[str, Any]) -> None:
        nonlocal asked
        proxy = stage.rig.proxy
        if found["state"] == "armed" and not told[0]:
            proxy.down = told[0] = True
            recorder.note("the server goes away before the new release has booted")
        if not proxy.down or len(stage.boots(since)) < 2 or stage.service != before:
            return
        if asked < 0:
            asked = proxy.refused
            recorder.note("the device went back, and does not reach the server either")
        elif proxy.refused > asked + _ASKED_IN_VAIN:
            proxy.down = False
            recorder.note("the server returns")

    since = stage.device.machine.console.position()
    done = _update(stage, recorder, version, meanwhile)
    result = recorder.result
    result.check(told[0], "the server never went away")
    if done.state == "succeeded":
        recorder.note("its own health checks decided: the release stays")
        return
    result.expect(done.state, "rolled_back", "the outcome")
    result.expect(stage.service, before, "what serves")
    again = _update(stage, recorder, version)
    result.expect(again.state, "succeeded", "the outcome of the second attempt")


def both_bad(stage: Stage, recorder: Recorder, version: str) -> None:
    """Neither slot loads any more: recovery fetches and reinstalls a release by itself."""
    result = recorder.result
    if not stage.builder.has_recovery:
        result.problems.append("the disk has no recovery partition (recovery.size): it would need a visit")
        return
    if stage.service.split()[0] in stage.rig.packed:
        version = stage.service.split()[0]
    else:  # the factory's image: no server can give it back
        _release(stage, recorder, version)
        done = _update(stage, recorder, version)
        result.expect(done.state, "succeeded", "the outcome before the accident")
    stage.power_off(0)
    record = stage.device.record()
    stage.device.write_record(replace(record, seq=record.seq + 1, failed=frozenset("ab")))
    for slot in SLOTS:
        stage.device.spoil(slot)
    recorder.note("the beginning of both slots is overwritten")
    start_s = time.monotonic()
    stage.power_on()
    stage.device.wait(lambda: stage.service.endswith("recovery"), "the recovery system")
    recorder.note("recovery serves")
    wanted = tuple(f"{version} {slot}" for slot in SLOTS)
    stage.device.wait(
        lambda: stage.service in wanted, f"{version} in a slot again", cpu_s_max=_COME_BACK_CPU_S_MAX
    )
    result.figures["power on to the release in a slot again, s"] = round(time.monotonic() - start_s, 1)
    recorder.note(f"{stage.service} serves again; the loader went to {', '.join(stage.boots())}")
    result.expect(stage.boots()[0], "recovery", "the first boot after the accident")


SCENARIOS: Final = (
    Scenario("update", "A good release", update),
    Scenario("network-lost", "Network lost during the download", network_lost),
    Scenario("power-lost", "Power lost during the install", power_lost),
    Scenario("bad-release", "A release whose health check fails", _bad(UNHEALTHY, "health-failed")),
    Scenario("panic", "A release whose kernel panics", _bad(PANIC, "trial-exhausted")),
    Scenario("hang", "A release that hangs", _bad(HANG, "trial-exhausted")),
    Scenario("both-bad", "Both slots bad", both_bad),
    Scenario("server-down", "Server down after the reboot", server_down),
)
BY_NAME: Final = {one.name: one for one in SCENARIOS}
