"""The status page: for those who logged in, with everything that a device said escaped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.unit.server.rig import Server, code_of, make_release
from twinlock.server.operators import hash_of
from twinlock.server.setup import add_operator, read_secret
from twinlock.server.web import sessions, show

POLICY = "default-src 'none'"


def login(server: Server, token: str | None = None) -> httpx.Response:
    body = f"token={server.token if token is None else token}".encode()
    return server.http("POST", "/login", body=body)


def cookie(server: Server) -> dict[str, str]:
    answer = login(server)
    server._client.cookies.clear()
    return {"Cookie": answer.headers["set-cookie"].partition(";")[0]}


def page(server: Server, path: str = "/") -> str:
    answer = server.http("GET", path, headers=cookie(server))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith(POLICY)
    assert answer.headers["cache-control"] == "no-store"
    return answer.text


def test_nobody_sees_a_page_without_a_login(server: Server) -> None:
    server.device()
    for path in ("/", "/devices/dev-1", "/rollouts/r1"):
        answer = server.http("GET", path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")
        assert answer.content == b""


def test_the_token_logs_in_with_a_cookie_that_no_script_and_no_other_site_can_use(server: Server) -> None:
    answer = login(server)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    attributes = {part.strip().lower() for part in answer.headers["set-cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/", f"max-age={sessions.COOKIE_S}"} <= attributes
    assert server.token not in answer.headers["set-cookie"]


@pytest.mark.parametrize("token", ["", "wrong", "x" * 5000])
def test_a_wrong_token_does_not(server: Server, token: str) -> None:
    answer = login(server, token)
    assert answer.status_code in (401, 413)
    assert "set-cookie" not in answer.headers
    if answer.status_code == 401:
        assert "No operator of this server has this token" in answer.text


def test_the_one_time_link_logs_in_once(server: Server) -> None:
    assert server.http("GET", "/login/wrong").headers["location"] == "/login"
    first = server.http("GET", "/login/once-only-secret")
    assert (first.status_code, first.headers["location"]) == (303, "/")
    assert "set-cookie" in first.headers
    again = server.http("GET", "/login/once-only-secret")
    assert again.headers["location"] == "/login"
    assert "set-cookie" not in again.headers


def test_a_link_that_was_never_made_is_none() -> None:
    assert not sessions.OneTimeLogin().use("")


def test_logging_out_takes_the_cookie_back(server: Server) -> None:
    answer = server.http("POST", "/logout", headers=cookie(server))
    assert answer.headers["location"] == "/login"
    assert 'twinlock_operator=""' in answer.headers["set-cookie"]


def test_a_cookie_is_for_its_operator_token_and_time(server: Server) -> None:
    secret = read_secret(server.settings)
    known = [("operator", hash_of(server.token))]
    text = sessions.make_cookie(secret, "operator", hash_of(server.token), 1000)
    assert sessions.read_cookie(secret, text, known, 1000 + sessions.COOKIE_S - 1) == "operator"
    assert sessions.read_cookie(secret, text, known, 1000 + sessions.COOKIE_S) is None
    assert sessions.read_cookie(secret, text, [("operator", hash_of("new"))], 1000) is None
    assert sessions.read_cookie(secret, text, [("other", hash_of(server.token))], 1000) is None
    assert sessions.read_cookie(bytes(32), text, known, 1000) is None
    assert sessions.read_cookie(secret, "w1.x.y", known, 1000) is None


def test_a_new_token_ends_the_sessions_of_the_old_one(server: Server) -> None:
    headers = cookie(server)
    assert server.http("GET", "/", headers=headers).status_code == 200
    add_operator(server.settings, "operator", server.clock)
    assert server.http("GET", "/", headers=headers).status_code == 303


def test_the_page_shows_the_fleet(server: Server) -> None:
    server.publish(make_release("1.1"))
    device = server.device()
    server.device("waiting", accepted=False)
    rollout = server.roll_out("1.1")
    device.poll(version="1.0", slot="b")
    offer = f"{rollout}-dev-1"
    device.tell("downloading", offer)
    device.tell("rolled_back", offer, version="1.1", code="health-failed", detail="10-net.sh failed\nmore")
    server.stop()
    server.start()
    text = page(server)
    for part in ("dev-1", "waiting for you", "demo <b>1.0</b>", "rolled back", "health-failed", "10-net.sh"):
        assert part in text, part
    assert "more" not in re.sub(r'title="[^"]*"', "", text)
    assert "10-net.sh failed\nmore" in page(server, "/devices/dev-1")
    detail = page(server, f"/rollouts/{rollout}")
    assert "health-failed" in detail
    assert "1 rolled back" in detail


def test_an_empty_server_says_what_to_do_next(server: Server) -> None:
    text = page(server)
    for part in ("No device yet", "No release yet", "No rollout yet"):
        assert part in text


ATTACK = '<script>alert(1)</script>"><img src=x onerror=alert(1)>\N{RIGHT-TO-LEFT OVERRIDE}\x1b[31m'


def test_what_a_device_reports_is_never_markup(server: Server) -> None:
    server.publish(make_release("1.1", notes=ATTACK))
    device = server.device()
    rollout = server.roll_out("1.1")
    device.poll(agent="<b>agent</b>", state="<i>state</i>")
    device.tell("failed", f"{rollout}-dev-1", detail=ATTACK + "\n" + ATTACK)
    device.tell("idle", "<u>assignment</u>")
    server.stop()
    server.start()
    for path in ("/", "/devices/dev-1", f"/rollouts/{rollout}"):
        text = page(server, path)
        for tag in (
            "<script>alert",
            "<img src=x",
            "<b>agent",
            "<i>state",
            "<u>assignment",
            "\x1b",
            "\N{RIGHT-TO-LEFT OVERRIDE}",
        ):
            assert tag not in text, (path, tag)
        assert "&lt;script&gt;alert(1)" in text


def test_no_page_runs_or_loads_anything_from_elsewhere(server: Server) -> None:
    server.publish(make_release("1.1"))
    server.device()
    rollout = server.roll_out("1.1")
    for path in ("/", "/devices/dev-1", f"/rollouts/{rollout}", "/login"):
        text = page(server, path)
        assert re.findall(r"\son\w+=|\sstyle=|javascript:", text) == []
        assert re.findall(r"<script(?![^>]*\ssrc=)", text) == []
        loaded = re.findall(r'(?:src|href|action)="([^"]*)"', text)
        assert [one for one in loaded if not one.startswith("/") or one.startswith("//")] == []


def test_more_devices_than_fit_a_page(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinlock.server.web.pages.DEVICES_SHOWN", 2)
    for number in range(3):
        server.device(f"dev-{number}", accepted=False)
    assert 'href="/?after=dev-1"' in page(server)
    second = page(server, "/?after=dev-1")
    assert ("dev-2" in second, 'href="/devices/dev-0"' in second) == (True, False)
    answer = server.http("GET", "/?after=../x", headers=cookie(server))
    assert (answer.status_code, code_of(answer)) == (400, "input-invalid")


@pytest.mark.parametrize("path", ["/devices/nobody", "/rollouts/r9", "/rollouts/x", "/devices/%2e%2e"])
def test_what_is_not_there_is_404(server: Server, path: str) -> None:
    answer = server.http("GET", path, headers=cookie(server))
    assert answer.status_code in (400, 404)
    assert code_of(answer) in ("not-found", "input-invalid")


@pytest.mark.parametrize(
    ("name", "media_type"),
    [("style.css", "text/css"), ("refresh.js", "text/javascript"), ("icon.svg", "image/svg+xml")],
)
def test_what_the_page_needs_comes_with_the_package(server: Server, name: str, media_type: str) -> None:
    answer = server.http("GET", f"/static/{name}")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(media_type)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(rb"https?://(?!www\.w3\.org)", answer.content)


@pytest.fixture
def open_server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path, page_open=True)
    yield made
    made.close()


def test_an_open_page_is_open_to_this_machine_by_its_own_name_only(open_server: Server) -> None:
    server = open_server
    for host in ("127.0.0.1", "localhost", "[::1]", "127.0.0.1:8000"):
        assert server.http("GET", "/", headers={"Host": host}).status_code == 200, host
    for host in ("updates.example.org", "127.0.0.1.example.org", "10.0.0.1", "", "[", "[::"):
        assert server.http("GET", "/", headers={"Host": host}).status_code == 303, host


@pytest.mark.parametrize("name", ["Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP"])
def test_an_open_page_is_not_open_through_a_proxy(open_server: Server, name: str) -> None:
    answer = open_server.http("GET", "/", headers={"Host": "127.0.0.1", name: "127.0.0.1"})
    assert answer.status_code == 303


def test_a_cookie_is_for_https_alone_where_a_proxy_speaks_it(server: Server) -> None:
    body = f"token={server.token}".encode()
    answer = server.http("POST", "/login", body=body, headers={"X-Forwarded-Proto": "https"})
    assert "; secure" in answer.headers["set-cookie"].lower()
    assert "; secure" not in login(server).headers["set-cookie"].lower()


def test_an_open_page_is_not_open_to_other_machines(open_server: Server) -> None:
    server = open_server
    transport = httpx.ASGITransport(server.app, raise_app_exceptions=False, client=("10.0.0.2", 1))
    client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")
    answer = server._runner.run(client.get("/"))
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    server._runner.run(client.aclose())


@pytest.mark.parametrize(
    ("passed_s", "text"),
    [
        (-5, "just now"),
        (2, "just now"),
        (3, "3 s ago"),
        (59, "59 s ago"),
        (60, "1 min ago"),
        (3599, "59 min ago"),
        (3600, "1 h ago"),
        (172_800, "2 days ago"),
    ],
)
def test_times_for_people(passed_s: int, text: str) -> None:
    assert show.ago(1_000_000, 1_000_000 + passed_s * 1000) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (64 << 20, "64.0 MiB"), (5 << 40, "5120.0 GiB")],
)
def test_sizes_for_people(size_bytes: int, text: str) -> None:
    assert show.size(size_bytes) == text


def test_a_bars_parts_fill_it(server: Server) -> None:
    parts = show.bar({"assigned": 1, "failed": 1, "succeeded": 2}, 0)
    assert parts == [("good", 0.0, 100.0), ("bad", 100.0, 50.0), ("plain", 150.0, 50.0)]
    assert show.bar({"succeeded": 1}, 1) == [("good", 0.0, 100.0)]
    assert show.bar({}, 0) == []
