"""The director: which release one device shall run, signed for that device alone at the moment it asks.

An answer is a TUF repository in three small files, without delegations, of which the targets name the device
and at most one release. It has an offline root of its own and one online key. A device installs only what the
director and the image repository both name, and name alike: whoever takes over the server can hold a device
back or choose another release that the image repository's offline keys have signed, never bytes of its own
(Uptane 2.1, section 5.4.4).

Every targets file names its device, also one without a release: an empty answer for one device must not keep
another from a release.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import msgspec
from cryptography.hazmat.primitives import hashes as digests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.names import check_device_id
from twinlock.core.protocol import DirectorAnswer as Answer
from twinlock.core.trust import canonical, hashes
from twinlock.core.trust.verifier import CUSTOM_KEY, Floors, TrustedSet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from tuf.api.metadata import TargetFile

__all__ = ["Answer", "Directed", "OnlineKey", "check_agreement", "check_answer"]
__all__ += ["check_assigned", "online_key", "sign_answer", "verify_answer"]

SPEC_VERSION: Final = "1.0.33"
LIFETIME_S_MIN: Final = 24 * 3600
LIFETIME_S_MAX: Final = 7 * 24 * 3600
RELEASES_MAX: Final = 1
DEVICE_FIELD: Final = "device"


@dataclass(frozen=True, slots=True)
class OnlineKey:
    """The director's private key: the id that its root lists it under, and what signs."""

    keyid: str
    sign: Callable[[bytes], bytes]


def online_key(private_pem: bytes, passphrase: bytes | None = None) -> OnlineKey:
    """The Ed25519 or ECDSA P-256 key in a PEM file, under the id that signing tools give it.

    Raises InputError `key-unreadable`.
    """
    try:
        key = serialization.load_pem_private_key(private_pem, passphrase)
    except (ValueError, TypeError) as problem:
        raise error("key-unreadable", f"the director's key does not load: {problem}") from problem
    if isinstance(key, ed25519.Ed25519PrivateKey):
        raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return OnlineKey(_keyid("ed25519", "ed25519", raw.hex()), key.sign)
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        pem = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        algorithm = ec.ECDSA(digests.SHA256())
        return OnlineKey(
            _keyid("ecdsa", "ecdsa-sha2-nistp256", pem.decode("ascii")),
            lambda text: key.sign(text, algorithm),
        )
    raise error("key-unreadable", "the director's key is neither Ed25519 nor ECDSA P-256")


def _keyid(keytype: str, scheme: str, public: str) -> str:
    value = {"keytype": keytype, "scheme": scheme, "keyval": {"public": public}}
    return hashlib.sha256(canonical.encode(value)).hexdigest()


