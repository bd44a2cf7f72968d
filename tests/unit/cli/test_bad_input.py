"""Every command with input that is missing, truncated, oversized, of the wrong type, unreadable, forged...

One table: what is broken, the command, the error's code. Each case must end in one line with that code and
its exit code, without a trace of a fault, and everything that was there must still be there, byte for byte.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
import typer

from tests.unit.cli import operator_server as fake
from tests.unit.cli.operator_server import OperatorServer
from tests.unit.cli.world import PACK
from tests.unit.publish.tools import as_nobody, file_size_limit
from twinlock.cli.main import main
from twinlock.core.errors import CATALOGUE, EXIT_CODES
from twinlock.core.limits import IMAGE_SIZE_BYTES_MAX, SBOM_SIZE_BYTES_MAX
from twinlock.publish import keys as key_files

Break = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """`command` after `breaks` ends with `code`; `full_at_bytes` is where every file's disk is full."""

    command: str
    code: str
    breaks: Break = lambda world: None
    full_at_bytes: int | None = None
    fault: tuple[str, fake.Fault] | None = None
    nobody: bool = False
    may_change: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        how = self.breaks.__qualname__.split(".")[0].strip("<>")
        if self.full_at_bytes is not None:
            how = f"full at {self.full_at_bytes}"
        if self.fault is not None:
            how = f"{self.fault[0]} {self.fault[1].__name__}"
        return f"{self.command[:70]} | {how} | {self.code}"


def payload_of(world: Path, folder: str = "demo-1.1") -> Path:
    (path,) = (world / folder).glob("*.payload")
    return path


def no_keys(world: Path) -> None:
    for path in (world / "keys").iterdir():
        path.unlink()


def no_private_targets_key(world: Path) -> None:
    (world / "keys/targets-main.pem").unlink()


def open_key(world: Path) -> None:
    (world / "keys/targets-main.pem").chmod(0o644)


def broken_key(world: Path) -> None:
    path = world / "keys/targets-main.pem"
    path.write_bytes(path.read_bytes()[:60])


def broken_public_key(world: Path) -> None:
    (world / "keys/root-main.pub").write_bytes(b"\x00" * 50)


def locked_key(world: Path) -> None:
    for name in ("targets-main.pem", "targets-main.pub"):
        (world / "keys" / name).unlink()
    key_files.create(world / "keys", ["targets"], "main", "ed25519", b"long enough")
    (world / "wrong").write_bytes(b"wrong passphrase\n")
    (world / "empty").write_bytes(b"\n")
    # the repository does not know the new key, so start over with it
    for name in ("repo/metadata", "repo/pending"):
        for path in (world / name).iterdir():
            path.unlink()
    assert main(["keys", "init"]) == 0


def empty_passphrase(world: Path) -> None:
    (world / "empty").write_bytes(b"\n")


def no_image(world: Path) -> None:
    (world / "image").unlink()


def empty_image(world: Path) -> None:
    (world / "image").write_bytes(b"")


def odd_image(world: Path) -> None:
    (world / "image").write_bytes(b"x" * 700)


def folder_image(world: Path) -> None:
    (world / "image").unlink()
    (world / "image").mkdir()


def pipe_image(world: Path) -> None:
    (world / "image").unlink()
    os.mkfifo(world / "image")


def huge_image(world: Path) -> None:
    os.truncate(world / "image", IMAGE_SIZE_BYTES_MAX + 512)


def secret_image(world: Path) -> None:
    world.parent.chmod(0o755)
    (world / "image").chmod(0)


def no_record(world: Path) -> None:
    (world / "demo-1.1/release.json").unlink()


def cut_record(world: Path) -> None:
    os.truncate(world / "demo-1.1/release.json", 100)


def huge_record(world: Path) -> None:
    (world / "demo-1.1/release.json").write_bytes(b" " * 100_000)


def deep_record(world: Path) -> None:
    (world / "demo-1.1/release.json").write_bytes(b"[" * 60_000)


