"""Memory that stays with a decoder: asked for where there is such a setting, and done without elsewhere."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from twinlock.core.payload.heap import keep_free_memory

# Takes and frees some MiB, as segments do, and says how often the system had to give a page.
PROGRAM = """
import resource
from twinlock.core.payload.heap import keep_free_memory
{call}
def take():
    held = [bytearray(b"x") * (size << 20) for size in (4, 1, 3, 2)]
for _ in range(5):
    take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call: str) -> int:
    argv = [sys.executable, "-c", PROGRAM.format(call=call)]
    return int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)


def test_free_memory_is_used_again() -> None:
    kept, given_back = faults("assert keep_free_memory()"), faults("")
    print(kept, given_back)
    assert 10 * kept < given_back


def test_a_library_without_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    assert not keep_free_memory()
