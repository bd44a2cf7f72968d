"""`twinlock release`: pack an image, sign it, publish it, keep it fresh, look inside."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from twinlock.cli import release_delta, release_request, release_show
from twinlock.cli.api import (
    SERVER_DEFAULT,
    CaFileOption,
    ServerOption,
    TokenFileOption,
    TokenOption,
    connect,
)
from twinlock.cli.output import JsonOption, Output, Table, size_text
from twinlock.cli.publishing import (
    USUAL,
    KeysOption,
    PassphraseOption,
    RepoOption,
    SnapshotDays,
    TargetsDays,
    TimestampDays,
    ceremony,
    done_text,
    signed_data,
    warn_of_dropped,
    warn_of_expiry,
)
from twinlock.cli.release_text import found_data, found_parts, packed_data, packed_text
from twinlock.core.errors import TwinlockError, error
from twinlock.core.names import check_name, check_version
from twinlock.publish import encode, inspect, releases, upload
from twinlock.publish.deltas import BASES_MAX
from twinlock.publish.folder import Release, read_release
from twinlock.publish.image import ImageReader
from twinlock.publish.pack import PackRequest, check_request, pack, read_advisory
from twinlock.publish.releases import SignedRelease
from twinlock.publish.repository import Repository, open_repository
from twinlock.publish.signing import Lifetimes

app: Final = typer.Typer(no_args_is_help=True)
app.command()(release_delta.delta)
app.command()(release_request.request)
app.command()(release_request.collect)
app.command()(release_show.show)

RootFileOption = Annotated[
    Path | None,
    typer.Option(
        "--root",
        metavar="FILE",
        show_default=False,
        help="Root of trust to verify by, such as the one on your devices.",
    ),
]

SbomOption = Annotated[
    Path | None,
    typer.Option(
        "--sbom", metavar="FILE", show_default=False, help="CycloneDX or SPDX file (JSON) to sign with it."
    ),
]
AdvisoryOption = Annotated[
    Path | None,
    typer.Option(
        "--advisory", metavar="FILE", show_default=False, help="Text that says what it mends; signed."
    ),
]
SupportOption = Annotated[
    str | None,
    typer.Option(
        "--support-ends", metavar="DAY", show_default=False, help="Last day of support, like 2031-12-31."
    ),
]


@app.command(name="pack")
def pack_(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file or block device.")],
    product: Annotated[str, typer.Option("--product", help="Which product it is for.")],
    version: Annotated[str, typer.Option("--version", help="The release's version; it never changes again.")],
    hardware: Annotated[
        list[str], typer.Option("--hardware", help="Hardware id that may run it; may be repeated.")
    ],
    counter: Annotated[
        int,
        typer.Option("--counter", help="Raise it with security fixes: devices never go back below it."),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FOLDER", show_default=False, help="Where to. Default: PRODUCT-VERSION."
        ),
    ] = None,
    notes: Annotated[str, typer.Option("--notes", help="A few words for operators.")] = "",
    sbom: SbomOption = None,
    security: Annotated[
        bool, typer.Option("--security", help="Mark it as a security release; else it is a feature release.")
    ] = False,
    advisory: AdvisoryOption = None,
    support_ends: SupportOption = None,
    level: Annotated[
        int, typer.Option("--level", help="zstd level, 1 (fast) to 22 (small).")
    ] = encode.LEVEL_DEFAULT,
    jobs: Annotated[int, typer.Option("--jobs", help="Threads; 0 means one per processor.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Make a release folder from an image: manifest, compressed payload, and a record of both.

    The image is read once; memory stays the same whatever its size. Nothing is signed yet.

    Example: twinlock release pack rootfs.ext4 --product demo --version 1.1 --hardware demo-board
    """
    request = PackRequest(
        image=image,
        product=check_name(product, "product"),
        version=check_version(version),
        hardware=tuple(hardware),
        out=out or Path(f"{product}-{version}"),
        counter=counter,
        notes=notes,
        sbom=sbom,
        advisory="" if advisory is None else read_advisory(advisory),
        security=security,
        support_ends=support_ends,
        level=level,
        jobs=jobs,
    )
    output = Output(as_json)
    check_request(request)
    with ImageReader(image) as reader:
        size_bytes = reader.size_bytes
    with output.progress(f"packing {image.name}", size_bytes) as advance:
        packed = pack(request, advance)
    output.show(packed_data(packed, request.out), *packed_text(packed, request.out))


