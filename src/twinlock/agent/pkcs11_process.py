"""The process beside the check that alone loads a PKCS#11 module: it finds, makes and uses the device's key.

It speaks JSON lines: a Place first, then one Answer for each Ask, until its input ends. The maker's library,
its memory and its faults stay out of the check, which could not bound them; and so does the PIN.

A PIN that was refused is not tried a second time, in this run or in a later one, as long as it is the same
PIN for the same token: most tokens lock after a few. What is kept of it (`RefusedPin`) is a salt and two
bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import signal
import stat
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from twinlock.agent.parent import PARENT, end_with
from twinlock.core.durable import os_errors
from twinlock.core.errors import TwinlockError, error

if TYPE_CHECKING:
    from typing import BinaryIO

    from pkcs11 import PublicKey, Session, Token

LINE_SIZE_BYTES_MAX: Final = 16 * 1024
PIN_SIZE_BYTES_MAX: Final = 256
KEYS_MAX: Final = 64  # of one label on one token
OTHERS: Final = 0o077
SAID_LENGTH_MAX: Final = 200
# P-256 in CKA_EC_PARAMS: its object identifier, 1.2.840.10045.3.1.7 (RFC 5480, 2.1.1.1)
P256: Final = bytes.fromhex("06082a8648ce3d030107")
POINT_SIZE_BYTES: Final = 65
_OCTET_STRING: Final = bytes((0x04, POINT_SIZE_BYTES))
_ID_SIZE_BYTES: Final = 8
# What the public half may be used for: tpm2-pkcs11 refuses to be told, and nobody verifies on the token.
_LEFT_TO_TOKEN: Final = ("ENCRYPT", "WRAP", "VERIFY")


class RefusedPin(msgspec.Struct, frozen=True):
    """Enough to know a PIN again that a token refused, too little to find it out."""

    salt: bytes
    mark: bytes


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where the key is."""

    module: str
    key: str
    token: str | None = None
    slot: int | None = None
    pin_file: str | None = None
    refused: RefusedPin | None = None

    def __str__(self) -> str:
        return f"token {self.token!r}" if self.slot is None else f"the token in slot {self.slot}"


class Ask(msgspec.Struct, frozen=True):
    """`find` the key, `make` one if there is none, or `sign` a SHA-256 digest of 32 bytes."""

    do: Literal["find", "make", "sign"]
    digest: bytes = b""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`point`: the public key (SEC 1, uncompressed), empty when there is none. `signature`: r and s, raw.

    With `code` it failed. `refused` is to be kept; without it the PIN was good or not asked for.
    """

    point: bytes = b""
    is_extractable: bool = False
    signature: bytes = b""
    code: str = ""
    what: str = ""
    hint: str | None = None
    refused: RefusedPin | None = None


class _PinRefusedError(Exception):
    """The token said no to this PIN."""

    def __init__(self, problem: TwinlockError, refused: RefusedPin) -> None:
        super().__init__(problem.what)
        self.problem = problem
        self.refused = refused


class Keeper:
    """One session with one token, opened when it is first needed; a failure closes it for good."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._session: Session | None = None
        self._found: tuple[Any, bytes] | None = None
        self._failed: Answer | None = None

    def answer(self, ask: Ask) -> Answer:
        """What was asked for. Raises nothing: a failure is an answer, and the only one from then on."""
        if self._failed is not None:
            return self._failed
        try:
            return self._answer(ask)
        except _PinRefusedError as refusal:
            self._failed = _failure(refusal.problem, refusal.refused)
        except TwinlockError as problem:
            self._failed = _failure(problem, None)
        except ImportError as problem:
            what = f"a key on a PKCS#11 token needs the package python-pkcs11: {problem}"
            hint = "install twinlock[pkcs11] in the image, or take [identity] out of the configuration"
            self._failed = _failure(error("package-missing", what, hint=hint), None)
        except Exception as problem:  # noqa: BLE001  a maker's module fails in ways of its own
            self._failed = _failure(_of_module(problem, self._place), None)
        return self._failed

    def _answer(self, ask: Ask) -> Answer:
        session = self._opened()
        found = self._found or self._find(session)
        if found is None and ask.do == "make":
            self._make(session.token)
            found = self._find(session)
            if found is None:
                raise error("pkcs11-failed", f"{self._place} made a key and does not show it")
        self._found = found
        if found is None:
            if ask.do == "sign":
                raise error("identity-lost", f"{self._place} has no key {self._place.key!r}")
            return Answer()
        from pkcs11 import Attribute, Mechanism

        private, point = found
        if ask.do == "sign":
            return Answer(signature=private.sign(ask.digest, mechanism=Mechanism.ECDSA))
        return Answer(point=point, is_extractable=bool(private[Attribute.EXTRACTABLE]))

    def close(self) -> None:
        """Ends the session, and with it the login."""
        if self._session is not None:
            self._session.close()

    # --- the token

    def _opened(self) -> Session:
        if self._session is None:
            self._session = self._open()
        return self._session

    def _open(self) -> Session:
        import pkcs11

        place = self._place
        if not Path(place.module).exists():
            hint = "install the token's PKCS#11 library in the image, or correct [identity] module"
            raise error("package-missing", f"there is no PKCS#11 module {place.module}", hint=hint)
        token = _token(pkcs11.lib(place.module), place)
        return token.open() if place.pin_file is None else _logged_in(token, place, Path(place.pin_file))

    # --- the key

    def _find(self, session: Session) -> tuple[Any, bytes] | None:
        """The one pair of this label; halves that a cut of power left alone do not count."""
        from pkcs11 import Attribute, KeyType, ObjectClass

        wanted: dict[Attribute, Any] = {Attribute.LABEL: self._place.key, Attribute.KEY_TYPE: KeyType.EC}
        private = _objects(session, wanted | {Attribute.CLASS: ObjectClass.PRIVATE_KEY})
        public = {
            one[Attribute.ID]: one
            for one in _objects(session, wanted | {Attribute.CLASS: ObjectClass.PUBLIC_KEY})
        }
        pairs = [(one, public[one[Attribute.ID]]) for one in private if one[Attribute.ID] in public]
        if not pairs:
            return None
        if len(pairs) > 1:
            hint = "give the device's key a label of its own, or remove the others from the token"
            raise error(
                "pkcs11-failed", f"{self._place} has {len(pairs)} keys {self._place.key!r}", hint=hint
            )
        key, half = pairs[0]
        return key, _point(half)

    def _make(self, token: Token) -> None:
        """A new P-256 pair, made on the token; its private half never leaves it."""
        from pkcs11 import DEFAULT, Attribute, KeyType, MechanismFlag

        with token.open(rw=True) as session:  # the login is the application's, not a session's
            kind = session.create_domain_parameters(KeyType.EC, {Attribute.EC_PARAMS: P256}, local=True)
            kind.generate_keypair(
                store=True,
                id=secrets.token_bytes(_ID_SIZE_BYTES),
                label=self._place.key,
                capabilities=MechanismFlag.SIGN,
                public_template=dict.fromkeys((Attribute[name] for name in _LEFT_TO_TOKEN), DEFAULT),
                private_template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
            )


