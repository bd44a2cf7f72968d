"""Compression libraries of this machine that reproduce somebody else's bytes: which, and in which version.

A squashfs block or a compressed kernel is patched in its unpacked form and compressed again, bit for bit.
That takes the very library and version that made it, so a payload names what it needs ("lz4-1.9.4") and a
device says what it has. liblz4 and libzstd are the distribution's own shared libraries, which systemd, the
package manager or the kernel's tools bring along; a device without them takes these segments from the full
payload.
"""

from __future__ import annotations

import ctypes
import zlib
from functools import cache
from typing import Final

from twinlock.core.errors import error

LZ4_HISTORY_BYTES_MAX: Final = 64 * 1024
_LZ4: Final = "liblz4.so.1"
_ZSTD: Final = "libzstd.so.1"
_POINTER: Final = ctypes.c_void_p


@cache
def _lz4() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(_LZ4)
    except OSError:
        return None
    integer = ctypes.c_int
    library.LZ4_versionString.restype = ctypes.c_char_p
    library.LZ4_decompress_safe_partial.argtypes = (_POINTER, _POINTER, integer, integer, integer)
    library.LZ4_decompress_safe_partial.restype = integer
    library.LZ4_compressBound.argtypes = (integer,)
    library.LZ4_createStreamHC.restype = _POINTER
    library.LZ4_freeStreamHC.argtypes = (_POINTER,)
    library.LZ4_resetStreamHC_fast.argtypes = (_POINTER, integer)
    library.LZ4_loadDictHC.argtypes = (_POINTER, _POINTER, integer)
    library.LZ4_compress_HC_continue.argtypes = (_POINTER, _POINTER, _POINTER, integer, integer)
    return library


@cache
def _zstd() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(_ZSTD)
    except OSError:
        return None
    size = ctypes.c_size_t
    library.ZSTD_versionString.restype = ctypes.c_char_p
    library.ZSTD_compressBound.argtypes = (size,)
    library.ZSTD_compressBound.restype = size
    library.ZSTD_compress.argtypes = (_POINTER, size, _POINTER, size, ctypes.c_int)
    library.ZSTD_compress.restype = size
    library.ZSTD_isError.argtypes = (size,)
    return library


@cache
def available() -> tuple[str, ...]:
    """What this machine can compress with, as payloads name it, sorted."""
    from twinlock.core.zstd import ZSTD_VERSION

    return tuple(sorted({*shared(), f"zstd-{ZSTD_VERSION}"}))


@cache
def shared() -> tuple[str, ...]:
    """Those of them that are not bundled with the decoder, which is not loaded for this."""
    found = {f"zlib-{zlib.ZLIB_RUNTIME_VERSION}"}
    lz4, zstd = _lz4(), _zstd()
    if lz4 is not None:
        found.add(f"lz4-{lz4.LZ4_versionString().decode()}")
    if zstd is not None:
        found.add(f"zstd-{zstd.ZSTD_versionString().decode()}")
    return tuple(sorted(found))


def need(name: str, number: int) -> None:
    """Raises CompatibilityError `delta-library` unless this machine has the library in that version."""
    if name not in available():
        raise error(
            "delta-library", f"part {number} is rebuilt by {name}; this machine has {', '.join(available())}"
        )


def _address(data: bytearray | ctypes.Array[ctypes.c_char], offset: int = 0) -> int:
    if isinstance(data, bytearray):
        data = (ctypes.c_char * len(data)).from_buffer(data)
    return ctypes.addressof(data) + offset


def lz4_unpack(packed: bytearray, size_bytes: int) -> bytearray | None:
    """The first `size_bytes` of what an LZ4 block unpacks to; None when it does not, or liblz4 is missing."""
    library = _lz4()
    if library is None:
        return None
    plain = bytearray(size_bytes)
    got = library.LZ4_decompress_safe_partial(
        _address(packed), _address(plain), len(packed), size_bytes, size_bytes
    )
    return plain if got == size_bytes else None


def lz4_pack(plain: bytearray, start: int, history: int, length: int, level: int) -> bytearray | None:
    """`length` bytes from `start` as an LZ4 block by the high compression of `level`.

    The `history` bytes before `start` (64 KiB at most) may be referred to. None when liblz4 is missing or
    fails. The history lies directly before the text, as it does when a longer text is compressed in one go.
    """
    library = _lz4()
    if library is None:
        return None
    stream = library.LZ4_createStreamHC()
    if not stream:
        return None
    try:
        library.LZ4_resetStreamHC_fast(stream, level)
        address = _address(plain)
        if history:
            library.LZ4_loadDictHC(stream, address + start - history, history)
        packed = bytearray(library.LZ4_compressBound(length))
        got = library.LZ4_compress_HC_continue(stream, address + start, _address(packed), length, len(packed))
    finally:
        library.LZ4_freeStreamHC(stream)
    if got <= 0:
        return None
    del packed[got:]
    return packed


def zlib_pack(plain: memoryview, level: int) -> bytes:
    """A zlib stream, as `compress2` makes it."""
    return zlib.compress(plain, level)


def zstd_pack(plain: memoryview, level: int, version: str) -> bytes | bytearray | None:
    """One frame by that version of libzstd, in one go; None when this machine does not have it."""
    library = _zstd()
    if library is not None and library.ZSTD_versionString().decode() == version:
        text = bytearray(plain)
        packed = bytearray(library.ZSTD_compressBound(len(text)))
        got = library.ZSTD_compress(_address(packed), len(packed), _address(text), len(text), level)
        if library.ZSTD_isError(got):
            return None
        del packed[got:]
        return packed
    return _bundled_zstd(plain, level, version)


def _bundled_zstd(plain: memoryview, level: int, version: str) -> bytes | None:
    from twinlock.core import zstd

    if version != zstd.ZSTD_VERSION:
        return None
    options: dict[int, int] = {zstd.CompressionParameter.compression_level: level}
    return zstd.compress(plain, options=options)
