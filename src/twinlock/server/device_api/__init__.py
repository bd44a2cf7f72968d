"""The edge that devices speak to: enrolment, sessions, polls, reports, payloads, the signed repository."""
