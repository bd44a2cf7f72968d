"""The tutorial, run as it is written: its code blocks in order, in one shell, in an empty folder."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.e2e import pages

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
    text = "\n".join(pages.blocks("tutorial/first-release.md"))
    assert text.count("--port 8000 &") == 1
    assert text.count(AGENT_RUN) == 2
    text = text.replace(AGENT_RUN, f"{AGENT_RUN} || echo exit code $?")
    text = text.replace("--port 8000 &", "--port 8000 &\ntrap 'kill %1; wait' EXIT" + WAIT)
    return text.replace("8000", str(port)).replace("PORT", str(port))


def test_the_tutorial_works_as_written(tmp_path: Path) -> None:
    done = pages.shell(script(free_port()), tmp_path)
    assert "exit code 10" in done.stdout
    assert done.stdout.count("exit code") == 1
    assert "progress: 1 succeeded" in done.stdout
    assert "committed slot b: gateway 1.1" in done.stderr
