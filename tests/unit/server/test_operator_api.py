"""The operator API: who may call, pages, the audit log, its own description."""

from __future__ import annotations

import secrets
from typing import Any

import pytest

from tests.unit.server.rig import Server, code_of, make_release
from twinlock import __version__
from twinlock.core.errors import TwinlockError
from twinlock.server.operators import hash_of, make_token, name_of
from twinlock.server.setup import add_operator

PATHS = [
    ("GET", "/releases"),
    ("GET", "/releases/demo/1.1"),
    ("GET", "/releases/demo/1.1/details"),
    ("GET", "/releases/demo/1.1/sbom"),
    ("GET", "/devices"),
    ("GET", "/devices/dev-1"),
    ("GET", "/devices/dev-1/reports"),
    ("GET", "/devices/dev-1/evidence/ev-1"),
    ("GET", "/fleet/demo"),
    ("GET", "/rollouts"),
    ("GET", "/rollouts/r1"),
    ("GET", "/audit"),
    ("HEAD", "/payloads/" + "0" * 64),
    ("PUT", "/payloads/" + "0" * 64),
    ("POST", "/releases"),
    ("POST", "/metadata"),
    ("POST", "/rollouts"),
    ("POST", "/rollouts/r1/halt"),
    ("POST", "/devices/dev-1/accept"),
    ("POST", "/devices/dev-1/reject"),
    ("POST", "/devices/preauthorise"),
    ("GET", "/enrolment-tokens"),
    ("POST", "/enrolment-tokens"),
    ("POST", "/enrolment-tokens/ev-1/revoke"),
    ("GET", "/unknown"),
]


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Bearer x", "Basic {token}", "{token}", "bearer {token}"]
)
def test_every_path_wants_the_operators_token(
    server: Server, method: str, path: str, header: str | None
) -> None:
    headers = {} if header is None else {"Authorization": header.format(token=server.token)}
    answer = server.http(method, f"/api/v1{path}", headers=headers)
    assert answer.status_code == 401
    if method != "HEAD":
        assert code_of(answer) == "unauthorised"


def test_the_paths_above_are_all_that_there_are(server: Server) -> None:
    described = server.http("GET", "/api/v1/openapi.json").json()["paths"]
    found = {(method.upper(), path) for path, methods in described.items() for method in methods}
    named = {"demo": "{product}", "1.1": "{version}", "dev-1": "{device_id}", "r1": "{rollout_id}"}
    named["ev-1"] = "{name}"
    named["0" * 64] = "{sha256}"
    listed = {(method, "/".join(named.get(part, part) for part in path.split("/"))) for method, path in PATHS}
    assert found - {("GET", "/health")} == listed - {("GET", "/unknown")}


