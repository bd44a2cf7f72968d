"""The director of a server: when it signs anew, its versions, its folder of keys and roots."""

from __future__ import annotations

import json
import stat
import threading
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, Targets

from tests.attacks.director_scene import director_repository, name_key, versions
from tests.conformance.repository import NOW, Repository
from tests.unit.server.rig import FakeClock, FakeDevice, Server, code_of, list_release, make_release, offered
from twinlock.cli.main import main
from twinlock.core.errors import TwinlockError
from twinlock.core.protocol import (
    ABILITY_DIRECTOR,
    DirectorAnswer,
    DirectorRequest,
    PollAnswer,
    decode_answer,
)
from twinlock.core.trust import director as signing
from twinlock.server import setup
from twinlock.server.clock import SystemClock, now_utc
from twinlock.server.director import answers
from twinlock.server.director.folder import DirectorFolder, make_key, public_half
from twinlock.server.settings import load

DAY_S = 24 * 3600
WEEK_S = 7 * DAY_S


@pytest.fixture
def online() -> Repository:
    return director_repository()


def give(server: Server, online: Repository) -> None:
    """The server starts anew with this director."""
    server.stop()
    own = DirectorFolder(server.folder)
    own.add_key(online.signers["targets"][0].private_bytes)
    own.add_root(online.served("root"), NOW)
    server.start()


@pytest.fixture
def directed(server: Server, online: Repository) -> Server:
    give(server, online)
    return server


def poll(device: FakeDevice, **facts: Any) -> PollAnswer:
    answer = device.poll(abilities=("full", ABILITY_DIRECTOR), **facts)
    assert answer.status_code == 200, answer.text
    return decode_answer(answer.content, PollAnswer)


def said(device: FakeDevice) -> DirectorAnswer:
    found = poll(device).director
    assert found is not None
    return found


def named(answer: DirectorAnswer) -> list[str]:
    return list(json.loads(answer.targets)["signed"]["targets"])


# What is said, and when it is signed anew


def test_only_who_asks_has_an_answer(directed: Server) -> None:
    device = directed.device()
    assert decode_answer(device.poll().content, PollAnswer).director is None
    assert poll(device).director is not None


def test_a_server_without_a_director_says_so(server: Server) -> None:
    device = server.device()
    assert poll(device).director is None
    assert code_of(device.send("/director", DirectorRequest())) == "not-found"
    answer = server.http("GET", "/director/metadata/1.root.json")
    assert (answer.status_code, code_of(answer)) == (404, "not-found")


def test_an_answer_holds_for_its_device_and_release(directed: Server, online: Repository) -> None:
    device = directed.device()
    release = make_release()
    directed.publish(release)
    directed.roll_out("1.1", ["dev-1"])
    found = poll(device)
    assert found.director is not None
    assert found.assignment is not None
    checked = signing.verify_answer(found.director, "dev-1", online.served("root"), NOW)
    targets: Metadata[Targets] = Metadata.from_bytes(directed.repository.served("targets"))
    signing.check_assigned(checked, targets.signed.targets[release.manifest.name])
    assert found.director.root_version == 1


def test_the_call_for_the_gate_says_what_a_poll_says(directed: Server) -> None:
    device = directed.device()
    first = said(device)
    answer = device.send("/director", DirectorRequest())
    assert decode_answer(answer.content, DirectorAnswer) == first
    for body in (b"", b"{", b"[]", b'{"device_id":"dev-2"}'):
        bearer = {"Authorization": f"Bearer {device.token}"}
        refusal = directed.http("POST", "/device/v1/director", body=body, headers=bearer)
        assert code_of(refusal) == "request-malformed"
    stranger = FakeDevice(directed, "dev-1")
    assert code_of(stranger.send("/director", DirectorRequest())) == "unauthorised"


def test_a_version_rises_only_with_something_new(directed: Server) -> None:
    device = directed.device()
    first = said(device)
    directed.clock.advance(WEEK_S / 2 - 60)
    device.log_in()
    assert said(device) == first
    directed.publish(make_release())
    assert said(device) == first
    rollout = directed.roll_out("1.1", ["dev-1"])
    with_release = said(device)
    assert named(with_release) == ["demo/1.1.manifest"]
    assert versions(with_release) > versions(first)
    assert said(device) == with_release
    assert directed.operator("POST", f"/rollouts/{rollout}/halt").status_code == 200
    halted = said(device)
    assert (named(halted), versions(halted) > versions(with_release)) == ([], True)


def test_an_answer_near_its_end_is_signed_again(directed: Server) -> None:
    device = directed.device()
    first = said(device)
    directed.clock.advance(WEEK_S / 2 + 60)
    device.log_in()
    again = said(device)
    assert versions(again) > versions(first)
    assert json.loads(again.timestamp)["signed"]["expires"] > json.loads(first.timestamp)["signed"]["expires"]


