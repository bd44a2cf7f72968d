"""Which executables of an image are worth an analysis, and making it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from twinlock.core import limits
from twinlock.publish.delta.executables import Known
from twinlock.publish.delta.fields.analysis import analyse
from twinlock.publish.delta.files.model import ImageFile, ImageMap
from twinlock.publish.delta.model import Ref, Window
from twinlock.publish.delta.pairing import Pairing
from twinlock.publish.delta.stretches import KernelCutter, unpacked_name

EXECUTABLE_SIZE_BYTES_MIN: Final = 8 * limits.KIB
EXECUTABLE_SIZE_BYTES_MAX: Final = 128 * limits.MIB
# From here on an analysis takes hundreds of MiB: eight times an executable's size.
LARGE_SIZE_BYTES: Final = 8 * limits.MIB
_MAGIC: Final = b"\x7fELF"


class Analyst:
    """Finds executables that changed, and what their addresses did."""

    def __init__(
        self, old: Window, new: Window, files: ImageMap, pairing: Pairing, cutter: KernelCutter | None
    ) -> None:
        self._old = old
        self._new = new
        self._files = {file.path: file for file in files.files}
        self._pairing = pairing
        self._cutter = cutter

    def names(self) -> list[str]:
        """Names of the image's executables that may differ from an older one, sorted."""
        return sorted(self._names())

    def is_large(self, name: str) -> bool:
        """Whether analysing it takes so much memory that only one process may do such a thing at a time."""
        file = self._files[name.partition("\0")[0]]
        return name != file.path or file.size_bytes >= LARGE_SIZE_BYTES

    def _names(self) -> Iterator[str]:
        for path, file in self._files.items():
            if not EXECUTABLE_SIZE_BYTES_MIN <= file.size_bytes <= EXECUTABLE_SIZE_BYTES_MAX:
                continue
            if self._starts(file):
                yield path
            elif self._cutter is not None and self._cutter.kernel(file) is not None:
                yield unpacked_name(file)

    def _starts(self, file: ImageFile) -> bool:
        return self._new.read(list(file.refs(0, len(_MAGIC)))) == _MAGIC

    def analyse(self, name: str) -> Known | None:
        """What is known of an executable; None when it has no older one, or is the same."""
        file = self._files[name.partition("\0")[0]]
        if name != file.path:
            return self._kernel(name, file)
        for old in self._pairing.older(file):
            before, after = _read(old, self._old), _read(file, self._new)
            if before == after:
                return None
            found = analyse(before, after)
            if found is not None:
                return Known(old.path, name, found)
        return None

    def _kernel(self, name: str, file: ImageFile) -> Known | None:
        kernel = self._cutter.kernel(file) if self._cutter is not None else None
        if kernel is None:
            return None
        before = self._old.read(kernel.older.refs(0, limits.IMAGE_SIZE_BYTES_MAX))
        found = analyse(before, kernel.plain)
        return None if found is None else Known(kernel.older.name, name, found)


def _read(file: ImageFile, image: Window) -> bytes:
    """A file's bytes, holes as zeros."""
    data = bytearray(file.size_bytes)
    for extent in file.extents:
        end = extent.file_offset + extent.length
        data[extent.file_offset : end] = image.read([Ref(None, extent.image_offset, extent.length)])
    for packed in file.packed:
        end = packed.file_offset + packed.length
        data[packed.file_offset : end] = image.read([Ref(packed.block, packed.block_offset, packed.length)])
    return bytes(data)
