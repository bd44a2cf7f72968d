"""Product lines with keys of their own and hash bins, from the publishing side to device and server."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Targets

from tests.unit.publish.tools import (
    NOW,
    Holders,
    ceremony,
    make_release,
    no_passphrase,
    sign,
    simple_repository,
    state_of,
)
from twinlock.cli.main import main
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import KIB
from twinlock.core.trust.client import Client
from twinlock.core.trust.floors import Floors
from twinlock.publish import keys, lists, releases, roots, rounds, signing, words
from twinlock.publish import request as requests
from twinlock.publish.repository import Chain
from twinlock.server.blobs.metadata import MetadataFiles
from twinlock.server.releases.chain import Offered, verify


class Device:
    """A device's metadata client on a repository's folder, which counts what it fetches."""

    def __init__(self, repo: Path) -> None:
        self.fetched: list[str] = []
        self._repo = repo
        self._files: dict[str, bytes] = {}
        self._floors = Floors()
        self.client = Client(self._fetch, self, NOW, (repo / "metadata/1.root.json").read_bytes())

    def _fetch(self, path: str, size_bytes_max: int) -> bytes | None:
        self.fetched.append(path)
        file = self._repo / "metadata" / path
        return file.read_bytes() if file.exists() else None

    def load(self, role: str) -> bytes | None:
        return self._files.get(role)

    def save(self, role: str, data: bytes) -> None:
        self._files[role] = data

    def delete(self, role: str) -> None:
        self._files.pop(role, None)

    def load_floors(self) -> Floors:
        return self._floors

    def save_floors(self, floors: Floors) -> None:
        self._floors = floors


def code_of(caught: pytest.ExceptionInfo[TwinlockError]) -> str:
    return caught.value.code


def delegate(repo: Path, holders: Holders, *signing_: str, line: str = "line", threshold: int = 1) -> None:
    public = [key.key for key in keys.list_keys(holders.folder / line)]
    with ceremony(repo, holders.ring(*signing_)) as run:
        releases.delegate(run, "demo", public, threshold)
        run.complete()


def with_line(tmp_path: Path) -> tuple[Path, Holders]:
    """A repository whose product line `demo` has a key of its own, held by `line`."""
    repo, holders = simple_repository(tmp_path)
    keys.create(holders.folder / "line", ["targets"], "line", "ed25519", None)
    delegate(repo, holders, "main", "line")
    return repo, holders


def test_a_product_line_is_signed_by_its_own_keys(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = with_line(tmp_path)
    release = make_release(tmp_path, rng, size_bytes=64 * KIB)
    with pytest.raises(TwinlockError, match=r"demo version 2 has 0 of 1 signatures") as caught:
        sign(repo, holders, release, "main")
    assert code_of(caught) == "key-threshold"
    assert sign(repo, holders, None, "main", "line") == {"demo": 2, "snapshot": 2, "timestamp": 2}
    names, repository = state_of(repo)
    assert names == []  # the top list names nothing of the line
    assert [one.name for one in releases.list_releases(repository)] == ["demo/1.0.manifest"]
    assert Device(repo).client.find("demo/1.0.manifest").length > 0


def test_what_was_signed_before_stays(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = simple_repository(tmp_path)
    sign(repo, holders, make_release(tmp_path, rng, size_bytes=64 * KIB), "main")
    keys.create(holders.folder / "line", ["targets"], "line", "ed25519", None)
    delegate(repo, holders, "main", "line")
    sign(repo, holders, make_release(tmp_path, rng, "2.0", 1, 64 * KIB), "main", "line")
    device = Device(repo)
    assert device.client.find("demo/1.0.manifest").length > 0
    assert device.client.find("demo/2.0.manifest").length > 0


def test_a_lines_keys_are_changed_by_the_targets_keys(tmp_path: Path, rng: random.Random) -> None:
    repo, holders = with_line(tmp_path)
    keys.create(holders.folder / "next", ["targets"], "next", "ed25519", None)
    with pytest.raises(TwinlockError, match="demo version 2 has 0 of 1"):
        delegate(repo, holders, "main", "line", line="next")  # the old key no longer counts
    in_force = sign(repo, holders, None, "main", "next")
    assert in_force["demo"] == 2
    Device(repo).client.refresh()


def test_a_line_that_cannot_be(tmp_path: Path) -> None:
    repo, holders = with_line(tmp_path)
    public = [key.key for key in keys.list_keys(holders.folder / "line")]
    with ceremony(repo, holders.ring("main")) as run:
        for product, threshold, code in (
            ("root", 1, "input-invalid"),
            ("x-bins-00", 1, "input-invalid"),
            ("../x", 1, "input-invalid"),
            ("demo", 2, "key-threshold"),
            ("demo", 0, "key-threshold"),
        ):
            with pytest.raises(TwinlockError) as caught:
                releases.delegate(run, product, public, threshold)
            assert code_of(caught) == code


@pytest.fixture
def binned(tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Holders]:
    """A repository of four releases whose list was cut at the fourth."""
    assert lists.NAMES_MAX == 1000
    monkeypatch.setattr(lists, "NAMES_MAX", 3)
    repo, holders = simple_repository(tmp_path)
    for number in range(4):
        sign(repo, holders, make_release(tmp_path, rng, f"1.{number}", 1, 64 * KIB), "main")
    return repo, holders


def test_a_full_list_is_cut_in_bins(binned: tuple[Path, Holders]) -> None:
    repo, _ = binned
    names, repository = state_of(repo)
    assert names == []
    assert len(repository.published_files()) == 1 + 2**lists.BIN_BITS
    assert len(releases.list_releases(repository)) == 4
    for number in range(4):
        device = Device(repo)
        assert device.client.find(f"demo/1.{number}.manifest").length > 0
        assert sum("-bins-" in path for path in device.fetched) == 1
    with pytest.raises(TwinlockError) as caught:
        Device(repo).client.find("demo/9.manifest")
    assert code_of(caught) == "release-unknown"


def test_a_further_release_changes_one_bin(
    binned: tuple[Path, Holders], tmp_path: Path, rng: random.Random
) -> None:
    repo, holders = binned
    in_force = sign(repo, holders, make_release(tmp_path, rng, "2.0", 1, 64 * KIB), "main")
    assert len(in_force) == 3
    assert sorted(role.partition("-bins-")[0] for role in in_force) == ["snapshot", "targets", "timestamp"]
    assert Device(repo).client.find("demo/2.0.manifest").length > 0


def test_a_key_that_goes_no_longer_signs_bins(binned: tuple[Path, Holders]) -> None:
    repo, holders = binned
    keys.create(holders.folder / "new", ["targets"], "new", "ed25519", None)
    (new,) = keys.list_keys(holders.folder / "new")
    (old,) = keys.list_keys(holders.folder / "main", "targets")
    with ceremony(repo, holders.ring("main", "new")) as run:
        roots.rotate(run, roots.Change(add=[("targets", new.key)], remove=[("targets", old.keyid)]))
    _, repository = state_of(repo)
    top = repository.list_of("targets")
    assert top is not None
    assert top.delegations is not None
    assert list(top.delegations.keys) == [new.keyid]
    assert Device(repo).client.find("demo/1.0.manifest").length > 0


def test_a_list_with_product_lines_is_not_cut(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo, holders = with_line(tmp_path)
    top = state_of(repo)[1].list_of("targets")
    assert isinstance(top, Targets)
    with pytest.raises(TwinlockError) as caught:
        lists.cut("targets", top, top)
    assert code_of(caught) == "input-too-large"
    monkeypatch.setattr(lists, "NAMES_MAX", 0)
    sign(repo, holders, make_release(tmp_path, rng, size_bytes=64 * KIB), "main", "line")
    assert Device(repo).client.find("demo/1.0.manifest").length > 0  # the line's list is cut, by its keys


def test_a_bin_that_is_gone_or_changed_is_noticed(binned: tuple[Path, Holders]) -> None:
    repo, _ = binned
    path = sorted((repo / "metadata").glob("*-bins-1f.json"))[0]
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"version": 1', b'"version": 2'))
    with pytest.raises(TwinlockError):
        state_of(repo)
    path.unlink()
    with pytest.raises(TwinlockError) as caught:
        state_of(repo)
    assert code_of(caught) == "metadata-missing"


def test_a_cut_goes_round_as_a_request(
    tmp_path: Path, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "NAMES_MAX", 1)
    repo, holders = simple_repository(tmp_path)
    sign(repo, holders, make_release(tmp_path, rng, size_bytes=64 * KIB), "main")
    away = tmp_path / "away"
    away.mkdir()
    for name in ("targets-main.pem", "targets-main.pub"):
        shutil.move(holders.folder / "main" / name, away / name)
    with pytest.raises(TwinlockError, match="has 0 of 1"):
        sign(repo, holders, make_release(tmp_path, rng, "2.0", 1, 64 * KIB), "main")
    with ceremony(repo, holders.ring("main")) as run:
        checked = requests.check(rounds.make(run.repository), NOW)
        said = "\n".join(words.describe(checked))
        assert "cut in 32 hash bins" in said
        assert "1 names move to other lists of this request, unchanged" in said
        assert said.count("new release") == 1
        ring = keys.KeyRing(keys.list_keys(away), no_passphrase)
        made, _ = requests.sign(checked, ring)
        assert rounds.collect(run, [requests.check(made, NOW)]) == 33
        run.complete()
    assert Device(repo).client.find("demo/2.0.manifest").length > 0


def test_lists_that_delegate_in_a_circle_end() -> None:
    circle = Targets()
    key = CryptoSigner.generate_ed25519().public_key
    lists.delegate(circle, "one", [key], 1)
    lists.delegate(circle, "two", [key], 1)
    edges = [(role, delegator) for role, delegator, _ in lists.walk(lambda role: circle)]
    assert edges[0] == ("targets", "root")
    assert set(edges[1:]) == {(to, of) for to in ("one", "two") for of in ("targets", "one", "two")}
    assert len(edges) == 7


def offered(chain: Chain) -> Offered:
    assert chain.timestamp is not None
    assert chain.snapshot is not None
    assert chain.targets is not None
    return Offered(chain.roots, chain.timestamp, chain.snapshot, chain.targets, chain.delegated)


def test_a_server_takes_all_lists_or_none(binned: tuple[Path, Holders], tmp_path: Path) -> None:
    repo, _ = binned
    chain = state_of(repo)[1].chain
    assert chain is not None
    (tmp_path / "served/metadata").mkdir(parents=True)
    folder = MetadataFiles(tmp_path / "served")
    whole = offered(chain)
    one = Offered(whole.roots, whole.timestamp, whole.snapshot, whole.targets, {})
    with pytest.raises(TwinlockError) as caught:
        verify(one, chain.roots[0], folder, NOW)
    assert code_of(caught) == "metadata-missing"
    verified = verify(whole, chain.roots[0], folder, NOW)
    assert verified.trusted.release("demo/1.0.manifest").length > 0
    for name, data in verified.files.items():
        folder.write(name, data)
    assert (
        verify(one, chain.roots[0], folder, NOW).files == verified.files
    )  # what is served is not sent again
    role = next(iter(chain.delegated))
    changed = signing.decode("targets", chain.delegated[role])
    changed.signatures.clear()
    forged = {**chain.delegated, role: signing.encode(changed)}
    with pytest.raises(TwinlockError):
        verify(
            Offered(whole.roots, whole.timestamp, whole.snapshot, whole.targets, forged),
            chain.roots[0],
            folder,
            NOW,
        )


def test_the_command_delegates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["keys", "create"]) == 0
    assert main(["keys", "init"]) == 0
    assert main(["keys", "create", "--keys", "line", "--role", "targets", "--name", "line"]) == 0
    shutil.copy("line/targets-line.pem", "keys/targets-line.pem")
    shutil.copy("line/targets-line.pub", "keys/targets-line.pub")
    capsys.readouterr()
    assert main(["keys", "delegate", "demo", "--key", "line/targets-line.pub"]) == 0
    assert "In force now: demo 1, targets 1" in capsys.readouterr().out
    assert main(["release", "verify", "repo"]) == 0
    assert main(["keys", "delegate", "demo", "--key", "line/targets-line.pub", "--threshold", "2"]) == 2
