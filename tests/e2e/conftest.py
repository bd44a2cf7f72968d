"""What end-to-end tests share: figures that they measured are shown below the run, from all processes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

SHOWN = "shown"


@pytest.fixture
def show(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Shows a line below the whole run's result."""
    return lambda line: record_property(SHOWN, line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = [
        str(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, value in report.user_properties
        if name == SHOWN
    ]
    if lines:
        terminalreporter.section("shown by end-to-end tests")
        for line in sorted(lines):
            terminalreporter.write_line(line)