def sign_answer(
    key: OnlineKey,
    device_id: str,
    release: TargetFile | None,
    *,
    version: int,
    now: datetime,
    lifetime_s: int = LIFETIME_S_MAX,
) -> Answer:
    """The answer for one device: run `release`, an entry of the image repository, or (None) stay as you are.

    `version` has to rise with each different answer for this device. `lifetime_s` is one to seven days.
    Raises InputError `input-invalid`.
    """
    check_device_id(device_id)
    if not LIFETIME_S_MIN <= lifetime_s <= LIFETIME_S_MAX:
        raise error("input-invalid", f"a director's answer lives one to seven days, not {lifetime_s} s")
    if not 1 <= version <= limits.METADATA_VERSION_MAX:
        raise error("input-invalid", f"a version of {version} is outside 1..{limits.METADATA_VERSION_MAX}")
    expires = (now + timedelta(seconds=lifetime_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
    common = {"expires": expires, "spec_version": SPEC_VERSION, "version": version}
    named = {} if release is None else {release.path: release.to_dict()}
    block = {DEVICE_FIELD: device_id}
    return Answer(
        targets=_signed(key, {**common, "_type": "targets", "targets": named, CUSTOM_KEY: block}),
        snapshot=_signed(
            key, {**common, "_type": "snapshot", "meta": {"targets.json": {"version": version}}}
        ),
        timestamp=_signed(
            key, {**common, "_type": "timestamp", "meta": {"snapshot.json": {"version": version}}}
        ),
    )


def _signed(key: OnlineKey, signed: dict[str, Any]) -> bytes:
    signature = key.sign(canonical.encode(signed)).hex()
    return msgspec.json.encode({"signatures": [{"keyid": key.keyid, "sig": signature}], "signed": signed})


@dataclass(frozen=True, slots=True)
class Directed:
    """What the director wants of this device. Keep `floors` and the last of the roots before acting on it."""

    release: TargetFile | None
    floors: Floors


def verify_answer(
    answer: Answer,
    device_id: str,
    root: bytes,
    now: datetime,
    floors: Floors | None = None,
    newer_roots: Sequence[bytes] = (),
) -> Directed:
    """What the answer says to the device `device_id`. `root` is the director's root as last trusted.

    Raises TrustError as `TrustedSet` does; `metadata-malformed` when the director delegates or names more
    than one release; `metadata-device` when the answer is another device's, or nobody's.
    """
    trusted = TrustedSet(root, now, floors)
    for data in newer_roots:
        trusted.update_root(data)
    return check_answer(trusted, answer, device_id)


def check_answer(trusted: TrustedSet, answer: Answer, device_id: str) -> Directed:
    """As `verify_answer`, from a set whose roots were followed already; keep the floors that it gives."""
    trusted.update_timestamp(answer.timestamp)
    trusted.update_snapshot(answer.snapshot)
    trusted.update_targets(answer.targets)
    targets = trusted.targets
    assert targets is not None
    if targets.delegations is not None:
        raise error("metadata-malformed", "the director's targets delegate, which a director may not")
    _check_device(targets.unrecognized_fields.get(CUSTOM_KEY), device_id)
    if len(targets.targets) > RELEASES_MAX:
        raise error("metadata-malformed", f"the director names {len(targets.targets)} releases at once")
    return Directed(next(iter(targets.targets.values()), None), trusted.floors)


def _check_device(block: object, device_id: str) -> None:
    named = block.get(DEVICE_FIELD) if isinstance(block, dict) else None
    if named != device_id:
        whose = "name no device" if named is None else f"are for device {str(named)[:64]!r}"
        raise error("metadata-device", f"the director's targets {whose}, not {device_id!r}")


def check_assigned(directed: Directed, assigned: TargetFile) -> None:
    """Raises TrustError `metadata-mismatch` unless the director names the release that is assigned.

    `assigned` is what the image repository says of the release that the server assigned, without a signature.
    """
    if directed.release is None:
        what = f"the server assigns {assigned.path[:80]!r}, the director no release"
        raise error("metadata-mismatch", what)
    check_agreement(assigned, directed.release)


def check_agreement(image: TargetFile, directed: TargetFile) -> None:
    """Raises TrustError `metadata-mismatch` unless both repositories say the same of the release.

    Name, length and custom block must be equal; so must every hash that both list, of which one must be
    strong.
    """
    name = image.path
    shared = hashes.strong(image.hashes).keys() & hashes.strong(directed.hashes).keys()
    rules = (
        (name == directed.path, f"is {directed.path[:80]!r} to the director"),
        (image.length == directed.length, f"has length {image.length}, {directed.length} to the director"),
        (bool(shared), "has no strong hash that both repositories list"),
        (
            all(
                image.hashes[kind] == directed.hashes[kind] for kind in image.hashes.keys() & directed.hashes
            ),
            "has another hash to the director",
        ),
        (
            image.unrecognized_fields == directed.unrecognized_fields,
            "makes other claims to the director",
        ),
    )
    for holds, what in rules:
        if not holds:
            raise error("metadata-mismatch", f"the release {name[:80]!r} {what}")
