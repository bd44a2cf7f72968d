"""The doctor and a device whose key is on a PKCS#11 token: each fault is named, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.agent import softhsm
from tests.unit.doctor import fake_device
from tests.unit.doctor.fake_device import Device, without
from twinlock.agent import config as configs
from twinlock.agent import identity, memory
from twinlock.agent.pkcs11_key import REFUSED, TokenKey
from twinlock.agent.store import FolderStore

MODULE = "usr/lib/pkcs11.so"
CODES = {"pkcs11-unusable", "identity-lost", "key-extractable"}


class Scene:
    """A healthy device with a token; all of the token's files are below the device's root."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.device: Device = fake_device.make(folder / "device")
        without(self.device.state / identity.KEY)
        self.tokens = softhsm.plugged_in(self.device.root / "hsm", patch)
        (self.device.root / MODULE).symlink_to(softhsm.module())
        self.device.write(
            "etc/twinlock/agent.toml",
            f"{self.device.config.read_text()}[identity]\nmodule = '/{MODULE}'\ntoken = '{softhsm.LABEL}'\n"
            "pin_file = '/hsm/token.pin'\n",
        )
        self.store = FolderStore(self.device.state)
        key = TokenKey(self.store, self.tokens.identity)
        key.make()
        self.card(key.fingerprint)

    def card(self, fingerprint: str) -> None:
        card = memory.Card(device_id="d-1", fingerprint=fingerprint)
        self.store.write(memory.CARD_FILE, msgspec.json.encode(card))


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


def test_a_key_on_its_token_is_healthy(scene: Scene) -> None:
    assert scene.device.codes() == set()
    (one,) = [one for one in scene.device.diagnose().findings if one.check == "identity"]
    assert "on its token" in one.what
    assert configs.load(scene.device.config).identity is not None


FAULTS: dict[str, tuple[Callable[[Scene], Any], str]] = {
    "no module": (lambda s: without(s.device.root / MODULE), "pkcs11-unusable"),
    "no token": (lambda s: without(s.tokens.folder / "tokens"), "pkcs11-unusable"),
    "a wrong PIN": (lambda s: s.tokens.write_pin("999999"), "pkcs11-unusable"),
    "no PIN file": (lambda s: without(s.tokens.pin_file), "pkcs11-unusable"),
    "an open PIN file": (lambda s: s.tokens.pin_file.chmod(0o644), "pkcs11-unusable"),
    "another key": (lambda s: s.card("0" * 64), "identity-lost"),
    "not enrolled": (lambda s: without(s.device.state / memory.CARD_FILE), "enrolment-unknown"),
    "another label": (
        lambda s: s.device.change("etc/twinlock/agent.toml", "[identity]", "[identity]\nkey = 'other'"),
        "identity-lost",
    ),
}


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_each_fault_of_a_token_is_named(name: str, scene: Scene) -> None:
    broken, code = FAULTS[name]
    broken(scene)
    (one,) = [one for one in scene.device.diagnose().findings if one.level != "ok"]
    assert one.code == code
    assert one.hint


def test_before_enrolment_the_key_is_none(scene: Scene) -> None:
    without(scene.device.state / memory.CARD_FILE)
    scene.device.change("etc/twinlock/agent.toml", "[identity]", "[identity]\nkey = 'other'")
    assert scene.device.codes() == {"identity-none"}


def test_the_doctor_tries_a_wrong_pin_once_as_all_do(scene: Scene) -> None:
    scene.tokens.write_pin("999999")
    scene.device.diagnose()
    kept = (scene.device.state / REFUSED).read_bytes()
    (one,) = [one for one in scene.device.diagnose().findings if one.level != "ok"]
    assert "before" in one.what
    assert (scene.device.state / REFUSED).read_bytes() == kept


def test_a_key_that_could_leave_is_a_warning(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    real = TokenKey.prove

    def prove(key: TokenKey) -> None:
        real(key)
        key.is_extractable = True

    monkeypatch.setattr(TokenKey, "prove", prove)
    assert scene.device.codes() == {"key-extractable"}
