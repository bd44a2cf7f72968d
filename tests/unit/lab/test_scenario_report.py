"""What a lab run reports: verdicts, gaps of a service, and the page."""

from __future__ import annotations

import re
import socket
import threading
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from twinlock.lab import report
from twinlock.lab.qemu.service import Answer, ServiceWatch, ask, gaps
from twinlock.lab.scenario import Recorder, Report, Result, Span


def answers(*times: float) -> list[Answer]:
    return [Answer(time_s, "old" if time_s < 10 else "new") for time_s in times]


def test_a_gap_is_between_two_answers() -> None:
    found = gaps(answers(0, 1, 2, 12, 13), 3.0)
    assert [(gap.start_s, gap.end_s, gap.before, gap.after) for gap in found] == [(2, 12, "old", "new")]
    assert found[0].seconds == 10


def test_short_pauses_and_silence_at_the_ends_are_no_gaps() -> None:
    assert gaps(answers(0, 2.9, 5.8), 3.0) == []
    assert gaps(answers(), 3.0) == gaps(answers(4), 3.0) == []


def test_a_service_is_asked_while_the_watch_runs() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            for text in (b"1.0 a", b"", b"1.1 b"):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(text)

        thread = threading.Thread(target=serve)
        thread.start()
        with ServiceWatch(port) as watch:
            thread.join(20)
            while watch.latest != "1.1 b":
                assert threading.Event().wait(0.05) is False
        assert [one.text for one in watch.answers] == ["1.0 a", "1.1 b"]
    assert ask(port) is None


def test_a_result_with_a_problem_did_not_pass() -> None:
    told: list[str] = []
    result = Result("x", "X")
    recorder = Recorder(result, told.append)
    recorder.note("began")
    result.expect(1, 1, "one")
    result.check(True, "fine")
    assert result.problems == []
    result.expect("rolled_back", "succeeded", "the outcome")
    result.check(False, "the link did not break")
    assert not result.passed
    assert result.problems == [
        "the outcome is 'rolled_back'; it must be 'succeeded'",
        "the link did not break",
    ]
    assert (told, [step.text for step in result.steps]) == (["began"], ["began"])
    assert Report("d", "i", (result,), {}).as_data()["scenarios"][0]["passed"] is False


class Balanced(HTMLParser):
    """Counts the elements of a drawing."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)


TEXT = st.text(max_size=40)


@given(TEXT, TEXT, st.lists(TEXT, max_size=3))
def test_words_from_outside_stay_words_on_the_page(title: str, step: str, problems: list[str]) -> None:
    result = Result("one", title, problems=problems)
    Recorder(result, lambda text: None).note(step)
    result.spans = [Span(0, 60, title), Span(60, 75, ""), Span(75, 75, step)]
    page = report.html(Report("qemu-x86", step, (result,), {title: 1.25, "n": 7}))
    parser = Balanced()
    parser.feed(page)
    allowed = {"html", "meta", "title", "style", "h1", "h2", "p", "table", "thead", "tr", "th", "td", "a"}
    assert set(parser.seen) <= allowed | {"svg", "rect", "text", "ol", "ul", "li", "time"}
    assert "<script" not in page
    assert parser.seen.count("rect") == 3


def test_the_page_says_what_passed_and_how_long_the_service_was_away() -> None:
    good, bad = Result("good", "A good one", seconds=12), Result("bad", "A bad one", problems=["it broke"])
    good.figures["service away, s"] = 31.26
    page = report.html(Report("qemu-arm64", "Debian", (good, bad), {}))
    text = re.sub(r"<style>.*</style>", "", page)
    assert "not every scenario passed" in text
    assert "31.3 s" in text
    assert "it broke" in text
    assert "every scenario passed" in report.html(Report("d", "i", (good,), {}))
