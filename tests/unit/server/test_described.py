"""What a server says of a release to people: what was signed, verified anew, or why it does not."""

from __future__ import annotations

import hashlib
import shutil
from datetime import timedelta

import pytest
from tuf.api.metadata import TargetFile

from tests.unit.server.rig import Server, code_of, list_release, make_release, offered, text
from twinlock.core import details
from twinlock.core.details import Details, Sbom

SBOM = b'{"bomFormat": "CycloneDX"}'
RELEASE = make_release()


def described(**changes: object) -> Details:
    made = Details(
        format="twinlock-details",
        format_version=1,
        product="demo",
        version="1.1",
        kind="security",
        support_ends="2031-12-31",
        advisory="CVE-2026-1 <script>alert(1)</script>",
        sbom=Sbom("cyclonedx", "1.6", hashlib.sha256(SBOM).digest(), len(SBOM), 3),
    )
    return type(made)(**{**{name: getattr(made, name) for name in made.__struct_fields__}, **changes})


def upload(server: Server, data: bytes) -> None:
    answer = server.operator("PUT", f"/payloads/{hashlib.sha256(data).hexdigest()}", body=data)
    assert answer.status_code in (200, 201), answer.text


def publish(server: Server, made: Details | None, *, role: str = "targets", sent: bool = True) -> bytes:
    """Publishes the release with these details; the bytes that were signed of them."""
    server.upload(RELEASE)
    data = b"" if made is None else details.encode(made)
    list_release(server.repository, RELEASE)
    roles = ["targets", "snapshot", "timestamp"]
    if role != "targets":
        server.repository.delegate("targets", role, paths=["demo/*.details"])
        roles.insert(0, role)
    if made is not None:
        entry = TargetFile.from_data("demo/1.1.details", data, ["sha256"])
        server.repository.role(role).targets[entry.path] = entry
        if sent:
            upload(server, data)
            upload(server, SBOM)
    server.repository.publish(*roles)
    delegated = {one: text(server.repository.served(one)) for one in roles[:-3]}
    answer = server.send(RELEASE, metadata=offered(server.repository) | {"delegated": delegated})
    assert answer.status_code == 201, answer.text
    return data


def test_details_and_sbom_are_what_was_signed(server: Server) -> None:
    data = publish(server, described())
    answer = server.operator("GET", "/releases/demo/1.1/details")
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "product": "demo",
        "version": "1.1",
        "kind": "security",
        "support_ends": "2031-12-31",
        "advisory": "CVE-2026-1 <script>alert(1)</script>",
        "sbom": {
            "kind": "cyclonedx",
            "spec_version": "1.6",
            "sha256": hashlib.sha256(SBOM).hexdigest(),
            "size_bytes": len(SBOM),
            "components": 3,
        },
        "details_sha256": hashlib.sha256(data).hexdigest(),
    }
    answer = server.operator("GET", "/releases/demo/1.1/sbom")
    assert (answer.status_code, answer.content) == (200, SBOM)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_they_are_shown_when_the_metadata_has_ended(server: Server) -> None:
    publish(server, described())
    server.clock.advance(timedelta(days=400).total_seconds())
    assert server.operator("GET", "/releases/demo/1.1/details").status_code == 200


@pytest.mark.parametrize("what", ["details", "sbom"])
def test_a_release_without_them(server: Server, what: str) -> None:
    publish(server, None)
    answer = server.operator("GET", f"/releases/demo/1.1/{what}")
    assert (answer.status_code, code_of(answer)) == (404, "not-found")


def test_details_without_an_sbom(server: Server) -> None:
    publish(server, described(sbom=None))
    assert server.operator("GET", "/releases/demo/1.1/details").json()["sbom"] is None
    assert code_of(server.operator("GET", "/releases/demo/1.1/sbom")) == "not-found"


@pytest.mark.parametrize("path", ["demo/9.9", "nothing/1.1", "%2e%2e/1.1", "demo/..%2f"])
@pytest.mark.parametrize("what", ["details", "sbom"])
def test_a_release_that_is_unknown(server: Server, path: str, what: str) -> None:
    publish(server, described())
    answer = server.operator("GET", f"/releases/{path}/{what}")
    assert answer.status_code in (400, 404, 405, 422), answer.text


def test_signed_and_never_sent(server: Server) -> None:
    publish(server, described(), sent=False)
    answer = server.operator("GET", "/releases/demo/1.1/details")
    assert code_of(answer) == "details-hash"


def test_a_file_that_somebody_changed_is_not_shown(server: Server) -> None:
    data = publish(server, described())
    for content, path in ((data, "details"), (SBOM, "sbom")):
        (file,) = server.folder.rglob(f"*{hashlib.sha256(content).hexdigest()}*")
        honest = file.read_bytes()
        for forged in (honest.replace(b"CVE", b"cve").replace(b"Cyc", b"cyc"), honest + b" ", b""):
            file.write_bytes(forged)
            assert code_of(server.operator("GET", f"/releases/demo/1.1/{path}")) == "details-hash"
        file.write_bytes(honest)
        assert server.operator("GET", f"/releases/demo/1.1/{path}").status_code == 200


def test_metadata_that_somebody_changed_vouches_for_nothing(server: Server) -> None:
    publish(server, described())
    (file,) = server.folder.rglob("2.targets.json")
    file.write_bytes(file.read_bytes().replace(b"demo/1.1.details", b"demo/1.2.details"))
    answer = server.operator("GET", "/releases/demo/1.1/details")
    assert code_of(answer) in ("metadata-signature", "metadata-mismatch")
    file.unlink()
    assert code_of(server.operator("GET", "/releases/demo/1.1/details")) == "metadata-missing"


def test_details_of_another_release_under_this_ones_name(server: Server) -> None:
    publish(server, described(version="1.2"))
    assert code_of(server.operator("GET", "/releases/demo/1.1/details")) == "details-hash"


def test_details_in_a_delegated_list(server: Server) -> None:
    publish(server, described(), role="texts")
    assert server.operator("GET", "/releases/demo/1.1/details").status_code == 200


def test_a_server_without_a_published_state(server: Server) -> None:
    publish(server, described())
    shutil.move(next(server.folder.rglob("timestamp.json")), server.folder / "away")
    assert code_of(server.operator("GET", "/releases/demo/1.1/details")) == "not-found"
