"""The demo's first five steps: images, keys and releases, a device, a good release, a bad one.

Each takes the scene, does its part with the product's own code, checks what came of it, and gives one
sentence. What is said about outcomes and reasons is read from the server.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from twinlock.core import limits
from twinlock.core.errors import EXIT_CODES, Kind
from twinlock.core.names import release_name
from twinlock.lab import images, virtual
from twinlock.lab.demo.scene import DEVICE_ID, PRODUCT, check, expect, expect_run
from twinlock.lab.proxy import Cut, FaultProxy
from twinlock.lab.virtual import REBOOT_WANTED, VirtualDevice
from twinlock.lab.workshop import HOLDERS, THRESHOLD, ServerProcess, Workshop

if TYPE_CHECKING:
    from twinlock.lab.demo.scene import Scene

LINK_BYTES_S: Final = 6_000_000
CUTS: Final = (0.3, 0.65)  # of the payload
# The link is cut and bits are flipped at places of the full payload, which therefore has to travel.
ALL_OF_IT: Final = 'ways = ["full"]'
_LABELS: Final = {"1.0": "the factory's", "1.1": "a good one", "1.2": "one whose health check will fail"}


def mib(size_bytes: int) -> str:
    """A size for people."""
    if size_bytes >= limits.MIB:
        return f"{size_bytes / limits.MIB:.1f} MiB"
    return f"{size_bytes / limits.KIB:.0f} KiB" if size_bytes >= limits.KIB else f"{size_bytes} bytes"


def build_images(scene: Scene) -> str:
    """Step 1."""
    folder = scene.folder / "images"
    recipes = [images.sized(recipe, scene.image_size_bytes) for recipe in images.STANDARD]
    with scene.show.bar("building images", len(recipes) * scene.image_size_bytes) as advance:
        for recipe in recipes:
            scene.images[recipe.version] = images.build(recipe, folder)
            advance(scene.image_size_bytes)
    for recipe in recipes:
        used = images.used_percent(scene.images[recipe.version])
        check(used > 50, f"image {recipe.version} is mostly empty")
        scene.show.fact(f"{recipe.version}, {_LABELS[recipe.version]}: {used} % of it is in use")
    size = mib(scene.image_size_bytes)
    return f"Built three ext4 images of {size} each from real files of this machine."


def make_releases(scene: Scene) -> str:
    """Step 2."""
    scene.workshop = workshop = Workshop.make(scene.folder / "build")
    scene.show.fact(
        f"keys of {', '.join(HOLDERS)} made offline: root and targets need {THRESHOLD} of {len(HOLDERS)}; "
        f"{HOLDERS[-1]}'s stay in a drawer"
    )
    with scene.show.bar("packing", 3 * scene.image_size_bytes) as advance:
        for counter, (version, image) in enumerate(scene.images.items(), start=1):
            scene.packed[version] = workshop.pack(image, version, counter, advance=advance)
    signers = workshop.sign(list(scene.packed.values()))
    expect(sum(role == "targets" for role, _ in signers), THRESHOLD, "the number of targets signatures")
    scene.director = director = workshop.make_director()
    server = ServerProcess.make(scene.folder / "server", workshop.root, director=director)
    scene.life.callback(server.stop)
    server.start()
    scene.server = server
    total = sum(one.payload_size_bytes for one in scene.packed.values())
    with scene.show.bar("publishing", 2 * total) as advance:
        workshop.publish(scene.operator, list(scene.packed.values()), advance)
    known = {one["version"] for one in scene.operator.get("/releases")["releases"]}
    expect(known, set(scene.packed), "the releases that the server lists")
    for version, one in scene.packed.items():
        scene.show.fact(
            f"{version}: {mib(one.release.size_bytes)} image, {mib(one.payload_size_bytes)} to fetch, "
            f"{one.segments} segments"
        )
    scene.show.fact(
        f"a director's root, signed by {THRESHOLD} of them: its online key is the only one at the server"
    )
    return "Packed and signed three releases, and published them to a server on this machine."


def make_device(scene: Scene) -> str:
    """Step 3."""
    factory = scene.packed["1.0"].release
    scene.proxy = proxy = FaultProxy(scene.server.url, rate_bytes_s=LINK_BYTES_S)
    proxy.start()
    scene.life.callback(proxy.stop)
    scene.device = device = VirtualDevice.provision(
        scene.folder / "device",
        scene.images["1.0"],
        factory,
        server=proxy.url,
        root=scene.workshop.root,
        device_id=DEVICE_ID,
        director=scene.director.root,
        settings={"network": f"{virtual.NETWORK}\n{ALL_OF_IT}"},
    )
    expect(device.boot().slot, "a", "the slot of the first boot")
    enrolled = device.run_agent("enrol", "--json")
    expect_run(enrolled, 0, "enrolling")
    said = json.loads(enrolled.stdout)
    expect(said["status"], "pending", "the enrolment before the operator's word")
    refused = device.run_agent()
    expect_run(refused, EXIT_CODES[Kind.POLICY], "the run of a device that is not accepted")
    listed = scene.operator.get(f"/devices/{DEVICE_ID}")
    expect(listed["fingerprint"], said["fingerprint"], "the key's fingerprint at the server")
    scene.operator.post(f"/devices/{DEVICE_ID}/accept", {})
    expect_run(device.run_agent(), 0, "the first poll")
    scene.expect_running("a", factory.version)
    layout = ", ".join(f"{part.role} {mib(part.size_bytes)}" for part in device.disk.plan.partitions)
    scene.show.fact(f"one disk file: {layout}")
    scene.show.fact(f"its own key {said['fingerprint'][:16]}..., refused until the operator accepted it")
    scene.show.fact("made with the director's root: it takes only what is signed for it alone, too")
    return f"Made a virtual device that runs {factory.version} in slot a, and enrolled it with its own key."


def roll_out_good(scene: Scene) -> str:
    """Step 4."""
    device, proxy, packed = scene.device, scene.proxy, scene.packed["1.1"]
    size_bytes = packed.fetched_size_bytes
    before = proxy.counts().payload_bytes
    first, second = (before + int(size_bytes * part) for part in CUTS)
    proxy.add(Cut(first))
    proxy.add(Cut(second, away=True))
    rollout = scene.roll_out("1.1")

    cut = scene.run_agent("fetching 1.1", size_bytes)
    expect_run(cut, EXIT_CODES[Kind.TRANSPORT], "the run that the cut ended")
    came = proxy.counts().payload_bytes - before
    expect(device.disk.record().default, "a", "the committed slot while the link is away")
    scene.show.fact(f"link cut after {mib(first - before)}: reconnected and went on")
    scene.show.fact(f"link cut again after {mib(came)} and away: the agent gave up for now")
    proxy.down = False
    resumed = scene.run_agent("fetching the rest", size_bytes - came)
    expect_run(resumed, REBOOT_WANTED, "the run that armed slot b")

    counts = proxy.counts()
    again = counts.payload_bytes - before - size_bytes
    expect(counts.cuts, len(CUTS), "the number of cuts")
    most = len(CUTS) * limits.SEGMENT_SIZE_BYTES
    check(0 <= again <= most, f"{again} bytes were fetched twice, allowed are {most}")
    scene.show.fact(
        f"the next run fetched the rest: {mib(again)} of {mib(size_bytes)} came twice "
        f"(allowed: {mib(most)}, one segment per cut)"
    )

    expect(scene.directed(), [release_name(PRODUCT, "1.1")], "what the director signed for this device")
    expect(device.boot().slot, "b", "the slot that the loader tries")
    expect_run(device.run_agent(), 0, "the trial")
    found = scene.note_outcome("1.1", "succeeded", rollout)
    check(found["bytes_again"] <= most, f"the device reports {found['bytes_again']} bytes fetched twice")
    _expect_runs(scene, "b", "1.1")
    return "Rolled out 1.1 over a link that was cut twice: resumed, booted slot b, healthy, committed."


def roll_out_bad(scene: Scene) -> str:
    """Step 5."""
    device = scene.device
    rollout = scene.roll_out("1.2")
    armed = scene.run_agent("fetching 1.2", scene.packed["1.2"].fetched_size_bytes)
    expect_run(armed, REBOOT_WANTED, "the run that armed slot a")
    expect(device.boot().slot, "a", "the slot that the loader tries")
    held = device.release_in("a", scene.releases())
    expect(held and held.version, "1.2", "the release in the slot on trial")
    expect_run(device.run_agent(), REBOOT_WANTED, "the failed trial")
    expect(device.boot().slot, "b", "the slot after the failed trial")
    expect_run(device.run_agent(), 0, "the run back in the old slot")
    found = scene.note_outcome("1.2", "rolled_back", rollout)
    expect(found["code"], "health-failed", "the code that the server has")
    check("schema 7" in found["detail"], f"the server does not know why: {found['detail']!r}")
    check("a" in device.disk.record().failed, "slot a can still boot")
    _expect_runs(scene, "b", "1.1")
    scene.show.fact(f"the server knows why: {found['code']}: {found['detail']}")
    return "Rolled out 1.2: it booted, its health check failed, and the device went back to 1.1 by itself."


def _expect_runs(scene: Scene, slot: str, version: str) -> None:
    """Loader, disk and server agree on what runs, committed."""
    device = scene.device
    record = device.disk.record()
    expect((record.default, record.trying), (slot, None), "the boot record's committed slot and trial")
    held = device.release_in(slot, scene.releases())
    expect(held and held.version, version, f"the release in slot {slot}, byte for byte")
    scene.expect_running(slot, version)
