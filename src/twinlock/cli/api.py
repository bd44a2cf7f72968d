"""The operator API as commands use it: one request, one bounded answer, every failure with its code.

The token goes into one header and nowhere else: no message, log or representation holds it. Redirects are
not followed (a token must not travel to another host), and plain HTTP is for this machine only.
"""

from __future__ import annotations

import functools
import inspect
import ipaddress
import json
import os
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final
from urllib.parse import quote, urlsplit

import msgspec
import typer
import urllib3
from urllib3.exceptions import HTTPError, ReadTimeoutError

from twinlock.core import limits
from twinlock.core.durable import os_errors, read_bounded
from twinlock.core.errors import CATALOGUE, TwinlockError, error
from twinlock.core.protocol import ErrorAnswer

BASE: Final = "/api/v1"
ANSWER_SIZE_BYTES_MAX: Final = 16 * limits.MIB
TOKEN_SIZE_BYTES_MAX: Final = 4 * limits.KIB
CA_FILE_SIZE_BYTES_MAX: Final = 4 * limits.MIB
CONNECT_WAIT_S: Final = 10.0
ANSWER_WAIT_S: Final = 60.0  # of silence; the server hashes a whole payload before it answers an upload
ANSWER_TOTAL_S: Final = 300.0  # for all of an answer, however it drips
CHUNK_SIZE_BYTES: Final = 256 * limits.KIB

ServerOption = Annotated[
    str,
    typer.Option(
        "--server", envvar="TWINLOCK_SERVER", help="Address of the server.", metavar="URL", show_default=True
    ),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--token",
        envvar="TWINLOCK_TOKEN",
        show_default=False,
        help="The operator's token. Other users of this machine can see it while the command runs: "
        "prefer --token-file or the variable.",
    ),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file", envvar="TWINLOCK_TOKEN_FILE", show_default=False, help="File with the token."
    ),
]
CaFileOption = Annotated[
    Path | None,
    typer.Option(
        "--ca-file",
        envvar="TWINLOCK_CA_FILE",
        show_default=False,
        help="Certificates (PEM) to trust for the server instead of the system's.",
    ),
]
SERVER_DEFAULT: Final = "http://127.0.0.1:8000"
AS_JSON: Final = "as_json"
_CONNECTION: Final = tuple(
    inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)
    for name, kind, default in (
        ("server", ServerOption, SERVER_DEFAULT),
        ("token", TokenOption, None),
        ("token_file", TokenFileOption, None),
        ("ca_file", CaFileOption, None),
    )
)


def connect(
    server: str, token: str | None, token_file: Path | None = None, ca_file: Path | None = None
) -> Api:
    """The client for what `--server`, `--token`, `--token-file` and `--ca-file` say.

    An option counts more than a variable, whichever of the two names the token. Raises InputError
    `input-invalid` for an address that is no http(s) URL, and when no token is given.
    """
    if token_file is not None and (token is None or _from_variables(token, token_file)):
        data = read_bounded(token_file, TOKEN_SIZE_BYTES_MAX, "token file", pipes=True)
        token = data.decode("utf-8", "replace").strip()
    if not token:
        raise error(
            "input-invalid",
            "no operator token is given",
            hint="use --token-file, or set TWINLOCK_TOKEN; `twinlock server init` printed the token",
        )
    if not token.isascii() or not token.isprintable() or " " in token:
        raise error("input-invalid", "the operator token has characters that no token has")
    if ca_file is not None:
        _check_certificates(ca_file)
    return Api(server, token, ca_file=ca_file)


def with_client(command: Callable[..., None]) -> Callable[..., None]:
    """The command with `--server`, `--token`, `--token-file` and `--ca-file` in place of its first parameter.

    That one, `client`, is what `connect` makes of them; the four stand before `--json`.
    """
    known = inspect.signature(command, eval_str=True)
    own = [one for name, one in known.parameters.items() if name != "client"]
    before = [one for one in own if one.name != AS_JSON]
    parameters = [*before, *_CONNECTION, *own[len(before) :]]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(connect(**{one.name: given.pop(one.name) for one in _CONNECTION}), **given)

    run.__signature__ = known.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters} | {"return": None}
    return run


