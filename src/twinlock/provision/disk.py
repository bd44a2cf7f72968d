"""Builds a flashable disk image: offline, without root, without mounting anything.

File systems are made as files of their own and copied to their places; blocks of zeros are left out, so that
the image is sparse. The image appears under its name only when it is whole: a cut leaves at most a `.tmp`.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO, Final

from twinlock.core import bootenv_grub, bootenv_uboot, bootrecord
from twinlock.core.bootloader_tryboot import BOARD
from twinlock.core.durable import fsync_dir, os_errors
from twinlock.core.errors import error
from twinlock.core.limits import MIB
from twinlock.provision import (
    filesystems,
    gpt,
    layout,
    loader_fat,
    loader_grub,
    loader_systemd_boot,
    loader_tryboot,
    loader_uboot,
    mbr,
    recordfat,
)
from twinlock.provision.sizes import show_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from twinlock.provision.layout import DiskSpec, Filesystem, Plan, Role

_CHUNK_BYTES: Final = 1 * MIB
_ZEROS: Final = bytes(64 * 1024)


@dataclass(frozen=True, slots=True)
class Trees:
    """What goes into the partitions. A folder becomes a file system; a tar archive is unpacked first; any
    other file is taken as a finished image, byte for byte. None leaves a partition empty."""

    a: Path
    b: Path | None = None
    recovery: Path | None = None
    data: Path | None = None
    boot: Path | None = None  # further files for the boot partition (a folder)
    raw: Path | None = None  # the folder that the description's raw files are in
    keep_owners: bool = False  # else everything belongs to root


@dataclass(frozen=True, slots=True)
class Built:
    """What was built: the plan, and the record that both places hold."""

    plan: Plan
    record: bootrecord.BootRecord
    image: Path


def build(spec: DiskSpec, trees: Trees, out: Path, *, architecture: str = "arm64") -> Built:
    """Writes the disk image `out`. The same spec and trees give the same bytes.

    `architecture` is what the loader runs on: arm, arm64, riscv or x86 for U-Boot, x86-64 or arm64 for GRUB.
    Raises InputError `input-*` for the description or a tree, CompatibilityError `image-too-large` when
    something does not fit, DeviceError `package-missing`, `disk-full`, `io-error`.
    """
    plan = layout.plan(spec)
    # Slot b is bootable only when the image really holds a system there.
    record = bootrecord.initial("a")
    if trees.b is not None:
        record = bootrecord.BootRecord(seq=1, default="a")
    temporary = out.with_name(out.name + ".tmp")
    with (
        TemporaryDirectory(prefix=".twinlock-disk-", dir=out.parent) as folder,
        os_errors(f"disk image {out}"),
    ):
        parts = Path(folder)
        try:
            with temporary.open("wb") as disk:
                _fill(plan, trees, record, disk, parts, architecture)
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_dir(out.parent)
    return Built(plan, record, out)


def _fill(
    plan: Plan,
    trees: Trees,
    record: bootrecord.BootRecord,
    disk: BinaryIO,
    parts: Path,
    architecture: str,
) -> None:
    disk.truncate(plan.disk_size_bytes)
    _write_raw(plan, trees, disk)
    _write_all(disk, gpt.encode(gpt.of_plan(plan)) if plan.spec.table == "gpt" else mbr.encode(plan))
    kernels = _write_systems(plan, trees, disk, parts)
    files = _boot_files(plan, trees, record, architecture, kernels)
    _write_boot(plan, files, disk, parts)
    if plan.spec.loader.kind == "grub":
        _write_all(disk, recordfat.metadata(plan))
    _write_all(disk, record_blocks(plan, record))
    _write_data(plan, trees, disk, parts)
    disk.flush()
    os.fsync(disk.fileno())


def record_blocks(plan: Plan, record: bootrecord.BootRecord) -> list[tuple[int, bytes]]:
    """Both copies of the boot record in the loader's own form, as (offset in bytes, block)."""
    forms = {"uboot": bootenv_uboot.encode, "grub": bootenv_grub.encode}
    encode = forms.get(plan.spec.loader.kind, bootrecord.encode)
    return [(offset, encode(record)) for offset in plan.record_offsets]


def make_image(
    source: Path,
    out: Path,
    size_bytes_max: int,
    *,
    filesystem: Filesystem,
    name: str,
    keep_owners: bool = False,
    size_bytes: int | None = None,
) -> Path:
    """The image of a root file system: what a slot holds and what a release packs.

    `source` is a folder, a tar archive, or an image that is returned as it is. `size_bytes` of an ext4 image
    defaults to all that the slot has for it.
    """
    if source.is_file() and not source.name.endswith((".tar", ".tar.gz", ".tar.xz", ".tar.zst", ".tgz")):
        if source.stat().st_size > size_bytes_max:
            raise error("image-too-large", f"{source} is larger than {show_size(size_bytes_max)}")
        return source
    with TemporaryDirectory(prefix=".twinlock-tree-", dir=out.parent) as folder:
        tree = source
        if source.is_file():
            tree = Path(folder)
            filesystems.extract(source, tree)
        if filesystem == "squashfs":
            filesystems.make_squashfs(out, size_bytes_max, tree, keep_owners=keep_owners)
        else:
            size = size_bytes_max if size_bytes is None else size_bytes
            identity = uuid.uuid5(layout.NAMESPACE, f"filesystem {name}")
            filesystems.make_ext4(
                out, size, tree, identity=identity, label=name[:16], journal=False, keep_owners=keep_owners
            )
    return out


