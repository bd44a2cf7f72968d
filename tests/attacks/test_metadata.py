"""Attacks on metadata, cases 14 to 19, 26, 28 and 29: each by the real client over a real socket.

Each test asserts the error code, and that what the client keeps is as it was. `guards.py` names for each the
check that stands between the attacker and success; with it taken out, the test fails.
"""

from __future__ import annotations

import json
import random
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.powercut import PowerCut, PowerCutError
from tests.attacks.scene import LISTED, Scene, scene
from tests.conformance.repository import ALL, NOW, Repository
from twinlock.core import limits
from twinlock.core.errors import TwinlockError
from twinlock.core.trust.client import Client


def rewrite(repository: Repository, role: str, change: Any) -> None:
    """Changes the served file of a role as JSON; nobody signs it anew."""
    value = json.loads(repository.served(role))
    change(value)
    repository.files[repository.path(role)] = json.dumps(value).encode()


def test_case_14_one_key_under_two_ids(tmp_path: Path) -> None:
    """One person's key is listed twice under different ids, and signs under both."""
    with scene(tmp_path) as attack:
        repository = attack.repository
        twin = repository.new_key()
        real = repository.signers["timestamp"][0]
        twin._private_key, twin.public_key.keyval = real._private_key, dict(real.public_key.keyval)
        twin.public_key.keyid = "ab" * 32
        repository.add_key("timestamp", twin)
        repository.root.roles["timestamp"].threshold = 2
        repository.publish("root", "timestamp")
        attack.refused("metadata-signature", but=("root",))


def test_case_14_one_signature_twice(tmp_path: Path) -> None:
    with scene(tmp_path) as attack:
        repository = attack.repository
        repository.add_key("timestamp")
        repository.root.roles["timestamp"].threshold = 2
        repository.publish("root", "timestamp")
        assert attack.client.refresh() == 0
        repository.publish("timestamp")
        rewrite(repository, "timestamp", lambda value: value.update(signatures=value["signatures"][:1] * 2))
        attack.refused("metadata-malformed")


def test_case_15_threshold_zero(tmp_path: Path) -> None:
    """Whoever can sign a root once would do away with signatures for good."""
    with scene(tmp_path) as attack:
        attack.repository.publish("root")
        attack.repository.resign("root", lambda root: root["roles"]["timestamp"].update(threshold=0))
        attack.refused("metadata-malformed")


def test_case_16_a_rejected_root_is_not_trusted_later(tmp_path: Path) -> None:
    """A stranger's whole repository, offered twice: what was refused must not serve as the root next time."""
    with scene(tmp_path) as attack:
        stranger = Repository()
        for role in ("root", "timestamp", "snapshot", "targets"):
            stranger.rotate(role)
        stranger.publish(*ALL)
        stranger.publish(*ALL)
        attack.repository.files = stranger.files
        attack.refused("metadata-signature")
        attack.refused("metadata-signature")
        assert attack.client.version("root") == 2


def test_case_17_a_role_for_one_delegator_does_not_speak_for_another(tmp_path: Path) -> None:
    """B's keys sign a role called C; A delegates to a C too, with other keys, and for other names."""
    with scene(tmp_path) as attack:
        repository = attack.repository
        repository.delegate("targets", "A", paths=["a/*"])
        repository.delegate("targets", "B", paths=["b/*"])
        repository.delegate("B", "C", paths=["b/*"])
        keys = list(repository.signers["C"])
        repository.signers["C"] = []
        repository.delegate("A", "C", paths=["a/*"])
        repository.signers["C"] = keys
        for name in ("a/file", "b/file"):
            repository.add_file(name.encode(), name, "C")
        repository.publish("A", "B", "C", *LISTED)
        attack.fails(lambda: attack.client.download("a/file"), "metadata-signature", but=("A", *LISTED))
        store, fetch = attack.client.store(), attack.client.fetch()
        client = Client(fetch, store, NOW)
        assert client.find("b/file").path == "b/file"
        with pytest.raises(TwinlockError) as caught:
            client.find("a/file")
        assert caught.value.code == "metadata-signature"


