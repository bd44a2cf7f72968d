"""A device's request for a certificate (PKCS #10, RFC 2986), signed by its key wherever that is.

The builder of the cryptography library wants the private key itself, which a token never gives out. So the
few bytes around name, key and signature are written here (DER, X.690).
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

if TYPE_CHECKING:
    from twinlock.core.device_key import Signing

_SEQUENCE: Final = 0x30
_BIT_STRING: Final = 0x03
_VERSION_0: Final = bytes((0x02, 0x01, 0x00))
_NO_ATTRIBUTES: Final = bytes((0xA0, 0x00))
# AlgorithmIdentifier of ecdsa-with-SHA256, 1.2.840.10045.4.3.2 (RFC 5758, 3.2)
_ECDSA_SHA256: Final = bytes.fromhex("300a06082a8648ce3d040302")
_LINE_LENGTH: Final = 64  # RFC 7468


def certificate_request(key: Signing, device_id: str) -> str:
    """A request for a certificate of this key, as PEM; the common name is the device's id.

    Raises what the key raises when it signs.
    """
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, device_id)])
    public = serialization.load_pem_public_key(key.public_pem.encode("ascii"))
    spki = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    asked = _tagged(_SEQUENCE, _VERSION_0 + name.public_bytes() + spki + _NO_ATTRIBUTES)
    signature = _tagged(_BIT_STRING, b"\0" + key.sign(asked))
    text = base64.b64encode(_tagged(_SEQUENCE, asked + _ECDSA_SHA256 + signature)).decode("ascii")
    lines = [text[start : start + _LINE_LENGTH] for start in range(0, len(text), _LINE_LENGTH)]
    label = "CERTIFICATE REQUEST"
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


def _tagged(tag: int, content: bytes) -> bytes:
    """Tag, length (definite, shortest form) and content: X.690, 8.1 and 10.1."""
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content
