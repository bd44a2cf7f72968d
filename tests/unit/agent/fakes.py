"""A device in memory: every port of the agent, with the meaning of the real ones and faults on demand.

What is durable and what is not is kept apart: `power_cut` loses what was not flushed, in part or whole.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from twinlock.agent import plan as plans
from twinlock.agent.boot.base import Booted, Capabilities
from twinlock.agent.config import Config, parse
from twinlock.agent.plan import CheckAnswer, CheckRequest, Job, Plan
from twinlock.agent.ports import HookResult, Ports, Request
from twinlock.agent.system import LastEnd, Unit
from twinlock.core import bootrecord, limits, manifest
from twinlock.core.bootrecord import BootRecord
from twinlock.core.errors import TwinlockError, error
from twinlock.core.manifest import Manifest
from twinlock.core.payload import container, parts
from twinlock.core.protocol import PayloadOffer
from twinlock.core.zstd import compress

MIB = limits.MIB


# --- what is installed ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packed:
    """An image with its manifest and full payload."""

    image: bytes
    manifest: Manifest
    payload: bytes
    index: container.Index

    @property
    def offer(self) -> PayloadOffer:
        tail = len(self.payload) - self.index.body_size_bytes
        return PayloadOffer(
            kind="full",
            sha256=hashlib.sha256(self.payload).digest(),
            size_bytes=len(self.payload),
            index_size_bytes=tail - container.TRAILER_SIZE_BYTES,
        )


def image_of(segments: str, seed: int = 0, tail_bytes: int = 0) -> bytes:
    """One segment per letter: `0` all zeros, `.` compresses well, anything else about 40 KiB compressed."""
    rng = random.Random(f"{segments}{seed}")
    image = bytearray()
    for number, letter in enumerate(segments):
        if letter == "0":
            image += bytes(MIB)
            continue
        noise = b"" if letter == "." else rng.randbytes(40_000)
        text = f"{letter} segment {number} of image {seed}; ".encode()
        image += (noise + text * (MIB // len(text) + 1))[:MIB]
    return bytes(image[: len(image) - MIB + tail_bytes] if tail_bytes else image)


def pack(image: bytes, version: str = "1.1", counter: int = 1) -> Packed:
    segments = [image[start : start + MIB] for start in range(0, len(image), MIB)]
    found: list[parts.Part] = []
    body = bytearray()
    for segment in segments:
        if parts.is_zero(segment):
            found.append(parts.Zero())
            continue
        encoded = compress(segment, 3)
        found.append(parts.Zstd(len(encoded), hashlib.sha256(encoded).digest()))
        body += encoded
    digest = hashlib.sha256(image).digest()
    index = container.Index(digest, len(image), None, tuple(found))
    made = Manifest(
        format="twinlock-manifest",
        format_version=1,
        product="demo",
        version=version,
        hardware=("board",),
        counter=counter,
        image_size_bytes=len(image),
        image_sha256=digest,
        segment_size_bytes=MIB,
        segments=b"".join(hashlib.sha256(segment).digest() for segment in segments),
    )
    manifest.check(made)
    return Packed(image, made, bytes(body) + container.encode_tail(index), index)


def job_for(packed: Packed, assignment_id: str = "r1", slot: str = "b") -> Job:
    data = manifest.encode(packed.manifest)
    digest = hashlib.sha256(data).digest()
    return Job(
        assignment_id=assignment_id,
        product=packed.manifest.product,
        version=packed.manifest.version,
        counter=packed.manifest.counter,
        slot=slot,
        trial_id=plans.trial_id(assignment_id, digest, slot),
        manifest_sha256=digest,
        image_sha256=packed.manifest.image_sha256,
        image_size_bytes=packed.manifest.image_size_bytes,
    )


def plan_for(
    packed: Packed, assignment_id: str = "r1", slot: str = "b", server: str = "http://127.0.0.1:1"
) -> Plan:
    return Plan(
        job=job_for(packed, assignment_id, slot),
        manifest=manifest.encode(packed.manifest),
        payloads=(packed.offer,),
        server=server,
        token="token",
        token_expires_s=1e12,
    )


def config_for(folder: Path = Path("/nowhere"), **tables: object) -> Config:
    """A configuration with short waits; `tables` replace or add."""
    table: dict[str, object] = {
        "server": "http://127.0.0.1:1",
        "hardware": "board",
        "product": "demo",
        "state": str(folder / "state"),
        "slots": {
            "a": {"path": str(folder / "disk"), "offset_bytes": 0, "size_bytes": 16 * MIB},
            "b": {"path": str(folder / "disk"), "offset_bytes": 16 * MIB, "size_bytes": 16 * MIB},
        },
        "boot": {
            "path": str(folder / "record"),
            "booted": str(folder / "booted.json"),
            "offset_bytes": [0, 4096],
        },
        "reboot": {"mode": "exit"},
        "health": {"timeout_s": 5.0, "deadline_s": 60.0},
        "network": {"retries": 3, "backoff_s_min": 0.01, "backoff_s_max": 0.02},
        "hooks": {"folder": str(folder / "hooks")},
    }
    return parse({**table, **tables})


# --- ports ------------------------------------------------------------------------------------------------


@dataclass
class FakeClock:
    """Time passes only by waiting."""

    wall_s: float = 1_800_000_000.0
    passed_s: float = 0.0
    waits_s: list[float] = field(default_factory=list)

    def now_s(self) -> float:
        return self.wall_s + self.passed_s

    def monotonic_s(self) -> float:
        return self.passed_s

    def sleep(self, wait_s: float) -> None:
        self.waits_s.append(wait_s)
        self.passed_s += wait_s


@dataclass
class FakeRandom:
    rng: random.Random = field(default_factory=lambda: random.Random(1))

    def fraction(self) -> float:
        return self.rng.random()

    def token(self) -> str:
        return self.rng.randbytes(16).hex()


@dataclass
class MemoryStore:
    """`full` makes every write fail as a full disk does; `before` is called with each write's name."""

    files: dict[str, bytes] = field(default_factory=dict)
    durable: dict[str, bytes] = field(default_factory=dict)
    full: bool = False
    before: Callable[[str], None] = lambda name: None
    writes: int = 0

    def read(self, name: str, size_bytes_max: int) -> bytes | None:
        data = self.files.get(name)
        if data is not None and len(data) > size_bytes_max:
            raise error("input-too-large", f"{name} is larger than {size_bytes_max} bytes")
        return data

    def _writing(self, name: str) -> None:
        self.writes += 1
        if self.full:
            raise error("disk-full", f"{name}: No space left on device")
        self.before(name)

    def write(self, name: str, data: bytes) -> None:
        self._writing(name)
        self.files[name] = self.durable[name] = bytes(data)

    def write_volatile(self, name: str, data: bytes) -> None:
        self._writing(name)
        self.files[name] = bytes(data)

    def append(self, name: str, data: bytes) -> None:
        self._writing(name)
        self.files[name] = self.files.get(name, b"") + bytes(data)

    def remove(self, name: str) -> None:
        self.files.pop(name, None)
        self.durable.pop(name, None)

    def names(self, folder: str) -> list[str]:
        return sorted(name.partition("/")[2] for name in self.files if name.startswith(f"{folder}/"))

    def power_cut(self, rng: random.Random) -> None:
        """What was not flushed survives in part: a prefix of appended bytes, maybe with a torn end."""
        for name, data in list(self.files.items()):
            kept = self.durable.get(name)
            if kept == data:
                continue
            if kept is not None and data.startswith(kept):
                self.files[name] = data[: rng.randint(len(kept), len(data))]
            elif kept is None and rng.random() < 0.5:
                del self.files[name]
            else:
                self.files[name] = kept or b""
        self.durable = dict(self.files)


