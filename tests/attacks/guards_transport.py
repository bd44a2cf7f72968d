"""The guards of the way between server and device: see `guards`."""

from __future__ import annotations

from typing import Final

from tests.attacks.guard_edits import Edit, agent

TRANSPORT: Final[dict[str, tuple[Edit, ...]]] = {
    "test_transport.test_case_30_a_drip": agent(
        "http", "if self._bytes < self._bounds.rate_bytes_s_min * self._waited_s:", "if False:"
    ),
    "test_transport.test_case_30_a_stall_in_the_middle": agent(
        "http", "        sock.settimeout(wait_s)\n", "        sock.settimeout(60.0)\n"
    ),
    "test_transport.test_case_31_a_body_without_an_end": agent(
        "repository", "if seen > size_bytes_max:", "if False:"
    ),
    "test_transport.test_case_31_a_length_that_is_a_lie": agent(
        "http", "            if not data:\n", "            if False:\n"
    ),
    "test_transport.test_case_31_a_length_given_twice": agent(
        "http",
        "if len(lengths) > 1 or any(not text.isascii() or not text.isdecimal() for text in lengths):",
        "if False:",
    ),
    "test_transport.test_case_31_a_range_that_is_a_lie": agent(
        "fetch", "if first != start or last < first or (status == 206 and last >= end):", "if False:"
    ),
    "test_transport.test_case_32_metadata_is_redirected": agent(
        "repository", "if 300 <= response.status < 400:", "if False:"
    ),
    "test_transport.test_case_32_a_payload_is_redirected": agent(
        "fetch", "if 300 <= status < 400:", "if False:"
    ),
    "test_transport.test_case_32_from_https_to_http": agent("api", "if 300 <= status < 400:", "if False:"),
}
