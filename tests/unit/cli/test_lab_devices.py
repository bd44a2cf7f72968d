"""`twinlock lab cut` and `lab run` on a stage that is played: what is asked of it, and what a user sees."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from twinlock.cli import lab_devices
from twinlock.cli.main import main
from twinlock.core.errors import EXIT_CODES, Kind
from twinlock.lab.qemu import cuts, scenarios, stage
from twinlock.lab.qemu.cuts import CutDone, Cuts
from twinlock.lab.qemu.scenarios import SCENARIOS, Scenario
from twinlock.lab.scenario import Result

Capture = pytest.CaptureFixture[str]
CUT = CutDone(1, 17, 5, "2.1", "downloading", ("a",), 8, 3, "a", "1.0")


class Played:
    """What was asked for, and what the stage answers."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.violations: tuple[str, ...] = ()
        self.problems: list[str] = []
        self.names: list[str] = []

    @contextmanager
    def opened(self, architecture: str, folder: Path, *args: Any, **more: Any) -> Iterator[SimpleNamespace]:
        tree = more["tree"]
        self.asked = {"architecture": architecture, "tries": args[1].tries, **more}
        self.asked["files"] = None if tree is None else sorted(path.name for path in tree.iterdir())
        more["note"]("built")
        yield SimpleNamespace(
            builder=SimpleNamespace(notes=["the tree has no watchdog"]),
            begin=lambda: 12.34,
            power_off=lambda seed: None,
            image_size_bytes=1 << 20,
            accelerator="tcg",
        )

    def cut(self, stage: object, seed: int, count: int) -> Cuts:
        self.asked |= {"seed": seed, "count": count}
        return Cuts(seed, (CUT,) * count, (("2.1", "succeeded", ""),), self.violations)

    def play(self, stage: object, wanted: list[Scenario]) -> list[Result]:
        self.names = [one.name for one in wanted]
        return [
            Result(
                one.name,
                one.title,
                problems=self.problems,
                figures={"service away, s": 31.0},
                seconds=2.0,
            )
            for one in wanted
        ]


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    made = Played()
    monkeypatch.setattr(stage, "opened", made.opened)
    monkeypatch.setattr(cuts, "run", made.cut)
    monkeypatch.setattr(scenarios, "run", made.play)
    return made


def test_cuts_are_told_one_by_one(played: Played, capsys: Capture) -> None:
    assert main(["lab", "cut", "--device", "qemu-x86", "--count", "2", "--seed", "7"]) == 0
    out, err = capsys.readouterr()
    assert (played.asked["architecture"], played.asked["seed"], played.asked["count"]) == ("x86-64", 7, 2)
    assert played.asked["tries"] == lab_devices.CUT_TRIES
    assert "2 cuts, 0 violations (seed 7)" in out
    assert "downloading" in out
    assert "the tree has no watchdog" in err


def test_a_violation_fails_the_command_and_says_how_to_repeat_it(played: Played, capsys: Capture) -> None:
    played.violations = ("the loader would boot slot b, which holds no whole release",)
    assert main(["lab", "cut", "--count", "1", "--json"]) == EXIT_CODES[Kind.DEVICE]
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert (said["version"], said["violations"]) == (1, list(played.violations))
    assert (said["device"], said["boot_s"], said["cuts"][0]["at_write"]) == ("qemu-arm64", 12.3, 17)
    problem = json.loads(err.splitlines()[-1])["error"]
    assert problem["code"] == "lab-violations"
    assert "--seed 0" in problem["hint"]


def test_scenarios_end_in_a_table_and_a_page(played: Played, tmp_path: Path, capsys: Capture) -> None:
    page = tmp_path / "lab.html"
    assert main(["lab", "run", "update", "panic", "--report", str(page)]) == 0
    assert played.names == ["update", "panic"]
    assert played.asked["tries"] == 1
    out = capsys.readouterr().out
    assert out.count("passed") == 2
    assert "31.0" in out
    assert "every scenario passed" in page.read_text()


def test_all_are_all(played: Played, capsys: Capture) -> None:
    assert main(["lab", "run", "all", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in said["scenarios"]] == [one.name for one in SCENARIOS]
    assert (said["passed"], said["device"], said["facts"]["first boot, s"]) == (True, "qemu-arm64", 12.3)


def test_a_scenario_that_did_not_pass_fails_the_command(played: Played, capsys: Capture) -> None:
    played.problems = ["the link did not break"]
    assert main(["lab", "run", "network-lost"]) == EXIT_CODES[Kind.DEVICE]
    out, err = capsys.readouterr()
    assert "FAILED" in out
    assert "the link did not break" in out
    assert "not passed: network-lost" in err


def test_the_users_tree_is_copied_and_their_disk_is_read(played: Played, tmp_path: Path) -> None:
    tree, description = tmp_path / "rootfs", tmp_path / "disk.toml"
    (tree / "etc").mkdir(parents=True)
    description.write_text('name = "mine"\n')
    folder = tmp_path / "kept"
    arguments = ["--image", str(tree), "--disk", str(description), "--folder", str(folder)]
    assert main(["lab", "run", "update", *arguments]) == 0
    assert played.asked["files"] == ["etc"]
    assert played.asked["spec"].name == "mine"
    assert played.asked["tree"] == folder / "tree"
    assert main(["lab", "run", "update", *arguments]) == EXIT_CODES[Kind.INPUT]  # it is not empty any more


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (lambda folder: ["run", "earthquake"], "input-invalid"),
        (lambda folder: ["run", "update", "--image", str(folder / "none")], "input-missing"),
        (lambda folder: ["run", "update", "--disk", str(folder / "none")], "input-missing"),
        (lambda folder: ["run", "update", "--disk", str(_binary(folder))], "input-wrong-type"),
    ],
    ids=["scenario", "image", "disk", "binary"],
)
def test_what_is_not_there_is_named(
    played: Played, tmp_path: Path, capsys: Capture, arguments: Callable[[Path], list[str]], code: str
) -> None:
    assert main(["lab", *arguments(tmp_path)]) == EXIT_CODES[Kind.INPUT]
    assert f"error[{code}]" in capsys.readouterr().err
    assert played.asked == {}


def _binary(folder: Path) -> Path:
    path = folder / "disk.toml"
    path.write_bytes(b"\xff\xfe\x00")
    return path
