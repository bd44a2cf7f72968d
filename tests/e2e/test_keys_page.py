"""The page about keys, run as it is written: the code blocks of each part in order, in a shell of its own.

What the page leaves to the reader is set up here: a release folder, a server, a yes where holders are asked.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.test_tutorial import WAIT, free_port
from tests.project_files import ROOT

PAGE = ROOT / "docs/how-to/keys.md"
WAITS = "|| echo waits: exit code $?"
PACK = "twinlock release pack image --product gateway --version {0} --hardware board-1 >/dev/null"
SERVE = """
twinlock --version
twinlock server init srv --root repo/metadata/1.root.json --json > made.json
python3 -c 'import json; print(json.load(open("made.json"))["token"])' > token
twinlock server run srv --port PORT & trap 'kill %1; wait' EXIT
export TWINLOCK_SERVER=http://127.0.0.1:PORT
"""


def commands(title: str) -> str:
    """The code blocks of one part of the page."""
    text = PAGE.read_text(encoding="utf-8")
    part = text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]
    blocks = re.findall(r"(?:^    .*\n(?:\n(?=    ))?)+", part, re.MULTILINE)
    return "\n".join(re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in blocks)


def run(folder: Path, *parts: str) -> str:
    """What the parts print, one after the other in one shell in `folder`, which ends at the first failure."""
    (folder / "image").write_bytes(random.Random(7).randbytes(64 * 1024))
    env = {name: value for name, value in os.environ.items() if not name.startswith("TWINLOCK_")}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    script = "\n".join(("set -eu", PACK.format("1.0"), *parts)).replace("PORT", str(free_port()))
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "Traceback" not in said
    return said


def waiting(text: str, *beginnings: str) -> str:
    """The commands that begin so wait for signatures of others: the page says that they end with a code."""
    for one in beginnings:
        assert len(re.findall(f"^{re.escape(one)}.*$", text, re.MULTILINE)) == 1, one
        text = re.sub(f"^({re.escape(one)}.*)$", rf"\1 {WAITS}", text, flags=re.MULTILINE)
    return text


def test_one_person(tmp_path: Path) -> None:
    said = run(tmp_path, commands("One person, to try it"), "twinlock release verify")
    assert "In force now: targets 1, snapshot 1, timestamp 1" in said


def test_several_people_who_never_meet(tmp_path: Path) -> None:
    text = commands("Several people, who never meet")
    text = re.sub(r"^(twinlock release sign --request .*)$", r"\1 --yes", text, flags=re.MULTILINE)
    text = waiting(text, "twinlock keys init --keys", "twinlock release sign gateway-1.0 --keys online-keys")
    said = run(tmp_path, text, "twinlock release verify")
    assert said.count("waits: exit code 2") == 2
    assert "In force now: targets 1, snapshot 1, timestamp 1" in said


def test_product_lines(tmp_path: Path) -> None:
    """The line's holder signs too, or the release waits; taken back, only the targets keys sign."""
    text = commands("Product lines, and many releases")
    begun = commands("One person, to try it")
    text = text.replace(
        "twinlock keys delegate gateway --key", "cp gate-keys/* keys\ntwinlock keys delegate gateway --key"
    )
    said = run(tmp_path, begun, text, "twinlock release verify", PACK.format("1.1"))
    assert "In force now: gateway 1, targets 2" in said
    assert "In force now: targets 3" in said


def test_every_day_and_changing_keys(tmp_path: Path) -> None:
    begun = (
        commands("One person, to try it") + "\nmkdir online-keys && cp keys/*snap* keys/*time* online-keys"
    )
    daily = commands("Every day or two")
    changed = commands("Changing keys").replace("3f8a12", "$OLD").replace("bob.pub", "bob/targets-bob.pub")
    second = """
        twinlock keys create --role targets --name bob --keys bob && cp bob/* keys/
        OLD=$(twinlock keys list --keys keys --json | python3 -c 'import json, sys
for one in json.load(sys.stdin)["keys"]:
    if (one["role"], one["name"]) == ("targets", "main"): print(one["key_id"][:12])')
    """
    said = run(
        tmp_path,
        begun,
        SERVE,
        WAIT.strip(),
        daily,
        second,
        changed,
        "twinlock release list --token-file token",
    )
    assert "root 2" in said
    assert "targets 2" in said
