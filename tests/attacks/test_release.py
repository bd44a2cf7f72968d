"""Attacks on what is said of a release, cases 5 to 8 and 11 to 13: names, signatures, claims and formats."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from tests.attacks.payload_scene import PACKED, PayloadScene, payload_scene
from tests.attacks.scene import LISTED, scene
from tests.conformance.repository import Repository
from twinlock.core import limits, manifest
from twinlock.core.protocol import encode


def assigned(device: PayloadScene, **fields: Any) -> None:
    """Changes the assignment itself, which nobody signs."""
    device.install(PACKED)
    assignment = device.poll_answer.assignment
    assert assignment is not None
    changed = msgspec.structs.replace(assignment, **fields)
    device.poll_answer = msgspec.structs.replace(device.poll_answer, assignment=changed)


def test_case_05_traversal_in_an_assigned_name(tmp_path: Path) -> None:
    with payload_scene(tmp_path) as device:
        assigned(device, product="../../metadata")
        device.refuses("answer-malformed")
        assert not any(".." in path for path in device.repository.asked)


def test_case_05_traversal_in_a_signed_name(tmp_path: Path) -> None:
    """Whoever signs may call a file what they like; nobody makes an address or a path of that."""
    with scene(tmp_path) as attack:
        name = "../../etc/passwd"
        attack.repository.add_file(b"root::0:0", name)
        attack.repository.publish(*LISTED)
        attack.fails(lambda: attack.client.download(name), "metadata-malformed", but=LISTED)
        assert not any("etc" in path for path in attack.repository.asked)


def signatures(repository: Repository, change: Any) -> None:
    """Publishes a new timestamp, its signatures changed afterwards."""
    repository.publish("timestamp")
    value = json.loads(repository.served("timestamp"))
    value["signatures"] = change(value["signatures"])
    repository.files[repository.path("timestamp")] = json.dumps(value).encode()


def test_case_06_a_signature_of_another_length(tmp_path: Path) -> None:
    for kind in ("ed25519", "ecdsa"):
        for length in (-64, -2, 2, 64, 10_000):
            with scene(tmp_path / f"{kind}{length}", Repository(kind=kind)) as attack:

                def change(given: list[dict[str, str]], length: int = length) -> list[dict[str, str]]:
                    text = given[0]["sig"]
                    return [{**given[0], "sig": text[:length] if length < 0 else text + "0" * length}]

                signatures(attack.repository, change)
                attack.refused("metadata-signature")


def test_case_07_no_signature(tmp_path: Path) -> None:
    for number, left in enumerate(([], [{"keyid": "ab" * 32, "sig": ""}])):
        with scene(tmp_path / str(number)) as attack:
            signatures(attack.repository, lambda _, left=left: left)
            attack.refused("metadata-signature")


def test_case_08_a_link_where_a_file_will_be(tmp_path: Path) -> None:
    """A symbolic link under the name that the download has until it is verified; and it is not followed."""
    with scene(tmp_path) as attack:
        entry = attack.repository.add_file(b"new", "file")
        attack.repository.publish(*LISTED)
        assert attack.client.download("file") == 0
        (name,) = (path.name for path in attack.client.downloads.iterdir())
        (attack.client.downloads / name).unlink()
        victim = tmp_path / "victim"
        victim.write_bytes(b"precious")
        (attack.client.downloads / f"{name}.part").symlink_to(victim)
        attack.repository.files[f"targets/{entry.get_prefixed_paths()[0]}"] = b"new"
        assert attack.client.download("file") == 1
        assert attack.client.code == "io-error"
        assert victim.read_bytes() == b"precious"
        assert not (attack.client.downloads / name).exists()


def test_case_08_a_name_given_twice(tmp_path: Path) -> None:
    """Two readers of a list with duplicates may take different ones."""
    with payload_scene(tmp_path) as device:
        device.install(PACKED)
        claims = device.signed(PACKED.manifest).unrecognized_fields["custom"]["twinlock"]
        claims["hardware"] = ["board", "board"]
        device.repository.publish(*LISTED)
        device.refuses("metadata-malformed")


def test_case_11_the_same_name_for_other_hardware(tmp_path: Path) -> None:
    with payload_scene(tmp_path) as device:
        made = msgspec.structs.replace(PACKED.manifest, hardware=("other-board",))
        device.install(replace(PACKED, manifest=made))
        device.refuses("hardware-mismatch")


def test_case_12_a_version_of_any_length(tmp_path: Path) -> None:
    for length in (limits.VERSION_LENGTH_MAX + 1, 10_000):
        with payload_scene(tmp_path / str(length)) as device:
            assigned(device, version="1" * length)
            device.refuses("answer-malformed")


def resigned(device: PayloadScene, **fields: Any) -> None:
    """A release whose manifest has these fields too; it is signed as it is."""
    device.install(PACKED)
    value = json.loads(manifest.encode(PACKED.manifest))
    device.sign_manifest(json.dumps({**value, **fields}).encode(), PACKED)


def test_case_13_a_manifest_of_a_later_format(tmp_path: Path) -> None:
    with payload_scene(tmp_path) as device:
        resigned(device, format_version=2)
        device.refuses("format-unknown")


def test_case_13_a_manifest_with_an_unknown_field(tmp_path: Path) -> None:
    """It may say that this release must not be installed here; who does not know it must not go on."""
    with payload_scene(tmp_path) as device:
        resigned(device, only_after="1.0.9")
        device.refuses("manifest-malformed")


def test_case_13_an_assignment_with_an_unknown_field(tmp_path: Path) -> None:
    with payload_scene(tmp_path) as device:
        device.install(PACKED)
        value = json.loads(encode(device.poll_answer))
        value["assignment"]["not_before"] = 4_000_000_000
        device.repository.calls["/device/v1/poll"] = lambda _: json.dumps(value).encode()
        device.refuses("answer-malformed")
