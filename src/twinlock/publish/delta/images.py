"""Bytes of an image by slices, read as they are needed: a 4 GiB pair must not count as 8 GiB of memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from twinlock.core import limits
from twinlock.core.durable import os_errors
from twinlock.core.errors import error

_PAGE_SIZE_BYTES: Final = 64 * limits.KIB
_PAGES_MAX: Final = 256  # 16 MiB


class Image:
    """An open image, read like `bytes`: `image[start:end]`, `len(image)`. Close it, or use it in a `with`.

    Small slices come from pages that are kept, so parsers may read a few bytes at a time. Raises InputError
    `input-missing`, `input-unreadable`, `image-empty`, `image-unaligned`, `input-too-large`.
    """

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        with os_errors(f"image {path}"):
            self._fd: Final = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with os_errors(f"image {path}"):
                self._size: Final = os.lseek(self._fd, 0, os.SEEK_END)
            _check_size(path, self._size)
        except BaseException:
            os.close(self._fd)
            raise
        self._pages: dict[int, bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, where: slice) -> bytes:
        start, end, step = where.indices(self._size)
        if step != 1:
            raise ValueError(where)
        if end - start > _PAGE_SIZE_BYTES:
            return self._read(start, end - start)
        first = start // _PAGE_SIZE_BYTES
        inside = start - first * _PAGE_SIZE_BYTES
        data = self._page(first)[inside : inside + max(end - start, 0)]
        if len(data) < end - start:
            data += self._page(first + 1)[: end - start - len(data)]
        return data

    def read_into(self, into: memoryview, offset: int) -> int:
        """As `core.payload.base.Base` has it."""
        data = self[offset : offset + len(into)]
        into[: len(data)] = data
        return len(data)

    def chunks(self) -> Iterator[bytes]:
        """All of the image in pieces of 1 MiB, past the pages that are kept."""
        for start in range(0, self._size, limits.MIB):
            yield self._read(start, min(limits.MIB, self._size - start))

    def _page(self, number: int) -> bytes:
        page = self._pages.pop(number, None)
        if page is None:
            page = self._read(number * _PAGE_SIZE_BYTES, _PAGE_SIZE_BYTES)
        self._pages[number] = page  # the newest is last
        if len(self._pages) > _PAGES_MAX:
            del self._pages[next(iter(self._pages))]
        return page

    def _read(self, start: int, length: int) -> bytes:
        """What there is of these bytes; a file that became shorter is `image-changed`."""
        wanted = max(min(length, self._size - start), 0)
        parts = []
        while wanted:
            with os_errors(f"image {self.path}"):
                data = os.pread(self._fd, wanted, start)
            if not data:
                raise error("image-changed", f"{self.path} became shorter while it was read")
            parts.append(data)
            start, wanted = start + len(data), wanted - len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _check_size(path: Path, size_bytes: int) -> None:
    if not size_bytes:
        raise error("image-empty", f"image {path} has no bytes")
    if size_bytes % 512:
        raise error("image-unaligned", f"image {path} has {size_bytes} bytes")
    if size_bytes > limits.IMAGE_SIZE_BYTES_MAX:
        raise error("input-too-large", f"image {path} has {size_bytes} bytes")
