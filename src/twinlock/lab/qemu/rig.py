"""The world of a virtual device in QEMU: build machine, a real server, and the link between them.

    FOLDER/build/     keys, repository and releases (`workshop`)
    FOLDER/server/    the server's folder (`twinlock server run`)
    FOLDER/tls/       the lab's certificates

The device reaches the server through a proxy that speaks https to it and breaks the link on demand. Its
address is part of the images, so it stays the same for as long as the rig lives.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, Self

from twinlock.core.errors import error
from twinlock.lab import tls
from twinlock.lab.proxy import FaultProxy
from twinlock.lab.workshop import Packed, ServerProcess, Workshop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from twinlock.publish.upload import Operator

HOST_SEEN_BY_GUESTS: Final = "10.0.2.2"  # QEMU's user network: the machine that QEMU runs on
FINAL_STATES: Final = ("succeeded", "failed", "rolled_back", "lost")
PRODUCT: Final = "lab"
_WATCH_S: Final = 0.2


class Rig:
    """Use it as a context manager: leaving it ends the server and the proxy."""

    def __init__(self, folder: Path, connect: Callable[[str, str], Operator]) -> None:
        """`connect` makes the operator's client for a server's address and token."""
        self.folder: Final = folder
        self.certificates: Final = tls.make(folder / "tls", (HOST_SEEN_BY_GUESTS, "127.0.0.1"))
        self.workshop: Final = Workshop.make(folder / "build")
        self.server: Final = ServerProcess.make(folder / "server", self.workshop.root)
        self._connect: Final = connect
        self._operator: Operator | None = None
        self._proxy: FaultProxy | None = None
        self._counter = 0
        self.packed: Final[dict[str, Packed]] = {}

    def __enter__(self) -> Self:
        self.server.start()
        try:
            self._operator = self._connect(self.server.url, self.server.token)
            self._proxy = FaultProxy(self.server.url, tls=self.certificates.server)
            self._proxy.start()
        except BaseException:
            self.server.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._proxy is not None:
            self._proxy.stop()
        self.server.stop()

    @property
    def operator(self) -> Operator:
        """The operator's client."""
        assert self._operator is not None, "only between enter and exit"
        return self._operator

    @property
    def proxy(self) -> FaultProxy:
        """The link."""
        assert self._proxy is not None, "only between enter and exit"
        return self._proxy

    @property
    def url(self) -> str:
        """The server's address as devices know it."""
        return f"https://{HOST_SEEN_BY_GUESTS}:{self.proxy.port}"

    @property
    def root(self) -> Path:
        """The root of trust for images."""
        return self.workshop.repo / "metadata/1.root.json"

    def publish(self, image: Path, version: str, hardware: str) -> Packed:
        """Packs, signs and publishes an image as the next release."""
        self._counter += 1
        packed = self.workshop.pack(
            image, version, self._counter, product=PRODUCT, hardware=(hardware,), level=1
        )
        self.workshop.sign([packed])
        self.workshop.publish(self.operator, [packed])
        self.packed[version] = packed
        return packed

    def device(self, device_id: str) -> dict[str, Any] | None:
        """What the server knows of a device; None when it knows of none."""
        found: list[dict[str, Any]] = self.operator.get("/devices")["devices"]
        if all(one["device_id"] != device_id for one in found):
            return None
        one: dict[str, Any] = self.operator.get(f"/devices/{device_id}")
        return one

    def accept(self, device_id: str) -> None:
        """Lets a device in that has enrolled."""
        self.operator.post(f"/devices/{device_id}/accept", {})

    def roll_out(self, version: str, device_id: str) -> str:
        """Starts a rollout of a published release to one device; its id."""
        body = {"product": PRODUCT, "version": version, "devices": [device_id]}
        return str(self.operator.post("/rollouts", body)["rollout_id"])

    def assignment(self, rollout_id: str) -> dict[str, Any]:
        """What the server knows of the device in this rollout."""
        found: list[dict[str, Any]] = self.operator.get(f"/rollouts/{rollout_id}")["assignments"]
        if len(found) != 1:
            raise error("internal", f"rollout {rollout_id} has {len(found)} assignments instead of one")
        return found[0]


def watch(holds: Callable[[], bool], give_up: Callable[[], bool]) -> bool:
    """Asks `holds` several times a second until it does (True) or `give_up` says so (False)."""
    while not holds():
        if give_up():
            return holds()
        time.sleep(_WATCH_S)
    return True
