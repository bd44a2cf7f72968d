"""Delta payloads for the agent's tests: small ones, made by the product's own encoder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.unit.agent.fakes import MIB, Device, Packed, memory_slots, pack, plan_for
from twinlock.agent import memory
from twinlock.agent.plan import Running
from twinlock.core.payload import container
from twinlock.core.payload.blocks import block_hashes
from twinlock.core.protocol import PayloadOffer
from twinlock.publish.delta.encode import encode_delta


@dataclass(frozen=True)
class Delta:
    """A delta's bytes and its index."""

    payload: bytes
    index: container.Index

    @property
    def offer(self) -> PayloadOffer:
        size = len(self.payload) - self.index.body_size_bytes - container.TRAILER_SIZE_BYTES
        digest = hashlib.sha256(self.payload).digest()
        return PayloadOffer(
            kind="delta",
            sha256=digest,
            size_bytes=len(self.payload),
            index_size_bytes=size,
            base_sha256=self.index.base_sha256,
        )


def delta_of(folder: Path, old: bytes, new: bytes) -> Delta:
    """The delta from one image to another."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (("old", old), ("new", new)):
        (folder / name).write_bytes(data)
    encode_delta(folder / "old", folder / "new", folder / "out", jobs=1)
    payload = (folder / "out").read_bytes()
    return Delta(payload, index_of(payload))


def index_of(payload: bytes) -> container.Index:
    """The index of a payload."""
    trailer = container.decode_trailer(payload[-container.TRAILER_SIZE_BYTES :])
    tail = len(payload) - container.TRAILER_SIZE_BYTES
    return container.decode_index(payload[tail - trailer.index_size_bytes : tail], trailer)


def forged(delta: Delta, number: int) -> Delta:
    """The delta with other bytes for one part, and an index that calls them right."""
    offsets = delta.index.offsets()
    body = bytearray(delta.payload[: offsets[-1]])
    part = bytearray(body[offsets[number] : offsets[number + 1]])
    part[-1] ^= 0xFF
    body[offsets[number] : offsets[number + 1]] = part
    parts = list(delta.index.parts)
    parts[number] = msgspec.structs.replace(parts[number], sha256=hashlib.sha256(part).digest())
    index = msgspec.structs.replace(delta.index, parts=tuple(parts))
    return Delta(bytes(body) + container.encode_tail(index), index)


def with_blocks(packed: Packed) -> Packed:
    """The same release, its full payload with block hashes."""
    body = bytearray(packed.payload[: packed.index.offsets()[-1]])
    hashes = b"".join(
        block_hashes(packed.image[number * MIB : (number + 1) * MIB])
        for number, part in enumerate(packed.index.parts)
        if part.length
    )
    index = msgspec.structs.replace(packed.index, blocks_size_bytes=len(hashes))
    return Packed(packed.image, packed.manifest, bytes(body + hashes) + container.encode_tail(index), index)


def device_on(old: bytes, packed: Packed, *deltas: Delta) -> Device:
    """A device whose committed slot a holds `old`, with a plan for `packed` that offers these deltas."""
    device = Device(slots=memory_slots(old))
    device.network.serve(packed)
    plan = plan_for(packed)
    for delta in deltas:
        device.network.payloads[delta.offer.sha256.hex()] = delta.payload
        plan = msgspec.structs.replace(plan, payloads=(*plan.payloads, delta.offer))
    device.plan(plan)
    known = Running(product="demo", version="1.0", image_sha256=hashlib.sha256(old).digest())
    device.store.write(memory.SLOTS_FILE, msgspec.json.encode({"a": known}))
    return device


def release_pair(seed: int = 0) -> tuple[bytes, Packed]:
    """An older image, and a newer release that mostly moved: see the tests."""
    from tests.unit.agent.fakes import image_of

    old = image_of("abcdef", seed)
    new = bytearray(old[MIB : 2 * MIB] + old[4096 : 3 * MIB + 4096] + old[4 * MIB :])
    new[5 * MIB + 100 : 5 * MIB + 130] = b"thirty bytes that are all new!"
    return old, pack(bytes(new))
