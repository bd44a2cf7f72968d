"""The device protocol from the device's side: one message out, one in, every failure with its code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from twinlock.agent.http import read_all
from twinlock.agent.ports import Request
from twinlock.agent.retry import Patience, retry_after_s
from twinlock.core import limits, protocol
from twinlock.core.errors import CATALOGUE, TwinlockError, error

if TYPE_CHECKING:
    from twinlock.agent.config import NetworkConfig
    from twinlock.agent.ports import Clock, Network, Random, Response

RETRIES_MAX: Final = 3  # the timer brings the next run; a check does not wait for long

M = TypeVar("M", bound=msgspec.Struct)


class DeviceApi:
    """The server at `server`, an address without a slash at its end."""

    def __init__(
        self, network: Network, clock: Clock, random: Random, bounds: NetworkConfig, server: str
    ) -> None:
        self._network = network
        self._clock = clock
        self._random = random
        self._bounds = msgspec.structs.replace(bounds, retries=min(RETRIES_MAX, bounds.retries))
        self._server = server.rstrip("/")

    def call(self, path: str, message: msgspec.Struct, kind: type[M], token: str | None = None) -> M:
        """POSTs `message` to `path` and gives the answer; tries again a few times when the link fails.

        Every call of the protocol may be repeated. Raises TransportError, PolicyError, or what the server
        says is wrong with the message.
        """
        patience = Patience(self._clock, self._random, self._bounds)
        while True:
            try:
                return self._once(path, message, kind, token)
            except _LaterError as later:
                patience.wait(later.problem, later.wait_s)
            except TwinlockError as problem:
                patience.wait(problem)

    def _once(self, path: str, message: msgspec.Struct, kind: type[M], token: str | None) -> M:
        headers = {"content-type": "application/json", "accept": "application/json"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        url = f"{self._server}{protocol.PREFIX}/{path}"
        response = self._network.open(Request("POST", url, headers, protocol.encode(message)))
        try:
            body = read_all(response, limits.MESSAGE_SIZE_BYTES_MAX, f"the answer to {path}")
            if response.status != 200:
                raise _failure(response, body, path)
            return protocol.decode_answer(body, kind)
        finally:
            response.close()


class _LaterError(Exception):
    """The server wants to be asked again later."""

    def __init__(self, problem: TwinlockError, wait_s: float) -> None:
        super().__init__(problem.what)
        self.problem = problem
        self.wait_s = wait_s


def _failure(response: Response, body: bytes, path: str) -> Exception:
    status = response.status
    if 300 <= status < 400:
        return error("redirect-refused", f"the server redirects the request for {path}")
    what = f"the server answers {status} to {path}"
    if status in (408, 425, 429, 503):
        return _LaterError(error("server-busy", what), retry_after_s(response.headers.get("retry-after")))
    try:
        said = protocol.decode_answer(body, protocol.ErrorAnswer).error
    except TwinlockError:
        return error("server-error" if status >= 500 else "answer-malformed", what)
    if status >= 500 or said.code not in CATALOGUE:
        return error("server-error", f"{what}: {said.what[:500]} [{said.code[:40]}]")
    return error(said.code, said.what[: limits.REPORT_DETAIL_LENGTH_MAX], hint=said.hint[:500] or None)
