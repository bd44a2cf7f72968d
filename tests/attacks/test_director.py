"""Attacks on the two repositories, cases 20 to 24: what one of them says alone installs nothing.

The image repository is served as such; the director's answer is served beside it, as a poll would give it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tuf.api.metadata import Delegations, Metadata, Root, TargetFile, Targets

from tests.attacks.scene import LISTED, Scene, scene
from tests.conformance.repository import NOW, Repository
from twinlock.core.errors import TwinlockError
from twinlock.core.trust import director
from twinlock.core.trust.client import Client
from twinlock.core.trust.verifier import CUSTOM_KEY, Floors

NAME = "demo/1.1.manifest"
DEVICE = "device-1"


class Directed:
    """A device that trusts an image repository and a director, each by a root of its own."""

    def __init__(self, attack: Scene) -> None:
        self.attack = attack
        self.images = attack.repository
        self.online = Repository()
        key = self.online.new_key()
        for role in LISTED:
            for keyid in list(self.online.root.roles[role].keyids):
                self.online.root.revoke_key(keyid, role)
            self.online.signers[role] = []
            self.online.add_key(role, key)
        self.online.publish("root")
        self.root = self.online.served("root")
        self.key = director.online_key(key.private_bytes)
        self.floors = Floors()
        self.version = 1
        self.genuine = self.entry(b"genuine")
        self.images.targets.targets[NAME] = self.genuine
        self.images.publish(*LISTED)

    @staticmethod
    def entry(data: bytes, **claims: Any) -> TargetFile:
        """What a repository signs of a release."""
        entry = TargetFile.from_data(NAME, data, ["sha256"])
        entry.unrecognized_fields["custom"] = {CUSTOM_KEY: {"hardware": ["board"], "counter": 3, **claims}}
        return entry

    def direct(self, release: TargetFile | None, device: str = DEVICE) -> None:
        """The director answers so from now on."""
        self.version += 1
        answer = director.sign_answer(self.key, device, release, version=self.version, now=NOW)
        self.serve(answer)

    def serve(self, answer: director.Answer) -> None:
        self.images.files["metadata/answer"] = msgspec.json.encode(answer)

    def resign(self, change: Callable[[Targets], object]) -> None:
        """Changes the answer's targets as only the holder of the director's key can."""
        answer = self.answer()
        metadata: Metadata[Targets] = Metadata.from_bytes(answer.targets)
        change(metadata.signed)
        metadata.sign(self.online.signers["targets"][0])
        self.serve(msgspec.structs.replace(answer, targets=metadata.to_bytes()))

    def answer(self) -> director.Answer:
        data = self.attack.client.fetch()("answer", 10_000)
        assert data is not None
        return msgspec.json.decode(data, type=director.Answer)

    def poll(self) -> TargetFile | None:
        """What the device would install now. Its state rises only when nothing was refused."""
        directed = director.verify_answer(self.answer(), DEVICE, self.root, NOW, self.floors)
        image = Client(self.attack.client.fetch(), self.attack.client.store(), NOW)
        chosen = director.agreed_release(directed, image.find)
        self.floors = directed.floors
        return chosen

    def refused(self, code: str) -> None:
        """A poll fails with this code and leaves the device as it was."""
        floors, files = self.floors, self.attack.client.files()
        with pytest.raises(TwinlockError) as caught:
            self.poll()
        assert caught.value.code == code, caught.value
        assert self.floors == floors
        assert self.attack.client.files() == files


@contextmanager
def directed(folder: Path) -> Iterator[Directed]:
    """A device that has been through one honest poll."""
    with scene(folder) as attack:
        device = Directed(attack)
        device.direct(device.genuine)
        assert device.poll() == device.genuine
        device.direct(None)
        assert device.poll() is None
        yield device


def test_case_20_the_repositories_disagree_on_the_hash(tmp_path: Path) -> None:
    with directed(tmp_path) as device:
        device.direct(device.entry(b"another"))
        device.refused("metadata-mismatch")


def test_case_20_the_repositories_share_no_strong_hash(tmp_path: Path) -> None:
    with directed(tmp_path) as device:
        weak = device.entry(b"genuine")
        weak.hashes = TargetFile.from_data(NAME, b"another", ["sha512"]).hashes
        device.direct(weak)
        device.refused("metadata-mismatch")


def test_case_20_the_repositories_disagree_on_the_length(tmp_path: Path) -> None:
    with directed(tmp_path) as device:
        longer = device.entry(b"genuine")
        longer.length += 1
        device.direct(longer)
        device.refused("metadata-mismatch")


def test_case_20_the_repositories_disagree_on_the_claims(tmp_path: Path) -> None:
    """The release is for one board; the director says it is for another, or newer than it is."""
    for claims in ({"hardware": ["other"]}, {"counter": 900}, {"extra": 1}):
        with directed(tmp_path / next(iter(claims))) as device:
            device.direct(device.entry(b"genuine", **claims))
            device.refused("metadata-mismatch")


def test_case_21_a_director_that_delegates(tmp_path: Path) -> None:
    with directed(tmp_path) as device:
        device.direct(device.genuine)
        device.resign(lambda targets: setattr(targets, "delegations", Delegations({}, roles={})))
        device.refused("metadata-malformed")


def test_case_21_a_director_that_names_two_releases(tmp_path: Path) -> None:
    with directed(tmp_path) as device:
        device.direct(device.genuine)
        device.resign(lambda targets: targets.targets.update(other=device.entry(b"other")))
        device.refused("metadata-malformed")


def test_case_22_the_answer_for_another_device(tmp_path: Path) -> None:
    with directed(tmp_path) as device:
        device.direct(device.genuine, device="device-2")
        device.refused("metadata-device")


def name_device(block: Any, targets: Targets) -> None:
    """Puts `block` in the place of what names the device; None takes it out."""
    targets.unrecognized_fields.pop(CUSTOM_KEY)
    if block is not None:
        targets.unrecognized_fields[CUSTOM_KEY] = block


def test_case_23_an_empty_answer_without_a_device(tmp_path: Path) -> None:
    """Signed for nobody, it could be sent to anybody to keep them from a release."""
    for block in (None, {}, {"device": None}, "device-1", ["device-1"]):
        with directed(tmp_path / str(block)) as device:
            device.direct(None)
            device.resign(partial(name_device, block))
            device.refused("metadata-device")


def test_case_24_the_image_keys_alone_are_stolen(tmp_path: Path) -> None:
    """The thief signs other bytes under the name that the director wants; all image signatures are good."""
    with directed(tmp_path) as device:
        device.direct(device.genuine)
        device.images.targets.targets[NAME] = device.entry(b"evil")
        device.images.publish(*LISTED)
        assert device.attack.client.refresh() == 0
        device.refused("metadata-mismatch")
        device.images.targets.targets = {"demo/9.9.manifest": device.entry(b"evil")}
        device.images.publish(*LISTED)
        assert device.attack.client.refresh() == 0
        device.refused("release-unknown")


def test_case_24_the_director_key_alone_is_stolen(tmp_path: Path) -> None:
    """The thief directs to bytes of its own, under a name of its own and under a good one."""
    with directed(tmp_path) as device:
        evil = device.entry(b"evil")
        evil.path = "demo/9.9.manifest"
        device.direct(evil)
        device.refused("release-unknown")
        device.direct(device.entry(b"evil"))
        device.refused("metadata-mismatch")


def test_case_24_a_stranger_is_no_director(tmp_path: Path) -> None:
    """Not even the image repository's own keys are."""
    with directed(tmp_path) as device:
        for signer in (device.online.new_key(), device.images.signers["timestamp"][0]):
            sign = director.online_key(signer.private_bytes).sign
            key = director.OnlineKey(device.key.keyid, sign)
            answer = director.sign_answer(key, DEVICE, device.genuine, version=50, now=NOW)
            device.serve(answer)
            device.refused("metadata-signature")
        assert isinstance(Metadata.from_bytes(device.root).signed, Root)


def test_case_22_an_older_answer_for_this_device(tmp_path: Path) -> None:
    """Its own answer of before, replayed: versions of one device never go back."""
    with directed(tmp_path) as device:
        device.direct(device.genuine)
        old = device.answer()
        device.direct(None)
        assert device.poll() is None
        device.serve(old)
        device.refused("metadata-rollback")