@dataclass
class MemoryDevice:
    """A slot with a volatile cache. `rotten` segments never keep what is written to them."""

    data: bytearray
    log: list[str] = field(default_factory=list)
    pending: list[tuple[int, bytes]] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    read_bytes: int = 0
    rotten: frozenset[int] = frozenset()
    unreadable: set[int] = field(default_factory=set)
    closed: bool = True
    before_write: Callable[[], None] = lambda: None

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        if offset // MIB in self.unreadable:
            raise error("io-error", f"slot: Input/output error at {offset}")
        buffer[:] = self.data[offset : offset + len(buffer)]
        self.read_bytes += len(buffer)

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        assert not self.closed
        self.before_write()
        number = offset // MIB
        if offset % MIB == 0:
            self.written.append(number)
        self.unreadable.discard(number)
        self.pending.append((offset, bytes(self.data[offset : offset + len(data)])))
        kept = bytes(data)
        if number in self.rotten:
            kept = bytes([kept[0] ^ 1]) + kept[1:]
        self.data[offset : offset + len(kept)] = kept

    def sync(self) -> None:
        self.log.append("sync")
        self.pending.clear()

    def drop_cache(self) -> None:
        self.log.append("drop")

    def close(self) -> None:
        self.closed = True

    def power_cut(self, rng: random.Random) -> None:
        """Each write that was not flushed is lost, kept or torn."""
        for offset, before in reversed(self.pending):
            lost = rng.choice((0, len(before), rng.randint(0, len(before))))
            self.data[offset + len(before) - lost : offset + len(before)] = before[len(before) - lost :]
        self.pending.clear()
        self.closed = True


