"""`twinlock lab`: updates broken on purpose, on virtual devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Annotated, Any, Final

import typer

from twinlock.cli import lab_devices
from twinlock.cli.output import JsonOption, Output, Table
from twinlock.core.errors import error
from twinlock.lab.crash import visit
from twinlock.lab.crash.kinds import LOADERS
from twinlock.lab.crash.visit import Replay, Result, Settings, Violation

app: Final = typer.Typer(no_args_is_help=True, help="Break updates on virtual devices, on purpose.")

SHOWN_MAX: Final = 50  # violations in text; --json has them all
SEED_MAX: Final = (1 << 63) - 1
lab_devices.register(app)


@app.callback()
def lab() -> None:
    """Break updates on virtual devices, on purpose, and see what is left."""


# --- enumerate --------------------------------------------------------------------------------------------


@app.command("enumerate")
def enumerate_states(
    loader: Annotated[
        list[str] | None,
        typer.Option("--loader", metavar="NAME", help=f"Only this one; repeat it: {', '.join(LOADERS)}."),
    ] = None,
    bound: Annotated[
        int,
        typer.Option(
            "--bound",
            min=visit.BOUND_MIN,
            max=visit.BOUND_MAX,
            metavar="N",
            help="How many subsets of what was not flushed to visit for one crash point, at most.",
        ),
    ] = visit.BOUND,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=SEED_MAX, help="Draws the subsets beyond the bound.")
    ] = 0,
    again: Annotated[
        int,
        typer.Option(
            "--again", min=0, max=10_000, metavar="N", help="How many recoveries of a run are cut again."
        ),
    ] = visit.AGAIN,
    state: Annotated[
        str | None, typer.Option("--state", metavar="ID", help="Look at this one state closely instead.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Visit every crash state of an update, and see that a complete release boots and the agent recovers.

    The agent's own code goes through an update that works, one that is rolled back and one that never comes
    up, over storage in memory that remembers what was not flushed. The power is cut after every write and
    flush; at each cut every subset of what was not flushed is visited, as far as the bound goes.

    Example: twinlock lab enumerate --loader grub --bound 256
    """
    output = Output(as_json)
    if state is not None:
        _show_state(output, state)
        return
    settings = Settings(tuple(dict.fromkeys(loader or LOADERS)), bound, seed, again)
    with ExitStack() as bars:

        def begin(points: int) -> Callable[[int], None]:
            return bars.enter_context(output.steps("crash points", points))

        result = visit.Enumeration(settings).run(begin)
    output.show(_data(result, settings), *_texts(result, settings))
    if result.violations:
        raise error("lab-violations", f"{len(result.violations)} violations in {result.count} crash states")


def _data(result: Result, settings: Settings) -> dict[str, Any]:
    return {
        "states": result.count,
        "violations": [_violation_data(one) for one in result.violations],
        "loaders": {
            name: {phase: result.states[name, phase] for phase in _phases(result)}
            for name in settings.loaders
        },
        "crash_points": result.points,
        "crash_points_exhaustive": result.exhaustive,
        "recoveries_run": result.recoveries,
        "recoveries_checked": result.proofs,
        "boots": result.boots,
        "bound": settings.bound,
        "seed": settings.seed,
        "again": settings.again,
    }


def _violation_data(one: Violation) -> dict[str, Any]:
    return {
        "state": one.state,
        "loader": one.loader,
        "phase": one.phase,
        "call": one.call,
        "what": one.what,
    }


def _phases(result: Result) -> list[str]:
    return list(dict.fromkeys(phase for _, phase in result.states))


def _texts(result: Result, settings: Settings) -> list[str | Table]:
    phases = _phases(result)
    rows = [_row(name, [result.states[name, phase] for phase in phases]) for name in settings.loaders]
    if len(rows) > 1:
        rows.append(
            _row("all", [sum(result.states[name, phase] for name in settings.loaders) for phase in phases])
        )
    texts: list[str | Table] = [
        Table(["loader", *phases, "states"], rows, title="Crash states by loader and phase"),
        f"{result.count:,} states at {result.points:,} crash points; every subset at "
        f"{result.exhaustive:,} of them, up to {settings.bound} at the others (seed {settings.seed})",
        f"{result.recoveries:,} recoveries run, {result.boots:,} boots; all other states are like one of "
        f"these, checked on {result.proofs}",
        f"violations: {len(result.violations)}",
    ]
    if result.violations:
        shown = result.violations[:SHOWN_MAX]
        rows = [[one.state, one.phase, one.call, one.what] for one in shown]
        texts.append(Table(["state", "phase", "call", "what"], rows))
        if len(shown) < len(result.violations):
            texts.append(f"and {len(result.violations) - len(shown)} more: --json lists them all")
    return texts


def _row(name: str, counts: Sequence[int]) -> list[str]:
    return [name, *(f"{count:,}" for count in counts), f"{sum(counts):,}"]


# --- one state --------------------------------------------------------------------------------------------


def _show_state(output: Output, name: str) -> None:
    found = visit.replay(name)
    output.show(_replay_data(name, found), *_replay_texts(found))
    if found.violations:
        raise error("lab-violations", f"state {name}: {found.violations[0]}")


def _replay_data(name: str, found: Replay) -> dict[str, Any]:
    return {
        "state": name,
        "phase": found.point.phase,
        "call": found.point.label,
        "unflushed": [{"unit": unit, "fate": fate} for unit, fate in found.units],
        "starts": found.starts,
        "log": found.log,
        "reports": [{"state": state, "code": code} for state, code in found.reports],
        "violations": found.violations,
    }


def _replay_texts(found: Replay) -> list[str | Table]:
    rows = [list(row) for row in found.units]
    told = ", ".join(f"{state} {code}".strip() for state, code in found.reports)
    return [
        f"The power goes after: {found.point.label} ({found.point.phase})",
        Table(["not flushed", "then"], rows, empty="everything is flushed"),
        f"The loader would start, in this order: {', '.join(found.starts)}",
        "What happens from there:",
        *(f"  {line}" for line in found.log),
        f"The server is told: {told or 'nothing'}",
        *(f"VIOLATION: {what}" for what in found.violations),
        f"violations: {len(found.violations)}",
    ]


lab_devices.register(app)
