"""Who may import which library, and which modules are pure: what import-linter's contracts cannot say.

The layers themselves are contracts in pyproject.toml, run by `make lint` and once more here.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection
from pathlib import Path

import pytest

from tests.project_files import ROOT, SRC, imports, module_name, parse, python_files

DEVICE_LIBRARIES = {"msgspec", "cryptography", "tuf", "backports.zstd", "bsdiff4", "compression.zstd"}
# Loaded by one process, which is started only where the configuration names a token.
PROCESS_LIBRARIES = {"twinlock.agent.pkcs11_process": {"pkcs11"}}
NETWORK = {"socket", "ssl", "http", "urllib", "asyncio", "selectors", "subprocess"}
IMPURE = NETWORK | {"os", "time", "random", "secrets", "pathlib", "tempfile", "io", "shutil", "threading"}
# Decisions only: state, event, time and randomness come in as arguments.
TO_COME = {"twinlock.server.gateways"}  # in the design, and in the contract already
PURE_MODULES = (
    "twinlock.agent.machine",
    "twinlock.server.rollouts.policy",
    "twinlock.server.rollouts.gate",
)


def under(name: str, roots: Collection[str]) -> bool:
    return any(name == root or name.startswith(root + ".") for root in roots)


def foreign_imports(tree: ast.Module, package: str, allowed: Collection[str]) -> list[str]:
    """Imports that are neither the standard library, nor Twinlock's own, nor allowed."""
    return [
        f"line {line}: {name}"
        for line, name in imports(tree, package)
        if name.split(".")[0] not in sys.stdlib_module_names - {"compression"}
        and not under(name, {"twinlock", "__future__", *allowed})
    ]


def impure_uses(tree: ast.Module, package: str) -> list[str]:
    """Imports of the outside world, and clocks read instead of handed in. `random.Random` is a type."""
    found = [
        f"line {line}: imports {name}"
        for line, name in imports(tree, package)
        if under(name, IMPURE) and name != "random.Random"
    ]
    found += [
        f"line {node.lineno}: {ast.unparse(node.func)} reads a clock"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("now", "utcnow", "today")
        and "datetime" in ast.unparse(node.func.value)
    ]
    return found


def package_of(path: Path) -> str:
    name = module_name(path)
    return name if path.name == "__init__.py" else name.rpartition(".")[0]


def modules_under(*roots: str) -> list[Path]:
    return [path for path in python_files("src") if under(module_name(path), roots)]


def test_core_and_agent_use_only_what_a_device_has() -> None:
    found = [
        f"{path.relative_to(SRC)} {offence}"
        for path in modules_under("twinlock.core", "twinlock.agent")
        for offence in foreign_imports(
            parse(path), package_of(path), DEVICE_LIBRARIES | PROCESS_LIBRARIES.get(module_name(path), set())
        )
    ]
    assert found == []


def test_core_knows_no_network_and_starts_no_process() -> None:
    found = [
        f"{path.relative_to(SRC)}:{line} {name}"
        for path in modules_under("twinlock.core")
        for line, name in imports(parse(path), package_of(path))
        if under(name, NETWORK)
    ]
    assert found == []


def test_pure_modules_touch_nothing() -> None:
    found = [
        f"{path.relative_to(SRC)} {offence}"
        for path in modules_under(*PURE_MODULES)
        for offence in impure_uses(parse(path), package_of(path))
    ]
    assert found == []


def test_contracts_name_what_exists() -> None:
    """A misspelt name in a contract would be one that may be missing: it would never bite."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = [
        layer for contract in project["tool"]["importlinter"]["contracts"] for layer in contract["layers"]
    ]
    named = {name for layer in layers for name in re.findall(r"\((twinlock[a-z_.]+)\)", layer)}
    there = {module_name(path) for path in python_files("src")}
    packages = {name.rpartition(".")[0] for name in there}
    assert named - there - packages <= TO_COME
    assert {name for name in there if re.fullmatch(r"twinlock\.[a-z]+", name)} <= named


def test_layer_contracts_hold() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("source", "offends"),
    [
        ("import os, hashlib\nfrom twinlock.core import limits\nfrom . import x\nimport msgspec", False),
        ("from backports.zstd import ZstdDecompressor\nfrom tuf.api.metadata import Root", False),
        ("def f():\n    import starlette", True),
        ("from backports import tarfile", True),
    ],
)
def test_foreign_imports_are_seen(source: str, offends: bool) -> None:
    assert bool(foreign_imports(ast.parse(source), "twinlock.core", DEVICE_LIBRARIES)) is offends


@pytest.mark.parametrize(
    ("source", "offends"),
    [
        ("from random import Random\nfrom datetime import datetime\nx = datetime(2026, 1, 1)", False),
        ("import random", True),
        ("from os import path", True),
        ("import datetime\nx = datetime.datetime.now()", True),
        ("from ..run import subprocess", False),
    ],
)
def test_impurity_is_seen(source: str, offends: bool) -> None:
    assert bool(impure_uses(ast.parse(source), "twinlock.agent.machine")) is offends
