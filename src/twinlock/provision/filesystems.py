"""File system images from folders or tar archives: no root, no mount, the same bytes for the same files.

mke2fs copies owners and times from the build machine. What a build without root cannot have right (owners)
and what differs from run to run (inode change times) is set afterwards by debugfs, inode by inode, which
also keeps the metadata checksums true.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from twinlock.core.durable import os_errors
from twinlock.core.errors import error
from twinlock.provision import ext4
from twinlock.provision.sizes import show_size
from twinlock.provision.tools import run

if TYPE_CHECKING:
    from collections.abc import Mapping

# 1 January 2000: FAT cannot tell a time before 1980, and zero reads as "no time" to some tools.
EPOCH_S: Final = 946_684_800
# The features are named here, not taken from the build machine's mke2fs.conf: loaders know fewer than kernels
# do (GRUB 2.06 refuses metadata_csum_seed and orphan_file).
_MKE2FS_CONF: Final = """\
[defaults]
    base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
    default_mntopts = acl,user_xattr
    enable_periodic_fsck = 0
    blocksize = 4096
    inode_size = 256
    inode_ratio = 16384
[fs_types]
    ext4 = {
        features = extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
    }
"""


@dataclass(frozen=True, slots=True)
class Owner:
    """Numeric owner of a file inside an image."""

    user: int
    group: int


def make_ext4(
    out: Path,
    size_bytes: int,
    tree: Path | None,
    *,
    identity: uuid.UUID,
    label: str,
    journal: bool,
    keep_owners: bool = False,
) -> None:
    """Makes `out` an ext4 image of exactly `size_bytes`, holding the files of the folder `tree`.

    Every file belongs to root unless `keep_owners`. Raises CompatibilityError `image-too-large` when the
    files do not fit, DeviceError `package-missing` without e2fsprogs, `io-error` when its tools fail.
    """
    if tree is not None and not tree.is_dir():
        raise error("input-wrong-type", f"{tree} is not a folder")
    with TemporaryDirectory(prefix="twinlock-ext4-") as folder, os_errors(f"image {out}"):
        conf = Path(folder, "mke2fs.conf")
        conf.write_text(_MKE2FS_CONF, "ascii")
        _sparse(out, size_bytes)
        features = "has_journal" if journal else "^has_journal"
        arguments = [
            "mke2fs",
            "-q",
            "-F",
            "-t",
            "ext4",
            "-O",
            features,
            "-U",
            str(identity),
            "-L",
            label,
            "-m",
            "0",
        ]
        arguments += ["-E", f"hash_seed={identity},root_owner=0:0,lazy_itable_init=0,nodiscard"]
        arguments += ["-d", str(tree)] if tree is not None else []
        environment = {"MKE2FS_CONFIG": str(conf), "E2FSPROGS_FAKE_TIME": str(EPOCH_S)}
        try:
            run([*arguments, str(out)], package="e2fsprogs", environment=environment)
        except Exception as problem:
            if "Could not allocate" in str(problem) or "No space" in str(problem):
                raise error(
                    "image-too-large", f"the files of {tree} do not fit into {show_size(size_bytes)}"
                ) from problem
            raise
        _normalise(out, environment, keep_owners=keep_owners)


def _normalise(image: Path, environment: Mapping[str, str], *, keep_owners: bool) -> None:
    with image.open("rb") as file:
        inodes = ext4.inodes_in_use(file)
    stamp = f"@{EPOCH_S}"
    lines = []
    for inode in inodes:
        # A folder's mtime only says when it was built; a file's may be compared by programs, so it stays.
        names = ("ctime", "atime", "crtime", *(["mtime"] if inode.is_folder else []))
        lines += [f"sif <{inode.number}> {name} {stamp}" for name in names]
        lines += [f"sif <{inode.number}> {name}_extra 0" for name in names]
        if not keep_owners:
            lines += [f"sif <{inode.number}> uid 0", f"sif <{inode.number}> gid 0"]
    text = "".join(f"{line}\n" for line in lines)
    run(
        ["debugfs", "-w", "-f", "/dev/stdin", str(image)],
        package="e2fsprogs",
        stdin=text.encode("ascii"),
        environment=dict(environment),
    )


def read_file(image: Path, path: str) -> bytes:
    """A file of an ext4 or squashfs image. Raises InputError `input-missing` when it has no such file."""
    with TemporaryDirectory(prefix="twinlock-read-") as folder, os_errors(f"{path} of {image}"):
        out = Path(folder, "file")
        with image.open("rb") as file:
            squashfs = file.read(4) == b"hsqs"
        if squashfs:
            run(["unsquashfs", "-n", "-d", folder + "/tree", str(image), path], package="squashfs-tools")
            out = Path(folder, "tree", path.lstrip("/"))
        elif '"' not in path and "\n" not in path:
            run(["debugfs", "-R", f'dump "{path}" {out}', str(image)], package="e2fsprogs")
        if out.is_symlink() or not out.is_file() or not out.stat().st_size:
            raise error("input-missing", f"the system in {image.name} has no file {path}")
        return out.read_bytes()


def read_folder(image: Path, path: str) -> dict[str, bytes]:
    """The files below a folder of an ext4 or squashfs image, by their paths below it; links are left out.

    Raises InputError `input-missing` when it has no such folder, or an empty one.
    """
    with TemporaryDirectory(prefix="twinlock-read-") as folder, os_errors(f"{path} of {image}"):
        out = Path(folder, "tree")
        with image.open("rb") as file:
            squashfs = file.read(4) == b"hsqs"
        if squashfs:
            run(["unsquashfs", "-n", "-d", str(out), str(image), path], package="squashfs-tools")
            found = out / path.lstrip("/")
        else:
            out.mkdir()
            if '"' not in path and "\n" not in path:
                run(["debugfs", "-R", f'rdump "{path}" {out}', str(image)], package="e2fsprogs")
            found = out / path.rstrip("/").rpartition("/")[2]
        files = {
            one.relative_to(found).as_posix(): one.read_bytes()
            for one in sorted(found.rglob("*"))
            if one.is_file() and not one.is_symlink()
        }
        if not files:
            raise error("input-missing", f"the system in {image.name} has no files in {path}")
        return files


def make_fat(out: Path, size_bytes: int, files: Mapping[str, bytes], *, label: str, serial: int) -> None:
    """Makes `out` a FAT image of exactly `size_bytes` holding `files` (path with `/` -> content).

    Raises CompatibilityError `image-too-large` when they do not fit, `package-missing`, `io-error`.
    """
    if sum(map(len, files.values())) + 256 * 1024 > size_bytes:
        raise error("image-too-large", f"the boot files do not fit into {show_size(size_bytes)}")
    environment = {"SOURCE_DATE_EPOCH": str(EPOCH_S), "MTOOLS_SKIP_CHECK": "1"}
    with TemporaryDirectory(prefix="twinlock-fat-") as folder, os_errors(f"image {out}"):
        _sparse(out, size_bytes)
        name = label.upper()[:11]
        run(["mkfs.vfat", "--invariant", "-i", f"{serial:08x}", "-n", name, str(out)], package="dosfstools")
        made: set[str] = set()
        for number, (path, content) in enumerate(sorted(files.items())):
            parts = path.split("/")
            for depth in range(1, len(parts)):
                parent = "/".join(parts[:depth])
                if parent not in made:
                    made.add(parent)
                    run(["mmd", "-i", str(out), f"::{parent}"], package="mtools", environment=environment)
            source = Path(folder, str(number))
            source.write_bytes(content)
            run(
                ["mcopy", "-i", str(out), str(source), f"::{path}"], package="mtools", environment=environment
            )


def make_squashfs(out: Path, size_bytes_max: int, tree: Path, *, keep_owners: bool = False) -> None:
    """Makes `out` a squashfs image (zstd) of `tree`, padded to whole 4 KiB blocks.

    Raises like `make_ext4`.
    """
    if not tree.is_dir():
        raise error("input-wrong-type", f"{tree} is not a folder")
    owners = [] if keep_owners else ["-all-root"]
    out.unlink(missing_ok=True)
    run(
        [
            *("mksquashfs", str(tree), str(out), "-noappend", "-quiet", "-no-progress", "-comp", "zstd"),
            *owners,
            *("-mkfs-time", str(EPOCH_S), "-no-exports", "-reproducible"),
        ],
        package="squashfs-tools",
    )
    size = out.stat().st_size
    if size > size_bytes_max:
        raise error(
            "image-too-large",
            f"the image of {tree} needs {show_size(size)}, it has {show_size(size_bytes_max)}",
        )


def extract(archive: Path, folder: Path) -> None:
    """Unpacks a root file system's tar archive into `folder`, device nodes left out.

    A build without root cannot make device nodes, and a system with devtmpfs needs none.
    """
    run(
        ["tar", "-C", str(folder), "--no-same-owner", "--exclude=./dev/*", "-xf", str(archive)], package="tar"
    )


def _sparse(path: Path, size_bytes: int) -> None:
    with path.open("wb") as file:
        file.truncate(size_bytes)
