"""Laws of the formats: what is written is read back; whatever else is offered is refused and nothing worse.

"Nothing worse": a TwinlockError and no other exception, in bounded time and memory, for any bytes.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.project_files import ROOT
from twinlock.core import limits, manifest, names, protocol
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import MIB
from twinlock.core.payload import container
from twinlock.core.payload.parts import Part, Zero, Zstd, decode_part
from twinlock.core.zstd import compress

NAME = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z").filter(lambda text: ".." not in text)
VERSION = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.+~-]{0,63}\Z").filter(lambda text: ".." not in text)
HASH = st.binary(min_size=32, max_size=32)
T = TypeVar("T")


@st.composite
def manifests(draw: st.DrawFn) -> manifest.Manifest:
    segments = draw(st.integers(1, 5))
    tail = draw(st.integers(1, MIB // 512)) * 512
    return manifest.Manifest(
        format="twinlock-manifest",
        format_version=1,
        product=draw(NAME),
        version=draw(VERSION),
        hardware=tuple(draw(st.lists(NAME, min_size=1, max_size=5, unique=True))),
        counter=draw(st.integers(0, limits.COUNTER_MAX)),
        image_size_bytes=(segments - 1) * MIB + tail,
        image_sha256=draw(HASH),
        segment_size_bytes=MIB,
        segments=b"".join(draw(HASH) for _ in range(segments)),
        sbom_sha256=draw(st.none() | HASH),
        notes=draw(st.text(st.characters(codec="utf-8"), max_size=50)),
    )


@st.composite
def indexes(draw: st.DrawFn) -> container.Index:
    zstd = st.builds(Zstd, st.integers(1, limits.PART_SIZE_BYTES_MAX), HASH)
    parts: list[Part] = draw(st.lists(st.builds(Zero) | zstd, min_size=1, max_size=20))
    return container.Index(draw(HASH), draw(st.integers(0, limits.IMAGE_SIZE_BYTES_MAX)), None, tuple(parts))


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` with a few bytes changed, cut out or put in."""
    result = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, max(0, len(result) - 1)))
        kind = draw(st.sampled_from(("change", "cut", "insert")))
        if kind == "change" and result:
            result[position] = draw(st.integers(0, 255))
        elif kind == "cut":
            del result[position : position + draw(st.integers(1, 20))]
        else:
            result[position:position] = draw(st.binary(max_size=20))
    return bytes(result)


def attempt(step: Callable[[], T]) -> tuple[T | None, str]:
    """What `step` gives and an empty code, or the code it is refused with. Any other exception passes."""
    try:
        return step(), ""
    except TwinlockError as problem:
        return None, problem.code


@given(manifests())
def test_a_manifest_comes_back_and_its_claims_hold(made: manifest.Manifest) -> None:
    data = manifest.encode(made)
    assert manifest.decode(data) == made
    manifest.check_claims(made.claims)
    lengths = [made.segment_length_bytes(number) for number in range(made.segment_count)]
    assert sum(lengths) == made.image_size_bytes
    assert all(0 < length <= MIB for length in lengths)


@given(st.data())
def test_a_mutated_manifest_is_refused_or_is_in_its_bounds(data: st.DataObject) -> None:
    original = manifest.encode(data.draw(manifests()))
    changed = data.draw(mutated(original))
    made, code = attempt(lambda: manifest.decode(changed))
    assert code in ("", "manifest-malformed", "format-unknown")
    if made is not None:
        manifest.check(made)
        assert manifest.decode(manifest.encode(made)) == made


@given(st.binary(max_size=300))
def test_any_bytes_are_no_manifest_and_nothing_worse(data: bytes) -> None:
    assert attempt(lambda: manifest.decode(data))[1] in ("manifest-malformed", "format-unknown")


@given(indexes())
def test_an_index_comes_back_and_its_offsets_rise(index: container.Index) -> None:
    tail = container.encode_tail(index)
    trailer = container.decode_trailer(tail[-container.TRAILER_SIZE_BYTES :])
    assert container.decode_index(tail[: -container.TRAILER_SIZE_BYTES], trailer) == index
    offsets = index.offsets()
    assert offsets == sorted(offsets)
    assert len(offsets) == len(index.parts) + 1


@given(st.data())
def test_a_mutated_tail_is_refused_or_the_same(data: st.DataObject) -> None:
    """The index is under a hash, so a change is noticed; a changed trailer cannot name another index."""
    index = data.draw(indexes())
    tail = container.encode_tail(index)
    changed = data.draw(mutated(tail))
    assume(changed != tail)

    def read() -> container.Index:
        trailer = container.decode_trailer(changed[-container.TRAILER_SIZE_BYTES :])
        end = len(changed) - container.TRAILER_SIZE_BYTES
        return container.decode_index(changed[max(0, end - trailer.index_size_bytes) : end], trailer)

    found, code = attempt(read)
    assert code in ("", "payload-malformed", "payload-index-hash", "format-unknown")
    assert found in (None, index)  # read all the same when bytes were put in front of it, where parts are


@given(st.binary(max_size=400))
def test_any_messagepack_is_no_index_and_nothing_worse(body: bytes) -> None:
    trailer = container.Trailer(len(body), hashlib.sha256(body).digest())
    index, code = attempt(lambda: container.decode_index(body, trailer))
    assert code in ("", "payload-malformed")
    assert index is None or 0 < len(index.parts) <= limits.SEGMENTS_MAX


@given(st.data())
def test_any_bytes_decode_to_the_length_asked_for_or_are_refused(data: st.DataObject) -> None:
    original = data.draw(st.binary(min_size=1, max_size=2000))
    encoded = data.draw(st.binary(max_size=300) | mutated(compress(original)))
    length_bytes = data.draw(st.sampled_from((1, len(original), 512, MIB)))
    part = Zstd(len(encoded), hashlib.sha256(encoded).digest())
    decoded, code = attempt(lambda: decode_part(part, encoded, length_bytes, 0))
    assert code in ("", "payload-malformed")
    assert decoded is None or len(decoded) == length_bytes


MESSAGES: list[dict[str, Any]] = json.loads((ROOT / "tests/vectors/protocol-v1.json").read_text())["messages"]


@given(st.data())
def test_a_mutated_message_is_refused_or_whole(data: st.DataObject) -> None:
    case = data.draw(st.sampled_from(MESSAGES))
    kind: type[msgspec.Struct] = getattr(protocol, case["type"])
    changed = data.draw(mutated(case["text"].encode()))
    message, code = attempt(lambda: protocol.decode_request(changed, kind))
    assert code in ("", "request-malformed")
    assert message is None or protocol.decode_answer(protocol.encode(message), kind) == message


@given(st.text(max_size=80) | st.text(string.printable, max_size=80))
def test_what_passes_for_a_name_is_safe_anywhere(text: str) -> None:
    for check in (names.check_name, names.check_version, names.check_device_id):
        passed, code = attempt(lambda check=check: check(text))  # type: ignore[misc]
        assert code in ("", "input-invalid")
        if passed is not None:
            assert text.isascii()
            assert text.isprintable()
            assert set(text).isdisjoint("/\\ :*?\"<>|$`'&;%#\0")
            assert ".." not in text
            assert text[0] not in ".-~"


@given(NAME, VERSION)
def test_good_names_pass(name: str, version: str) -> None:
    assert names.check_name(name) == name
    assert names.release_name(name, version) == f"{name}/{version}.manifest"
