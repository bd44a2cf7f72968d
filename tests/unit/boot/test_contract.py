"""One contract for every boot control: all transitions, every power cut, whatever the loader.

The agent's own code runs on a medium in memory (`lab.bootbench`), the loaders are functions of the medium's
content (`lab.loaders`). What a device must never do, at no cut: boot nothing, boot a slot that is being
written or was found bad, start a kernel of another release than the slot's.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from twinlock.core import bootrecord
from twinlock.core.bootloader import Put
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import TRIES_MAX
from twinlock.lab import loaders
from twinlock.lab.bootbench import Bench, PowerCut
from twinlock.lab.loaders import Medium, RecordWrite, Write

TRIES = 2


@pytest.fixture(params=loaders.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


class Device:
    """A bench with an agent that does what the agent's machine does, and an image that is written or not."""

    def __init__(self, kind: str, *, healthy: bool, recovery: bool = True) -> None:
        self.bench = Bench.fresh(kind, recovery=recovery)
        self.healthy = healthy
        self.whole = {"a": True, "b": False, "recovery": True}
        self.trials: list[str] = []
        self.check_boot(self.bench.power_cycle())

    def check_boot(self, slot: str | None) -> None:
        assert slot is not None, "the device boots nothing"
        assert self.whole[slot], f"slot {slot} boots, which is not whole"
        record = self.bench.control().read()
        assert slot not in record.failed, f"slot {slot} boots, which the record calls bad"
        assert self.bench.kernel_started() == self.bench.kernels[slot], f"another kernel starts slot {slot}"

    def install(self, slot: str, trial: str) -> None:
        """Invalidate, write, verify, arm: as `agent.install` and the machine do."""
        control = self.bench.control()
        control.invalidate(slot)
        self.whole[slot] = False
        self.bench.kernels[slot] = b"kernel half written"
        self.bench.write(Put(f"slot {slot}", trial.encode()))
        self.bench.kernels[slot] = f"kernel of {trial}".encode()
        self.whole[slot] = True
        control.arm(slot, TRIES, trial)

    def run(self, trial: str) -> bool:
        """One run of the agent after a boot; whether it ends without a reboot."""
        control = self.bench.control()
        control.mend()
        record, booted = control.read(), control.booted()
        if record.trying is None:
            if booted.slot in record.failed:
                self.check_boot(self.bench.reboot())
                return False
            if trial not in self.trials:
                self.install(bootrecord.other(record.default), trial)
                self.trials.append(trial)
                self.check_boot(self.bench.reboot())
                return False
            return True
        if trial not in self.trials:
            self.trials.append(trial)
        if booted.slot == record.trying:
            control.self_test()
            if self.healthy:
                control.commit(record.trial_id)
                return True
            control.roll_back(record.trial_id, "health-failed: no")
        elif record.tries_left == 0:
            control.roll_back(record.trial_id, "trial-exhausted: never came up")
            return True
        self.check_boot(self.bench.reboot())
        return False

    def live(self, trial: str, *, runs_max: int = 12) -> None:
        for _ in range(runs_max):
            if self.run(trial):
                return
        raise AssertionError(f"the device does not come to rest: {self.bench.control().read()}")

    def check_rest(self) -> None:
        """Nothing is pending, and what boots is the committed slot."""
        record = self.bench.control().read()
        assert record.trying is None
        self.check_boot(self.bench.power_cycle())
        assert self.bench.running.slot == record.default


def test_a_release_is_committed(kind: str) -> None:
    device = Device(kind, healthy=True)
    device.live("one")
    device.check_rest()
    assert device.bench.control().read().default == "b"
    device.live("two")
    device.check_rest()
    record = device.bench.control().read()
    assert (record.default, record.failed) == ("a", frozenset())


def test_a_bad_release_is_rolled_back_and_its_reason_kept(kind: str) -> None:
    device = Device(kind, healthy=False)
    device.live("one")
    device.check_rest()
    record = device.bench.control().read()
    assert (record.default, record.reason) == ("a", "health-failed: no")
    assert record.failed == {"b"}