@dataclass
class MemorySlots:
    devices: dict[str, MemoryDevice]
    busy: set[str] = field(default_factory=set)

    def size_bytes(self, slot: str) -> int:
        return self.devices[slot].size_bytes

    def open(self, slot: str) -> MemoryDevice:
        if slot in self.busy:
            raise error("slot-busy", f"slot {slot} is in use")
        device = self.devices[slot]
        device.closed = False
        return device

    def look(self, slot: str) -> MemoryDevice:
        device = self.devices[slot]
        device.closed = False
        return device


@dataclass
class MemoryBoot:
    """The record as one value that changes atomically; `broken` makes writing fail. Both slots can boot."""

    record: BootRecord = field(default_factory=lambda: BootRecord(seq=1, default="a"))
    slot: str = "a"
    boot_id: str = "boot-1"
    broken: bool = False
    lost: bool = False
    changes: list[str] = field(default_factory=list)
    tests: int = 0

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities("memory", limits.TRIES_MAX, True)

    def booted(self) -> Booted:
        return Booted(self.slot, self.boot_id)

    def read(self) -> BootRecord:
        if self.lost:
            raise error("boot-record", "no copy of the boot record is valid")
        return self.record

    def mend(self) -> list[str]:
        return []

    def before_reboot(self) -> bool:
        return False

    def _set(self, record: BootRecord, what: str) -> BootRecord:
        if self.broken:
            raise error("boot-control", "the boot record cannot be written")
        if record != self.record:
            self.changes.append(what)
        self.record = record
        return record

    def invalidate(self, slot: str) -> BootRecord:
        return self._set(bootrecord.invalidate(self.record, slot), f"invalidate {slot}")

    def arm(self, slot: str, tries: int, trial_id: str) -> BootRecord:
        return self._set(bootrecord.arm(self.record, slot, tries, trial_id), f"arm {slot}")

    def commit(self, trial_id: str) -> BootRecord:
        return self._set(bootrecord.commit(self.record, trial_id), "commit")

    def roll_back(self, trial_id: str, reason: str) -> BootRecord:
        return self._set(bootrecord.roll_back(self.record, trial_id, reason), "roll back")

    def abandon(self, slot: str) -> BootRecord:
        return self._set(bootrecord.abandon(self.record, slot), f"abandon {slot}")

    def restore(self, default: str, failed: frozenset[str]) -> BootRecord:
        self.lost = False
        return self._set(bootrecord.restored(default, failed), "restore")

    def self_test(self) -> None:
        self.tests += 1
        if self.broken:
            raise error("boot-control", "the boot record cannot be written")

    def reboot(self) -> None:
        self.slot, self.record = bootrecord.next_boot(self.record)
        self.boot_id = f"boot-{int(self.boot_id.partition('-')[2]) + 1}"


