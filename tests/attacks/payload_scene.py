"""Payloads of an attacker: a whole agent, told to install, and a server that serves what it is made to.

The release is signed as it should be; what is not right is on the way to it. Ranges are served over a real
socket, and each test says what of them is a lie.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import msgspec

from tests.attacks.agent_scene import AgentScene
from tests.attacks.scene import LISTED
from tests.conformance.driver import serve
from tests.conformance.repository import Repository
from tests.unit.agent.fakes import Packed, image_of, pack
from twinlock.agent import memory
from twinlock.core.payload import container
from twinlock.core.payload.parts import Part
from twinlock.core.protocol import PayloadOffer

PACKED = pack(image_of("ab", tail_bytes=512 * 7), "1.1", 3)
# A check may note the time and make the plan; neither is anything that runs.
NOTED = frozenset({memory.TIME_FILE, "plan.json"})

Read = Callable[[int, int], bytes]  # the bytes from the first to before the last


class Ranges:
    """Answers a request for a range; the fields are what it says of the payload, true or not."""

    def __init__(self, read: Read, size_bytes: int) -> None:
        self.read = read
        self.size_bytes = size_bytes
        self.shifted_by = 0  # how far the range that is announced is from the one asked for
        self.longer_by = 0  # how many bytes more than the range are announced, and sent
        self.asked: list[tuple[int, int]] = []

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers["Range"])
        assert match is not None
        first, last = (int(number) for number in match.groups())
        self.asked.append((first, last))
        body = self.read(first, last + 1) + bytes(self.longer_by)
        handler.send_response(206)
        start, end = first + self.shifted_by, last + self.shifted_by
        handler.send_header("Content-Range", f"bytes {start}-{end}/{self.size_bytes}")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


class PayloadScene(AgentScene):
    """A device with an assignment and a payload for it."""

    def install(self, packed: Packed, payload: bytes | None = None, assignment_id: str = "r1") -> Ranges:
        """Signs and assigns the release; serves its payload, or these other bytes in its place."""
        self.assign(packed.manifest, assignment_id)
        data = packed.payload if payload is None else payload
        trailer = container.decode_trailer(packed.payload[-container.TRAILER_SIZE_BYTES :])
        offer = msgspec.structs.replace(
            packed.offer, size_bytes=len(data), index_size_bytes=trailer.index_size_bytes
        )
        return self.offer(offer, lambda first, end: data[first:end])

    def offer(self, *offers_and_read: Any) -> Ranges:
        """Offers payloads (`offer, read` in turn) for the assignment; the last one's answers."""
        offers: list[PayloadOffer] = list(offers_and_read[::2])
        assignment = self.poll_answer.assignment
        assert assignment is not None
        self.poll_answer = msgspec.structs.replace(
            self.poll_answer, assignment=msgspec.structs.replace(assignment, payloads=tuple(offers))
        )
        for offer, read in zip(offers, offers_and_read[1::2], strict=True):
            ranges = Ranges(read, offer.size_bytes)
            self.repository.scripts[f"device/v1/payloads/{offer.sha256.hex()}"] = ranges
        return ranges

    def sign_manifest(self, data: bytes, packed: Packed) -> None:
        """Signs and serves `data` as the manifest of a release, with that release's claims."""
        entry = self.repository.add_file(data, packed.manifest.name)
        entry.unrecognized_fields["custom"] = {"twinlock": msgspec.to_builtins(packed.manifest.claims)}
        self.repository.publish(*LISTED)

    def refuses(self, code: str, *, but: tuple[str, ...] = ()) -> None:
        """The next run ends with this code or reports it, arms nothing, and changes only what `but` names."""
        before, told = self.state(), len(self.reports)
        ended = self.run()
        codes = {report.code for report in self.reports[told:]} - {""}
        assert code in codes | {ended}, f"ended with {ended!r}, reported {codes}"
        after = self.state()
        changed = {name for name in after if before[name] != after[name]} - NOTED
        assert changed <= set(but), changed
        self.runs_on()

    def runs_on(self) -> None:
        """Slot a is committed, nothing is on trial, and what is in slot b does not boot if it was touched."""
        record = self.ports.boot.read()
        assert (record.default, record.trying) == ("a", None)
        with (self.folder / "b.img").open("rb") as slot:
            untouched = slot.read(512) == b"b" * 512
        assert untouched or "b" in record.failed


def repacked(packed: Packed, parts: tuple[Part, ...], body: bytes, **index: Any) -> Packed:
    """The release with another payload: these parts, these bytes of them, an index changed by hand."""
    changed = msgspec.structs.replace(packed.index, parts=parts, **index)
    return Packed(packed.image, packed.manifest, body + container.encode_tail(changed), changed)


def body_of(packed: Packed) -> bytes:
    """The bytes of all parts."""
    return packed.payload[: packed.index.offsets()[-1]]


def flipped(data: bytes, position: int) -> bytes:
    """`data` with one bit turned over."""
    position %= len(data)
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@contextmanager
def payload_scene(folder: Path, **network: Any) -> Iterator[PayloadScene]:
    """A device in `folder` and its server; `network` is what its configuration has of that."""
    repository = Repository()
    folder.mkdir(parents=True, exist_ok=True)
    with serve(repository) as address:
        yield PayloadScene(repository, address, folder, **network)
