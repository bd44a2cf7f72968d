"""The real agent and the real server with a director, on a loopback socket, and somebody who sits between."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from securesystemslib.signer import CryptoSigner
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tuf.api.metadata import Metadata, TargetFile, Targets

from tests.attacks.agent_scene import AgentScene, Clock
from tests.attacks.server_scene import ServerScene, State
from tests.conformance.repository import NOW, Repository
from tests.unit.server.rig import MadeRelease, make_release
from twinlock.agent import director
from twinlock.agent.enrol import enrol
from twinlock.core import protocol
from twinlock.core.protocol import DirectorAnswer, PollAnswer
from twinlock.core.trust.director import OnlineKey, online_key, sign_answer
from twinlock.server.director.folder import DirectorFolder

ONLINE_ROLES = ("targets", "snapshot", "timestamp")
# What a device's own signed calls are noted in, its report that it refused an assignment among them.
_CALLS = frozenset({"devices", "check_ins", "device_facts", "director_answers", "reports", "assignments"})


def director_repository() -> Repository:
    """A director's root, whose one online key signs for all three other roles."""
    made = Repository()
    name_key(made, made.new_key())
    made.publish("root", bump=False)
    return made


def name_key(repository: Repository, key: CryptoSigner) -> None:
    """The next root names this online key alone."""
    for role in ONLINE_ROLES:
        for keyid in list(repository.root.roles[role].keyids):
            repository.root.revoke_key(keyid, role)
        repository.signers[role] = []
        repository.add_key(role, key)


class Between:
    """Changes what a poll is answered, as whoever holds the server or the line can."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.change: Callable[[PollAnswer], PollAnswer] | None = None
        self.last: PollAnswer | None = None
        self.files: dict[str, bytes] = {}  # served in place of the server's own, by path
        self.served: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] in self.files:
            self.served.append(scope["path"])
            await Response(self.files[scope["path"]])(scope, receive, send)
            return
        if scope["type"] != "http" or not scope["path"].endswith("/poll"):
            await self.app(scope, receive, send)
            return
        said: list[Message] = []

        async def keep(message: Message) -> None:
            said.append(message)

        await self.app(scope, receive, keep)
        body = b"".join(one.get("body", b"") for one in said)
        if said[0]["status"] == 200:
            self.last = answer = msgspec.json.decode(body, type=PollAnswer)
            body = protocol.encode(self.change(answer) if self.change else answer)
        headers = [(name, value) for name, value in said[0]["headers"] if name != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({**said[0], "headers": headers})
        await send({"type": "http.response.body", "body": body})


class _Server(ServerScene):
    """A server scene with somebody between it and its socket."""

    def start(self) -> None:
        super().start()
        self.between = Between(self._site.counted.app)
        self._site.counted.app = self.between

    @property
    def address(self) -> str:
        return self._site.address

    @property
    def asked(self) -> list[str]:
        return self._site.counted.asked

    def decided(self) -> State:
        """What the server holds of releases, rollouts and keys: all but what a device's calls leave."""
        return {name: held for name, held in self.state().items() if name not in _CALLS}


