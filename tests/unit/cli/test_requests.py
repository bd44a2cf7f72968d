"""Signing requests from repository to holders and back, by the commands, and every way to cheat with one.

Three holders (root and targets 2 of 3), a robot with the online keys, and a builder who has no private key
but the robot's. No folder of a holder ever holds the repository.
"""

from __future__ import annotations

import base64
import json
import random
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.project_files import ROOT
from tests.unit.cli.world import PACK
from tests.unit.publish.tools import files_under, image_bytes
from twinlock.cli.main import main
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import MIB
from twinlock.publish import request as requests
from twinlock.publish.keys import create, list_keys

Capture = pytest.CaptureFixture[str]
HOLDERS = ("ann", "bob", "cid")
VECTOR = ROOT / "tests/vectors/signing-request-v1.json"


def ok(*args: str) -> None:
    code = main(args)
    assert code == 0, f"twinlock {' '.join(args)} ended with {code}"


def fails(capsys: Capture, code: str, *args: str) -> str:
    capsys.readouterr()
    assert main(args) != 0
    err = capsys.readouterr().err
    assert f"error[{code}]" in err, err
    return err


def public_halves(source: Path, goal: Path) -> None:
    for path in source.glob("*.pub"):
        shutil.copy(path, goal / path.name)


def build(folder: Path) -> None:
    """demo 1.0 in force by requests alone; demo 1.1 waits, and `request.json` asks for signatures."""
    for holder in HOLDERS:
        ok("keys", "create", "--keys", holder, "--name", holder, "--role", "root", "--role", "targets")
    ok("keys", "create", "--keys", "robot", "--role", "snapshot", "--role", "timestamp")
    for holder in HOLDERS:
        public_halves(folder / holder, folder / "robot")
    thresholds = ["--threshold", "root=2", "--threshold", "targets=2"]
    assert main(["keys", "init", "--keys", "robot", *thresholds]) == 2
    round_trip(folder, "ann", "bob")
    pack(folder, "1.0", 3)
    assert main(["release", "sign", "demo-1.0", "--keys", "robot"]) == 2
    round_trip(folder, "bob", "cid")
    pack(folder, "1.1", 4)
    assert main(["release", "sign", "demo-1.1", "--keys", "robot"]) == 2
    ok("release", "request")


def pack(folder: Path, version: str, counter: int) -> None:
    (folder / "image").write_bytes(image_bytes(random.Random(version), MIB))
    ok("release", "pack", "image", "--version", version, "--counter", str(counter), *PACK)


def round_trip(folder: Path, *holders: str) -> None:
    ok("release", "request", "--out", "round.json")
    for holder in holders:
        ok("release", "sign", "--request", "round.json", "--keys", holder, "--yes")
    ok("release", "collect", "round.json", "--keys", "robot")
    (folder / "round.json").unlink()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("requests") / "world"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build(folder)
    return folder


