"""The boot loaders' rules, as their scripts in `provision/scripts` have them, command by command.

A loader gets the kernel of the disk (its reads and its own unflushed writes), and gives the slots in the
order in which it would start them: it goes on to the next only when one does not even load. What it parses it
parses by itself, without the agent's codecs, so that a fault in those does not hide behind its twin. The
scripts themselves run in the real loaders in the tests under `tests/e2e/qemu`.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final, Protocol

from twinlock.core import bootenv_grub, bootenv_uboot, bootrecord
from twinlock.core.names import RECOVERY, SLOTS

if TYPE_CHECKING:
    from collections.abc import Hashable

    from twinlock.core.bootrecord import BootRecord
    from twinlock.lab.crash.disk import Disk
    from twinlock.lab.crash.kernel import Kernel

RECORD: Final = "/dev/record"
OFFSETS_BYTES: Final = (0, 4096)
RECORD_SIZE_BYTES: Final = 8192
_LEFT: Final = {str(tries): str(tries - 1) for tries in range(1, 8)}


class Loader(Protocol):
    """One kind of boot loader; `name` is the agent's boot control for it."""

    @property
    def name(self) -> str: ...

    def first(self, record: BootRecord, before: BootRecord) -> dict[str, bytes]:
        """The raw media that hold this record, and in the older copy the one before it."""
        ...

    def first_files(self, record: BootRecord, before: BootRecord) -> dict[str, bytes]:
        """The files, beside those, that the loader reads then: paths on the kernel."""
        ...

    def start(self, kernel: Kernel) -> list[str]:
        """The slots to start, in order; writes what the loader writes before it starts the first."""
        ...

    def kernel(self, kernel: Kernel, slot: str) -> bytes | None:
        """The kernel that it starts for a slot; None when that lies in the slot itself."""
        ...

    def seen(self, disk: Disk) -> Hashable:
        """All that the loader, and the agent's boot control, can read of the record."""
        ...


def _blocks(disk: Disk, size_bytes: int) -> tuple[bytes, ...]:
    data = disk.media[RECORD].data
    return tuple(data[offset : offset + size_bytes] for offset in OFFSETS_BYTES)


def _medium(*blocks: bytes) -> dict[str, bytes]:
    data = bytearray(RECORD_SIZE_BYTES)
    for offset, block in zip(OFFSETS_BYTES, blocks, strict=True):
        data[offset : offset + len(block)] = block
    return {RECORD: bytes(data)}


class RecordSectors:
    """The record as `core.bootrecord` has it, in two raw sectors; kernels in the slots."""

    def first(self, record: BootRecord, before: BootRecord) -> dict[str, bytes]:
        return _medium(bootrecord.encode(record), bootrecord.encode(before))

    def first_files(self, record: BootRecord, before: BootRecord) -> dict[str, bytes]:
        del record, before
        return {}

    def seen(self, disk: Disk) -> Hashable:
        return tuple(map(bootrecord.decode, _blocks(disk, bootrecord.SECTOR_SIZE_BYTES)))

    def kernel(self, kernel: Kernel, slot: str) -> bytes | None:
        del kernel, slot
        return None


class FileLoader(RecordSectors):
    """The loader of the lab's virtual devices: `bootrecord.next_boot` over two raw sectors."""

    name = "file"

    def start(self, kernel: Kernel) -> list[str]:
        data = kernel.medium(RECORD).data
        copies = tuple(
            bootrecord.decode(data[at : at + bootrecord.SECTOR_SIZE_BYTES]) for at in OFFSETS_BYTES
        )
        if copies == (None, None):
            return [RECOVERY]
        _, record = bootrecord.newest(copies)
        slot, to_save = bootrecord.next_boot(record)
        if to_save is not record:
            place = OFFSETS_BYTES[bootrecord.copy_to_spend(copies)]
            kernel.write_medium(RECORD, bootrecord.encode(to_save), place)
        order = [slot]
        if slot == record.trying:
            order.append(bootrecord.fallback(record))
        if order[-1] in SLOTS:
            order.append(bootrecord.next_when_unbootable(record, order[-1]))
        return order if order[-1] == RECOVERY else [*order, RECOVERY]


