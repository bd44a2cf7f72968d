"""Memory of encoding: large executables are analysed one at a time, large images by fewer processes."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

from twinlock.core import limits
from twinlock.publish.delta import encode
from twinlock.publish.delta.analysing import LARGE_SIZE_BYTES, Analyst
from twinlock.publish.delta.files.model import Extent, ImageFile, ImageMap
from twinlock.publish.delta.images import Image
from twinlock.publish.delta.model import Window
from twinlock.publish.delta.pairing import Pairing


def file(path: str, size_bytes: int) -> ImageFile:
    return ImageFile(path, size_bytes, (Extent(0, 0, size_bytes),))


def test_what_is_large() -> None:
    files = [file("large", LARGE_SIZE_BYTES), file("small", LARGE_SIZE_BYTES - 1)]
    nothing = Window(cast("Image", None))
    analyst = Analyst(nothing, nothing, ImageMap(tuple(files)), Pairing(files), None)
    assert analyst.is_large("large")
    assert analyst.is_large("small\0unpacked")
    assert not analyst.is_large("small")


def test_one_large_executable_at_a_time() -> None:
    running: list[str] = []
    seen: list[str] = []

    class Result(Future[None]):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name
            running.append(name)

        def result(self, timeout: float | None = None) -> None:
            running.remove(self.name)
            seen.append(self.name)

    class Pool:
        def submit(self, _: object, name: str) -> Result:
            assert not running
            return Result(name)

        def map(self, _: object, names: list[str]) -> list[None]:
            assert not running
            seen.extend(names)
            return [None for _ in names]

    names = ["a", "large-b", "c", "large-d"]
    analyst = SimpleNamespace(names=lambda: names, is_large=lambda name: name.startswith("large"))
    workshop: Any = SimpleNamespace(analyst=analyst, executables=analyst.names)
    assert list(encode._in_pool(cast("Any", Pool()), workshop, [], 4)) == []
    assert seen == ["large-b", "large-d", "a", "c"]


def test_fewer_processes_encode_larger_images() -> None:
    sizes = (limits.MIB, limits.GIB // 2, 4 * limits.GIB, 64 * limits.GIB)
    assert [encode.jobs_max(size) for size in sizes] == [5, 5, 3, 1]
