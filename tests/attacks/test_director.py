"""Attacks on the two repositories, cases 20 to 24: what one of them says alone installs nothing.

The real agent polls the real server. What its director says is signed with the director's own key, as by
somebody who stole it; the metadata of the image repository can be changed on its way.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.metadata import Delegations, TargetFile, Targets

from tests.attacks.director_scene import DirectorScene, director_scene
from tests.attacks.scene import LISTED
from twinlock.agent import memory
from twinlock.core import protocol
from twinlock.core.protocol import PollAnswer
from twinlock.core.trust.director import OnlineKey, online_key
from twinlock.core.trust.verifier import CUSTOM_KEY


def disagrees(scene: DirectorScene, entry: TargetFile) -> None:
    """The director says this of the assigned release; the image repository says something else."""
    scene.direct(entry)
    scene.refused("metadata-mismatch", but=(memory.TIME_FILE, *scene.trust()))


def test_case_20_the_repositories_disagree_on_the_hash(tmp_path: Path) -> None:
    with director_scene(tmp_path) as scene:
        entry = scene.offered()
        entry.hashes = TargetFile.from_data("", b"another", ["sha256"]).hashes
        disagrees(scene, entry)


def test_case_20_the_repositories_share_no_strong_hash(tmp_path: Path) -> None:
    with director_scene(tmp_path) as scene:
        entry = scene.offered()
        entry.hashes = TargetFile.from_data("", b"another", ["sha512"]).hashes
        disagrees(scene, entry)


def test_case_20_the_repositories_disagree_on_the_length(tmp_path: Path) -> None:
    with director_scene(tmp_path) as scene:
        entry = scene.offered()
        entry.length += 1
        disagrees(scene, entry)


def test_case_20_the_repositories_disagree_on_the_claims(tmp_path: Path) -> None:
    """The release is for one board; the director says it is for another, or newer than it is."""
    for field, claim in (("hardware", ["other"]), ("counter", 900), ("sbom_sha256", "0" * 64)):
        with director_scene(tmp_path / field) as scene:
            entry = scene.offered()
            entry.unrecognized_fields["custom"][CUSTOM_KEY][field] = claim
            disagrees(scene, entry)


def test_case_21_a_director_that_delegates(tmp_path: Path) -> None:
    """With it, whoever holds the online key for a day could name keys that outlive its rotation."""
    with director_scene(tmp_path) as scene:
        scene.direct(scene.offered(), lambda said: setattr(said, "delegations", Delegations({}, roles={})))
        scene.refused("metadata-malformed")


def test_case_21_a_director_that_delegates_and_names_nothing(tmp_path: Path) -> None:
    with director_scene(tmp_path) as scene:
        scene.offered()
        scene.direct(None, lambda said: setattr(said, "delegations", Delegations({}, roles={})))
        scene.refused("metadata-malformed")


def test_case_21_a_director_that_names_two_releases(tmp_path: Path) -> None:
    with director_scene(tmp_path) as scene:
        entry = scene.offered()
        scene.direct(entry, lambda said: said.targets.update(other=entry))
        scene.refused("metadata-malformed")


def test_case_22_the_directors_word_of_this_release_for_another_device(tmp_path: Path) -> None:
    with director_scene(tmp_path) as scene:
        scene.direct(scene.offered(), device="device-2")
        scene.refused("metadata-device")


def name_device(block: Any, targets: Targets) -> None:
    """Puts `block` in the place of what names the device; None takes it out."""
    targets.unrecognized_fields.pop(CUSTOM_KEY)
    if block is not None:
        targets.unrecognized_fields[CUSTOM_KEY] = block


def test_case_23_an_empty_answer_without_a_device(tmp_path: Path) -> None:
    """Signed for nobody, it could be sent to anybody to keep them from a release."""
    with director_scene(tmp_path) as scene:
        scene.offered()
        own = scene.device_id
        for block in (None, {}, {"device": None}, own, [own], {"device": [own]}, {"devices": own}):
            scene.direct(None, partial(name_device, block))
            scene.refused("metadata-device")


def test_case_24_the_image_keys_alone_are_stolen(tmp_path: Path) -> None:
    """The thief signs other bytes under the name that the director wants; all image signatures are good."""
    with director_scene(tmp_path) as scene:
        honest = scene.offered()
        repository = scene.server.repository
        evil = repository.add_file(b"evil", honest.path)
        evil.unrecognized_fields = honest.unrecognized_fields
        repository.publish(*LISTED)
        scene.server.between.files = {
            f"{protocol.REPOSITORY}/{path}": data for path, data in repository.files.items()
        }
        scene.refused("metadata-mismatch", but=(memory.TIME_FILE, *scene.trust()))
        assert any(path.endswith(".targets.json") for path in scene.server.between.served)


def renamed(version: str, said: PollAnswer) -> PollAnswer:
    """The assignment is of this version."""
    assert said.assignment is not None
    return msgspec.structs.replace(said, assignment=msgspec.structs.replace(said.assignment, version=version))


def test_case_24_the_director_key_alone_is_stolen(tmp_path: Path) -> None:
    """The thief directs to bytes of its own, under a name of its own and under a good one."""
    for version, code in (("1.1", "metadata-mismatch"), ("9.9", "release-unknown")):
        with director_scene(tmp_path / version) as scene:
            honest = scene.offered()
            evil = TargetFile.from_data(honest.path.replace("1.1", version), b"evil", ["sha256"])
            evil.unrecognized_fields = honest.unrecognized_fields
            scene.direct(evil, assigned=partial(renamed, version))
            scene.refused(code, but=(memory.TIME_FILE, *scene.trust()))


def test_case_24_a_stranger_is_no_director(tmp_path: Path) -> None:
    """Not even the image repository's own keys are."""
    with director_scene(tmp_path) as scene:
        entry = scene.offered()
        own = scene.director_key()
        for signer in (scene.online.new_key(), scene.server.repository.signers["timestamp"][0]):
            forged = OnlineKey(own.keyid, online_key(signer.private_bytes).sign)
            scene.direct(entry, key=forged)
            scene.refused("metadata-signature")
