"""Where the bytes of a delta are: shared out among the kinds of file that its segments changed in."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from twinlock.core.limits import SEGMENT_SIZE_BYTES
from twinlock.publish.delta.blocks import BLOCK_SIZE_BYTES, BlockIndex
from twinlock.publish.delta.files.detect import map_files
from twinlock.publish.delta.files.model import ImageFile
from twinlock.publish.delta.images import Image
from twinlock.publish.payload_file import PayloadFile

KERNEL = "kernel"
MODULES = "kernel modules"
METADATA = "file system's tables and gaps"
INDEX = "index"
KERNEL_KINDS = (KERNEL, MODULES)


def kind_of(path: str) -> str:
    """The kind of a file, by its path."""
    name = path.rpartition("/")[2]
    if path.startswith("boot/"):
        return KERNEL
    if name.endswith((".ko", ".ko.xz", ".ko.zst")):
        return MODULES
    if name.endswith((".py", ".pyc")):
        return "Python"
    if ".so" in name or "/bin/" in f"/{path}" or "/sbin/" in f"/{path}" or "/lib/systemd/" in f"/{path}":
        return "programs and libraries"
    return "other files"


def remaining(delta: Path, old: Path, new: Path) -> dict[str, float]:
    """Bytes of the delta by kind; a segment's are shared by how many changed blocks of each kind it has."""
    found: Counter[str] = Counter()
    with PayloadFile(delta) as file, Image(old) as base, Image(new) as image:
        _, files = map_files(image)
        index = BlockIndex.build(base)
        found[INDEX] = file.size_bytes - file.index.body_size_bytes
        for number, part in enumerate(file.index.parts):
            if not part.length:
                continue
            start = number * SEGMENT_SIZE_BYTES
            end = min(start + SEGMENT_SIZE_BYTES, len(image))
            shares: Counter[str] = Counter()
            for piece in files.pieces(start, end):
                kind = METADATA if piece.file is None else kind_of(piece.file.path)
                shares[kind] += _changed(index, base, image, piece.image_offset, piece.length)
            packed: set[ImageFile] = set(files.packed_files(start, end))
            if packed:
                shares = Counter(kind_of(one.path) for one in packed)
            total = sum(shares.values()) or 1
            for kind, share in (shares or Counter({METADATA: 1})).items():
                found[kind] += part.length * share / total  # type: ignore[assignment]
    return {kind: round(size) for kind, size in found.most_common()}


def _changed(index: BlockIndex, base: Image, image: Image, start: int, length: int) -> int:
    """How many bytes of a piece are in blocks that the base does not have."""
    changed = 0
    for at in range(start // BLOCK_SIZE_BYTES * BLOCK_SIZE_BYTES, start + length, BLOCK_SIZE_BYTES):
        block = image[at : at + BLOCK_SIZE_BYTES]
        if len(block) < BLOCK_SIZE_BYTES or index.find(block, base) is None:
            changed += BLOCK_SIZE_BYTES
    return changed
