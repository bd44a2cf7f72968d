"""What each loader's rules make of any state at all: the record's slot boots, nothing bad does, then rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlock.core import bootrecord
from twinlock.core.bootloader import Files, LoaderRules, applied, committed
from twinlock.core.bootloader_efi import (
    BOOT_NEXT,
    BOOT_ORDER,
    NUMBERS,
    TRIAL_NUMBER,
    EfiBoot,
    option_name,
    order_data,
    order_of,
)
from twinlock.core.bootloader_systemd import ENTRIES, SystemdBoot, entries, entry_name, entry_text
from twinlock.core.bootrecord import BootRecord
from twinlock.core.errors import TwinlockError
from twinlock.core.names import RECOVERY
from twinlock.lab.loaders import ARGUMENTS, PARTITION

STABLE = bootrecord.initial()
TRIAL = bootrecord.arm(STABLE, "b", 3, "one")
RECORDS = [
    STABLE,
    BootRecord(seq=9, default="a"),
    TRIAL,
    bootrecord.commit(TRIAL, "one"),
    bootrecord.roll_back(TRIAL, "one", "no"),
    bootrecord.invalidate(bootrecord.commit(TRIAL, "one"), "a"),
    BootRecord(seq=20, default="b", failed=frozenset("ab"), reason="given up"),
    BootRecord(seq=21, default="b", trying="a", tries_left=2, trial_id="x", failed=frozenset("b")),
]
KERNELS = {f"twinlock/{slot}/linux": slot.encode() for slot in ("a", "b", RECOVERY)}
SYSTEMD = SystemdBoot(ARGUMENTS)
EFI = EfiBoot(ARGUMENTS, PARTITION)

records = st.sampled_from(RECORDS)
one_entry = st.tuples(
    st.sampled_from(["a", "b"]),
    st.none() | st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 30),
    st.booleans(),
)


@st.composite
def junk_entries(draw: st.DrawFn) -> dict[str, bytes]:
    """Entries of any past, one of them perhaps with a text that is not ours."""
    files = dict(KERNELS) | SYSTEMD.recovery_entry()
    for slot, left, done, version, trial in draw(st.lists(one_entry, max_size=5)):
        text = entry_text(slot, ARGUMENTS[slot], ("linux",), version, trial=trial)
        files[f"{ENTRIES}/{entry_name(slot, left, done if left is not None else 0)}"] = text.encode()
    if draw(st.booleans()):
        files[f"{ENTRIES}/{entry_name('a')}"] = (
            b"version x\nlinux /twinlock/b/linux\noptions twinlock.slot=b\n"
        )
    files[f"{ENTRIES}/debian.conf"] = b"version 99\nlinux /vmlinuz\n"
    return files


@st.composite
def junk_variables(draw: st.DrawFn) -> dict[str, bytes]:
    """Variables of any past, and options of another system."""
    files = draw(junk_entries())
    ours = [*NUMBERS.values(), TRIAL_NUMBER]
    for slot, number in NUMBERS.items():
        if draw(st.booleans()):
            files[option_name(number)] = EFI.option(draw(st.sampled_from([slot, "a", "b"])))
    if draw(st.booleans()):
        files[option_name(TRIAL_NUMBER)] = EFI.option(draw(st.sampled_from(["a", "b"])), trial=True)
    if draw(st.booleans()):
        files[BOOT_ORDER] = order_data(draw(st.lists(st.sampled_from([*ours, 1, 2]), max_size=6)))
    if draw(st.booleans()):
        files[BOOT_NEXT] = order_data([draw(st.sampled_from([*ours, 1]))])
    return files


def followed(rules: LoaderRules, files: Files, record: BootRecord) -> dict[str, bytes]:
    after = dict(files)
    for step in rules.follow(files, record):
        after = applied(after, step)
    assert rules.follow(after, record) == [], "it does not come to rest"
    return after


def expected(rules: LoaderRules, files: Files, record: BootRecord) -> str:
    on_trial = rules.counts and record.trying is not None and rules.tries_left(files, record) > 0
    return str(record.trying) if on_trial else committed(record, recovery=True)


@given(junk_entries(), records)
def test_systemd_boot_starts_what_the_record_says_whatever_was_there(
    files: dict[str, bytes], record: BootRecord
) -> None:
    after = followed(SYSTEMD, files, record)
    assert SYSTEMD.boots(after)[0] == expected(SYSTEMD, after, record)
    assert after[f"{ENTRIES}/debian.conf"] == files[f"{ENTRIES}/debian.conf"]
    allowed = {"a", "b", RECOVERY} - (record.failed - {record.trying or ""})
    assert {one.slot for one in entries(after)} <= allowed


@given(junk_entries())
def test_tries_come_to_an_end_and_then_the_default_boots(files: dict[str, bytes]) -> None:
    after = followed(SYSTEMD, files, TRIAL)
    for left in range(SYSTEMD.tries_left(after, TRIAL), 0, -1):
        slot, after = SYSTEMD.boots(after)
        assert slot == "b"
        assert SYSTEMD.tries_left(after, TRIAL) == left - 1
        assert SYSTEMD.follow(after, TRIAL) == []
    assert SYSTEMD.boots(after)[0] == "a"


def test_of_two_names_that_a_torn_rename_left_the_lower_count_stays() -> None:
    files = followed(SYSTEMD, KERNELS | SYSTEMD.recovery_entry(), TRIAL)
    (path,) = (one.path for one in entries(files) if one.slot == "b")
    files[f"{ENTRIES}/{entry_name('b', 1, 2)}"] = files[path]
    after = followed(SYSTEMD, files, TRIAL)
    assert [one.tries_left for one in entries(after) if one.slot == "b"] == [1]


@given(junk_variables(), records)
def test_efi_starts_what_the_record_says_with_and_without_its_variables(
    files: dict[str, bytes], record: BootRecord
) -> None:
    after = followed(EFI, files, record)
    default = committed(record, recovery=True)
    wish = order_of(after.get(BOOT_NEXT, b""))
    if wish in ([], [TRIAL_NUMBER]):
        assert EFI.boots(after)[0] == (record.trying if wish else default)
    assert EFI.boots(after)[0] not in record.failed - {record.trying}
    without = {path: data for path, data in after.items() if not path.startswith("efivars/")}
    assert EFI.boots(without)[0] == default
    assert [number for number in order_of(after[BOOT_ORDER]) if number < 0x7000] == [
        number for number in order_of(files.get(BOOT_ORDER, b"")) if number < 0x7000
    ]


@given(junk_variables(), records)
def test_a_trial_starts_by_its_one_shot_alone(files: dict[str, bytes], record: BootRecord) -> None:
    after = followed(EFI, files, record)
    order = order_of(after[BOOT_ORDER])
    assert TRIAL_NUMBER not in order
    if record.trying is None:
        assert order_of(after.get(BOOT_NEXT, b"")) != [TRIAL_NUMBER]
        return
    assert NUMBERS[record.trying] not in order
    for step in EFI.one_shot(after, record) or []:
        after = applied(after, step)
    slot, once = EFI.boots(after)
    assert slot == record.trying
    assert EFI.boots(once)[0] == committed(record, recovery=True)


@given(junk_variables(), records)
def test_a_default_that_does_not_load_is_followed_by_a_good_slot_only(
    files: dict[str, bytes], record: BootRecord
) -> None:
    after = followed(EFI, {path: data for path, data in files.items() if path != BOOT_NEXT}, record)
    default = committed(record, recovery=True)
    del after[f"twinlock/{default}/linux"]
    slot = EFI.boots(after)[0]
    assert slot not in record.failed
    assert slot is None or slot != record.trying
    assert (slot is None) == (default == RECOVERY)


def test_an_option_of_another_system_is_left_alone() -> None:
    files = KERNELS | {option_name(NUMBERS["a"]): b"\x01\0\0\0\x04\0o\0s\0\0\0\x7f\xff\x04\0"}
    with pytest.raises(TwinlockError) as caught:
        EFI.follow(files, STABLE)
    assert caught.value.code == "boot-control"


def test_an_initrd_is_loaded_by_the_stub() -> None:
    option = EfiBoot(ARGUMENTS, PARTITION, ("linux", "initrd")).option("a")
    assert "initrd=\\twinlock\\a\\initrd".encode("utf-16-le") in option


def test_an_entry_whose_files_are_gone_is_passed_over() -> None:
    files = followed(SYSTEMD, KERNELS | SYSTEMD.recovery_entry(), STABLE)
    del files["twinlock/a/linux"]
    assert SYSTEMD.boots(files)[0] == RECOVERY
    assert SYSTEMD.boots({})[0] is None