def _token(library: Any, place: Place) -> Token:
    """The one token that is meant. Raises DeviceError `pkcs11-missing`."""
    from pkcs11.exceptions import TokenNotPresent, TokenNotRecognised

    there: list[tuple[int, Token]] = []
    for slot in library.get_slots(token_present=True):
        try:
            there.append((slot.slot_id, slot.get_token()))
        except (TokenNotPresent, TokenNotRecognised):  # it went while it was looked at
            continue
    meant = [
        token
        for number, token in there
        if (number == place.slot if place.slot is not None else token.label == place.token)
    ]
    if len(meant) == 1:
        return meant[0]
    shown = ", ".join(f"{token.label!r} in slot {number}" for number, token in there) or "none"
    if meant:
        hint = "name it by `slot` in [identity], or give it a label of its own"
        raise error("pkcs11-missing", f"{place.module} has {len(meant)} tokens {place.token!r}", hint=hint)
    raise error("pkcs11-missing", f"{place} is not there; {place.module} shows: {shown[:SAID_LENGTH_MAX]}")


def _objects(session: Session, wanted: dict[Any, Any]) -> list[Any]:
    """All objects with these attributes; the search is ended before anything else is asked of the token."""
    found = list(islice(session.get_objects(wanted), KEYS_MAX + 1))
    if len(found) > KEYS_MAX:
        raise error("pkcs11-failed", f"the token has more than {KEYS_MAX} keys of one label")
    return found


def _point(public: PublicKey) -> bytes:
    """Raises DeviceError `identity-missing` for another curve. Some tokens leave the OCTET STRING out."""
    from pkcs11 import Attribute

    value, curve = bytes(public[Attribute.EC_POINT]), bytes(public[Attribute.EC_PARAMS])
    point = value.removeprefix(_OCTET_STRING) if len(value) == POINT_SIZE_BYTES + 2 else value
    if curve != P256 or len(point) != POINT_SIZE_BYTES:
        hint = "let `twinlock-agent enrol` make the key: give it a label that no key on the token has"
        raise error("identity-missing", "the key on the token is not a P-256 key", hint=hint)
    return point


# --- the PIN


