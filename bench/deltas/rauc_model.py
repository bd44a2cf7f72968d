"""What RAUC's adaptive updates would send, as a model: `rauc_model.py OLD NEW OUT`.

RAUC hashes 4 KiB blocks (SHA-256), fetches the index of the new image, and the blocks that the old slot does
not hold. OUT gets the index and these blocks once each, both compressed by zstd at level 19.
"""

import hashlib
import sys
from pathlib import Path

from twinlock.core.zstd import CompressionParameter, ZstdCompressor

BLOCK_SIZE_BYTES = 4096


def main() -> None:
    old, new, out = (Path(name) for name in sys.argv[1:])
    held = set()
    with old.open("rb") as file:
        while block := file.read(BLOCK_SIZE_BYTES):
            held.add(hashlib.sha256(block).digest())
    options: dict[int, int] = {
        CompressionParameter.compression_level: 19,
        CompressionParameter.window_log: 27,
        CompressionParameter.enable_long_distance_matching: 1,
    }
    index = bytearray()
    with new.open("rb") as file, out.open("wb") as sent:
        blocks = ZstdCompressor(options=options)
        while block := file.read(BLOCK_SIZE_BYTES):
            digest = hashlib.sha256(block).digest()
            index += digest
            if digest not in held:
                held.add(digest)
                sent.write(blocks.compress(block))
        sent.write(blocks.flush())
        sent.write(ZstdCompressor(level=19).compress(bytes(index), ZstdCompressor.FLUSH_FRAME))


if __name__ == "__main__":
    main()
