"""A product line that is taken back from keys of its own: what becomes of it on devices, server and stick."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.unit.publish.test_lists import Device, code_of, delegate, offered, with_line
from tests.unit.publish.tools import (
    NOW,
    Holders,
    ceremony,
    make_release,
    no_passphrase,
    sign,
    state_of,
)
from twinlock.cli.main import main
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import KIB
from twinlock.publish import keys, lists, releases, rounds, words
from twinlock.publish import request as requests
from twinlock.publish.repository import Chain
from twinlock.server.blobs.metadata import MetadataFiles
from twinlock.server.releases.chain import verify

NAME = "demo/1.0.manifest"


def take_back(repo: Path, holders: Holders, *signing_: str) -> list[str]:
    with ceremony(repo, holders.ring(*signing_)) as run:
        gone = releases.take_back(run, "demo")
        run.complete()
    return gone


def signed_line(tmp_path: Path, rng: random.Random) -> tuple[Path, Holders]:
    """A repository whose product line has keys of its own, which have signed a release."""
    repo, holders = with_line(tmp_path)
    sign(repo, holders, make_release(tmp_path, rng, size_bytes=64 * KIB), "main", "line")
    return repo, holders


def test_devices_follow_and_take_nothing_that_the_line_signed(tmp_path: Path, rng: random.Random) -> None:
    """A list that disappeared would look like an attack to those that know it, so it stays listed."""
    repo, holders = signed_line(tmp_path, rng)
    old = Device(repo)
    assert old.client.find(NAME).length > 0
    assert take_back(repo, holders, "main") == [NAME]
    for device in (old, Device(repo)):
        device.client._trusted = None
        device.client.refresh()
        with pytest.raises(TwinlockError) as caught:
            device.client.find(NAME)
        assert code_of(caught) == "release-unknown"
    assert releases.list_releases(state_of(repo)[1]) == []


def test_a_release_that_stays_is_signed_again_by_the_targets_keys(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = with_line(tmp_path)
    release = make_release(tmp_path, rng, size_bytes=64 * KIB)
    sign(repo, holders, release, "main", "line")
    old = Device(repo)
    kept = old.client.find(NAME)
    take_back(repo, holders, "main")
    assert "targets" in sign(repo, holders, release, "main")
    old.client._trusted = None
    assert old.client.find(NAME) == kept
    assert state_of(repo)[0] == [NAME]


def test_further_publications_go_on_listing_what_was_taken_back(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = signed_line(tmp_path, rng)
    device = Device(repo)
    device.client.refresh()
    take_back(repo, holders, "main")
    sign(repo, holders, make_release(tmp_path, rng, "2.0", 1, 64 * KIB), "main")
    with ceremony(repo, holders.ring("main")) as run:
        run.renew_targets()
        run.complete(renew=True)
    device.client._trusted = None
    assert device.client.find("demo/2.0.manifest").length > 0


def test_the_lines_bins_go_with_it(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "NAMES_MAX", 1)
    repo, holders = signed_line(tmp_path, rng)
    sign(repo, holders, make_release(tmp_path, rng, "2.0", 1, 64 * KIB), "main", "line")
    device = Device(repo)
    assert device.client.find("demo/2.0.manifest").length > 0
    assert take_back(repo, holders, "main") == [NAME, "demo/2.0.manifest"]
    device.client._trusted = None
    device.client.refresh()


def test_a_server_takes_it_and_serves_no_list_of_the_line(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = signed_line(tmp_path, rng)
    (tmp_path / "served/metadata").mkdir(parents=True)
    folder = MetadataFiles(tmp_path / "served")

    def publish() -> Chain:
        chain = state_of(repo)[1].chain
        assert chain is not None
        for name, data in verify(offered(chain), chain.roots[0], folder, NOW).files.items():
            folder.write(name, data)
        return chain

    publish()
    take_back(repo, holders, "main")
    chain = publish()
    found = verify(offered(chain), chain.roots[0], folder, NOW)
    assert set(found.files) == {"2.targets.json", "3.snapshot.json", "timestamp.json"}


def test_what_was_prepared_for_the_line_is_dropped(tmp_path: Path, rng: random.Random) -> None:
    """A release of the line waits for the line's signature when the line is taken back."""
    repo, holders = signed_line(tmp_path, rng)
    with pytest.raises(TwinlockError):
        sign(repo, holders, make_release(tmp_path, rng, "2.0", 1, 64 * KIB), "main")
    assert take_back(repo, holders, "main") == [NAME, "demo/2.0.manifest"]
    assert state_of(repo)[1].pending == {}