def escaping_record(world: Path) -> None:
    path = world / "demo-1.1/release.json"
    record = json.loads(path.read_bytes())
    record["payloads"][0]["sha256"] = "../../../../etc/passwd"
    path.write_text(json.dumps(record))


def cut_manifest(world: Path) -> None:
    os.truncate(world / "demo-1.1/1.1.manifest", 100)


def no_manifest(world: Path) -> None:
    (world / "demo-1.1/1.1.manifest").unlink()


def cut_payload(world: Path) -> None:
    path = payload_of(world)
    os.truncate(path, path.stat().st_size - 1)


def empty_payload(world: Path) -> None:
    os.truncate(payload_of(world), 0)


def no_payload(world: Path) -> None:
    payload_of(world).unlink()


def flipped_payload(world: Path) -> None:
    flip(payload_of(world), 100)


def foreign_payload(world: Path) -> None:
    payload_of(world).write_bytes(payload_of(world, "demo-1.0").read_bytes())


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def changed_release(world: Path) -> None:
    """Another image under the published name."""
    for path in (world / "demo-1.0").iterdir():
        path.unlink()
    assert main(["release", "pack", "image", "--version", "1.0", "--counter", "3", *PACK]) == 0


def lower_counter(world: Path) -> None:
    assert main(["release", "pack", "image", "--version", "1.2", "--counter", "2", *PACK]) == 0


def no_root(world: Path) -> None:
    for path in (world / "repo/metadata").iterdir():
        path.unlink()


def cut_timestamp(world: Path) -> None:
    os.truncate(world / "repo/metadata/timestamp.json", 200)


def forged_targets(world: Path) -> None:
    path = world / "repo/metadata/1.targets.json"
    path.write_bytes(path.read_bytes().replace(b'"demo-board"', b'"evil-board"'))


def huge_root(world: Path) -> None:
    (world / "repo/metadata/1.root.json").write_bytes(b" " * 600_000)


def stranger_root(world: Path) -> None:
    """A root of somebody else, to verify by."""
    assert main(["keys", "create", "--keys", "other"]) == 0
    assert main(["keys", "init", "--keys", "other", "--repo", "theirs"]) == 0


def repo_is_a_file(world: Path) -> None:
    (world / "file").write_bytes(b"")


def damaged_repo_payload(world: Path) -> None:
    (path,) = (world / "repo/payloads").iterdir()
    flip(path, 100)


def waiting(world: Path) -> None:
    (world / "keys/targets-main.pem").rename(world / "keys/elsewhere")
    assert main(["release", "sign", "demo-1.1"]) == EXIT_CODES[CATALOGUE["key-threshold"].kind]


def binary(world: Path) -> None:
    (world / "file").write_bytes(bytes(range(256)) * 10)


def other_json(world: Path) -> None:
    (world / "file").write_text('{"signed": {"_type": "mirrors"}, "signatures": []}')


def deep_sbom(world: Path) -> None:
    (world / "file").write_bytes(b'{"bomFormat": "CycloneDX", "specVersion": "1.6", "x": ' + b"[" * 60_000)


def later_sbom(world: Path) -> None:
    (world / "file").write_text('{"bomFormat": "CycloneDX", "specVersion": "9.0"}')


def huge_sbom(world: Path) -> None:
    (world / "file").write_bytes(b"")
    os.truncate(world / "file", SBOM_SIZE_BYTES_MAX + 1)


def a_pipe(world: Path) -> None:
    os.mkfifo(world / "pipe")


def damaged_index(world: Path) -> None:
    """A payload still, by its end; so its own problem is told."""
    data = payload_of(world).read_bytes()
    (world / "file").write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])


def empty_token(world: Path) -> None:
    (world / "token").write_text("\n")


def huge_token(world: Path) -> None:
    (world / "token").write_text("x" * 10_000)


