"""Which file of the base is the older one of a file: by path, by path without version numbers, by name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Final

from twinlock.publish.delta.files.model import ImageFile

_NUMBERS: Final = re.compile(r"\d+(?:[.\-_+~]\d+)*")
_HASHES: Final = re.compile(r"(?<![0-9a-z])[0-9a-f]{8,64}(?![0-9a-z])")
CANDIDATES_MAX: Final = 2


def unversioned(path: str) -> str:
    """The path with every version, ABI number and content hash replaced: libc.so.6 and libc.so.7 are one."""
    return _NUMBERS.sub("#", _HASHES.sub("#", path))


class Pairing:
    """Finds older files among `files`; the same files in another order give the same answers."""

    def __init__(self, files: Iterable[ImageFile]) -> None:
        self._by_path: dict[str, ImageFile] = {}
        self._by_pattern: dict[str, list[ImageFile]] = defaultdict(list)
        self._by_name: dict[str, list[ImageFile]] = defaultdict(list)
        for file in sorted(files, key=lambda file: file.path):
            self._by_path[file.path] = file
            self._by_pattern[unversioned(file.path)].append(file)
            self._by_name[unversioned(file.path.rpartition("/")[2])].append(file)

    def older(self, file: ImageFile) -> list[ImageFile]:
        """At most `CANDIDATES_MAX` files of the base, the likeliest first; none for a file without kin."""
        same = self._by_path.get(file.path)
        if same is not None:
            return [same]
        pattern = unversioned(file.path)
        found = self._by_pattern.get(pattern) or self._by_name.get(pattern.rpartition("/")[2]) or []
        ranked = sorted(found, key=lambda old: (_distance(old, file), old.path))
        return ranked[:CANDIDATES_MAX]


def _distance(old: ImageFile, new: ImageFile) -> tuple[int, int]:
    """How unlike two files seem: path components that differ, then sizes."""
    left, right = old.path.split("/"), new.path.split("/")
    differing = len(set(left) ^ set(right))
    return differing, abs(old.size_bytes - new.size_bytes)
