"""Byte code for a device's Python, made where its file system is built."""

from __future__ import annotations

import py_compile
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def compile_for_device(path: Path, inside: str) -> Path:
    """Compiles the module `path`, which a device sees as `inside`, and returns the file with its byte code.

    It lies where a device looks for it, wherever this machine keeps its own (PYTHONPYCACHEPREFIX). It is of
    the unchecked kind (PEP 552): it holds no time, so that the same modules give the same files.

    Raises py_compile.PyCompileError for a file that is no module of this Python.
    """
    compiled = path.parent / "__pycache__" / f"{path.stem}.{sys.implementation.cache_tag}.pyc"
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(path), str(compiled), inside, doraise=True, optimize=0, invalidation_mode=mode)
    return compiled
