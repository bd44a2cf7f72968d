"""`twinlock demo` as a user runs it: what it says is true, it ends all that it starts, and it can fail."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import WAIT_S, processes_of, wait_until
from twinlock.cli.api import Api
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import MIB
from twinlock.lab import images
from twinlock.lab.demo import story

DEMO = [sys.executable, "-m", "twinlock.cli.main", "demo"]
IMAGE_MIB = 12
RELEASES = ["1.1", "1.2", "1.3 (one bit flipped)", "1.4 (signed by a stranger)"]
OUTCOMES = ["succeeded", "rolled_back", "failed", "refused"]
CODES = ["healthy", "health-failed", "payload-part-hash", "metadata-signature"]


@contextmanager
def started(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A demo that goes on by itself; ended in any case."""
    env = {name: value for name, value in os.environ.items() if name != "DEMO_ONCE"}
    argv = [*DEMO, "--folder", str(folder), "--image-size", str(IMAGE_MIB), *options]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(WAIT_S)


def test_the_demo_tells_the_whole_story(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = subprocess.run(
        [*DEMO, "--folder", str(folder), "--image-size", str(IMAGE_MIB)],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        env={**os.environ, "DEMO_ONCE": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.rstrip("\n").split("\n")
    assert lines[-1] == "demo: ok"
    steps = [line for line in lines if re.match(r" \d/7  ", line)]
    assert steps == [f" {number}/7  {step.title} ..." for number, step in enumerate(story.STEPS, start=1)]
    assert len([line for line in lines if re.search(r"\(\d+\.\d s\)$", line)]) == len(story.STEPS)
    table = lines[next(at for at, line in enumerate(lines) if line.startswith("release ")) + 1 : -2]
    for line, release, outcome, code in zip(table, RELEASES, OUTCOMES, CODES, strict=True):
        assert re.match(rf"{re.escape(release)} +{outcome} +\d.* {code}", line)
    assert "found schema 7, need schema 8" in table[1]
    told = done.stdout.replace("\n", " ")
    assert re.search(r"fetched the rest: \d+ bytes of \d\.\d MiB came twice", told)
    assert "http://" not in done.stdout  # nothing is left to look at
    assert not folder.exists()
    assert processes_of(folder) == []


def test_the_server_goes_on_until_it_is_interrupted(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with started(folder, "--json", "--keep") as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert (told["version"], told["ok"]) == (1, True)
        assert [one["number"] for one in told["steps"]] == list(range(1, 8))
        assert [one["release"] for one in told["releases"]] == RELEASES
        assert [one["outcome"] for one in told["releases"]] == OUTCOMES
        assert all(one["reason"].startswith(code) for one, code in zip(told["releases"], CODES, strict=True))
        assert told["releases"][0]["bytes_fetched"] > MIB
        with urllib.request.urlopen(told["server"] + "/", timeout=30) as page:
            assert page.status == 200
            assert b"demo-device" in page.read()
        assert len(processes_of(folder)) == 1  # the server
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 0
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(told["server"] + "/", timeout=30)
    assert processes_of(folder) == []
    assert (folder / "device/disk.img").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "terminated"])
def test_interrupted_in_the_middle_nothing_runs_on(tmp_path: Path, number: signal.Signals) -> None:
    folder = tmp_path / "demo"
    with started(folder) as process:
        wait_until((folder / "device/data/device.key").exists, "the enrolment")
        assert processes_of(folder)
        process.send_signal(number)
        assert process.wait(WAIT_S) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert processes_of(folder) == []


class Quiet:
    """Tells nobody."""

    def begin(self, number: int, title: str) -> None: ...

    def bar(self, label: str, total_bytes: int) -> Any:
        return nullcontext(lambda size_bytes: None)

    def fact(self, text: str) -> None: ...

    def done(self, sentence: str, seconds: float) -> None: ...


def test_a_step_that_does_not_hold_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A payload that is not damaged after all is installed, which the demo must not call refused."""
    monkeypatch.setattr(images, "flip_bit", lambda path, offset_bytes, bit=0: None)
    folder = tmp_path / "demo"
    with (
        pytest.raises(TwinlockError) as failed,
        story.tell(folder, Quiet(), Api, image_size_bytes=8 * MIB),
    ):
        pytest.fail("the demo went on")
    assert failed.value.code == "internal"
    assert failed.value.what.startswith("demo step 6 (Try a damaged release and a forged one): ")
    assert processes_of(folder) == []


def test_somebody_else_s_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    done = subprocess.run(
        [*DEMO, "--once", "--folder", str(tmp_path)], capture_output=True, text=True, timeout=WAIT_S
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error[input-exists]: ")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_disk_that_is_too_small_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100 * MIB))
    with pytest.raises(TwinlockError) as failed, story.tell(tmp_path / "demo", Quiet(), Api):
        pytest.fail("the demo went on")
    assert failed.value.code == "disk-full"
    assert failed.value.exit_code == 6


def test_two_demos_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    with started(folder) as process:
        wait_until((folder / "images").exists, "the first demo")
        second = subprocess.run(
            [*DEMO, "--once", "--folder", str(folder)], capture_output=True, text=True, timeout=WAIT_S
        )
        assert second.returncode == 8
        assert second.stderr.startswith("error[conflict]: ")
        assert process.poll() is None
