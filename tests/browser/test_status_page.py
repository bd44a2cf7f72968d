"""The status page in a real browser: the one-time link, the refresh, the style, nobody else's code."""

from __future__ import annotations

import contextlib
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.server.rig import Server, Site, make_release

SIZE = "--window-size=1400,1500"
ATTACK = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Server]:
    """A server with releases, rollouts and devices in every state, one of them hostile."""
    server = Server(tmp_path, page_open=True)
    for number, version in enumerate(("1.0", "1.1", "1.2")):
        server.publish(make_release(version, number, segments=40))
    states = ["succeeded", "succeeded", "succeeded", "trial", "downloading", "failed", "rolled_back"]
    names = [f"gateway-{number:02}" for number in range(1, len(states) + 3)]
    devices = [server.device(name) for name in names]
    server.roll_out("1.0", names[:2])
    server.roll_out("1.2")
    rollout = server.roll_out("1.1")
    for device, state in zip(devices, states, strict=False):
        device.poll(version="1.1" if state == "succeeded" else "1.0", slot="b", agent="0.1.0", state="idle")
        code = {"rolled_back": "health-failed", "failed": "payload-part-hash"}.get(state, "")
        detail = "10-network.sh: no route to the broker after 60 s\nexit 1" if state == "rolled_back" else ""
        device.tell(
            state,
            f"{rollout}-{device.device_id}",
            product="demo",
            version="1.1",
            slot="b",
            code=code,
            detail=ATTACK if state == "failed" else detail,
            bytes_fetched=38_000_000,
            duration_s=14.2,
        )
    halted = server.roll_out("1.2", [names[-1]])
    server.operator("POST", f"/rollouts/{halted}/halt")
    server.device("new-device", accepted=False)
    server.stop()
    server.start()
    yield server
    server.close()


def browse(tmp_path: Path, url: str, *args: str) -> tuple[str, str]:
    """Opens a page in a headless browser of its own: what it printed, and what the page's console said."""
    program = shutil.which("chromium")
    assert program, "install Debian's chromium"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
    flags += ["--enable-logging=stderr", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([program, *flags, *args, url], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return done.stdout, console


def test_the_page_logs_in_refreshes_itself_and_runs_nobody_elses_code(fleet: Server, tmp_path: Path) -> None:
    with contextlib.closing(Site(fleet)) as site:
        link = f"{site.address}/login/once-only-secret"
        dom, console = browse(tmp_path, link, "--dump-dom", "--virtual-time-budget=8000")
    assert console == ""
    assert site.counted.asked.count("/") >= 2
    assert "<title>Twinlock</title>" in dom
    assert "&lt;img src=x onerror" in dom
    for shown in (
        "gateway-07",
        "health-failed",
        "10-network.sh",
        "rolled back",
        "waiting for you",
        "Log out",
    ):
        assert shown in dom, shown
    assert '<body class="stale"' not in dom


def test_the_page_is_drawn_with_its_style(fleet: Server, tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    with contextlib.closing(Site(fleet)) as site:
        _, console = browse(
            tmp_path, f"{site.address}/", f"--screenshot={picture}", "--window-size=1400,1500"
        )
    assert console == ""
    assert "/static/style.css" in site.counted.asked
    data = picture.read_bytes()
    assert struct.unpack(">II", data[16:24]) == (1400, 1500)
    assert len(data) > 40_000  # an unstyled or empty page is far smaller