@pytest.fixture
def world(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(base, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    return tmp_path / "world"


def sign(holder: str, *more: str) -> tuple[str, ...]:
    return ("release", "sign", "--request", "request.json", "--keys", holder, "--yes", *more)


COLLECT = ("release", "collect", "request.json", "--keys", "robot")


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edit_file(role: str, change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    """A change of the metadata inside a request."""

    def apply(data: dict[str, Any]) -> None:
        inner = json.loads(base64.b64decode(data["files"][role]))
        change(inner)
        data["files"][role] = base64.b64encode(json.dumps(inner).encode()).decode()

    return apply


def test_a_release_goes_round_in_plain_words(world: Path, capsys: Capture) -> None:
    root = str(world / "repo/metadata/1.root.json")
    ok(*sign("ann", "--root", root))
    said = capsys.readouterr().out
    assert "List of releases 1 -> 2, valid until" in said
    assert "new release demo 1.1 for demo-board, counter 3 -> 4" in said
    assert "signed by 0 of the 2 needed of the keys" in said
    assert "it needs more signatures: pass it on" in said
    assert "key-threshold" in fails(capsys, "key-threshold", *COLLECT)
    ok(*sign("cid"))
    assert "it has all signatures" in capsys.readouterr().out
    ok("release", "inspect", "request.json", "--root", root)
    shown = capsys.readouterr().out
    assert "signed by 2 of the 2 needed" in shown
    assert "ok: roots, published lists, manifests and signatures hold together" in shown
    ok("release", "verify", "request.json")
    ok(*COLLECT)
    ok("release", "verify", "repo", "--root", root)
    capsys.readouterr()
    ok("release", "list", "--repo", "repo")
    listed = capsys.readouterr().out
    assert listed.count(" published") == 2
    assert "waits" not in listed


def test_holders_may_sign_copies_at_the_same_time(world: Path, capsys: Capture) -> None:
    shutil.copy("request.json", "second.json")
    ok(*sign("ann"))
    ok("release", "sign", "--request", "second.json", "--keys", "bob", "--yes", "--json")
    ok("release", "collect", "request.json", "second.json", "--keys", "robot")
    assert "Took 2 signatures. In force now: targets 2" in capsys.readouterr().out


def test_every_key_is_rotated_and_one_is_lost(world: Path, capsys: Capture) -> None:
    """cid has lost every key: dan takes the place with what ann and bob sign; the online keys go as well."""
    ok("release", "abandon")
    ok("keys", "create", "--keys", "dan", "--name", "dan", "--role", "root", "--role", "targets")
    ok("keys", "create", "--keys", "robot2", "--role", "snapshot", "--role", "timestamp", "--name", "new")
    gone = [key for key in list_keys(Path("cid")) + list_keys(Path("robot")) if key.name in ("cid", "main")]
    options = []
    for role, keyid in {(key.role, key.keyid) for key in gone}:
        options += ["--remove", f"{role}={keyid[:12]}"]
    for key in list_keys(Path("dan")) + list_keys(Path("robot2")):
        options += ["--add", f"{key.role}={key.public}"]
    fails(capsys, "key-threshold", "keys", "rotate", "--keys", "robot2", *options)
    ok("release", "request", "--out", "rotate.json")
    said = capsys.readouterr().out
    assert "Root of trust 1 -> 2" in said
    assert said.count(" comes") == 4
    assert said.count(" goes") == 4
    for holder in ("ann", "dan"):
        ok("release", "sign", "--request", "rotate.json", "--keys", holder, "--yes")
    err = fails(capsys, "key-threshold", "release", "collect", "rotate.json", "--keys", "robot2")
    assert "root version 2 has 1 of 2 signatures" in err  # the old root knows ann alone of the two
    ok("release", "sign", "--request", "rotate.json", "--keys", "bob", "--yes")
    ok("release", "collect", "rotate.json", "--keys", "robot2")
    ok("release", "verify", "repo", "--root", str(world / "repo/metadata/1.root.json"))


def test_a_person_is_asked_and_may_refuse(
    world: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_under(world)
    args = sign("ann")[:-1]
    assert "nobody has agreed" in fails(capsys, "input-invalid", *args)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda text: False)
    assert "you did not agree" in fails(capsys, "input-invalid", *args)
    assert files_under(world) == before
    monkeypatch.setattr("typer.confirm", lambda text: True)
    ok(*args)


def test_tampering_before_the_first_signature_is_seen_at_home(world: Path, capsys: Capture) -> None:
    before = files_under(world / "repo")
    edit(world / "request.json", edit_file("targets", lambda one: one["signed"].update(x="y")))
    ok(*sign("ann"))
    ok(*sign("bob"))
    fails(capsys, "request-changed", *COLLECT)
    assert files_under(world / "repo") == before


def test_tampering_after_a_signature_is_seen_by_everyone(world: Path, capsys: Capture) -> None:
    ok(*sign("ann"))
    edit(world / "request.json", edit_file("targets", lambda one: one["signed"].update(x="y")))
    before = files_under(world)
    for args in (sign("bob"), COLLECT, ("release", "verify", "request.json")):
        fails(capsys, "signature-invalid", *args)
    assert files_under(world) == before


def test_a_stale_request_is_refused(world: Path, capsys: Capture) -> None:
    shutil.copy("request.json", "late.json")
    ok(*sign("ann"))
    ok(*sign("bob"))
    ok("release", "sign", "--request", "late.json", "--keys", "cid", "--yes")
    ok(*COLLECT)
    before = files_under(world / "repo")
    fails(capsys, "request-stale", "release", "collect", "late.json", "--keys", "robot")
    assert files_under(world / "repo") == before


def test_a_request_from_before_a_rotation_is_refused(world: Path, capsys: Capture) -> None:
    root = world / "repo/metadata/1.root.json"
    shutil.copy("request.json", "late.json")
    ok("release", "abandon")
    fails(capsys, "key-threshold", "keys", "rotate", "--keys", "robot")
    round_trip(world, "ann", "bob")
    ok("release", "sign", "--request", "late.json", "--keys", "ann", "--yes", "--root", str(root))
    newer = str(world / "repo/metadata/2.root.json")
    fails(capsys, "request-stale", "release", "verify", "late.json", "--root", newer)
    fails(capsys, "request-stale", "release", "collect", "late.json", "--keys", "robot")


def test_another_release_prepared_meanwhile_is_noticed(world: Path, capsys: Capture) -> None:
    pack(world, "1.2", 4)
    fails(capsys, "key-threshold", "release", "sign", "demo-1.2", "--keys", "robot")
    ok(*sign("ann"))
    fails(capsys, "request-changed", *COLLECT)
    ok("release", "abandon")
    fails(capsys, "request-stale", *COLLECT)
    fails(capsys, "input-missing", "release", "request", "--out", "none.json")
    assert not Path("none.json").exists()


def test_a_key_that_nobody_asks_for(world: Path, capsys: Capture) -> None:
    create(Path("eve"), ["root", "targets"], "eve", "ed25519", None)
    fails(capsys, "signature-unasked", *sign("eve"))
    fails(capsys, "signature-unasked", *sign("robot"))
    ok(*sign("ann"))

    def forge(one: dict[str, Any]) -> None:
        one["signatures"][0]["keyid"] = list_keys(Path("eve"), "targets")[0].keyid

    edit(world / "request.json", edit_file("targets", forge))
    fails(capsys, "signature-unasked", *sign("bob"))
    fails(capsys, "signature-unasked", *COLLECT)


def test_the_same_signature_twice(world: Path, capsys: Capture) -> None:
    ok(*sign("ann"))
    before = files_under(world)
    fails(capsys, "signature-repeated", *sign("ann"))
    assert files_under(world) == before
    fails(capsys, "key-threshold", *COLLECT)
    fails(capsys, "signature-repeated", *COLLECT)
    edit(
        world / "request.json",
        edit_file("targets", lambda one: one["signatures"].append(one["signatures"][0])),
    )
    fails(capsys, "signature-repeated", *sign("bob"))


def test_no_more_signatures_than_are_asked_for(world: Path, capsys: Capture) -> None:
    ok(*sign("ann"))
    ok(*sign("bob"))
    fails(capsys, "signature-repeated", *sign("cid"))


def drop_manifest(data: dict[str, Any]) -> None:
    data["manifests"] = {}


def swap_manifest(data: dict[str, Any]) -> None:
    data["manifests"] = {name: base64.b64encode(b"{}").decode() for name in data["manifests"]}


def more_manifests(data: dict[str, Any]) -> None:
    data["manifests"]["demo/9.manifest"] = next(iter(data["manifests"].values()))


def later_version(data: dict[str, Any]) -> None:
    data["format_version"] = 2


def unknown_field(data: dict[str, Any]) -> None:
    data["more"] = 1


def no_roots(data: dict[str, Any]) -> None:
    data["roots"] = []


def forged_base(data: dict[str, Any]) -> None:
    data["base"]["targets"] = data["files"]["targets"]


def online_role(data: dict[str, Any]) -> None:
    data["files"]["snapshot"] = data["files"]["targets"]


def foreign_role(data: dict[str, Any]) -> None:
    data["files"]["other"] = data["files"]["targets"]


def jump(data: dict[str, Any]) -> None:
    edit_file("targets", lambda one: one["signed"].update(version=9))(data)


def changed_release(data: dict[str, Any]) -> None:
    edit_file("targets", lambda one: one["signed"]["targets"]["demo/1.0.manifest"].update(length=7))(data)


def ended(data: dict[str, Any]) -> None:
    edit_file("targets", lambda one: one["signed"].update(expires="2020-01-01T00:00:00Z"))(data)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (drop_manifest, "request-changed"),
        (swap_manifest, "manifest-hash"),
        (more_manifests, "request-changed"),
        (later_version, "format-unknown"),
        (unknown_field, "input-wrong-type"),
        (no_roots, "request-changed"),
        (forged_base, "request-changed"),
        (online_role, "request-changed"),
        (foreign_role, "request-changed"),
        (jump, "request-changed"),
        (changed_release, "request-changed"),
        (ended, "metadata-expired"),
    ],
)
def test_a_request_that_does_not_hold_together_is_not_signed(
    world: Path, capsys: Capture, change: Callable[[dict[str, Any]], None], code: str
) -> None:
    edit(world / "request.json", change)
    before = files_under(world)
    fails(capsys, code, *sign("ann"))
    fails(capsys, code, "release", "verify", "request.json")
    fails(capsys, code, *COLLECT)
    assert files_under(world) == before


def test_the_vector_of_version_1_is_read_for_ever() -> None:
    """Made once by the commands; what it asks for, and its digest, never change."""
    pinned = json.loads(VECTOR.read_text())
    request = requests.decode(json.dumps(pinned["request"]).encode(), "the vector")
    now = datetime.fromisoformat(pinned["now"])
    checked = requests.check(request, now)
    assert checked.digest == pinned["digest"]
    assert [item.role for item in checked.items] == pinned["roles"]
    assert [one.missing for item in checked.items for one in item.signatures()] == pinned["missing"]
    assert requests.decode(requests.encode(request), "again") == request


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = json.loads(VECTOR.read_text())
    data = json.dumps(pinned["request"]).encode()
    for name, most in (("REQUEST_SIZE_BYTES_MAX", len(data) - 1), ("ROOTS_MAX", 0), ("MANIFESTS_MAX", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(requests, name, most)
            with pytest.raises(TwinlockError) as caught:
                requests.decode(data, "it")
            assert caught.value.code == "input-too-large"
