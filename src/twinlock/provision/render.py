"""Fills the `@NAME@` places of the scripts and units that ship with this package."""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING, Final

from twinlock.core.errors import error

if TYPE_CHECKING:
    from collections.abc import Mapping

_PLACE: Final = re.compile(r"@([A-Z][A-Z0-9_]*)@")


def render(template: str, values: Mapping[str, str]) -> str:
    """`template` with every place filled, once: a value is never read for places again.

    Raises InternalError `internal` for a place without a value, or a value that no place asks for.
    """
    places = set(_PLACE.findall(template))
    if places != set(values):
        raise error("internal", f"a template's places and values differ: {sorted(places ^ set(values))}")
    return _PLACE.sub(lambda match: values[match[1]], template)


def shipped(*parts: str) -> str:
    """The text of a file of this package, such as `shipped("scripts", "boot.cmd")`."""
    return resources.files("twinlock.provision").joinpath(*parts).read_text("utf-8")
