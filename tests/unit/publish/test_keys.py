"""Key files: made private, never overwritten, never read while others could."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519

from tests.unit.publish.tools import as_nobody, file_size_limit, files_under, no_passphrase
from twinlock.core.errors import TwinlockError
from twinlock.core.trust.keys import public_key
from twinlock.publish import keys

SECRET = b"correct horse"


def refusal(step: Callable[[], object]) -> TwinlockError:
    with pytest.raises(TwinlockError) as caught:
        step()
    return caught.value


def one(folder: Path, kind: str = "ed25519", passphrase: bytes | None = None) -> keys.KeyFile:
    (made,) = keys.create(folder, ["targets"], "main", kind, passphrase)
    return made


@pytest.mark.parametrize("kind", keys.KINDS)
@pytest.mark.parametrize("passphrase", [None, SECRET])
def test_a_key_signs_what_devices_verify(tmp_path: Path, kind: str, passphrase: bytes | None) -> None:
    made = one(tmp_path / "keys", kind, passphrase)
    (listed,) = keys.list_keys(tmp_path / "keys")
    assert listed == made
    signature = keys.load_signer(listed, lambda path: passphrase).sign(b"text")
    verifier = public_key(listed.key.keytype, listed.key.scheme, listed.key.keyval["public"])
    assert verifier is not None
    assert verifier.verifies(signature.signature, b"text")
    assert not verifier.verifies(signature.signature, b"test")


def test_private_files_are_private_and_say_so_in_their_format(tmp_path: Path) -> None:
    old = os.umask(0)  # the mode must not depend on the caller's mask
    try:
        made = one(tmp_path / "keys", passphrase=SECRET)
    finally:
        os.umask(old)
    assert made.private is not None
    assert stat.S_IMODE(made.private.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert made.private.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert made.public.read_bytes().startswith(b"-----BEGIN PUBLIC KEY-----")


@pytest.mark.parametrize("suffix", [".pem", ".pub"])
def test_nothing_is_overwritten_and_nothing_made_beside_it(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"snapshot-main{suffix}").write_bytes(b"precious")
    problem = refusal(lambda: keys.create(tmp_path, keys.ROLES, "main", "ed25519", None))
    assert problem.code == "input-exists"
    assert files_under(tmp_path) == {f"snapshot-main{suffix}": b"precious"}


@pytest.mark.parametrize(
    ("role", "name", "kind", "passphrase"),
    [
        ("admin", "main", "ed25519", None),
        ("root", "../main", "ed25519", None),
        ("root", "", "ed25519", None),
        ("root", "main", "dsa", None),
        ("root", "main", "ed25519", b"short"),
    ],
)
def test_bad_requests_make_no_key(
    tmp_path: Path, role: str, name: str, kind: str, passphrase: bytes | None
) -> None:
    problem = refusal(lambda: keys.create(tmp_path / "keys", [role], name, kind, passphrase))
    assert problem.code == "input-invalid"
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("size_bytes", [0, 50, 115])  # the private file has 119 bytes, the public one 113
def test_a_full_disk_leaves_no_half_key(tmp_path: Path, size_bytes: int) -> None:
    with file_size_limit(size_bytes):
        assert refusal(lambda: one(tmp_path / "keys")).code == "disk-full"
    assert files_under(tmp_path / "keys") == {}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_key_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    made = one(tmp_path / "keys")
    assert made.private is not None
    made.private.chmod(mode)
    problem = refusal(lambda: keys.load_signer(made, no_passphrase))
    assert problem.code == "key-unreadable"
    assert "chmod 600" in problem.hint


def test_a_wrong_or_missing_passphrase_is_named(tmp_path: Path) -> None:
    made = one(tmp_path / "keys", passphrase=SECRET)
    wrong = refusal(lambda: keys.load_signer(made, lambda path: b"wrong horse"))
    assert (wrong.code, "passphrase" in wrong.what) == ("key-unreadable", True)
    missing = refusal(lambda: keys.load_signer(made, no_passphrase))
    assert missing.code == "key-unreadable"
    assert "TWINLOCK_PASSPHRASE" in missing.hint
    assert SECRET.decode() not in f"{wrong}{missing}"


def test_an_unprotected_key_asks_for_nothing(tmp_path: Path) -> None:
    made = one(tmp_path / "keys")

    def ask(path: Path) -> bytes | None:
        raise AssertionError("asked")

    keys.load_signer(made, ask)


@pytest.mark.parametrize("data", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\n", b"x" * 20_000])
def test_a_broken_private_file_is_named(tmp_path: Path, data: bytes) -> None:
    made = one(tmp_path / "keys")
    assert made.private is not None
    made.private.write_bytes(data)
    problem = refusal(lambda: keys.load_signer(made, no_passphrase))
    assert problem.code == "key-unreadable"
    assert str(made.private) in problem.what


def test_a_private_file_is_not_parsed_past_its_size(tmp_path: Path) -> None:
    made = one(tmp_path / "keys")
    assert made.private is not None
    pem = made.private.read_bytes()
    made.private.write_bytes(pem.ljust(keys.KEY_FILE_SIZE_BYTES_MAX, b"\n"))
    keys.load_signer(made, no_passphrase)
    made.private.write_bytes(pem.ljust(keys.KEY_FILE_SIZE_BYTES_MAX + 1, b"\n"))
    assert refusal(lambda: keys.load_signer(made, no_passphrase)).code == "key-unreadable"


def test_a_private_key_that_does_not_sign_is_refused(tmp_path: Path) -> None:
    made = one(tmp_path / "keys")
    assert made.private is not None
    made.private.write_bytes(
        x25519.X25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    problem = refusal(lambda: keys.load_signer(made, no_passphrase))
    assert (problem.code, "type" in problem.what) == ("key-unreadable", True)


@pytest.mark.parametrize("data", [b"", b"no key", b"\xff" * 100, b"x" * 20_000])
def test_a_broken_public_file_is_named(tmp_path: Path, data: bytes) -> None:
    made = one(tmp_path / "keys")
    made.public.write_bytes(data)
    problem = refusal(lambda: keys.list_keys(tmp_path / "keys"))
    assert problem.code in ("key-unreadable", "input-too-large")
    assert str(made.public) in problem.what


def public_pem(key: object) -> bytes:
    pem: bytes = key.public_key().public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP256K1()),
        lambda: rsa.generate_private_key(65537, 1024),
        x25519.X25519PrivateKey.generate,
    ],
    ids=["other curve", "short rsa", "no signing key"],
)
def test_keys_that_devices_do_not_accept_are_refused(tmp_path: Path, make: Callable[[], object]) -> None:
    (tmp_path / "root-x.pub").write_bytes(public_pem(make()))
    assert refusal(lambda: keys.list_keys(tmp_path)).code == "key-unreadable"


def test_halves_of_two_keys_do_not_pass_for_one(tmp_path: Path) -> None:
    made, other = one(tmp_path / "a"), one(tmp_path / "b")
    made.public.write_bytes(other.public.read_bytes())
    (listed,) = keys.list_keys(tmp_path / "a")
    problem = refusal(lambda: keys.load_signer(listed, no_passphrase))
    assert (problem.code, "belong" in problem.what) == ("key-unreadable", True)


def test_a_private_half_alone_is_named(tmp_path: Path) -> None:
    made = one(tmp_path)
    made.public.unlink()
    assert refusal(lambda: keys.list_keys(tmp_path)).code == "key-unreadable"


def test_a_public_half_alone_is_listed_and_does_not_sign(tmp_path: Path) -> None:
    made = one(tmp_path)
    assert made.private is not None
    made.private.unlink()
    (listed,) = keys.list_keys(tmp_path)
    assert listed.private is None
    assert refusal(lambda: keys.load_signer(listed, no_passphrase)).code == "key-missing"
    assert keys.KeyRing([listed], no_passphrase).signer(listed.keyid) is None


def test_files_that_are_no_keys_are_passed_over(tmp_path: Path) -> None:
    one(tmp_path)
    for name in ("README.md", "notes.pem", "admin-x.pub", "root-.pub", ".pub"):
        (tmp_path / name).write_bytes(b"?")
    assert [key.name for key in keys.list_keys(tmp_path)] == ["main"]
    assert keys.list_keys(tmp_path, "root") == []


def test_a_missing_folder_and_a_crowded_one(tmp_path: Path) -> None:
    assert refusal(lambda: keys.list_keys(tmp_path / "none")).code == "input-missing"
    for number in range(len(keys.SUFFIXES) * keys.KEYS_MAX + 1):
        (tmp_path / f"root-{number}.pub").touch()
    assert refusal(lambda: keys.list_keys(tmp_path)).code == "input-too-large"


def test_an_unreadable_folder_and_key(tmp_path: Path) -> None:
    made = one(tmp_path / "keys")
    with as_nobody():
        assert refusal(lambda: keys.list_keys(tmp_path / "keys")).code == "permission-denied"
        assert refusal(lambda: keys.load_signer(made, no_passphrase)).code == "permission-denied"


def test_a_ring_loads_each_key_once(tmp_path: Path) -> None:
    made = one(tmp_path, passphrase=SECRET)
    asked: list[Path] = []

    def ask(path: Path) -> bytes | None:
        asked.append(path)
        return SECRET

    ring = keys.KeyRing([made], ask)
    assert asked == []
    assert ring.signer(made.keyid) is ring.signer(made.keyid)
    assert len(asked) == 1
    assert ring.signer("0" * 64) is None
