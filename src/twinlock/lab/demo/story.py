"""The whole demo: seven steps in order, timed, and named when one of them does not hold."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from twinlock.core.durable import os_errors
from twinlock.core.errors import TwinlockError, error
from twinlock.lab import ext4, images
from twinlock.lab.demo import attacks, steps
from twinlock.lab.demo.scene import Scene, clock, expect
from twinlock.publish.locking import folder_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from twinlock.lab.demo.scene import Row, Show
    from twinlock.publish.upload import Operator

MARK: Final = "twinlock-demo"  # a folder with this file is one that a demo may clear
FREE_TIMES: Final = 14  # what the demo leaves on the disk, in images


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the story."""

    title: str
    act: Callable[[Scene], str]


def _sum_up(scene: Scene) -> str:
    """Step 7. The table itself is the caller's."""
    outcomes = [row.outcome for row in scene.rows]
    expect(outcomes, ["succeeded", "rolled_back", "failed", "refused"], "the outcomes")
    return "One release was committed, one rolled back, two were refused; the device never stopped working."


STEPS: Final = (
    Step("Build three system images", steps.build_images),
    Step("Make keys, pack, sign and publish three releases", steps.make_releases),
    Step("Make a virtual device and enrol it", steps.make_device),
    Step("Roll out 1.1 over a bad link", steps.roll_out_good),
    Step("Roll out 1.2, which is broken", steps.roll_out_bad),
    Step("Try a damaged release and a forged one", attacks.refuse_both),
    Step("Sum up", _sum_up),
)


@dataclass(frozen=True, slots=True)
class Told:
    """How one step went."""

    number: int
    title: str
    sentence: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Ended:
    """How the demo went; the server still runs."""

    told: tuple[Told, ...]
    rows: tuple[Row, ...]
    server: str
    page: str


@contextmanager
def tell(
    folder: Path,
    show: Show,
    connect: Callable[[str, str], Operator],
    *,
    image_size_bytes: int = images.SIZE_BYTES,
) -> Iterator[Ended]:
    """Runs the demo in `folder`, then the block while the server goes on; ends all that it started.

    `connect` makes a client of the operator API from the server's address and a token. Raises the
    TwinlockError of the step that failed, its name and number in front of what happened.
    """
    ext4.find_tool("mke2fs")
    ext4.find_tool("debugfs")
    _check_folder(folder)
    with folder_lock(folder):
        _prepare(folder, image_size_bytes)
        scene = Scene(folder, show, connect, image_size_bytes)
        with scene.life:
            told = tuple(_run(scene, number, step) for number, step in enumerate(STEPS, start=1))
            yield Ended(told, tuple(scene.rows), scene.server.url, scene.server.page)


def _run(scene: Scene, number: int, step: Step) -> Told:
    scene.show.begin(number, step.title)
    began = clock()
    try:
        sentence = step.act(scene)
    except TwinlockError as problem:
        what = f"demo step {number} ({step.title}): {problem.what}"
        raise error(problem.code, what, hint=problem.hint) from problem
    seconds = clock() - began
    scene.show.done(sentence, seconds)
    return Told(number, step.title, sentence, seconds)


def _check_folder(folder: Path) -> None:
    """The folder is there, and may be cleared. Raises InputError `input-exists` for somebody else's."""
    with os_errors(f"folder {folder}"):
        if folder.exists() and not (folder / MARK).is_file() and any(folder.iterdir()):
            raise error(
                "input-exists",
                f"{folder} is not empty, and not from an earlier demo",
                hint="choose another place with --folder",
            )
        folder.mkdir(parents=True, exist_ok=True)


def _prepare(folder: Path, image_size_bytes: int) -> None:
    """Empties the folder. Raises DeviceError `disk-full` when there is too little space for a demo."""
    with os_errors(f"folder {folder}"):
        clear(folder)
        (folder / MARK).write_text("Made by `twinlock demo`, which clears this folder when it runs.\n")
        free = shutil.disk_usage(folder).free
    if free < FREE_TIMES * image_size_bytes:
        raise error(
            "disk-full",
            f"{folder} has {steps.mib(free)} free, the demo needs {steps.mib(FREE_TIMES * image_size_bytes)}",
        )


def clear(folder: Path) -> None:
    """Removes what a demo left in its folder; the folder itself stays. Raises OSError."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def as_data(ended: Ended) -> dict[str, Any]:
    """The demo's result for programs."""
    return {
        "ok": True,
        "server": ended.server,
        "page": ended.page,
        "steps": [
            {
                "number": one.number,
                "title": one.title,
                "sentence": one.sentence,
                "seconds": round(one.seconds, 3),
            }
            for one in ended.told
        ],
        "releases": [
            {
                "release": row.release,
                "outcome": row.outcome,
                "bytes_fetched": row.bytes_fetched,
                "seconds": round(row.seconds, 3),
                "reason": row.reason,
            }
            for row in ended.rows
        ],
    }
