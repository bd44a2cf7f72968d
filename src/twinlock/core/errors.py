"""Every failure that a user, a script or a server may see: one code, one kind, one thing to do next.

    TwinlockError
    ├── InputError          what the user gave is wrong: correct it                     exit 2
    ├── TransportError      the network or the server: retry with backoff               exit 3
    ├── TrustError          not signed, not fresh, not the same bytes: never retry      exit 4
    ├── CompatibilityError  right, but not for this device: skip                        exit 5
    ├── DeviceError         space, slot, boot control, files of this machine            exit 6
    ├── HealthError         the new slot did not pass: roll back                        exit 7
    ├── PolicyError         not allowed now: halted, pending, rejected, conflicting     exit 8
    └── InternalError       a fault of ours                                             exit 70

Codes are stable on the wire: a device of ten years ago still sends them. A code is never reused or renamed;
`tests/vectors/errors.json` pins them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Kind(StrEnum):
    """What can be done about a failure; each kind is one exit code and one retry rule."""

    INPUT = "input"
    TRANSPORT = "transport"
    TRUST = "trust"
    COMPATIBILITY = "compatibility"
    DEVICE = "device"
    HEALTH = "health"
    POLICY = "policy"
    INTERNAL = "internal"


EXIT_CODES: Final[dict[Kind, int]] = {
    Kind.INPUT: 2,
    Kind.TRANSPORT: 3,
    Kind.TRUST: 4,
    Kind.COMPATIBILITY: 5,
    Kind.DEVICE: 6,
    Kind.HEALTH: 7,
    Kind.POLICY: 8,
    Kind.INTERNAL: 70,
}


@dataclass(frozen=True, slots=True)
class Spec:
    """One row of the catalogue: the kind of a code, and the hint that goes with it."""

    kind: Kind
    hint: str


class TwinlockError(Exception):
    """A failure with a stable `code`; `what` names the thing and what happened to it.

    `hint` says what to do next; it comes from the catalogue unless the place that raises knows better.
    """

    def __init__(self, code: str, what: str, *, hint: str | None = None) -> None:
        spec = CATALOGUE[code]  # an unknown code is a programming error and shows as KeyError in tests
        super().__init__(what)
        self.code: Final = code
        self.what: Final = what
        self.kind: Final = spec.kind
        self.hint: Final = hint if hint is not None else spec.hint

    @property
    def exit_code(self) -> int:
        """The process exit code that scripts may rely on."""
        return EXIT_CODES[self.kind]

    def __str__(self) -> str:
        return f"{self.what} [{self.code}]"


class InputError(TwinlockError):
    """What the user gave is wrong."""


class TransportError(TwinlockError):
    """The network or the server failed; trying again later is right."""


class TrustError(TwinlockError):
    """Something is not what was signed; trying again with the same bytes is wrong."""


class CompatibilityError(TwinlockError):
    """Valid, but not for this device."""


class DeviceError(TwinlockError):
    """The machine itself: space, slots, boot control, files."""


class HealthError(TwinlockError):
    """A trial did not pass its checks."""


class PolicyError(TwinlockError):
    """Not allowed now."""


class InternalError(TwinlockError):
    """A fault of ours."""


_CLASSES: Final[dict[Kind, type[TwinlockError]]] = {
    Kind.INPUT: InputError,
    Kind.TRANSPORT: TransportError,
    Kind.TRUST: TrustError,
    Kind.COMPATIBILITY: CompatibilityError,
    Kind.DEVICE: DeviceError,
    Kind.HEALTH: HealthError,
    Kind.POLICY: PolicyError,
    Kind.INTERNAL: InternalError,
}


def error(code: str, what: str, *, hint: str | None = None) -> TwinlockError:
    """The exception for `code`, of the subclass that its kind has. Raise what this returns."""
    return _CLASSES[CATALOGUE[code].kind](code, what, hint=hint)


_RETRY = "wait and try again; it retries by itself with backoff"
_REPORT = "do not retry; find out who made these bytes"
_REPACK = "make the file again with `twinlock release pack`"

CATALOGUE: Final[dict[str, Spec]] = {
    # input: the command line, files named by the user, bodies sent to the operator's API
    "input-missing": Spec(Kind.INPUT, "check the path or name"),
    "input-unreadable": Spec(Kind.INPUT, "check the file's permissions"),
    "input-wrong-type": Spec(Kind.INPUT, "give a file of the type that the command's help names"),
    "input-invalid": Spec(Kind.INPUT, "correct the value; `--help` says what is allowed"),
    "input-too-large": Spec(Kind.INPUT, "the limit is in the reference; split or shrink the input"),
    "input-exists": Spec(Kind.INPUT, "choose another name, or remove the existing one yourself"),
    "image-empty": Spec(Kind.INPUT, "build the image first"),
    "image-unaligned": Spec(Kind.INPUT, "an image is a whole number of 512-byte sectors; pad it"),
    "image-changed": Spec(Kind.INPUT, "the image changed while it was read; build it, then pack it"),
    "request-malformed": Spec(Kind.INPUT, "send a body as the API's reference describes it"),
    "request-too-large": Spec(Kind.INPUT, "send a smaller body; the limit is in the API's reference"),
    "not-found": Spec(Kind.INPUT, "list what exists and check the name"),
    "method-not-allowed": Spec(Kind.INPUT, "use a method that the API's reference names for this path"),
    "range-not-satisfiable": Spec(Kind.INPUT, "ask for a range inside the file"),
    # keys on the build side
    "key-missing": Spec(Kind.INPUT, "make it with `twinlock keys create`"),
    "key-unreadable": Spec(Kind.INPUT, "check the key file's format, passphrase and permissions"),
    "key-threshold": Spec(Kind.INPUT, "collect signatures of more key holders, then publish"),
    # signing requests that go from holder to holder
    "request-changed": Spec(Kind.TRUST, "do not sign it; have it made anew, and ask who changed it"),
    "request-stale": Spec(
        Kind.POLICY, "make a new request with `twinlock release request`; something was signed in between"
    ),
    "signature-unasked": Spec(Kind.TRUST, "`twinlock release inspect` shows which keys are asked to sign"),
    "signature-repeated": Spec(Kind.POLICY, "pass it to a holder who has not signed; a key counts once"),
    # transport
    "server-unreachable": Spec(Kind.TRANSPORT, "check the address and that the server runs, then try again"),
    "server-error": Spec(Kind.TRANSPORT, _RETRY + "; the server's log has the reason"),
    "server-busy": Spec(Kind.TRANSPORT, _RETRY),
    "connection-lost": Spec(Kind.TRANSPORT, _RETRY),
    "transfer-stalled": Spec(Kind.TRANSPORT, _RETRY + "; check the link's signal"),
    "transfer-short": Spec(Kind.TRANSPORT, _RETRY),
    "transfer-range": Spec(
        Kind.TRANSPORT, "the server, or a proxy before it, does not serve ranges as asked"
    ),
    "transfer-changed": Spec(Kind.TRANSPORT, "the server's file is not the announced one; publish it again"),
    "transfer-oversized": Spec(Kind.TRUST, _REPORT + "; the server sent more than it announced"),
    "answer-malformed": Spec(Kind.TRANSPORT, "check that the address is a Twinlock server of this version"),
    "redirect-refused": Spec(Kind.TRUST, "give the server's own address; redirects are not followed"),
    # trust
    "metadata-malformed": Spec(Kind.TRUST, _REPORT),
    "metadata-signature": Spec(Kind.TRUST, _REPORT),
    "metadata-expired": Spec(Kind.TRUST, "publish again, or run `twinlock release refresh`; check the clock"),
    "metadata-rollback": Spec(Kind.TRUST, _REPORT + "; an older state of the repository was offered"),
    "metadata-mismatch": Spec(Kind.TRUST, _REPORT),
    "metadata-device": Spec(Kind.TRUST, _REPORT + "; it was signed for another device"),
    "director-missing": Spec(
        Kind.TRUST, "set up the server's director: this device takes no release without one"
    ),
    "metadata-missing": Spec(Kind.TRUST, "the repository is incomplete; publish again"),
    "release-unknown": Spec(Kind.TRUST, "the signed metadata does not list it; publish it first"),
    "manifest-malformed": Spec(Kind.TRUST, _REPORT + "; " + _REPACK),
    "details-malformed": Spec(Kind.TRUST, _REPORT + "; " + _REPACK),
    "details-hash": Spec(Kind.TRUST, _REPORT),
    "manifest-hash": Spec(Kind.TRUST, _REPORT),
    "payload-malformed": Spec(Kind.TRUST, _REPORT + "; " + _REPACK),
    "payload-index-hash": Spec(Kind.TRUST, _REPORT),
    "payload-part-hash": Spec(Kind.TRUST, "the server's copy is damaged or forged; publish it again"),
    "payload-unfit": Spec(Kind.TRUST, "the payload does not belong to this manifest; publish both together"),
    "payload-hash": Spec(Kind.INPUT, "the uploaded bytes are not what their name says; upload again"),
    "segment-hash": Spec(Kind.TRUST, "the decoded bytes are not the signed ones; publish the payload again"),
    "signature-invalid": Spec(Kind.TRUST, _REPORT),
    "format-unknown": Spec(Kind.TRUST, "this version does not know the format; a newer agent may"),
    # compatibility
    "hardware-mismatch": Spec(Kind.COMPATIBILITY, "assign a release that names this hardware"),
    "product-mismatch": Spec(Kind.COMPATIBILITY, "assign a release of this product"),
    "release-older": Spec(
        Kind.COMPATIBILITY, "sign the old bytes again with a higher counter if you mean to go back"
    ),
    "release-failed-before": Spec(Kind.COMPATIBILITY, "publish a corrected release under a new version"),
    "image-too-large": Spec(Kind.COMPATIBILITY, "the image must fit the slot; shrink it"),
    "delta-base": Spec(Kind.COMPATIBILITY, "the full payload is used instead"),
    "delta-library": Spec(Kind.COMPATIBILITY, "the full payload is used instead"),
    # device
    "disk-full": Spec(Kind.DEVICE, "free some space and try again"),
    "io-error": Spec(Kind.DEVICE, "check the storage medium; the system log has details"),
    "permission-denied": Spec(Kind.DEVICE, "run it as the user that owns the files"),
    "slot-unusable": Spec(Kind.DEVICE, "check the slot's path in the agent's configuration"),
    "slot-readback": Spec(Kind.DEVICE, "the slot does not hold what was written; the medium may be failing"),
    "slot-busy": Spec(Kind.DEVICE, "unmount the inactive slot"),
    "boot-record": Spec(Kind.DEVICE, "both copies of the boot record are unreadable; provision the device"),
    "boot-refused": Spec(Kind.DEVICE, "settle the running trial first; the committed slot is never touched"),
    "boot-control": Spec(Kind.DEVICE, "check the boot record's storage; `twinlock-agent status` shows it"),
    "config-invalid": Spec(Kind.DEVICE, "correct the agent's configuration file"),
    "identity-missing": Spec(Kind.DEVICE, "run `twinlock-agent enrol` on the device"),
    "identity-lost": Spec(
        Kind.DEVICE,
        "put the device's own token back; if it is gone for good, reject this device on the server, then run "
        "`twinlock-agent enrol --new-identity`",
    ),
    "pkcs11-missing": Spec(Kind.DEVICE, "check that the token is there, and [identity] in the configuration"),
    "pkcs11-pin": Spec(Kind.DEVICE, "check the token's PIN and the file that it is read from"),
    "pkcs11-failed": Spec(Kind.DEVICE, "look at the token with the tools of its maker, then try again"),
    "agent-busy": Spec(Kind.DEVICE, "another run of the agent is at work; wait for it"),
    "journal-corrupt": Spec(Kind.DEVICE, "the agent starts over from the boot record; no action is needed"),
    "package-missing": Spec(Kind.DEVICE, "install the named program or extra and run it again"),
    "kernel-options": Spec(Kind.DEVICE, "set these options in the kernel's configuration and build it again"),
    "lab-timeout": Spec(Kind.DEVICE, "the virtual device's console log shows how far it came"),
    "lab-violations": Spec(
        Kind.DEVICE, "look at one with `twinlock lab enumerate --state ID`; report it with the version"
    ),
    "lab-ended": Spec(Kind.DEVICE, "the virtual machine ended too early; its console log shows why"),
    # health
    "health-failed": Spec(Kind.HEALTH, "read the hook's output in the report; publish a corrected release"),
    "health-timeout": Spec(Kind.HEALTH, "a health hook did not end in time; see the report"),
    "trial-exhausted": Spec(Kind.HEALTH, "the new slot never came up to commit; see the report"),
    # policy
    "enrolment-pending": Spec(Kind.POLICY, "accept it with `twinlock device accept`"),
    "enrolment-rejected": Spec(Kind.POLICY, "the operator rejected this device; ask them"),
    "enrolment-conflict": Spec(Kind.POLICY, "this device id is enrolled with another key"),
    "certificate-refused": Spec(
        Kind.POLICY, "give the device a certificate of the fleet's CA for its key, named as the device is"
    ),
    "unauthorised": Spec(Kind.POLICY, "give a valid token"),
    "session-expired": Spec(Kind.POLICY, "open a new session; the agent does so by itself"),
    "conflict": Spec(Kind.POLICY, "look at the present state and decide again"),
    "rollout-halted": Spec(Kind.POLICY, "the operator halted this rollout"),
    "superseded": Spec(Kind.POLICY, "a newer assignment replaced this one"),
    # ours
    "internal": Spec(Kind.INTERNAL, "this is a fault in Twinlock: report it with the log"),
}