def test_case_18_replay_after_the_files_are_emptied(tmp_path: Path) -> None:
    """Emptied timestamp and snapshot files must not make an old repository look new."""
    with scene(tmp_path) as attack:
        for role in LISTED:
            (attack.client.metadata / f"{role}.json").write_bytes(b"")
        attack.back(*LISTED)
        attack.refused("metadata-rollback")
        attack.back(*LISTED, version=2)
        assert attack.client.refresh() == 0


def test_case_18_replay_of_a_snapshot_with_a_new_timestamp(tmp_path: Path) -> None:
    """The online timestamp key is stolen, the snapshot's is not: an old snapshot under a new timestamp."""
    with scene(tmp_path) as attack:
        attack.repository.publish("snapshot", "timestamp")
        assert attack.client.refresh() == 0
        for role in LISTED:
            (attack.client.metadata / f"{role}.json").write_bytes(b"")
        attack.repository.timestamp.snapshot_meta.version = 2
        attack.repository.publish("timestamp")
        attack.refused("metadata-rollback")


def cut_everywhere(attack: Scene, folder: Path, after: Any) -> int:
    """Refreshes with a cut at every operation in turn; after each comes `after`, then honest service."""
    honest, state = dict(attack.repository.files), attack.client.metadata
    saved = folder / "saved"
    shutil.copytree(state, saved)
    rng = random.Random(19)
    for at in range(1000):
        shutil.rmtree(state)
        shutil.copytree(saved, state)
        cut = PowerCut(state, at, rng)
        try:
            with cut.watching():
                assert attack.client.refresh() == 0, attack.client.stderr
        except PowerCutError:
            cut.settle()
        after(at)
        attack.repository.files = dict(honest)
        assert attack.client.refresh() == 0, f"cut {at}: {attack.client.stderr}"
        assert attack.client.versions() == {
            role: attack.repository.metadata[role].signed.version for role in sorted(ALL)
        }
        if not cut.happened:
            return at
    raise AssertionError("the refresh does not end")


def test_case_19_power_cut_at_every_write(tmp_path: Path) -> None:
    """Whatever a cut leaves, an older repository stays refused and the honest one is taken."""
    with scene(tmp_path) as attack:
        older = {name: data for name, data in attack.repository.files.items() if "root" in name}
        for role in LISTED:
            attack.repository.metadata[role].signed.version = 1
            older[attack.repository.path(role)] = attack.repository.signed(role)
        for role in LISTED:
            attack.repository.metadata[role].signed.version = 2
        attack.repository.publish(*ALL)

        def replay(at: int) -> None:
            attack.repository.files = older
            assert attack.client.refresh() == 1, f"cut {at}: an older repository was taken"
            assert attack.client.code == "metadata-rollback", f"cut {at}: {attack.client.stderr}"

        assert cut_everywhere(attack, tmp_path, replay) > 20


def test_case_19_power_cut_during_the_recovery_from_a_fast_forward(tmp_path: Path) -> None:
    """Keys are rotated and versions start again; a cut must not leave a client that refuses both."""
    with scene(tmp_path) as attack:
        attack.back(*LISTED, version=90)
        assert attack.client.refresh() == 0
        attack.repository.rotate("timestamp")
        attack.repository.publish("root")
        attack.back(*LISTED, version=3)
        assert cut_everywhere(attack, tmp_path, lambda at: None) > 20


def test_case_26_a_root_is_withheld(tmp_path: Path) -> None:
    """The client lost its root file; the attacker serves the pinned root's age, with its old online keys."""
    with scene(tmp_path) as attack:
        stolen = attack.repository.signers["timestamp"]
        attack.repository.rotate("timestamp")
        attack.repository.publish(*ALL)
        assert attack.client.refresh() == 0
        (attack.client.metadata / "root.json").unlink()
        new = attack.repository.signers["timestamp"]
        attack.repository.signers["timestamp"] = stolen
        attack.repository.publish("timestamp")
        attack.repository.signers["timestamp"] = new
        del attack.repository.files["metadata/3.root.json"]
        attack.refused("metadata-rollback", but=("root",))


