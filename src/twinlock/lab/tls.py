"""Certificates for one lab: an authority of its own, and a server that it vouches for.

Devices speak https to anything but their own loopback; a virtual device reaches the lab's server at an
address of QEMU's user network. Keys and certificates live as long as the lab.
"""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from twinlock.core.durable import os_errors

if TYPE_CHECKING:
    from pathlib import Path

# A virtual device's clock may be wrong on purpose; its certificates are not what such a test is about.
_VALID_FROM: Final = datetime(1970, 1, 2, tzinfo=UTC)
_VALID_DAYS: Final = 100 * 365


@dataclass(frozen=True, slots=True)
class LabCertificates:
    """`ca_file` is for clients, `server` for whoever listens."""

    ca_file: Path
    server: ssl.SSLContext


def make(folder: Path, addresses: tuple[str, ...]) -> LabCertificates:
    """New keys and certificates in `folder`, the server's good for these IP addresses. Raises DeviceError."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    server_key = ec.generate_private_key(ec.SECP256R1())
    authority = _name("Twinlock lab")
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(one)) for one in addresses])
    root = (
        _builder(authority, authority, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    leaf = (
        _builder(_name("lab server"), authority, server_key.public_key())
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    ca_file, chain = folder / "ca.pem", folder / "server.pem"
    pem = serialization.Encoding.PEM
    private = server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with os_errors(f"folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        ca_file.write_bytes(root.public_bytes(pem))
        chain.touch(mode=0o600)
        chain.write_bytes(private + leaf.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return LabCertificates(ca_file, context)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_VALID_FROM)
        .not_valid_after(_VALID_FROM + timedelta(days=_VALID_DAYS))
    )
