"""Keys that never leave where they are: a real PKCS#11 token in software, and key services behind a mock."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import (
    SIGNER_FOR_URI_SCHEME,
    AWSSigner,
    AzureSigner,
    CryptoSigner,
    GCPSigner,
    Signature,
    Signer,
    SSlibKey,
    VaultSigner,
)

from twinlock.cli.main import main
from twinlock.core.errors import TwinlockError
from twinlock.core.trust.keys import public_key
from twinlock.publish import keys, outside

PIN = b"123456"
MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so")


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A new token `alice` with one P-256 key, number 7; its library is in PYKCS11LIB."""
    import pkcs11
    from pkcs11.util.ec import encode_named_curve_parameters

    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
    module = next(path for path in MODULES if Path(path).exists())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOFTHSM2_CONF", str(folder / "softhsm2.conf"))
        patch.setenv("PYKCS11LIB", module)
        argv = ["softhsm2-util", "--init-token", "--free", "--label", "alice"]
        subprocess.run(
            [*argv, "--pin", PIN.decode(), "--so-pin", "0000"], check=True, capture_output=True, timeout=60
        )
        library = pkcs11.lib(module)
        library.reinitialize()
        with library.get_token(token_label="alice").open(user_pin=PIN.decode(), rw=True) as session:
            parameters = session.create_domain_parameters(
                pkcs11.KeyType.EC,
                {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")},
                local=True,
            )
            parameters.generate_keypair(store=True, id=bytes([7]), label="key")
        yield "hsm:7?label=alice"


def pin(path: Path) -> bytes | None:
    return PIN


def nobody(path: Path) -> bytes | None:
    return None


def code_of(step: Callable[[], object]) -> str:
    with pytest.raises(TwinlockError) as caught:
        step()
    assert caught.value.hint
    return caught.value.code


def check(key: SSlibKey, made: Signature, text: bytes) -> bool:
    known = public_key(key.keytype, key.scheme, str(key.keyval["public"]))
    assert known is not None
    return known.verifies(made.signature, text)


def test_a_token_signs_for_its_folder(token: str, tmp_path: Path) -> None:
    made = keys.import_outside(tmp_path / "keys", ["root", "targets"], "alice", token, pin)
    assert [one.role for one in made] == ["root", "targets"]
    assert sorted(path.name for path in (tmp_path / "keys").iterdir()) == [
        "root-alice.pub",
        "root-alice.uri",
        "targets-alice.pub",
        "targets-alice.uri",
    ]
    found = keys.list_keys(tmp_path / "keys")
    assert [one.key.scheme for one in found] == ["ecdsa-sha2-nistp256"] * 2
    assert [one.keyid for one in found] == [one.keyid for one in made]
    signer = keys.load_signer(found[1], pin)
    assert check(found[1].key, signer.sign(b"text"), b"text")
    assert not check(found[1].key, signer.sign(b"text"), b"other")


def test_a_token_without_pin_with_a_wrong_one_and_another_key(token: str, tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    (one,) = keys.import_outside(folder, ["root"], "alice", token, pin)
    assert code_of(lambda: keys.load_signer(one, nobody).sign(b"x")) == "key-unreadable"
    assert code_of(lambda: keys.load_signer(one, lambda path: b"999999").sign(b"x")) == "key-unreadable"
    keys.create(folder, ["targets"], "other", "ecdsa", None)
    (folder / "targets-other.pem").unlink()
    (folder / "targets-other.uri").write_text(token)
    (other,) = keys.list_keys(folder, "targets")
    with pytest.raises(TwinlockError, match="not the one whose public half is here"):
        keys.load_signer(other, pin).sign(b"x")


@pytest.mark.parametrize("uri", ["hsm:7?label=nobody", "hsm:8?label=alice"])
def test_a_token_or_key_that_is_not_there(token: str, tmp_path: Path, uri: str) -> None:
    assert code_of(lambda: keys.import_outside(tmp_path / "k", ["root"], "x", uri, pin)) == "key-unreadable"
    assert not (tmp_path / "k").exists()


def test_no_library_is_named(token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYKCS11LIB")
    with pytest.raises(TwinlockError, match="cannot be used") as caught:
        keys.import_outside(tmp_path / "k", ["root"], "x", token, pin)
    assert "set PYKCS11LIB" in caught.value.hint


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "file:x",
        "gnupg:x",
        "hs:1",
        "hsm:1\n",
        "hsm:" + "9" * 2000,
        "hsm:x",
        "hsm:99999999999",
        "azurekms:x",
    ],
)
def test_an_address_that_is_none(uri: str, tmp_path: Path) -> None:
    assert code_of(lambda: keys.import_outside(tmp_path / "k", ["root"], "x", uri, pin)) == "input-invalid"


def test_what_is_there_is_not_overwritten(token: str, tmp_path: Path) -> None:
    keys.import_outside(tmp_path, ["root"], "x", token, pin)
    assert code_of(lambda: keys.import_outside(tmp_path, ["root"], "x", token, pin)) == "input-exists"
    assert code_of(lambda: keys.create(tmp_path, ["root"], "x", "ed25519", None)) == "input-exists"


class Service(Signer):
    """What securesystemslib's signer of a key service does, with the service itself left out."""

    made = CryptoSigner(ec.generate_private_key(ec.SECP256R1()))

    @property
    def public_key(self) -> SSlibKey:
        return self.made.public_key

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: object, secrets_handler: object = None
    ) -> Signer:
        return cls()

    def sign(self, payload: bytes) -> Signature:
        return self.made.sign(payload)


