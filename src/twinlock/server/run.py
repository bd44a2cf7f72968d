"""Serving until SIGTERM or SIGINT; the end comes after running requests are answered and all is written."""

from __future__ import annotations

import errno
import gc
import ipaddress
import logging
import os
import resource
import signal
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import uvicorn

from twinlock.core.errors import error
from twinlock.server.app import create_app
from twinlock.server.connections import BoundedHttp
from twinlock.server.logs import log_to_stderr

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from twinlock.server.settings import Settings

KEEP_ALIVE_S: Final = 75
STOP_WAIT_S: Final = 20
CONNECTIONS_MAX: Final = 4096
BACKLOG: Final = 1024
FILES_MAX: Final = 4 * CONNECTIONS_MAX
PORT_MAX: Final = 65_535
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

log: Final = logging.getLogger("twinlock.server")


class _Server(uvicorn.Server):
    """uvicorn's server that tells when it serves, and returns after a signal instead of dying of it."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready: Final = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if not self.should_exit:
            self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The first SIGINT or SIGTERM ends it gracefully, a second SIGINT at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(
    settings: Settings,
    host: str = "127.0.0.1",
    port: int = 8000,
    ready: Callable[[str], None] | None = None,
    *,
    login_once: str = "",
) -> None:
    """Serves until SIGTERM or SIGINT. `ready` is told the address once it is served; port 0 picks a free one.

    `login_once` is a secret that logs a browser in once, at ADDRESS/login/SECRET.

    Raises InputError for a folder or setting that is not usable, an address that cannot be listened on
    (`input-invalid`), and DeviceError for a database that cannot be opened or written.
    """
    log_to_stderr()
    check_writable(settings)
    listener = listen(host, port)
    try:
        address = address_of(listener)
        check_page(settings, listener)
        app = create_app(settings, login_once=login_once)
        app.state.start()  # what cannot be opened is told here, as an error with a code
        config = uvicorn.Config(
            app,
            http=BoundedHttp,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=STOP_WAIT_S,
            limit_concurrency=CONNECTIONS_MAX,
            backlog=BACKLOG,
        )
        raise_file_limit()
        gc.collect()
        gc.freeze()  # what was imported stays: the collector need not look at it again
        log.info("start address=%s folder=%s", address, settings.folder)
        _Server(config, lambda: None if ready is None else ready(address)).run(sockets=[listener])
        log.info("stop address=%s", address)
    finally:
        listener.close()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises InputError `input-invalid` that says what is wrong with the address."""
    if not 0 <= port <= PORT_MAX:
        raise error("input-invalid", f"{port} is no port; there are 0 to {PORT_MAX}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as problem:
        raise error("input-invalid", f"{host!r} is no address of this machine: {problem}") from problem
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as problem:
        listener.close()
        raise _unusable(host, port, problem) from problem
    return listener


def _unusable(host: str, port: int, problem: OSError) -> Exception:
    if problem.errno == errno.EADDRINUSE:
        hint = "stop the program that listens there, or choose another --port"
        return error("input-invalid", f"port {port} of {host} is in use", hint=hint)
    if problem.errno in (errno.EACCES, errno.EPERM):
        hint = "choose a --port of 1024 or more, or run it as a user that may use this one"
        return error("input-invalid", f"port {port} may not be used by this user", hint=hint)
    return error("input-invalid", f"{host} port {port} cannot be listened on: {problem.strerror}")


def raise_file_limit() -> None:
    """Each connection and download is an open file; the usual limit of 1024 is for interactive programs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_page(settings: Settings, listener: socket.socket) -> None:
    """Raises InputError `input-invalid` when the page would be open to other machines."""
    host = listener.getsockname()[0]
    if settings.page_open and not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        raise error(
            "input-invalid",
            f"the setting page_open shows the status page to everybody who reaches {host}",
            hint="set page_open = false in server.toml, or listen on 127.0.0.1",
        )


def address_of(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}"


def check_writable(settings: Settings) -> None:
    """Raises DeviceError `permission-denied` when the server could not write what it must."""
    for folder in (settings.folder, settings.payloads, settings.temporary, settings.repository):
        if not folder.is_dir():
            raise error(
                "input-missing",
                f"the folder {folder} is missing",
                hint="restore it, or make a new server with `twinlock server init`",
            )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise error("permission-denied", f"the folder {folder} cannot be written")
