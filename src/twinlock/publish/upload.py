"""From a repository to a server: everything is checked as a device would first, then sent.

A payload that the server has is not sent again; one that broke off is sent anew. Metadata and manifest go in
one request, so that the server takes all of a release or nothing. After any failure, run it again.
"""

from __future__ import annotations

import base64
import hashlib
import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, BinaryIO, Final, Protocol, TypeVar

import msgspec

from twinlock.core.durable import os_errors
from twinlock.core.errors import InputError, TransportError, TwinlockError, error
from twinlock.publish.folder import PayloadRecord, Release
from twinlock.publish.payload_file import PayloadFile, ignore
from twinlock.publish.releases import SignedRelease, read_signed
from twinlock.publish.repository import Chain, Repository

ROOTS_MAX: Final = 64
TRIES_DEFAULT: Final = 5
WAIT_S_FIRST: Final = 1.0
WAIT_S_MAX: Final = 30.0

T = TypeVar("T")


class Operator(Protocol):
    """The part of the operator API that publishing needs; every failure is a TwinlockError."""

    def get(self, path: str) -> Any:
        """The answer to GET, decoded."""
        ...

    def post(self, path: str, body: Any) -> Any:
        """The answer to POST, decoded."""
        ...

    def payload_size_bytes(self, sha256: str) -> int | None:
        """How large a payload is there, None when it is not."""
        ...

    def put_payload(
        self, sha256: str, file: BinaryIO, size_bytes: int, advance: Callable[[int], None]
    ) -> bool:
        """Sends a payload; True when it was new."""
        ...


@dataclass(frozen=True, slots=True)
class Retry:
    """How transport failures are met: tries in all, the pause between them, and who hears of them.

    The pause doubles from `WAIT_S_FIRST` to `WAIT_S_MAX`, with full jitter; `sleep` waits that many seconds.
    """

    sleep: Callable[[float], None]
    tries: int = TRIES_DEFAULT
    rng: random.Random = field(default_factory=random.Random)
    heard: Callable[[TwinlockError, float], None] = lambda problem, wait_s: None


@dataclass(frozen=True, slots=True)
class Sent:
    """What happened to one release: new there or known, payload bytes sent, payload bytes spared."""

    name: str
    new: bool
    sent_bytes: int
    spared_bytes: int


def publish(
    repository: Repository,
    operator: Operator,
    wanted: Sequence[SignedRelease],
    now: datetime,
    retry: Retry,
    advance: Callable[[int], None] = ignore,
) -> list[Sent]:
    """Brings the repository's state and the `wanted` releases to the server.

    `advance` is told the payload bytes that were checked, and again those that were sent or spared. Raises
    InputError `key-threshold` while signatures are missing, TrustError for anything that a device would
    refuse, and what the server says.
    """
    chain = check_published(repository, now)
    releases = [read_signed(repository, one) for one in wanted]
    for release in releases:
        check_payloads(release, advance)
    operator.get("/health")  # a server that is not there is told at once, not after all tries
    metadata = _metadata(chain)
    sent = [_send_release(operator, release, metadata, retry, advance) for release in releases]
    if not releases:
        again(lambda: operator.post("/metadata", metadata), retry)
    return sent


def _send_release(
    operator: Operator,
    release: Release,
    metadata: dict[str, Any],
    retry: Retry,
    advance: Callable[[int], None],
) -> Sent:
    payloads = release.record.payloads
    sizes = [_send_payload(operator, release, payload, retry, advance) for payload in payloads]
    _send_extras(operator, release, retry)
    new = _known(operator, release, retry) is None
    body = {
        "metadata": metadata,
        "manifest": _text(release.manifest_bytes),
        "payloads": [msgspec.structs.asdict(payload) for payload in payloads],
    }
    again(lambda: operator.post("/releases", body), retry)
    return Sent(release.manifest.name, new, sum(one for one, _ in sizes), sum(two for _, two in sizes))


def _send_extras(operator: Operator, release: Release, retry: Retry) -> None:
    """Details and SBOM are kept by their hash, beside the payloads: what they are is in the signed list."""
    if release.extras is None:
        return
    for data in (release.extras.data, release.extras.sbom):
        if data is not None:
            sha256 = hashlib.sha256(data).hexdigest()
            if operator.payload_size_bytes(sha256) != len(data):
                put = partial(_put, operator, sha256, data)
                again(put, retry)


