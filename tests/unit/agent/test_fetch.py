"""Ranges: what is asked for, what is believed, and when to stop asking."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.agent.fakes import FakeClock, FakeNetwork, FakeRandom, FakeResponse, config_for
from twinlock.agent.config import NetworkConfig
from twinlock.agent.fetch import Payload, Source, Tally
from twinlock.agent.ports import Request
from twinlock.agent.retry import PROGRESS_BYTES_MIN, Patience, retry_after_s
from twinlock.core.errors import TwinlockError, error

DATA = random.Random(7).randbytes(300_000)
SHA256 = "ab" * 32
LOST = error("connection-lost", "cut")


class Token:
    def __init__(self, network: FakeNetwork, *, works: bool = True) -> None:
        self.network = network
        self.works = works
        self.renewed = 0

    def token(self) -> str:
        return f"token{self.renewed or ''}"

    def renew(self) -> None:
        self.renewed += 1
        if self.works:
            self.network.tokens.add(self.token())


class Rig:
    def __init__(self, bounds: NetworkConfig | None = None, size_bytes: int = len(DATA)) -> None:
        self.network = FakeNetwork({SHA256: DATA})
        self.clock = FakeClock()
        self.token = Token(self.network)
        self.payload = Payload(
            self.network,
            self.clock,
            FakeRandom(),
            bounds or config_for().network,
            Source(f"http://127.0.0.1:1/p/{SHA256}", SHA256, size_bytes),
            self.token,
            Tally(),
        )

    def fails(self, code: str, start: int = 1000, end: int = 200_000) -> str:
        with pytest.raises(TwinlockError) as caught:
            self.payload.read(start, end)
        assert caught.value.code == code
        return caught.value.what


def test_one_request_for_one_range() -> None:
    rig = Rig()
    assert rig.payload.read(1000, 200_000) == DATA[1000:200_000]
    (request,) = rig.network.requests
    assert request.headers == {
        "range": "bytes=1000-199999",
        "if-range": f'"{SHA256}"',
        "authorization": "Bearer token",
    }
    assert rig.payload.tally == Tally(199_000, 0)


@given(st.lists(st.integers(PROGRESS_BYTES_MIN, 100_000), max_size=12))
def test_however_the_link_is_cut_no_byte_comes_twice(cuts: list[int]) -> None:
    rig = Rig()
    rig.network.faults = list(cuts)
    assert rig.payload.read(1000, 299_000) == DATA[1000:299_000]
    assert rig.network.twice() == 0
    assert rig.payload.tally == Tally(298_000, 0)


def test_a_link_that_brings_nothing_is_given_up_and_what_came_is_known() -> None:
    rig = Rig()
    rig.network.faults = [50_000, LOST, LOST, LOST, LOST]
    data = memoryview(bytearray(100_000))
    reader = rig.payload.reader(0, 100_000)
    with pytest.raises(TwinlockError) as caught:
        reader.fill(data)
    assert caught.value.code == "connection-lost"
    assert reader.filled == reader.position == 50_000
    assert bytes(data[:50_000]) == DATA[:50_000]
    assert len(rig.network.requests) == 1 + 3
    assert len(rig.clock.waits_s) == 3


def test_cuts_after_a_few_bytes_each_count_as_no_progress() -> None:
    rig = Rig()
    rig.network.faults = [10] * 100
    rig.fails("connection-lost")
    assert len(rig.network.requests) == 4


def test_waits_grow_jitter_and_are_bounded() -> None:
    bounds = NetworkConfig(retries=12, backoff_s_min=1.0, backoff_s_max=60.0)
    rig = Rig(bounds)
    rig.network.faults = [LOST] * 20
    rig.fails("connection-lost")
    waits = rig.clock.waits_s
    assert len(waits) == 12
    assert all(0 <= wait <= min(60.0, 2.0**number) for number, wait in enumerate(waits))
    assert max(waits) > 10
    assert len(set(waits)) == 12


def busy(retry_after: str) -> FakeResponse:
    return FakeResponse(503, {"retry-after": retry_after}, b"")


def test_retry_after_is_honoured_and_bounded() -> None:
    rig = Rig()
    rig.network.faults = [busy("120")]
    assert rig.payload.read(0, 10) == DATA[:10]
    assert rig.clock.waits_s == [120.0]
    rig = Rig()
    rig.network.faults = [busy("100000")]
    rig.fails("server-busy")
    assert rig.clock.waits_s == []
    assert [retry_after_s(text) for text in (None, "Wed, 21 Oct", "-5", "9" * 20, "7")] == [0, 0, 0, 0, 7]


def test_an_expired_session_is_renewed_without_waiting() -> None:
    rig = Rig()
    rig.network.tokens = set()
    assert rig.payload.read(0, 10) == DATA[:10]
    assert rig.token.renewed == 1
    assert rig.clock.waits_s == []


def test_sessions_are_not_renewed_without_end() -> None:
    rig = Rig()
    rig.network.tokens = set()
    rig.token.works = False
    rig.fails("session-expired")
    assert rig.token.renewed == 2


def given_answer(status: int, body: bytes = b"x" * 199_000, **headers: str) -> FakeResponse:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return FakeResponse(status, {"content-length": str(len(body)), "etag": f'"{SHA256}"', **names}, body)


RANGE = f"bytes 1000-199999/{len(DATA)}"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (given_answer(206), "transfer-range"),
        (given_answer(206, content_range="bytes x"), "transfer-range"),
        (given_answer(206, content_range=f"bytes 1001-199999/{len(DATA)}"), "transfer-range"),
        (given_answer(206, content_range=f"bytes 1000-200000/{len(DATA)}"), "transfer-range"),
        (given_answer(206, content_range=f"bytes 1000-999/{len(DATA)}"), "transfer-range"),
        (given_answer(206, content_range="bytes 1000-199999/300001"), "transfer-changed"),
        (given_answer(206, content_range="bytes 1000-199999/*"), "transfer-range"),
        (given_answer(206, content_range=RANGE, etag='"other"'), "transfer-changed"),
        (given_answer(206, content_range=RANGE, etag=f'W/"{SHA256}"'), "transfer-changed"),
        (given_answer(206, content_range=RANGE, content_length="199001"), "transfer-oversized"),
        (given_answer(206, content_range=RANGE, content_length="198999"), "transfer-short"),
        (FakeResponse(206, {"content-range": RANGE}, b""), "answer-malformed"),
        (given_answer(200, DATA), "transfer-range"),
        (given_answer(200, DATA, etag='"other"'), "transfer-changed"),
        (FakeResponse(416, {"content-range": f"bytes */{len(DATA)}"}, b""), "transfer-range"),
        (FakeResponse(416, {"content-range": "bytes */5"}, b""), "transfer-changed"),
        (FakeResponse(302, {"location": "http://evil.example/"}, b""), "redirect-refused"),
        (FakeResponse(404, {}, b'{"error":{"code":"not-found","what":"gone"}}'), "server-error"),
        (FakeResponse(403, {}, b'{"error":{"code":"rollout-halted","what":"stop"}}'), "rollout-halted"),
        (FakeResponse(403, {}, b'{"error":{"code":"metadata-signature","what":"x"}}'), "server-error"),
        (FakeResponse(500, {}, b"<html>"), "server-error"),
        (FakeResponse(401, {}, b"<html>"), "unauthorised"),
    ],
)
def test_answers_that_are_not_what_was_asked_for(answer: FakeResponse, code: str) -> None:
    rig = Rig()
    rig.token.works = False
    rig.network.faults = [FakeResponse(answer.status, answer.headers, answer.body) for _ in range(10)]
    rig.fails(code)
    assert rig.payload.tally.fetched_bytes == 0
    assert len(rig.network.requests) <= 4


def test_the_whole_payload_serves_from_its_start() -> None:
    rig = Rig()
    rig.network.faults = [given_answer(200, DATA)]
    assert rig.payload.read(0, 500) == DATA[:500]


def test_a_server_that_sends_long_ranges_in_pieces_is_followed() -> None:
    rig = Rig()

    def shorten(request: Request, response: FakeResponse) -> FakeResponse:
        first, last = (int(text) for text in request.headers["range"][6:].split("-"))
        last = min(last, first + 49_999)
        body = DATA[first : last + 1]
        answer = given_answer(206, body, content_range=f"bytes {first}-{last}/{len(DATA)}")
        answer.on_bytes = response.on_bytes
        return answer

    rig.network.faults = [shorten] * 10
    assert rig.payload.read(1000, 200_000) == DATA[1000:200_000]
    assert rig.clock.waits_s == []
    assert rig.network.twice() == 0


def test_a_server_that_sends_a_byte_at_a_time_is_given_up() -> None:
    rig = Rig()

    def one(request: Request, response: FakeResponse) -> FakeResponse:
        first = int(request.headers["range"][6:].partition("-")[0])
        return given_answer(206, DATA[first : first + 1], content_range=f"bytes {first}-{first}/{len(DATA)}")

    rig.network.faults = [one] * 100
    rig.fails("transfer-short")
    assert len(rig.network.requests) <= 10


def test_ranges_outside_the_payload_are_a_fault_of_ours() -> None:
    rig = Rig()
    for start, end in ((5, 5), (-1, 5), (0, len(DATA) + 1)):
        with pytest.raises(TwinlockError) as caught:
            rig.payload.reader(start, end)
        assert caught.value.code == "internal"
    reader = rig.payload.reader(0, 10)
    with pytest.raises(TwinlockError):
        reader.fill(memoryview(bytearray(11)))


def test_trust_is_never_tried_again() -> None:
    patience = Patience(FakeClock(), FakeRandom(), config_for().network)
    with pytest.raises(TwinlockError):
        patience.wait(error("payload-part-hash", "no"))
