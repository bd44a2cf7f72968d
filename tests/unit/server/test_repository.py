"""The signed repository: byte for byte, and no name that is no name."""

from __future__ import annotations

import pytest

from tests.unit.server.rig import Server, code_of, make_release


def test_what_was_published_is_served_byte_for_byte(server: Server) -> None:
    server.publish(make_release("1.1"))
    repository = server.repository
    for role in ("root", "targets", "snapshot", "timestamp"):
        answer = server.http("GET", f"/repository/{repository.path(role)}")
        assert (answer.status_code, answer.content) == (200, repository.served(role))
        assert answer.headers["content-type"] == "application/json"


def test_only_the_timestamp_is_asked_for_again(server: Server) -> None:
    server.publish(make_release("1.1"))
    caching = {
        role: server.http("GET", f"/repository/{server.repository.path(role)}").headers["cache-control"]
        for role in ("timestamp", "snapshot")
    }
    assert caching["timestamp"] == "no-cache"
    assert "immutable" in caching["snapshot"]


@pytest.mark.parametrize(
    "path",
    [
        "metadata/timestamp.json.tmp",
        "metadata/2.timestamp.json",
        "metadata/root.json",
        "metadata/0.root.json",
        "metadata/01.root.json",
        "metadata/1.root.JSON",
        "metadata/1.root.json/",
        "metadata/1.mirrors.json",
        "metadata/99999999999.root.json",
        "metadata/",
        "metadata",
        "metadata/..%2f..%2fserver.toml",
        "metadata/%2e%2e/%2e%2e/secret.key",
        "metadata/../../secret.key",
        "metadata/1.root.json%00",
        "metadata/..%5c..%5csecret.key",
        "targets/",
        "targets/demo",
        "targets/demo/1.1.manifest",
        "targets/demo/" + "0" * 64 + ".1.1.manifest",
        "targets/%2e%2e/metadata/1.root.json",
        "targets/demo/../../../secret.key",
        "targets/..%2f" + "0" * 64 + ".1.manifest",
        "targets/demo/" + "0" * 64 + "...%2f..%2f..%2fsecret.manifest",
        "targets//" + "0" * 64 + ".1.manifest",
        ".lock",
        "",
        "other",
    ],
)
def test_any_other_name_is_not_found(server: Server, path: str) -> None:
    server.publish(make_release("1.1"))
    answer = server.http("GET", f"/repository/{path}")
    assert (answer.status_code, code_of(answer)) == (404, "not-found")


def test_head_is_answered_and_post_is_not(server: Server) -> None:
    head = server.http("HEAD", "/repository/metadata/1.root.json")
    assert (head.status_code, head.content) == (200, b"")
    post = server.http("POST", "/repository/metadata/1.root.json")
    assert (post.status_code, code_of(post)) == (405, "method-not-allowed")
    assert set(post.headers["allow"].split(", ")) == {"GET", "HEAD"}