def _script(variables: dict[str, str]) -> tuple[list[str], str | None]:
    """What boot.cmd and grub.cfg do with the chosen copy: what they start, and the tries to save first."""
    failed, default = variables.get("failed", ""), variables.get("default", "")
    bad = {slot for slot in SLOTS if failed in (slot, "ab")}
    trying = variables.get("try", "")
    order, left = [], None
    if trying in SLOTS:
        bad.add(trying)
        left = _LEFT.get(variables.get("tries", ""))
        if left is not None:
            order.append(trying)
    if default in SLOTS and default not in bad:
        order.append(default)
        order += [slot for slot in SLOTS if slot != default and slot not in bad]
    return [*order, RECOVERY], left


class UbootLoader(RecordSectors):
    """boot.cmd: `env import -c`, numbers compared by `itest` in hexadecimal, `env export -c`."""

    name = "uboot"

    def first(self, record: BootRecord, before: BootRecord) -> dict[str, bytes]:
        return _medium(bootenv_uboot.encode(record), bootenv_uboot.encode(before))

    def seen(self, disk: Disk) -> Hashable:
        blocks = _blocks(disk, bootenv_uboot.SIZE_BYTES)
        return tuple(block if self._import(block) is not None else None for block in blocks)

    @staticmethod
    def _import(block: bytes) -> dict[str, str] | None:
        """`env import -c`: nothing is looked at but the CRC."""
        if zlib.crc32(block[4:]) != int.from_bytes(block[:4], "little"):
            return None
        text = block[4:].partition(b"\0\0")[0].decode("latin-1")
        entries = (entry.partition("=") for entry in text.split("\0"))
        return {name.removeprefix("tl_"): value for name, _, value in entries}

    def start(self, kernel: Kernel) -> list[str]:
        data = kernel.medium(RECORD).data
        variables: dict[str, str] = {}
        best, best_seq, best_tries, same = -1, 0, 0, False
        for copy, offset in enumerate(OFFSETS_BYTES):
            variables["version"] = "0"
            variables.update(self._import(data[offset : offset + bootenv_uboot.SIZE_BYTES]) or {})
            if variables["version"] != "1":
                continue
            seq, tries = int(variables["seq"], 16), int(variables["tries"], 16)
            same = best >= 0 and seq == best_seq
            if best < 0 or seq > best_seq or (same and tries < best_tries):
                best, best_seq, best_tries = copy, seq, tries
        if best < 0:
            return [RECOVERY]
        offset = OFFSETS_BYTES[best]
        variables.update(self._import(data[offset : offset + bootenv_uboot.SIZE_BYTES]) or {})
        order, left = _script(variables)
        if left is not None:
            variables["tries"] = left
            kernel.write_medium(RECORD, self._export(variables), OFFSETS_BYTES[best if same else 1 - best])
        return order

    @staticmethod
    def _export(variables: dict[str, str]) -> bytes:
        text = b"".join(f"tl_{name}={value}\0".encode("latin-1") for name, value in sorted(variables.items()))
        data = text.ljust(bootenv_uboot.SIZE_BYTES - 4, b"\0")
        return zlib.crc32(data).to_bytes(4, "little") + data


