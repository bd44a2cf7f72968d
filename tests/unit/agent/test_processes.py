"""The two processes: what each loads, how one starts the other, and what happens when the other dies."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import textwrap
import time
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest

from tests.unit.agent.fakes import FakeRandom, config_for
from twinlock.agent import identity
from twinlock.agent.checker import ChildChecker
from twinlock.agent.plan import CheckAnswer, CheckRequest
from twinlock.agent.store import FolderStore
from twinlock.core import bootrecord
from twinlock.core.errors import TwinlockError

WAIT_S = 120.0


def device(folder: Path, server: str = "http://127.0.0.1:9") -> Path:
    """A device's files and configuration; gives the configuration's path. Nothing listens on port 9."""
    (folder / "state").mkdir()
    (folder / "disk").write_bytes(bytes(4 << 20))
    (folder / "record").write_bytes(bootrecord.encode(bootrecord.initial()) * 16)
    (folder / "booted.json").write_text('{"slot":"a","boot_id":"1"}', encoding="utf-8")
    path = folder / "agent.toml"
    path.write_text(
        f"""
server = "{server}"
hardware = "board"
product = "demo"
state = "{folder}/state"
[slots.a]
path = "{folder}/disk"
size_bytes = {2 << 20}
[slots.b]
path = "{folder}/disk"
offset_bytes = {2 << 20}
size_bytes = {2 << 20}
[boot]
path = "{folder}/record"
booted = "{folder}/booted.json"
offset_bytes = [0, 4096]
[reboot]
mode = "exit"
[network]
retries = 0
connect_timeout_s = 2.0
""",
        encoding="utf-8",
    )
    return path


def agent(config: Path, *args: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "twinlock.agent.main", "--config", str(config), *args]
    return subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=WAIT_S)


def modules_after(config: Path, command: str) -> set[str]:
    code = textwrap.dedent(
        f"""
        import sys
        from twinlock.agent.main import main
        main(["{command}", "--config", {str(config)!r}])
        print("MODULES", *sys.modules)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=WAIT_S
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("MODULES")]
    assert lines, done.stderr
    return set(lines[0].split())


def under(modules: set[str], *roots: str) -> set[str]:
    return {name for name in modules if name.split(".")[0] in roots}


def test_run_never_loads_metadata_libraries(tmp_path: Path) -> None:
    modules = modules_after(device(tmp_path), "run")
    assert "twinlock.agent.install" in modules
    assert (
        under(modules, "tuf", "securesystemslib", "cryptography", "urllib3", "asyncio", "requests") == set()
    )
    assert not {name for name in modules if name.startswith("twinlock.core.trust")}


def test_check_loads_them_and_neither_slots_nor_decoder(tmp_path: Path) -> None:
    config = device(tmp_path)
    agent(config, "enrol")  # fails, since nobody is there, but leaves the key
    modules = modules_after(config, "check")
    assert {"tuf", "cryptography"} <= modules
    assert under(modules, "urllib3", "asyncio", "requests", "backports") == set()
    assert "twinlock.agent.install" not in modules
    assert "twinlock.agent.pull" not in modules


@pytest.mark.parametrize("command", ["run", "check", "status"])
def test_no_command_loads_what_msgspec_can_do_without(tmp_path: Path, command: str) -> None:
    """It is installed here, and found when it is asked for."""
    modules = modules_after(device(tmp_path), command)
    assert "msgspec" in modules
    assert "typing_extensions" not in modules
    assert find_spec("typing_extensions") is not None


def test_a_check_loads_no_signer_for_tokens(tmp_path: Path) -> None:
    config = device(tmp_path)
    agent(config, "enrol")
    modules = modules_after(config, "check")
    assert "securesystemslib.signer" in modules
    assert under(modules, "pkcs11", "asn1crypto", "typing_extensions") == set()
    assert find_spec("pkcs11") is not None


def test_what_was_left_out_can_be_imported_afterwards() -> None:
    code = "import twinlock.agent.lean_check, pkcs11, typing_extensions; print(pkcs11.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S)
    assert (done.returncode, done.stdout) == (0, "pkcs11\n"), done.stderr


