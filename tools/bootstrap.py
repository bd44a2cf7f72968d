"""Set up a fresh machine: Debian packages, uv, a virtual environment, the hashed locks, the project itself.

    python3 tools/bootstrap.py demo|test       what that make target needs (TWINLOCK_LONG=1: long tests too)
    python3 tools/bootstrap.py bench [NAME]    what one benchmark needs, or all of them
    python3 tools/bootstrap.py uv              uv alone; prints its path

Needs only Python's standard library. A second run with nothing changed does nothing but compare hashes. An
interrupted run is repeated in full: the stamp is written last.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

from pip_settings import uv_environment

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"
VENV = ROOT / ".venv"
UV_MIN = (0, 8)
# What each command needs: sets of Debian packages (see tools/packages.txt) and lock files.
PACKAGE_SETS = {"demo": ("demo",), "test": ("demo", "test"), "bench": ("demo", "bench-*")}
LONG_SET = "long"  # what only the tests behind TWINLOCK_LONG=1 need
LOCKS = {"demo": ("build", "lab"), "test": ("dev",), "bench": ("dev",)}
SYSTEM_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # often missing from a user's PATH


class SetupError(Exception):
    """What is missing, and what to do about it."""


def say(line: str) -> None:
    print(f"twinlock: {line}", file=sys.stderr, flush=True)


def run(argv: list[str], env: dict[str, str] | None = None) -> None:
    """Run a command whose output matters only when it fails."""
    done = subprocess.run(
        argv, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        sys.stderr.buffer.write(done.stdout)
        sys.stderr.flush()
        raise SetupError(f"`{' '.join(argv)}` ended with {done.returncode}; its own words stand above")


def listed_packages(wanted: tuple[str, ...]) -> list[tuple[str, list[str], str]]:
    """(package, commands or files that prove it, reason) for the wanted sets of tools/packages.txt."""
    rows = []
    for line in (ROOT / "tools/packages.txt").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            which, package, proofs, reason = (part.strip() for part in line.split("|"))
            if any(fnmatchcase(which, pattern) for pattern in wanted):
                rows.append((package, proofs.split(","), reason))
    return rows


def wanted_sets(argv: list[str], env: dict[str, str]) -> tuple[str, ...]:
    """The sets of packages that a command line of this program asks for."""
    if len(argv) == 2:
        return ("demo", f"bench-{argv[1]}")
    long = argv[0] == "test" and env.get("TWINLOCK_LONG") == "1"
    return (*PACKAGE_SETS[argv[0]], LONG_SET) if long else PACKAGE_SETS[argv[0]]


def present(proof: str) -> bool:
    if proof.startswith("/"):
        return Path(proof).exists()
    path = os.pathsep.join([os.environ.get("PATH", ""), *SYSTEM_PATH])
    return shutil.which(proof, path=path) is not None


def install_packages(missing: list[tuple[str, str]]) -> None:
    """Install Debian packages when root; else say which are missing and why they are needed."""
    if not missing:
        return
    names = [name for name, _ in missing]
    table = "\n".join(f"    {name:16} {reason}" for name, reason in missing)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise SetupError(
            f"these Debian packages are missing:\n{table}\n  install them as root, then run this again:\n"
            f"    apt-get install --no-install-recommends {' '.join(names)}"
        )
    say(f"installing Debian packages: {' '.join(names)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-qq"], env)
    run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *names], env)


def venv_packages() -> list[tuple[str, str]]:
    """What the standard library's venv lacks on Debian, when uv has to be installed with it.

    The package carries this Python's version: python3.12 on Ubuntu needs python3.12-venv.
    """
    if find_uv() or (importlib.util.find_spec("ensurepip") and importlib.util.find_spec("venv")):
        return []
    name = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
    return [(name, "makes the folder that uv is installed into")]


def uv_version(path: str) -> tuple[int, ...] | None:
    """The version that this uv reports, or None when it does not run."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError:
        return None
    words = done.stdout.split()
    if done.returncode or len(words) < 2 or words[0] != "uv":
        return None
    return tuple(int(part) for part in words[1].split(".") if part.isdecimal())


