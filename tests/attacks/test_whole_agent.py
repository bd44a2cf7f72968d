"""The attacks on metadata once more, by the whole agent: cases 6, 7, 14 to 19, 26, 28 and 29.

There the metadata client is driven by its own command; here a device is asked to take a release whose
counter is below its floor, so that a run that trusts the metadata says `release-older`, and installs nothing
either way. Each asserts the code that is reported, and that slots, boot record, floor and trust stay.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from tests.attacks.agent_scene import AgentScene
from tests.attacks.powercut import PowerCut, PowerCutError
from tests.attacks.scene import LISTED
from tests.conformance.driver import serve
from tests.conformance.repository import ALL, Repository
from twinlock.agent import memory
from twinlock.agent.metadata import FOLDER, TRUST
from twinlock.core import limits
from twinlock.core.trust.verifier import Floors

HONEST = "release-older"
ROLES = ("root", *LISTED)


class Device(AgentScene):
    """A device that has trusted the repository once; each run is asked for an assignment of its own."""

    number = 0

    def trust(self) -> dict[str, bytes]:
        """What it keeps of metadata, by name."""
        folder = self.settings.state / FOLDER
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.is_dir() else {}
        kept = self.ports.store.read(TRUST, 1 << 20)
        return files | ({} if kept is None else {TRUST: kept})

    def floors(self) -> Floors:
        return msgspec.json.decode(self.trust()[TRUST], type=Floors)

    def ask(self) -> str:
        """One run with a new assignment of the same release: the code that it is reported with."""
        Device.number += 1
        assert self.poll_answer.assignment is not None
        assignment = msgspec.structs.replace(self.poll_answer.assignment, id=f"r-{Device.number}")
        self.poll_answer = msgspec.structs.replace(self.poll_answer, assignment=assignment)
        told = len(self.reports)
        ended = self.run()
        codes = {one.code for one in self.reports[told:] if one.assignment_id == assignment.id} - {""}
        assert len(codes) <= 1, codes
        return codes.pop() if codes else ended

    def trusts(self) -> None:
        """The metadata is taken: what holds the release up is the floor alone."""
        code = self.ask()
        assert code == HONEST, code

    def refuses(self, code: str, *, but: tuple[str, ...] = ()) -> None:
        """The metadata is refused with this code; only the files of these roles may have changed."""
        before, kept = self.state(), self.trust()
        found = self.ask()
        assert found == code, found
        assert not any(path.startswith("device/v1/payloads") for path in self.repository.asked)
        after, now = self.state(), self.trust()
        assert after == before
        changed = {name for name in kept.keys() | now.keys() if kept.get(name) != now.get(name)}
        assert changed <= {f"{role}.json" for role in but} | ({TRUST} if but else set()), changed

    def back(self, *roles: str, version: int = 1) -> None:
        """Publishes the roles in another version."""
        for role in roles:
            self.repository.metadata[role].signed.version = version
            self.repository.publish(role, bump=False)

    def rewrite(self, role: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Changes the served file of a role; nobody signs it anew."""
        value = json.loads(self.repository.served(role))
        change(value)
        self.repository.files[self.repository.path(role)] = json.dumps(value).encode()


@contextmanager
def trusting(folder: Path) -> Iterator[Device]:
    """A device that has taken the repository's metadata, all of version 2."""
    repository = Repository()
    folder.mkdir(parents=True, exist_ok=True)
    with serve(repository) as address:
        device = Device(repository, address, folder)
        repository.publish("root")
        device.ports.store.write(memory.FLOOR_FILE, msgspec.json.encode({"counter": 4}))
        device.trusts()
        yield device


def signed_with(signatures: list[dict[str, str]], value: dict[str, Any]) -> None:
    """The file has these signatures now."""
    value["signatures"] = signatures


def test_case_06_a_signature_of_another_length(tmp_path: Path) -> None:
    with trusting(tmp_path) as device:
        device.repository.publish("timestamp")
        honest = device.repository.served("timestamp")
        (given,) = json.loads(honest)["signatures"]
        for text in (given["sig"][:-64], given["sig"][:-2], given["sig"] + "00", given["sig"] * 50):
            device.repository.files["metadata/timestamp.json"] = honest
            device.rewrite("timestamp", partial(signed_with, [{**given, "sig": text}]))
            device.refuses("metadata-signature")


def test_case_07_no_signature(tmp_path: Path) -> None:
    with trusting(tmp_path) as device:
        device.repository.publish("timestamp")
        for left in ([], [{"keyid": "ab" * 32, "sig": ""}]):
            device.rewrite("timestamp", partial(signed_with, left))
            device.refuses("metadata-signature")


