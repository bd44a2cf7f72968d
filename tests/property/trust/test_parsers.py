"""Laws of the readers of untrusted bytes: one meaning, one canonical form, else a refusal."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from datetime import timedelta
from functools import cache, partial
from typing import Any, TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.formats import encode_canonical
from tuf.api.metadata import Root, Snapshot, Targets, Timestamp

from tests.conformance.memory import MemoryStore, client
from tests.conformance.repository import NOW, TOP, Repository
from twinlock.core import limits
from twinlock.core.errors import TrustError, TwinlockError
from twinlock.core.trust import canonical, director, strict
from twinlock.core.trust.metadata import read

T = TypeVar("T")

TEXTS = st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
KINDS: dict[str, Any] = {"root": Root, "timestamp": Timestamp, "snapshot": Snapshot, "targets": Targets}


@given(VALUES)
def test_the_canonical_form_is_the_signing_library_s(value: Any) -> None:
    assert canonical.encode(value) == str(encode_canonical(value)).encode("utf-8")


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_what_is_read_is_what_was_written(value: dict[str, Any]) -> None:
    for ascii_only in (True, False):
        data = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8")
        read_back, code = attempt(partial(strict.load, data, len(data), "it"))
        assert read_back == value if code is None else not in_normal_form(value)


def in_normal_form(value: Any) -> bool:
    """Whether every text in it is NFC, and every number one that metadata may hold."""
    text = json.dumps(value, ensure_ascii=False)
    longest = max((len(number) for number in re.findall(r"-?[0-9]+", text)), default=0)
    return unicodedata.is_normalized("NFC", text) and longest <= 19


def attempt(step: Callable[[], T]) -> tuple[T | None, str | None]:
    """What the step gives and no code, or nothing and the code of its refusal."""
    try:
        return step(), None
    except TrustError as problem:
        return None, problem.code


@given(st.binary(max_size=64) | st.text('{}[]":,0123456789.eE-+\\u naNtrfl', max_size=64).map(str.encode))
@settings(max_examples=300)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    value, code = attempt(lambda: strict.load(data, 1000, "it"))
    assert value == json.loads(data) if code is None else code == "metadata-malformed"


@cache
def repository() -> Repository:
    """One with a bit of everything in it."""
    made = Repository()
    made.list_hashes = True
    made.delegate("targets", "A", paths=["a/*"])
    made.add_file(b"data", "a/file", "A")
    made.add_file(b"data", "file")
    made.publish("A", *TOP[2:], "timestamp")
    made.publish("snapshot", "timestamp")
    return made


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes with one small thing done to them."""
    at = draw(st.integers(0, len(data) - 1))
    how = draw(st.sampled_from(["flip", "drop", "insert", "cut", "double"]))
    if how == "flip":
        return data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
    if how == "drop":
        return data[:at] + data[at + 1 :]
    if how == "insert":
        return data[:at] + draw(st.binary(min_size=1, max_size=3)) + data[at:]
    if how == "cut":
        return data[:at]
    return data[:at] + data[at : at + 20] + data[at:]


@given(st.data(), st.sampled_from(TOP[1:]))
@settings(max_examples=300)
def test_damaged_metadata_is_refused_or_says_the_same(draw: st.DataObject, role: str) -> None:
    """Spaces between tokens and what is not signed may change; nothing that is trusted may."""
    made = repository()
    data = draw.draw(damaged(made.served(role)))
    store = MemoryStore(made.files["metadata/1.root.json"])
    other = Repository.__new__(Repository)
    other.__dict__.update(made.__dict__)
    other.files = {**made.files, made.path(role): data}
    try:
        trusted = client(other, store).refresh()
    except TwinlockError:
        assert store.files.get(role) is None
    else:
        assert read(KINDS[role], data).payload == read(KINDS[role], made.served(role)).payload
        assert trusted.targets is not None


FIELDS = st.sampled_from(["keyids", "threshold", "version", "name", "paths"])
PLAIN = st.sampled_from(["", "x", "2030-01-01T00:00:00Z", "1.0.0", -1, 0, 1, 3, True, False, None])
SHAPELESS = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=3),
    max_leaves=6,
)


@given(st.data(), st.sampled_from(TOP))
@settings(max_examples=300)
def test_fields_of_any_shape_are_read_or_refused(draw: st.DataObject, role: str) -> None:
    """Any value in the place of any other; the readers end in a document or in a refusal."""
    value = json.loads(repository().served(role))
    holder, key = value, "signed"
    while draw.draw(st.booleans()) or holder is value:
        inner = holder[key]
        if not isinstance(inner, dict | list) or not inner:
            break
        holder = inner
        key = draw.draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
    holder[key] = draw.draw(SHAPELESS)
    data = json.dumps(value).encode()
    document, code = attempt(lambda: read(KINDS[role], data))
    assert code in (None, "metadata-malformed", "format-unknown")
    assert document is None or 1 <= document.signed.version <= limits.METADATA_VERSION_MAX


@given(st.binary(max_size=64), st.binary(max_size=64), st.binary(max_size=64))
def test_any_answer_of_a_director_is_refused(targets: bytes, snapshot: bytes, timestamp: bytes) -> None:
    answer = director.Answer(targets=targets, snapshot=snapshot, timestamp=timestamp)
    try:
        director.verify_answer(answer, "d", repository().files["metadata/1.root.json"], NOW)
    except TrustError:
        return
    raise AssertionError("random bytes were trusted")


@given(st.integers(1, 7 * 24 * 3600), st.integers(1, limits.METADATA_VERSION_MAX))
def test_lifetimes_and_versions_come_back(age_s: int, version: int) -> None:
    """An answer is good for exactly as long as it says."""
    made = repository()
    key = director.online_key(made.signers["timestamp"][0].private_bytes)
    answer = director.sign_answer(key, "d", None, version=version, now=NOW, lifetime_s=7 * 24 * 3600)
    document = read(Timestamp, answer.timestamp)
    assert document.signed.version == version
    assert document.signed.is_expired(NOW + timedelta(seconds=age_s)) == (age_s >= 7 * 24 * 3600)