def read_pin(path: Path) -> str:
    """The PIN in a file that nobody but its owner can read; a newline at its end does not count.

    Raises DeviceError `pkcs11-pin`.
    """
    hint = f"write the PIN into {path} and chmod 0600 it; it belongs to root or to whom the agent runs as"
    with os_errors(f"PIN file {path}"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait for ever
        except FileNotFoundError as problem:
            raise error("pkcs11-pin", f"there is no PIN file {path}", hint=hint) from problem
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_mode & OTHERS:
                raise error("pkcs11-pin", f"PIN file {path} can be read by others, or is no file", hint=hint)
            if status.st_uid not in (0, os.geteuid()):
                raise error("pkcs11-pin", f"PIN file {path} belongs to somebody else", hint=hint)
            data = os.read(fd, PIN_SIZE_BYTES_MAX + 1)
        finally:
            os.close(fd)
    try:
        pin = data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as problem:
        raise error("pkcs11-pin", f"PIN file {path} is not UTF-8", hint=hint) from problem
    if not pin or len(data) > PIN_SIZE_BYTES_MAX or not pin.isprintable():
        what = f"PIN file {path} does not hold one line of at most {PIN_SIZE_BYTES_MAX} bytes"
        raise error("pkcs11-pin", what, hint=hint)
    return pin


def _logged_in(token: Token, place: Place, pin_file: Path) -> Session:
    """A session with the PIN in the file, which is tried once at most. Raises DeviceError `pkcs11-pin`."""
    from pkcs11 import TokenFlag
    from pkcs11.exceptions import PinIncorrect, PinInvalid, PinLenRange

    pin = read_pin(pin_file)
    if place.refused is not None and _is_known(place.refused, token, pin):
        hint = f"write the right PIN into {pin_file}; if it is the token that was changed since, remove "
        hint += "pkcs11.json from the agent's state folder"
        what = f"{place} refused this PIN before: it is not tried again, since tokens lock"
        raise _PinRefusedError(error("pkcs11-pin", what, hint=hint), place.refused)
    if token.flags & TokenFlag.USER_PIN_LOCKED:
        hint = "unlock it with its administrator's PIN"
        raise error("pkcs11-pin", f"{place} has locked its PIN", hint=hint)
    if token.flags & TokenFlag.USER_PIN_FINAL_TRY:
        hint = "log in once by hand with the right PIN, by the tools of its maker"
        raise error("pkcs11-pin", f"{place} has one try left for its PIN, which is not used up", hint=hint)
    try:
        return token.open(user_pin=pin)
    except (PinIncorrect, PinInvalid, PinLenRange) as problem:
        hint = f"write the right PIN into {pin_file}; this one is not tried again"
        refusal = error("pkcs11-pin", f"{place} refuses the PIN in {pin_file}", hint=hint)
        raise _PinRefusedError(refusal, _mark(token, pin)) from problem


def _mark(token: Token, pin: str, salt: bytes | None = None) -> RefusedPin:
    salt = secrets.token_bytes(16) if salt is None else salt
    text = b"\0".join((token.label.encode(), bytes(token.serial), pin.encode()))
    return RefusedPin(salt, hmac.digest(salt, text, hashlib.sha256)[:2])


def _is_known(refused: RefusedPin, token: Token, pin: str) -> bool:
    return hmac.compare_digest(_mark(token, pin, refused.salt).mark, refused.mark)


# --- failures, and the process


def _of_module(problem: Exception, place: Place) -> TwinlockError:
    """What a module said, as one of our errors."""
    from pkcs11 import exceptions

    said = str(problem).strip().split("\n")[0][:SAID_LENGTH_MAX]
    what = f"{place}: {type(problem).__name__}{f': {said}' if said else ''}"
    gone = (exceptions.DeviceRemoved, exceptions.TokenNotPresent, exceptions.SlotIDInvalid)
    if isinstance(problem, gone):
        return error("pkcs11-missing", what)
    pins = (exceptions.PinExpired, exceptions.PinLocked, exceptions.UserPinNotInitialized)
    if isinstance(problem, (*pins, exceptions.UserNotLoggedIn)):
        hint = "set or unlock the token's user PIN, and name the file that holds it: pin_file in [identity]"
        return error("pkcs11-pin", what, hint=hint)
    return error("pkcs11-failed", what)


def _failure(problem: TwinlockError, refused: RefusedPin | None) -> Answer:
    return Answer(code=problem.code, what=problem.what, hint=problem.hint, refused=refused)


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Answers until the input ends. Raises msgspec.MsgspecError for what is no Place or Ask."""
    keeper = Keeper(msgspec.json.decode(source.readline(LINE_SIZE_BYTES_MAX), type=Place))
    try:
        while line := source.readline(LINE_SIZE_BYTES_MAX):
            sink.write(msgspec.json.encode(keeper.answer(msgspec.json.decode(line, type=Ask))) + b"\n")
            sink.flush()
    finally:
        keeper.close()


def main() -> None:
    """Answers on what was standard output; what a module prints there goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its input, which the agent closes
    end_with(int(os.environ[PARENT]))
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as sink:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        serve(sys.stdin.buffer, sink)


if __name__ == "__main__":
    main()
