"""Connections: uvicorn's protocol, with the bounds that it lacks, and its refusals as JSON.

- The head of a request (its first line and headers) has at most `HEAD_SIZE_BYTES_MAX`.
- A request has come whole `REQUEST_WAIT_S` after its first byte. An upload (PUT) needs to bring only its head
  in that time; its handler watches over the rest.

One timer per connection, and only for a request that did not come in one piece: the usual poll costs nothing.
"""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from twinlock.core import limits
from twinlock.core.errors import TwinlockError, error
from twinlock.core.protocol import ErrorAnswer, ErrorBody, encode

HEAD_SIZE_BYTES_MAX: Final = 32 * limits.KIB
REQUEST_WAIT_S: Final = 30.0
_UPLOAD: Final = "PUT"
_HEAD: Final = (
    b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
)


class BoundedHttp(HttpToolsProtocol):
    """See the module docstring."""

    _in_head = False
    _is_coming = False
    _has_cycle = False
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._is_coming or self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_SIZE_BYTES_MAX:
                what = f"the request's head has more than {HEAD_SIZE_BYTES_MAX} bytes"
                self._refuse(b"431 Request Header Fields Too Large", error("request-too-large", what))
                return
        if self._timer is None:
            self._timer = self.loop.call_later(REQUEST_WAIT_S, self._late)

    def on_message_begin(self) -> None:
        self._in_head, self._is_coming, self._head_bytes = True, True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()
        self._has_cycle = True
        if self.scope["method"] == _UPLOAD:
            self._came()

    def on_message_complete(self) -> None:
        self._came()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._came()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP."""
        self._refuse(b"400 Bad Request", error("request-malformed", "this is no HTTP request"))

    def _came(self) -> None:
        """The request is here, or nobody waits for it any more."""
        self._is_coming = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        what = f"the request did not come within {REQUEST_WAIT_S:.0f} s"
        self._refuse(b"408 Request Timeout", error("transfer-stalled", what))

    def _refuse(self, status: bytes, problem: TwinlockError) -> None:
        """Ends the connection, with an answer if the application gave none; its own later one is dropped."""
        if self._may_answer():
            refused = ErrorBody(code=problem.code, what=problem.what, hint=problem.hint)
            body = encode(ErrorAnswer(error=refused))
            self.transport.write(_HEAD % (status, len(body)) + body)
        self._came()
        self.transport.close()

    def _may_answer(self) -> bool:
        """Whether an answer would belong to the request that is coming, and to no other."""
        if not self._has_cycle:
            return True
        return self.cycle.response_complete if self._in_head else not self.cycle.response_started