@app.command()
def sign(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FOLDER]", show_default=False, help="Release folder; without it, what waits is signed."
        ),
    ] = None,
    repo: RepoOption = Path("repo"),
    keys: KeysOption = Path("keys"),
    allow_lower: Annotated[
        bool, typer.Option("--allow-lower", help="Sign though an older release has a higher counter.")
    ] = False,
    request: Annotated[
        Path | None,
        typer.Option(
            "--request", metavar="FILE", show_default=False, help="Sign this signing request instead."
        ),
    ] = None,
    root: RootFileOption = None,
    agreed: Annotated[
        bool, typer.Option("--yes", help="Sign the request without being asked, for scripts.")
    ] = False,
    passphrase_file: PassphraseOption = None,
    targets_days: TargetsDays = USUAL.targets_days,
    snapshot_days: SnapshotDays = USUAL.snapshot_days,
    timestamp_days: TimestampDays = USUAL.timestamp_days,
    as_json: JsonOption = False,
) -> None:
    """Take a release into the repository and sign it with the keys you have.

    When more signatures are needed, this ends with error key-threshold and keeps yours; the other holders run
    it without FOLDER on the same repository, or sign the file that `twinlock release request` makes with
    --request, on a machine that needs nothing else. What they sign is proven and listed first.

    Example: twinlock release sign demo-1.1 --repo repo --keys keys
    """
    output = Output(as_json)
    if request is not None:
        if folder is not None:
            raise error("input-invalid", "give a release folder or a request, not both")
        release_request.sign_request(output, request, keys, root, passphrase_file, agreed)
        return
    with open_repository(repo, write=True) as repository:
        lifetimes = Lifetimes(USUAL.root_days, targets_days, snapshot_days, timestamp_days)
        run = ceremony(repository, keys, passphrase_file, lifetimes)
        if folder is not None:
            release = read_release(folder)
            if allow_lower:
                _warn_of_counter(repository, release, output)
            with output.progress("proving and copying", _bytes_of([release], copied=True)) as advance:
                releases.take_in(run, release, allow_lower=allow_lower, advance=advance)
        waiting = [one for one in releases.list_releases(repository) if not one.published]
        if folder is None:
            with output.progress(
                "proving what waits", sum(one.claims.image_size_bytes for one in waiting)
            ) as advance:
                releases.check_waiting(repository, advance)
        warn_of_dropped(run, output)
        for one in waiting:
            output.note(f"Signing {_name(one)} for {', '.join(one.claims.hardware)}.")
        in_force = run.complete()
        names = {one.name for one in waiting}
        signed = [one for one in releases.list_releases(repository) if one.name in names]
        output.show(
            {**signed_data(run, in_force), "releases": [_release_data(one) for one in signed]},
            done_text(in_force),
            f"Next: twinlock release publish --repo {repo}",
        )
        warn_of_expiry(repository, output)


