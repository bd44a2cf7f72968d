"""The hashed requirement files: complete, pinned, and silent about where packages come from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.project_files import ROOT

LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PINNED = re.compile(r"[a-z0-9-]+(\[[a-z0-9,-]+\])?==[0-9][0-9a-z.]*( ; [^;]+)?( --hash=sha256:[0-9a-f]{64})+")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def joined_lines(text: str) -> list[str]:
    """Requirements, one each, continuation lines joined."""
    return [" ".join(line.split()) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def locked(name: str, python: str) -> dict[str, Requirement]:
    """What `requirements/NAME.txt` installs on Linux with this Python, by canonical name."""
    environment = {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
    }
    text = (ROOT / f"requirements/{name}.txt").read_text(encoding="utf-8")
    found = [Requirement(line.split(" --hash")[0]) for line in joined_lines(text)]
    return {
        canonicalize_name(r.name): r
        for r in found
        if r.marker is None or r.marker.evaluate({key: str(value) for key, value in environment.items()})
    }


def declared(name: str) -> list[Requirement]:
    """What pyproject.toml asks for in this set, extras that name other extras followed."""
    project = PROJECT["project"]
    if name == "build":
        return [Requirement(text) for text in PROJECT["build-system"]["requires"]]
    if name == "dev":
        return declared("lab") + [Requirement(text) for text in PROJECT["dependency-groups"]["dev"]]
    result = [Requirement(text) for text in project["dependencies"]]
    if name != "device":
        for text in project["optional-dependencies"][name]:
            requirement = Requirement(text)
            if requirement.name == "twinlock":
                for extra in requirement.extras:
                    result += declared(extra)
            else:
                result.append(requirement)
    return result


def test_every_set_has_a_lock() -> None:
    extras = set(PROJECT["project"]["optional-dependencies"])
    assert {path.stem for path in LOCKS} == {"uv", "build", "device", "dev", *extras}


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_lock_pins_and_hashes_each_line_and_names_no_place(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [line for line in joined_lines(text) if not PINNED.fullmatch(line)] == []
    assert re.findall(r"://|--(?:index|extra|find|trusted)\S*|@ |^#.*", text, re.MULTILINE) == []


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", sorted({path.stem for path in LOCKS} - {"uv"}))
def test_a_lock_covers_what_pyproject_asks_for(name: str, python: str) -> None:
    installed = locked(name, python)
    for requirement in declared(name):
        marker = requirement.marker
        if marker is not None and not marker.evaluate({"python_version": python}):
            continue
        pin = installed.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement} is not locked for Python {python}: run `make lock`"
        version = next(iter(pin.specifier)).version
        assert requirement.specifier.contains(version, prereleases=True), (
            f"{pin} is not {requirement}: run `make lock`"
        )


def test_every_set_holds_the_same_versions() -> None:
    pins = [(name, pin) for path in LOCKS for name, pin in locked(path.stem, "3.11").items()]
    versions: dict[str, set[str]] = {}
    for name, pin in pins:
        versions.setdefault(name, set()).add(str(pin.specifier))
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


@pytest.mark.parametrize(
    "line",
    [
        "msgspec==0.20",
        "msgspec>=0.20 --hash=sha256:" + "0" * 64,
        "msgspec @ file:///x --hash=sha256:" + "0" * 64,
        "--index-url x",
        "msgspec==0.20 --hash=md5:" + "0" * 64,
    ],
)
def test_a_loose_line_is_seen(line: str) -> None:
    assert PINNED.fullmatch(line) is None
