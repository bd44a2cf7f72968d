"""The tutorial, run as it is written: its code blocks in order, in one shell, in an empty folder."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from tests.project_files import ROOT

PAGE = ROOT / "docs/tutorial/first-release.md"
AGENT_RUN = "twinlock-agent --config device/agent.toml run"
# What a reader does by waiting: the server in the background has to be up before the next command.
WAIT = """
for _ in $(seq 300); do
    python3 -c 'import socket; socket.create_connection(("127.0.0.1", PORT)).close()' 2>/dev/null && break
    sleep 0.1
done"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def script(port: int) -> str:
    """The page's code blocks as one shell script, on another port, ending the server at its end."""
    blocks = re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    text = "\n".join(re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in blocks)
    assert text.count("--port 8000 &") == 1
    assert text.count(AGENT_RUN) == 2
    text = text.replace(AGENT_RUN, f"{AGENT_RUN} || echo exit code $?")
    text = text.replace("--port 8000 &", "--port 8000 &\ntrap 'kill %1; wait' EXIT" + WAIT)
    return "set -eu\n" + text.replace("8000", str(port)).replace("PORT", str(port))


def test_the_tutorial_works_as_written(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("TWINLOCK_")}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script(free_port())],
        cwd=tmp_path,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "exit code 10" in done.stdout
    assert done.stdout.count("exit code") == 1
    assert "progress: 1 succeeded" in done.stdout
    assert "committed slot b: gateway 1.1" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
