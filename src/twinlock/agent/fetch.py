"""Ranges of one payload, over as many connections as it takes, without asking for a byte twice.

A `RangeReader` delivers the bytes of one range in order into buffers of its caller. When the link breaks, it
asks for the rest from exactly where it stopped, with If-Range so that a file that changed meanwhile is
noticed. Whoever gives up in the middle of a part can keep what came: `filled` says how much.

`Tally` counts every body byte that was received, and which of them had been received before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from twinlock.agent.ports import Request
from twinlock.agent.retry import PROGRESS_BYTES_MIN, Patience, retry_after_s
from twinlock.core import limits, protocol
from twinlock.core.errors import CATALOGUE, Kind, TwinlockError, error

if TYPE_CHECKING:
    from twinlock.agent.config import NetworkConfig
    from twinlock.agent.ports import Clock, Network, Random, Response

RENEWALS_MAX: Final = 2  # new sessions in a row without a byte in between
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)
_BUSY: Final = frozenset({408, 425, 429, 503})


@dataclass(slots=True)
class Tally:
    """Body bytes received for one assignment, over all runs."""

    fetched_bytes: int = 0
    again_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Source:
    """Where a payload is. `sha256` is hex and its strong ETag."""

    url: str
    sha256: str
    size_bytes: int

    @property
    def etag(self) -> str:
        return f'"{self.sha256}"'


class Credentials(Protocol):
    """The session's token. `renew` opens a new session; raises TransportError, PolicyError."""

    def token(self) -> str: ...

    def renew(self) -> None: ...


class _BusyError(Exception):
    """The server asks to be left alone for a while."""

    def __init__(self, problem: TwinlockError, wait_s: float) -> None:
        super().__init__(problem.what)
        self.problem = problem
        self.wait_s = wait_s


class Payload:
    """One payload on the server."""

    def __init__(
        self,
        network: Network,
        clock: Clock,
        random: Random,
        bounds: NetworkConfig,
        source: Source,
        credentials: Credentials,
        tally: Tally,
    ) -> None:
        self._network = network
        self._clock = clock
        self._random = random
        self._bounds = bounds
        self._source = source
        self._credentials = credentials
        self.tally: Final = tally

    def reader(self, start: int, end: int) -> RangeReader:
        """Reads the bytes from `start` up to `end`. Nothing is asked for before the first `fill`."""
        if not 0 <= start < end <= self._source.size_bytes:
            raise error("internal", f"bytes {start} to {end} are outside the payload")
        patience = Patience(self._clock, self._random, self._bounds)
        return RangeReader(self, patience, start, end)

    def read(self, start: int, end: int) -> bytes:
        """All bytes of a small range."""
        data = bytearray(end - start)
        reader = self.reader(start, end)
        try:
            reader.fill(memoryview(data))
        finally:
            reader.close()
        return bytes(data)

    def renew(self) -> None:
        """Opens a new session."""
        self._credentials.renew()

    def open(self, start: int, end: int) -> Response:
        """One request for the range; its answer, if that is what was asked for."""
        headers = {
            "range": f"bytes={start}-{end - 1}",
            "if-range": self._source.etag,
            "authorization": f"Bearer {self._credentials.token()}",
        }
        response = self._network.open(Request("GET", self._source.url, headers))
        try:
            self._check(response, start, end)
        except BaseException:
            response.close()
            raise
        return response

    def _check(self, response: Response, start: int, end: int) -> None:
        status, headers = response.status, response.headers
        if status not in (200, 206):
            raise _refusal(response, self._source)
        etag = headers.get("etag", self._source.etag)
        if etag != self._source.etag:
            raise error("transfer-changed", f"the payload's ETag is {etag[:80]}, not {self._source.etag}")
        length = headers.get("content-length")
        if length is None:
            raise error("answer-malformed", "the answer does not say how long it is")
        if status == 200:
            # the whole file: of use only from its start, and only the asked part of it is read
            if start != 0:
                raise error("transfer-range", "the server sends the whole payload instead of a range")
            first, last, total = 0, int(length) - 1, int(length)
        else:
            match = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
            if match is None:
                raise error("transfer-range", "the answer does not say which range it is")
            first, last, total = (int(number) for number in match.groups())
        if total != self._source.size_bytes:
            raise error("transfer-changed", f"the payload has {total} bytes, not {self._source.size_bytes}")
        if first != start or last < first or (status == 206 and last >= end):
            raise error("transfer-range", f"asked for bytes {start} to {end - 1}, got {first} to {last}")
        if int(length) > last - first + 1:
            raise error(
                "transfer-oversized", f"{length} bytes are announced for a range of {last - first + 1}"
            )
        if int(length) < last - first + 1:
            raise error("transfer-short", f"{length} bytes are announced for a range of {last - first + 1}")