@app.command()
def refresh(
    repo: RepoOption = Path("repo"),
    keys: KeysOption = Path("keys"),
    all_: Annotated[
        bool, typer.Option("--all", help="Also renew the list of releases; needs the targets keys.")
    ] = False,
    passphrase_file: PassphraseOption = None,
    targets_days: TargetsDays = USUAL.targets_days,
    snapshot_days: SnapshotDays = USUAL.snapshot_days,
    timestamp_days: TimestampDays = USUAL.timestamp_days,
    as_json: JsonOption = False,
) -> None:
    """Renew the snapshot and timestamp before they end; devices refuse what has expired.

    Run it from a timer, every day or two, with the snapshot and timestamp keys, and publish afterwards.

    Example: twinlock release refresh --repo repo --keys online-keys
    """
    output = Output(as_json)
    with open_repository(repo, write=True) as repository:
        repository.need_root()
        lifetimes = Lifetimes(USUAL.root_days, targets_days, snapshot_days, timestamp_days)
        run = ceremony(repository, keys, passphrase_file, lifetimes)
        if repository.newest("targets") is None:
            raise error(
                "metadata-missing",
                f"{repo} has no signed release",
                hint="sign one with `twinlock release sign`",
            )
        if all_:
            run.renew_targets()
        in_force = run.complete(renew=True)
        output.show(
            signed_data(run, in_force),
            done_text(in_force),
            f"Bring it to the server: twinlock release publish --repo {repo}",
        )
        warn_of_expiry(repository, output)


@app.command()
def abandon(repo: RepoOption = Path("repo"), as_json: JsonOption = False) -> None:
    """Forget what waits for signatures; what is published stays as it is.

    Example: twinlock release abandon --repo repo
    """
    with open_repository(repo, write=True) as repository:
        roles = {role: one.signed.version for role, one in repository.pending.items()}
        repository.pending.clear()
        repository.save_pending()
    named = ", ".join(f"{role} {version}" for role, version in roles.items())
    Output(as_json).show({"abandoned": roles}, f"Forgotten: {named}." if roles else "Nothing was waiting.")


@app.command()
def publish(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PRODUCT/VERSION]...", show_default=False, help="Default: every release."),
    ] = None,
    repo: RepoOption = Path("repo"),
    server: ServerOption = SERVER_DEFAULT,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
    deltas: Annotated[
        int,
        typer.Option(
            "--deltas", min=0, max=BASES_MAX, help="Make deltas from so many images that most devices run."
        ),
    ] = 3,
    as_json: JsonOption = False,
) -> None:
    """Bring signed releases, and the metadata in force, to a server.

    Everything is verified as a device would before anything is sent. Payloads that the server has are not
    sent again, so it can be repeated after any failure. For releases that are new to the server, or named,
    deltas from what the fleet runs are made first, as `twinlock release delta` makes them.

    Example: twinlock release publish --repo repo --server https://updates.example.org --token-file token
    """
    output = Output(as_json)
    operator = connect(server, token, token_file, ca_file)

    def heard(problem: TwinlockError, wait_s: float) -> None:
        output.warn(f"{problem.what}; trying again in {wait_s:.1f} s")

    with open_repository(repo, write=True) as repository:
        upload.check_published(repository, datetime.now(UTC))
        release_delta.make_missing(
            repository, operator, _chosen(repository, names or []), bool(names), deltas, output
        )
    with open_repository(repo, write=False) as repository:
        wanted = _chosen(repository, names or [])
        total = _bytes_of([releases.read_signed(repository, one) for one in wanted], copied=False)
        retry = upload.Retry(sleep=time.sleep, rng=random.Random(), heard=heard)
        with output.progress("checking and sending", total) as advance:
            sent = upload.publish(repository, operator, wanted, datetime.now(UTC), retry, advance)
        output.show(
            {"server": operator.server, "releases": [_sent_data(one) for one in sent]},
            *(_sent_text(one) for one in sent),
            f"Published to {operator.server}." if sent else f"Published the metadata to {operator.server}.",
        )
        warn_of_expiry(repository, output)


@app.command(name="inspect")
def inspect_(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="Release folder, repository, manifest, payload, metadata, request."
        ),
    ],
    root: RootFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a file or folder is and says, and prove what can be proven, offline.

    Example: twinlock release inspect demo-1.1
    """
    output = Output(as_json)
    with output.progress("reading", path.stat().st_size if path.is_file() else 0) as advance:
        found = inspect.inspect(path, datetime.now(UTC), root, advance)
    output.show(found_data(found), *found_parts(found))
    if found.problem is not None:
        raise found.problem


@app.command()
def verify(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Repository, release folder or request.")
    ] = Path("repo"),
    root: RootFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a repository or release as a device would: signatures, ends, hashes, every part of every payload.

    Exit code 0 means that all of it holds. With --root the check starts from that root of trust.

    Example: twinlock release verify repo --root 1.root.json
    """
    found = inspect.inspect(path, datetime.now(UTC), root)
    if found.problem is not None:
        raise found.problem
    Output(as_json).show({"path": str(path), "checks": found.checks}, *(f"ok: {one}" for one in found.checks))


