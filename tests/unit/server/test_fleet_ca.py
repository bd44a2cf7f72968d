"""Enrolment with a certificate of the fleet's CA: it accepts its own devices' keys, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.unit.server.rig import FakeDevice, Server, code_of
from twinlock.core.certificate_request import certificate_request
from twinlock.core.device_key import DeviceKey, generate
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import CERTIFICATES_SIZE_BYTES_MAX
from twinlock.server.enrolment import fleet_ca
from twinlock.server.enrolment.fleet_ca import FleetCa

YEAR = timedelta(days=365)


def name_of(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Authority:
    """A CA: its key, and its certificate by itself or by another."""

    def __init__(self, now: datetime, name: str = "fleet", above: Authority | None = None) -> None:
        self.now, self.name, self.above = now, name_of(name), above
        self.key = ec.generate_private_key(ec.SECP256R1())
        issuer = above or self
        self.certificate = issuer.sign(self.name, self.key.public_key(), ca=True)
        self.pem = pem_of(self.certificate)

    def sign(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, *, ca: bool = False, life: timedelta = YEAR
    ) -> x509.Certificate:
        """Also with what RFC 5280 wants of a CA's certificate: what it may sign, whose key it is."""
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key)
        made = made.serial_number(x509.random_serial_number())
        made = made.not_valid_before(self.now - YEAR).not_valid_after(self.now - YEAR + life + YEAR)
        made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        whose = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        made = made.add_extension(whose, critical=False)
        if ca:
            made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            uses = dict.fromkeys(
                (
                    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
                    *("key_agreement", "crl_sign", "encipher_only", "decipher_only"),
                ),
                False,
            )
            made = made.add_extension(x509.KeyUsage(key_cert_sign=True, **uses), critical=True)
        return made.sign(self.key, hashes.SHA256())

    def device(self, device_id: str, key: DeviceKey, life: timedelta = YEAR) -> str:
        """A certificate for what the device asks for."""
        asked = x509.load_pem_x509_csr(certificate_request(key, device_id).encode())
        public = asked.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        assert asked.is_signature_valid
        return pem_of(self.sign(asked.subject, public, life=life))


