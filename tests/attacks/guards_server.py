"""The guards of the server: see `guards`."""

from __future__ import annotations

from typing import Final

from tests.attacks.guard_edits import Edit, core, server

SERVER: Final[dict[str, tuple[Edit, ...]]] = {
    "test_certified.test_case_09_a_bomb_in_evidence": server(
        "devices.evidence", "max_length=most + 1)", "max_length=-1)"
    ),
    "test_certified.test_case_41_a_certificate_of_another_device": server(
        "enrolment.fleet_ca", "if named != [device_id]:", "if False:"
    ),
    "test_certified.test_case_41_a_certificate_of_another_key": server(
        "enrolment.fleet_ca", "            != key.pem.encode()\n", "            != leaf and False\n"
    ),
    "test_certified.test_case_41_a_certificate_by_a_stranger": server(
        "enrolment.fleet_ca",
        "            policy.build_client_verifier().verify(leaf, between)\n",
        "            policy.build_client_verifier()\n",
    ),
    "test_certified.test_case_41_a_certificate_of_a_rejected_device": server(
        "enrolment.decide",
        "if applicant.certified and known.status is Status.PENDING:",
        "if applicant.certified:",
    ),
    "test_server.test_case_33_a_servers_disk_is_full": server(
        "blobs.payloads", "if free - size_bytes < self._free_bytes_min:", "if False:"
    ),
    "test_server.test_case_40_empty_and_default_tokens": server("operators", "if not found:", "if False:"),
    "test_server.test_case_40_an_operator_with_an_empty_token": server(
        "operators", "if not token or len(token) > TOKEN_LENGTH_MAX:", "if len(token) > TOKEN_LENGTH_MAX:"
    ),
    "test_server.test_case_41_a_session_in_another_devices_name": server(
        "enrolment.service",
        '        DevicePublicKey(device.public_key).verify(request.signature, signed, "the session")\n',
        "        pass\n",
    ),
    "test_server.test_case_41_a_report_in_another_devices_name": server(
        "rollouts.reports", "if report.device_id != device_id:", "if False:"
    ),
    "test_server.test_case_41_a_report_with_another_key": server(
        "rollouts.reports",
        '        key.verify(signed.signature, report_bytes(signed.body), f"report {number}")\n',
        "",
    ),
    "test_server.test_case_41_a_replayed_report": server(
        "rollouts.reports",
        '        key.verify(signed.signature, report_bytes(signed.body), f"report {number}")\n',
        "",
    ),
    "test_server.test_case_41_a_cloned_key": server(
        "rollouts.reports", "if kept is not None and kept != one.body_sha256:", "if False:"
    ),
    "test_server.test_case_41_a_cloned_key_that_only_polls": server(
        "device_api.calls",
        "if session.issued_us < view.session_floor_us <= self.clock.now_us():",
        "if False:",
    ),
    "test_server.test_case_41_an_id_with_another_key": server(
        "enrolment.decide", "if known.fingerprint != applicant.fingerprint:", "if False:"
    ),
    "test_server.test_case_41_a_replayed_enrolment": server(
        "enrolment.service",
        '    key.verify(request.proof, signed, f"the enrolment of {request.device_id}")\n',
        "",
    ),
    "test_server.test_case_41_a_replayed_answer_to_a_challenge": server(
        "enrolment.service",
        "if not transaction.devices.raise_session_floor(device.device_id, challenge.issued_us, now_us):",
        "if False:",
    ),
    "test_server.test_case_41_an_unapproved_key": server(
        "enrolment.service", "    check_status(device.status, device.device_id)\n", ""
    ),
    "test_server.test_case_41_a_revoked_device": server(
        "device_api.calls", "if view.status is not Status.ACCEPTED:", "if False:"
    ),
    "test_server.test_case_41_a_token_that_nobody_signed": server(
        "seals", "if not hmac.compare_digest(_b64(expected), mac):", "if False:"
    ),
    "test_server.test_case_41_a_key_of_another_algorithm": core(
        "device_key",
        "if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):",
        "if False:",
    ),
    "test_server.test_case_46_a_release_that_nobody_signed": server(
        "releases.publish", "    check_manifest_bytes(signed, manifest_bytes)\n", ""
    ),
    "test_server.test_case_46_metadata_that_nobody_signed": core(
        "trust.signatures",
        '    raise error(\n        "metadata-signature",',
        '    if signers: raise error(\n        "metadata-signature",',
    ),
    "test_server.test_case_46_one_person_where_two_are_needed": core(
        "trust.signatures", "if len(signers) >= role.threshold:", "if signers:"
    ),
}
