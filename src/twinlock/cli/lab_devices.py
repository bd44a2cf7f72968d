"""`twinlock lab cut` and `twinlock lab run`: whole virtual devices with real loaders, kernels and agents."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from twinlock.cli.api import Api
from twinlock.cli.ending import ended_by_signals
from twinlock.cli.output import JsonOption, Output, Table
from twinlock.core.durable import os_errors, read_bounded, write_atomic
from twinlock.core.errors import error
from twinlock.lab import report as reports
from twinlock.lab.qemu import build, cuts, scenarios, stage
from twinlock.lab.qemu.machine import Architecture
from twinlock.lab.scenario import Report
from twinlock.provision import layout

SEED_MAX: Final = (1 << 63) - 1
COUNT_MAX: Final = 10_000
DEVICE_ID: Final = "lab-device"
# Cuts happen on trial boots too, and each costs a try.
CUT_TRIES: Final = 7


class Device(StrEnum):
    """A board of the lab."""

    ARM64 = "qemu-arm64"
    X86 = "qemu-x86"


ARCHITECTURES: Final[dict[Device, Architecture]] = {Device.ARM64: "arm64", Device.X86: "x86-64"}
DeviceOption = Annotated[
    Device, typer.Option("--device", help="ARM64 with U-Boot, or x86-64 with UEFI and GRUB.")
]
TreeOption = Annotated[
    Path | None,
    typer.Option(
        "--image",
        metavar="TREE",
        show_default=False,
        help="Your root file system, a folder or a tar archive; else a small Debian of the lab's own.",
    ),
]
DiskOption = Annotated[
    Path | None,
    typer.Option("--disk", metavar="DISK.toml", show_default=False, help="Your disk's description."),
]
FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        metavar="DIR",
        show_default=False,
        help="Where everything goes and stays: disks, logs, keys. Else a temporary folder.",
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the commands to `twinlock lab`."""
    app.command("cut")(cut)
    app.command("run")(run)


def cut(
    device: DeviceOption = Device.ARM64,
    count: Annotated[int, typer.Option("--count", min=1, max=COUNT_MAX, help="How many cuts.")] = 10,
    seed: Annotated[int, typer.Option("--seed", min=0, max=SEED_MAX, help="Plans the cuts.")] = 0,
    image: TreeOption = None,
    disk: DiskOption = None,
    folder: FolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cut the power of a virtual device at random writes of real updates, again and again.

    After every cut the medium is looked at as the loader will see it: what boots next must be a whole
    release. Sectors that were not flushed are lost or kept by the seed. The device then goes on by itself.

    Example: twinlock lab cut --device qemu-x86 --count 20 --seed 7
    """
    output = Output(as_json)
    with _stage(output, device, image, disk, folder, tries=CUT_TRIES) as played:
        boot_s = played.begin()
        played.power_off(seed)
        done = cuts.run(played, seed, count)
    rows = [
        [
            str(one.number),
            str(one.at_write),
            one.phase,
            f"{one.kept}/{one.unflushed}",
            f"{one.next_slot}: {one.next_version}",
        ]
        for one in done.cuts
    ]
    output.show(
        {"device": device.value, "boot_s": round(boot_s, 1), **done.as_data()},
        Table(["cut", "at write", "while", "sectors kept", "boots next"], rows),
        *(f"{version}: {state} {code}".rstrip() for version, state, code in done.outcomes),
        *(f"VIOLATION: {what}" for what in done.violations),
        f"{len(done.cuts)} cuts, {len(done.violations)} violations (seed {seed})",
    )
    if done.violations:
        raise error(
            "lab-violations",
            f"{len(done.violations)} violations in {len(done.cuts)} cuts",
            hint=f"repeat it with --seed {seed} --folder DIR and look at the disk there",
        )


def run(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="SCENARIO...",
            show_default=False,
            help=f"all, or some of: {', '.join(scenarios.BY_NAME)}.",
        ),
    ],
    device: DeviceOption = Device.ARM64,
    image: TreeOption = None,
    disk: DiskOption = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE.html", help="Also write the report as a page."),
    ] = None,
    folder: FolderOption = None,
    as_json: JsonOption = False,
) -> None:
    """Play what goes wrong in the field on a virtual device with your own image, and report what came of it.

    The image is prepared as `twinlock disk install` does it, for a server that runs on this machine.

    Example: twinlock lab run all --image rootfs/ --disk DISK.toml --report lab.html
    """
    output = Output(as_json)
    wanted = _wanted(names)
    with _stage(output, device, image, disk, folder, tries=1) as played:
        boot_s = played.begin()
        results = scenarios.run(played, wanted)
        facts: dict[str, float | int | str] = {
            "first boot, s": round(boot_s, 1),
            "slot, bytes": played.image_size_bytes,
            "accelerator": played.accelerator,
        }
    made = Report(device.value, image.name if image else "Debian", tuple(results), facts)
    if report is not None:
        write_atomic(report, reports.html(made).encode("utf-8"), mode=0o644)
    rows = [
        [
            one.name,
            "passed" if one.passed else "FAILED",
            f"{one.seconds:.0f} s",
            str(one.figures.get("service away, s", "")),
            "; ".join(one.problems),
        ]
        for one in results
    ]
    output.show(
        made.as_data(),
        Table(["scenario", "verdict", "took", "service away, s", "problem"], rows),
        *([f"report: {report}"] if report else []),
    )
    if not made.passed:
        failed = ", ".join(one.name for one in results if not one.passed)
        raise error("lab-violations", f"not passed: {failed}", hint="--folder DIR keeps the console's log")


def _wanted(names: list[str]) -> list[scenarios.Scenario]:
    if names == ["all"]:
        return list(scenarios.SCENARIOS)
    for name in names:
        if name not in scenarios.BY_NAME:
            raise error(
                "input-invalid", f"scenario {name!r} is not known: all, {', '.join(scenarios.BY_NAME)}"
            )
    return [scenarios.BY_NAME[name] for name in names]


@contextmanager
def _stage(
    output: Output, device: Device, image: Path | None, disk: Path | None, folder: Path | None, *, tries: int
) -> Iterator[stage.Stage]:
    spec = None
    if disk is not None:
        data: Any = read_bounded(disk, layout.SPEC_SIZE_BYTES_MAX, "disk description")
        try:
            spec = layout.parse_spec(data.decode("utf-8"))
        except UnicodeDecodeError as problem:
            raise error("input-wrong-type", f"disk description {disk} is not a text") from problem
    with ended_by_signals(), _place(folder) as place:
        tree = None if image is None else _copied(image, place / "tree")
        settings = build.Settings(DEVICE_ID, tries=tries)
        with stage.opened(
            ARCHITECTURES[device], place / "lab", Api, settings, spec=spec, tree=tree, note=output.note
        ) as played:
            for note in played.builder.notes:
                output.warn(note)
            yield played


@contextmanager
def _place(folder: Path | None) -> Iterator[Path]:
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="twinlock-lab-") as temporary:
            yield Path(temporary)
        return
    with os_errors(f"folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise error("input-invalid", f"{folder} is not empty", hint="name a folder that is")
    yield folder.absolute()


def _copied(image: Path, tree: Path) -> Path:
    """The user's tree, as a copy that the lab may change."""
    if image.is_dir():
        with os_errors(f"tree {image}"):
            shutil.copytree(image, tree, symlinks=True)
        return tree
    if not image.exists():
        raise error("input-missing", f"there is no {image}")
    return build.extract(image, tree)
