"""`twinlock keys`: make keys, start a repository's root of trust, show and rotate its keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from twinlock.cli.output import JsonOption, Output, Table
from twinlock.cli.publishing import (
    USUAL,
    KeysOption,
    PassphraseOption,
    RepoOption,
    RootDays,
    SnapshotDays,
    TargetsDays,
    TimestampDays,
    asker,
    ceremony,
    done_text,
    new_passphrase,
    pairs,
    signed_data,
    thresholds,
    warn_of_dropped,
    warn_of_expiry,
)
from twinlock.core.errors import error
from twinlock.publish import expiry, keys, releases, roots
from twinlock.publish.repository import Repository, make_folders, open_repository
from twinlock.publish.signing import Lifetimes

app: Final = typer.Typer(no_args_is_help=True)

ThresholdOption = Annotated[
    list[str] | None,
    typer.Option(
        "--threshold",
        metavar="ROLE=N",
        show_default=False,
        help="How many keys must sign for a role; 1 unless you say more. May be repeated.",
    ),
]


@app.command()
def create(
    folder: KeysOption = Path("keys"),
    role: Annotated[
        list[str] | None,
        typer.Option("--role", help="Role to make a key for; may be repeated. Default: each of the four."),
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Whose key it is; part of the file's name.")] = "main",
    kind: Annotated[
        str, typer.Option("--type", help="ed25519, ecdsa (P-256), rsa (3072 bits) or ml-dsa (65).")
    ] = "ed25519",
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Protect the keys by a passphrase.")
    ] = False,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make signing keys: a private and a public file for each role.

    The root and targets keys decide what your devices run: keep them offline and give each to another person.
    Give away only the .pub files.

    Example: twinlock keys create --role targets --name alice --passphrase --keys /media/usb/keys
    """
    roles = list(dict.fromkeys(role or keys.ROLES))
    secret = new_passphrase(passphrase_file) if passphrase or passphrase_file else None
    made = keys.create(folder, roles, name, kind, secret)
    Output(as_json).show(
        {"keys": [_key_data(one) for one in made]},
        *(f"Made {one.private} ({one.key.keytype}, id {one.keyid[:16]})" for one in made),
        "Keep a copy of the private files in another safe place: without them nobody can sign for you.",
    )


