"""The manifest: one encoding, every part of it checked (refusals are in the vectors and limits)."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from tests.unit.core.test_limits import a_manifest
from twinlock.core import manifest
from twinlock.core.errors import InputError, TrustError
from twinlock.core.limits import MIB


def three_segments() -> manifest.Manifest:
    hashes = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(3))
    return a_manifest(image_size_bytes=2 * MIB + 1024, segments=hashes)


def test_segments_are_found_by_number() -> None:
    made = three_segments()
    assert made.segment_count == 3
    assert made.segment_sha256(2) == hashlib.sha256(b"\2").digest()
    assert [made.segment_length_bytes(number) for number in range(3)] == [MIB, MIB, 1024]
    for number in (-1, 3):
        with pytest.raises(IndexError):
            made.segment_sha256(number)


def test_one_manifest_has_one_encoding() -> None:
    made = three_segments()
    data = manifest.encode(made)
    assert manifest.encode(manifest.decode(data)) == data
    spaced = msgspec.json.format(data, indent=4)
    assert manifest.decode(spaced) == made  # other spacing reads the same, but is signed by its own hash


def test_the_claims_are_the_manifests_own_words() -> None:
    made = a_manifest(hardware=("a", "b"), counter=9, sbom_sha256=b"\1" * 32)
    assert made.claims == manifest.Claims("demo", "1.0", ("a", "b"), 9, 512, b"\1" * 32)
    assert made.name == "demo/1.0.manifest"
    manifest.check_claims(made.claims)


@pytest.mark.parametrize(
    "change",
    [
        {"product": "a/b"},
        {"version": ""},
        {"hardware": ()},
        {"hardware": ("a", "a")},
        {"counter": -1},
        {"image_size_bytes": 0},
        {"image_size_bytes": 513},
        {"sbom_sha256": b"short"},
    ],
)
def test_claims_of_a_user_are_input_those_of_a_manifest_are_trust(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        manifest.check_claims(msgspec.structs.replace(a_manifest().claims, **change))
    with pytest.raises(TrustError):
        manifest.check(a_manifest(**change))


def test_bytes_that_are_no_text_are_refused() -> None:
    data = manifest.encode(a_manifest(notes="note")).replace(b'note"', b'no\xff"')
    with pytest.raises(TrustError) as caught:
        manifest.decode(data)
    assert caught.value.code == "manifest-malformed"