def test_a_trial_that_hangs_uses_up_its_tries_and_no_more(kind: str) -> None:
    """Every boot of the new slot ends in a reset; the old slot's agent asks for the next one."""
    device = Device(kind, healthy=True)
    device.install("b", "one")
    slots = [device.bench.reboot()]
    for _ in range(8):
        device.check_boot(slots[-1])
        if slots[-1] == "b":
            slots.append(device.bench.power_cycle())
        elif device.bench.control().read().tries_left:
            slots.append(device.bench.reboot())
        else:
            break
    assert slots.count("b") == TRIES
    assert slots[-1] == "a"
    device.run("one")
    device.check_rest()
    assert device.bench.control().read().failed == {"b"}


def test_asking_twice_in_one_boot_takes_one_try(kind: str) -> None:
    """The reboot was asked for and did not come at once; the agent runs again."""
    device = Device(kind, healthy=True)
    device.install("b", "one")
    control = device.bench.control()
    flags = {control.before_reboot(), device.bench.control().before_reboot()}
    assert len(flags) == 1
    device.bench.flag = flags.pop()
    assert device.bench.boot() == "b"
    assert device.bench.control().read().tries_left == TRIES - 1


def test_the_last_try_is_asked_for_again_in_the_same_boot(kind: str) -> None:
    device = Device(kind, healthy=True)
    device.bench.control().invalidate("b")
    device.bench.kernels["b"] = b"new"
    device.whole["b"] = True
    device.bench.control().arm("b", 1, "one")
    device.bench.control().before_reboot()
    assert device.bench.reboot() == "b"
    assert device.bench.control().read().tries_left == 0
    assert device.bench.power_cycle() == "a"


@pytest.mark.parametrize("healthy", [True, False])
def test_a_cut_at_any_write_is_survived(kind: str, healthy: bool) -> None:
    """Two releases in a row, the power cut during each write in each way, then left to run to its end."""
    whole = Device(kind, healthy=healthy)
    whole.live("one")
    whole.live("two")
    writes = len(whole.bench.log)
    states = 0
    for number in range(writes):
        choice = 0
        while True:
            count = cut_and_go_on(kind, healthy, number, choice)
            states += 1
            choice += 1
            if choice >= count:
                break
    assert writes >= 7
    assert states >= 3 * writes


def cut_and_go_on(kind: str, healthy: bool, number: int, choice: int) -> int:
    """Cuts at write `number`, leaving outcome `choice` of it; how many outcomes that write has."""
    device = Device(kind, healthy=healthy)
    ways = 0

    def cut(medium: Medium, write: Write) -> Medium | None:
        nonlocal ways
        if ways or len(device.bench.log) != number + 1:
            return None
        left = loaders.outcomes(medium, write)
        ways = len(left)
        return left[choice]

    device.bench.cut = cut
    try:
        device.live("one")
        device.live("two")
    except PowerCut:
        device.check_boot(device.bench.power_cycle())
        device.live("one")
        device.live("two")
        device.check_rest()
    assert ways, f"there is no write {number}"
    before = len(device.bench.log)
    device.bench.control().mend()
    device.bench.control().read()
    assert len(device.bench.log) == before, "the steady state writes"
    return ways


