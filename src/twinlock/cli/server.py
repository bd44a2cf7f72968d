"""`twinlock server`: make a server's folder, run it, give an operator a token."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated, Final

import typer

from twinlock.cli.output import JsonOption, Output
from twinlock.core import limits
from twinlock.core.durable import read_bounded

app: Final = typer.Typer(no_args_is_help=True, help="Set up and run an update server.")

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
    as_json: JsonOption = False,
) -> None:
    """Make a server in DIR (new or empty) that trusts the given root, and print the operator's token."""
    from twinlock.server.setup import initialise

    data = read_bounded(root, limits.METADATA_SIZE_BYTES_MAX["root"], "root metadata")
    token = initialise(folder, data, database_url=database, poll_wait_s=poll_wait_s, page_open=page_open)
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