PACK_IMAGE = f"release pack image --version 2.0 {' '.join(PACK)}"
SIGN = "release sign demo-1.1"
PUBLISH = "release publish --server URL --token-file token"
LIST = "release list --server URL --token-file token"
SHOW = "release show --server URL --token-file token "

KEYS = [
    Case("keys create", "input-exists"),
    Case("keys create --role admin", "input-invalid"),
    Case("keys create --name ../x", "input-invalid"),
    Case("keys create --type dsa --name x", "input-invalid"),
    Case("keys create --name x --passphrase", "input-invalid"),
    Case("keys create --name x --passphrase-file none", "input-missing"),
    Case("keys create --name x --passphrase-file empty", "input-invalid", empty_passphrase),
    Case("keys create --keys image/keys", "input-missing"),
    Case("keys create --name x", "disk-full", full_at_bytes=10),
    Case("keys import nowhere:1 --role root --name x", "input-invalid"),
    Case("keys import hsm:x --role root --name x", "input-invalid"),
    Case("keys import hsm:1 --role admin --name x", "input-invalid"),
    Case("keys import hsm:1 --role root", "input-exists"),
    Case("keys delegate demo --key none.pub", "input-missing"),
    Case("keys delegate demo --key pipe", "input-wrong-type", a_pipe),
    Case("keys rotate --add targets=pipe", "input-wrong-type", a_pipe),
    Case("keys delegate demo", "input-invalid"),
    Case("keys delegate demo --remove", "input-invalid"),
    Case("keys delegate demo --remove --key keys/targets-main.pub", "input-invalid"),
    Case("keys delegate root --key keys/targets-main.pub", "input-invalid"),
    Case("keys delegate demo --threshold 2 --key keys/targets-main.pub", "key-threshold"),
    Case("keys init", "input-exists"),
    Case("keys init --repo new --keys none", "input-missing"),
    Case("keys init --repo new", "key-missing", no_keys, may_change=("new",)),
    Case("keys init --repo new --threshold root=2", "key-threshold", may_change=("new",)),
    Case("keys init --repo new --threshold root", "input-invalid"),
    Case("keys init --repo new --threshold root=x", "input-invalid"),
    Case("keys init --repo new --threshold root=99999", "input-invalid"),
    Case("keys init --repo new --threshold admin=1", "input-invalid"),
    Case("keys init --repo new --root-days 0", "input-invalid", may_change=("new",)),
    Case("keys init --repo new", "key-unreadable", broken_public_key),
    Case("keys init --repo image", "input-missing"),
    Case("keys list --keys none", "input-missing"),
    Case("keys list --keys image", "input-missing"),
    Case("keys list", "key-unreadable", broken_public_key),
    Case("keys list --repo none", "input-missing"),
    Case("keys list --repo repo", "input-too-large", huge_root),
    Case("keys rotate --repo none", "input-missing"),
    Case("keys rotate --repo repo", "input-missing", no_root),
    Case("keys rotate --add targets", "input-invalid"),
    Case("keys rotate --add targets=none.pub", "input-missing"),
    Case("keys rotate --add targets=image", "input-too-large"),
    Case("keys rotate --add targets=keys/targets-main.pub", "input-exists"),
    Case("keys rotate --remove targets=000000", "input-invalid"),
    Case("keys rotate --remove targets=", "input-invalid"),
    Case("keys rotate --threshold targets=2", "key-threshold"),
    Case("keys rotate", "disk-full", full_at_bytes=100),
]

