"""A device asks the fleet's CA for a certificate, and shows it with its enrolment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from tests.unit.agent.fake_server import FakeServer
from tests.unit.agent.test_processes import device
from twinlock.agent import enrol as enrolment
from twinlock.agent import identity
from twinlock.agent.main import main
from twinlock.agent.store import FolderStore
from twinlock.core.device_key import PEM_SIZE_BYTES_MAX, DeviceKey
from twinlock.core.limits import CERTIFICATES_SIZE_BYTES_MAX


def test_the_request_is_for_the_devices_own_key_and_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(device(tmp_path))
    assert main(["--config", config, "csr"]) == 0
    asked = x509.load_pem_x509_csr(capsys.readouterr().out.encode())
    assert asked.is_signature_valid
    kept = FolderStore(tmp_path / "state").read(identity.KEY, PEM_SIZE_BYTES_MAX)
    assert kept is not None
    public = asked.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert public.decode() == DeviceKey(kept).public_pem
    (name,) = asked.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert main(["--config", config, "csr", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["version"], told["device_id"]) == (1, name.value)
    assert x509.load_pem_x509_csr(told["request"].encode()).subject == asked.subject
    assert FolderStore(tmp_path / "state").read(identity.KEY, PEM_SIZE_BYTES_MAX) == kept


def enrol_with(
    folder: Path, data: bytes | None, monkeypatch: pytest.MonkeyPatch, certificate: str = ""
) -> tuple[int, FakeServer]:
    """Runs `enrol` with this certificate in its file (None: no file); the exit code, and who was asked."""
    server = FakeServer()
    monkeypatch.setattr(enrolment, "HttpNetwork", lambda clock, bounds: server)
    config, path = device(folder, "http://127.0.0.1:1"), folder / "certificate.pem"
    if data is not None:
        path.write_bytes(data)
    config.write_text(f'certificate = "{certificate or path}"\n{config.read_text()}')
    return main(["--config", str(config), "enrol"]), server


def test_the_certificate_goes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, server = enrol_with(tmp_path, b"PEM of a certificate", monkeypatch)
    assert code == 0
    (request,) = server.enrolments
    assert request.certificate == "PEM of a certificate"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (None, "input-missing"),
        (b"\xff", "input-unreadable"),
        (b"x" * (CERTIFICATES_SIZE_BYTES_MAX + 1), "input-too-large"),
    ],
)
def test_a_certificate_that_cannot_be_read_enrols_nobody(
    data: bytes | None,
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    exit_code, server = enrol_with(tmp_path, data, monkeypatch)
    assert exit_code != 0
    assert f"error[{code}]" in capsys.readouterr().err
    assert server.enrolments == []


def test_its_path_is_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = enrol_with(tmp_path, None, monkeypatch, certificate="certificate.pem")
    assert (code, "error[config-invalid]" in capsys.readouterr().err) == (6, True)