def pem_of(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def time_of(server: Server) -> datetime:
    return datetime.fromtimestamp(server.clock.now_us() / 1_000_000, UTC)


def tell(server: Server, authority: Authority) -> None:
    """Starts the server anew, told of its fleet's CA."""
    (server.folder / "fleet-ca.pem").write_text(authority.pem)
    server.stop()
    server.settings = msgspec.structs.replace(
        server.settings, fleet_ca="fleet-ca.pem", enrolment_needs_token=True
    )
    server.start()


@pytest.fixture
def certified(server: Server) -> tuple[Server, Authority]:
    authority = Authority(time_of(server))
    tell(server, authority)
    return server, authority


def refused(server: Server, device: FakeDevice, certificate: str) -> None:
    """Refused, and nothing is kept of it."""
    assert code_of(device.enrol(certificate=certificate)) == "certificate-refused"
    assert server.operator("GET", f"/devices/{device.device_id}").status_code == 404


def test_a_device_that_the_fleets_ca_certified_is_accepted_at_once(
    certified: tuple[Server, Authority],
) -> None:
    server, authority = certified
    device = FakeDevice(server, "dev-1")
    certificate = authority.device("dev-1", device.key)
    assert device.enrol(certificate=certificate).json() == {"status": "accepted"}
    device.log_in()
    assert device.poll().status_code == 200
    entries = server.operator("GET", "/audit").json()["entries"]
    assert any(one["action"] == "device-enrolled-certified" for one in entries)
    assert device.enrol(certificate=certificate).json() == {"status": "accepted"}


def test_an_authority_below_the_root_may_speak_for_devices(certified: tuple[Server, Authority]) -> None:
    server, authority = certified
    line = Authority(authority.now, "line", authority)
    device = FakeDevice(server, "dev-1")
    chain = line.device("dev-1", device.key) + line.pem
    assert device.enrol(certificate=chain).json() == {"status": "accepted"}


def test_a_waiting_device_is_accepted_once_it_shows_its_certificate(server: Server) -> None:
    device = FakeDevice(server, "dev-1")
    authority = Authority(time_of(server))
    certificate = authority.device("dev-1", device.key)
    assert device.enrol(certificate=certificate).json() == {"status": "pending"}  # it knows of no CA
    tell(server, authority)
    assert device.enrol(certificate=certificate).json() == {"status": "accepted"}


def test_no_other_key_takes_a_known_devices_place(certified: tuple[Server, Authority]) -> None:
    server, authority = certified
    device = FakeDevice(server, "dev-1")
    assert device.enrol(certificate=authority.device("dev-1", device.key)).status_code == 200
    other = FakeDevice(server, "dev-1")
    answer = other.enrol(certificate=authority.device("dev-1", other.key))
    assert code_of(answer) == "enrolment-conflict"


def test_a_device_that_the_operator_rejected_stays_out(certified: tuple[Server, Authority]) -> None:
    server, authority = certified
    device = FakeDevice(server, "dev-1")
    certificate = authority.device("dev-1", device.key)
    device.enrol(certificate=certificate)
    assert server.operator("POST", "/devices/dev-1/reject").status_code == 200
    assert device.enrol(certificate=certificate).json() == {"status": "rejected"}


def test_a_certificate_for_another_device(certified: tuple[Server, Authority]) -> None:
    server, authority = certified
    device = FakeDevice(server, "dev-1")
    refused(server, device, authority.device("dev-2", device.key))


def test_a_certificate_for_another_key(certified: tuple[Server, Authority]) -> None:
    server, authority = certified
    refused(server, FakeDevice(server, "dev-1"), authority.device("dev-1", DeviceKey(generate())))


def test_a_certificate_of_a_stranger(certified: tuple[Server, Authority]) -> None:
    server, authority = certified
    device, stranger = FakeDevice(server, "dev-1"), Authority(authority.now)
    refused(server, device, stranger.device("dev-1", device.key))
    refused(server, device, stranger.device("dev-1", device.key) + stranger.pem)


def test_a_device_is_no_authority(certified: tuple[Server, Authority]) -> None:
    """Its certificate must not vouch for others."""
    server, authority = certified
    device = FakeDevice(server, "dev-2")
    thief = Authority(authority.now, "dev-1", authority)
    plain = authority.sign(thief.name, thief.key.public_key())
    refused(server, device, thief.device("dev-2", device.key) + pem_of(plain))


def test_a_certificate_past_its_time(certified: tuple[Server, Authority]) -> None:
    server, authority = certified
    device = FakeDevice(server, "dev-1")
    refused(server, device, authority.device("dev-1", device.key, life=-timedelta(days=1)))


@pytest.mark.parametrize("text", ["", "x", "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate(certified: tuple[Server, Authority], text: str) -> None:
    server, _ = certified
    refused(server, FakeDevice(server, "dev-1"), text)


def test_a_chain_is_bounded(certified: tuple[Server, Authority]) -> None:
    server, authority = certified
    device = FakeDevice(server, "dev-1")
    own = authority.device("dev-1", device.key)
    refused(server, device, own + authority.pem * fleet_ca.CHAIN_MAX)
    refused(server, device, own + "\n" * CERTIFICATES_SIZE_BYTES_MAX)


@pytest.mark.parametrize(
    ("count", "code"), [(0, "input-unreadable"), (fleet_ca.ROOTS_MAX + 1, "input-unreadable")]
)
def test_a_file_of_roots_that_is_none(count: int, code: str) -> None:
    authority = Authority(datetime(2026, 11, 22, tzinfo=UTC))
    with pytest.raises(TwinlockError) as caught:
        FleetCa((authority.pem * count).encode(), "fleet-ca.pem")
    assert caught.value.code == code