PACKING = [
    Case(PACK_IMAGE, "input-missing", no_image),
    Case(PACK_IMAGE, "image-empty", empty_image),
    Case(PACK_IMAGE, "image-unaligned", odd_image),
    Case(PACK_IMAGE, "input-wrong-type", folder_image),
    Case(PACK_IMAGE, "input-wrong-type", pipe_image),
    Case(PACK_IMAGE, "input-too-large", huge_image),
    Case(PACK_IMAGE, "input-unreadable", secret_image, nobody=True),
    Case(PACK_IMAGE, "disk-full", full_at_bytes=1000),
    Case(PACK_IMAGE + " --out demo-1.0", "input-exists"),
    Case(PACK_IMAGE + " --out image", "input-missing"),
    Case(PACK_IMAGE + " --level 99", "input-invalid"),
    Case(PACK_IMAGE + " --jobs -1", "input-invalid"),
    Case(PACK_IMAGE + " --counter -1", "input-invalid"),
    Case(PACK_IMAGE + " --counter 99999999999999999999", "input-invalid"),
    Case(PACK_IMAGE + " --hardware demo-board", "input-invalid"),
    Case(PACK_IMAGE + " --hardware a/b", "input-invalid"),
    Case(PACK_IMAGE + " --sbom none", "input-missing"),
    Case(PACK_IMAGE + " --sbom token", "input-wrong-type"),
    Case(PACK_IMAGE + " --sbom keys", "input-wrong-type"),
    Case(PACK_IMAGE + " --sbom pipe", "input-wrong-type", a_pipe),
    Case(PACK_IMAGE + " --sbom file", "input-wrong-type", other_json),
    Case(PACK_IMAGE + " --sbom file", "input-wrong-type", binary),
    Case(PACK_IMAGE + " --sbom file", "input-wrong-type", deep_sbom),
    Case(PACK_IMAGE + " --sbom file", "format-unknown", later_sbom),
    Case(PACK_IMAGE + " --sbom file", "input-too-large", huge_sbom),
    Case(PACK_IMAGE + " --advisory none", "input-missing"),
    Case(PACK_IMAGE + " --advisory keys", "input-wrong-type"),
    Case(PACK_IMAGE + " --advisory pipe", "input-wrong-type", a_pipe),
    Case(PACK_IMAGE + " --advisory file", "input-wrong-type", binary),
    Case(PACK_IMAGE + " --support-ends soon", "input-invalid"),
    Case(PACK_IMAGE + " --support-ends 2031-02-30", "input-invalid"),
    Case(PACK_IMAGE + " --advisory demo-1.0/1.0.manifest --support-ends soon", "input-invalid"),
    Case(PACK_IMAGE + " --advisory empty", "input-invalid", empty_passphrase),
    Case(PACK_IMAGE + " --advisory image", "input-too-large"),
    Case(PACK_IMAGE + " --notes " + "x" * 5000, "input-invalid"),
    Case("release pack image --product .. --version 1 --hardware b", "input-invalid"),
    Case("release pack image --product demo --version a/b --hardware b", "input-invalid"),
]

