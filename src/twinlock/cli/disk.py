"""`twinlock disk`: what a device's disk holds, prepared and built offline, without root."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from twinlock.cli.output import JsonOption, Output, Table
from twinlock.cli.text import size_text
from twinlock.core.durable import read_bounded
from twinlock.core.errors import error
from twinlock.provision import disk, layout, rootfs
from twinlock.provision.layout import Plan
from twinlock.provision.sizes import parse_size

app: Final = typer.Typer(no_args_is_help=True, help="Make a device's disk image and its root file system.")


class Architecture(StrEnum):
    """What a device's loader runs on."""

    ARM = "arm"
    ARM64 = "arm64"
    RISCV = "riscv"
    X86 = "x86"
    X86_64 = "x86-64"


DescriptionArgument = Annotated[
    Path,
    typer.Argument(metavar="DISK.toml", show_default=False, help="The disk's description; may be empty."),
]
RootOption = Annotated[
    Path | None,
    typer.Option("--root", metavar="FILE", help="The root of trust (1.root.json) for the image."),
]
DirectorOption = Annotated[
    Path | None,
    typer.Option(
        "--director",
        metavar="FILE",
        help="The director's root (1.root.json): the device then takes no release without its word.",
    ),
]
CriticalOption = Annotated[
    list[str] | None,
    typer.Option("--critical-unit", help="A unit that must be up, or a release does not stay; repeatable."),
]
CaFileOption = Annotated[
    Path | None,
    typer.Option("--ca-file", help="Certificates (PEM) to trust for the server, for the image."),
]


def _plan(description: Path) -> Plan:
    data = read_bounded(description, layout.SPEC_SIZE_BYTES_MAX, "disk description")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error("input-wrong-type", f"disk description {description} is not a text") from problem
    return layout.plan(layout.parse_spec(text))


def _plan_data(made: Plan) -> dict[str, Any]:
    return {
        "name": made.spec.name,
        "table": made.spec.table,
        "loader": made.spec.loader.kind,
        "size_bytes": made.disk_size_bytes,
        "slot_image_size_bytes_max": made.slot_image_size_bytes_max,
        "record_offsets_bytes": list(made.record_offsets),
        "partitions": [
            {
                "role": part.role,
                "number": part.number,
                "start_bytes": part.start_bytes,
                "size_bytes": part.size_bytes,
                "partuuid": part.partuuid,
            }
            for part in made.partitions
        ],
    }


def _plan_table(made: Plan) -> Table:
    rows = [
        (part.role, str(part.number), size_text(part.start_bytes), size_text(part.size_bytes), part.partuuid)
        for part in made.partitions
    ]
    return Table(("role", "no.", "start", "size", "PARTUUID"), rows)


@app.command()
def plan(description: DescriptionArgument, as_json: JsonOption = False) -> None:
    """Show the partitions that a disk description gives, without making anything.

    An empty description is the default: two slots of 1 GiB for an eMMC board with U-Boot.
    """
    made = _plan(description)
    Output(as_json).show(
        _plan_data(made),
        _plan_table(made),
        f"disk image: {size_text(made.disk_size_bytes)}; an image for a slot may have "
        f"{size_text(made.slot_image_size_bytes_max)}",
    )


