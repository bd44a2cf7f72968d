"""A disk description (TOML) and the partition plan that follows from it. Pure: no disk is touched here.

The order on the disk is: partition table, raw loader blobs, boot, boot record, slots a and b, recovery, data.
Data comes last because it grows to the end of the medium on first boot. Every partition starts on a multiple
of `align` (an erase block), so that no write to one partition makes the medium rewrite blocks of another; the
two copies of the boot record lie in erase blocks of their own for the same reason.

The description of the default, a two-slot eMMC board, is the empty file.
"""

from __future__ import annotations

import tomllib
import uuid
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from twinlock.core.errors import error
from twinlock.core.limits import KIB, MIB, SLOT_TAIL_SIZE_BYTES
from twinlock.core.names import check_name
from twinlock.provision.gpt import GPT_ENTRIES, GPT_ENTRY_SIZE_BYTES
from twinlock.provision.mbr import MBR_SECTORS_MAX
from twinlock.provision.sizes import align_up, parse_size, show_size

SPEC_SIZE_BYTES_MAX: Final = 64 * KIB
RAW_BLOBS_MAX: Final = 16
ALIGN_BYTES_MIN: Final = 64 * KIB  # the first partition follows the table, which needs 24 KiB
ALIGN_BYTES_MAX: Final = 64 * MIB
NAMESPACE: Final = uuid.UUID("5d7b2c5e-6a0f-4d0c-9a55-0f4d1b6f7a11")

Role = Literal["boot", "record", "a", "b", "recovery", "data"]
Filesystem = Literal["ext4", "squashfs"]
LoaderKind = Literal["uboot", "grub", "systemd-boot", "tryboot", "efi"]
# Loaders that start a slot's kernel from a copy on the boot partition, since they read FAT only
FROM_FAT: Final = ("systemd-boot", "tryboot", "efi")


class RawSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file outside every partition: a first-stage loader that the SoC's ROM expects at an offset."""

    file: str
    offset: str | int


class BootSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The FAT boot partition: boot scripts, and what the firmware reads."""

    size: str | int = "16 MiB"


class SlotSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Both slots: `size` of each, and the file system of the images that they hold."""

    size: str | int = "1 GiB"
    filesystem: Filesystem = "ext4"


class RecoverySpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The recovery system. A size of 0 leaves it out: then a device with two bad slots needs a visit."""

    size: str | int = "256 MiB"
    filesystem: Filesystem = "ext4"


class DataSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that outlives a release. `size` is what the image holds; `grow` takes the rest on first boot."""

    size: str | int = "64 MiB"
    grow: bool = True


class LoaderSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What boots a slot. Paths are inside the slot: kernel, device tree and rootfs are one unit."""

    kind: LoaderKind = "uboot"
    kernel: str = "/boot/vmlinuz"
    initrd: str = ""
    device_tree: str = ""  # empty: the tree that the firmware or U-Boot itself carries
    files: str = ""  # tryboot: a folder in the slot with device trees and overlays, copied beside the kernel
    kernel_args: str = "console=ttyS0,115200"
    boot_command: Literal["booti", "bootz", "bootm"] = "booti"  # U-Boot: Image, zImage, FIT or uImage
    kernel_address: str = "${kernel_addr_r}"  # U-Boot
    device_tree_address: str = "${fdt_addr_r}"  # U-Boot
    initrd_address: str = "${ramdisk_addr_r}"  # U-Boot


class DiskSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole description."""

    name: str = "device"
    table: Literal["gpt", "mbr"] = "gpt"
    sector_size: Literal[512, 4096] = 512
    align: str | int = "4 MiB"
    size: str | int = 0  # of the smallest medium that the image must fit; 0: no bound
    gpt_entries_offset: str | int = 0  # moves the GPT's entries away from a ROM's fixed place; 0: as usual
    boot: BootSpec = BootSpec()
    slot: SlotSpec = SlotSpec()
    recovery: RecoverySpec = RecoverySpec()
    data: DataSpec = DataSpec()
    loader: LoaderSpec = LoaderSpec()
    raw: list[RawSpec] = []


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition: places in bytes from the start of the disk; `partuuid` as Linux's `PARTUUID=` has it."""

    role: Role
    number: int
    start_bytes: int
    size_bytes: int
    partuuid: str

    @property
    def label(self) -> str:
        """The GPT partition name, as in `/dev/disk/by-partlabel/`."""
        return f"twinlock-{self.role}"

    @property
    def end_bytes(self) -> int:
        """The first byte after it."""
        return self.start_bytes + self.size_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything goes. `record_offsets` are the places of the two boot record copies on the disk."""

    spec: DiskSpec
    disk_size_bytes: int
    disk_uuid: str
    mbr_signature: int
    align_bytes: int
    gpt_entries_lba: int
    partitions: tuple[Partition, ...]
    extended_start_bytes: int  # MBR only: where the extended partition begins; 0 when there is none
    record_offsets: tuple[int, int]
    slot_image_size_bytes_max: int

    def get(self, role: Role) -> Partition | None:
        """The partition with this role, if the plan has it."""
        return next((part for part in self.partitions if part.role == role), None)

    def need(self, role: Role) -> Partition:
        """The partition with this role. Raises InputError `input-invalid` when the plan has none."""
        part = self.get(role)
        if part is None:
            raise error("input-invalid", f"disk {self.spec.name!r} has no {role} partition")
        return part

    def show(self) -> str:
        """The plan as a table for people."""
        lines = [f"{'role':<10} {'no':>2} {'start':>12} {'size':>12}  PARTUUID"]
        lines += [
            f"{part.role:<10} {part.number:>2} {show_size(part.start_bytes):>12} "
            f"{show_size(part.size_bytes):>12}  {part.partuuid}"
            for part in self.partitions
        ]
        return "\n".join([*lines, f"disk image: {show_size(self.disk_size_bytes)}"])


def parse_spec(text: str) -> DiskSpec:
    """The description in a TOML text.

    Raises InputError `input-too-large` beyond 64 KiB, `input-wrong-type` when it is not TOML and
    `input-invalid` when a value or a name is not known.
    """
    if len(text.encode("utf-8", "surrogatepass")) > SPEC_SIZE_BYTES_MAX:
        raise error("input-too-large", f"the disk description is larger than {SPEC_SIZE_BYTES_MAX} bytes")
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as problem:
        raise error("input-wrong-type", f"the disk description is not TOML: {problem}") from problem
    try:
        return msgspec.convert(data, DiskSpec)
    except msgspec.ValidationError as problem:
        raise error("input-invalid", f"the disk description: {problem}") from problem


def _check_text(value: str, what: str, *, spaces: bool) -> None:
    # These texts are put into boot scripts: no quotes, separators or control characters may get there.
    allowed = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.,:=+@/-%")
    allowed |= {" "} if spaces else set()
    bad = sorted(set(value) - allowed)
    if bad or len(value) > 1024:
        raise error("input-invalid", f"{what} has characters that a boot script cannot hold: {bad[:5]}")


def _check_loader(loader: LoaderSpec) -> None:
    for name in ("kernel", "initrd", "device_tree", "files"):
        value: str = getattr(loader, name)
        _check_text(value, f"loader.{name}", spaces=False)
        if (value or name == "kernel") and (not value.startswith("/") or ".." in value.split("/")):
            raise error("input-invalid", f"loader.{name} {value!r} is not an absolute path inside the slot")
    if loader.files and loader.kind != "tryboot":
        raise error("input-invalid", f"loader.files is for tryboot; {loader.kind} does not read it")
    if loader.kind == "tryboot" and loader.initrd:
        raise error("input-invalid", "tryboot starts the kernel without an initrd: build its drivers in")
    _check_text(loader.kernel_args, "loader.kernel_args", spaces=True)
    for name in ("kernel_address", "device_tree_address", "initrd_address"):
        value = getattr(loader, name)
        variable = value.removeprefix("${").removesuffix("}")
        number = value.removeprefix("0x")
        is_variable = value == "${" + variable + "}" and variable.isidentifier() and variable.isascii()
        is_number = (
            value.startswith("0x") and 0 < len(number) <= 16 and set(number) <= set("0123456789abcdefABCDEF")
        )
        if not is_variable and not is_number:
            raise error("input-invalid", f"loader.{name} {value!r} is neither 0xHEX nor ${{variable}}")


def _align_of(spec: DiskSpec) -> int:
    align = parse_size(spec.align, "align")
    if not ALIGN_BYTES_MIN <= align <= ALIGN_BYTES_MAX or align & (align - 1):
        raise error("input-invalid", f"align of {align} bytes is not a power of two from 64 KiB to 64 MiB")
    return align


def _sizes(spec: DiskSpec, align: int) -> list[tuple[Role, int]]:
    """Roles with their sizes in the order of the disk, checked and rounded up to whole erase blocks."""
    slot = parse_size(spec.slot.size, "slot.size")
    recovery = parse_size(spec.recovery.size, "recovery.size")
    # One erase block for each copy; GRUB's are files, whose tables take a block before them.
    record = (3 if spec.loader.kind == "grub" else 2) * align
    wanted: list[tuple[Role, int, int]] = [
        ("boot", parse_size(spec.boot.size, "boot.size"), 4 * MIB),
        ("record", record, record),
        ("a", slot, 8 * MIB),
        ("b", slot, 8 * MIB),
        ("recovery", recovery, 8 * MIB),
        ("data", parse_size(spec.data.size, "data.size"), 8 * MIB),
    ]
    sizes: list[tuple[Role, int]] = []
    for role, size, least in wanted:
        if role == "recovery" and size == 0:
            continue
        if size < least:
            raise error("input-invalid", f"{role}.size of {show_size(size)} is less than {show_size(least)}")
        sizes.append((role, align_up(size, align)))
    return sizes


def _gpt_entries_lba(spec: DiskSpec, align: int) -> int:
    offset = parse_size(spec.gpt_entries_offset, "gpt_entries_offset")
    if offset == 0:
        return 2
    end = offset + GPT_ENTRIES * GPT_ENTRY_SIZE_BYTES
    if spec.table != "gpt" or offset % spec.sector_size or offset < 2 * spec.sector_size or end > align:
        raise error(
            "input-invalid",
            f"gpt_entries_offset {offset} is not between the GPT header and the first partition",
        )
    return offset // spec.sector_size


def plan(spec: DiskSpec) -> Plan:
    """Places for everything that `spec` names; the same description always gives the same plan.

    Raises InputError `input-invalid` for sizes, names or paths out of bounds, `image-too-large` when the sum
    is more than `size` or than the partition table can address.
    """
    check_name(spec.name, "disk name")
    _check_loader(spec.loader)
    if len(spec.raw) > RAW_BLOBS_MAX:
        raise error("input-invalid", f"{len(spec.raw)} raw blobs; at most {RAW_BLOBS_MAX} are allowed")
    align = _align_of(spec)
    entries_lba = _gpt_entries_lba(spec, align)
    seed = uuid.uuid5(NAMESPACE, spec.name)
    signature = int.from_bytes(seed.bytes[:4], "little") or 1
    partitions, extended_start = _place(spec, align, seed, signature)
    data = partitions[-1]
    end = data.end_bytes
    if spec.table == "gpt":
        end = align_up(end + spec.sector_size + GPT_ENTRIES * GPT_ENTRY_SIZE_BYTES, align)
    size = parse_size(spec.size, "size")
    if size and end > size:
        raise error(
            "image-too-large",
            f"the partitions need {show_size(end)}, the medium has {show_size(size)}",
            hint="make the slots smaller; data grows by itself on first boot",
        )
    if spec.table == "mbr" and end // spec.sector_size > MBR_SECTORS_MAX:
        raise error("image-too-large", "an MBR cannot address this disk", hint='write table = "gpt"')
    record = next(part for part in partitions if part.role == "record")
    slot = next(part for part in partitions if part.role == "a")
    return Plan(
        spec=spec,
        disk_size_bytes=end,
        disk_uuid=str(seed),
        mbr_signature=signature,
        align_bytes=align,
        gpt_entries_lba=entries_lba,
        partitions=partitions,
        extended_start_bytes=extended_start,
        record_offsets=(record.end_bytes - 2 * align, record.end_bytes - align),
        slot_image_size_bytes_max=slot.size_bytes - SLOT_TAIL_SIZE_BYTES,
    )


def _place(spec: DiskSpec, align: int, seed: uuid.UUID, signature: int) -> tuple[tuple[Partition, ...], int]:
    """The partitions, and the start of the extended one (MBR: boot, a and b are primary, the rest logical).

    A logical partition is described by a sector before it; each gets an aligned block of its own, so that
    growing data later rewrites no block that belongs to anything else.
    """
    sizes = _sizes(spec, align)
    if spec.table == "mbr":
        order = ["boot", "a", "b", "record", "recovery", "data"]
        sizes.sort(key=lambda item: order.index(item[0]))
    partitions: list[Partition] = []
    cursor = align
    extended_start = 0
    for number, (role, size) in enumerate(sizes, start=1):
        if spec.table == "mbr" and role not in ("boot", "a", "b"):
            extended_start = extended_start or cursor
            cursor += align
        final = number if spec.table == "gpt" or number < 4 else number + 1
        partuuid = str(uuid.uuid5(seed, role)) if spec.table == "gpt" else f"{signature:08x}-{final:02x}"
        partitions.append(Partition(role, final, cursor, size, partuuid))
        cursor += size
    return tuple(partitions), extended_start


def raw_offsets(plan: Plan, sizes_bytes: list[int]) -> list[int]:
    """Offsets of the raw blobs, given their sizes in bytes.

    Raises InputError `input-invalid` when one would overlap the partition table, a partition or another blob.
    """
    sector = plan.spec.sector_size
    first = plan.align_bytes
    table = [(0, 2 * sector if plan.spec.table == "gpt" else sector)]
    if plan.spec.table == "gpt":
        entries = plan.gpt_entries_lba * sector
        table.append((entries, entries + GPT_ENTRIES * GPT_ENTRY_SIZE_BYTES))
    offsets = []
    for raw, size in zip(plan.spec.raw, sizes_bytes, strict=True):
        start = parse_size(raw.offset, f"raw offset of {raw.file}")
        end = start + size
        clash = end > first or any(
            start < other_end and other_start < end for other_start, other_end in table
        )
        if clash or start % sector:
            raise error(
                "input-invalid",
                f"raw blob {raw.file} at {show_size(start)} ({size} bytes) overlaps the partition table, "
                f"another blob or the first partition at {show_size(first)}, or does not start on a sector",
                hint="move it, set gpt_entries_offset, or use an MBR",
            )
        table.append((start, end))
        offsets.append(start)
    return offsets
