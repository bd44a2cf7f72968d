"""Cutting the power between any two operations on the files of a folder, and what may be left then.

The rules are those of a journaling file system: what was flushed stays; a file that was written but not
flushed may be empty or whole; a rename or removal whose folder was not flushed may not have happened yet.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock


class PowerCutError(BaseException):
    """The machine stops here; nothing between this place and the power may run on."""


class PowerCut:
    """Stops at operation number `at`, counted from 0, on anything below `folder`."""

    def __init__(self, folder: Path, at: int, rng: random.Random) -> None:
        self.folder = folder
        self.at = at
        self.done = 0
        self.happened = False
        self._rng = rng
        self._open: dict[int, Path] = {}
        self._unflushed: set[Path] = set()
        # What the medium holds of each name whose last change was not flushed yet; None is no file.
        self._before: dict[Path, bytes | None] = {}

    @contextmanager
    def watching(self) -> Iterator[PowerCut]:
        """While this holds, operations count; the cut ends it with PowerCutError."""
        names = ("open", "write", "fsync", "replace", "unlink")
        real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in names}
        with ExitStack() as patched:
            for name in names:
                patched.enter_context(mock.patch.object(os, name, self._wrap(name, real[name])))
            yield self

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            path = self._path(name, args)
            if path is None:
                return real(*args, **kwargs)
            if self.happened or self.done == self.at:
                self.happened = True
                raise PowerCutError
            self.done += 1
            self._note(name, path, args)
            result = real(*args, **kwargs)
            if name == "open":
                self._open[result] = path
            return result

        return wrapped

    def _path(self, name: str, args: tuple[Any, ...]) -> Path | None:
        if name in ("write", "fsync"):
            return self._open.get(args[0])
        path = Path(args[0])
        return path if path.is_relative_to(self.folder) else None

    def _note(self, name: str, path: Path, args: tuple[Any, ...]) -> None:
        if name == "write":
            self._unflushed.add(path)
        elif name == "fsync" and path.is_dir():
            self._before = {one: old for one, old in self._before.items() if one.parent != path}
        elif name == "fsync":
            self._unflushed.discard(path)
        elif name == "unlink":
            self._before.setdefault(path, _content(path))
        elif name == "replace":
            goal = Path(args[1])
            self._before.setdefault(goal, _content(goal))
            if path in self._unflushed:
                self._unflushed.add(goal)

    def settle(self) -> None:
        """Leaves on the medium what a cut at this place may leave."""
        for path in sorted(self._unflushed):
            if path.exists() and self._rng.random() < 0.7:
                path.write_bytes(b"")
        for path, old in sorted(self._before.items()):
            if self._rng.random() < 0.5:
                _restore(path, old)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _restore(path: Path, old: bytes | None) -> None:
    if old is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(old)
