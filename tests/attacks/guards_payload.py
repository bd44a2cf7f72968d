"""The guards of what a payload and a release may be: see `guards`."""

from __future__ import annotations

from typing import Final

from tests.attacks.guard_edits import Edit, agent, core

_READ_BACK: Final = (*agent("install", "if image.digest() == self._manifest.image_sha256:", "if True:"),)
_PART_HASH: Final = core(
    "payload.parts",
    "if len(encoded) != part.length or hashlib.sha256(encoded).digest() != part.sha256:",
    "if False:",
)
_SEGMENT_HASH: Final = agent(
    "pull", "if hashlib.sha256(data).digest() != self._manifest.segment_sha256(number):", "if False:"
)

PAYLOADS: Final[dict[str, tuple[Edit, ...]]] = {
    "test_payload.test_case_01_a_payload_of_something_else": _SEGMENT_HASH,
    "test_payload.test_case_01_a_part_swapped_behind_its_index": _PART_HASH,
    "test_payload.test_case_01_a_slot_changed_while_the_rest_comes": _READ_BACK,
    "test_payload.test_case_02_a_late_bit_past_2_gib": _PART_HASH,
    "test_payload.test_case_02_a_late_bit_past_4_gib": _PART_HASH,
    "test_payload.test_case_03_a_part_that_the_manifest_does_not_have": core(
        "payload.container", "(len(index.parts) == manifest.segment_count, ", "(True, "
    ),
    "test_payload.test_case_03_bytes_that_are_no_part": core(
        "payload.container", "(index.body_size_bytes == body, ", "(True, "
    ),
    "test_payload.test_case_04_a_tampered_index": core(
        "payload.container", " or hashlib.sha256(data).digest() != trailer.index_sha256:", ":"
    ),
    "test_payload.test_case_04_a_tampered_trailer": core(
        "payload.container", "if version != VERSION or flags or reserved:", "if version != VERSION:"
    ),
    "test_payload.test_case_04_a_tampered_manifest": agent(
        "metadata", "        check_manifest_bytes(signed, data)\n", ""
    ),
    "test_payload.test_case_08_a_part_that_points_elsewhere": core(
        "payload.container", "if index.base_sha256 is None and any(", "if False and any("
    ),
    "test_payload.test_case_09_a_frame_of_more_than_a_segment": core(
        "payload.full",
        "if extra or len(data) != length_bytes or not decompressor.eof or decompressor.unused_data:",
        "if False:",
    ),
    "test_payload.test_case_09_a_bomb_is_not_unpacked": core(
        "payload.full", "max_length=length_bytes)", "max_length=-1)"
    ),
    "test_payload.test_case_09_a_window_larger_than_allowed": core(
        "payload.full", "window_log_max: limits.WINDOW_LOG_MAX}", "window_log_max: 27}"
    ),
    "test_payload.test_case_10_a_truncated_payload": agent(
        "fetch", "if total != self._source.size_bytes:", "if False:"
    ),
    "test_payload.test_case_10_a_part_that_ends_early": agent(
        "fetch", "if int(length) < last - first + 1:", "if False:"
    ),
    "test_payload.test_case_10_more_than_was_asked_for": agent(
        "fetch", "if int(length) > last - first + 1:", "if False:"
    ),
    "test_payload.test_case_10_a_delta_against_another_base": _SEGMENT_HASH,
    "test_release.test_case_05_traversal_in_an_assigned_name": agent(
        "check", '        check_name(assignment.product, "product")\n', ""
    ),
    "test_release.test_case_05_traversal_in_a_signed_name": agent(
        "repository", 'if any(part in ("", ".", "..") for part in signed.path.split("/")):', "if False:"
    ),
    "test_release.test_case_06_a_signature_of_another_length": core(
        "trust.signatures", "not known.verifies(signature, document.payload)", "False"
    ),
    "test_release.test_case_07_no_signature": core(
        "trust.signatures",
        '    raise error(\n        "metadata-signature",',
        '    if signers: raise error(\n        "metadata-signature",',
    ),
    "test_release.test_case_08_a_link_where_a_file_will_be": agent("tuf_client", " | os.O_NOFOLLOW", ""),
    "test_release.test_case_08_a_name_given_twice": core(
        "manifest", "if len(set(claims.hardware)) != len(claims.hardware):", "if False:"
    ),
    "test_release.test_case_11_the_same_name_for_other_hardware": agent(
        "decide", "if hardware not in claims.hardware:", "if False:"
    ),
    "test_release.test_case_12_a_version_of_any_length": core(
        "names", "if len(text) > length_max:", "if False:"
    ),
    "test_release.test_case_13_a_manifest_of_a_later_format": core(
        "manifest", "if head.format != FORMAT or head.format_version != VERSION:", "if False:"
    ),
    "test_release.test_case_13_a_manifest_with_an_unknown_field": core(
        "manifest",
        "class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):",
        "class Manifest(msgspec.Struct, frozen=True):",
    ),
    "test_release.test_case_13_an_assignment_with_an_unknown_field": core(
        "protocol",
        "class Assignment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, ",
        "class Assignment(msgspec.Struct, frozen=True, ",
    ),
}
