"""The files of an image, whatever file system it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twinlock.publish.delta.files import erofs, ext4, squashfs
from twinlock.publish.delta.files.model import ImageFile, ImageMap, UnreadableError
from twinlock.publish.delta.images import Image

_PARSERS: Final[tuple[tuple[str, Callable[[Image], list[ImageFile]]], ...]] = (
    ("ext4", ext4.files),
    ("erofs", erofs.files),
    ("squashfs", squashfs.files),
)


def map_files(image: Image) -> tuple[str, ImageMap]:
    """The file system's name and where its files lie; "unknown" and an empty map when none is recognised."""
    for name, parser in _PARSERS:
        try:
            return name, ImageMap(tuple(parser(image)))
        except UnreadableError:
            continue
    return "unknown", ImageMap()