def test_health_needs_no_token(server: Server) -> None:
    answer = server.http("GET", "/api/v1/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "version": __version__})


def test_a_token_is_never_taken_for_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(["-a", "--token", "-", "good-token"])
    monkeypatch.setattr(secrets, "token_urlsafe", lambda size_bytes: next(drawn))
    assert make_token() == "good-token"


def test_tokens_are_long_random_and_kept_as_hashes(server: Server) -> None:
    assert make_token() != make_token()
    assert len(make_token()) >= 43
    for path in server.folder.rglob("*"):
        if path.is_file():
            assert server.token.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("token", ["", " ", "x" * 257, "\udcff"])
def test_an_empty_or_endless_token_is_nobodys(token: str) -> None:
    with pytest.raises(TwinlockError) as caught:
        name_of(token, [("operator", hash_of("right")), ("empty", hash_of(""))])
    assert caught.value.code == "unauthorised"


def test_each_operator_has_a_token_of_their_own(server: Server) -> None:
    other = add_operator(server.settings, "alice", server.clock)
    answer = server.http("GET", "/api/v1/devices", headers={"Authorization": f"Bearer {other}"})
    assert answer.status_code == 200
    assert server.operator("GET", "/devices").status_code == 200
    renewed = add_operator(server.settings, "alice", server.clock)
    assert renewed != other
    answer = server.http("GET", "/api/v1/devices", headers={"Authorization": f"Bearer {other}"})
    assert code_of(answer) == "unauthorised"


def test_devices_come_in_pages_and_by_status(server: Server) -> None:
    for number in range(5):
        server.device(f"dev-{number}", accepted=number % 2 == 0)
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = server.operator("GET", f"/devices?limit=2&after={after}").json()
        seen += [one["device_id"] for one in page["devices"]]
        after = page["next"]
    assert seen == [f"dev-{number}" for number in range(5)]
    pending = server.operator("GET", "/devices?status=pending").json()["devices"]
    assert [one["device_id"] for one in pending] == ["dev-1", "dev-3"]


@pytest.mark.parametrize(
    "query", ["status=lost", "limit=0", "limit=1001", "limit=x", "limit=", "after=" + "x" * 65]
)
def test_a_query_out_of_bounds_is_refused(server: Server, query: str) -> None:
    answer = server.operator("GET", f"/devices?{query}")
    assert (answer.status_code, code_of(answer)) == (400, "request-malformed")


@pytest.mark.parametrize(
    "path", ["/devices/nobody", "/devices/nobody/reports", "/releases/demo/9", "/nothing"]
)
def test_what_is_not_there_is_404(server: Server, path: str) -> None:
    answer = server.operator("GET", path)
    assert (answer.status_code, code_of(answer)) == (404, "not-found")


@pytest.mark.parametrize("action", ["accept", "reject"])
def test_deciding_on_nobody_is_404_and_deciding_twice_nothing(server: Server, action: str) -> None:
    assert code_of(server.operator("POST", f"/devices/nobody/{action}")) == "not-found"
    server.device(accepted=False)
    first = server.operator("POST", f"/devices/dev-1/{action}")
    audit = server.operator("GET", "/audit").json()
    server.clock.advance(60)
    assert server.operator("POST", f"/devices/dev-1/{action}").json() == first.json()
    assert server.operator("GET", "/audit").json() == audit


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"device_id": "dev-1"},
        {"device_id": "dev-1", "fingerprint": "x"},
        {"device_id": "dev-1", "fingerprint": "A" * 64},
        {"device_id": 1, "fingerprint": "0" * 64},
        {"device_id": "", "fingerprint": "0" * 64},
        {"device_id": "dev-1", "fingerprint": "0" * 64, "more": 1},
        [],
        "x",
        None,
    ],
)
def test_a_preauthorisation_that_is_none_is_refused(server: Server, body: Any) -> None:
    answer = server.operator("POST", "/devices/preauthorise", json=body)
    assert (answer.status_code, code_of(answer)) == (400, "request-malformed")


def test_a_refusal_does_not_echo_what_was_sent(server: Server) -> None:
    answer = server.operator("POST", "/devices/preauthorise", json={"device_id": {"secret-thing": 1}})
    assert code_of(answer) == "request-malformed"
    assert "secret-thing" not in answer.text


def test_the_audit_log_is_a_chain(server: Server) -> None:
    from twinlock.server.audit.chain import first_break

    server.device()
    server.publish(make_release("1.1"))
    server.roll_out("1.1")
    page = server.operator("GET", "/audit?limit=2").json()
    assert ([one["number"] for one in page["entries"]], page["next"]) == ([1, 2], 2)
    with server.database.read() as transaction:
        entries = transaction.audit.entries(0, 100)
    assert first_break(entries) is None
    assert [one.number for one in entries] == list(range(1, len(entries) + 1))


def test_it_describes_itself(server: Server) -> None:
    described = server.http("GET", "/api/v1/openapi.json").json()
    answers = described["paths"]["/rollouts"]["post"]["responses"]
    assert {"201", "4XX", "5XX"} <= set(answers)
    assert described["components"]["schemas"]["RolloutBody"]["additionalProperties"] is False
