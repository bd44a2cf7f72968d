"""Laws of packing: any image, at any level, with any number of threads, comes back; holes are zeros."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.publish.tools import files_under, request_for
from twinlock.core.limits import KIB, MIB
from twinlock.core.payload.parts import check_encoded, decode_part
from twinlock.publish.encode import LEVEL_MAX, LEVEL_MIN, encode_segment
from twinlock.publish.folder import read_release
from twinlock.publish.pack import pack
from twinlock.publish.payload_file import PayloadFile

# Runs of (kind, sectors): what an image is made of.
RUNS = st.lists(
    st.tuples(st.sampled_from(("hole", "zeros", "text", "noise")), st.integers(1, 3000)),
    min_size=1,
    max_size=6,
)


def write(path: Path, runs: list[tuple[str, int]], *, sparse: bool) -> None:
    with path.open("wb") as file:
        for number, (kind, sectors) in enumerate(runs):
            size_bytes = 512 * sectors
            if kind == "hole" and sparse:
                file.seek(size_bytes, 1)
            elif kind in ("hole", "zeros"):
                file.write(bytes(size_bytes))
            elif kind == "text":
                file.write((b"%d twinlock " % number * size_bytes)[:size_bytes])
            else:
                file.write(hashlib.shake_128(b"%d" % number).digest(size_bytes))
        file.truncate(file.tell())


@settings(max_examples=25)
@given(RUNS, st.integers(1, 5), st.integers(LEVEL_MIN, 6))
def test_any_image_comes_back_and_holes_are_zeros(runs: list[tuple[str, int]], jobs: int, level: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "sparse", runs, sparse=True)
        write(folder / "full", runs, sparse=False)
        assert (folder / "sparse").read_bytes() == (folder / "full").read_bytes()
        for image, threads in (("sparse", jobs), ("full", 1)):
            request = request_for(folder / image, folder / f"out-{image}")
            pack(replace(request, jobs=threads, level=level))
        assert files_under(folder / "out-sparse") == files_under(folder / "out-full")
        release = read_release(folder / "out-full")
        with PayloadFile(release.payload_path(release.record.payloads[0])) as file:
            file.prove(release.manifest)
            file.check_itself()
        assert release.manifest.image_sha256 == hashlib.sha256((folder / "full").read_bytes()).digest()


@settings(max_examples=30)
@given(
    st.binary(min_size=1, max_size=64 * KIB),
    st.integers(1, 40),
    st.sampled_from((LEVEL_MIN, 5, 12, LEVEL_MAX)),
)
def test_any_segment_comes_back_and_twice_the_same(piece: bytes, times: int, level: int) -> None:
    data = (piece * times)[:MIB]
    first, second = encode_segment(data, 0, level), encode_segment(data, 0, level)
    assert first == second
    check_encoded(first.part, first.data, 0)
    assert decode_part(first.part, first.data, len(data), 0) == data
    assert first.sha256 == hashlib.sha256(data).digest()
