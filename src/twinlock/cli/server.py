"""`twinlock server`: make a server's folder, run it, give an operator a token."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated, Final

import typer

from twinlock.cli.output import JsonOption, Output
from twinlock.core import limits
from twinlock.core.durable import os_errors, read_bounded, write_atomic
from twinlock.core.errors import error

app: Final = typer.Typer(no_args_is_help=True, help="Set up and run an update server.")
director_app: Final = typer.Typer(
    no_args_is_help=True, help="Give the server a director, or rotate its keys."
)
app.add_typer(director_app, name="director")

_KEY_SIZE_BYTES_MAX: Final = 16 * limits.KIB

FolderArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="The server's folder.", show_default=False)
]


@app.command()
def init(
    folder: FolderArgument,
    root: Annotated[
        Path,
        typer.Option(
            "--root", metavar="FILE", help="The repository's root of trust (1.root.json).", show_default=False
        ),
    ],
    database: Annotated[
        str,
        typer.Option("--database", metavar="URL", help="SQLAlchemy URL; without it SQLite in the folder."),
    ] = "",
    poll_wait_s: Annotated[
        int | None,
        typer.Option("--poll-wait", metavar="SECONDS", help="How long devices wait between polls."),
    ] = None,
    page_open: Annotated[
        bool, typer.Option("--page-open", help="Show the status page to this machine without a login.")
    ] = False,
    director_root: Annotated[
        Path | None,
        typer.Option("--director-root", metavar="FILE", help="The root of this server's director."),
    ] = None,
    director_key: Annotated[
        Path | None,
        typer.Option("--director-key", metavar="FILE", help="The director's online key (PEM) beside it."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a server in DIR (new or empty) that trusts the given root, and print the operator's token."""
    from twinlock.server.setup import initialise

    size_bytes_max = limits.METADATA_SIZE_BYTES_MAX["root"]
    data = read_bounded(root, size_bytes_max, "root metadata")
    director = None
    if (director_root is None) != (director_key is None):
        raise error("input-invalid", "--director-root and --director-key go together")
    if director_root is not None and director_key is not None:
        director = (
            read_bounded(director_root, size_bytes_max, "director's root"),
            read_bounded(director_key, _KEY_SIZE_BYTES_MAX, "director's key"),
        )
    token = initialise(
        folder,
        data,
        database_url=database,
        poll_wait_s=poll_wait_s,
        page_open=page_open,
        director=director,
    )
    Output(as_json).show(
        {"folder": str(folder), "token": token},
        f"Made a server in {folder}.",
        f"Operator's token (shown this once): {token}",
        f"Next: twinlock server run {folder}",
    )


@app.command()
def run(
    folder: FolderArgument,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0 picks a free one.")] = 8000,
    as_json: JsonOption = False,
) -> None:
    """Serve the server in DIR until SIGTERM or Ctrl-C; the log goes to standard error."""
    from twinlock.server import settings

    loaded = settings.load(folder)  # a folder that holds no server is told before all the rest is imported
    from twinlock.server.run import serve

    output = Output(as_json)
    once = secrets.token_urlsafe(24)

    def ready(address: str) -> None:
        page = f"{address}/login/{once}"
        output.show(
            {"address": address, "page": page},
            f"Serving {folder} at {address}",
            f"Status page (this link logs in once): {page}",
        )

    serve(loaded, host, port, ready, login_once=once)


@app.command()
def token(
    folder: FolderArgument,
    name: Annotated[str, typer.Option("--name", help="Whose token; an old one of theirs ends.")] = "operator",
    as_json: JsonOption = False,
) -> None:
    """Make a new operator's token, in place of the one that the same name had."""
    from twinlock.server import settings
    from twinlock.server.setup import add_operator

    made = add_operator(settings.load(folder), name)
    Output(as_json).show({"name": name, "token": made}, f"Token of {name} (shown this once): {made}")


@director_app.command()
def key(
    folder: FolderArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Where the public half goes, for the director's root."),
    ] = None,
    given: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Take this private key (PEM) instead of making one."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make the director's online key in DIR, or take one; it signs once a root of the director's names it.

    FOLDER gets its public half under three names: the holders of the director's root put it among their keys.

    Example: twinlock server director key srv --out director-keys
    """
    from twinlock.server import settings
    from twinlock.server.director.folder import ONLINE_ROLES, make_key, public_half
    from twinlock.server.setup import add_director_key

    loaded = settings.load(folder)
    private = make_key() if given is None else read_bounded(given, _KEY_SIZE_BYTES_MAX, "director's key")
    keyid = add_director_key(loaded, private)
    written: list[Path] = []
    if out is not None:
        with os_errors(f"folder {out}"):
            out.mkdir(parents=True, exist_ok=True)
            for role in ONLINE_ROLES:
                written.append(out / f"{role}-director-{keyid[:8]}.pub")
                write_atomic(written[-1], public_half(private), mode=0o644)
    Output(as_json).show(
        {"key_id": keyid, "public": [str(path) for path in written]},
        f"The director's key {keyid[:16]} is in {folder}.",
        *(f"Wrote {path}" for path in written),
        "Next: have the director's root name it for targets, snapshot and timestamp,"
        f" then: twinlock server director root {folder} --root 1.root.json",
    )


@director_app.command()
def root(
    folder: FolderArgument,
    given: Annotated[
        list[Path],
        typer.Option(
            "--root", metavar="FILE", help="Its first root, or the next; may be repeated.", show_default=False
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Give the server in DIR a root of its director's. It counts from the next start on.

    Example: twinlock server director root srv --root director/metadata/1.root.json
    """
    from twinlock.server import settings
    from twinlock.server.setup import add_director_root

    loaded, version = settings.load(folder), 0
    for path in given:
        data = read_bounded(path, limits.METADATA_SIZE_BYTES_MAX["root"], "director's root")
        version = add_director_root(loaded, data)
    Output(as_json).show(
        {"root_version": version},
        f"The director's root is version {version}. Restart the server.",
        "Devices that were made with the director's first root take releases only with its word.",
    )