SERVICES = {
    "awskms:alias/release": (AWSSigner, ("alias/release",)),
    "gcpkms:projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1": (
        GCPSigner,
        ("projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",),
    ),
    "azurekms://acme.vault.azure.net/keys/release/v1": (AzureSigner, ("acme", "release")),
    "hv:release/1": (VaultSigner, ("release",)),
}


@pytest.mark.parametrize("uri", SERVICES)
def test_a_key_service_signs(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signer, arguments = SERVICES[uri]
    asked: list[tuple[str, ...]] = []

    def import_(*given: str) -> tuple[str, SSlibKey]:
        asked.append(given)
        return uri, Service.made.public_key

    monkeypatch.setattr(signer, "import_", import_)
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, uri.partition(":")[0], Service)
    (made,) = keys.import_outside(tmp_path, ["targets"], "kms", uri, nobody)
    assert asked == [arguments]
    assert check(made.key, keys.load_signer(made, nobody).sign(b"text"), b"text")


def test_the_command_takes_a_key_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = "awskms:alias/release"
    monkeypatch.setattr(AWSSigner, "import_", lambda given: (uri, Service.made.public_key))
    args = ["keys", "import", uri, "--role", "targets", "--name", "kms", "--keys", str(tmp_path)]
    assert main(args) == 0
    assert "targets-kms.pub (ecdsa, id " in capsys.readouterr().out
    assert (tmp_path / "targets-kms.uri").read_text() == f"{uri}\n"


@pytest.mark.parametrize("uri", SERVICES)
def test_a_service_whose_library_is_missing(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*given: object) -> object:
        raise UnsupportedLibraryError("its library")

    monkeypatch.setattr(SERVICES[uri][0], "import_", missing)
    with pytest.raises(TwinlockError, match="not installed") as caught:
        keys.import_outside(tmp_path / "k", ["root"], "x", uri, nobody)
    assert caught.value.code == "package-missing"
    assert outside.LIBRARIES[uri.partition(":")[0]] in caught.value.hint


def test_it_is_a_signer_like_any_other(token: str, tmp_path: Path) -> None:
    (one,) = keys.import_outside(tmp_path, ["root"], "alice", token, pin)
    kind = type(outside.signer(token, one.key, lambda: PIN))
    made = kind.from_priv_key_uri(token, one.key, lambda secret: PIN.decode())
    assert made.public_key == one.key
    assert check(one.key, made.sign(b"text"), b"text")
    assert code_of(lambda: kind.from_priv_key_uri(token, one.key).sign(b"text")) == "key-unreadable"


def test_a_service_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> object:
        raise ConnectionError("no way\nto it")

    monkeypatch.setattr(AWSSigner, "import_", fail)
    with pytest.raises(TwinlockError, match=r"awskms:k cannot be used: no way \[") as caught:
        keys.import_outside(tmp_path / "k", ["root"], "x", "awskms:k", nobody)
    assert caught.value.code == "key-unreadable"


def test_ml_dsa_signs_and_verifies(tmp_path: Path) -> None:
    keys.create(tmp_path, ["root"], "q", "ml-dsa", b"a passphrase")
    (key,) = keys.list_keys(tmp_path)
    assert key.key.scheme == "ml-dsa-65/1"
    made = keys.load_signer(key, lambda path: b"a passphrase").sign(b"text")
    assert check(key.key, made, b"text")
    assert not check(key.key, made, b"other")


def test_ml_dsa_needs_a_library_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.mldsa", None)
    made = code_of(lambda: keys.create(tmp_path / "k", ["root"], "q", "ml-dsa", None))
    assert made == "package-missing"
