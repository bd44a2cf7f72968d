"""A real server and real devices for benchmarks: every step by the commands that a user types."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.harness import BenchError, Measured, Running, clean_environment, measure, tool
from twinlock.core import bootrecord

PRODUCT, HARDWARE = "bench", "bench-board"
BIN = Path(sys.executable).parent
REBOOT_WANTED = 10  # exit code of `twinlock-agent run` after it armed a slot
READY_S_MAX = 60.0
RECORD_OFFSETS_BYTES = (0, 65536)

_AGENT = """server = "{server}"
hardware = "{hardware}"
product = "{product}"
state = "{folder}/state"
[slots.a]
path = "{slots[0]}"
[slots.b]
path = "{slots[1]}"
[boot]
path = "{folder}/boot"
booted = "{folder}/booted.json"
offset_bytes = [{offsets[0]}, {offsets[1]}]
[reboot]
mode = "exit"
[network]
ways = ["full"]
"""


@dataclass(frozen=True, slots=True)
class Device:
    """One accepted device with its configuration."""

    config: Path
    state: Path

    def install(self) -> Measured:
        """`twinlock-agent run`: poll, check, install to the other slot, read it back, arm it."""
        argv: list[str | Path] = [BIN / "twinlock-agent", "--config", self.config, "run"]
        return Running(argv).finish(expect=(REBOOT_WANTED,))

    def poll(self) -> Measured:
        """`twinlock-agent run` when there is nothing to do."""
        return measure([BIN / "twinlock-agent", "--config", self.config, "run"])


@dataclass(frozen=True, slots=True)
class Fleet:
    """A repository, its running server, and the operator's token."""

    folder: Path
    address: str
    token: str

    def pack(self, image: Path, version: str, level: int | None = None) -> tuple[Path, Measured]:
        """`twinlock release pack`: the release folder, and what packing cost."""
        out = self.folder / f"release-{version}"
        argv: list[str | Path] = [BIN / "twinlock", "release", "pack", image, "--out", out]
        argv += ["--product", PRODUCT, "--version", version, "--hardware", HARDWARE]
        return out, measure(argv if level is None else [*argv, "--level", str(level)])

    def publish(self, release: Path) -> None:
        """Sign a release folder and bring it to the server."""
        self._twinlock("release", "sign", release, "--repo", self._repo, "--keys", self.folder / "keys")
        self._twinlock("release", "publish", "--repo", self._repo, *self._api)

    def assign(self, version: str, device_id: str) -> None:
        """Bring a published release to one device."""
        self._twinlock("rollout", "create", PRODUCT, version, "--device", device_id, *self._api)

    def device(self, folder: Path, slots: list[Path]) -> tuple[Device, str]:
        """A fresh device on these slots, enrolled and accepted; and its id."""
        state = folder / "state"
        state.mkdir(parents=True)
        (state / "root.json").write_bytes((self._repo / "metadata/1.root.json").read_bytes())
        record = bytearray(RECORD_OFFSETS_BYTES[1] + bootrecord.SECTOR_SIZE_BYTES)
        sector = bootrecord.encode(bootrecord.initial())
        for offset in RECORD_OFFSETS_BYTES:
            record[offset : offset + len(sector)] = sector
        (folder / "boot").write_bytes(record)
        (folder / "booted.json").write_text(json.dumps({"slot": "a", "boot_id": uuid.uuid4().hex}))
        config = folder / "agent.toml"
        words = {"server": self.address, "hardware": HARDWARE, "product": PRODUCT, "folder": folder}
        config.write_text(_AGENT.format(**words, slots=slots, offsets=RECORD_OFFSETS_BYTES))
        known = set(self._devices())
        enrol: list[str | Path] = [BIN / "twinlock-agent", "--config", config, "enrol"]
        # It ends with `enrolment-pending`; whether it came through shows in the server's list.
        subprocess.run(enrol, capture_output=True, env=clean_environment())
        fresh = [device_id for device_id in self._devices() if device_id not in known]
        if len(fresh) != 1:
            raise BenchError("the device did not come to the server to enrol")
        self._twinlock("device", "accept", fresh[0], *self._api)
        tool(enrol)
        return Device(config, state), fresh[0]

    def _devices(self) -> list[str]:
        listed = json.loads(self._twinlock("device", "list", "--json", *self._api))
        return [str(device["device_id"]) for device in listed["devices"]]

    @property
    def _repo(self) -> Path:
        return self.folder / "repo"

    @property
    def _api(self) -> list[str | Path]:
        return ["--server", self.address, "--token-file", self.folder / "token"]

    def _twinlock(self, *words: str | Path) -> str:
        return tool([BIN / "twinlock", *words])


@contextmanager
def fleet(folder: Path) -> Iterator[Fleet]:
    """A new repository and a server on a free port of loopback, until the end of the block."""
    folder.mkdir(parents=True)
    repo, keys, server = folder / "repo", folder / "keys", folder / "server"
    tool([BIN / "twinlock", "keys", "create", "--keys", keys])
    tool([BIN / "twinlock", "keys", "init", "--keys", keys, "--repo", repo])
    root = repo / "metadata/1.root.json"
    made = json.loads(tool([BIN / "twinlock", "server", "init", server, "--root", root, "--json"]))
    (folder / "token").write_text(made["token"])
    log = (folder / "server.log").open("w")
    process = subprocess.Popen(
        [BIN / "twinlock", "server", "run", server, "--port", "0", "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        env=clean_environment(),
        text=True,
    )
    with log, process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise BenchError(f"the server did not start: {(folder / 'server.log').read_text()[-500:]}")
            yield Fleet(folder, json.loads(line)["address"], made["token"])
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(READY_S_MAX)
