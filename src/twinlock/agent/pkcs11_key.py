"""The device's key on a PKCS#11 token (a TPM 2.0 through tpm2-pkcs11, a secure element, a smart card).

The private half is made on the token and cannot leave it, so a copy of the disk is not this device. The
token's library runs in a process of its own (`pkcs11_process`), which is started when a signature is wanted:
a poll with an open session asks nothing of the token.

    pkcs11.json    what is known of a PIN that the token refused; gone as soon as one is accepted

Raises DeviceError: `package-missing` without the library or python-pkcs11, `pkcs11-missing` without the
token, `pkcs11-pin`, `pkcs11-failed`, `identity-lost` when the token has not the key that was enrolled.
"""

from __future__ import annotations

import hashlib
import os
import select
import subprocess
import sys
import time
import weakref
from typing import TYPE_CHECKING, Final

import msgspec

from twinlock.agent.parent import PARENT
from twinlock.agent.pkcs11_process import LINE_SIZE_BYTES_MAX, Answer, Ask, Place, RefusedPin
from twinlock.core import device_key, limits
from twinlock.core.errors import CATALOGUE, TwinlockError, error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twinlock.agent.config import IdentityConfig
    from twinlock.agent.ports import Store

REFUSED: Final = "pkcs11.json"
PROGRAM: Final = (sys.executable, "-m", "twinlock.agent.pkcs11_process")
ANSWER_WAIT_S_MAX: Final = 60.0
END_WAIT_S_MAX: Final = 5.0
_READ_SIZE_BYTES: Final = 4096


class TokenKey:
    """The key that `config` names. `fingerprint` is that of the key the device was enrolled with, if it was.

    Is a `device_key.Signing`. Nothing is started before it is used.
    """

    def __init__(
        self,
        store: Store,
        config: IdentityConfig,
        fingerprint: str | None = None,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        self._store = store
        self._config = config
        self._fingerprint = fingerprint
        self._program = tuple(program)
        self._process: _Process | None = None
        self._public: device_key.DevicePublicKey | None = None
        self.is_extractable = False

    @property
    def public_pem(self) -> str:
        return self._found().pem

    @property
    def fingerprint(self) -> str:
        """The key's, 64 hex digits."""
        return self._found().fingerprint

    def find(self) -> bool:
        """Whether the token has a key of this label; also one that is not this device's."""
        return self._public is not None or self._take(self._ask(Ask("find")))

    def make(self) -> None:
        """Makes the key on the token, unless it has one of this label."""
        if not self._take(self._ask(Ask("make"))):
            raise error("pkcs11-failed", "the token made no key")

    def sign(self, text: bytes) -> bytes:
        """The DER signature over `text`. The token is given its digest alone."""
        self._found()
        return device_key.der_signature(self._ask(Ask("sign", hashlib.sha256(text).digest())).signature)

    def prove(self) -> None:
        """Raises DeviceError `pkcs11-failed` unless what the token signs is good by its public half."""
        try:
            device_key.prove(self, b"twinlock-probe")
        except TwinlockError as problem:
            if problem.code != "signature-invalid":
                raise
            raise error(
                "pkcs11-failed", "the token's private and public key do not belong together"
            ) from problem

    def _found(self) -> device_key.DevicePublicKey:
        if not self.find():
            if self._fingerprint is None:
                raise error("identity-missing", f"the token has no key {self._config.key!r} yet")
            raise error("identity-lost", f"the token has no key {self._config.key!r}, but {self._enrolled}")
        assert self._public is not None
        found = self._public.fingerprint
        if self._fingerprint not in (None, found):
            raise error("identity-lost", f"the token's key is {found}, but {self._enrolled}")
        return self._public

    @property
    def _enrolled(self) -> str:
        return f"this device was enrolled with {self._fingerprint}"

    def _take(self, answer: Answer) -> bool:
        if not answer.point:
            return False
        self._public = device_key.DevicePublicKey(device_key.pem_of_point(answer.point))
        self.is_extractable = answer.is_extractable
        return True

    def _ask(self, ask: Ask) -> Answer:
        if self._process is None:
            self._process = _Process(self._program, self._place())
        answer = self._process.ask(ask)
        self._keep(answer)
        if answer.code:
            code = answer.code if answer.code in CATALOGUE else "pkcs11-failed"
            raise error(code, answer.what, hint=answer.hint)
        return answer

    def _place(self) -> Place:
        config = self._config
        return Place(
            module=str(config.module),
            key=config.key,
            token=config.token,
            slot=config.slot,
            pin_file=None if config.pin_file is None else str(config.pin_file),
            refused=self._refused(),
        )

    def _refused(self) -> RefusedPin | None:
        data = self._store.read(REFUSED, limits.MESSAGE_SIZE_BYTES_MAX)
        try:
            return None if data is None else msgspec.json.decode(data, type=RefusedPin)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def _keep(self, answer: Answer) -> None:
        """Remembers a PIN that was just refused; forgets it once the token let us in."""
        if answer.refused is not None:
            if self._refused() != answer.refused:
                self._store.write(REFUSED, msgspec.json.encode(answer.refused))
        elif not answer.code:
            self._store.remove(REFUSED)


class _Process:
    """The process beside this one. It ends with this object, or with this process."""

    def __init__(self, program: Sequence[str], place: Place) -> None:
        try:
            self._child = subprocess.Popen(
                program,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env={**os.environ, PARENT: str(os.getpid())},
            )
        except OSError as problem:
            raise error("internal", f"the token's process does not start: {problem}") from problem
        self.end = weakref.finalize(self, _end, self._child)
        self._send(place)

    def ask(self, ask: Ask) -> Answer:
        """Raises DeviceError `pkcs11-failed` when there is no answer in time, or none at all."""
        self._send(ask)
        try:
            return msgspec.json.decode(self._line(), type=Answer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
            raise error("pkcs11-failed", f"the token's process gave no answer: {self._ending()}") from problem

    def _send(self, message: msgspec.Struct) -> None:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(msgspec.json.encode(message) + b"\n")
        except BrokenPipeError as problem:
            raise error("pkcs11-failed", f"the token's process is gone: {self._ending()}") from problem

    def _line(self) -> bytes:
        """The next line, or what there is of it when the process ends."""
        assert self._child.stdout is not None
        fd = self._child.stdout.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        until_s = time.monotonic() + ANSWER_WAIT_S_MAX
        line = b""
        while not line.endswith(b"\n") and len(line) < LINE_SIZE_BYTES_MAX:
            left_s = until_s - time.monotonic()
            if left_s <= 0 or not poll.poll(left_s * 1000):
                self.end()
                raise error("pkcs11-failed", f"the token gave no answer within {ANSWER_WAIT_S_MAX:g} s")
            data = self._child.stdout.read(_READ_SIZE_BYTES)
            if not data:
                break
            line += data
        return line

    def _ending(self) -> str:
        self.end()
        code = self._child.returncode
        return f"it ended with signal {-code}" if code < 0 else f"it ended with {code}"


def _end(child: subprocess.Popen[bytes]) -> None:
    """Lets the process end by itself, since tokens want their sessions closed; one that does not is ended."""
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
    try:
        child.wait(END_WAIT_S_MAX)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
