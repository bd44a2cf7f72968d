"""`twinlock`: picks the group of commands, and turns every failure into one line and an exit code.

    error[code]: what -- hint: what to do        (with --json: {"version":1,"error":{"code","what","hint"}})

| exit code | meaning                                                        |
|-----------|----------------------------------------------------------------|
| 0         | done                                                           |
| 2 to 8    | the kind of the error, see `twinlock.core.errors`              |
| 70        | a fault in Twinlock; the trace is in the file that is named    |
| 130       | interrupted from the keyboard                                  |
| 141       | whoever read the output closed it                              |

Only the group that is asked for is imported, so `twinlock --help` is quick and works whatever extras are
installed; a library that is missing is named together with the command that installs it. Nothing but the
standard library, `core` and `cli.text` is imported at the top of this file.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Final

from twinlock import __version__
from twinlock.cli.text import error_text
from twinlock.core.durable import os_error
from twinlock.core.errors import TwinlockError, error

if TYPE_CHECKING:
    import typer

INTERRUPTED: Final = 130
OUTPUT_CLOSED: Final = 141
USAGE: Final = 2


@dataclass(frozen=True, slots=True)
class Group:
    """One group of commands: `twinlock.cli.NAME` holds its Typer `app`; `extra` installs what it needs."""

    help: str
    extra: str


GROUPS: Final[dict[str, Group]] = {
    "keys": Group("Make signing keys and start or rotate a repository's root of trust.", "publish"),
    "release": Group("Pack an image, sign it, publish it, and look inside releases.", "publish"),
    "server": Group("Set up and run an update server.", "server"),
    "device": Group("List, accept and reject devices.", "publish"),
    "rollout": Group("Bring a release to devices, follow it, halt it.", "publish"),
    "disk": Group("Make a device's disk image and prepare its root file system, offline.", "publish"),
    "kernel": Group("Check a kernel's configuration for what updates need.", "publish"),
    "lab": Group("Break updates on virtual devices, on purpose, and see what is left.", "lab"),
    "demo": Group("Show a whole update on this machine, from image to rollback.", "lab"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code; see the module docstring for all of them."""
    args = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in args
    try:
        code = _run(args)
        sys.stdout.flush()
    except TwinlockError as problem:
        return _fail(problem, as_json)
    except BrokenPipeError:
        _drop_output()
        return OUTPUT_CLOSED
    except OSError as problem:
        return _fail(os_error(problem, str(problem.filename or "a file or device")), as_json)
    except KeyboardInterrupt:
        return INTERRUPTED
    except ModuleNotFoundError as problem:
        return _fail(_missing(problem, args), as_json)
    except Exception as problem:  # noqa: BLE001  the boundary: no traceback reaches a user
        return _fail(_internal(problem), as_json)
    return code


def _run(args: list[str]) -> int:
    try:
        import typer

        from twinlock.cli.output import OutputClosedError
    except ModuleNotFoundError as problem:
        raise _missing(problem, args) from problem
    try:
        result = _app(args)(args=args, prog_name="twinlock", standalone_mode=False)
    except typer.Abort:
        return INTERRUPTED
    except OutputClosedError:
        _drop_output()
        return OUTPUT_CLOSED
    except typer.TyperException as problem:
        if _help_was_shown(problem):
            return USAGE
        raise _usage(problem) from problem
    except SystemExit as problem:
        return problem.code if isinstance(problem.code, int) else int(problem.code is not None)
    return result if isinstance(result, int) else 0


def _app(args: list[str]) -> typer.Typer:
    """The root, with the real commands of the group that `args` name and only a title for the others."""
    import typer

    app = typer.Typer(
        name="twinlock",
        help="Over-the-air system images for embedded Linux fleets: two slots, one lock.\n\n"
        "Start with `twinlock demo`, or `twinlock keys init --help` for a repository of your own.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def version(wanted: bool) -> None:
        if wanted:
            typer.echo(f"twinlock {__version__}")
            raise typer.Exit

    @app.callback()
    def root(
        version: bool = typer.Option(
            False, "--version", callback=version, is_eager=True, help="Print the version and end."
        ),
    ) -> None:
        del version  # its callback has ended the program if it was given

    chosen = next((arg for arg in args if not arg.startswith("-")), "")
    completing = "_TWINLOCK_COMPLETE" in os.environ
    for name, group in GROUPS.items():
        real = name == chosen or completing
        app.add_typer(_load(name) if real else _title_only(), name=name, help=group.help)
    return app


def _load(name: str) -> typer.Typer:
    app: typer.Typer = import_module(f"twinlock.cli.{name}").app
    return app


def _title_only() -> typer.Typer:
    import typer

    app = typer.Typer(no_args_is_help=True)
    app.callback()(lambda: None)
    return app


def _missing(problem: ModuleNotFoundError, args: list[str]) -> TwinlockError:
    """What to install for a module that is not there; a module of our own that is missing is our fault."""
    module = problem.name or "?"
    if module.split(".")[0] == "twinlock":
        return _internal(problem)
    name = next((arg for arg in args if arg in GROUPS), "")
    extra = GROUPS[name].extra if name else "publish"
    command = f"twinlock {name}".strip()
    return error(
        "package-missing",
        f"`{command}` needs the Python package of module {module!r}, which is not installed",
        hint=f"run: pip install 'twinlock[{extra}]'",
    )


def _help_was_shown(problem: typer.TyperException) -> bool:
    """Nothing was asked for, so Typer has printed the help already."""
    return type(problem).__name__ == "NoArgsIsHelpError"


def _usage(problem: typer.TyperException) -> TwinlockError:
    """A wrong command line as an error of the catalogue."""
    context = getattr(problem, "ctx", None)
    text = " ".join(problem.format_message().split())
    command = context.command_path if context is not None else "twinlock"
    return error("input-invalid", text, hint=f"see `{command} --help`")


def _internal(problem: BaseException) -> TwinlockError:
    trace = "".join(traceback.format_exception(problem))
    if os.environ.get("TWINLOCK_DEBUG") == "1":
        sys.stderr.write(trace)
        return error("internal", f"{type(problem).__name__}: {problem}")
    try:
        fd, name = tempfile.mkstemp(prefix="twinlock-fault-", suffix=".log")
        with os.fdopen(fd, "w", encoding="utf-8", errors="replace") as file:
            file.write(f"twinlock {__version__}, Python {sys.version}\n{trace}")
        hint = f"this is a fault in Twinlock: report it with the file {name}"
    except OSError:
        hint = "this is a fault in Twinlock: run it again with TWINLOCK_DEBUG=1 and report what it prints"
    return error("internal", f"{type(problem).__name__}: {problem}", hint=hint)


def _fail(problem: TwinlockError, as_json: bool) -> int:
    try:
        sys.stderr.write(error_text(problem, as_json) + "\n")
        sys.stderr.flush()
    except BrokenPipeError:
        _drop_output()
    return problem.exit_code


def _drop_output() -> None:
    """Points stdout at nothing, so that the interpreter's last flush does not fail as well."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)


if __name__ == "__main__":
    sys.exit(main())
