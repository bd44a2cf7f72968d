"""A disk for QEMU over the Network Block Device protocol, on a unix socket.

Only what QEMU needs: fixed newstyle negotiation with GO, INFO and EXPORT_NAME; read, write with FUA, flush,
disconnect; simple replies. Trim and write-zeroes are not offered, so that every change of the disk is a write
with its bytes. Source: github.com/NetworkBlockDevice/nbd, doc/proto.md.
"""

from __future__ import annotations

import errno
import socket
import struct
import threading
from typing import TYPE_CHECKING, Final, Protocol

from twinlock.core.errors import TwinlockError, error
from twinlock.core.limits import MIB
from twinlock.lab.qemu.volatile import PowerCutError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

REQUEST_BYTES_MAX: Final = 32 * MIB
_OPTION_BYTES_MAX: Final = 4096
_OPTIONS_MAX: Final = 64
_MAGIC: Final = 0x4E42444D41474943  # "NBDMAGIC"
_OPTION_MAGIC: Final = 0x49484156454F5054  # "IHAVEOPT"
_OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
_REQUEST_MAGIC: Final = 0x25609513
_REPLY_MAGIC: Final = 0x67446698
_FIXED_NEWSTYLE: Final = 1
_NO_ZEROES: Final = 2
_OPT_EXPORT_NAME, _OPT_ABORT, _OPT_INFO, _OPT_GO = 1, 2, 6, 7
_REP_ACK, _REP_INFO = 1, 3
_REP_ERR_UNSUP: Final = (1 << 31) + 1
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3
_HAS_FLAGS, _SEND_FLUSH, _SEND_FUA = 1, 4, 8
_FLAGS: Final = _HAS_FLAGS | _SEND_FLUSH | _SEND_FUA
_CMD_READ, _CMD_WRITE, _CMD_DISC, _CMD_FLUSH = 0, 1, 2, 3
_CMD_FLAG_FUA: Final = 1
_REQUEST: Final = struct.Struct(">IHHQQI")


class BlockDevice(Protocol):
    """What is served. Any method raises PowerCutError once the device is dead."""

    size_bytes: int

    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: bytes, *, through: bool = False) -> None: ...
    def flush(self) -> None: ...


class _ClosedError(Exception):
    """The other end hung up, or speaks something else."""


class NbdServer:
    """Serves one device on a unix socket until `close`; each connection has a thread of its own."""

    def __init__(self, device: BlockDevice, path: Path) -> None:
        self._device = device
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(str(path))
        except OSError as problem:
            self._listener.close()
            raise error("io-error", f"socket {path}: {problem.strerror or problem}") from problem
        self._listener.listen(4)
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._workers: list[threading.Thread] = []
        self._closing = False
        self.failure: BaseException | None = None
        self._acceptor = threading.Thread(target=self._accept, name="nbd-accept", daemon=True)
        self._acceptor.start()

    def __enter__(self) -> NbdServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all connections and waits for their threads."""
        with self._lock:
            self._closing = True
            connections = list(self._connections)
        _hang_up(self._listener)
        for connection in connections:
            _hang_up(connection)
        self._acceptor.join()
        for worker in self._workers:
            worker.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            with self._lock:
                if self._closing:
                    _hang_up(connection)
                    return
                self._connections.add(connection)
            worker = threading.Thread(target=self._serve, args=(connection,), name="nbd", daemon=True)
            self._workers.append(worker)
            worker.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            _negotiate(connection, self._device.size_bytes)
            while self._request(connection):
                pass
        except (_ClosedError, PowerCutError, OSError):
            return  # a dead disk answers nothing: QEMU sees the connection end
        except Exception as problem:  # noqa: BLE001  # kept for whoever runs the machine; the thread ends
            self.failure = problem
        finally:
            with self._lock:
                self._connections.discard(connection)
            _hang_up(connection)

    def _request(self, connection: socket.socket) -> bool:
        magic, flags, command, cookie, offset, length = _REQUEST.unpack(_receive(connection, _REQUEST.size))
        if magic != _REQUEST_MAGIC or length > REQUEST_BYTES_MAX:
            raise _ClosedError
        status, data = 0, b""
        if command == _CMD_DISC:
            return False
        try:
            if command == _CMD_READ:
                data = self._device.read(offset, length)
            elif command == _CMD_WRITE:
                body = _receive(connection, length)
                self._device.write(offset, body, through=bool(flags & _CMD_FLAG_FUA))
            elif command == _CMD_FLUSH:
                self._device.flush()
            else:
                status = errno.EINVAL
        except TwinlockError:
            status = errno.EINVAL
        except OSError as problem:
            status = problem.errno or errno.EIO
        connection.sendall(struct.pack(">IIQ", _REPLY_MAGIC, status, cookie) + (b"" if status else data))
        return True


def _negotiate(connection: socket.socket, size_bytes: int) -> None:
    connection.sendall(struct.pack(">QQH", _MAGIC, _OPTION_MAGIC, _FIXED_NEWSTYLE | _NO_ZEROES))
    (client_flags,) = struct.unpack(">I", _receive(connection, 4))
    for _ in range(_OPTIONS_MAX):
        magic, option, length = struct.unpack(">QII", _receive(connection, 16))
        if magic != _OPTION_MAGIC or length > _OPTION_BYTES_MAX:
            raise _ClosedError
        _receive(connection, length)
        if option == _OPT_EXPORT_NAME:
            zeroes = b"" if client_flags & _NO_ZEROES else bytes(124)
            connection.sendall(struct.pack(">QH", size_bytes, _FLAGS) + zeroes)
            return
        if option in (_OPT_GO, _OPT_INFO):
            _option_reply(
                connection, option, _REP_INFO, struct.pack(">HQH", _INFO_EXPORT, size_bytes, _FLAGS)
            )
            sizes = struct.pack(">HIII", _INFO_BLOCK_SIZE, 512, 4096, REQUEST_BYTES_MAX)
            _option_reply(connection, option, _REP_INFO, sizes)
            _option_reply(connection, option, _REP_ACK, b"")
            if option == _OPT_GO:
                return
        elif option == _OPT_ABORT:
            _option_reply(connection, option, _REP_ACK, b"")
            raise _ClosedError
        else:
            _option_reply(connection, option, _REP_ERR_UNSUP, b"")
    raise _ClosedError


def _option_reply(connection: socket.socket, option: int, kind: int, data: bytes) -> None:
    connection.sendall(struct.pack(">QIII", _OPTION_REPLY_MAGIC, option, kind, len(data)) + data)


def _receive(connection: socket.socket, length: int) -> bytes:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view)
        if count == 0:
            raise _ClosedError
        view = view[count:]
    return bytes(data)


def _hang_up(connection: socket.socket) -> None:
    """Closes a socket, waking whoever waits on it."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        connection.close()  # it was not connected, or the other end went first
    else:
        connection.close()