def _from_variables(token: str, token_file: Path) -> bool:
    """Whether the token comes from its variable while the file was named on the command line."""
    variables = os.environ.get("TWINLOCK_TOKEN"), os.environ.get("TWINLOCK_TOKEN_FILE")
    return token == variables[0] and str(token_file) != variables[1]


def _check_certificates(path: Path) -> None:
    data = read_bounded(path, CA_FILE_SIZE_BYTES_MAX, "certificate file")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=data.decode("ascii"))
    except (ssl.SSLError, ValueError) as problem:
        raise error("input-wrong-type", f"{path} holds no certificates in PEM form") from problem


def check_address(server: str) -> str:
    """`server` without a last slash, if a token may be sent there. Raises InputError `input-invalid`."""
    try:
        parts = urlsplit(server)
        port = parts.port
    except ValueError as problem:
        raise error("input-invalid", f"the server's address {server!r} is no URL: {problem}") from problem
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise error(
            "input-invalid",
            f"the server's address {server!r} is no URL of a server",
            hint=f"give it like {SERVER_DEFAULT} or https://updates.example.org",
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise error("input-invalid", f"the server's address {parts.hostname!r} may hold host and port only")
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise error(
            "input-invalid",
            f"plain http to {parts.hostname!r} would show the token to the network",
            hint="use https, or a tunnel that ends on this machine (http://127.0.0.1:PORT)",
        )
    return server.rstrip("/")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Answer(dict[str, Any]):
    """An object of an answer. A field that is not there is the server's fault, not ours."""

    def __missing__(self, name: str) -> Any:
        raise error("answer-malformed", f"the server's answer has no field {name!r}")


class Api:
    """One server's operator API. Raises TwinlockError only: the server's own code where it gives one."""

    def __init__(
        self,
        server: str,
        token: str,
        *,
        ca_file: Path | None = None,
        connect_wait_s: float = CONNECT_WAIT_S,
        answer_wait_s: float = ANSWER_WAIT_S,
        total_s: float = ANSWER_TOTAL_S,
    ) -> None:
        self.server: Final = check_address(server)
        self._headers: Final = {"Authorization": f"Bearer {token}", "User-Agent": "twinlock"}
        self._total_s: Final = total_s
        self._pool: Final = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=connect_wait_s, read=answer_wait_s),
            retries=False,
            blocksize=CHUNK_SIZE_BYTES,
            ca_certs=None if ca_file is None else str(ca_file),
        )

    def get(self, path: str, query: Mapping[str, str | int | None] | None = None) -> Answer:
        """The JSON object that answers GET. `path` is below `/api/v1`; query values of None are left out."""
        fields = {name: str(value) for name, value in (query or {}).items() if value is not None}
        return self._json("GET", path, fields=fields)

    def post(self, path: str, body: Any = None) -> Answer:
        """The JSON object that answers POST with `body` as JSON."""
        data = msgspec.json.encode({} if body is None else body)
        return self._json("POST", path, body=data, headers={"Content-Type": "application/json"})

    def payload_size_bytes(self, sha256: str) -> int | None:
        """How many bytes of this payload the server holds, or None when it does not know it."""
        answer = self._send("HEAD", f"/payloads/{sha256}")
        try:
            if answer.status == 404:
                return None
            if answer.status != 200:
                raise self._failure(answer)
            length = answer.headers.get("Content-Length", "")
        finally:
            answer.drain_conn()  # there is no body, but only its end lets go of a connection that ends here
            answer.release_conn()
        if not length.isdecimal():
            raise error("answer-malformed", f"{self.server} does not say how large payload {sha256} is")
        return int(length)

    def put_payload(
        self, sha256: str, file: BinaryIO, size_bytes: int, advance: Callable[[int], None]
    ) -> bool:
        """Uploads a payload; True when it was new to the server. `advance` is told each chunk's bytes."""
        answer = self._send(
            "PUT",
            f"/payloads/{sha256}",
            body=_Chunks(file, advance),
            headers={"Content-Length": str(size_bytes), "Content-Type": "application/octet-stream"},
        )
        self._decode(answer)
        return answer.status == 201

    def _json(self, method: str, path: str, **request: Any) -> Answer:
        return self._decode(self._send(method, path, **request))

    def _send(self, method: str, path: str, **request: Any) -> urllib3.BaseHTTPResponse:
        headers = {**self._headers, **request.pop("headers", {})}
        url = f"{self.server}{BASE}{quote(path)}"
        try:
            answer = self._pool.request(
                method, url, headers=headers, redirect=False, preload_content=False, **request
            )
        except HTTPError as problem:
            raise _transport(problem, self.server) from problem
        if 300 <= answer.status < 400:
            answer.close()
            raise error("redirect-refused", f"{self.server} redirects to another address")
        return answer

    def _decode(self, answer: urllib3.BaseHTTPResponse) -> Answer:
        if answer.status >= 400:
            raise self._failure(answer)
        data = self._body(answer)
        if not data:
            return Answer()
        try:
            value = json.loads(data, object_hook=Answer)
        except (ValueError, RecursionError) as problem:
            raise error(
                "answer-malformed", f"{self.server} does not answer with JSON: {problem}"
            ) from problem
        if not isinstance(value, Answer):
            raise error("answer-malformed", f"{self.server} does not answer with a JSON object")
        return value

    def _body(self, answer: urllib3.BaseHTTPResponse) -> bytes:
        """The whole body as it was sent, within the bounds of size and time."""
        body = bytearray()
        deadline = time.monotonic() + self._total_s
        try:
            while piece := answer.read1(CHUNK_SIZE_BYTES, decode_content=False):
                body += piece
                if len(body) > ANSWER_SIZE_BYTES_MAX:
                    raise error(
                        "answer-malformed",
                        f"{self.server} answers with more than {ANSWER_SIZE_BYTES_MAX} bytes",
                    )
                if time.monotonic() > deadline:
                    raise error("transfer-stalled", f"{self.server} took more than {self._total_s:.0f} s")
        except HTTPError as problem:
            raise _transport(problem, self.server) from problem
        except TwinlockError:
            answer.close()
            raise
        answer.release_conn()
        return bytes(body)

    def _failure(self, answer: urllib3.BaseHTTPResponse) -> TwinlockError:
        """The server's own error where it gives one that we know, else what its status says."""
        data = self._body(answer)
        try:
            said = msgspec.json.decode(data, type=ErrorAnswer).error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return _by_status(answer.status, self.server)
        if said.code not in CATALOGUE:
            return error("server-error", f"{self.server}: {said.what} [{said.code}]", hint=said.hint or None)
        return error(said.code, said.what, hint=said.hint or None)


