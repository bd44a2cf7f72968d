"""Signing requests on the command line: out of a repository, through holders' hands, and back."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from twinlock.cli.output import JsonOption, Output
from twinlock.cli.publishing import (
    USUAL,
    KeysOption,
    PassphraseOption,
    RepoOption,
    SnapshotDays,
    TimestampDays,
    asker,
    ceremony,
    done_text,
    signed_data,
    warn_of_expiry,
)
from twinlock.core import limits
from twinlock.core.durable import os_errors, read_bounded
from twinlock.core.errors import error
from twinlock.publish import request as requests
from twinlock.publish import rounds, words
from twinlock.publish.keys import KeyRing, list_keys
from twinlock.publish.repository import open_repository
from twinlock.publish.signing import Lifetimes

REQUEST_DEFAULT: Final = Path("request.json")


def request(
    repo: RepoOption = Path("repo"),
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Where to; must not exist yet.")
    ] = REQUEST_DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Write what waits for signatures to a file that goes to the other holders, by mail or on a stick.

    It holds all that they need to see and prove what they sign; it holds no secret. Compare its digest with
    theirs by another way.

    Example: twinlock release request --repo repo --out request.json
    """
    with os_errors(str(out)):
        if out.exists():
            raise error("input-exists", f"{out} exists")
    with open_repository(repo, write=True) as repository:
        made = rounds.make(repository)
    checked = requests.check(made, datetime.now(UTC))
    requests.save(out, made)
    Output(as_json).show(
        {"request": str(out), "digest": checked.digest, "words": words.describe(checked)},
        *words.describe(checked),
        f"Wrote {out}. Each holder runs: twinlock release sign --request {out.name} --keys THEIR_KEYS",
    )


def sign_request(
    output: Output, file: Path, keys: Path, root: Path | None, passphrase_file: Path | None, agreed: bool
) -> None:
    """Shows what the request in `file` asks for and, when that is agreed to, adds the signatures to it."""
    pinned = None
    if root is not None:
        pinned = read_bounded(root, limits.METADATA_SIZE_BYTES_MAX["root"], "root metadata")
    checked = requests.check(requests.load(file), datetime.now(UTC), pinned)
    said = words.describe(checked)
    for line in said:
        output.note(line)
    if not agreed:
        _ask()
    ring = KeyRing(list_keys(keys), asker(passphrase_file))
    made, signed = requests.sign(checked, ring)
    requests.save(file, made)
    missing = sum(one.missing for item in checked.items for one in item.signatures())
    then = "it needs more signatures: pass it on" if missing else "it has all signatures: send it back"
    output.show(
        {
            "request": str(file),
            "digest": checked.digest,
            "words": said,
            "signed": [{"role": role, "key_id": keyid} for role, keyid in signed],
            "missing": missing,
        },
        f"Signed with {len({keyid for _, keyid in signed})} keys; {then}.",
    )


def _ask() -> None:
    """Raises InputError `input-invalid` unless a person at a terminal agrees."""
    if not sys.stdin.isatty():
        raise error(
            "input-invalid",
            "nobody has agreed to what stands above",
            hint="read it, then run this again with --yes, or in a terminal",
        )
    if not typer.confirm("Sign this?"):
        raise error("input-invalid", "you did not agree; nothing was signed", hint="ask who made the request")


def collect(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Requests that came back, in any order.")
    ],
    repo: RepoOption = Path("repo"),
    keys: KeysOption = Path("keys"),
    passphrase_file: PassphraseOption = None,
    snapshot_days: SnapshotDays = USUAL.snapshot_days,
    timestamp_days: TimestampDays = USUAL.timestamp_days,
    as_json: JsonOption = False,
) -> None:
    """Take the signatures of requests that came back into the repository, and go on with the keys you have.

    Only signatures over what waits here are taken. When more are needed this ends with error key-threshold
    and keeps those that came.

    Example: twinlock release collect request.json --repo repo --keys online-keys
    """
    output = Output(as_json)
    now = datetime.now(UTC)
    with open_repository(repo, write=True) as repository:
        lifetimes = Lifetimes(USUAL.root_days, USUAL.targets_days, snapshot_days, timestamp_days)
        run = ceremony(repository, keys, passphrase_file, lifetimes)
        checked = [requests.check(requests.load(file), now) for file in files]
        added = rounds.collect(run, checked)
        in_force = run.complete()
        output.show(
            {**signed_data(run, in_force), "collected": added},
            f"Took {added} signatures. {done_text(in_force)}",
            f"Next: twinlock release publish --repo {repo}",
        )
        warn_of_expiry(repository, output)
