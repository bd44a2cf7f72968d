"""From a verified plan to a verified slot, in bounded memory and without a copy of the image anywhere.

 1. Look: every segment that the progress log does not name is read from the slot and hashed. What fits stays:
    resuming after a power cut and building on an older release are the same thing.
 2. Get the missing ones (see `pull`): check the signed hash, write, flush, note it. The slot is marked
    unbootable before its first byte changes, and not before.
 3. Write the segments that are all zeros.
 4. Flush, drop the cache, read the slot back and hash the image. When it is not the signed one, every segment
    is read and hashed once more, and what is wrong is fetched again, twice at most.

At most one encoded and one decoded segment are in memory at a time, beside what the decoder needs.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from twinlock.agent.progress import Progress
from twinlock.agent.pull import Puller
from twinlock.agent.segments import Segments, is_zero
from twinlock.core import limits, manifest
from twinlock.core.errors import TwinlockError, error
from twinlock.core.payload.parts import ZERO_BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twinlock.agent.config import Config
    from twinlock.agent.fetch import Tally
    from twinlock.agent.plan import Plan
    from twinlock.agent.ports import BlockDevice, Ports
    from twinlock.core.manifest import Manifest

READBACK_ROUNDS_MAX: Final = 2  # how often bad segments are fetched again


class Installer:
    """One install. Make it, then `run` it; `tally` counts what was fetched, over all runs."""

    def __init__(self, ports: Ports, config: Config, plan: Plan) -> None:
        self._ports = ports
        self._config = config
        self._plan = plan
        self._job = plan.job
        self._manifest: Final = _manifest(plan)
        self._progress = Progress.open(ports.store, plan.job, self._manifest.segment_count)
        self._invalidated = False

    @property
    def tally(self) -> Tally:
        return self._progress.tally

    def run(self) -> None:
        """Ends when the slot holds the image, read back from the medium; raises TwinlockError otherwise.

        `image-too-large`, `slot-*`, `boot-refused`, `io-error`: the device. `payload-*`, `segment-hash`: what
        was served is not what was signed. TransportErrors: another run goes on from here.
        """
        self._check_slot_is_free()
        device = self._ports.slots.open(self._job.slot)
        try:
            if device.size_bytes < self._manifest.image_size_bytes:
                raise error(
                    "image-too-large",
                    f"{self._manifest.name} has {self._manifest.image_size_bytes} bytes, "
                    f"slot {self._job.slot} {device.size_bytes}",
                )
            self._look(device)
            for _ in range(1 + READBACK_ROUNDS_MAX):
                self._fill(device)
                if self._read_back(device):
                    return
            raise error("slot-readback", f"slot {self._job.slot} does not keep what is written to it")
        finally:
            device.close()

    def _check_slot_is_free(self) -> None:
        """The machine has decided so already; whoever writes a slot asks the boot record himself."""
        record, booted = self._ports.boot.read(), self._ports.boot.booted()
        slot = self._job.slot
        if slot in (record.default, booted.slot) or record.trying is not None:
            raise error("boot-refused", f"slot {slot} is in use: {record.default} is committed")

    # --- what is there

    def _look(self, device: BlockDevice) -> None:
        """Finds the segments that the slot already holds."""
        segments = Segments(self._manifest)  # given back before anything is fetched
        for number in list(self._progress.missing()):
            self._show("look", number + 1)
            try:
                view = segments.read(device, number)
            except TwinlockError as problem:
                if problem.code != "io-error":
                    raise
                continue  # a sector that cannot be read is often mended by writing it
            if segments.is_signed(number, view):
                self._progress.held(number)

    # --- what is missing

    def _fill(self, device: BlockDevice) -> None:
        missing = list(self._progress.missing())
        zeros = [number for number in missing if is_zero(self._manifest, number)]
        wanted = [number for number in missing if not is_zero(self._manifest, number)]
        if wanted:
            puller = Puller(self._ports, self._config, self._plan, self._manifest, self._progress)
            puller.pull(wanted, lambda number, data: self._write(device, number, data))
        for number in zeros:
            self._write_zeros(device, number)

    def _write(self, device: BlockDevice, number: int, data: bytes | bytearray | memoryview) -> None:
        self._invalidate()
        device.write(data, number * limits.SEGMENT_SIZE_BYTES)
        device.sync()
        self._progress.held(number)

    def _write_zeros(self, device: BlockDevice, number: int) -> None:
        """Plain zeros: a discarded block need not read as zero."""
        self._invalidate()
        start = number * limits.SEGMENT_SIZE_BYTES
        end = start + self._manifest.segment_length_bytes(number)
        for offset in range(start, end, len(ZERO_BLOCK)):
            device.write(ZERO_BLOCK[: min(len(ZERO_BLOCK), end - offset)], offset)
        device.sync()
        self._progress.held(number)

    def _invalidate(self) -> None:
        """Before the first byte of the slot changes; durable when it returns."""
        if not self._invalidated:
            self._ports.boot.invalidate(self._job.slot)
            self._invalidated = True

    # --- the proof

    def _read_back(self, device: BlockDevice) -> bool:
        """Whether the medium holds the image. If not, segments that are wrong are missing again."""
        device.sync()
        segments = Segments(self._manifest)
        image = hashlib.sha256()
        for _, view in self._medium(device, segments):
            image.update(view)
        if image.digest() == self._manifest.image_sha256:
            return True
        return self._find_wrong(device, segments)

    def _find_wrong(self, device: BlockDevice, segments: Segments) -> bool:
        """Reads the medium once more, for the segments that are wrong; whether there was none this time."""
        image = hashlib.sha256()
        good = True
        for number, view in self._medium(device, segments):
            image.update(view)
            if not segments.is_signed(number, view):
                self._progress.lost(number)
                good = False
        if good and image.digest() != self._manifest.image_sha256:
            raise error("manifest-malformed", f"{self._manifest.name}: the segments do not make up the image")
        return good

    def _medium(self, device: BlockDevice, segments: Segments) -> Iterator[tuple[int, memoryview]]:
        """The segments as the medium has them."""
        device.drop_cache()
        for number in range(self._manifest.segment_count):
            self._show("verify", number + 1)
            yield number, segments.read(device, number)

    def _show(self, phase: str, segments: int) -> None:
        done = min(segments * limits.SEGMENT_SIZE_BYTES, self._manifest.image_size_bytes)
        self._ports.display.progress(phase, done, self._manifest.image_size_bytes)


def _manifest(plan: Plan) -> Manifest:
    """The plan's manifest, if it is the job's."""
    found = manifest.decode(plan.manifest)
    job = plan.job
    same = (
        found.image_sha256 == job.image_sha256,
        found.image_size_bytes == job.image_size_bytes,
        (found.product, found.version, found.counter) == (job.product, job.version, job.counter),
        hashlib.sha256(plan.manifest).digest() == job.manifest_sha256,
    )
    if not all(same):
        raise error("manifest-hash", f"the plan's manifest is not that of {job.product} {job.version}")
    return found