SIGNING = [
    Case("release delta --from none --to demo/1.0", "input-invalid"),
    Case("release delta --from demo/9.9 --to demo/1.0", "release-unknown"),
    Case("release delta --from demo/1.0 --to demo/1.0 --repo none", "input-missing"),
    Case("release delta --from demo/1.0 --to keys", "input-missing"),
    Case("release delta --from demo-1.1 --to demo/1.0", "payload-part-hash", flipped_payload),
    Case("release sign none", "input-missing"),
    Case("release sign --yes --request none", "input-missing"),
    Case("release sign --yes --request demo-1.0/release.json", "input-wrong-type"),
    Case("release sign demo-1.1 --request image", "input-invalid"),
    Case("release request --repo none", "input-missing"),
    Case("release request", "input-missing"),
    Case("release request --out image", "input-exists"),
    Case("release collect none", "input-missing"),
    Case("release collect demo-1.0/release.json", "input-wrong-type"),
    Case("release sign image", "input-missing"),
    Case(SIGN + " --repo none", "input-missing"),
    Case(SIGN + " --repo file", "input-missing", repo_is_a_file),
    Case(SIGN + " --keys none", "input-missing"),
    Case(SIGN, "input-missing", no_root),
    Case(SIGN, "key-threshold", no_keys, may_change=("repo",)),
    Case(SIGN, "key-threshold", no_private_targets_key, may_change=("repo",)),
    Case(SIGN, "key-unreadable", open_key, may_change=("repo",)),
    Case(SIGN, "key-unreadable", broken_key, may_change=("repo",)),
    Case(SIGN, "key-unreadable", locked_key, may_change=("repo",)),
    Case(SIGN + " --passphrase-file wrong", "key-unreadable", locked_key, may_change=("repo",)),
    Case(SIGN + " --passphrase-file empty", "input-invalid", locked_key, may_change=("repo",)),
    Case(SIGN + " --passphrase-file none", "input-missing"),
    Case(SIGN + " --passphrase-file image", "input-too-large"),
    Case(SIGN, "input-missing", no_record),
    Case(SIGN, "input-wrong-type", cut_record),
    Case(SIGN, "input-too-large", huge_record),
    Case(SIGN, "input-wrong-type", deep_record),
    Case(SIGN, "input-invalid", escaping_record),
    Case(SIGN, "manifest-hash", cut_manifest),
    Case(SIGN, "input-missing", no_manifest),
    Case(SIGN, "payload-malformed", cut_payload),
    Case(SIGN, "payload-malformed", empty_payload),
    Case(SIGN, "input-missing", no_payload),
    Case(SIGN, "payload-part-hash", flipped_payload),
    Case(SIGN, "payload-unfit", foreign_payload),
    Case("release sign demo-1.0", "input-exists", changed_release),
    Case("release sign demo-1.2", "release-older", lower_counter),
    Case(SIGN, "metadata-malformed", cut_timestamp),
    Case(SIGN, "metadata-mismatch", forged_targets),
    Case(SIGN, "disk-full", full_at_bytes=1000),
    Case(
        SIGN + " --targets-days 0",
        "input-invalid",
        may_change=("repo/payloads", "repo/targets", "repo/releases"),
    ),
    Case(SIGN + " --timestamp-days 99999", "input-invalid", may_change=("repo",)),
]

KEEPING = [
    Case("release refresh --repo none", "input-missing"),
    Case("release refresh --keys none", "input-missing"),
    Case("release refresh", "input-missing", no_root),
    Case("release refresh --repo theirs", "metadata-missing", stranger_root),
    Case("release refresh", "key-threshold", no_keys, may_change=("repo/pending",)),
    Case("release refresh", "metadata-mismatch", forged_targets),
    Case("release refresh", "disk-full", full_at_bytes=100),
    Case("release abandon --repo none", "input-missing"),
    Case("release inspect none", "input-missing"),
    Case("release inspect keys", "input-wrong-type"),
    Case("release inspect file", "input-wrong-type", binary),
    Case("release inspect file", "input-wrong-type", other_json),
    Case("release inspect file", "input-wrong-type", repo_is_a_file),
    Case("release inspect pipe", "input-wrong-type", a_pipe),
    Case("release sign --request pipe", "input-wrong-type", a_pipe),
    Case("release collect pipe", "input-wrong-type", a_pipe),
    Case("release inspect file", "payload-index-hash", damaged_index),
    Case("release inspect demo-1.1", "payload-hash", flipped_payload),
    Case("release inspect demo-1.1", "payload-malformed", cut_payload),
    Case("release inspect demo-1.1/1.1.manifest", "input-wrong-type", cut_manifest),
    Case("release inspect repo", "payload-hash", damaged_repo_payload),
    Case("release inspect repo/metadata/1.targets.json --root none", "input-missing"),
    Case("release inspect repo/metadata/1.targets.json --root pipe", "input-wrong-type", a_pipe),
    Case(
        "release inspect repo/metadata/1.targets.json --root theirs/metadata/1.root.json",
        "metadata-signature",
        stranger_root,
    ),
    Case("release verify", "payload-hash", damaged_repo_payload),
    Case("release verify", "metadata-mismatch", forged_targets),
    Case("release verify --root theirs/metadata/1.root.json", "metadata-signature", stranger_root),
    Case("release verify none", "input-missing"),
]

