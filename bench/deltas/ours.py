"""Our own encoder and decoder as programs to be measured.

ours.py encode OLD NEW OUT      what `twinlock release delta` does with two images
ours.py apply OLD DELTA OUT     what a device does, part by part, hashing each before and each segment after;
                                the segments numbered in LATER come last. Ends with a line of numbers: peak
                                memory in KiB without these and with them, CPU seconds without these, of
                                these, and of packing again (which both have in them)
ours.py idle                    what both need before they begin
"""

import hashlib
import importlib
import os
import resource
import sys
import time
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO


def encode(old: Path, new: Path, out: Path) -> None:
    from twinlock.publish.delta.encode import encode_delta

    encode_delta(old, new, out, os.cpu_count() or 1)


class Applying:
    """A delta being applied: open files, and what packing again took."""

    def __init__(self, old: BufferedReader, delta: BinaryIO, image: BinaryIO) -> None:
        from twinlock.core.payload import container, patch
        from twinlock.core.payload.base import FileBase

        self.delta, self.image = delta, image
        size = delta.seek(0, 2)
        delta.seek(size - container.TRAILER_SIZE_BYTES)
        trailer = container.decode_trailer(delta.read())
        delta.seek(size - container.TRAILER_SIZE_BYTES - trailer.index_size_bytes)
        self.index = container.decode_index(delta.read(trailer.index_size_bytes), trailer)
        self.offsets = self.index.offsets()
        self.base = FileBase(old)
        self.packing_cpu_s = 0.0
        repack = vars(patch)["repack"]

        def timed(*args: Any) -> bytearray:
            started = time.process_time()
            packed: bytearray = repack(*args)
            self.packing_cpu_s += time.process_time() - started
            return packed

        setattr(patch, "repack", timed)  # noqa: B010 - measured from outside

    def one(self, number: int) -> None:
        """Fetches, checks, decodes, hashes and writes a segment; zeros are not written, as on a new image."""
        from twinlock.core.limits import SEGMENT_SIZE_BYTES
        from twinlock.core.payload import parts

        part = self.index.parts[number]
        if isinstance(part, parts.Zero):
            return
        self.delta.seek(self.offsets[number])
        encoded = self.delta.read(part.length)
        parts.check_encoded(part, encoded, number)
        start = number * SEGMENT_SIZE_BYTES
        length = min(SEGMENT_SIZE_BYTES, self.index.image_size_bytes - start)
        data = parts.decode_part(part, encoded, length, number, self.base)
        hashlib.sha256(data).digest()  # a device compares it with the signed one; here, the image is compared
        self.image.seek(start)
        self.image.write(data)


def apply(old: Path, delta: Path, out: Path) -> None:
    """Segments of LATER last, so that the memory and CPU of the others are seen apart."""
    from twinlock.core.payload.heap import keep_free_memory

    wanted = set(map(int, filter(None, os.environ.get("LATER", "").split(","))))
    keep_free_memory()  # as the agent does
    with old.open("rb") as old_file, delta.open("rb") as file, out.open("wb") as image:
        applying = Applying(old_file, file, image)
        image.truncate(applying.index.image_size_bytes)
        numbers = range(len(applying.index.parts))
        for number in numbers:
            if number not in wanted:
                applying.one(number)
        early_kib, early_cpu_s = peak_kib(), time.process_time()
        for number in numbers:
            if number in wanted:
                applying.one(number)
        late_cpu_s = time.process_time() - early_cpu_s
    cpu_s = f"{early_cpu_s:.2f} {late_cpu_s:.2f} {applying.packing_cpu_s:.2f}"
    print(early_kib, peak_kib(), cpu_s)


def idle() -> None:
    """Has the decoder's modules and libraries, and decodes nothing: the interpreter's own memory."""
    for name in ("lzma", "twinlock.core.payload.container", "twinlock.core.payload.parts"):
        importlib.import_module(name)
    importlib.import_module("twinlock.core.payload.libraries").available()


def peak_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    paths = list(map(Path, sys.argv[2:]))
    if sys.argv[1] == "encode":
        encode(*paths)
    elif sys.argv[1] == "apply":
        apply(*paths)
    else:
        idle()


if __name__ == "__main__":
    main()
