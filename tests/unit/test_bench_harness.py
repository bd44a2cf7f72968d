"""The benchmarks' own arithmetic: measured processes, bounds, interleaving, what is written down."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench import __main__ as runner
from bench.harness import (
    ROOT,
    BenchError,
    Context,
    Measured,
    Row,
    Running,
    interleave,
    machine,
    measure,
    median,
)

MIB = 1024 * 1024
PYTHON = sys.executable


def test_a_command_is_measured_apart_from_who_measures_it() -> None:
    ballast = bytearray(b"x" * (128 * MIB))  # what a fork would inherit as its own peak
    used = measure(["/bin/true"])
    assert used.peak_rss_mib < 32
    assert len(ballast) == 128 * MIB


def test_peak_memory_and_cpu_are_the_commands_own() -> None:
    used = measure([PYTHON, "-S", "-c", "x = b'1' * (96 << 20); print(sum(range(10**6)))"])
    assert 96 < used.peak_rss_mib < 160
    assert 0.005 < used.cpu_s < 10
    assert used.wall_s > 0
    assert used.stdout == "499999500000\n"


def test_a_waited_for_child_counts() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', \"x = b'1' * (96 << 20)\"])"
    used = measure([PYTHON, "-c", child])
    assert used.peak_rss_mib > 96
    assert 5 < used.own_peak_rss_mib < 64


def test_a_failing_command_gives_no_figure_but_its_last_words() -> None:
    with pytest.raises(BenchError, match="ended with 3:\nboom"):
        measure([PYTHON, "-c", "print('boom'); raise SystemExit(3)"])
    with pytest.raises(BenchError, match="ended with nothing"):
        measure(["/no/such/command"])


def test_a_command_that_hangs_is_ended() -> None:
    with pytest.raises(BenchError, match="did not end within 0 s"):
        measure([PYTHON, "-c", "import signal; signal.pause()"], timeout_s=0.3)


def test_a_service_is_measured_up_to_its_stop() -> None:
    service = Running([PYTHON, "-c", "import signal; signal.pause()"])
    service.stop()
    assert service.finish(timeout_s=20, expect=(-15,)).peak_rss_kib > 0


def test_two_processes_that_share_a_job_add_cpu_and_keep_the_larger_peak() -> None:
    both = Measured(1.0, 2.0, 10, "a") + Measured(0.5, 3.0, 20, "b")
    assert (both.cpu_s, both.wall_s, both.peak_rss_kib, both.stdout) == (1.5, 3.0, 20, "ab")


@pytest.mark.parametrize(
    ("row", "ratio", "holds"),
    [
        (Row("x", "s", 2.0), None, None),
        (Row("x", "s", 2.0, bound=2.0), None, True),
        (Row("x", "s", 2.1, bound=2.0), None, False),
        (Row("x", "s", 2.0, "p", 4.0), 0.5, None),
        (Row("x", "s", 2.0, "p", 4.0, bound=0.5), 0.5, True),
        (Row("x", "s", 2.0, "p", 4.0, bound=0.4), 0.5, False),
        (Row("x", "s", None, "p", 4.0, bound=0.4), None, None),
        (Row("x", "s", 2.0, "p", None, bound=0.4), None, None),
    ],
)
def test_a_bound_limits_the_ratio_or_else_the_figure(
    row: Row, ratio: float | None, holds: bool | None
) -> None:
    assert (row.ratio, row.holds) == (ratio, holds)


def test_rounds_take_turns_and_the_median_decides() -> None:
    order: list[str] = []
    values = iter([5.0, 50.0, 1.0, 10.0, 3.0, 30.0])

    def job(name: str) -> Measured:
        order.append(name)
        return Measured(next(values), 0.0, 0)

    results = interleave({"a": lambda: job("a"), "b": lambda: job("b")}, 3, lambda line: None)
    assert order == ["a", "b"] * 3
    assert median(results["a"], lambda used: used.cpu_s) == 3.0
    assert median(results["b"], lambda used: used.cpu_s) == 30.0


def test_results_are_written_in_the_promised_shape(tmp_path: Path) -> None:
    rows = [
        Row("start", "CPU s", 0.1, "RAUC", 0.2, 1.0, {"ours": [0.1, 0.1]}, kept=True),
        Row("peak", "MiB", 20.0),
    ]
    document = json.loads(runner.write_results("x", rows, tmp_path).read_text())
    assert set(document) == {"machine", "rows"}
    keys = {"figure", "unit", "ours", "peer", "peer_value", "ratio", "bound", "holds"}
    assert set(document["rows"][0]) == keys | {"raw", "kept"}
    assert set(document["rows"][1]) == keys
    assert document["rows"][0]["holds"] is True
    assert document["rows"][1]["peer"] is None
    assert set(machine()) == {"cpu", "cores", "memory_mib", "kernel", "python", "distribution"}


class FakeBenchmark:
    """A benchmark as the runner sees it."""

    TITLE = "made up"

    def __init__(self, rows: list[Row] | BenchError) -> None:
        self.rows = rows

    def run(self, ctx: Context) -> list[Row]:
        assert ctx.workdir.is_dir()
        if isinstance(self.rows, BenchError):
            raise self.rows
        return self.rows


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        ([Row("x", "s", 1.0, bound=2.0)], 0),
        ([Row("x", "s", 3.0, bound=2.0)], 1),
        (BenchError("rauc is missing"), 1),
    ],
)
def test_a_broken_bound_and_a_failed_run_fail_the_command(
    rows: list[Row] | BenchError,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(runner, "benchmarks", lambda: {"fake": FakeBenchmark(rows)})
    monkeypatch.setattr(runner, "write_results", lambda name, rows: ROOT / f"bench/results/{name}.json")
    assert runner.main(["fake"]) == code
    printed = capsys.readouterr()
    assert "made up" in printed.out or "rauc is missing" in printed.err


def test_an_unknown_name_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert runner.main(["no-such"]) == 2
    assert "no benchmark named no-such; there are:" in capsys.readouterr().err
