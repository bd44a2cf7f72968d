"""Taking reports: each is checked alone, a batch is kept whole or refused whole.

| report                                           | then                                               |
|--------------------------------------------------|----------------------------------------------------|
| wrong signature, other device's id, out of bounds| the batch is refused, nothing is kept              |
| `seq` known, same body                           | durable already: acknowledged again                |
| `seq` known, another body                        | the batch is refused with `conflict`, and noted    |
| `seq` new, in whatever order                     | kept, folded into its assignment                   |
| names no assignment, or one that is not known    | kept as history                                    |
| names another device's assignment                | kept, noted; that assignment stays as it is        |
| a second outcome that contradicts the first      | kept, noted; see `state` for which one counts      |
| counts what the device refused                   | kept, noted by code                                |
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from twinlock.core import limits
from twinlock.core.device_key import DevicePublicKey, report_bytes
from twinlock.core.errors import CATALOGUE, TwinlockError, error
from twinlock.core.names import RECOVERY, SLOTS, check_name, check_version
from twinlock.core.protocol import Report, ReportBatch
from twinlock.server.devices.model import (
    INDICATOR_CONTRADICTION,
    INDICATOR_FOREIGN,
    INDICATOR_NOTICED,
    INDICATOR_REPORT,
)
from twinlock.server.rollouts.model import REPORTS_KEPT_PER_DEVICE, SEQ_MAX, CheckedReport
from twinlock.server.rollouts.state import contradicts, fold

if TYPE_CHECKING:
    from twinlock.server.ports import Transaction

NONCE_LENGTH_MAX: Final = 64
CODE_LENGTH_MAX: Final = 64
ASSIGNMENT_ID_LENGTH_MAX: Final = limits.DEVICE_ID_LENGTH_MAX + 24


@dataclass(frozen=True, slots=True)
class Recorded:
    """The `seq` of every report that is durable now, or the refusal to be raised once it is noted."""

    durable: tuple[int, ...]
    refused: TwinlockError | None = None


def check_batch(batch: ReportBatch, device_id: str, public_key: str) -> tuple[CheckedReport, ...]:
    """The reports of a batch, each signed by this device's key and within its bounds.

    Raises TrustError `signature-invalid`, InputError `request-malformed`, `request-too-large`.
    """
    if not 1 <= len(batch.reports) <= limits.REPORTS_PER_BATCH_MAX:
        raise error("request-malformed", f"a batch holds 1 to {limits.REPORTS_PER_BATCH_MAX} reports")
    key = DevicePublicKey(public_key)
    checked = []
    for number, signed in enumerate(batch.reports):
        if len(signed.body) > limits.REPORT_SIZE_BYTES_MAX:
            raise error(
                "request-too-large", f"report {number} has more than {limits.REPORT_SIZE_BYTES_MAX} bytes"
            )
        key.verify(signed.signature, report_bytes(signed.body), f"report {number}")
        report = _read(signed.body, number)
        if report.device_id != device_id:
            raise error("request-malformed", f"report {number} is of another device than its session")
        _check_bounds(report)
        digest = hashlib.sha256(signed.body).hexdigest()
        checked.append(CheckedReport(report, signed.body, signed.signature, digest))
    return tuple(checked)


def _read(body: bytes, number: int) -> Report:
    try:
        return msgspec.json.decode(body, type=Report, strict=True)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise error("request-malformed", f"report {number} does not parse: {problem}") from problem


def _check_bounds(report: Report) -> None:
    try:
        if report.product:
            check_name(report.product, "product")
        if report.version:
            check_version(report.version)
    except TwinlockError as problem:
        raise error("request-malformed", f"report {report.seq}: {problem.what}") from problem
    known_code = not report.code or report.code in CATALOGUE
    rules = (
        (0 < report.seq <= SEQ_MAX, "seq is out of bounds"),
        (1 <= len(report.nonce) <= NONCE_LENGTH_MAX, "the nonce's length is out of bounds"),
        (len(report.assignment_id) <= ASSIGNMENT_ID_LENGTH_MAX, "the assignment's id is too long"),
        (report.slot in (*SLOTS, RECOVERY, ""), "it names no slot"),
        (report.image_sha256 is None or len(report.image_sha256) == 32, "the image hash is not 32 bytes"),
        (len(report.code) <= CODE_LENGTH_MAX, "the code is too long"),
        (known_code or report.code.replace("-", "").isalnum(), "the code has characters that no code has"),
        (len(report.detail) <= limits.REPORT_DETAIL_LENGTH_MAX, "the detail is too long"),
        (0 <= report.bytes_fetched <= SEQ_MAX, "bytes_fetched is out of bounds"),
        (0 <= report.bytes_again <= SEQ_MAX, "bytes_again is out of bounds"),
        (math.isfinite(report.duration_s) and 0 <= report.duration_s <= 1e9, "duration_s is out of bounds"),
        (0 <= report.time_s <= 1 << 40, "time_s is out of bounds"),
        (len(report.noticed) <= limits.NOTICED_CODES_MAX, "it counts too many codes"),
        (all(map(_is_code, report.noticed)), "a counted code is none"),
        (
            all(1 <= count <= limits.NOTICED_COUNT_MAX for count in report.noticed.values()),
            "a count is out of bounds",
        ),
    )
    for holds, what in rules:
        if not holds:
            raise error("request-malformed", f"report {report.seq}: {what}")


def record(
    transaction: Transaction, device_id: str, reports: Sequence[CheckedReport], now_ms: int
) -> Recorded:
    """Keeps the reports and moves their assignments on; see the table above."""
    transaction.devices.get(device_id, lock=True)
    floor = transaction.reports.floor(device_id)
    fresh: dict[int, CheckedReport] = {}
    for one in reports:
        seq = one.report.seq
        kept = transaction.reports.body_sha256(device_id, seq)
        if kept is None and seq in fresh:
            kept = fresh[seq].body_sha256
        if kept is not None and kept != one.body_sha256:
            detail = f"another report with seq {seq} was kept before"
            transaction.devices.note(device_id, INDICATOR_REPORT, str(seq), detail, now_ms)
            return Recorded((), error("conflict", f"{device_id}: {detail}; two devices may share this key"))
        if kept is None and seq > floor:
            fresh[seq] = one
    for one in fresh.values():
        transaction.reports.add(one, now_ms)
        _note_refusals(transaction, device_id, one.report, now_ms)
        _advance(transaction, device_id, one.report, now_ms)
    if fresh:
        transaction.reports.prune(device_id, REPORTS_KEPT_PER_DEVICE)
    return Recorded(tuple(one.report.seq for one in reports))


def _is_code(text: str) -> bool:
    plain = text.replace("-", "")
    return len(text) <= CODE_LENGTH_MAX and plain.isascii() and plain.isalnum()


def _note_refusals(transaction: Transaction, device_id: str, report: Report, now_ms: int) -> None:
    """What the device counted of attacks on itself; a report that is known already is not here again."""
    for code, times in sorted(report.noticed.items()):
        detail = "the device refused what it was offered with this code"
        transaction.devices.note(device_id, INDICATOR_NOTICED, code, detail, now_ms, times)


def _advance(transaction: Transaction, device_id: str, report: Report, now_ms: int) -> None:
    if not report.assignment_id:
        return
    found = transaction.rollouts.summary(report.assignment_id)
    if found is None:
        return
    owner, summary = found
    seq = report.seq
    if owner != device_id:
        detail = f"report {seq} names assignment {report.assignment_id}"
        transaction.devices.note(device_id, INDICATOR_FOREIGN, str(seq), detail, now_ms)
        return
    if contradicts(summary, report.state, seq):
        detail = f"report {seq} says {report.state}; report {summary.first_seq} said {summary.first_outcome}"
        transaction.devices.note(device_id, INDICATOR_CONTRADICTION, str(seq), detail, now_ms)
    moved = fold(summary, report.state, seq)
    if moved != summary:
        transaction.rollouts.save(report.assignment_id, moved, now_ms)