def _put(operator: Operator, sha256: str, data: bytes) -> bool:
    return operator.put_payload(sha256, io.BytesIO(data), len(data), ignore)


def check_published(repository: Repository, now: datetime) -> Chain:
    """The published state, verified as a new device would.

    Raises InputError `key-threshold`, TrustError `metadata-missing` and the codes of the verifier.
    """
    if repository.pending:
        roles = ", ".join(f"{role} version {one.signed.version}" for role, one in repository.pending.items())
        raise error(
            "key-threshold",
            f"{repository.folder}: {roles} lacks signatures",
            hint="collect them with `twinlock release sign`, or drop them with `twinlock release abandon`",
        )
    if repository.chain is None or repository.chain.timestamp is None:
        raise error(
            "metadata-missing",
            f"{repository.folder} has no signed release yet",
            hint="sign one with `twinlock release sign`",
        )
    repository.chain.verify(now)
    return repository.chain


def check_payloads(release: Release, advance: Callable[[int], None] = ignore) -> None:
    """Proves every payload of a release by decoding it, and its hash. Raises TrustError, `payload-hash`."""
    for payload in release.record.payloads:
        path = release.payload_path(payload)
        with PayloadFile(path) as file:
            if file.sha256(advance) != payload.sha256:
                raise error(
                    "payload-hash",
                    f"{path} is damaged: it does not have the hash in its name",
                    hint="sign the release again from its folder, which copies the payload anew",
                )
            file.prove(release.manifest)


def again(step: Callable[[], T], retry: Retry) -> T:
    """What `step` gives; a TransportError is met by a pause and another try, as `retry` says."""
    wait_s_max = WAIT_S_FIRST
    for _ in range(retry.tries - 1):
        try:
            return step()
        except TransportError as problem:
            wait_s = retry.rng.uniform(0, wait_s_max)
            retry.heard(problem, wait_s)
            retry.sleep(wait_s)
            wait_s_max = min(2 * wait_s_max, WAIT_S_MAX)
    return step()


def _send_payload(
    operator: Operator,
    release: Release,
    payload: PayloadRecord,
    retry: Retry,
    advance: Callable[[int], None],
) -> tuple[int, int]:
    """(bytes sent, bytes spared): the server is asked first, before each try too."""
    counted = _Once(advance)

    def step() -> tuple[int, int]:
        if operator.payload_size_bytes(payload.sha256) == payload.size_bytes:
            return 0, payload.size_bytes
        counted.start()
        with os_errors(str(release.payload_path(payload))), release.payload_path(payload).open("rb") as file:
            operator.put_payload(payload.sha256, file, payload.size_bytes, counted.advance)
        return payload.size_bytes, 0

    done = again(step, retry)
    counted.up_to(payload.size_bytes)
    return done


class _Once:
    """Progress that counts bytes once, though an upload may start over."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._told = 0
        self._position = 0

    def start(self) -> None:
        self._position = 0

    def advance(self, size_bytes: int) -> None:
        self._position += size_bytes
        self.up_to(self._position)

    def up_to(self, position: int) -> None:
        if position > self._told:
            self._advance(position - self._told)
            self._told = position


def is_known(operator: Operator, release: Release) -> bool:
    """Whether the server has this release; asked once."""
    return _known(operator, release, Retry(sleep=lambda _: None, tries=1)) is not None


def _known(operator: Operator, release: Release, retry: Retry) -> Any:
    """What the server says of this release, or None when it does not have it."""
    made = release.manifest
    try:
        return again(lambda: operator.get(f"/releases/{made.product}/{made.version}"), retry)
    except InputError as problem:
        if problem.code != "not-found":
            raise
        return None


def _metadata(chain: Chain) -> dict[str, Any]:
    assert chain.timestamp is not None
    assert chain.snapshot is not None
    assert chain.targets is not None
    delegated = {role: _text(data) for role, data in chain.delegated.items()}
    return {
        **({"delegated": delegated} if delegated else {}),
        "roots": [_text(data) for data in chain.roots[-ROOTS_MAX:]],
        "timestamp": _text(chain.timestamp),
        "snapshot": _text(chain.snapshot),
        "targets": _text(chain.targets),
    }


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
