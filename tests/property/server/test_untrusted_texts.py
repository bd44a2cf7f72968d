"""Laws of what strangers send: sealed texts, Range headers, whole requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.server.rig import Server, code_of
from twinlock.core.errors import TwinlockError
from twinlock.server.device_api.downloads import satisfiable
from twinlock.server.seals import seal, unseal

SECRETS = st.binary(min_size=32, max_size=32)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(SECRETS, TEXTS)
def test_what_is_sealed_is_unsealed(secret: bytes, payload: str) -> None:
    assert unseal(secret, "k1", seal(secret, "k1", payload)) == payload.split("\n")


@given(SECRETS, SECRETS, TEXTS)
def test_no_other_secret_or_kind_unseals(secret: bytes, other: bytes, payload: str) -> None:
    sealed = seal(secret, "k1", payload)
    if other != secret:
        with pytest.raises(ValueError, match="someone else"):
            unseal(other, "k1", sealed)
    with pytest.raises(ValueError, match="kind"):
        unseal(secret, "k2", sealed)


@given(SECRETS, st.text(max_size=600))
def test_no_text_of_a_stranger_unseals(secret: bytes, text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  which of the reasons does not matter
        unseal(secret, "k1", text)


RANGES = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda pair: f"{pair[0]}-{pair[1]}"),
        st.integers(0, 30).map(lambda first: f"{first}-"),
        st.integers(0, 30).map(lambda suffix: f"-{suffix}"),
        st.text("0123456789-, x", max_size=6),
    ),
    max_size=4,
).map(",".join)


@given(RANGES, st.integers(1, 25))
def test_ranges_lie_in_the_file_or_are_refused(specs: str, size_bytes: int) -> None:
    found, code = [], ""
    try:
        found = satisfiable(f"bytes={specs}", size_bytes)
    except TwinlockError as problem:
        code = problem.code
    assert bool(found) != (code in ("request-malformed", "range-not-satisfiable"))
    assert all(0 <= first <= last < size_bytes for first, last in found)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(Path(tmp_path_factory.mktemp("shared")))
    server.device()
    yield server
    server.close()


PATHS = st.one_of(
    st.sampled_from(
        [
            "/device/v1/enrol",
            "/device/v1/challenge",
            "/device/v1/session",
            "/device/v1/poll",
            "/device/v1/reports",
            "/api/v1/devices",
            "/api/v1/rollouts",
            "/api/v1/releases",
            "/api/v1/devices/preauthorise",
            "/login",
        ]
    ),
    st.lists(st.sampled_from(["device", "v1", "api", "..", "repository", "metadata", "x", "%2e", ""])).map(
        lambda parts: "/" + "/".join(parts)
    ),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "DELETE"]),
    path=PATHS,
    body=st.binary(max_size=200) | JSON,
    as_operator=st.booleans(),
)
def test_no_request_makes_the_server_fail(
    shared: Server, method: str, path: str, body: object, as_operator: bool
) -> None:
    """Whatever is sent, it is answered below 500, and a refusal of an API has a code."""
    import json

    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {shared.token}"} if as_operator else {}
    answer = shared.http(method, path, body=data, headers={"Content-Type": "application/json", **headers})
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400 and method != "HEAD" and path != "/login":
        assert code_of(answer)
