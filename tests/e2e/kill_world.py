"""A server with three releases, and as many devices as wanted, for tests that break what they do."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from twinlock.agent import config
from twinlock.agent.clock import SystemClock, SystemRandom
from twinlock.agent.enrol import enrol
from twinlock.agent.http import HttpNetwork
from twinlock.agent.store import FolderStore
from twinlock.cli.api import Api
from twinlock.core.limits import MIB
from twinlock.lab import images, virtual
from twinlock.lab.virtual import Release, VirtualDevice
from twinlock.lab.workshop import Packed, ServerProcess, Workshop

IMAGE_SIZE = 6 * MIB
GOOD, BAD = "1.1", "1.2"


@dataclass
class World:
    """What is the same for every device."""

    folder: Path
    life: ExitStack
    server: ServerProcess
    operator: Api
    root: bytes
    factory_image: Path
    packed: dict[str, Packed]

    @property
    def known(self) -> list[Release]:
        return [one.release for one in self.packed.values()]

    def device(
        self,
        name: str,
        version: str,
        *,
        server: str = "",
        both_slots: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> tuple[VirtualDevice, str]:
        """A device that runs 1.0, is accepted, and is to get `version`; and the id of its rollout.

        With both slots filled, one that is not marked as bad before it is written would boot. Unless the
        settings say otherwise all of the image is fetched, so that what is counted does not depend on what
        the two releases have in common.
        """
        given = dict(settings or {})
        text = given.get("network", virtual.NETWORK)
        given["network"] = text if "ways" in text else f'{text}\nways = ["full"]'
        made = VirtualDevice.provision(
            self.folder / name,
            self.factory_image,
            self.packed["1.0"].release,
            server=server or self.server.url,
            root=self.root,
            device_id=name,
            both_slots=both_slots,
            settings=given,
        )
        loaded, clock = config.load(made.config), SystemClock()
        network = HttpNetwork(clock, loaded.network)
        enrol(network, FolderStore(loaded.state), clock, SystemRandom(), loaded, None)
        network.done(keep=False)
        self.operator.post(f"/devices/{name}/accept")
        body = {"product": "demo", "version": version, "devices": [name]}
        return made, str(self.operator.post("/rollouts", body)["rollout_id"])


def build(folder: Path) -> World:
    """Images, keys, releases and a running server; close `life` in the end."""
    made = {
        recipe.version: images.build(images.sized(recipe, IMAGE_SIZE), folder / "images")
        for recipe in images.STANDARD
    }
    workshop = Workshop.make(folder / "build")
    packed = {
        version: workshop.pack(image, version, counter)
        for counter, (version, image) in enumerate(made.items(), start=1)
    }
    workshop.sign(list(packed.values()))
    server = ServerProcess.make(folder / "server", workshop.root)
    life = ExitStack()
    life.callback(server.stop)
    try:
        server.start()
        operator = Api(server.url, server.token)
        workshop.publish(operator, list(packed.values()))
    except BaseException:
        life.close()
        raise
    return World(folder, life, server, operator, workshop.root, made["1.0"], packed)
