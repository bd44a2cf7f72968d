"""What every test run has: one seed for all randomness, long variants by choice, and no silent skips.

- One seed. `TWINLOCK_SEED` is a number, or `random` for a new one; without it the seed is fixed, so that a
  run repeats exactly. Hypothesis draws from it too. It is printed above the run and beside each failure.
- `TWINLOCK_LONG=1` adds the tests marked `long`; without it they are deselected (and counted as such).
- Branches are measured in the tests' own process. What a test starts is not measured, which would take most
  of its time, unless the test has the fixture `measured`.
- A skipped test fails the run, since it hides what was not checked; `ALLOW_SKIPS=1` permits it on a machine
  that cannot run everything.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Generator, Iterator

import coverage
import hypothesis
import pytest

SEED_DEFAULT = 20_261_121
SEED_MAX = 2**32
SHOWN = "shown"

# `coverage run` gives each Python process that starts from it this variable. With it a process begins by
# loading coverage (0.2 s) and then runs two to five times as long, and tests start thousands of processes.
_HOOK = "COVERAGE_PROCESS_"
_coverage: dict[str, str] = {}

hypothesis.settings.register_profile(
    "twinlock",
    deadline=None,  # machines are shared; time is measured in bench/
    print_blob=True,
    database=None,  # the seed alone decides, so that a run elsewhere repeats it
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("twinlock")


def _run_seed() -> int:
    given = os.environ.get("TWINLOCK_SEED", "").strip()
    if not given:
        return SEED_DEFAULT
    if given == "random":
        return random.SystemRandom().randrange(SEED_MAX)
    if not given.isdecimal():
        raise pytest.UsageError(f"TWINLOCK_SEED is a decimal number or 'random', not {given!r}")
    return int(given)


def _measure_no_more_processes() -> None:
    for name in [name for name in os.environ if name.startswith(_HOOK)]:
        _coverage[name] = os.environ.pop(name)


def pytest_configure(config: pytest.Config) -> None:
    seed = _run_seed()
    os.environ["TWINLOCK_SEED"] = str(seed)  # xdist's workers and every subprocess see the same
    if config.getoption("hypothesis_seed", None) is None:
        config.option.hypothesis_seed = seed
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        _measure_no_more_processes()  # xdist's workers, which run the tests, have started


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: repeat this run with TWINLOCK_SEED={os.environ['TWINLOCK_SEED']}"


def _start_slow_ones_first(items: list[pytest.Item]) -> None:
    """Tests of whole virtual devices take minutes: two parallel workers begin with one each.

    Each worker gets one half of the list in order, and takes from the other's when its own is done.
    """
    slow = [item for item in items if item.get_closest_marker("tries")]
    others = [item for item in items if not item.get_closest_marker("tries")]
    half = len(items) // 2 - len(slow[::2])
    items[:] = [*slow[::2], *others[:half], *slow[1::2], *others[half:]]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("TWINLOCK_LONG") != "1":
        long = [item for item in items if item.get_closest_marker("long")]
        if long:
            config.hook.pytest_deselected(items=long)
            items[:] = [item for item in items if item not in long]
    _start_slow_ones_first(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections.append(("seed", f"repeat with TWINLOCK_SEED={os.environ['TWINLOCK_SEED']}"))
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if hasattr(session.config, "workerinput") or os.environ.get("ALLOW_SKIPS") == "1":
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and reporter.stats.get("skipped") and exitstatus == pytest.ExitCode.OK:
        reporter.write_line("")
        reporter.write_line("skipped tests fail the run; ALLOW_SKIPS=1 permits them", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed for this test alone: the run's seed mixed with the test's name."""
    return random.Random(f"{os.environ['TWINLOCK_SEED']}:{request.node.nodeid}").randrange(SEED_MAX)


@pytest.fixture
def rng(seed: int) -> random.Random:
    """A generator that repeats with the run's seed."""
    return random.Random(seed)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this test starts is measured, too. Not for what it kills: that would leave a torn file behind."""
    for name, value in _coverage.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def unmeasured() -> Iterator[None]:
    """This test's branches do not count: it repeats many times over what another test runs, too.

    Pure Python takes nearly twice as long while its branches are noted.
    """
    running = coverage.Coverage.current()
    if running is None:
        yield
        return
    running.stop()
    yield
    running.start()
    _measure_no_more_processes()  # with `start` coverage would begin to measure them again


@pytest.fixture(scope="session")
def long_run() -> bool:
    """True when the long variants were asked for."""
    return os.environ.get("TWINLOCK_LONG") == "1"


@pytest.fixture
def show(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Shows a line below the whole run's result."""
    return lambda line: record_property(SHOWN, line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests measured stands below the run, from all processes.

    This is the only conftest that the process which reports has loaded for sure: it collects nothing itself.
    """
    lines = [
        str(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, value in report.user_properties
        if name == SHOWN
    ]
    if lines:
        terminalreporter.section("shown by tests")
        for line in sorted(lines):
            terminalreporter.write_line(line)
