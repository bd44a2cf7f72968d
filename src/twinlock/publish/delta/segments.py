"""One segment: every way for it to travel, and the smallest of them, proven by decoding it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from twinlock.core import limits
from twinlock.core.errors import error
from twinlock.core.payload import patch
from twinlock.core.payload.fields import Field, Fields
from twinlock.core.payload.moving import move, unfinish
from twinlock.core.payload.parts import Patch, Prefix, Zstd, decode_part
from twinlock.core.payload.prefix import PREFIX_SIZE_BYTES_MIN
from twinlock.core.payload.program import Pack
from twinlock.core.zstd import CompressionParameter, ZstdCompressor, ZstdDict, compress
from twinlock.publish.delta.copies import EncodedSegment
from twinlock.publish.delta.covers import Cover, find_covers
from twinlock.publish.delta.effort import THOROUGH, Effort
from twinlock.publish.delta.executables import Known, Located, Prepared, prepare
from twinlock.publish.delta.fields.pruning import pruned
from twinlock.publish.delta.fields.worth import worthwhile
from twinlock.publish.delta.images import Image
from twinlock.publish.delta.inodes import Inodes
from twinlock.publish.delta.locating import Locator
from twinlock.publish.delta.mending import Mended, mended
from twinlock.publish.delta.model import Ref, Window, size_of
from twinlock.publish.delta.packing import Packing
from twinlock.publish.delta.price import Price
from twinlock.publish.delta.program import build_program, encode_ranges, pack_step
from twinlock.publish.delta.references import Reference
from twinlock.publish.delta.settling import settled
from twinlock.publish.delta.stretches import Cutter, Packed, Raw, Unpacked, within_a_part
from twinlock.publish.delta.trim import trimmed

ZSTD_LEVEL: Final = 19
POOR_PATCH_BYTES: Final = 256 * limits.KIB  # from here on a patch may be worse than no base at all
# The slowest levels take a second for a segment, and save less than half of what a fast one leaves.
_QUICK_LEVEL: Final = 1
_QUICK_FACTOR: Final = 2


@dataclass(frozen=True, slots=True)
class _Contents:
    """What is known of a text: the files that it has pieces of, and its inodes."""

    located: Sequence[Located]
    inodes: Sequence[Field]


class Encoder:
    """What every segment is encoded with; the same for all of them."""

    def __init__(
        self,
        base: Image,
        image: Image,
        reference: Reference,
        cutter: Cutter,
        price: Price,
        kernels: Iterable[Unpacked] = (),
        effort: Effort = THOROUGH,
    ) -> None:
        self._base = base
        self._image = image
        self._reference = reference
        self._cutter = cutter
        self._price = price
        self._effort = effort
        self._packing = Packing()
        self._locator = Locator(reference.old, reference.new)
        for kernel in kernels:
            self._locator.add(kernel)
        self._window = Window(base)
        self._inodes = Inodes(base, image)

    def encode(self, number: int, known: Mapping[str, Known]) -> EncodedSegment:
        """The smallest form of segment `number`, no copy. Raises InternalError when it is wrong.

        `known` is what is known of the executables that the segment has pieces of, by name.
        """
        start = number * limits.SEGMENT_SIZE_BYTES
        segment = self._image[start : start + limits.SEGMENT_SIZE_BYTES]
        found = min(self._forms(segment, start, known), key=lambda form: len(form.data))
        if self._decoded(found, len(segment), number) != segment:
            raise error("internal", f"segment {number} does not decode to itself")
        return found

    def _decoded(self, form: EncodedSegment, length_bytes: int, number: int) -> bytes | bytearray:
        """What a device makes of it, from the bytes that travel to the text, and to the packs' slices of it.

        Pieces of the text are packed by this machine's libraries, as a device does: each once, since one that
        was packed before, byte for byte the same, gives what it gave then.
        """
        if isinstance(form.part, Patch):
            return patch.decode(form.data, length_bytes, number, self._base, self._packing.piece)
        return decode_part(form.part, form.data, length_bytes, number, self._base)

    def _forms(self, segment: bytes, start: int, known: Mapping[str, Known]) -> list[EncodedSegment]:
        end = start + len(segment)
        stretches = within_a_part(self._cutter.cut(start, end), start, end)
        steps = [self._step(stretch, known) for stretch in stretches]
        forms = [_stored(Patch, b"".join(steps))]
        poor = len(forms[0].data) > POOR_PATCH_BYTES
        if poor and len(compress(segment, _QUICK_LEVEL)) < _QUICK_FACTOR * len(forms[0].data):
            forms.append(_stored(Zstd, compress(segment, self._effort.segment_level)))
        return forms

    def _step(self, stretch: Raw | Packed, known: Mapping[str, Known]) -> bytes:
        packs: Sequence[Pack] = ()
        if isinstance(stretch, Raw):
            refs: Sequence[Ref] = self._reference.refs(stretch.start, stretch.end)
            text = self._image[stretch.start : stretch.end]
        else:
            refs, text, packs = stretch.refs, stretch.text, stretch.packs
        contents = self._contents(stretch, text)
        prepared = self._prepared(refs, contents, known)
        window = bytearray(self._window.read([*refs, *prepared.tables]))
        move(window, prepared.fields)
        unfinished = bytearray(text)
        unfinish(unfinished, prepared.fields)
        covers = find_covers(bytes(window[: size_of(refs)]), bytes(unfinished))
        if isinstance(stretch, Packed):
            stretch, covers = settled(stretch, window, unfinished, covers, self._price, self._packing)
            text, packs, contents = stretch.text, stretch.packs, self._contents(stretch, stretch.text)
        refs, covers = trimmed(refs, covers)
        prepared = self._prepared(refs, contents, known)
        plain = self._window.read([*refs, *prepared.tables])
        window, unfinished, fields = _moved(plain, text, covers, prepared.fields, self._price)
        mending = self._mended(stretch) if isinstance(stretch, Packed) else None
        packs = [mending.pack] if mending else packs
        program = build_program([*refs, *prepared.tables], window, unfinished, covers, packs, fields)
        size_bytes, lzma = sum(pack.take for pack in packs) or len(text), self._price.lzma
        level, kept_back = self._effort.zstd_level, mending is not None
        step = pack_step(program, size_bytes, with_lzma=lzma, level=level, kept_back=kept_back)
        return step + mending.step if mending else step

    def _mended(self, stretch: Packed) -> Mended | None:
        if not stretch.matches:
            return None
        wanted = self._image[stretch.start : stretch.start + stretch.size_bytes]
        return mended(stretch.text, stretch.packs[0], stretch.matches, wanted, self._price)

    def _contents(self, stretch: Raw | Packed, text: bytes) -> _Contents:
        inodes = self._inodes.text(stretch.start, text) if isinstance(stretch, Raw) else []
        return _Contents(self._locator.text(stretch), inodes)

    def _prepared(self, refs: Sequence[Ref], contents: _Contents, known: Mapping[str, Known]) -> Prepared:
        """The fields of a window of these refs, and of the text."""
        files, refs_of = self._locator.window(refs), self._locator.refs
        prepared = prepare(known, files, size_of(refs), contents.located, refs_of)
        if not contents.inodes:
            return prepared
        fields = prepared.fields
        window = [*fields.window, *self._inodes.window(refs)]
        return replace(prepared, fields=Fields(fields.maps, window, [*fields.text, *contents.inodes]))


def _moved(
    plain: bytes, text: bytes, covers: list[Cover], fields: Fields, price: Price
) -> tuple[bytearray, bytearray, Fields]:
    """A window with its addresses moved, the text as it is matched, and the fields that are worth it."""
    window = bytearray(plain)
    fields = pruned(window, fields)
    kept = worthwhile(plain, window, text, covers, fields, price)
    if kept != fields:
        window = bytearray(plain)
        kept = pruned(window, kept)
    unfinished = bytearray(text)
    unfinish(unfinished, kept)
    return window, unfinished, kept


def _stored(kind: type[Zstd | Patch | Prefix], data: bytes) -> EncodedSegment:
    return EncodedSegment(kind(len(data), hashlib.sha256(data).digest()), data)


def prefix_part(segment: bytes, window: bytes, ranges: Sequence[tuple[int, int]]) -> bytes:
    """A prefix part: the segment as a zstd frame against the window, which has the bytes of `ranges`."""
    if not PREFIX_SIZE_BYTES_MIN <= len(window) <= limits.PREFIX_SIZE_BYTES_MAX:
        raise ValueError(len(window))
    options: dict[int, int] = {
        CompressionParameter.compression_level: ZSTD_LEVEL,
        CompressionParameter.window_log: limits.PREFIX_WINDOW_LOG_MAX,
        CompressionParameter.content_size_flag: 0,
    }
    compressor = ZstdCompressor(options=options, zstd_dict=ZstdDict(window, is_raw=True).as_prefix)
    return encode_ranges(ranges) + compressor.compress(segment, ZstdCompressor.FLUSH_FRAME)
