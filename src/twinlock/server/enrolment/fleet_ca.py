"""The fleet's own certification authority: it says of a key which device's it is.

A device that shows a certificate of the fleet's CA with its enrolment is accepted at once: the CA spoke for
this very key and this device id (the subject's common name), as a preauthorised key does, without a list. It
never puts another key in a known device's place, and accepts nobody whom the operator rejected.

A chain is at most three certificates below a root of `fleet-ca.pem`, verified as RFC 5280 says by the
`cryptography` library: signatures, times, CA marks. Nothing is asked of the device's own certificate but its
key and name, since factories issue them in many forms (IEEE 802.1AR among them). Lists of revoked
certificates are not read: a device is shut out by rejecting it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import ExtensionPolicy, PolicyBuilder, Store, VerificationError

from twinlock.core.durable import read_bounded
from twinlock.core.errors import error
from twinlock.core.limits import CERTIFICATES_SIZE_BYTES_MAX

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from twinlock.core.device_key import DevicePublicKey

ROOTS_MAX: Final = 8
CHAIN_MAX: Final = 3
_DEPTH_MAX: Final = CHAIN_MAX - 1  # certificates of authorities between the device's and a root


class FleetCa:
    """The roots that may speak for devices."""

    def __init__(self, roots_pem: bytes, what: str) -> None:
        """Raises InputError `input-unreadable` when the PEM holds no certificates, or too many."""
        try:
            roots = x509.load_pem_x509_certificates(roots_pem)
        except ValueError as problem:
            raise error("input-unreadable", f"{what} holds no certificates: {problem}") from problem
        if len(roots) > ROOTS_MAX:
            raise error("input-unreadable", f"{what} holds {len(roots)} certificates, {ROOTS_MAX} at most")
        self._store = Store(roots)

    @classmethod
    def load(cls, path: Path) -> FleetCa:
        """From a file. Raises InputError `input-missing`, `input-unreadable`, `input-too-large`."""
        return cls(read_bounded(path, ROOTS_MAX * CERTIFICATES_SIZE_BYTES_MAX, "fleet CA"), str(path))

    def check(self, chain_pem: str, device_id: str, key: DevicePublicKey, now: datetime) -> None:
        """Sees that a root vouches for this key as this device's; `chain_pem` begins with the device's.

        Raises PolicyError `certificate-refused`, with the reason.
        """
        leaf, between = _parsed(chain_pem, device_id)
        policy = PolicyBuilder().store(self._store).time(now).max_chain_depth(_DEPTH_MAX)
        policy = policy.extension_policies(
            ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=ExtensionPolicy.permit_all()
        )
        try:
            policy.build_client_verifier().verify(leaf, between)
        except VerificationError as problem:
            raise _refused(device_id, f"no root of the fleet stands behind it: {problem}") from problem
        named = [str(one.value) for one in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        if named != [device_id]:
            raise _refused(device_id, f"it is for {', '.join(named)[:80] or 'nobody'}")
        if (
            leaf.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            != key.pem.encode()
        ):
            raise _refused(device_id, "it is for another key")


def _parsed(chain_pem: str, device_id: str) -> tuple[x509.Certificate, list[x509.Certificate]]:
    if len(chain_pem) > CERTIFICATES_SIZE_BYTES_MAX:
        raise _refused(device_id, f"it has more than {CERTIFICATES_SIZE_BYTES_MAX} bytes")
    try:
        found = x509.load_pem_x509_certificates(chain_pem.encode("utf-8", "replace"))
    except ValueError as problem:
        raise _refused(device_id, f"it does not parse: {problem}") from problem
    if len(found) > CHAIN_MAX:
        raise _refused(device_id, f"it comes with {len(found) - 1} more, {CHAIN_MAX - 1} at most")
    return found[0], found[1:]


def _refused(device_id: str, why: str) -> Exception:
    return error("certificate-refused", f"the certificate of {device_id}: {why}")
