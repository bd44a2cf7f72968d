"""What the commands of `keys` and `release` share: where repository and keys are, who is asked for what."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from twinlock.cli.output import Output
from twinlock.core.durable import read_bounded
from twinlock.core.errors import error
from twinlock.publish import expiry
from twinlock.publish.ceremony import Ceremony
from twinlock.publish.keys import KeyRing, check_role, list_keys
from twinlock.publish.repository import Repository
from twinlock.publish.signing import Lifetimes

PASSPHRASE_SIZE_BYTES_MAX: Final = 1024
PASSPHRASE_VARIABLE: Final = "TWINLOCK_PASSPHRASE"  # noqa: S105  a variable's name, no secret
USUAL: Final = Lifetimes()

RepoOption = Annotated[
    Path,
    typer.Option("--repo", envvar="TWINLOCK_REPO", metavar="FOLDER", help="The repository folder."),
]
KeysOption = Annotated[
    Path, typer.Option("--keys", envvar="TWINLOCK_KEYS", metavar="FOLDER", help="Folder with your keys.")
]
PassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        show_default=False,
        help=f"File with the keys' passphrase; else {PASSPHRASE_VARIABLE}, else you are asked.",
    ),
]
RootDays = Annotated[int, typer.Option("--root-days", help="How long a new root is valid.")]
TargetsDays = Annotated[int, typer.Option("--targets-days", help="How long the list of releases is valid.")]
SnapshotDays = Annotated[int, typer.Option("--snapshot-days", help="How long a new snapshot is valid.")]
TimestampDays = Annotated[int, typer.Option("--timestamp-days", help="How long a new timestamp is valid.")]


def given_passphrase(file: Path | None) -> bytes | None:
    """The passphrase from the file or the variable, or None. Raises InputError `input-invalid` if empty."""
    if file is not None:
        data = read_bounded(file, PASSPHRASE_SIZE_BYTES_MAX, "passphrase file", pipes=True).rstrip(b"\r\n")
    elif PASSPHRASE_VARIABLE in os.environ:
        data = os.environ[PASSPHRASE_VARIABLE].encode("utf-8", "surrogateescape")
    else:
        return None
    if not data:
        raise error("input-invalid", "the passphrase is empty")
    return data


def asker(file: Path | None) -> Callable[[Path], bytes | None]:
    """Who gives the passphrase of a key: the file or variable for all keys, else the terminal for each."""
    given = given_passphrase(file)

    def ask(path: Path) -> bytes | None:
        if given is not None or not sys.stdin.isatty():
            return given
        return getpass.getpass(f"Passphrase of {path}: ").encode()

    return ask


def new_passphrase(file: Path | None) -> bytes:
    """A passphrase for new keys; on a terminal it is asked for twice. Raises InputError `input-invalid`."""
    given = given_passphrase(file)
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise error(
            "input-invalid",
            "no passphrase was given",
            hint=f"use --passphrase-file, or set {PASSPHRASE_VARIABLE}, or run it in a terminal",
        )
    first = getpass.getpass("New passphrase: ")
    if first != getpass.getpass("Once more: "):
        raise error("input-invalid", "the two passphrases differ")
    return first.encode()


def ceremony(
    repository: Repository, keys: Path, passphrase_file: Path | None, lifetimes: Lifetimes = USUAL
) -> Ceremony:
    """A run over `repository` with the keys in a folder, now."""
    ring = KeyRing(list_keys(keys), asker(passphrase_file))
    return Ceremony(repository, ring, datetime.now(UTC), lifetimes)


def warn_of_expiry(repository: Repository, output: Output) -> None:
    """One warning for each role that ends soon."""
    for text in expiry.warnings(repository, datetime.now(UTC)):
        output.warn(text)


def warn_of_dropped(run: Ceremony, output: Output) -> None:
    """Says that signatures are void because what they were on was changed."""
    if run.dropped:
        output.warn(
            f"{run.dropped} signatures on what waited before are void: it changed, and is signed anew"
        )


def pairs(texts: Iterable[str], option: str, example: str) -> list[tuple[str, str]]:
    """`ROLE=VALUE` options taken apart. Raises InputError `input-invalid`."""
    found = []
    for text in texts:
        role, equals, value = text.partition("=")
        if not equals or not value:
            raise error(
                "input-invalid", f"{option} {text!r} is not ROLE=VALUE", hint=f"like {option} {example}"
            )
        found.append((check_role(role), value))
    return found


def thresholds(texts: Iterable[str]) -> dict[str, int]:
    """`ROLE=NUMBER` options. Raises InputError `input-invalid`."""
    found = {}
    for role, value in pairs(texts, "--threshold", "targets=2"):
        if not value.isdecimal() or len(value) > 4:
            raise error("input-invalid", f"--threshold {role}={value}: {value!r} is no number of signatures")
        found[role] = int(value)
    return found


def done_text(came_into_force: dict[str, int]) -> str:
    """Which versions came into force, as a sentence."""
    if not came_into_force:
        return "Nothing to do: all of it is signed and in force."
    listed = ", ".join(f"{role} {version}" for role, version in came_into_force.items())
    return f"In force now: {listed}."


def signed_data(run: Ceremony, came_into_force: dict[str, int]) -> dict[str, Any]:
    """The part of a command's JSON that says who signed what."""
    return {
        "in_force": came_into_force,
        "signed": [{"role": role, "key_id": keyid} for role, keyid in run.signed],
    }