class Cuts:
    """Three cuts, at random writes, in random ways."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._left = [rng.randrange(1, 30), rng.randrange(1, 12), rng.randrange(1, 12)]

    def __call__(self, medium: Medium, write: Write) -> Medium | None:
        if not self._left:
            return None
        self._left[0] -= 1
        if self._left[0]:
            return None
        del self._left[0]
        return self._rng.choice(loaders.outcomes(medium, write))


def test_several_cuts_in_a_row_are_survived(kind: str, rng: random.Random) -> None:
    for _ in range(60):
        device = Device(kind, healthy=rng.random() < 0.7, recovery=rng.random() < 0.7)
        device.bench.cut = Cuts(rng)
        for trial in ("one", "two", "three"):
            for _ in range(8):
                try:
                    device.live(trial)
                    break
                except PowerCut:
                    device.check_boot(device.bench.power_cycle())
        device.check_rest()


def test_the_steady_state_writes_nothing(kind: str) -> None:
    device = Device(kind, healthy=True)
    device.live("one")
    before, medium = len(device.bench.log), device.bench.medium
    for _ in range(3):
        control = device.bench.control()
        assert control.mend() == []
        control.read()
        control.booted()
        assert device.bench.power_cycle() == "b"
    assert len(device.bench.log) == before
    assert device.bench.medium == medium


@pytest.mark.parametrize("change", ["invalidate a", "arm a", "commit other", "roll back other", "arm 8"])
def test_what_is_not_allowed_writes_nothing(kind: str, change: str) -> None:
    device = Device(kind, healthy=True)
    control = device.bench.control()
    control.mend()
    before = device.bench.medium
    calls: dict[str, Callable[[], object]] = {
        "invalidate a": lambda: control.invalidate("a"),
        "arm a": lambda: control.arm("a", 3, "t"),
        "commit other": lambda: control.commit("other"),
        "roll back other": lambda: control.roll_back("other", "why"),
        "arm 8": lambda: control.arm("b", TRIES_MAX + 1, "t"),
    }
    with pytest.raises(TwinlockError) as caught:
        calls[change]()
    assert caught.value.code == "boot-refused"
    assert device.bench.medium == before


def test_every_transition_can_be_repeated(kind: str) -> None:
    device = Device(kind, healthy=True)
    bench = device.bench
    bench.kernels["b"] = b"new"
    device.whole["b"] = True
    steps: tuple[Callable[[], object], ...] = (
        lambda: bench.control().invalidate("b"),
        lambda: bench.control().arm("b", 3, "one"),
        lambda: bench.control().commit("one"),
        lambda: bench.control().invalidate("a"),
        lambda: bench.control().arm("a", 3, "two"),
        lambda: bench.control().roll_back("two", "no"),
    )
    for step in steps:
        first = step()
        medium = bench.medium
        assert step() == first
        assert bench.medium == medium


def test_a_record_of_an_unknown_version_or_garbage_is_refused_and_kept(kind: str, rng: random.Random) -> None:
    device = Device(kind, healthy=True)
    block = device.bench.medium.copies[0]
    for bad in (bytes(len(block)), rng.randbytes(len(block)), block.replace(b"\x01\0", b"\x09\0", 1)[::-1]):
        device.bench.medium = replace(device.bench.medium, copies=(bad, bad))
        for call in (device.bench.control().read, device.bench.control().mend):
            if device.bench.kind in ("file", "uboot", "grub") and call.__name__ == "mend":
                continue  # their loaders read the record themselves
            with pytest.raises(TwinlockError) as caught:
                call()
            assert caught.value.code == "boot-record"
        with pytest.raises(TwinlockError):
            device.bench.control().invalidate("b")
        assert device.bench.medium.copies == (bad, bad)


def test_the_booted_slot_is_the_one_that_runs_wherever_the_loader_went(kind: str) -> None:
    device = Device(kind, healthy=True)
    device.install("b", "one")
    device.bench.reboot()
    assert device.bench.control().booted().slot == "b"
    device.bench.running = replace(device.bench.running, slot="recovery")
    assert device.bench.control().booted().slot == "recovery"
    assert device.bench.control().read().trying == "b"


def test_the_self_test_writes_and_changes_no_meaning(kind: str) -> None:
    device = Device(kind, healthy=True)
    device.install("b", "one")
    device.bench.reboot()
    before = device.bench.control().read()
    count = len(device.bench.log)
    device.bench.control().self_test()
    assert len(device.bench.log) > count
    after = device.bench.control().read()
    assert replace(after, seq=before.seq) == before
    assert after.seq == before.seq + 1


@pytest.mark.parametrize("part", ["record", "files"])
def test_the_self_test_finds_a_medium_that_does_not_keep(kind: str, part: str) -> None:
    device = Device(kind, healthy=True)
    device.bench.control().mend()
    if part == "files" and loaders.form(kind).rules is None:
        part = "record"  # there is nothing else

    class Forgetful(Bench):
        def write(self, write: Write) -> None:
            if isinstance(write, RecordWrite) != (part == "record"):
                super().write(write)

    device.bench.__class__ = Forgetful
    with pytest.raises(TwinlockError) as caught:
        device.bench.control().self_test()
    assert caught.value.code == "boot-control"


# --- from recovery


def in_recovery(kind: str) -> Device:
    """Slot a is committed and does not load any more, slot b was found bad."""
    device = Device(kind, healthy=True)
    for slot in ("a", "b"):
        device.bench.kernels[slot] = b""
        device.whole[slot] = False
    record = device.bench.control().read()
    assert (record.default, sorted(record.failed)) == ("a", ["b"])
    device.bench.running = replace(device.bench.running, slot="recovery")
    return device


@pytest.fixture(params=[name for name in loaders.KINDS if name != "tryboot"])  # which knows no recovery
def recovering(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_the_default_is_given_up_written_and_comes_back(recovering: str) -> None:
    device = in_recovery(recovering)
    control = device.bench.control()
    given_up = control.abandon("a")
    assert (given_up.default, given_up.failed) == ("b", frozenset("ab"))
    assert device.bench.control().abandon("a") == given_up
    device.check_boot(device.bench.power_cycle())
    assert device.bench.running.slot == "recovery"
    device.install("a", "again")
    device.trials.append("again")
    device.check_boot(device.bench.reboot())
    assert device.bench.running.slot == "a"
    device.live("again")
    device.check_rest()
    assert device.bench.control().read().failed == frozenset("b")


def test_giving_up_survives_a_cut_at_any_write(recovering: str, rng: random.Random) -> None:
    def cut_at(number: int) -> Device | None:
        device = in_recovery(recovering)
        seen = [0]

        def cut(medium: loaders.Medium, write: Write) -> loaders.Medium | None:
            seen[0] += 1
            return rng.choice(loaders.outcomes(medium, write)) if seen[0] == number else None

        device.bench.cut = cut
        try:
            device.bench.control().abandon("a")
        except PowerCut:
            device.bench.cut = lambda medium, write: None
            return device
        return None

    number = 1
    while (device := cut_at(number)) is not None:
        device.bench.control().mend()
        assert device.bench.control().abandon("a").failed == frozenset("ab")
        device.check_boot(device.bench.power_cycle())
        assert device.bench.running.slot == "recovery"
        number += 1
    assert number > 1, "nothing was written"


@pytest.mark.parametrize(("failed", "boots"), [("b", "a"), ("ab", "recovery")])
def test_a_lost_record_is_made_anew(recovering: str, failed: str, boots: str) -> None:
    device = Device(recovering, healthy=True)
    device.bench.medium = replace(device.bench.medium, copies=(b"\0" * 1024, b"\xff" * 1024))
    with pytest.raises(TwinlockError) as problem:
        device.bench.control().read()
    assert problem.value.code == "boot-record"
    device.bench.running = replace(device.bench.running, slot="recovery")
    made = device.bench.control().restore("a", frozenset(failed))
    assert (made.default, made.failed) == ("a", frozenset(failed))
    assert device.bench.control().restore("b", frozenset()) == made, "one that is there is kept"
    assert device.bench.power_cycle() == boots
    device.bench.control().self_test()


RECORD_LOADERS = ("file", "uboot", "grub")


@pytest.mark.parametrize("kind", RECORD_LOADERS)
@pytest.mark.parametrize("agents", [0, 1])
def test_no_number_of_torn_boots_costs_the_record(kind: str, agents: int, rng: random.Random) -> None:
    """A loader flushes nothing: each boot of a trial may tear what it wrote, or lose it, again and again."""
    form = loaders.form(kind)
    before = bootrecord.BootRecord(seq=8, default="a", failed=frozenset("b"))
    armed = bootrecord.BootRecord(seq=9, default="a", trying="b", tries_left=TRIES_MAX, trial_id="one")
    for _ in range(100):
        pair = (form.encode(before), form.encode(armed))
        medium = Medium(pair if agents else pair[::-1], {})
        for _ in range(3 * TRIES_MAX):
            slot, after = loaders.boots(kind, medium)
            assert slot in ("a", "b")
            written = [number for number in (0, 1) if after.copies[number] != medium.copies[number]]
            if written:
                (place,) = written
                medium = rng.choice(loaders.outcomes(medium, RecordWrite(place, after.copies[place])))
            assert form.decode(medium.copies[agents]) == armed
