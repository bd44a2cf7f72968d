"""The kernel fragments that ship with this package (`kernel/`), for `core.kernel_options` to compare with."""

from __future__ import annotations

from importlib import resources

from twinlock.core.errors import error
from twinlock.core.kernel_options import (
    CONFIG_SIZE_BYTES_MAX,
    Finding,
    Option,
    check,
    fragments_for,
    parse_config,
    parse_fragment,
)

__all__ = [
    "CONFIG_SIZE_BYTES_MAX",
    "Finding",
    "Option",
    "check",
    "fragment_names",
    "fragment_text",
    "fragments_for",
    "parse_config",
    "parse_fragment",
    "shipped_fragment",
]


def fragment_names() -> list[str]:
    """The fragments that ship with this package."""
    folder = resources.files("twinlock.provision").joinpath("kernel")
    return sorted(
        item.name.removesuffix(".config") for item in folder.iterdir() if item.name.endswith(".config")
    )


def fragment_text(name: str) -> str:
    """One of them as it is. Raises InputError `not-found` for another name."""
    if name not in fragment_names():
        raise error("not-found", f"there is no kernel fragment {name!r}: {', '.join(fragment_names())}")
    return resources.files("twinlock.provision").joinpath("kernel", f"{name}.config").read_text("utf-8")


def shipped_fragment(name: str) -> list[Option]:
    """The options of one of them. Raises InputError `not-found` for another name."""
    return parse_fragment(fragment_text(name), name)