@app.command(name="import")
def import_(
    uri: Annotated[str, typer.Argument(metavar="URI", help="Where the key is, like hsm:1?label=TOKEN.")],
    role: Annotated[list[str], typer.Option("--role", help="Role that it signs for; may be repeated.")],
    name: Annotated[str, typer.Option("--name", help="Whose key it is; part of the file's name.")] = "main",
    folder: KeysOption = Path("keys"),
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take in a key that stays on a PKCS#11 token or in a key service: its public half, and where it is.

    URI is hsm:KEYID?label=TOKEN (set PYKCS11LIB to the token's library), awskms:KEY, gcpkms:KEY,
    azurekms://VAULT.vault.azure.net/keys/KEY or hv:KEY. A PIN is asked for as a passphrase is. From then on
    the key signs like any other of the folder.

    Example: twinlock keys import "hsm:1?label=alice" --role targets --name alice --keys keys
    """
    roles_ = list(dict.fromkeys(role))
    made = keys.import_outside(folder, roles_, name, uri, asker(passphrase_file))
    Output(as_json).show(
        {"keys": [_key_data(one) for one in made]},
        *(f"Took in {one.public} ({one.key.keytype}, id {one.keyid[:16]})" for one in made),
    )


@app.command()
def init(
    repo: RepoOption = Path("repo"),
    folder: KeysOption = Path("keys"),
    threshold: ThresholdOption = None,
    passphrase_file: PassphraseOption = None,
    root_days: RootDays = USUAL.root_days,
    as_json: JsonOption = False,
) -> None:
    """Start a repository: sign the root of trust, which names the keys of every role.

    All .pub files in the key folder take part. When root needs several signatures, each holder runs this with
    their own private key; it goes on when enough have. Devices and servers then get metadata/1.root.json.

    Example: twinlock keys init --repo repo --keys keys --threshold root=2 --threshold targets=2
    """
    found = keys.list_keys(folder)
    wanted = thresholds(threshold or [])
    make_folders(repo)
    with open_repository(repo, write=True) as repository:
        run = ceremony(repository, folder, passphrase_file, Lifetimes(root_days=root_days))
        in_force = roots.start(run, [(one.role, one.key) for one in found], wanted)
        file = repo / "metadata" / "1.root.json"
        Output(as_json).show(
            {**signed_data(run, in_force), "root": str(file)},
            done_text(in_force),
            f"Give {file} to every server and device: it is what they trust.",
            *(f"{one}: {need} of {have} keys must sign" for one, need, have in _needs(repository)),
        )


@app.command(name="list")
def list_(
    folder: Annotated[
        Path | None, typer.Option("--keys", metavar="FOLDER", help="Show the keys in a folder.")
    ] = None,
    repo: Annotated[
        Path | None, typer.Option("--repo", metavar="FOLDER", help="Show whom a repository trusts.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show keys: those in a folder, or those that a repository trusts, with thresholds and ends.

    Example: twinlock keys list --repo repo --keys keys
    """
    output = Output(as_json)
    mine = keys.list_keys(folder or Path("keys")) if folder or repo is None else []
    data: dict[str, Any] = {"keys": [_key_data(one) for one in mine]}
    parts: list[str | Table] = []
    if mine or repo is None:
        rows = [
            [one.role, one.name, one.key.keytype, one.keyid[:16], "yes" if one.private else "no"]
            for one in mine
        ]
        parts.append(
            Table(["role", "name", "type", "id", "private here"], rows, empty="there are no keys here")
        )
    if repo is not None:
        with open_repository(repo, write=False) as repository:
            table, data["roles"] = _roles(repository, {one.keyid: one.name for one in mine})
            parts.append(table)
            warn_of_expiry(repository, output)
    output.show(data, *parts)


@app.command()
def rotate(
    repo: RepoOption = Path("repo"),
    folder: KeysOption = Path("keys"),
    add: Annotated[
        list[str] | None, typer.Option("--add", metavar="ROLE=FILE.pub", help="Key to trust from now on.")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="ROLE=ID", help="Key to trust no more.")
    ] = None,
    threshold: ThresholdOption = None,
    passphrase_file: PassphraseOption = None,
    root_days: RootDays = USUAL.root_days,
    targets_days: TargetsDays = USUAL.targets_days,
    snapshot_days: SnapshotDays = USUAL.snapshot_days,
    timestamp_days: TimestampDays = USUAL.timestamp_days,
    as_json: JsonOption = False,
) -> None:
    """Change which keys are trusted, or renew the root before it ends (no change given).

    The new root needs signatures of the old root keys and of the new ones. What a removed key had signed is
    signed again. When a root waits for signatures already, this adds yours. Publish afterwards.

    Example: twinlock keys rotate --add targets=bob.pub --remove targets=3f8a12 --repo repo --keys keys
    """
    change = roots.Change(
        add=[
            (one, keys.read_public(Path(file))) for one, file in pairs(add or [], "--add", "targets=bob.pub")
        ],
        remove=pairs(remove or [], "--remove", "targets=3f8a12"),
        thresholds=thresholds(threshold or []),
    )
    lifetimes = Lifetimes(root_days, targets_days, snapshot_days, timestamp_days)
    output = Output(as_json)
    with open_repository(repo, write=True) as repository:
        run = ceremony(repository, folder, passphrase_file, lifetimes)
        try:
            in_force = roots.rotate(run, change)
        finally:
            warn_of_dropped(run, output)
        output.show(
            signed_data(run, in_force),
            done_text(in_force),
            f"Bring it to the server: twinlock release publish --repo {repo}",
        )
        warn_of_expiry(repository, output)


@app.command()
def delegate(
    product: Annotated[str, typer.Argument(metavar="PRODUCT", help="The product line.")],
    key: Annotated[
        list[str] | None,
        typer.Option("--key", metavar="FILE.pub", help="Key that signs for it; may be repeated."),
    ] = None,
    threshold: Annotated[int, typer.Option("--threshold", help="How many of them must sign.")] = 1,
    remove: Annotated[
        bool, typer.Option("--remove", help="Take the product line back: the targets keys sign it again.")
    ] = False,
    repo: RepoOption = Path("repo"),
    folder: KeysOption = Path("keys"),
    passphrase_file: PassphraseOption = None,
    targets_days: TargetsDays = USUAL.targets_days,
    as_json: JsonOption = False,
) -> None:
    """Let other keys sign the releases of one product line from now on; the targets keys sign that they may.

    Given again it changes those keys. What was signed before stays signed. With --remove the line's keys
    count no more, and neither does what they signed. Publish afterwards.

    Example: twinlock keys delegate gateway --key gate-alice.pub --key gate-bob.pub --threshold 2
    """
    if remove == bool(key):
        raise error("input-invalid", f"give --key for those who shall sign {product}, or --remove")
    public = [keys.read_public(Path(file)) for file in key or []]
    output = Output(as_json)
    with open_repository(repo, write=True) as repository:
        run = ceremony(repository, folder, passphrase_file, Lifetimes(targets_days=targets_days))
        gone = releases.take_back(run, product) if remove else []
        if not remove:
            releases.delegate(run, product, public, threshold)
        warn_of_dropped(run, output)
        for name in gone:
            output.warn(f"{name} is not signed any more; devices that run it go on, others refuse it")
        in_force = run.complete()
        output.show(
            {**signed_data(run, in_force), "taken_back": gone},
            done_text(in_force),
            f"Bring it to the server: twinlock release publish --repo {repo}",
        )
        warn_of_expiry(repository, output)


def _key_data(one: keys.KeyFile) -> dict[str, Any]:
    return {
        "role": one.role,
        "name": one.name,
        "type": one.key.keytype,
        "key_id": one.keyid,
        "public": str(one.public),
        "private": None if one.private is None else str(one.private),
    }


def _needs(repository: Repository) -> list[tuple[str, int, int]]:
    root = repository.need_root().signed
    return [(one, root.roles[one].threshold, len(root.roles[one].keyids)) for one in keys.ROLES]


def _roles(repository: Repository, names: dict[str, str]) -> tuple[Table, list[dict[str, Any]]]:
    root = repository.need_root().signed
    ends = {one.role: one.expires for one in expiry.expiries(repository)}
    rows, data = [], []
    for role, need, have in _needs(repository):
        keyids = list(root.roles[role].keyids)
        end = ends.get(role)
        shown = ", ".join(keyid[:16] + (f" ({names[keyid]})" if keyid in names else "") for keyid in keyids)
        rows.append(
            [role, f"{need} of {have}", end.strftime("%Y-%m-%d %H:%M") if end else "not signed yet", shown]
        )
        data.append(
            {"role": role, "threshold": need, "key_ids": keyids, "expires": end.isoformat() if end else None}
        )
    return Table(["role", "signatures", "valid until (UTC)", "key ids"], rows), data