def test_an_answer_from_a_clock_that_ran_ahead_is_signed_again(directed: Server) -> None:
    device = directed.device()
    first = said(device)
    directed.clock.advance(-DAY_S)
    device.log_in()
    again = said(device)
    assert versions(again) == [version + 1 for version in versions(first)]


def test_answers_outlive_a_restart(directed: Server) -> None:
    device = directed.device()
    first = said(device)
    directed.stop()
    directed.start()
    assert said(device) == first


def test_versions_go_on_above_after_the_answers_are_lost(directed: Server) -> None:
    """A database restored from a backup must not fall below what devices have seen."""
    device = directed.device()
    first = said(device)
    with directed.database.write() as transaction:
        transaction.connection.exec_driver_sql("DELETE FROM director_answers")
    directed.clock.advance(120)
    assert versions(said(device)) > versions(first)


def test_what_the_image_repository_signs_anew_is_said_anew(directed: Server) -> None:
    """A publication of metadata alone may change what is signed of a release: the two must agree again."""
    device = directed.device()
    release = make_release()
    directed.publish(release)
    directed.roll_out("1.1", ["dev-1"])
    first = said(device)
    entry = directed.repository.targets.targets[release.manifest.name]
    entry.unrecognized_fields["custom"]["more"] = "text"
    directed.repository.publish("targets", "snapshot", "timestamp")
    answer = directed.operator("POST", "/metadata", json=offered(directed.repository))
    assert answer.status_code in (200, 201), answer.text
    again = said(device)
    assert versions(again) > versions(first)
    assert json.loads(again.targets)["signed"]["targets"][entry.path]["custom"]["more"] == "text"


def test_a_release_from_before_the_director_waits_for_a_publication(directed: Server) -> None:
    device = directed.device()
    release = make_release()
    directed.publish(release)
    directed.roll_out("1.1", ["dev-1"])
    with directed.database.write() as transaction:
        transaction.connection.exec_driver_sql("DELETE FROM release_entries")
    found = poll(device)
    assert found.assignment is None
    assert found.director is not None
    assert named(found.director) == []
    answer = directed.operator("POST", "/metadata", json=offered(directed.repository))
    assert answer.status_code in (200, 201), answer.text
    assert poll(device).assignment is not None


def test_two_polls_at_once_get_one_answer(directed: Server) -> None:
    """Two server processes decide at the same time that there is something new to sign."""
    directed.device()
    own = DirectorFolder(directed.folder).load(NOW, WEEK_S)
    assert own is not None
    at_ms = int(NOW.timestamp()) * 1000
    found: list[answers.Kept] = []
    together = threading.Barrier(8)

    def ask() -> None:
        together.wait(30)
        with directed.database.write() as transaction:
            found.append(answers.issue(transaction, own, "dev-1", 0, "basis", at_ms))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_release_that_went_between_is_a_conflict(directed: Server) -> None:
    directed.device()
    own = DirectorFolder(directed.folder).load(NOW, WEEK_S)
    assert own is not None
    with directed.database.write() as transaction:
        work = partial(answers.issue, transaction, own, "dev-1", 99, "basis", 1)
        with pytest.raises(TwinlockError, match="conflict"):
            work()


def test_an_entry_survives_its_text() -> None:
    repository = Repository()
    release = make_release()
    list_release(repository, release)
    repository.publish("targets")
    targets: Metadata[Targets] = Metadata.from_bytes(repository.served("targets"))
    entry = targets.signed.targets[release.manifest.name]
    assert answers.decode_entry(answers.encode_entry(entry)) == entry


# Keys and roots


def test_the_folder_is_its_owners(server: Server, online: Repository) -> None:
    give(server, online)
    folder = server.folder / "director"
    (key,) = (folder / "keys").iterdir()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    answer = server.http("GET", "/director/metadata/1.root.json")
    assert answer.content == online.served("root")
    for name in ("2.root.json", "0.root.json", "..", "keys", "timestamp.json"):
        assert server.http("GET", f"/director/metadata/{name}").status_code == 404


def test_a_rotation(server: Server, online: Repository) -> None:
    """The new key waits for its root; then it signs, and devices are told that there is a newer root."""
    give(server, online)
    device = server.device()
    first = said(device)
    old_root = online.served("root")
    name_key(online, online.new_key())
    DirectorFolder(server.folder).add_key(online.signers["targets"][0].private_bytes)
    server.stop()
    server.start()
    assert said(device) == first
    online.publish("root")
    give(server, online)
    again = said(device)
    assert again.root_version == 2
    with pytest.raises(TwinlockError, match="metadata-signature"):
        signing.verify_answer(again, "dev-1", old_root, NOW)
    found = signing.verify_answer(again, "dev-1", old_root, NOW, None, [online.served("root")])
    assert found.release is None


def test_the_same_root_again_is_no_change(tmp_path: Path, online: Repository) -> None:
    own = DirectorFolder(tmp_path)
    own.add_key(online.signers["targets"][0].private_bytes)
    assert [own.add_root(online.served("root"), NOW) for _ in range(2)] == [1, 1]