def test_one_line_of_two_is_taken_back(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = signed_line(tmp_path, rng)
    public = [key.key for key in keys.list_keys(holders.folder / "line")]
    with ceremony(repo, holders.ring("main", "line")) as run:
        releases.delegate(run, "other", public, 1)
        run.complete()
    take_back(repo, holders, "main")
    top = state_of(repo)[1].list_of("targets")
    assert top is not None
    assert top.delegations is not None
    assert list(top.delegations.roles or {}) == ["other"]
    assert list(top.delegations.keys) == [public[0].keyid]


def test_it_is_not_delegated_again(tmp_path: Path, rng: random.Random) -> None:
    """The same list would bring back what its former keys signed."""
    repo, holders = signed_line(tmp_path, rng)
    take_back(repo, holders, "main")
    with pytest.raises(TwinlockError, match="was taken back") as caught:
        delegate(repo, holders, "main", "line")
    assert code_of(caught) == "input-invalid"


def test_what_has_no_keys_of_its_own_is_not_taken_back(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = signed_line(tmp_path, rng)
    before = state_of(repo)[1].chain
    with ceremony(repo, holders.ring("main")) as run, pytest.raises(TwinlockError) as caught:
        releases.take_back(run, "other")
    assert code_of(caught) == "input-invalid"
    assert state_of(repo)[1].chain == before


def test_it_goes_round_as_a_request_in_plain_words(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = signed_line(tmp_path, rng)
    away = tmp_path / "away"
    away.mkdir()
    for name in ("targets-main.pem", "targets-main.pub"):
        shutil.move(holders.folder / "main" / name, away / name)
    with pytest.raises(TwinlockError, match="has 0 of 1"):
        take_back(repo, holders, "main")
    with ceremony(repo, holders.ring("main")) as run:
        checked = requests.check(rounds.make(run.repository), NOW)
        said = "\n".join(words.describe(checked))
        assert "demo has no keys of its own any more: what they signed counts no more" in said
        made, _ = requests.sign(checked, keys.KeyRing(keys.list_keys(away), no_passphrase))
        assert rounds.collect(run, [requests.check(made, NOW)]) == 1
        run.complete()
    Device(repo).client.refresh()
    assert releases.list_releases(state_of(repo)[1]) == []


def test_the_command_takes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["keys", "create"]) == 0
    assert main(["keys", "init"]) == 0
    assert main(["keys", "create", "--keys", "line", "--role", "targets", "--name", "line"]) == 0
    for kind in ("pem", "pub"):
        shutil.copy(f"line/targets-line.{kind}", f"keys/targets-line.{kind}")
    assert main(["keys", "delegate", "demo", "--key", "line/targets-line.pub"]) == 0
    capsys.readouterr()
    assert main(["keys", "delegate", "demo", "--key", "line/targets-line.pub", "--remove"]) == 2
    assert main(["keys", "delegate", "demo"]) == 2
    assert main(["keys", "delegate", "demo", "--remove", "--json"]) == 0
    assert '"taken_back":[]' in capsys.readouterr().out
    assert main(["release", "verify", "repo"]) == 0
    assert main(["keys", "list", "--repo", "repo"]) == 0
    assert "demo" not in capsys.readouterr().out
