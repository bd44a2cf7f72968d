"""What takes one check out of the program: source text, and what is put in its place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """One place in one module: `old`, which must be there exactly once, becomes `new`."""

    module: str
    old: str
    new: str


def core(module: str, old: str, new: str) -> tuple[Edit, ...]:
    """An edit of a module of `twinlock.core`."""
    return (Edit(f"twinlock.core.{module}", old, new),)


def agent(module: str, old: str, new: str) -> tuple[Edit, ...]:
    """An edit of a module of `twinlock.agent`."""
    return (Edit(f"twinlock.agent.{module}", old, new),)


def server(module: str, old: str, new: str) -> tuple[Edit, ...]:
    """An edit of a module of `twinlock.server`."""
    return (Edit(f"twinlock.server.{module}", old, new),)
