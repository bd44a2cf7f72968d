"""Who a device is when its key is on a token: enrolled once, never silently somebody else."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.unit.agent import softhsm
from tests.unit.agent.fake_server import FakeServer
from tests.unit.agent.fakes import MemoryStore, config_for
from tests.unit.agent.test_check import Rig
from tests.unit.agent.test_pkcs11_key import failure
from tests.unit.agent.test_processes import device, modules_after, under
from twinlock.agent import enrol as enrolment
from twinlock.agent import identity, memory, pkcs11_key, session
from twinlock.agent.config import Config
from twinlock.agent.main import main
from twinlock.agent.plan import CheckAnswer
from twinlock.core.protocol import EnrolAnswer

NOBODY = ("/nowhere/must-not-be-started",)


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> softhsm.Tokens:
    return softhsm.plugged_in(tmp_path / "hsm", monkeypatch)


def configured(tokens: softhsm.Tokens) -> Config:
    return msgspec.structs.replace(config_for(), identity=tokens.identity)


class TokenRig(Rig):
    """A device in memory whose key is on the token; the server assigns a release."""

    def __init__(self, tokens: softhsm.Tokens) -> None:
        self.tokens = tokens
        super().__init__()

    def enrol(self, *, is_new: bool = False) -> EnrolAnswer:
        self.config = configured(self.tokens)
        ports = self.ports
        parts = (ports.network, ports.store, ports.clock, ports.random, self.config, None)
        return enrolment.enrol(*parts, is_new=is_new)[1]

    def card(self) -> memory.Card:
        found = memory.card(self.device.store)
        assert found is not None
        return found


@pytest.fixture
def rig(tokens: softhsm.Tokens) -> TokenRig:
    return TokenRig(tokens)


def test_enrolment_session_and_reports_are_signed_by_the_token(rig: TokenRig) -> None:
    """The server in memory verifies each signature, as the real one does."""
    assert rig.check().job is not None
    assert [one.state for one in rig.server.reports.values()] == ["downloading"]
    assert identity.KEY not in rig.device.store.files
    assert not [name for name, data in rig.device.store.files.items() if b"PRIVATE" in data]
    assert rig.card().device_id == f"d-{rig.card().fingerprint[:24]}"


def test_enrolling_again_keeps_the_key(rig: TokenRig) -> None:
    before = rig.card()
    rig.enrol()
    rig.enrol(is_new=True)  # the key is there: nothing to be made
    assert rig.card() == before


def test_a_poll_with_an_open_session_asks_nothing_of_the_token(
    rig: TokenRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.server.assignment = None
    assert rig.check().code == ""
    monkeypatch.setattr(pkcs11_key.TokenKey.__init__, "__defaults__", (None, NOBODY))
    assert rig.check().code == ""
    rig.device.store.remove(session.SESSION)
    assert rig.check().code == "internal"  # the proof that the line above starts nobody


def test_the_gate_asks_the_token(rig: TokenRig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rig.check(mode="gate").code == ""
    rig.tokens.configuration.write_text(f"directories.tokendir = {rig.tokens.folder}\n")
    assert rig.check(mode="gate").code == "pkcs11-missing"


def test_a_token_that_lost_the_key_is_not_given_another_silently(
    rig: TokenRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, calls = rig.card(), len(rig.server.enrolments)
    another = softhsm.plugged_in(tmp_path / "another", monkeypatch)
    problem = failure(rig.enrol)
    assert (problem.code, before.fingerprint in problem.what) == ("identity-lost", True)
    assert not pkcs11_key.TokenKey(MemoryStore(), another.identity).find()  # none was made
    rig.device.store.remove(session.SESSION)
    assert rig.refused("identity-lost").job is None
    assert (rig.card(), len(rig.server.enrolments)) == (before, calls)
    rig.enrol(is_new=True)
    assert rig.card() != before
    assert rig.check().code == ""


def test_a_new_identity_ends_the_old_ones_session(
    rig: TokenRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.server.assignment = None
    rig.check()
    assert session.SESSION in rig.device.store.files
    rig.enrol()
    assert session.SESSION in rig.device.store.files
    softhsm.plugged_in(tmp_path / "another", monkeypatch)
    rig.enrol(is_new=True)
    assert session.SESSION not in rig.device.store.files


def test_a_device_with_a_key_file_does_not_become_another_by_its_configuration(rig: TokenRig) -> None:
    store = MemoryStore()
    own = identity.load_or_make(store, config_for())
    store.write(
        memory.CARD_FILE, msgspec.json.encode(memory.Card(device_id="d", fingerprint=own.fingerprint))
    )
    assert failure(lambda: identity.load_or_make(store, rig.config)).code == "identity-lost"


def test_a_new_identity_is_for_tokens_alone() -> None:
    problem = failure(lambda: identity.load_or_make(MemoryStore(), config_for(), is_new=True))
    assert problem.code == "input-invalid"


def test_before_enrolment_there_is_no_identity(tokens: softhsm.Tokens) -> None:
    problem = failure(lambda: identity.load(MemoryStore(), configured(tokens)))
    assert (problem.code, "enrol" in problem.hint) == ("identity-missing", True)


def test_before_the_card_is_written_the_key_is_known(tokens: softhsm.Tokens) -> None:
    """A cut of power between the key and the card: the next enrolment takes the key that is there."""
    made = identity.load_or_make(MemoryStore(), configured(tokens))
    assert identity.load(MemoryStore(), configured(tokens)).fingerprint == made.fingerprint
    assert identity.load_or_make(MemoryStore(), configured(tokens)).device_id == made.device_id


def test_the_request_for_a_certificate_is_signed_by_the_token(
    tokens: softhsm.Tokens, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = device(tmp_path)
    config.write_text(config.read_text() + tokens.table)
    assert main(["--config", str(config), "csr", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    asked = x509.load_pem_x509_csr(told["request"].encode())
    assert asked.is_signature_valid
    public = asked.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert public.decode() == pkcs11_key.TokenKey(MemoryStore(), tokens.identity).public_pem
    assert not (tmp_path / "state" / identity.KEY).exists()


def test_the_command_makes_a_new_identity_when_told_to(
    tokens: softhsm.Tokens,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = FakeServer()
    monkeypatch.setattr(enrolment, "HttpNetwork", lambda clock, bounds: server)
    config = device(tmp_path, "http://127.0.0.1:1")
    config.write_text(config.read_text() + tokens.table)
    assert main(["--config", str(config), "enrol"]) == 0
    softhsm.plugged_in(tmp_path / "another", monkeypatch)
    assert main(["--config", str(config), "enrol"]) == 6
    said = capsys.readouterr().err
    assert "error[identity-lost]" in said
    assert "--new-identity" in said
    assert main(["--config", str(config), "enrol", "--new-identity"]) == 0
    assert len({one.public_key for one in server.enrolments}) == 2


def test_no_process_of_the_agent_loads_the_tokens_library(tokens: softhsm.Tokens, tmp_path: Path) -> None:
    config = device(tmp_path)
    config.write_text(config.read_text() + tokens.table)
    assert main(["--config", str(config), "enrol"]) == 3  # nobody is there, but the key is made
    code = textwrap.dedent(
        f"""
        import runpy, sys
        sys.argv = ["twinlock-agent", "--config", {str(config)!r}, sys.argv[1]]
        try:
            runpy.run_module("twinlock.agent.main", run_name="__main__")
        finally:
            print("MODULES", *(name for name, module in sys.modules.items() if module))
        """
    )
    for command in ("check", "run"):
        done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True)
        loaded = set(done.stdout.partition("MODULES ")[2].split())
        assert "twinlock.agent.config" in loaded, done.stderr
        assert "tuf" in loaded or command != "check"
        assert under(loaded, "pkcs11", "asn1crypto") == set()


def test_it_is_asked_for_only_where_it_is_configured(tmp_path: Path) -> None:
    config = device(tmp_path)
    main(["--config", str(config), "enrol"])
    assert "twinlock.agent.pkcs11_key" not in modules_after(config, "check")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("module = '/m.so'", "by `token` or by `slot`"),
        ("module = '/m.so'\ntoken = 't'\nslot = 1", "by `token` or by `slot`"),
        ("module = 'm.so'\ntoken = 't'", "absolute"),
        ("module = '/m.so'\ntoken = 't'\npin_file = 'pin'", "absolute"),
        ("module = '/m.so'\ntoken = 't'\npin = '1234'", "pin"),
        ("module = '/m.so'\ntoken = ''", "token"),
        (f"module = '/m.so'\ntoken = '{'t' * 33}'", "token"),
        ("module = '/m.so'\nslot = -1", "slot"),
        ("module = '/m.so'\ntoken = 't'\nkey = 'a b'", "key"),
        ("token = 't'", "module"),
    ],
)
def test_a_configuration_that_names_no_token_is_refused(
    table: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = device(tmp_path)
    config.write_text(f"{config.read_text()}[identity]\n{table}\n")
    assert main(["--config", str(config), "enrol"]) == 6
    told = capsys.readouterr().err
    assert "error[config-invalid]" in told
    assert said in told


def test_the_answer_of_a_check_names_the_token(rig: TokenRig) -> None:
    rig.device.store.remove(session.SESSION)
    rig.tokens.write_pin("000000")
    first, second = rig.check(), rig.check()
    assert isinstance(first, CheckAnswer)
    assert (first.code, second.code) == ("pkcs11-pin", "pkcs11-pin")
    assert "refuses" in first.what
    assert "before" in second.what
