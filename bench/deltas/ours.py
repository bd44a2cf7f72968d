"""Our own encoder and decoder as programs to be measured.

ours.py encode OLD NEW OUT      what `twinlock release delta` does with two images
ours.py apply OLD DELTA OUT     what a device does, part by part; ends with two numbers: the peak memory
                                in KiB without the segments numbered in LATER, and with them
ours.py idle                    what both need before they begin
"""

import importlib
import os
import resource
import sys
from pathlib import Path


def encode(old: Path, new: Path, out: Path) -> None:
    from twinlock.publish.delta.encode import encode_delta

    encode_delta(old, new, out, os.cpu_count() or 1)


def apply(old: Path, delta: Path, out: Path) -> None:
    """Parts with packed blocks last, so that the memory of the others is seen apart."""
    from twinlock.core.limits import SEGMENT_SIZE_BYTES
    from twinlock.core.payload import container, parts
    from twinlock.core.payload.base import FileBase

    with old.open("rb") as old_file, delta.open("rb") as file, out.open("wb") as image:
        size = file.seek(0, 2)
        file.seek(size - container.TRAILER_SIZE_BYTES)
        trailer = container.decode_trailer(file.read())
        file.seek(size - container.TRAILER_SIZE_BYTES - trailer.index_size_bytes)
        index = container.decode_index(file.read(trailer.index_size_bytes), trailer)
        offsets = index.offsets()
        base = FileBase(old_file)
        image.truncate(index.image_size_bytes)
        later = []

        def one(number: int) -> None:
            part = index.parts[number]
            file.seek(offsets[number])
            encoded = file.read(part.length)
            parts.check_encoded(part, encoded, number)
            start = number * SEGMENT_SIZE_BYTES
            length = min(SEGMENT_SIZE_BYTES, index.image_size_bytes - start)
            data = parts.decode_part(part, encoded, length, number, base)
            image.seek(start)
            image.write(data)

        wanted = set(map(int, filter(None, os.environ.get("LATER", "").split(","))))
        for number, part in enumerate(index.parts):
            if number in wanted:
                later.append(number)
            elif not isinstance(part, parts.Zero):
                one(number)
        early_kib = peak_kib()
        for number in later:
            one(number)
    print(early_kib, peak_kib())


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