SENDING = [
    Case(PUBLISH + " --repo none", "input-missing"),
    Case(PUBLISH, "payload-hash", damaged_repo_payload),
    Case(PUBLISH, "key-threshold", waiting),
    Case(PUBLISH, "metadata-mismatch", forged_targets),
    Case(PUBLISH, "input-invalid", empty_token),
    Case(PUBLISH, "input-too-large", huge_token),
    Case(PUBLISH + " demo/9.9", "release-unknown"),
    Case(PUBLISH + " demo", "input-invalid"),
    Case("release publish --server URL --token wrong", "unauthorised"),
    Case("release publish --server URL", "input-invalid"),
    Case("release publish --server ftp://x --token t", "input-invalid"),
    Case("release publish --server http://127.0.0.1:1 --token t", "server-unreachable"),
    Case(PUBLISH, "disk-full", fault=("PUT", fake.full)),
    Case(PUBLISH, "answer-malformed", fault=("GET", fake.not_json)),
    Case(PUBLISH, "redirect-refused", fault=("GET", fake.elsewhere)),
    Case(LIST, "answer-malformed", fault=("GET", fake.a_list)),
    Case(LIST, "answer-malformed", fault=("GET", fake.not_json)),
    Case(LIST, "server-busy", fault=("GET", fake.busy)),
    Case("release list --server http://127.0.0.1:1 --token t", "server-unreachable"),
    Case(SHOW + "demo/9.9", "not-found"),
    Case(SHOW + "demo", "input-invalid"),
    Case(SHOW + "../devices", "input-invalid"),
    Case(SHOW + "demo/..", "input-invalid"),
    Case(SHOW + "demo/1.1", "answer-malformed", fault=("GET", fake.a_list)),
    Case(SHOW + "demo/1.1", "server-busy", fault=("GET", fake.busy)),
    Case("release list --repo none", "input-missing"),
]

AT = "--server URL --token-file token"
NOWHERE = "--server http://127.0.0.1:1 --token t"
OPERATING = [
    *(
        Case(f"{command} {NOWHERE}", "server-unreachable")
        for command in (
            "device list",
            "device show gw-1",
            "device evidence gw-1 0123",
            "device accept gw-1",
            "device reject gw-1",
            "device preauthorise gw-1 --fingerprint " + "0" * 64,
            "device token line-1",
            "device tokens",
            "device revoke-token line-1",
            "rollout create demo 1.0 --all",
            "rollout list",
            "rollout show r1",
            "rollout halt r1",
        )
    ),
    *(
        Case(f"{command} {AT}", "answer-malformed", fault=(method, fault))
        for fault in (fake.not_json, fake.a_list, fake.nothing, fake.deep)
        for method, command in (
            ("GET", "device list"),
            ("GET", "device show gw-1"),
            ("POST", "device accept gw-1"),
            ("GET", "rollout list"),
            ("GET", "rollout show r1"),
            ("POST", "rollout create demo 1.0 --all"),
            ("POST", "rollout halt r1"),
        )
    ),
    Case("device list --server URL", "input-invalid"),
    Case("device list --server URL --token wrong", "unauthorised"),
    Case(f"device list --status odd {AT}", "input-invalid"),
    Case(f"device list --limit 0 {AT}", "input-invalid"),
    Case(f"device accept ../x {AT}", "input-invalid"),
    Case(f"device show a/b {AT}", "input-invalid"),
    Case(f"device preauthorise gw-1 --fingerprint zz {AT}", "input-invalid"),
    Case(f"device preauthorise gw-1 --key-file none {AT}", "input-missing"),
    Case(f"device preauthorise gw-1 --key-file image {AT}", "input-too-large"),
    Case(f"device preauthorise gw-1 --key-file keys/root-main.pub {AT}", "input-invalid"),
    Case(f"device preauthorise gw-1 {AT}", "input-invalid"),
    Case(f"device token ../x {AT}", "input-invalid"),
    Case(f"device token line-1 --days 0 {AT}", "input-invalid"),
    Case(f"device revoke-token ../x {AT}", "input-invalid"),
    Case(f"device token line-1 --days 367 {AT}", "input-invalid"),
    Case(f"rollout create demo 1.0 {AT}", "input-invalid"),
    Case(f"rollout create demo 1.0 --all --device x {AT}", "input-invalid"),
    Case(f"rollout create ../x 1.0 --all {AT}", "input-invalid"),
    Case("server init server --root none", "input-missing"),
    Case("server init server --root pipe", "input-wrong-type", a_pipe),
    Case("server init server --root image", "input-too-large"),
    Case("server init server --root keys/root-main.pub", "metadata-malformed"),
    Case("server init server --root repo/metadata/1.targets.json", "metadata-malformed"),
    Case("server init keys --root repo/metadata/1.root.json", "input-exists"),
    Case("server init image --root repo/metadata/1.root.json", "input-wrong-type"),
    Case("server init server --root repo/metadata/1.root.json --director-root image", "input-invalid"),
    Case("server director key none", "input-missing"),
    Case("server director root none --root repo/metadata/1.root.json", "input-missing"),
    Case("server run none", "input-missing"),
    Case("server run keys", "input-missing"),
    Case("server token none", "input-missing"),
]
EVERYTHING = KEYS + PACKING + SIGNING + KEEPING + SENDING + OPERATING