@app.command()
def install(
    tree: Annotated[Path, typer.Argument(metavar="TREE", show_default=False, help="The root file system.")],
    description: DescriptionArgument,
    server: Annotated[str, typer.Option("--server", help="Address that devices poll.", show_default=False)],
    product: Annotated[str, typer.Option("--product", show_default=False)],
    hardware: Annotated[str, typer.Option("--hardware", show_default=False)],
    packages: Annotated[
        Path | None,
        typer.Option(
            "--packages",
            help="A folder of Python packages for the device (pip install --target DIR).",
        ),
    ] = None,
    python: Annotated[str, typer.Option("--python", help="The device's Python.")] = "/usr/bin/python3",
    init: Annotated[str, typer.Option("--init", help="The system's own first program.")] = "/sbin/init",
    data: Annotated[str, typer.Option("--data", help="Where the data partition is mounted.")] = "/data",
    application: Annotated[
        list[str] | None,
        typer.Option("--application", help="Below data: what the first reset tier removes; may be repeated."),
    ] = None,
    device_file: Annotated[
        str, typer.Option("--disk", help="The whole disk, like /dev/mmcblk0; else found by PARTUUID.")
    ] = "",
    poll_s: Annotated[int, typer.Option("--poll-s", help="Seconds between polls.")] = 900,
    watchdog_s: Annotated[int, typer.Option("--watchdog-s", help="0 leaves the watchdog off.")] = 30,
    critical: CriticalOption = None,
    root: RootOption = None,
    director: DirectorOption = None,
    ca_file: CaFileOption = None,
    recovery: Annotated[
        bool, typer.Option("--recovery", help="The tree is the recovery system's, not a slot's.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Add the agent, its units and the first boot's scripts to a root file system that your build made.

    Nothing of your build is replaced but /etc/machine-id, which must not be the same on every device.
    """
    options = rootfs.RootfsOptions(
        plan=_plan(description),
        agent=rootfs.AgentOptions(
            server,
            product,
            hardware,
            poll_s=poll_s,
            critical_units=tuple(critical or ()),
            root=root,
            director=director,
            ca_file=ca_file,
        ),
        packages=packages,
        python=python,
        init=init,
        data_mount=data,
        application_paths=tuple(application or ["app"]),
        watchdog_s=watchdog_s,
        disk=device_file,
        recovery=recovery,
    )
    done = rootfs.install(tree, options)
    output = Output(as_json)
    for note in done.notes:
        output.warn(note)
    output.show(
        {"files": done.files, "notes": done.notes},
        f"{len(done.files)} files are in {tree}; build the disk with `twinlock disk build`",
    )


@app.command()
def image(
    tree: Annotated[Path, typer.Argument(metavar="TREE", show_default=False, help="Folder or tar archive.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The image to write.")] = Path("slot.img"),
    description: Annotated[
        Path | None, typer.Option("--disk", help="The disk's description, for its slots' size and kind.")
    ] = None,
    size: Annotated[
        str, typer.Option("--size", help="Size of an ext4 image; else all that a slot has for it.")
    ] = "",
    keep_owners: Annotated[bool, typer.Option("--keep-owners", help="Else root owns every file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make the image of a slot from a root file system: what `twinlock release pack` takes.

    The same tree gives the same bytes, whoever builds it and when.
    """
    made = _plan(description) if description is not None else layout.plan(layout.DiskSpec())
    if out.exists():
        raise error("input-exists", f"{out} exists")
    size_bytes = parse_size(size, "--size") if size else None
    if size_bytes is not None and not 0 < size_bytes <= made.slot_image_size_bytes_max:
        raise error("image-too-large", f"--size {size} is not within {made.slot_image_size_bytes_max} bytes")
    disk.make_image(
        tree,
        out,
        made.slot_image_size_bytes_max,
        filesystem=made.spec.slot.filesystem,
        name="twinlock-root",
        keep_owners=keep_owners,
        size_bytes=size_bytes,
    )
    written = out.stat().st_size
    Output(as_json).show({"image": str(out), "size_bytes": written}, f"{out}: {size_text(written)}")


@app.command()
def build(
    description: DescriptionArgument,
    a: Annotated[Path, typer.Option("--a", help="Slot a: folder, tar archive or image.", show_default=False)],
    b: Annotated[Path | None, typer.Option("--b", help="Slot b; empty unless you say so.")] = None,
    recovery: Annotated[Path | None, typer.Option("--recovery", help="The recovery system.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Files for the data partition.")] = None,
    boot: Annotated[Path | None, typer.Option("--boot", help="Further files for the boot partition.")] = None,
    raw: Annotated[Path | None, typer.Option("--raw", help="The folder of the raw loader files.")] = None,
    architecture: Annotated[
        Architecture, typer.Option("--arch", help="What the loader runs on.")
    ] = Architecture.ARM64,
    keep_owners: Annotated[bool, typer.Option("--keep-owners", help="Else root owns every file.")] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="The image to write.")] = Path("disk.img"),
    as_json: JsonOption = False,
) -> None:
    """Build a flashable disk image: offline, without root, without mounting anything.

    Example: twinlock disk build disk.toml --a rootfs.tar --recovery rescue.tar --out board.img
    """
    for path in (a, b, recovery, data, boot, raw):
        if path is not None and not path.exists():
            raise error("input-missing", f"{path} does not exist")
    if out.exists():
        raise error("input-exists", f"{out} exists")
    made = _plan(description)
    trees = disk.Trees(a, b, recovery, data, boot, raw, keep_owners)
    built = disk.build(made.spec, trees, out, architecture=architecture.value)
    output = Output(as_json)
    if recovery is None and built.plan.get("recovery") is not None:
        output.warn("the recovery partition is empty: a device with two bad slots needs a visit")
    output.show(
        {"image": str(out), **_plan_data(built.plan)},
        _plan_table(built.plan),
        f"{out}: {size_text(built.plan.disk_size_bytes)}, most of it holes; write it with bmaptool or dd",
    )
