"""Real system images for demos, tests and benches, made from files of the machine that runs them.

An image is an ext4 file system as a device would have it: `/etc/os-release`, health checks under
`/etc/twinlock/health`, Python's standard library under `/usr/lib/python`, and programs and libraries of the
machine under `/usr/bin` and `/usr/lib`. Nothing in it is random or padding, so that sizes and speeds measured
on it mean something. Versions differ as real ones do: some files changed,
some added, one configuration edited.

The same recipe on the same machine gives the same bytes; finished images are kept in a folder under a name
that holds a digest of everything they were made from.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

from twinlock.core.durable import os_errors
from twinlock.core.errors import error
from twinlock.core.limits import KIB, MIB
from twinlock.lab import ext4

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIZE_BYTES: Final = 64 * MIB
SIZE_BYTES_MIN: Final = 4 * MIB
HEALTH_FOLDER: Final = "/etc/twinlock/health"
OS_RELEASE: Final = "/etc/os-release"
_RECIPE_VERSION: Final = 1
_SOURCE_SIZE_BYTES_MAX: Final = 2 * MIB  # in an image of the usual size; more in a larger one
_FILL_PERCENT: Final = 80  # of the image; the rest is the file system's own and free blocks, as on a device
_CHANGED_EVERY: Final = 40  # one file in so many differs between neighbouring versions
_ADDED_FILES: Final = 12
_BINARY_FOLDERS: Final = ("/usr/bin", "/usr/lib", "/lib")
_DATA_FOLDERS: Final = ("/usr/lib", "/usr/share")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to build. `revision` counts versions of one product: it decides which files differ.

    `healthy` is whether the health check inside passes on a device.
    """

    version: str
    revision: int
    product: str = "demo"
    size_bytes: int = SIZE_BYTES
    healthy: bool = True


STANDARD: Final = (
    Recipe("1.0", 0),
    Recipe("1.1", 1),
    Recipe("1.2", 2, healthy=False),
)


def sized(recipe: Recipe, size_bytes: int) -> Recipe:
    """The same release on an image of another size."""
    return replace(recipe, size_bytes=size_bytes)


_HEALTHY: Final = """\
#!/bin/sh
# Is the application of this system complete, and is it the one that the release names?
root=$(cd "$(dirname "$0")/../../../.." && pwd) || exit 1
. "$root/etc/os-release"
if [ "$VERSION_ID" != "@VERSION@" ]; then
    echo "app @VERSION@: the system says it is version $VERSION_ID"
    exit 1
fi
echo "app @VERSION@: ready"
"""

_BROKEN: Final = """\
#!/bin/sh
# Can the application open its database?
echo "app @VERSION@: cannot open its database: found schema 7, need schema 8"
exit 1
"""

_RELEASE: Final = """\
ID=@PRODUCT@
NAME="Twinlock demo system"
PRETTY_NAME="Twinlock demo system @VERSION@"
VERSION_ID=@VERSION@
"""


def _fill_in(template: str, recipe: Recipe) -> str:
    return template.replace("@VERSION@", recipe.version).replace("@PRODUCT@", recipe.product)


def _walk(folder: Path) -> Iterator[Path]:
    """Regular files below `folder` in a fixed order, links not followed."""
    for name, folders, files in os.walk(folder):
        folders[:] = sorted(
            each for each in folders if each not in ("__pycache__", "site-packages", "dist-packages")
        )
        for file in sorted(files):
            path = Path(name, file)
            if path.is_file() and not path.is_symlink():
                yield path


def _candidates() -> Iterator[tuple[str, Path]]:
    """(name inside the image, file of the machine): the standard library first, then programs, libraries."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in _walk(library):
        if path.suffix in (".py", ".so"):
            yield f"usr/lib/python/{path.relative_to(library).as_posix()}", path
    for folder in map(Path, _BINARY_FOLDERS):
        for path in _walk(folder):
            if os.access(path, os.X_OK) or ".so" in path.name:
                yield f"usr/{folder.name}/{path.relative_to(folder).as_posix()}", path


def _data() -> Iterator[tuple[str, Path]]:
    """The machine's other files: what fills an image larger than the usual."""
    for folder in map(Path, _DATA_FOLDERS):
        for path in _walk(folder):
            if not (os.access(path, os.X_OK) or ".so" in path.name):
                yield f"usr/{folder.name}/{path.relative_to(folder).as_posix()}", path


def _usable(name: str, path: Path) -> int:
    """The size to count for a file, or 0 when it cannot be in an image."""
    if '"' in name or "\n" in name or not os.access(path, os.R_OK):
        return 0
    return path.stat().st_size


