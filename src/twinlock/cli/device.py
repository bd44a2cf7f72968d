"""`twinlock device`: who takes part in the fleet."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from twinlock.cli import api, enrolment
from twinlock.cli.output import JsonOption, Output, Table
from twinlock.cli.text import clean, size_text
from twinlock.core.device_key import PEM_SIZE_BYTES_MAX, DevicePublicKey
from twinlock.core.durable import read_bounded
from twinlock.core.errors import error
from twinlock.core.names import check_device_id, check_sha256_hex

app: Final = typer.Typer(no_args_is_help=True, help="List, accept and reject devices.")
app.command()(enrolment.token)
app.command()(enrolment.tokens)
app.command()(enrolment.revoke_token)

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The device's id.", show_default=False)]
STATUSES: Final = ("pending", "accepted", "rejected")
PAGE: Final = 500


@app.command("list")
@api.with_client
def list_(
    client: api.Api,
    status: Annotated[
        str | None, typer.Option("--status", help="Only these: pending, accepted or rejected.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = 1000,
    as_json: JsonOption = False,
) -> None:
    """List devices: what each runs, when it was last seen, how its last release ended."""
    if status is not None and status not in STATUSES:
        raise error("input-invalid", f"{status!r} is no status; there are {', '.join(STATUSES)}")
    found: list[dict[str, Any]] = []
    after: str | None = None
    while len(found) < limit:
        size = min(PAGE, limit - len(found))
        answer = client.get("/devices", {"status": status, "after": after, "limit": size})
        found += answer["devices"]
        after = answer["next"]
        if after is None:
            break
    columns = ("device", "hardware", "status", "runs", "slot", "last seen", "last outcome", "reason")
    table = Table(columns, [_row(one) for one in found], empty="no device has enrolled")
    more = [] if after is None else [f"there are more devices; show them with a higher --limit than {limit}"]
    Output(as_json).show({"devices": found, "next": after}, table, *more)


@app.command()
@api.with_client
def show(
    client: api.Api,
    device_id: IdArgument,
    as_json: JsonOption = False,
) -> None:
    """Show one device with its last reports, and what was noted of it."""
    one = client.get(f"/devices/{check_device_id(device_id)}")
    running = one["running"] or {}
    lines = [
        f"device       {one['device_id']} ({one['status']})",
        f"hardware     {one['hardware']}",
        f"runs         {_runs(one)} in slot {running.get('slot') or '-'}, floor {running.get('floor', 0)}",
        f"last seen    {_ago(one['last_seen'])}",
        f"key          {one['fingerprint']}",
    ]
    reports = Table(
        ("seq", "state", "release", "assignment", "fetched", "twice", "seconds", "reason"),
        [_report(report) for report in one["reports"]],
        title="Reports, newest first",
        empty="no reports yet",
    )
    left = Table(
        ("evidence", "kind", "release", "slot", "received"),
        [
            (n["name"][:12], n["kind"], f"{n['product']} {n['version']}".strip(), n["slot"], n["received"])
            for n in one["evidence"]
        ],
        title="Evidence, newest first",
    )
    hint = f"read evidence with `twinlock device evidence {one['device_id']} NAME`"
    noted = [
        Table(
            ("noted", "detail", "times", "last"),
            [(n["kind"], n["detail"], str(n["count"]), n["last"]) for n in one["attack_indicators"]],
            title="Things that an honest device does not do",
        )
    ]
    Output(as_json).show(
        {"device": one},
        "\n".join(lines),
        reports,
        *((left, hint) if one["evidence"] else ()),
        *(noted if one["attack_indicators"] else []),
    )


@app.command()
@api.with_client
def evidence(
    client: api.Api,
    device_id: IdArgument,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="As `device show` lists it; its beginning is enough.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Show what a trial or a panic left behind on a device: its journal's end, the kernel's last words."""
    path = f"/devices/{check_device_id(device_id)}"
    names = [one["name"] for one in client.get(path)["evidence"] if name and one["name"].startswith(name)]
    if len(names) != 1:
        how = "no evidence" if not names else "more than one piece of evidence"
        raise error("not-found", f"{device_id} has {how} whose name begins with {name[:64]!r}")
    found = client.get(f"{path}/evidence/{names[0]}")
    Output(as_json).show({"evidence": found}, "\n".join(map(clean, found["text"].splitlines())))


@app.command()
@api.with_client
def accept(
    client: api.Api,
    device_id: IdArgument,
    as_json: JsonOption = False,
) -> None:
    """Let a device take part. Compare the key first: the device shows it with `twinlock-agent status`."""
    one = client.post(f"/devices/{check_device_id(device_id)}/accept")
    Output(as_json).show({"device": one}, f"{device_id} is accepted; its key is {one['fingerprint']}")


@app.command()
@api.with_client
def reject(
    client: api.Api,
    device_id: IdArgument,
    as_json: JsonOption = False,
) -> None:
    """Shut a device out, from its next request on; what it runs, it goes on running."""
    one = client.post(f"/devices/{check_device_id(device_id)}/reject")
    Output(as_json).show({"device": one}, f"{device_id} is rejected")


@app.command()
@api.with_client
def preauthorise(
    client: api.Api,
    device_id: IdArgument,
    fingerprint: Annotated[
        str | None, typer.Option("--fingerprint", help="SHA-256 of the public key's DER form, in hex.")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="The device's public key (PEM) instead.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Accept a device before it comes, with this very key; it may replace a known device's key."""
    if (fingerprint is None) == (key_file is None):
        raise error("input-invalid", "give the key either as --fingerprint or as --key-file")
    if key_file is not None:
        data = read_bounded(key_file, PEM_SIZE_BYTES_MAX, "public key")
        fingerprint = DevicePublicKey(data.decode("utf-8", "replace")).fingerprint
    body = {"device_id": check_device_id(device_id), "fingerprint": check_sha256_hex(fingerprint or "")}
    one = client.post("/devices/preauthorise", body)
    said = "is accepted" if one["status"] == "accepted" else "will be accepted when it enrols"
    Output(as_json).show({"device": one}, f"{device_id} {said} with the key {fingerprint}")


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    running, outcome = one["running"] or {}, one["last_outcome"] or {}
    return (
        one["device_id"],
        one["hardware"],
        one["status"],
        _runs(one),
        running.get("slot") or "-",
        _ago(one["last_seen"]),
        f"{outcome['version']} {outcome['state']}" if outcome else "-",
        reason(outcome.get("code", ""), outcome.get("detail", "")),
    )


def _runs(one: dict[str, Any]) -> str:
    running = one["running"]
    return f"{running['product']} {running['version']}" if running and running["version"] else "not known"


def _report(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(one["seq"]),
        one["state"],
        f"{one['product']} {one['version']}".strip(),
        one["assignment_id"],
        size_text(one["bytes_fetched"]),
        size_text(one["bytes_again"]),
        f"{one['duration_s']:.1f}",
        reason(one["code"], one["detail"]),
    )


def reason(code: str, detail: str, length_max: int = 120) -> str:
    """A code and the first line of its detail, for a table."""
    line = detail.strip().split("\n", 1)[0]
    text = f"{code}: {line}" if code and line else code or line
    return text if len(text) <= length_max else text[: length_max - 3] + "..."


def _ago(at: str | None) -> str:
    """`12 s ago` for a time in ISO 8601."""
    if at is None:
        return "never"
    passed_s = max(0, int((datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()))
    for below_s, unit, unit_s in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if passed_s < below_s:
            return f"{passed_s // unit_s} {unit} ago"
    return f"{passed_s // 86_400} days ago"