def test_case_26_everything_is_withheld_until_it_expires(tmp_path: Path) -> None:
    with scene(tmp_path) as attack:
        attack.repository.root.expires += timedelta(days=300)
        attack.repository.publish("root")
        assert attack.client.refresh() == 0
        attack.client.now = attack.repository.expires
        attack.refused("metadata-expired")
        assert "timestamp" in attack.client.stderr


def test_case_26_a_root_past_its_time(tmp_path: Path) -> None:
    with scene(tmp_path) as attack:
        for role in LISTED:
            attack.repository.metadata[role].signed.expires += timedelta(days=300)
        attack.repository.publish(*LISTED)
        assert attack.client.refresh() == 0
        attack.client.now = attack.repository.expires
        attack.refused("metadata-expired")
        assert "root" in attack.client.stderr


def test_case_28_duplicate_keys(tmp_path: Path) -> None:
    """Two readers would take different ones; the signature is over one of them."""
    with scene(tmp_path) as attack:
        attack.repository.publish("timestamp")
        data = attack.repository.served("timestamp")
        forged = data.replace(b'"version": 3', b'"version": 900, "version": 3', 1)
        assert forged != data
        attack.repository.files["metadata/timestamp.json"] = forged
        attack.refused("metadata-malformed")


def test_case_28_deep_nesting(tmp_path: Path) -> None:
    for depth in (limits.JSON_DEPTH_MAX, 100_000):
        with scene(tmp_path / str(depth)) as attack:
            nested: Any = None
            if depth < 1000:
                nested = 0
                for _ in range(depth):
                    nested = [nested]
                attack.repository.timestamp.unrecognized_fields["x"] = nested
                attack.repository.publish("timestamp")
            else:
                attack.repository.files["metadata/timestamp.json"] = b'{"a":' * 2000 + b"1" + b"}" * 2000
            attack.refused("metadata-malformed")


def test_case_28_numbers_that_are_none(tmp_path: Path) -> None:
    for number in ("NaN", "Infinity", "-Infinity", "1.0", "1e3", "-0", "9" * 20):
        with scene(tmp_path / number) as attack:
            rewrite(attack.repository, "timestamp", lambda value: value["signed"].update(x="@"))
            data = attack.repository.served("timestamp").replace(b'"@"', number.encode())
            attack.repository.files["metadata/timestamp.json"] = data
            attack.refused("metadata-malformed")


def test_case_28_names_composed_in_two_ways(tmp_path: Path) -> None:
    """`é` as one character or as two looks the same and is not; metadata holds the composed form only."""
    with scene(tmp_path) as attack:
        attack.repository.timestamp.unrecognized_fields["x"] = ["e\u0301"]
        attack.repository.publish("timestamp")
        attack.refused("metadata-malformed")


def test_case_29_a_version_past_all_bounds(tmp_path: Path) -> None:
    for version in (limits.METADATA_VERSION_MAX + 1, 2**63, 2**64):
        with scene(tmp_path / str(version)) as attack:
            attack.back("timestamp", version=version)
            attack.refused("metadata-malformed")
            attack.back("timestamp", version=3)
            assert attack.client.refresh() == 0


def test_case_29_recovery_from_the_highest_version(tmp_path: Path) -> None:
    """Stolen online keys drive the versions to the end; new keys, signed by the root, begin again."""
    with scene(tmp_path) as attack:
        attack.back("snapshot", "timestamp", version=limits.METADATA_VERSION_MAX)
        assert attack.client.refresh() == 0
        attack.back("snapshot", "timestamp", version=3)
        attack.refused("metadata-rollback")
        for role in ("snapshot", "timestamp"):
            attack.repository.rotate(role)
        attack.repository.publish("root")
        attack.back("snapshot", "timestamp", version=3)
        assert attack.client.refresh() == 0, attack.client.stderr
        assert attack.client.versions() == {"root": 3, "snapshot": 3, "targets": 2, "timestamp": 3}