def find_uv() -> str | None:
    """A uv that runs and is new enough: the machine's own, else the one in .tools."""
    for candidate in (shutil.which("uv"), str(TOOLS / "uv/bin/uv")):
        if candidate and (uv_version(candidate) or (0,)) >= UV_MIN:
            return candidate
    return None


def ensure_uv() -> str:
    """Path of a usable uv; installs the locked one into .tools when the machine has none."""
    found = find_uv()
    if found:
        return found
    install_packages(venv_packages())
    say("installing uv into .tools")
    run([sys.executable, "-m", "venv", "--clear", str(TOOLS / "uv")])
    pip = str(TOOLS / "uv/bin/pip")
    run(
        [pip, "install", "-q", "--disable-pip-version-check", "--require-hashes", "-r", "requirements/uv.txt"]
    )
    found = find_uv()
    if not found:
        raise SetupError(
            "uv was installed into .tools/uv but does not run there; remove .tools and try again"
        )
    return found


def usable_environment(env: dict[str, str]) -> dict[str, str]:
    """uv's environment: pip's settings passed on, no Python of its own, a cache even without a home."""
    result = uv_environment(env)
    result["UV_PYTHON_DOWNLOADS"] = "never"
    result.pop("VIRTUAL_ENV", None)
    home = env.get("HOME", "")
    if not (home and os.access(home, os.W_OK)):
        result.setdefault("UV_CACHE_DIR", str(TOOLS / "cache"))
    return result


def state_hash(name: str, interpreter: str) -> str:
    """Changes when anything changes that the environment is made from, the checkout's own place included."""
    digest = hashlib.sha256(f"{ROOT}\0{interpreter}\0{sys.version}\0".encode())
    for lock in LOCKS[name]:
        digest.update((ROOT / f"requirements/{lock}.txt").read_bytes())
    digest.update((ROOT / "pyproject.toml").read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()


def venv_python() -> str | None:
    """The environment's interpreter when it runs and is one that the project supports."""
    python = VENV / "bin/python"
    check = "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))"
    try:
        done = subprocess.run([str(python), "-c", check], stdin=subprocess.DEVNULL, capture_output=True)
    except OSError:
        return None
    return str(python) if done.returncode == 0 else None


def stamp_of(name: str) -> Path:
    return VENV / f".twinlock-{name}"


def up_to_date(name: str) -> bool:
    """Whether .venv was made from just what is here now."""
    stamp = stamp_of(name)
    return stamp.is_file() and stamp.read_text() == state_hash(name, sys.executable) and bool(venv_python())


def make_environment(name: str) -> None:
    """Make .venv hold the locked packages of `name` and the project itself, editable."""
    stamp_of(name).unlink(missing_ok=True)
    uv = ensure_uv()
    env = usable_environment(dict(os.environ))
    if venv_python() is None:
        run([uv, "venv", "-q", "--clear", "--python", sys.executable, str(VENV)], env)
    say(f"installing the locked packages for `{name}` into .venv")
    install = [uv, "pip", "install", "-q", "--python", str(VENV / "bin/python")]
    locks = [word for lock in LOCKS[name] for word in ("-r", f"requirements/{lock}.txt")]
    run([*install, "--require-hashes", *locks], env)
    run([*install, "--no-deps", "--no-build-isolation", "--editable", "."], env)
    stamp_of(name).write_text(state_hash(name, sys.executable))


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in (*LOCKS, "uv") or len(argv) > 1 + (argv[0] == "bench"):
        print(f"usage: bootstrap.py {'|'.join((*LOCKS, 'uv'))} [NAME of a benchmark]", file=sys.stderr)
        return 2
    TOOLS.mkdir(exist_ok=True)
    try:
        with (TOOLS / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two `make` at once take turns
            if argv[0] == "uv":
                print(ensure_uv())
                return 0
            rows = listed_packages(wanted_sets(argv, dict(os.environ)))
            missing = [(name, why) for name, proofs, why in rows if not all(map(present, proofs))]
            ready = up_to_date(argv[0])
            install_packages(missing if ready else missing + venv_packages())
            if not ready:
                make_environment(argv[0])
    except SetupError as error:
        print(f"twinlock: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