@app.command(name="list")
def list_(
    repo: Annotated[
        Path | None,
        typer.Option(
            "--repo", metavar="FOLDER", show_default=False, help="List a repository, not the server."
        ),
    ] = None,
    server: ServerOption = SERVER_DEFAULT,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """List releases: those of a server, or with --repo those of a repository folder.

    Example: twinlock release list --repo repo
    """
    if repo is not None:
        with open_repository(repo, write=False) as repository:
            rows = [_release_data(one) for one in releases.list_releases(repository)]
    else:
        rows = _server_releases(connect(server, token, token_file, ca_file).get("/releases"), server)
    Output(as_json).show({"releases": rows}, _table(rows))


def _server_releases(answer: Any, server: str) -> list[dict[str, Any]]:
    listed = answer.get("releases") if isinstance(answer, dict) else None
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise error("answer-malformed", f"{server} does not answer with a list of releases")
    return [
        {**one, "release": one["version"], "published": True, "published_at": one.get("published")}
        for one in listed
    ]


def _table(rows: list[dict[str, Any]]) -> Table:
    cells = [
        [
            str(one.get("product")),
            str(one.get("release")),
            str(one.get("counter")),
            ", ".join(map(str, one.get("hardware") or [])),
            size_text(int(one.get("image_size_bytes") or 0)),
            "published" if one.get("published") else "waits for signatures",
        ]
        for one in rows
    ]
    columns = ["product", "version", "counter", "hardware", "image", "state"]
    return Table(columns, cells, empty="there are no releases yet")


def _chosen(repository: Repository, names: Iterable[str]) -> list[SignedRelease]:
    """The releases of these names, all when none is given. Raises TrustError `release-unknown`."""
    found = []
    for name in names:
        product, slash, version = name.partition("/")
        if not slash:
            raise error("input-invalid", f"{name!r} is not PRODUCT/VERSION", hint="like demo/1.1")
        found.append(releases.find_release(repository, product, version))
    return found or releases.list_releases(repository)


def _bytes_of(found: Iterable[Release], *, copied: bool) -> int:
    """How many bytes of progress: images proven and payloads copied, or payloads checked and sent."""
    total = 0
    for release in found:
        for payload in release.record.payloads:
            proven = copied and payload.kind == "full"
            total += payload.size_bytes + (
                release.manifest.image_size_bytes if proven else payload.size_bytes
            )
    return total


def _warn_of_counter(repository: Repository, release: Release, output: Output) -> None:
    try:
        releases.check_counter(repository, release.manifest)
    except TwinlockError as problem:
        output.warn(problem.what)


def _name(one: SignedRelease) -> str:
    return f"{one.claims.product} {one.claims.version}"


def _release_data(one: SignedRelease) -> dict[str, Any]:
    return {
        "product": one.claims.product,
        "release": one.claims.version,
        "counter": one.claims.counter,
        "hardware": list(one.claims.hardware),
        "image_size_bytes": one.claims.image_size_bytes,
        "manifest_sha256": one.manifest_sha256,
        "published": one.published,
    }


def _sent_data(one: upload.Sent) -> dict[str, Any]:
    return {"name": one.name, "new": one.new, "sent_bytes": one.sent_bytes, "spared_bytes": one.spared_bytes}


def _sent_text(one: upload.Sent) -> str:
    state = "published" if one.new else "known already"
    return f"{one.name}: {state}, {size_text(one.sent_bytes)} sent, {size_text(one.spared_bytes)} spared"