def test_no_root_no_director(tmp_path: Path, online: Repository) -> None:
    own = DirectorFolder(tmp_path)
    assert own.load(NOW, WEEK_S) is None
    own.add_key(online.signers["targets"][0].private_bytes)
    assert own.load(NOW, WEEK_S) is None


def refused(code: str, work: Any) -> None:
    with pytest.raises(TwinlockError) as caught:
        work()
    assert caught.value.code == code, caught.value


def test_roots_that_are_not_taken(tmp_path: Path, online: Repository) -> None:
    own = DirectorFolder(tmp_path)
    first, key = online.served("root"), online.signers["targets"][0]
    refused("key-missing", partial(own.add_root, first, NOW))
    own.add_key(key.private_bytes)
    refused("metadata-malformed", partial(own.add_root, b"{}", NOW))
    refused("metadata-expired", partial(own.add_root, first, NOW + timedelta(days=31)))
    online.root.roles["snapshot"].threshold = 2
    online.add_key("snapshot")
    online.publish("root", bump=False)
    refused("key-missing", partial(own.add_root, online.served("root"), NOW))
    assert own.roots() == {}
    own.add_root(first, NOW)
    refused("input-exists", partial(own.add_root, online.served("root"), NOW))
    stranger = Repository()
    name_key(stranger, key)
    stranger.rotate("root")
    stranger.publish("root")
    refused("metadata-signature", partial(own.add_root, stranger.served("root"), NOW))
    assert own.roots() == {1: first}


def test_keys_that_are_not_taken(tmp_path: Path, online: Repository) -> None:
    own = DirectorFolder(tmp_path)
    for data in (b"", b"text", b"-----BEGIN ENCRYPTED PRIVATE KEY-----"):
        refused("key-unreadable", partial(own.add_key, data))
    key = own.add_key(online.signers["targets"][0].private_bytes)
    own.add_root(online.served("root"), NOW)
    path = tmp_path / f"director/keys/{key.keyid}.pem"
    path.chmod(0o640)
    refused("key-unreadable", partial(own.load, NOW, WEEK_S))
    path.chmod(0o600)
    path.write_bytes(make_key())
    refused("key-unreadable", partial(own.load, NOW, WEEK_S))
    path.unlink()
    refused("key-missing", partial(own.load, NOW, WEEK_S))


def test_roots_that_do_not_follow_each_other(tmp_path: Path, online: Repository) -> None:
    own = DirectorFolder(tmp_path)
    own.add_key(online.signers["targets"][0].private_bytes)
    own.add_root(online.served("root"), NOW)
    (tmp_path / "director/2.root.json").write_bytes(online.served("root"))
    refused("metadata-rollback", partial(own.load, NOW, WEEK_S))


def test_the_life_of_an_answer_is_bounded() -> None:
    key = signing.online_key(make_key())
    own = answers.Director(key, {1: b""}, DAY_S)
    kept = answers.Kept(1, "b", DAY_S * 1000, b"")
    assert answers.in_force(own, kept, "b", 1)
    assert not answers.in_force(own, kept, "c", 1)
    assert not answers.in_force(own, kept, "b", DAY_S * 500)
    assert not answers.in_force(own, kept, "b", -1)
    assert not answers.in_force(own, None, "b", 1)
    assert not answers.in_force(own, replace(kept, expires_ms=0), "b", 1)


# The commands


def test_a_director_by_the_commands_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The online key is made on the server; the holders of the root never see its private half."""
    monkeypatch.chdir(tmp_path)
    assert main(["keys", "create", "--keys", "image-keys"]) == 0
    assert main(["keys", "init", "--keys", "image-keys", "--repo", "repo"]) == 0
    assert main(["server", "init", "srv", "--root", "repo/metadata/1.root.json"]) == 0
    assert main(["server", "director", "key", "srv", "--out", "keys"]) == 0
    assert main(["keys", "create", "--role", "root", "--name", "alice", "--keys", "keys"]) == 0
    assert main(["keys", "init", "--keys", "keys", "--repo", "director"]) == 0
    assert main(["server", "director", "root", "srv", "--root", "director/metadata/1.root.json"]) == 0
    assert "version 1" in capsys.readouterr().out
    settings = load(tmp_path / "srv", {})
    own = DirectorFolder(settings.folder).load(now_utc(SystemClock()), WEEK_S)
    assert own is not None
    assert own.root_version == 1


def test_a_server_made_with_its_director(tmp_path: Path, online: Repository) -> None:
    root = Repository().served("root")
    pem = online.signers["targets"][0].private_bytes
    setup.initialise(tmp_path / "srv", root, director=(online.served("root"), pem), clock=FakeClock())
    own = DirectorFolder(tmp_path / "srv").load(NOW, WEEK_S)
    assert own is not None
    assert public_half(pem).startswith(b"-----BEGIN PUBLIC KEY-----")