def test_case_14_one_key_under_two_ids(tmp_path: Path) -> None:
    with trusting(tmp_path) as device:
        repository = device.repository
        twin, real = repository.new_key(), repository.signers["timestamp"][0]
        twin._private_key, twin.public_key.keyval = real._private_key, dict(real.public_key.keyval)
        twin.public_key.keyid = "ab" * 32
        repository.add_key("timestamp", twin)
        repository.root.roles["timestamp"].threshold = 2
        repository.publish("root", "timestamp")
        device.refuses("metadata-signature", but=("root",))


def test_case_14_one_signature_twice(tmp_path: Path) -> None:
    with trusting(tmp_path) as device:
        device.repository.add_key("timestamp")
        device.repository.root.roles["timestamp"].threshold = 2
        device.repository.publish("root", "timestamp")
        device.trusts()
        device.repository.publish("timestamp")
        device.rewrite("timestamp", lambda value: value.update(signatures=value["signatures"][:1] * 2))
        device.refuses("metadata-malformed")


def test_case_15_threshold_zero(tmp_path: Path) -> None:
    with trusting(tmp_path) as device:
        device.repository.publish("root")
        device.repository.resign("root", lambda root: root["roles"]["timestamp"].update(threshold=0))
        device.refuses("metadata-malformed")


def test_case_16_a_rejected_root_is_not_trusted_later(tmp_path: Path) -> None:
    with trusting(tmp_path) as device:
        stranger = Repository()
        stranger.targets.targets.update(device.repository.targets.targets)
        for role in ROLES:
            stranger.rotate(role)
        stranger.publish(*ALL)
        stranger.publish(*ALL)
        device.repository.files = stranger.files
        device.refuses("metadata-signature")
        device.refuses("metadata-signature")


def test_case_17_a_role_for_one_delegator_does_not_speak_for_another(tmp_path: Path) -> None:
    """The product's list is trusted by one key for one delegator; the one that is asked names another key."""
    with trusting(tmp_path) as device:
        repository = device.repository
        repository.delegate("targets", "A", paths=["demo/*"])
        repository.delegate("targets", "B", paths=["other/*"])
        repository.delegate("B", "C", paths=["other/*"])
        stolen = list(repository.signers["C"])
        repository.signers["C"] = []
        repository.delegate("A", "C", paths=["demo/*"])
        repository.signers["C"] = stolen
        repository.role("C").targets.update(repository.targets.targets)
        repository.targets.targets = {}
        repository.publish("A", "B", "C", *LISTED)
        device.refuses("metadata-signature", but=("A", *LISTED))


def emptied(device: Device) -> None:
    for role in LISTED:
        (device.settings.state / FOLDER / f"{role}.json").write_bytes(b"")


def test_case_18_replay_after_the_files_are_emptied(tmp_path: Path) -> None:
    with trusting(tmp_path) as device:
        emptied(device)
        device.back(*LISTED)
        device.refuses("metadata-rollback")
        device.back(*LISTED, version=2)
        device.trusts()


def test_case_18_replay_of_a_snapshot_with_a_new_timestamp(tmp_path: Path) -> None:
    with trusting(tmp_path) as device:
        device.repository.publish("snapshot", "timestamp")
        device.trusts()
        emptied(device)
        device.repository.timestamp.snapshot_meta.version = 2
        device.repository.publish("timestamp")
        device.refuses("metadata-rollback")


def cut_everywhere(device: Device, folder: Path, after: Callable[[int], None]) -> int:
    """Runs with a cut at every operation in the state; after each comes `after`, then honest service."""
    honest, state, saved = dict(device.repository.files), device.settings.state, folder / "saved"
    shutil.copytree(state, saved)
    rng = random.Random(19)
    before = device.state()
    for at in range(1000):
        shutil.rmtree(state)
        shutil.copytree(saved, state)
        cut = PowerCut(state, at, rng)
        try:
            with cut.watching():
                device.trusts()
        except PowerCutError:
            cut.settle()
        after(at)
        device.repository.files = dict(honest)
        device.trusts()
        assert device.state() == before
        if not cut.happened:
            return at
    raise AssertionError("the run does not end")


