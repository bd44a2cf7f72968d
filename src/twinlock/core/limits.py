"""Bounds on everything that comes from outside, in one place.

A value above its bound is refused before anything is allocated for it. Raising one of these changes what a
device accepts from a server it does not trust, so each has a test in `tests/unit/core/test_limits.py`.
"""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# Images and segments
SEGMENT_SIZE_BYTES: Final = 1 * MIB
IMAGE_SIZE_BYTES_MAX: Final = 64 * GIB
SEGMENTS_MAX: Final = IMAGE_SIZE_BYTES_MAX // SEGMENT_SIZE_BYTES

# Payload files
PART_SIZE_BYTES_MAX: Final = SEGMENT_SIZE_BYTES + 64 * KIB  # zstd's worst case for a segment, with room
INDEX_SIZE_BYTES_MAX: Final = 16 * MIB
PAYLOAD_SIZE_BYTES_MAX: Final = IMAGE_SIZE_BYTES_MAX + INDEX_SIZE_BYTES_MAX + GIB
WINDOW_LOG_MAX: Final = 23  # 8 MiB: segment + reference window
WINDOW_SIZE_BYTES_MAX: Final = 1 << WINDOW_LOG_MAX

# Parts of a delta
COPY_RANGES_MAX: Final = 64  # in the index; a segment in more pieces is a patch without differences
REFERENCE_SIZE_BYTES_MAX: Final = WINDOW_SIZE_BYTES_MAX - SEGMENT_SIZE_BYTES
REFERENCE_RANGES_MAX: Final = 4096
PREFIX_SIZE_BYTES_MAX: Final = 3 * MIB
PREFIX_WINDOW_LOG_MAX: Final = 22  # zstd allocates its window beside prefix and segment
STEPS_MAX: Final = 16
PLAIN_SIZE_BYTES_MAX: Final = 4 * MIB  # what one step unpacks to
KEPT_SIZE_BYTES_MAX: Final = SEGMENT_SIZE_BYTES + 128 * KIB  # what a step makes for the next one
PROGRAM_SIZE_BYTES_MAX: Final = PLAIN_SIZE_BYTES_MAX + MIB
SOURCES_MAX: Final = 1024  # packed blocks of the base that one step unpacks
SOURCE_SIZE_BYTES_MAX: Final = 8 * MIB  # what one of them unpacks to
SOURCES_SIZE_BYTES_MAX: Final = 32 * MIB  # what they unpack to, one after the other
PACKS_MAX: Final = 1024  # blocks that one step packs again
FIELD_MAPS_MAX: Final = 256
FIELD_POINTS_MAX: Final = 1 << 15  # of all maps together
FIELDS_MAX: Final = 4096
COVERS_MAX: Final = 1 << 16
DIFF_RUNS_MAX: Final = 1 << 15

# Manifest
MANIFEST_SIZE_BYTES_MAX: Final = 4 * MIB
HARDWARE_IDS_MAX: Final = 64
NAME_LENGTH_MAX: Final = 64
VERSION_LENGTH_MAX: Final = 64
COUNTER_MAX: Final = (1 << 31) - 1
NOTES_LENGTH_MAX: Final = 4096

# Details of a release
DETAILS_SIZE_BYTES_MAX: Final = 256 * KIB
ADVISORY_LENGTH_MAX: Final = 16 * KIB
SBOM_SIZE_BYTES_MAX: Final = 64 * MIB

# Signed metadata (The Update Framework)
METADATA_SIZE_BYTES_MAX: Final = {
    "root": 512 * KIB,
    "timestamp": 16 * KIB,
    "snapshot": 2 * MIB,
    "targets": 5 * MIB,
}
ROOT_ROTATIONS_MAX: Final = 256
JSON_DEPTH_MAX: Final = 32
SIGNATURES_MAX: Final = 64  # keys of one role, and signatures on one file
ROLES_VISITED_MAX: Final = 32  # delegated roles looked at in one search for a release
ROLE_FILE_NAME_LENGTH_MAX: Final = 200  # a role's name as a file name, each odd byte written as %XX
HASH_BIN_BITS_MAX: Final = 16
METADATA_VERSION_MAX: Final = (1 << 31) - 1

# Device protocol
MESSAGE_SIZE_BYTES_MAX: Final = 64 * KIB
REPORT_SIZE_BYTES_MAX: Final = 16 * KIB
REPORTS_PER_BATCH_MAX: Final = 16
REPORT_DETAIL_LENGTH_MAX: Final = 4096
NOTICED_CODES_MAX: Final = 32  # kinds of refusals that one report tells of
NOTICED_COUNT_MAX: Final = 1_000_000
EVIDENCE_SIZE_BYTES_MAX: Final = 64 * KIB  # packed
EVIDENCE_TEXT_SIZE_BYTES_MAX: Final = 1 * MIB
PAYLOAD_OFFERS_MAX: Final = 8
DEVICE_ID_LENGTH_MAX: Final = 64
CERTIFICATES_SIZE_BYTES_MAX: Final = (
    16 * KIB
)  # a device's certificate and those between it and a root, as PEM
POLL_WAIT_S_MIN: Final = 1
POLL_WAIT_S_MAX: Final = 7 * 24 * 3600

# Slots: the end that no image may fill. The health gate writes and reads there to prove that the other slot
# can be written, without touching the image that the device may have to fall back to.
SLOT_TAIL_SIZE_BYTES: Final = 64 * KIB

# Boot control
TRIES_MAX: Final = 7
BOOT_REASON_BYTES_MAX: Final = 96
