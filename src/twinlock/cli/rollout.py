"""`twinlock rollout`: bring a release to devices, follow it, halt it."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from twinlock.cli import api
from twinlock.cli.device import reason
from twinlock.cli.output import JsonOption, Output, Table
from twinlock.cli.text import size_text
from twinlock.core.errors import error
from twinlock.core.names import check_device_id, check_name, check_version

app: Final = typer.Typer(no_args_is_help=True, help="Bring a release to devices, follow it, halt it.")

RolloutArgument = Annotated[
    str, typer.Argument(metavar="ROLLOUT", help="The rollout's id, like r7.", show_default=False)
]
PAGE: Final = 1000


@app.command()
@api.with_client
def create(
    client: api.Api,
    product: Annotated[str, typer.Argument(metavar="PRODUCT", show_default=False)],
    version: Annotated[str, typer.Argument(metavar="VERSION", show_default=False)],
    device: Annotated[
        list[str] | None,
        typer.Option("--device", metavar="ID", help="For this device; repeat it for more."),
    ] = None,
    everyone: Annotated[
        bool, typer.Option("--all", help="For every accepted device that it fits, those of later too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring a published release to devices. It takes the place of a rollout that a device has not ended."""
    if bool(device) == everyone:
        raise error("input-invalid", "name devices with --device ID, or say --all")
    devices = "all" if everyone else [check_device_id(one) for one in device or []]
    body = {
        "product": check_name(product, "product"),
        "version": check_version(version),
        "devices": devices,
    }
    one = client.post("/rollouts", body)
    Output(as_json).show(
        {"rollout": one}, f"rollout {one['rollout_id']}: {product} {version} for {_who(one)}"
    )


@app.command("list")
@api.with_client
def list_(
    client: api.Api,
    as_json: JsonOption = False,
) -> None:
    """List the newest rollouts with their progress, newest first."""
    answer = client.get("/rollouts")
    rows = [
        (
            one["rollout_id"],
            f"{one['product']} {one['version']}",
            _who(one),
            one["status"],
            _progress(one),
            one["created"],
        )
        for one in answer["rollouts"]
    ]
    columns = ("rollout", "release", "devices", "status", "progress", "created")
    Output(as_json).show(answer, Table(columns, rows, empty="no rollout was made yet"))


@app.command()
@api.with_client
def show(
    client: api.Api,
    rollout_id: RolloutArgument,
    as_json: JsonOption = False,
) -> None:
    """Show a rollout: each device's state, and why it failed where it did."""
    path = f"/rollouts/{check_name(rollout_id, 'rollout')}"
    one = client.get(path, {"limit": PAGE})
    after = one["next"]
    while after is not None:
        more = client.get(path, {"limit": PAGE, "after": after})
        one["assignments"] += more["assignments"]
        after = more["next"]
    one["next"] = None
    rows = [
        (
            each["device_id"],
            each["state"],
            size_text(each["bytes_fetched"]),
            size_text(each["bytes_again"]),
            f"{each['duration_s']:.1f}",
            reason(each["code"], each["detail"]),
        )
        for each in one["assignments"]
    ]
    head = (
        f"{one['rollout_id']}  {one['product']} {one['version']} for {_who(one)}  {one['status']}\n"
        f"progress: {_progress(one)}"
    )
    columns = ("device", "state", "fetched", "twice", "seconds", "reason")
    Output(as_json).show(
        {"rollout": one}, head, Table(columns, rows, empty="no device has been told of it yet")
    )


@app.command()
@api.with_client
def halt(
    client: api.Api,
    rollout_id: RolloutArgument,
    as_json: JsonOption = False,
) -> None:
    """Stop a rollout for good. Devices that are past arming the new slot end their trial by themselves."""
    one = client.post(f"/rollouts/{check_name(rollout_id, 'rollout')}/halt")
    Output(as_json).show({"rollout": one}, f"{one['rollout_id']} is halted: {_progress(one)}")


def _who(one: dict[str, Any]) -> str:
    count = sum(one["counts"].values()) + one["waiting"]
    devices = "1 device" if count == 1 else f"{count} devices"
    return f"all ({devices} now)" if one["devices"] == "all" else devices


def _progress(one: dict[str, Any]) -> str:
    parts = [f"{count} {state.replace('_', ' ')}" for state, count in one["counts"].items()]
    if one["waiting"]:
        parts.append(f"{one['waiting']} not asked yet")
    return ", ".join(parts) or "no device yet"
