"""`twinlock release delta`, and the deltas that `twinlock release publish` makes by itself."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from twinlock.cli.output import JsonOption, Output, size_text
from twinlock.cli.publishing import RepoOption
from twinlock.core.errors import error
from twinlock.publish import deltas, releases, upload
from twinlock.publish.deltas import Made
from twinlock.publish.folder import RECORD, Release, read_release
from twinlock.publish.releases import SignedRelease
from twinlock.publish.repository import Repository, open_repository
from twinlock.publish.upload import Operator

JobsOption = Annotated[int, typer.Option("--jobs", help="Processes; 0 means one per processor.")]


def delta(
    older: Annotated[
        str,
        typer.Option("--from", metavar="OLD", help="What devices run: PRODUCT/VERSION, or a release folder."),
    ],
    newer: Annotated[
        str,
        typer.Option("--to", metavar="NEW", help="What they shall run: PRODUCT/VERSION, or a folder."),
    ],
    repo: RepoOption = Path("repo"),
    library: Annotated[
        list[str] | None,
        typer.Option(
            "--library",
            metavar="NAME-VERSION",
            show_default=False,
            help="Rebuild compressed bytes with this library alone, as devices name theirs; may be repeated. "
            "Default: all that this machine has.",
        ),
    ] = None,
    jobs: JobsOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Make a delta from one release to another, beside the full payload of the newer one.

    Nothing is signed for it: what devices make of it must have the hashes that are signed already. It takes
    a minute or two for each 500 MB. Publish the newer release again afterwards.

    Example: twinlock release delta --from demo/1.0 --to demo/1.1 --repo repo
    """
    output = Output(as_json)
    if Path(newer).is_dir():
        after = read_release(Path(newer))
        made = _make(_found(older, repo), after, after.folder / RECORD, jobs, library, output)
    else:
        with open_repository(repo, write=True) as repository:
            before = _found(older, repo, repository)
            after = releases.read_signed(repository, _listed(newer, repository))
            path = releases.record_path(repository.folder, after.manifest.product, after.manifest.version)
            made = _make(before, after, path, jobs, library, output)
    output.show(_data(older, newer, made), *_text(older, newer, made, after))


def make_missing(
    repository: Repository,
    operator: Operator,
    wanted: Sequence[SignedRelease],
    named: bool,
    count: int,
    output: Output,
) -> None:
    """The deltas to each release that is new to the server, or was named, from what most devices run."""
    if count == 0:
        return
    upload.check_published(repository, datetime.now(UTC))
    for one in wanted:
        newer = releases.read_signed(repository, one)
        if not named and upload.is_known(operator, newer):
            continue
        for base in deltas.bases_in_use(repository, operator, one, count):
            before = releases.read_signed(repository, base)
            path = releases.record_path(repository.folder, one.claims.product, one.claims.version)
            made = _make(before, releases.read_signed(repository, one), path, 0, None, output)
            names = (before.manifest.name, newer.manifest.name)
            for text in _text(*names, made, newer)[:1]:
                output.note(text)


def _found(name: str, repo: Path, repository: Repository | None = None) -> Release:
    if Path(name).is_dir():
        return read_release(Path(name))
    if repository is not None:
        return releases.read_signed(repository, _listed(name, repository))
    with open_repository(repo, write=False) as opened:
        return releases.read_signed(opened, _listed(name, opened))


def _listed(name: str, repository: Repository) -> SignedRelease:
    product, slash, version = name.partition("/")
    if not slash:
        raise error(
            "input-invalid",
            f"{name!r} is neither a release folder nor PRODUCT/VERSION",
            hint="like demo/1.1",
        )
    return releases.find_release(repository, product, version)


def _make(
    before: Release, after: Release, record: Path, jobs: int, library: list[str] | None, output: Output
) -> Made:
    total = before.manifest.image_size_bytes + 2 * after.manifest.image_size_bytes
    title = f"delta {before.manifest.version} to {after.manifest.version}"
    with output.progress(title, total) as advance:
        return deltas.make_delta(before, after, record, jobs, advance, libraries=library)


def _data(older: str, newer: str, made: Made) -> dict[str, Any]:
    payload = made.payload
    parts = {} if made.stats is None else dict(made.stats.parts)
    return {
        "from": older,
        "to": newer,
        "payload_sha256": payload.sha256,
        "payload_size_bytes": payload.size_bytes,
        "base_sha256": payload.base_sha256,
        "new": made.new,
        "kept": made.kept,
        "parts": parts,
    }


def _text(older: str, newer: str, made: Made, after: Release) -> list[str]:
    size = size_text(made.payload.size_bytes)
    if not made.kept:
        return [f"The delta from {older} to {newer} has {size}: no less than the full payload. Not kept."]
    full = min(one.size_bytes for one in after.record.payloads if one.kind == "full")
    said = "Made the delta" if made.new else "There is the delta already"
    return [
        f"{said} from {older} to {newer}: {size}, {made.payload.size_bytes / full:.1%} of the full payload",
        f"Next: twinlock release publish {after.manifest.product}/{after.manifest.version}",
    ]
