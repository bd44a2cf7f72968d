"""`twinlock device token`, `tokens` and `revoke-token`: one-time tokens for devices that enrol."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from twinlock.cli import api
from twinlock.cli.output import JsonOption, Output, Table
from twinlock.core.names import check_name

DAY_S: Final = 24 * 3600


@api.with_client
def token(
    client: api.Api,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What to call it: a line, an order, a serial number.")
    ],
    days: Annotated[int, typer.Option("--days", min=1, max=366, help="How long it may be used.")] = 7,
    as_json: JsonOption = False,
) -> None:
    """Make a token that one new device shows once when it enrols. You still accept the device.

    Example: twinlock device token line-3-0042 --days 2
    """
    body = {"name": check_name(name, "name of a token"), "lifetime_s": days * DAY_S}
    made = client.post("/enrolment-tokens", body)
    Output(as_json).show(
        {"enrolment_token": made},
        f"Enrolment token {made['name']} (shown this once, good until {made['expires']}): {made['token']}",
        f"On the device: twinlock-agent enrol --token {made['token']}",
    )


@api.with_client
def tokens(
    client: api.Api,
    as_json: JsonOption = False,
) -> None:
    """List the newest enrolment tokens: which are open, and which devices the used ones served."""
    found = client.get("/enrolment-tokens")["tokens"]
    rows = [
        (
            one["name"],
            one["state"],
            one["created"],
            one["created_by"],
            one["expires"],
            one["used_by"] or "-",
        )
        for one in found
    ]
    table = Table(("token", "state", "made", "by", "good until", "used by"), rows, empty="no token was made")
    Output(as_json).show({"enrolment_tokens": found}, table)


@api.with_client
def revoke_token(
    client: api.Api,
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `twinlock device tokens` lists it.")],
    as_json: JsonOption = False,
) -> None:
    """Take an enrolment token back that no device has used."""
    one = client.post(f"/enrolment-tokens/{check_name(name, 'name of a token')}/revoke")
    Output(as_json).show({"enrolment_token": one}, f"Enrolment token {name} lets no device in any more.")
