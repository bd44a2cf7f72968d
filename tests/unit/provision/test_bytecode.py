"""Byte code for devices: it lies where they look, the same each time, and holds where they see the module."""

from __future__ import annotations

import importlib.util
import py_compile
import sys
from pathlib import Path

import pytest

from twinlock.lab.qemu import system
from twinlock.provision.bytecode import compile_for_device


@pytest.fixture(params=[False, True], ids=["as usual", "the builder keeps its own elsewhere"])
def builder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path / "cache") if request.param else None)


@pytest.mark.usefixtures("builder")
def test_it_lies_where_a_device_looks(tmp_path: Path) -> None:
    made = []
    for folder in ("one", "two"):
        module = tmp_path / folder / "app.py"
        module.parent.mkdir()
        module.write_text("where = __file__\n", "ascii")
        made.append(compile_for_device(module, "/usr/lib/app.py"))
    assert made[0] == tmp_path / "one/__pycache__" / f"app.{sys.implementation.cache_tag}.pyc"
    first, second = (path.read_bytes() for path in made)
    assert first == second
    assert b"/usr/lib/app.py" in first
    assert first[:4] == importlib.util.MAGIC_NUMBER
    assert int.from_bytes(first[4:8], "little") == 0b01, "by hash, and not checked"
    assert not (tmp_path / "cache").exists()


def test_what_is_no_module_is_said(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("print 1\n", "ascii")
    with pytest.raises(py_compile.PyCompileError):
        compile_for_device(tmp_path / "bad.py", "/bad.py")


@pytest.mark.usefixtures("builder")
def test_the_labs_guests_have_it_for_the_whole_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it each start of the agent compiles what it loads: slower, and in 3 MiB more."""
    monkeypatch.setattr(
        "twinlock.lab.qemu.system.PYTHON_VERSION", f"{sys.version_info.major}.{sys.version_info.minor}"
    )
    library = tmp_path / f"usr/lib/python{system.PYTHON_VERSION}"
    (library / "json").mkdir(parents=True)
    for name in ("os.py", "json/__init__.py"):
        (library / name).write_text("x = 1\n", "ascii")
    (library / "bad.py").write_text("print 1\n", "ascii")
    system.compile_library(tmp_path)
    found = sorted(path.relative_to(library).as_posix() for path in library.rglob("*.pyc"))
    tag = sys.implementation.cache_tag
    assert found == [f"__pycache__/os.{tag}.pyc", f"json/__pycache__/__init__.{tag}.pyc"]