@pytest.mark.parametrize("case", EVERYTHING, ids=lambda case: case.name)
def test_bad_input_is_named_and_nothing_is_lost(
    case: Case, world: Path, server: OperatorServer, capsys: pytest.CaptureFixture[str]
) -> None:
    case.breaks(world)
    if case.fault is not None:
        server.fail(*case.fault)
    before = snapshot(world)
    capsys.readouterr()
    args = case.command.replace("URL", server.address).split(" ")
    code = run_with(case, args)
    out, err = capsys.readouterr()
    if not case.command.startswith("release inspect"):  # it says what it found, then what is wrong with it
        assert [line for line in out.splitlines() if not line.startswith("Signing ")] == []
    lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, err
    assert lines[0].startswith(f"error[{case.code}]: "), err
    assert " -- hint: " in lines[0]
    assert code == EXIT_CODES[CATALOGUE[case.code].kind]
    after = snapshot(world)
    allowed = (
        {name for name in before | after if name.startswith(case.may_change)} if case.may_change else set()
    )
    assert {name: data for name, data in after.items() if name not in allowed} == {
        name: data for name, data in before.items() if name not in allowed
    }
    assert in_force(after) == in_force(before)  # whatever waits, what devices see is as it was


def in_force(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.startswith(("repo/metadata/", "repo/commit"))}


def run_with(case: Case, args: list[str]) -> int:
    if case.full_at_bytes is not None:
        with file_size_limit(case.full_at_bytes):
            return main(args)
    if case.nobody:
        with as_nobody():
            return main(args)
    return main(args)


def snapshot(world: Path) -> dict[str, bytes]:
    """Every file but pipes and files too large to hold."""
    small = {path for path in world.rglob("*") if path.is_file() and path.stat().st_size < 1 << 30}
    return {
        str(path.relative_to(world)): path.read_bytes() for path in sorted(small) if os.access(path, os.R_OK)
    }


@pytest.mark.parametrize("group", ["keys", "release", "server", "device", "rollout"])
def test_the_table_covers_every_command(group: str) -> None:
    app = import_module(f"twinlock.cli.{group}").app
    covered = {" ".join(case.command.split()[:2]) for case in EVERYTHING}
    assert {f"{group} {name}" for name in names_of(app)} - covered == set()


def names_of(app: object) -> list[str]:
    assert isinstance(app, typer.Typer)
    group = typer.main.get_command(app)
    return list(getattr(group, "commands", {}))
