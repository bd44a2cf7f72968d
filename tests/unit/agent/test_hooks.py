"""The device's own programs: order, time, output, and what they may ask for."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.unit.agent.fakes import config_for, hook
from twinlock.agent.clock import SystemClock
from twinlock.agent.config import RebootConfig
from twinlock.agent.health import answer_of
from twinlock.agent.hooks import DID_NOT_START, OUTPUT_SIZE_BYTES_MAX, FolderHooks, programs, run_one
from twinlock.agent.power import ConfiguredPower
from twinlock.core.errors import TwinlockError


def script(path: Path, text: str, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(mode)
    return path


def test_they_run_in_the_order_of_their_names_until_one_fails(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for name, code in (("20-b", 3), ("10-a", 0), ("30-c", 0)):
        script(tmp_path / "required.d" / name, f"echo {name} >> {log}; exit {code}")
    script(tmp_path / "required.d/.hidden", "exit 9")
    script(tmp_path / "required.d/README", "exit 9", 0o644)
    config = config_for(tmp_path, health={"required": [str(tmp_path / "required.d")], "timeout_s": 5.0})
    hooks = FolderHooks(config.health, config.hooks, SystemClock())
    assert [(one.name, one.exit_code) for one in hooks.health(wanted=False)] == [
        ("10-a", 0),
        ("20-b", 3),
    ]
    assert log.read_text().split() == ["10-a", "20-b"]


def test_wanted_ones_all_run(tmp_path: Path) -> None:
    for name in ("1", "2"):
        script(tmp_path / "wanted.d" / name, "exit 1")
    config = config_for(tmp_path, health={"wanted": [str(tmp_path / "wanted.d")], "required": []})
    hooks = FolderHooks(config.health, config.hooks, SystemClock())
    assert [one.exit_code for one in hooks.health(wanted=True)] == [1, 1]
    assert hooks.health(wanted=False) == []


def test_together_they_have_no_more_than_the_deadline(tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        script(tmp_path / "wanted.d" / name, "exec sleep 60")
    config = config_for(
        tmp_path, health={"wanted": [str(tmp_path / "wanted.d")], "timeout_s": 60.0, "deadline_s": 0.2}
    )
    done = FolderHooks(config.health, config.hooks, SystemClock()).health(wanted=True)
    assert [(one.name, one.timed_out, one.exit_code != 0) for one in done] == [
        ("1", True, True),
        ("2", True, True),
        ("3", True, True),
    ]
    assert (done[0].output, done[1].exit_code, done[2].exit_code) == ("", DID_NOT_START, DID_NOT_START)


def test_a_point_has_its_own_folder(tmp_path: Path) -> None:
    script(tmp_path / "hooks/pre-reboot.d/x", "echo busy; exit 75")
    config = config_for(tmp_path)
    hooks = FolderHooks(config.health, config.hooks, SystemClock())
    assert hooks.ask("pre-download") == []
    assert answer_of(hooks.ask("pre-reboot")) == (True, False, "x ended with 75: busy")


def test_a_failing_hook_postpones_and_says_so() -> None:
    assert answer_of([hook("a", 0), hook("b", 2, "no")]) == (True, True, "b ended with 2: no")
    assert answer_of([hook("a", -9, timed_out=True)]) == (True, True, "a did not end in time")
    assert answer_of([hook("a", -11)]) == (True, True, "a was ended by signal 11")
    assert answer_of([]) == (False, False, "")


def test_only_the_end_of_much_output_is_kept(tmp_path: Path) -> None:
    path = script(tmp_path / "x", "yes 'a line of noise' | head -c 300000; echo the reason; exit 1")
    result = run_one(path, 10, SystemClock())
    assert result.exit_code == 1
    assert len(result.output) <= OUTPUT_SIZE_BYTES_MAX
    assert result.output.endswith("the reason")


def test_endless_output_does_not_outlast_its_time(tmp_path: Path) -> None:
    result = run_one(script(tmp_path / "x", "exec yes"), 0.3, SystemClock())
    assert result.timed_out
    assert result.exit_code != 0


def is_gone(pid: int) -> bool:
    """Ended, or ended and not yet collected by its new parent."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def test_when_time_is_over_the_whole_group_ends(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    path = script(tmp_path / "x", f"sleep 60 & echo $! > {pids}; echo waiting; wait")
    result = run_one(path, 0.5, SystemClock())
    assert result.timed_out
    assert result.output == "waiting"
    pid = int(pids.read_text())
    until = time.monotonic() + 10
    while not is_gone(pid):
        assert time.monotonic() < until, "a process of the hook lives on"
        time.sleep(0.01)


def test_a_process_left_behind_does_not_hold_up_the_agent(tmp_path: Path) -> None:
    started = time.monotonic()
    result = run_one(script(tmp_path / "x", "sleep 60 & exit 0"), 30, SystemClock())
    assert result.exit_code == 0
    assert time.monotonic() - started < 20


def test_what_does_not_start_failed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\x7fELF rubbish")
    path.chmod(0o755)
    result = run_one(path, 5, SystemClock())
    assert result.exit_code == DID_NOT_START
    assert "start" in result.output


def test_a_folder_that_is_not_there_has_no_hooks(tmp_path: Path) -> None:
    assert programs([tmp_path / "gone"]) == []
    if os.geteuid() != 0:
        tmp_path.chmod(0)
        with pytest.raises(TwinlockError):
            programs([tmp_path])
        tmp_path.chmod(0o700)


def test_the_reboot_command() -> None:
    assert ConfiguredPower(RebootConfig(mode="exit")).reboot("x") is True
    assert ConfiguredPower(RebootConfig(command=("true",))).reboot("x") is False
    for command in (("false",), ("/no/such/program",)):
        with pytest.raises(TwinlockError) as caught:
            ConfiguredPower(RebootConfig(command=command)).reboot("x")
        assert caught.value.code == "boot-control"
