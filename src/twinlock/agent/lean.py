"""Importing this imports msgspec without a neighbour that it takes along when it finds it.

msgspec asks for typing_extensions before it falls back to `typing`, which has all that it needs on the
Pythons that we support. Where something else has installed that package, asking costs each process of the
agent time and memory. So a program of the agent imports this module first.
"""

from __future__ import annotations

import sys
from importlib import import_module


def import_without(needed: str, unwanted: str) -> None:
    """Imports `needed` as if `unwanted` were not installed. Does nothing when either is loaded already.

    `unwanted` can be imported as ever afterwards.
    """
    if needed in sys.modules or unwanted in sys.modules:
        return
    sys.modules[unwanted] = None  # type: ignore[assignment]  # to the import system: there is no such module
    try:
        import_module(needed)
    finally:
        del sys.modules[unwanted]


import_without("msgspec", "typing_extensions")
