"""The Raspberry Pi's boot partition as recorded trees (`pi/`), in every state that a trial goes through.

The trees follow the Raspberry Pi's documentation: tryboot.txt in place of config.txt for one boot, os_prefix
before kernel, device trees, overlays and command line, autoboot.txt before both.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from twinlock.core import bootrecord
from twinlock.core.bootloader import Patch, Put, applied
from twinlock.core.bootloader_tryboot import CONFIG, TRYBOOT, Tryboot, config_text
from twinlock.core.errors import TwinlockError

TREES = Path(__file__).parent / "pi"
ARGUMENTS = {
    slot: f"console=serial0,115200 root=PARTUUID=5d7b2c5e-0{number} rootwait ro twinlock.slot={slot}"
    for slot, number in (("a", 2), ("b", 3))
}
RULES = Tryboot(ARGUMENTS)
STABLE_A = bootrecord.initial()
TRIAL = bootrecord.arm(STABLE_A, "b", 3, "one")
STABLE_B = bootrecord.commit(TRIAL, "one")
ROLLED_BACK = bootrecord.roll_back(TRIAL, "one", "no good")


def tree(name: str) -> dict[str, bytes]:
    root = TREES / name
    return {
        path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize(
    ("name", "plain", "flagged"),
    [
        ("stable-a", "a", "a"),
        ("trial-of-b", "a", "b"),
        ("stable-b", "b", "b"),
        ("partition-named", "a", "a"),
    ],
)
def test_what_the_firmware_starts(name: str, plain: str, flagged: str) -> None:
    files = tree(name)
    assert RULES.boots(files)[0] == plain
    assert RULES.boots(files, flag=True)[0] == flagged


@pytest.mark.parametrize(
    ("name", "record"),
    [("stable-a", STABLE_A), ("trial-of-b", TRIAL), ("stable-b", STABLE_B), ("partition-named", STABLE_A)],
)
def test_a_tree_in_step_with_its_record_is_left_alone(name: str, record: bootrecord.BootRecord) -> None:
    assert RULES.follow(tree(name), record) == []


@pytest.mark.parametrize(
    ("before", "record", "after"),
    [
        ("stable-a", TRIAL, "trial-of-b"),
        ("trial-of-b", STABLE_B, "stable-b"),
        ("trial-of-b", ROLLED_BACK, "stable-a"),
        ("stable-b", ROLLED_BACK, "stable-a"),
    ],
)
def test_the_steps_lead_from_one_recorded_tree_to_the_next(
    before: str, record: bootrecord.BootRecord, after: str
) -> None:
    files = tree(before)
    for step in RULES.follow(files, record):
        files = applied(files, step)
    wanted = tree(after)
    for path in (CONFIG, TRYBOOT):
        assert files[path] == wanted[path]


def test_a_commit_changes_one_byte_in_place() -> None:
    (step,) = RULES.follow(tree("trial-of-b"), STABLE_B)
    assert isinstance(step, Patch)
    before = tree("trial-of-b")[CONFIG]
    assert len(step.data) == len(before) == 512
    assert [at for at in range(512) if step.data[at] != before[at]] == [before.index(b"/a/") + 1]


def test_only_a_trial_has_the_trials_command_line() -> None:
    assert b"cmdline=cmdtrial.txt" in config_text("b", trial=True)
    assert b"cmdline" not in config_text("b")


@pytest.mark.parametrize(("name", "word"), [("stock", "board.txt"), ("by-partition", "tryboot_a_b")])
def test_files_of_others_are_left_alone(name: str, word: str) -> None:
    with pytest.raises(TwinlockError) as caught:
        RULES.follow(tree(name), STABLE_A)
    assert caught.value.code == "boot-control"
    assert word in caught.value.what + caught.value.hint


def test_a_switch_by_partition_would_not_read_tryboot() -> None:
    files = tree("by-partition") | {TRYBOOT: tree("trial-of-b")[TRYBOOT]}
    assert (
        RULES.boots(files | tree("trial-of-b") | {"autoboot.txt": files["autoboot.txt"]}, flag=True)[0] == "a"
    )


def test_a_missing_or_short_file_is_made_again() -> None:
    files = tree("stable-a")
    del files[TRYBOOT]
    files[CONFIG] = files[CONFIG][:100]
    steps = RULES.follow(files, STABLE_A)
    assert [(type(step), step.path) for step in steps] == [(Put, TRYBOOT), (Put, CONFIG)]
    assert RULES.boots({})[0] is None


def test_a_slot_without_its_kernel_does_not_start() -> None:
    files = tree("stable-a")
    del files["twinlock/a/linux"]
    assert RULES.boots(files)[0] is None
