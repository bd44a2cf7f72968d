"""`twinlock release show`: one release as the server has it, with what is signed of it for people."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from twinlock.cli.api import Api, with_client
from twinlock.cli.output import JsonOption, Output
from twinlock.core.errors import InputError, error
from twinlock.core.names import check_name, check_version


@with_client
def show(
    client: Api,
    release: Annotated[str, typer.Argument(metavar="PRODUCT/VERSION", help="The release.")],
    as_json: JsonOption = False,
) -> None:
    """Show one release of the server: its image, hardware and counter, and what is signed of it for people.

    Mark, advisory, end of support and SBOM are verified by the server each time. `release inspect` verifies
    a release on this machine, without a server.

    Example: twinlock release show gateway/1.0
    """
    product, slash, version = release.partition("/")
    if not slash:
        raise error("input-invalid", f"{release[:80]!r} is not PRODUCT/VERSION")
    path = f"/releases/{check_name(product, 'product')}/{check_version(version)}"
    found = client.get(path)
    details = _details(client, path)
    shown: dict[str, Any] = {name: value for name, value in found.items() if name != "version"}
    lines = [
        f"{product} {version} for {', '.join(map(str, found['hardware']))}, counter {found['counter']}",
        f"image of {found['image_size_bytes']} bytes, SHA-256 {found['image_sha256']}",
        f"published {found['published']} by {found['published_by']}, {len(found['payloads'])} payloads",
        *_lines(details),
    ]
    Output(as_json).show({**shown, "release": version, "details": details}, *lines)


def _details(client: Api, path: str) -> Any:
    try:
        return client.get(f"{path}/details")
    except InputError as problem:
        if problem.code != "not-found":
            raise
        return None


def _lines(details: Any) -> list[str]:
    if details is None:
        return ["nothing is signed of it for people: no mark, advisory, end of support or SBOM"]
    until = f", supported until {details['support_ends']}" if details["support_ends"] else ""
    lines = [f"a {details['kind']} release{until}"]
    sbom = details["sbom"]
    if sbom is not None:
        made = f"{sbom['kind']} {sbom['spec_version']}, {sbom['components']} components"
        lines.append(f"SBOM: {made}, SHA-256 {sbom['sha256']}")
    return lines + [f"advisory: {line}" for line in str(details["advisory"]).splitlines()]
