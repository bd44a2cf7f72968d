"""Any bytes as an index or as a part of each kind: an error of ours or a result, in bounded memory, at once.

    pip install atheris && PYTHONPATH=src:. python tests/fuzz/decoder.py -max_total_time=600 -max_len=8192

is guided by what the bytes reach (https://github.com/google/atheris). The tests give `one_input` bytes of
their own, without it.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import tracemalloc
from collections.abc import Callable
from typing import Final

from twinlock.core import limits
from twinlock.core.errors import TwinlockError
from twinlock.core.payload import container, full, patch, prefix
from twinlock.core.payload.base import BytesBase
from twinlock.core.payload.parts import Part, check_part, decode_part
from twinlock.core.payload.varints import encode

BASE: Final = BytesBase(b"".join(hashlib.sha256(bytes([number])).digest() * 20 for number in range(100)))
MEMORY_BYTES_MAX: Final = 48 * limits.MIB  # what the format may ask for at once, with room
_STORED: Final = b"\0"


def _index(data: bytes) -> object:
    trailer = container.Trailer(len(data), hashlib.sha256(data).digest())
    index = container.decode_index(data, trailer)
    return [_part(part, number) for number, part in enumerate(index.parts[:4])]


def _part(part: Part, number: int) -> object:
    """Parts of an index, with no bytes of their own: copies read the base."""
    check_part(part)
    return decode_part(part, b"", limits.SEGMENT_SIZE_BYTES, number, BASE)


def _program(data: bytes) -> object:
    """A step whose program is stored, so that every byte reaches the parser; sizes come first."""
    size = int.from_bytes(data[:2], "little") + 1
    program = data[2:] or b"\0"
    step = _STORED + encode(size) + encode(len(program)) + encode(len(program)) + program
    return patch.decode(step, size, 0, BASE)


KINDS: Final[tuple[Callable[[bytes], object], ...]] = (
    _index,
    _program,
    lambda data: patch.decode(data, 5000, 0, BASE),
    lambda data: prefix.decode(data, 5000, 0, BASE),
    lambda data: full.decode(data, 5000, 0),
    lambda data: container.decode_trailer(data[: container.TRAILER_SIZE_BYTES]),
)


def one_input(data: bytes) -> str:
    """What comes of some bytes: "result", or the code of an error of ours. Anything else is raised."""
    kind = KINDS[data[0] % len(KINDS)] if data else KINDS[0]
    try:
        kind(data[1:])
    except TwinlockError as problem:
        return problem.code
    return "result"


def measured(data: bytes) -> str:
    """The same, and an error when it took more memory than a decoder may."""
    tracemalloc.reset_peak()
    found = one_input(data)
    peak = tracemalloc.get_traced_memory()[1]
    if peak > MEMORY_BYTES_MAX:
        raise MemoryError(f"{peak} bytes for {data[:40]!r}")
    return found


def main() -> None:
    atheris = importlib.import_module("atheris")
    for module in [name for name in sys.modules if name.startswith("twinlock.core.payload")]:
        for name, function in list(vars(sys.modules[module]).items()):
            if hasattr(function, "__code__") and function.__module__ == module:
                setattr(sys.modules[module], name, atheris.instrument_func(function))
    tracemalloc.start()
    atheris.Setup(sys.argv, measured)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