def test_case_19_power_cut_at_every_write(tmp_path: Path) -> None:
    """Whatever a cut leaves, an older repository stays refused and the honest one is taken."""
    with trusting(tmp_path) as device:
        older = {name: data for name, data in device.repository.files.items() if "metadata/" not in name}
        older |= {name: data for name, data in device.repository.files.items() if "root" in name}
        for role in LISTED:
            device.repository.metadata[role].signed.version = 1
            older[device.repository.path(role)] = device.repository.signed(role)
        for role in LISTED:
            device.repository.metadata[role].signed.version = 2
        device.repository.publish(*ALL)

        def replay(at: int) -> None:
            device.repository.files = older
            code = device.ask()
            assert code == "metadata-rollback", f"cut {at}: {code!r}"

        assert cut_everywhere(device, tmp_path, replay) > 20


def test_case_26_a_root_is_withheld(tmp_path: Path) -> None:
    with trusting(tmp_path) as device:
        stolen = device.repository.signers["timestamp"]
        device.repository.rotate("timestamp")
        device.repository.publish(*ALL)
        device.trusts()
        (device.settings.state / FOLDER / "root.json").unlink()
        device.repository.signers["timestamp"] = stolen
        device.repository.publish("timestamp")
        del device.repository.files["metadata/3.root.json"]
        device.refuses("metadata-rollback", but=("root",))


def test_case_26_everything_is_withheld_until_it_expires(tmp_path: Path) -> None:
    """The timestamp is what ends first: nothing else says that this state is still the newest."""
    with trusting(tmp_path) as device:
        for role in ("root", "targets", "snapshot"):
            device.repository.metadata[role].signed.expires += timedelta(days=300)
        device.repository.publish(*ALL)
        device.trusts()
        device.clock.wall_s = device.repository.expires.timestamp()
        device.refuses("metadata-expired")


def test_case_26_a_root_past_its_time(tmp_path: Path) -> None:
    with trusting(tmp_path) as device:
        for role in LISTED:
            device.repository.metadata[role].signed.expires += timedelta(days=300)
        device.repository.publish(*LISTED)
        device.trusts()
        device.clock.wall_s = device.repository.expires.timestamp()
        device.refuses("metadata-expired")


def test_case_28_duplicate_keys(tmp_path: Path) -> None:
    with trusting(tmp_path) as device:
        device.repository.publish("timestamp")
        data = device.repository.served("timestamp")
        forged = data.replace(b'"version": 3', b'"version": 900, "version": 3', 1)
        assert forged != data
        device.repository.files["metadata/timestamp.json"] = forged
        device.refuses("metadata-malformed")


def test_case_28_deep_nesting(tmp_path: Path) -> None:
    with trusting(tmp_path) as device:
        nested: Any = 0
        for _ in range(limits.JSON_DEPTH_MAX):
            nested = [nested]
        device.repository.timestamp.unrecognized_fields["x"] = nested
        device.repository.publish("timestamp")
        device.refuses("metadata-malformed")


def test_case_28_numbers_that_are_none(tmp_path: Path) -> None:
    with trusting(tmp_path) as device:
        device.rewrite("timestamp", lambda value: value["signed"].update(x="@"))
        data = device.repository.served("timestamp")
        for number in (b"NaN", b"Infinity", b"1.0", b"1e3", b"-0", b"9" * 20):
            device.repository.files["metadata/timestamp.json"] = data.replace(b'"@"', number)
            device.refuses("metadata-malformed")


def test_case_28_names_composed_in_two_ways(tmp_path: Path) -> None:
    with trusting(tmp_path) as device:
        device.repository.timestamp.unrecognized_fields["x"] = ["e\u0301"]
        device.repository.publish("timestamp")
        device.refuses("metadata-malformed")


def test_case_29_a_version_past_all_bounds(tmp_path: Path) -> None:
    with trusting(tmp_path) as device:
        for version in (limits.METADATA_VERSION_MAX + 1, 2**63, 2**64):
            device.back("timestamp", version=version)
            device.refuses("metadata-malformed")
        device.back("timestamp", version=3)
        device.trusts()


def test_case_29_recovery_from_the_highest_version(tmp_path: Path) -> None:
    with trusting(tmp_path) as device:
        device.back("snapshot", "timestamp", version=limits.METADATA_VERSION_MAX)
        device.trusts()
        device.back("snapshot", "timestamp", version=3)
        device.refuses("metadata-rollback")
        for role in ("snapshot", "timestamp"):
            device.repository.rotate(role)
        device.repository.publish("root")
        device.back("snapshot", "timestamp", version=3)
        device.trusts()
        assert (device.floors().timestamp, device.floors().snapshot) == (3, 3)