class RangeReader:
    """The bytes of one range, in order. `position` is the next one, `filled` how many the last `fill` got."""

    def __init__(self, payload: Payload, patience: Patience, start: int, end: int) -> None:
        self._payload = payload
        self._patience = patience
        self._response: Response | None = None
        self._renewals = 0
        self._came = 0
        self._end = end
        self.position = start
        self.filled = 0

    def fill(self, view: memoryview) -> None:
        """Fills `view` with the next bytes, reconnecting as needed.

        Raises TransportError when patience ends, TrustError and PolicyError at once; `filled` then says how
        many bytes of `view` came.
        """
        self.filled = 0
        if self.position + len(view) > self._end:
            raise error("internal", f"byte {self.position + len(view)} is outside the range to {self._end}")
        while self.filled < len(view):
            try:
                self._receive(view[self.filled :])
            except _BusyError as busy:
                self.close()
                self._patience.wait(busy.problem, busy.wait_s)
            except TwinlockError as problem:
                self.close()
                self._recover(problem)

    def _receive(self, view: memoryview) -> None:
        if self._response is None:
            self._response = self._payload.open(self.position, self._end)
            self._came = 0
        got = self._response.read_into(view)
        if got == 0:
            if self._came < PROGRESS_BYTES_MIN:
                raise error(
                    "transfer-short", f"the payload's bytes ended at {self.position}, not {self._end}"
                )
            self.close()  # a server that serves long ranges in several answers
        self._came += got
        self.filled += got
        self.position += got
        self._payload.tally.fetched_bytes += got
        self._patience.progress(got)
        self._renewals = 0

    def _recover(self, problem: TwinlockError) -> None:
        if problem.code not in ("unauthorised", "session-expired"):
            self._patience.wait(problem)
            return
        self._renewals += 1
        if self._renewals > RENEWALS_MAX:
            raise problem
        try:
            self._payload.renew()
        except TwinlockError as failed:
            self._patience.wait(failed)

    def close(self) -> None:
        """Ends the request, if one is open."""
        if self._response is not None:
            self._response.close()
            self._response = None


def _refusal(response: Response, source: Source) -> Exception:
    """What an answer without a payload means. The server's own words are kept, its code only for policy."""
    status = response.status
    what = f"the server answers {status} to the request for a payload"
    if 300 <= status < 400:
        return error("redirect-refused", f"the server redirects the request for payload {source.sha256}")
    if status in _BUSY:
        return _BusyError(error("server-busy", what), retry_after_s(response.headers.get("retry-after")))
    if status == 416:
        total = response.headers.get("content-range", "").rpartition("/")[2]
        if total.isdecimal() and int(total) != source.size_bytes:
            return error("transfer-changed", f"the payload has {total[:20]} bytes, not {source.size_bytes}")
        return error("transfer-range", "the server refuses a range inside the payload")
    body = _error_body(response)
    if body is not None:
        spec = CATALOGUE.get(body.code)
        if status in (401, 403, 409) and spec is not None and spec.kind is Kind.POLICY:
            return error(body.code, body.what[: limits.REPORT_DETAIL_LENGTH_MAX])
        what = f"{what}: {body.what[:200]}"
    return error("unauthorised" if status == 401 else "server-error", what)


def _error_body(response: Response) -> protocol.ErrorBody | None:
    data = bytearray()
    buffer = memoryview(bytearray(4096))
    try:
        while (got := response.read_into(buffer)) and len(data) <= limits.MESSAGE_SIZE_BYTES_MAX:
            data += buffer[:got]
        return protocol.decode_answer(bytes(data), protocol.ErrorAnswer).error
    except TwinlockError:
        return None