class DirectorScene(AgentScene):
    """A device that was made with a director's root, enrolled and accepted; nothing is assigned to it.

    With `in_image` the root is part of the image and the configuration names it, else it is in the state.
    """

    def __init__(self, folder: Path, *, in_image: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.in_image = in_image
        self.online = director_repository()
        self.version = 1 << 30  # of what `direct` signs
        self.first_root = self.online.served("root")
        self.server = _Server(folder)
        self.set_director()
        self.clock = Clock(NOW.timestamp())
        self._make_device()
        self.connect(self.server.address)
        store = self.ports.store
        store.write("root.json", self.server.repository.files["metadata/1.root.json"])
        if in_image:
            (folder / "director.json").write_bytes(self.first_root)
        else:
            store.write(director.PINNED, self.first_root)
        self.enrol()

    def set_director(self) -> None:
        """The server starts anew with the online key and the root that stand now."""
        self.server.stop()
        own = DirectorFolder(self.server.folder)
        own.add_key(self.online.signers["targets"][0].private_bytes)
        own.add_root(self.online.served("root"), NOW)
        self.server.start()

    def enrol(self) -> None:
        ports = self.ports
        own, _ = enrol(ports.network, ports.store, ports.clock, ports.random, self.settings, None)
        self.device_id = own.device_id
        answer = self.server.operator("POST", f"/devices/{own.device_id}/accept")
        assert answer.status_code == 200, answer.text

    def connect(self, address: str, **network: object) -> None:
        super().connect(address, **network)
        if self.in_image:
            path = self.folder / "director.json"
            self.settings = msgspec.structs.replace(self.settings, director=path)
            self.ports.checker._settings = self.settings  # type: ignore[attr-defined]

    def restart(self) -> None:
        """The server has a new address; the device is told."""
        self.ports.network.done(keep=False)  # type: ignore[attr-defined]
        self.set_director()
        self.connect(self.server.address)

    # What goes wrong

    def tamper(self, change: Callable[[PollAnswer], PollAnswer] | None) -> None:
        """From now on polls are answered so."""
        self.server.between.change = change

    def say(self, answer: DirectorAnswer | None) -> None:
        """From now on this is what polls have of the director."""
        self.tamper(lambda said: msgspec.structs.replace(said, director=answer))

    def director_key(self) -> OnlineKey:
        """The director's online key, as whoever stole it has it."""
        return online_key(self.online.signers["targets"][0].private_bytes)

    def direct(
        self,
        release: TargetFile | None,
        change: Callable[[Targets], object] | None = None,
        *,
        device: str = "",
        key: OnlineKey | None = None,
        assigned: Callable[[PollAnswer], PollAnswer] = lambda said: said,
    ) -> None:
        """From now on polls have this word of the director, newer than any before and signed by its key.

        `change` edits the targets before they are signed; `assigned` edits the rest of the poll's answer.
        """
        self.version += 1
        device_id = device or self.device_id
        own = key or self.director_key()
        answer = sign_answer(own, device_id, release, version=self.version, now=NOW)
        if change is not None:
            metadata: Metadata[Targets] = Metadata.from_bytes(answer.targets)
            change(metadata.signed)
            metadata.sign(self.online.signers["targets"][0])
            answer = msgspec.structs.replace(answer, targets=metadata.to_bytes())
        self.tamper(lambda said: msgspec.structs.replace(assigned(said), director=answer))

    def directed(self) -> DirectorAnswer:
        """What the director said in the last poll."""
        assert self.server.between.last is not None
        assert self.server.between.last.director is not None
        return self.server.between.last.director

    def publish(self, version: str = "1.1", counter: int = 3) -> MadeRelease:
        made = make_release(version, counter, hardware=("board",))
        self.server.publish(made)
        return made

    def offer(self, version: str = "1.1") -> None:
        """Publishes a release and assigns it to this device."""
        self.publish(version)
        self.server.roll_out(version, [self.device_id])

    def offered(self) -> TargetFile:
        """After an honest poll a release is assigned; what the image repository says of it, to be changed."""
        assert self.run() == ""
        self.offer()
        (entry,) = self.server.repository.targets.targets.values()
        return TargetFile.from_dict(copy.deepcopy(entry.to_dict()), entry.path)

    def later(self, seconds: float) -> None:
        """Time goes by for both."""
        self.clock.wall_s += seconds
        self.server.clock.advance(seconds)

    # What must not change

    def trust(self) -> dict[str, bytes | None]:
        """What the device remembers of its director."""
        names = (director.TRUST, *(f"{director.FOLDER}/{role}.json" for role in ("root", *ONLINE_ROLES)))
        return {name: self.ports.store.read(name, 1 << 20) for name in names}

    def state(self) -> dict[str, bytes | None]:
        return super().state() | self.trust()

    def refused(self, code: str, *, but: tuple[str, ...] = ()) -> None:
        """The next run ends with this code, fetches no payload, and changes nothing."""
        before, asked, rows = self.state(), len(self.server.asked), self.server.decided()
        ended = self.run()
        assert ended == code, ended
        assert not any("/payloads/" in path for path in self.server.asked[asked:])
        now = self.server.decided()
        differs = {name for name in rows | now if rows.get(name) != now.get(name)}
        assert differs == set(), differs
        after = self.state()
        changed = {name for name in after if before[name] != after[name]}
        assert changed <= set(but), changed

    def armed(self) -> bool:
        """Whether the device would try another slot now."""
        return self.ports.boot.read().trying is not None

    def close(self) -> None:
        self.ports.network.done(keep=False)  # type: ignore[attr-defined]
        self.server.close()


def versions(answer: DirectorAnswer) -> list[int]:
    """The versions of an answer's three files."""
    files = (answer.targets, answer.snapshot, answer.timestamp)
    return [json.loads(data)["signed"]["version"] for data in files]


@contextmanager
def director_scene(folder: Path, *, in_image: bool = False) -> Iterator[DirectorScene]:
    """A directed device and its server, until the end."""
    made = DirectorScene(folder, in_image=in_image)
    try:
        yield made
    finally:
        made.close()