@dataclass
class FakeResponse:
    status: int
    headers: Mapping[str, str]
    body: bytes
    cut_at: int | None = None
    step: int = 64 * 1024
    sent: int = 0
    on_bytes: Callable[[int], None] = lambda count: None

    def read_into(self, buffer: memoryview) -> int:
        end = len(self.body) if self.cut_at is None else min(self.cut_at, len(self.body))
        if self.sent >= end and self.cut_at is not None and end < len(self.body):
            raise error("connection-lost", "the link was cut")
        chunk = self.body[self.sent : min(end, self.sent + min(len(buffer), self.step))]
        buffer[: len(chunk)] = chunk
        self.sent += len(chunk)
        self.on_bytes(len(chunk))
        return len(chunk)

    def close(self) -> None:
        self.body = b""


Fault = Callable[[Request, FakeResponse], FakeResponse]


@dataclass
class FakeNetwork:
    """Serves payloads by their hash, with ranges. Each request takes one entry of `faults` while they last:
    an error to raise, an answer to give instead, or a number of body bytes after which the link is cut."""

    payloads: dict[str, bytes] = field(default_factory=dict)
    faults: list[TwinlockError | FakeResponse | int | Fault | None] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    tokens: set[str] = field(default_factory=lambda: {"token"})
    bytes_sent: int = 0
    seen: list[tuple[int, int]] = field(default_factory=list)  # the ranges that were really sent

    def serve(self, *packed: Packed) -> FakeNetwork:
        for one in packed:
            self.payloads[hashlib.sha256(one.payload).hexdigest()] = one.payload
        return self

    def open(self, request: Request) -> FakeResponse:
        self.requests.append(request)
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, TwinlockError):
            raise fault
        if isinstance(fault, FakeResponse):
            return fault
        response = self._answer(request)
        if isinstance(fault, int):
            response.cut_at = fault
        elif fault is not None:
            response = fault(request, response)
        return response

    def _answer(self, request: Request) -> FakeResponse:
        if request.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return FakeResponse(401, {}, b'{"error":{"code":"session-expired","what":"over"}}')
        sha256 = request.url.rpartition("/")[2]
        payload = self.payloads[sha256]
        first, last = (int(text) for text in request.headers["range"].removeprefix("bytes=").split("-"))
        if first >= len(payload):
            return FakeResponse(416, {"content-range": f"bytes */{len(payload)}"}, b"")
        body = payload[first : last + 1]
        headers = {
            "content-length": str(len(body)),
            "content-range": f"bytes {first}-{first + len(body) - 1}/{len(payload)}",
            "etag": f'"{sha256}"',
        }
        response = FakeResponse(206, headers, body)
        position = [first]

        def count(sent: int) -> None:
            self.bytes_sent += sent
            if sent:
                self.seen.append((position[0], position[0] + sent))
                position[0] += sent

        response.on_bytes = count
        return response

    def twice(self) -> int:
        """How many bytes were sent more than once, over all requests."""
        sent = sum(end - start for start, end in self.seen)
        once = reached = 0
        for start, end in sorted(self.seen):
            once += max(0, end - max(start, reached))
            reached = max(reached, end)
        return sent - once


@dataclass
class FakeChecker:
    """Answers with the next of `answers` for the mode, or the default of `answer`."""

    answers: list[CheckAnswer | TwinlockError] = field(default_factory=list)
    requests: list[CheckRequest] = field(default_factory=list)
    on_check: Callable[[CheckRequest], CheckAnswer] | None = None

    def check(self, request: CheckRequest) -> CheckAnswer:
        self.requests.append(request)
        if self.on_check is not None:
            return self.on_check(request)
        answer = self.answers.pop(0) if self.answers else CheckAnswer()
        if isinstance(answer, TwinlockError):
            raise answer
        return answer