def _write_raw(plan: Plan, trees: Trees, disk: BinaryIO) -> None:
    blobs = []
    for raw in plan.spec.raw:
        if trees.raw is None or Path(raw.file).name != raw.file:
            raise error("input-invalid", f"raw file {raw.file!r} is not a name in the folder of raw files")
        with os_errors(f"raw file {raw.file}"):
            path = trees.raw / raw.file
            if path.stat().st_size > plan.align_bytes:
                raise error("input-too-large", f"raw file {raw.file} does not fit before the first partition")
            blobs.append(path.read_bytes())
    offsets = layout.raw_offsets(plan, [len(blob) for blob in blobs])
    _write_all(disk, zip(offsets, blobs, strict=True))


def _boot_files(
    plan: Plan,
    trees: Trees,
    record: bootrecord.BootRecord,
    architecture: str,
    kernels: Mapping[str, Mapping[str, bytes]],
) -> dict[str, bytes]:
    """What goes on the boot partition: the loader's files, and the user's, which may replace board.txt."""
    given: dict[str, bytes] = {}
    if trees.boot is not None:
        for path in sorted(trees.boot.rglob("*")):
            if path.is_file():
                given[path.relative_to(trees.boot).as_posix()] = path.read_bytes()
    match plan.spec.loader.kind:
        case "uboot":
            return given | loader_uboot.boot_files(plan, architecture=architecture)
        case "grub":
            return given | loader_grub.boot_files(plan, target=architecture)
        case "tryboot":
            made = loader_tryboot.boot_files(plan, kernels, record)
            files = given | made | {name: data for name, data in given.items() if name == BOARD}
        case _:
            files = given | loader_systemd_boot.boot_files(plan, kernels, target=architecture)
    loader_fat.check_room(plan, files, kernels)
    return files


def _write_boot(plan: Plan, files: Mapping[str, bytes], disk: BinaryIO, parts: Path) -> None:
    image = parts / "boot.img"
    serial = int.from_bytes(uuid.UUID(plan.disk_uuid).bytes[4:8], "big")
    part = plan.need("boot")
    filesystems.make_fat(image, part.size_bytes, files, label="TWINLOCK", serial=serial)
    _place(plan, "boot", image, disk)


def _write_systems(plan: Plan, trees: Trees, disk: BinaryIO, parts: Path) -> dict[str, dict[str, bytes]]:
    """Puts the systems into their partitions; gives back kernels for a loader that reads FAT only."""
    kernels: dict[str, dict[str, bytes]] = {}
    sources: list[tuple[Role, Path | None]] = [("a", trees.a), ("b", trees.b), ("recovery", trees.recovery)]
    for role, source in sources:
        if source is None:
            continue
        if role == "recovery":
            size_max = plan.need("recovery").size_bytes
            filesystem = plan.spec.recovery.filesystem
        else:
            size_max = plan.slot_image_size_bytes_max
            filesystem = plan.spec.slot.filesystem
        # The two slots may hold the same release: its image must not say which slot it is in.
        name = "twinlock-rec" if role == "recovery" else "twinlock-root"
        image = make_image(
            source,
            parts / f"{role}.img",
            size_max,
            filesystem=filesystem,
            name=name,
            keep_owners=trees.keep_owners,
        )
        _place(plan, role, image, disk)
        if plan.spec.loader.kind in layout.FROM_FAT:
            kernels[role] = _kernel_files(image, loader_fat.copies(plan.spec.loader))
        if image.parent == parts:
            image.unlink()
    return kernels


def _kernel_files(image: Path, wanted: Mapping[str, str]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for path, name in wanted.items():
        if name:
            files[name] = filesystems.read_file(image, path)
        else:
            files |= filesystems.read_folder(image, path)
    return files


def _write_data(plan: Plan, trees: Trees, disk: BinaryIO, parts: Path) -> None:
    image = parts / "data.img"
    filesystems.make_ext4(
        image,
        plan.need("data").size_bytes,
        trees.data,
        identity=uuid.uuid5(layout.NAMESPACE, f"data {plan.spec.name}"),
        label="twinlock-data",
        journal=True,
        keep_owners=trees.keep_owners,
    )
    _place(plan, "data", image, disk)


def _place(plan: Plan, role: Role, image: Path, disk: BinaryIO) -> None:
    """Copies an image to its partition, blocks of zeros left out."""
    part = plan.need(role)
    if image.stat().st_size > part.size_bytes:
        raise error(
            "image-too-large", f"{image.name} is larger than its partition of {show_size(part.size_bytes)}"
        )
    with image.open("rb") as file:
        at = part.start_bytes
        while chunk := file.read(_CHUNK_BYTES):
            for start in range(0, len(chunk), len(_ZEROS)):
                block = chunk[start : start + len(_ZEROS)]
                if block != _ZEROS[: len(block)]:
                    disk.seek(at + start)
                    disk.write(block)
            at += len(chunk)


def _write_all(disk: BinaryIO, writes: Iterable[tuple[int, bytes]]) -> None:
    for offset, data in writes:
        disk.seek(offset)
        disk.write(data)
