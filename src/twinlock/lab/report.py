"""The report of a lab run as one HTML page: a table, and for each scenario a drawing of its course.

The page needs nothing but itself: no script, no font, no picture from elsewhere.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from twinlock.lab.scenario import Report, Result, Span

WIDTH: Final = 880
_BAR_HEIGHT: Final = 26
_TICKS: Final = 8
_LABEL_WIDTH_MIN: Final = 60
_STYLE: Final = """\
body{font:15px/1.5 system-ui,sans-serif;max-width:940px;margin:2em auto;padding:0 1em}
body{color:#1b1f24;background:#fff}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}
table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:.3em .6em;border-bottom:1px solid #d8dee4}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.pass{color:#116329}.fail{color:#a40e26;font-weight:600}
svg{width:100%;height:auto;margin:.5em 0}ol{padding-left:0;list-style:none}
li time{display:inline-block;width:5em;color:#59636e;font-variant-numeric:tabular-nums}
@media (prefers-color-scheme:dark){body{background:#0d1117;color:#e6edf3}td,th{border-color:#30363d}
.pass{color:#3fb950}.fail{color:#ff7b72}li time{color:#9198a1}}
"""


def html(report: Report) -> str:
    """The page."""
    facts = "".join(
        f"<tr><td>{escape(name)}</td><td class=n>{escape(_figure(value))}</td></tr>"
        for name, value in report.facts.items()
    )
    rows = "".join(_row(one) for one in report.results)
    verdict = "every scenario passed" if report.passed else "not every scenario passed"
    return (
        '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">'
        f"<title>Twinlock lab: {escape(report.device)}</title><style>{_STYLE}</style>"
        f"<h1>Twinlock lab: {escape(report.image)} on {escape(report.device)}</h1>"
        f"<p class={'pass' if report.passed else 'fail'}>{verdict}</p>"
        f"<table><thead><tr><th>scenario<th>verdict<th>took<th>service away</thead>{rows}</table>"
        + (f"<h2>The device</h2><table>{facts}</table>" if facts else "")
        + "".join(_section(one) for one in report.results)
        + "</html>\n"
    )


def _verdict(one: Result) -> str:
    return "<td class=pass>passed</td>" if one.passed else "<td class=fail>failed</td>"


def _row(one: Result) -> str:
    away = one.figures.get("service away, s")
    return (
        f'<tr><td><a href="#{escape(one.name)}">{escape(one.title)}</a></td>{_verdict(one)}'
        f"<td class=n>{one.seconds:.0f} s</td>"
        f"<td class=n>{'' if away is None else escape(_figure(away)) + ' s'}</td></tr>"
    )


def _section(one: Result) -> str:
    problems = "".join(f"<li class=fail>{escape(text)}</li>" for text in one.problems)
    steps = "".join(f"<li><time>{step.at_s:.1f} s</time> {escape(step.text)}</li>" for step in one.steps)
    figures = "".join(
        f"<tr><td>{escape(name)}</td><td class=n>{escape(_figure(value))}</td></tr>"
        for name, value in one.figures.items()
    )
    return (
        f'<h2 id="{escape(one.name)}">{escape(one.title)}</h2>'
        + (f"<ul>{problems}</ul>" if problems else "")
        + _drawing(one)
        + (f"<table>{figures}</table>" if figures else "")
        + f"<ol>{steps}</ol>"
    )


def _drawing(one: Result) -> str:
    """The service's course over time: what served when, and when nothing did."""
    if not one.spans:
        return ""
    end_s = max(span.end_s for span in one.spans) or 1.0
    scale = WIDTH / end_s
    bars = "".join(_bar(span, scale) for span in one.spans)
    step_s = end_s / _TICKS
    ticks = "".join(
        f'<text x="{number * step_s * scale:.1f}" y="{_BAR_HEIGHT + 16}" font-size="11" '
        f'fill="currentColor">{number * step_s:.0f} s</text>'
        for number in range(_TICKS)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {_BAR_HEIGHT + 22}" role=img '
        f'aria-label="When the service answered">{bars}{ticks}</svg>'
    )


def _bar(span: Span, scale: float) -> str:
    x, width = span.start_s * scale, max(1.0, (span.end_s - span.start_s) * scale)
    told = span.label or "no answer"
    fill = "#2da44e" if span.label else "#cf222e"
    text = ""
    if width >= _LABEL_WIDTH_MIN:
        text = f'<text x="{x + 5:.1f}" y="{_BAR_HEIGHT - 9}" font-size="12" fill="#fff">{escape(told)}</text>'
    return (
        f'<rect x="{x:.1f}" y="0" width="{width:.1f}" height="{_BAR_HEIGHT}" fill="{fill}">'
        f"<title>{escape(told)}, {span.end_s - span.start_s:.1f} s</title></rect>{text}"
    )


def _figure(value: float | int | str) -> str:
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else value
