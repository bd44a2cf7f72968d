"""Labels of an HTTP connection's bytes do not depend on how the bytes are cut into reads."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlock.lab.framing import Exchange, FramingError, Requests, Responses

REQUESTS = (
    b"GET /payloads/x?y=1 HTTP/1.1\r\nRange: bytes=5-\r\n\r\n"
    b"POST /echo HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"
    b"POST /two HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\n\r\n"
    b"HEAD /three HTTP/1.1\r\n\r\n"
    b"GET /four HTTP/1.1\r\n\r\n"
)
RESPONSES = (
    b"HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\n\r\nabc"
    b"HTTP/1.1 100 Continue\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nT: 1\r\n\r\n"
    b"HTTP/1.1 204 No Content\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
    b"HTTP/1.1 200 OK\r\n\r\nuntil the end"
)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=200), st.lists(st.integers(1, 40), min_size=1))
def test_labels_do_not_depend_on_reads(up: list[int], down: list[int]) -> None:
    waiting: deque[Exchange] = deque()
    requests = Requests(waiting)
    bodies: dict[str, bytes] = {}
    for piece in pieces(REQUESTS, up):
        for span in requests.feed(piece):
            if span.body:
                bodies[span.exchange.path] = bodies.get(span.exchange.path, b"") + span.data
    assert bodies == {"/echo": b"hello", "/two": b"3;x=y\r\nabc\r\n0\r\n\r\n"}
    assert [(each.method, each.path) for each in requests.seen] == [
        ("GET", "/payloads/x"),
        ("POST", "/echo"),
        ("POST", "/two"),
        ("HEAD", "/three"),
        ("GET", "/four"),
    ]
    assert requests.seen[0].range == "bytes=5-"

    responses = Responses(waiting)
    answers: dict[str, bytes] = {}
    passed = b""
    for piece in pieces(RESPONSES, down):
        for span in responses.feed(piece):
            passed += span.data
            if span.body:
                answers[span.exchange.path] = answers.get(span.exchange.path, b"") + span.data
    assert passed == RESPONSES
    assert answers == {
        "/payloads/x": b"abc",
        "/echo": b"2\r\nhi\r\n0\r\nT: 1\r\n\r\n",
        "/four": b"until the end",
    }
    assert [each.status for each in requests.seen] == [206, 200, 204, 200, 200]


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    result = []
    at = number = 0
    while at < len(data):
        result.append(data[at : at + sizes[number % len(sizes)]])
        at += len(result[-1])
        number += 1
    return result


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 70_000,
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"what\r\n\r\n",
        b"h" * 70_000,
    ],
)
def test_what_has_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(FramingError):
        list(Responses(deque([Exchange("GET", "/")])).feed(data))


def test_an_answer_to_nothing_is_refused() -> None:
    with pytest.raises(FramingError):
        list(Responses(deque()).feed(b"HTTP/1.1 200 OK\r\n\r\n"))