class GrubLoader(RecordSectors):
    """grub.cfg: `load_env`, `tl_check`, numbers of fixed width compared as text, `save_env`."""

    name = "grub"
    _SIGNATURE: Final = b"# GRUB Environment Block\n"
    _CHECKED: Final = ("seq", "default", "try", "tries", "armed", "failed", "trial")
    _SAVED: Final = (
        "armed",
        "check",
        "default",
        "failed",
        "reason",
        "seq",
        "trial",
        "tries",
        "try",
        "version",
    )

    def first(self, record: BootRecord, before: BootRecord) -> dict[str, bytes]:
        return _medium(bootenv_grub.encode(record), bootenv_grub.encode(before))

    def seen(self, disk: Disk) -> Hashable:
        """Each block whole, for what is saved depends on every line before; or that it is no use at all."""
        return tuple(
            block if self._is_read(block) or self._takes(block) else None
            for block in _blocks(disk, bootenv_grub.SIZE_BYTES)
        )

    def _is_read(self, block: bytes) -> bool:
        found = self._load(block)
        return found.get("version") == "1" and found.get("check") == self._check(found)

    def _takes(self, block: bytes) -> bool:
        """Whether `save_env` writes to it."""
        return block.startswith(self._SIGNATURE) and block.rstrip(b"#").endswith(b"\n")

    def _load(self, block: bytes) -> dict[str, str]:
        """`load_env` into variables that were unset before.

        A name begins where a line does and ends at the next `=`, on whichever line; what has no end is not
        read. Source: GRUB 2.06, grub-core/lib/envblk.c, grub_envblk_iterate.
        """
        found: dict[str, str] = {}
        if not block.startswith(self._SIGNATURE):
            return found
        rest = block[len(self._SIGNATURE) :].decode("latin-1")
        while rest:
            name, value = "", rest
            if not rest.startswith("#"):
                name, equals, value = rest.partition("=")
                if not equals:
                    break
            value, newline, rest = value.partition("\n")
            if name.removeprefix("tl_") in self._SAVED and newline:
                found[name.removeprefix("tl_")] = value
        return found

    def _check(self, variables: dict[str, str]) -> str:
        return ":".join(variables.get(name, "") for name in self._CHECKED)

    def start(self, kernel: Kernel) -> list[str]:
        data = kernel.medium(RECORD).data
        blocks = [data[offset : offset + bootenv_grub.SIZE_BYTES] for offset in OFFSETS_BYTES]
        best, same, chosen = -1, False, {"seq": "", "tries": ""}
        for copy, block in enumerate(blocks):
            found = self._load(block)
            if not self._is_read(block):
                continue
            same = best >= 0 and found["seq"] == chosen["seq"]
            newer = found["seq"] > chosen["seq"] or (same and found["tries"] < chosen["tries"])
            if best < 0 or newer:
                best, chosen = copy, found
        if best < 0:
            return [RECOVERY]
        order, left = _script(chosen)
        if left is not None:
            spare = best if same else 1 - best
            saved = self._save(blocks[spare], chosen | {"tries": left})
            if saved is None:  # "the boot record cannot be written, no trial"
                return order[1:]
            kernel.write_medium(RECORD, saved, OFFSETS_BYTES[spare])
        return order

    def _save(self, block: bytes, variables: dict[str, str]) -> bytes | None:
        """`save_env`: each line is replaced where it stands, or added behind the last; None when it fails.

        A variable that is not set is left as it is in the block; a block in which the last line has no end
        takes none. Source: GRUB 2.06, grub-core/lib/envblk.c, grub_envblk_set.
        """
        if not self._takes(block):
            return None
        text = block.rstrip(b"#")
        variables = variables | {"check": self._check(variables)}
        lines = text[len(self._SIGNATURE) :].decode("latin-1").split("\n")[:-1]
        for name in self._SAVED:
            if name in variables:
                line = f"tl_{name}={variables[name]}"
                at = next((n for n, old in enumerate(lines) if old.startswith(f"tl_{name}=")), len(lines))
                lines[at : at + 1] = [line]
        saved = self._SIGNATURE + "".join(f"{line}\n" for line in lines).encode("latin-1")
        return saved.ljust(bootenv_grub.SIZE_BYTES, b"#") if len(saved) <= bootenv_grub.SIZE_BYTES else None