def test_a_run_without_a_server_says_so_in_one_line(tmp_path: Path) -> None:
    config = device(tmp_path)
    assert agent(config, "enrol").returncode == 3
    done = agent(config, "run")
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("error[server-unreachable]: http://127.0.0.1:9")
    assert done.stderr.count("\n") == 1


def test_a_run_before_enrolment_names_the_command(tmp_path: Path) -> None:
    done = agent(device(tmp_path), "--json", "run")
    assert done.returncode == 6
    line = done.stderr.splitlines()[-1]
    assert json.loads(line)["error"]["code"] == "identity-missing"
    assert "twinlock-agent enrol" in json.loads(line)["error"]["hint"]


def test_check_by_hand_needs_no_parent(tmp_path: Path) -> None:
    config = device(tmp_path)
    agent(config, "enrol")
    done = agent(config, "check")
    assert done.returncode == 3
    assert "error[server-unreachable]" in done.stderr


# --- the checker


def checker(folder: Path, program: str, timeout_s: float = 20.0) -> ChildChecker:
    """A checker whose child is this program instead of the agent."""
    fake = folder / "python"
    fake.write_text(f"#!/bin/sh\n{program}\n", encoding="utf-8")
    fake.chmod(0o755)
    store = FolderStore(folder / "state")
    return ChildChecker(store, FakeRandom(), folder / "agent.toml", timeout_s, None, (str(fake),))


@pytest.fixture
def program(tmp_path: Path) -> Path:
    device(tmp_path)
    return tmp_path


def code_of(asked: ChildChecker) -> tuple[str, str]:
    with pytest.raises(TwinlockError) as caught:
        asked.check(CheckRequest(mode="poll"))
    return caught.value.code, caught.value.what


def test_the_answer_must_be_to_this_question(program: Path) -> None:
    stale = msgspec.json.encode(CheckAnswer(nonce="of yesterday")).decode()
    said = f"cat > /dev/null; echo '{stale}' > {program}/state/checked.json"
    assert code_of(checker(program, said))[0] == "internal"


def test_the_answer_is_taken_with_its_nonce(program: Path) -> None:
    said = (
        f"""nonce=$(sed 's/.*"nonce":"\\([0-9a-f]*\\)".*/\\1/'); """
        f"""echo "{{\\"nonce\\":\\"$nonce\\",\\"wait_s\\":5}}" > {program}/state/checked.json"""
    )
    assert checker(program, said).check(CheckRequest(mode="poll")).wait_s == 5


@pytest.mark.parametrize(
    ("said", "named"),
    [("kill -9 $$", "signal 9"), ("echo broken >&2; exit 3", "broken"), ("exit 0", "exit code 0")],
)
def test_a_child_that_dies_is_named(program: Path, said: str, named: str) -> None:
    code, what = code_of(checker(program, f"cat > /dev/null; {said}"))
    assert code == "internal"
    assert named in what


def test_a_child_that_hangs_is_ended(program: Path) -> None:
    started = time.monotonic()
    assert code_of(checker(program, "exec sleep 60", 0.5))[0] == "transfer-stalled"
    assert time.monotonic() - started < 20


def test_a_child_that_does_not_start(program: Path) -> None:
    asked = checker(program, "")
    (program / "python").unlink()
    assert code_of(asked)[0] == "internal"


def test_the_child_ends_with_its_parent_and_the_lock_with_both(tmp_path: Path) -> None:
    """A run that is killed while its child waits for a server that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = device(tmp_path, f"http://127.0.0.1:{listener.getsockname()[1]}")
        identity.load_or_make(FolderStore(tmp_path / "state"), config_for(tmp_path))
        argv = [sys.executable, "-m", "twinlock.agent.main", "--config", str(config), "run"]
        run = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        listener.settimeout(WAIT_S)
        connection, _ = listener.accept()  # the child is at work
        with connection:
            children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
            assert len(children) == 1
            busy = agent(config, "check")
            assert busy.returncode == 6
            assert "agent-busy" in busy.stderr
            run.send_signal(signal.SIGKILL)
            run.wait()
            until = time.monotonic() + WAIT_S
            while _lives(int(children[0])):
                assert time.monotonic() < until, "the child outlives its parent"
                time.sleep(0.01)
    done = agent(config, "run")
    assert "agent-busy" not in done.stderr
    assert done.returncode == 3


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