class _Chunks:
    """A file as an upload's body: read in chunks, each told to `advance`. Constant memory."""

    def __init__(self, file: BinaryIO, advance: Callable[[int], None]) -> None:
        self._file = file
        self._advance = advance

    def read(self, size_bytes: int = -1) -> bytes:
        with os_errors("the payload"):  # else it would pass for a fault of the network
            data = self._file.read(size_bytes)
        self._advance(len(data))
        return data


def _by_status(status: int, server: str) -> TwinlockError:
    if status == 401:
        return error("unauthorised", f"{server} does not accept the token")
    if status in (502, 503, 504, 429):
        return error("server-busy", f"{server} answers with status {status}")
    if status >= 500:
        return error("server-error", f"{server} answers with status {status}")
    return error("answer-malformed", f"{server} answers with status {status}, and not as a Twinlock server")


def _transport(problem: HTTPError, server: str) -> TwinlockError:
    """Connection refused, names that do not resolve, cuts and silence; see the hints in the catalogue."""
    if isinstance(problem, ReadTimeoutError):
        return error("transfer-stalled", f"{server} did not answer in time")
    if isinstance(problem, urllib3.exceptions.ProtocolError):
        return error("connection-lost", f"the connection to {server} broke: {_cause(problem)}")
    return error("server-unreachable", f"{server} cannot be reached: {_cause(problem)}")


def _cause(problem: BaseException) -> str:
    """The innermost reason, without the object addresses that urllib3's texts carry."""
    inner: BaseException = problem
    while inner.__cause__ is not None or inner.__context__ is not None:
        inner = inner.__cause__ or inner.__context__ or inner
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return f"{type(inner).__name__}: {inner}"
