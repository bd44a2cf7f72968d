"""Laws of what devices sign: whatever is inside, it is kept within its bounds or refused with a code.

A device's key proves who sent it, not that it is well meant: the bodies are as untrusted as any.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from twinlock.core import limits
from twinlock.core.device_key import DeviceKey, evidence_bytes, generate, report_bytes
from twinlock.core.errors import TwinlockError
from twinlock.core.protocol import ReportBatch, SignedEvidence, SignedReport
from twinlock.core.zstd import compress
from twinlock.server.devices import evidence
from twinlock.server.rollouts import reports
from twinlock.server.rollouts.model import SEQ_MAX

T = TypeVar("T")
KEY = DeviceKey(generate())
REFUSED = {"request-malformed", "request-too-large"}
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 1 << 70),
    st.floats(),
    st.text(max_size=80),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=70), st.integers(-2, 1 << 40), max_size=40),
)
REPORT = {"device_id": "dev-1", "seq": 1, "nonce": "n", "state": "idle"}
REPORT_FIELDS = [
    *("seq", "nonce", "state", "assignment_id", "product", "version", "slot", "image_sha256", "code"),
    *("detail", "bytes_fetched", "bytes_again", "duration_s", "time_s", "noticed", "device_id", "more"),
]
EVIDENCE = {"device_id": "dev-1", "kind": "journal", "data": "KLUv/SQA"}
EVIDENCE_FIELDS = ["device_id", "kind", "data", "assignment_id", "product", "version", "slot", "time_s", "x"]


def body(value: dict[str, Any]) -> bytes:
    return msgspec.json.encode(value)


def batch(data: bytes) -> ReportBatch:
    return ReportBatch(reports=(SignedReport(body=data, signature=KEY.sign(report_bytes(data))),))


def piece(data: bytes) -> SignedEvidence:
    return SignedEvidence(body=data, signature=KEY.sign(evidence_bytes(data)))


def attempt(step: Callable[[], T]) -> T | None:
    """What `step` gives, or None when it refused as it may."""
    code = ""
    try:
        return step()
    except TwinlockError as problem:
        code = problem.code
    assert code in REFUSED
    return None


def check_report(data: bytes) -> None:
    found = attempt(lambda: reports.check_batch(batch(data), "dev-1", KEY.public_pem))
    if found is None:
        return
    said = found[0].report
    assert said.device_id == "dev-1"
    assert 0 < said.seq <= SEQ_MAX
    assert math.isfinite(said.duration_s)
    assert len(said.noticed) <= limits.NOTICED_CODES_MAX
    assert all(1 <= count <= limits.NOTICED_COUNT_MAX for count in said.noticed.values())
    assert all(code.isascii() and len(code) <= 64 for code in said.noticed)


def check_evidence(data: bytes) -> None:
    found = attempt(lambda: evidence.check(piece(data), "dev-1", KEY.public_pem))
    if found is None:
        return
    assert found.said.device_id == "dev-1"
    assert len(evidence.text_of(found.said)) <= limits.EVIDENCE_TEXT_SIZE_BYTES_MAX


@given(st.dictionaries(st.sampled_from(REPORT_FIELDS), ODD, max_size=3))
def test_a_report_of_any_fields(changes: dict[str, Any]) -> None:
    check_report(body({**REPORT, **changes}))


@given(st.dictionaries(st.text("abc-9\u00e9", max_size=8), st.integers(-1, 2_000_000), max_size=40))
def test_counts_of_any_shape(noticed: dict[str, int]) -> None:
    check_report(body({**REPORT, "noticed": noticed}))


@given(st.binary(max_size=200))
def test_a_report_of_any_bytes(data: bytes) -> None:
    check_report(data)


@given(st.dictionaries(st.sampled_from(EVIDENCE_FIELDS), ODD, max_size=3))
def test_evidence_of_any_fields(changes: dict[str, Any]) -> None:
    check_evidence(body({**EVIDENCE, **changes}))


@given(st.binary(max_size=200), st.integers(0, 40), st.binary(max_size=4))
def test_evidence_whose_frame_is_damaged(text: bytes, at: int, change: bytes) -> None:
    frame = compress(text)
    frame = frame[:at] + change + frame[at + len(change) :]
    check_evidence(body({**EVIDENCE, "data": frame}))


@given(st.binary(max_size=200))
def test_evidence_of_any_bytes(data: bytes) -> None:
    check_evidence(data)
