"""`twinlock-agent`: one command line, and the place where every failure becomes one line and an exit code.

    error[code]: what -- hint: what to do      (with --json: {"version":1,"error":{"code","what","hint"}})

Nothing but argparse is imported for `--help` and `--version`; each command imports what it needs when it
runs.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Final

from twinlock import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twinlock.core.errors import TwinlockError

INTERRUPTED: Final = 130
HELP_WIDTH: Final = 90
DEFAULT_CONFIG: Final = "/etc/twinlock/agent.toml"
# Each module has `command(config_path, args) -> exit code`.
COMMANDS: Final = {
    "run": ("twinlock.agent.run", "settle a trial, ask the server, install what it assigns"),
    "enrol": ("twinlock.agent.enrol", "make this device's key and make it known to the server"),
    "csr": ("twinlock.agent.csr", "print a certificate request for this device's key, for the fleet's CA"),
    "check": ("twinlock.agent.check", "the metadata process that `run` starts"),
    "status": ("twinlock.agent.status", "what this device runs and what the agent is doing"),
    "doctor": ("twinlock.agent.doctor.command", "look at this device: what is wrong, and how to mend it"),
}


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(
        prog="twinlock-agent",
        formatter_class=_formatter,
        description="Keeps this device's system up to date: two slots, one lock.",
        epilog="exit codes: 0 done; 10 a reboot is wanted; 2 to 8 the kind of the error; 70 a fault of ours",
    )
    top.add_argument("--version", action="version", version=f"twinlock-agent {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _common(top, DEFAULT_CONFIG, as_json=False)
    for name, (_, text) in COMMANDS.items():
        one = commands.add_parser(name, help=text, description=text, formatter_class=_formatter)
        _common(one, argparse.SUPPRESS, as_json=argparse.SUPPRESS)
        if name == "enrol":
            one.add_argument(
                "--token", default=None, help="one-time enrolment token, if the server wants one"
            )
            one.add_argument(
                "--new-identity",
                action="store_true",
                help="take another key on the PKCS#11 token: the one that was enrolled is lost",
            )
        if name == "doctor":
            one.add_argument(
                "--online", action="store_true", help="also reach the server, as the health gate does"
            )
    return top


def _formatter(prog: str) -> argparse.HelpFormatter:
    """With a width given: else argparse imports shutil, and all compressors with it, to find it out."""
    return argparse.HelpFormatter(prog, width=HELP_WIDTH)


def _common(where: argparse.ArgumentParser, config: str, as_json: bool | str) -> None:
    """Options that may stand before or behind the command."""
    where.add_argument("--config", default=config, metavar="FILE", help=f"default: {DEFAULT_CONFIG}")
    where.add_argument(
        "--json", default=as_json, action="store_true", help="print results and errors as JSON"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit code. Usage errors end in argparse's own exit code 2."""
    args = parser().parse_args(argv)
    from pathlib import Path

    # Before anything else imports what they import.
    import_module("twinlock.agent.lean_check" if args.command == "check" else "twinlock.agent.lean")
    from twinlock.core.errors import TwinlockError

    try:
        command = import_module(COMMANDS[args.command][0]).command
        return int(command(Path(args.config), args))
    except TwinlockError as problem:
        show(problem, as_json=args.json)
        return problem.exit_code
    except OSError as problem:
        from twinlock.core.durable import os_error

        failure = os_error(problem, str(problem.filename or "a file or device"))
        show(failure, as_json=args.json)
        return failure.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as problem:  # noqa: BLE001  the boundary: no traceback reaches a user
        failure = internal(problem)
        show(failure, as_json=args.json)
        return failure.exit_code


def internal(problem: Exception) -> TwinlockError:
    """A fault of ours as an error that names itself and the places in the code on the way to it."""
    from twinlock.core.errors import error

    at = problem.__traceback__
    places = []
    while at is not None:
        places.append(f"{at.tb_frame.f_code.co_filename.rpartition('/')[2]}:{at.tb_lineno}")
        at = at.tb_next
    return error("internal", f"{type(problem).__name__}: {problem} (at {' > '.join(places[-6:])})")


def show(problem: TwinlockError, *, as_json: bool) -> None:
    """One line on standard error."""
    if as_json:
        import json

        body = {"code": problem.code, "what": problem.what, "hint": problem.hint}
        line = json.dumps({"version": 1, "error": body})
    else:
        line = f"error[{problem.code}]: {_one_line(problem.what)} -- hint: {_one_line(problem.hint)}"
    print(line, file=sys.stderr)


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


if __name__ == "__main__":
    sys.exit(main())