@dataclass
class FakeHooks:
    required: list[HookResult] = field(default_factory=list)
    wanted: list[HookResult] = field(default_factory=list)
    points: dict[str, list[HookResult]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def health(self, wanted: bool) -> list[HookResult]:
        return self.wanted if wanted else self.required

    def ask(self, point: str) -> list[HookResult]:
        self.asked.append(point)
        return self.points.get(point, [])


@dataclass
class FakePower:
    reboots: list[str] = field(default_factory=list)

    def reboot(self, reason: str, *, trial: bool = False) -> bool:
        self.reboots.append(reason)
        return True


@dataclass
class QuietDisplay:
    notes: list[str] = field(default_factory=list)
    shown: list[tuple[str, int, int]] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, phase: str, done_bytes: int, total_bytes: int) -> None:
        assert 0 <= done_bytes <= total_bytes
        self.shown.append((phase, done_bytes, total_bytes))


@dataclass
class FakeSystem:
    """A service manager; a unit's states are given out one by one, the last one for ever."""

    has_units: bool = True
    maintenance: bool = False
    failed: tuple[str, ...] = ()
    units: dict[str, list[Unit]] = field(default_factory=dict)
    free: int | None = None
    written: set[str] = field(default_factory=set)
    broken: bool = False
    ended: LastEnd = ""
    journals: dict[bool, str] = field(default_factory=dict)  # by whether it is the last boot's
    words: dict[str, str] = field(default_factory=dict)

    def in_maintenance(self) -> bool:
        return self.maintenance

    def failed_units(self) -> tuple[str, ...]:
        if self.broken:
            raise error("health-failed", "the service manager does not answer")
        return self.failed

    def unit(self, name: str) -> Unit:
        states = self.units.get(name)
        if not states:
            return Unit(name, "bad", "is not-found, not installed")
        return states.pop(0) if len(states) > 1 else states[0]

    def free_bytes(self) -> int | None:
        return self.free

    def is_written(self, slot: str) -> bool:
        return slot in self.written

    def last_end(self) -> LastEnd:
        return self.ended

    def journal(self, *, last: bool) -> str:
        return self.journals.get(last, "")

    def panics(self) -> dict[str, str]:
        return dict(self.words)

    def forget(self, name: str) -> None:
        del self.words[name]


@dataclass
class Device:
    """All ports of one device in memory, by their own types."""

    clock: FakeClock = field(default_factory=FakeClock)
    random: FakeRandom = field(default_factory=FakeRandom)
    store: MemoryStore = field(default_factory=MemoryStore)
    slots: MemorySlots = field(default_factory=lambda: memory_slots(b""))
    boot: MemoryBoot = field(default_factory=MemoryBoot)
    network: FakeNetwork = field(default_factory=FakeNetwork)
    checker: FakeChecker = field(default_factory=FakeChecker)
    hooks: FakeHooks = field(default_factory=FakeHooks)
    power: FakePower = field(default_factory=FakePower)
    display: QuietDisplay = field(default_factory=QuietDisplay)
    system: FakeSystem = field(default_factory=FakeSystem)

    @property
    def ports(self) -> Ports:
        return Ports(**{name: getattr(self, name) for name in self.__dataclass_fields__})

    def plan(self, plan: Plan) -> None:
        self.store.write(plans.PLAN, msgspec.json.encode(plan))

    def holds(self, slot: str, packed: Packed) -> bool:
        return bytes(self.slots.devices[slot].data[: len(packed.image)]) == packed.image


def memory_slots(a: bytes, b: bytes = b"", size_bytes: int = 16 * MIB) -> MemorySlots:
    """Two slots of `size_bytes`, with these bytes at their start and old rubbish behind."""
    rubbish = bytes(range(1, 252)) * (size_bytes // 251 + 1)
    return MemorySlots(
        {
            name: MemoryDevice(bytearray((data + rubbish[len(data) :])[:size_bytes]))
            for name, data in (("a", a), ("b", b))
        }
    )


def hook(name: str, exit_code: int = 0, output: str = "", *, timed_out: bool = False) -> HookResult:
    return HookResult(name, exit_code, timed_out, output)


def device_with(packed: Packed, **given: object) -> Device:
    """A device with a plan for `packed`, and a server that has it."""
    device = Device(**given)  # type: ignore[arg-type]
    device.network.serve(packed)
    device.plan(plan_for(packed))
    return device


def segments_of(data: bytes) -> Iterator[bytes]:
    return (data[start : start + MIB] for start in range(0, len(data), MIB))
