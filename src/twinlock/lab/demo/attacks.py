"""The demo's sixth step: a damaged release and a forged one, refused by code, the device untouched."""

from __future__ import annotations

import base64
import shutil
from typing import TYPE_CHECKING, Any

from twinlock.core import limits
from twinlock.core.errors import EXIT_CODES, Kind, TwinlockError
from twinlock.lab import images
from twinlock.lab.demo.scene import PRODUCT, Row, check, expect, expect_run
from twinlock.lab.workshop import Workshop
from twinlock.publish.payload_file import PayloadFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO

    from twinlock.lab.demo.scene import Scene
    from twinlock.publish.upload import Operator

DAMAGED = "1.3"
FORGED = "1.4"


class _UnderRoot:
    """An operator API through which a stranger shows the true root, which is public, above their own
    signatures: what somebody with a stolen operator's token can do."""

    def __init__(self, operator: Operator, root: bytes) -> None:
        self._operator = operator
        self._root = base64.b64encode(root).decode("ascii")

    def get(self, path: str) -> Any:
        return self._operator.get(path)

    def post(self, path: str, body: Any) -> Any:
        return self._operator.post(path, {**body, "metadata": {**body["metadata"], "roots": [self._root]}})

    def payload_size_bytes(self, sha256: str) -> int | None:
        return self._operator.payload_size_bytes(sha256)

    def put_payload(
        self, sha256: str, file: BinaryIO, size_bytes: int, advance: Callable[[int], None]
    ) -> bool:
        return self._operator.put_payload(sha256, file, size_bytes, advance)


def refuse_both(scene: Scene) -> str:
    """Step 6."""
    before = scene.state_of_device()
    _damaged(scene)
    expect(scene.state_of_device(), before, "the device after the damaged release")
    _forged(scene)
    expect(scene.state_of_device(), before, "the device after the forged release")
    expect(scene.device.boot().slot, before.booted, "the slot of the next boot")
    expect_run(scene.device.run_agent(), 0, "the next poll")
    scene.show.fact(
        f"the device is as before: {PRODUCT} 1.1 in slot {before.booted}, boot record and floor unchanged"
    )
    return "Tried a release with one bit flipped and one signed by a stranger: both were refused."


def _damaged(scene: Scene) -> None:
    """A release that is signed as it should be; one bit of its payload then changes on the server's disk."""
    workshop = scene.workshop
    packed = workshop.pack(scene.images["1.0"], DAMAGED, 4)
    scene.packed[DAMAGED] = packed
    workshop.sign([packed])
    workshop.publish(scene.operator, [packed])
    payload = scene.server.folder / "payloads" / f"{packed.payload_sha256}.payload"
    # The free slot still holds 1.2: what both have in common is not fetched, and so would not be missed.
    images.flip_bit(payload, _inside_what_differs(payload, scene.images["1.0"], scene.images["1.2"]))
    rollout = scene.roll_out(DAMAGED)
    done = scene.run_agent(f"fetching {DAMAGED}", packed.payload_size_bytes)
    expect_run(done, EXIT_CODES[Kind.TRUST], "the run on a damaged payload")
    found = scene.note_outcome(f"{DAMAGED} (one bit flipped)", "failed", rollout)
    expect(found["code"], "payload-part-hash", "the code that the server has")
    scene.show.fact(f"{DAMAGED}, one bit flipped: {found['code']}: {found['detail']}")


def _inside_what_differs(payload: Path, image: Path, held: Path) -> int:
    """A place in the part of a segment that `image` has and `held` has not, at the same place."""
    with PayloadFile(payload) as file:
        index = file.index
    size_bytes = limits.SEGMENT_SIZE_BYTES
    with image.open("rb") as wanted, held.open("rb") as there:
        different = [
            number
            for number, part in enumerate(index.parts)
            if wanted.read(size_bytes) != there.read(size_bytes) and part.length
        ]
    number = different[len(different) // 2]
    return index.offsets()[number] + index.parts[number].length // 2


def _forged(scene: Scene) -> None:
    """A stranger's repository, right in every way but for its keys: first published, then forced in."""
    stranger = Workshop.make(scene.folder / "stranger")
    packed = stranger.pack(scene.images["1.0"], FORGED, 5)
    stranger.sign([packed])
    refused: TwinlockError | None = None
    try:
        stranger.publish(_UnderRoot(scene.operator, scene.workshop.root), [packed])
    except TwinlockError as problem:
        refused = problem
    check(refused is not None, "the server took a release that a stranger signed")
    assert refused is not None
    expect(refused.code, "metadata-signature", "the code with which the server refuses a stranger")
    scene.show.fact(f"{FORGED}, signed by a stranger: the server refuses it: {refused.code}: {refused.what}")

    served = scene.server.folder / "repository/metadata"
    kept = scene.folder / "kept-metadata"
    shutil.copytree(served, kept)
    try:
        for name in ("timestamp.json", "1.snapshot.json", "1.targets.json"):
            shutil.copyfile(stranger.repo / "metadata" / name, served / name)
        rollout = scene.roll_out("1.0")
        done = scene.run_agent()
        expect_run(done, EXIT_CODES[Kind.TRUST], "the run on a stranger's metadata")
        found = scene.assignment(rollout)
        expect((found["state"], found["code"]), ("failed", "metadata-signature"), "what the server has of it")
    finally:
        shutil.copytree(kept, served, dirs_exist_ok=True)
    scene.rows.append(
        Row(
            f"{FORGED} (signed by a stranger)",
            "refused",
            found["bytes_fetched"],
            found["duration_s"],
            f"{found['code']}: {found['detail']}",
        )
    )
    scene.show.fact(f"forced into the server's folder: the device refuses it: {found['code']}")