def _choose(recipe: Recipe) -> tuple[list[tuple[str, Path]], list[tuple[str, Path]]]:
    """(files of every version, files to add one batch of per revision)."""
    budget = recipe.size_bytes * _FILL_PERCENT // 100
    file_max = min(_SOURCE_SIZE_BYTES_MAX * max(1, recipe.size_bytes // SIZE_BYTES), budget // 16)
    base: list[tuple[str, Path]] = []
    extra: list[tuple[str, Path]] = []
    large = recipe.size_bytes > SIZE_BYTES
    extra_max = min(64 * KIB, recipe.size_bytes // 512)
    for name, path in chain(_candidates(), _data() if large else ()):
        size_bytes = _usable(name, path)
        if not 0 < size_bytes <= file_max:
            continue
        cost = -(-size_bytes // 4096) * 4096 + 512
        if budget >= cost:
            base.append((name, path))
            budget -= cost
        elif size_bytes <= extra_max and path.suffix == ".py":
            extra.append((name, path))
        if budget < recipe.size_bytes // 50 and len(extra) >= 4 * _ADDED_FILES:
            break
    return base, extra


def _key(recipe: Recipe, files: list[tuple[str, Path]]) -> str:
    digest = hashlib.sha256(repr((_RECIPE_VERSION, recipe, _HEALTHY, _BROKEN, _RELEASE)).encode())
    tools = subprocess.run([ext4.find_tool("mke2fs"), "-V"], capture_output=True)
    digest.update(tools.stderr)
    for name, path in files:
        status = path.stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _changed(data: bytes, number: int, recipe: Recipe) -> bytes:
    """A Python file as a later revision has it: every so many files got a fix since."""
    for revision in range(1, recipe.revision + 1):
        if number % _CHANGED_EVERY == revision % _CHANGED_EVERY:
            note = f"# Revised in {recipe.product} revision {revision}: see its release notes.\n".encode()
            middle = data.find(b"\n", len(data) // 2) + 1
            data = data[:middle] + note + data[middle:] + note
    return data


def _put(path: Path, data: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)


def _write_tree(
    recipe: Recipe, base: list[tuple[str, Path]], extra: list[tuple[str, Path]], tree: Path
) -> None:
    added = extra[: recipe.revision * _ADDED_FILES]
    for number, (name, path) in enumerate([*base, *added]):
        data = path.read_bytes()
        if path.suffix == ".py":
            data = _changed(data, number, recipe)
        _put(tree / name, data, 0o755 if os.access(path, os.X_OK) else 0o644)
    check = _HEALTHY if recipe.healthy else _BROKEN
    _put(tree / HEALTH_FOLDER[1:] / "required.d/10-app", _fill_in(check, recipe).encode(), 0o755)
    _put(tree / OS_RELEASE[1:], _fill_in(_RELEASE, recipe).encode(), 0o644)
    for path in (tree, *tree.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
        os.utime(path, (ext4.EPOCH_S, ext4.EPOCH_S))


def build(recipe: Recipe, folder: Path, *, say: Callable[[str], None] = lambda _: None) -> Path:
    """The image of `recipe` in `folder`, built unless it is there already; `say` hears of what is done.

    A build that is interrupted leaves no image of that name: it is renamed to it when complete. Raises
    InputError `input-invalid` for a size under 4 MiB or not in whole MiB, DeviceError `package-missing`,
    `disk-full` or `io-error`.
    """
    if recipe.size_bytes < SIZE_BYTES_MIN or recipe.size_bytes % MIB:
        raise error(
            "input-invalid", f"an image has a whole number of MiB and at least 4: {recipe.size_bytes}"
        )
    base, extra = _choose(recipe)
    image = folder / f"{recipe.product}-{recipe.version}-{_key(recipe, base + extra)}.img"
    if image.exists():
        say(f"{image.name} is there already")
        return image
    with os_errors(f"building {image}"):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as work:
            tree = Path(work, "tree")
            tree.mkdir()
            say(f"copying {len(base)} files of this machine")
            _write_tree(recipe, base, extra, tree)
            say("writing the file system")
            ext4.make(tree, Path(work, "image"), recipe.size_bytes)
            Path(work, "image").replace(image)
    return image


def used_percent(image: Path) -> int:
    """How many of an image's 4 KiB blocks hold anything but zeros, in per cent."""
    blocks = used = 0
    with os_errors(f"image {image}"), image.open("rb") as file:
        while data := file.read(MIB):
            for at in range(0, len(data), 4 * KIB):
                block = data[at : at + 4 * KIB]
                blocks += 1
                used += block.count(0) < len(block)
    return 100 * used // max(1, blocks)


def flip_bit(path: Path, offset_bytes: int, bit: int = 0) -> None:
    """Inverts one bit of a file in place: what a worn medium or a hostile mirror does. Raises OSError."""
    with path.open("r+b") as file:
        file.seek(offset_bytes)
        (byte,) = file.read(1)
        file.seek(offset_bytes)
        file.write(bytes([byte ^ (1 << bit)]))


def sha256_range(path: Path, offset_bytes: int, size_bytes: int) -> str:
    """The SHA-256 (hex) of a part of a file. Raises DeviceError `io-error`."""
    digest = hashlib.sha256()
    with os_errors(str(path)), path.open("rb") as file:
        file.seek(offset_bytes)
        left = size_bytes
        while left and (block := file.read(min(left, MIB))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def copy_sparse(source: Path, destination: Path) -> None:
    """Copies a file; runs of zeros become holes where the file system has them. Raises OSError."""
    with source.open("rb") as reading, destination.open("wb") as writing:
        while block := reading.read(64 * KIB):
            if block.count(0) == len(block):
                writing.seek(len(block), os.SEEK_CUR)
            else:
                writing.write(block)
        writing.truncate()
    shutil.copymode(source, destination)
