"""The agent's peak memory does not grow with the image: real process, real HTTP, real files."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec

from twinlock.agent import plan as plans
from twinlock.agent.plan import Job, Plan
from twinlock.core import bootrecord, limits, manifest
from twinlock.core.manifest import Manifest
from twinlock.core.payload import container, parts
from twinlock.core.protocol import PayloadOffer
from twinlock.core.zstd import compress

MIB = limits.MIB
GROWTH_MAX = 1.10
PEAK_KIB_MAX = 32 * 1024

# One run of the real agent whose metadata process has already answered.
PROGRAM = """
import dataclasses, json, sys
from pathlib import Path
from twinlock.agent import config, plan, run, wiring
from twinlock.agent.plan import CheckAnswer

class Answered:
    def __init__(self, store):
        self.store = store
    def check(self, request):
        job = plan.load(self.store).job
        return CheckAnswer(job=job, assignment_id=job.assignment_id)

path = Path(sys.argv[1])
known = config.load(path)
ports = wiring.build_ports(known, path)
code = run.run_once(dataclasses.replace(ports, checker=Answered(ports.store)), known)
status = Path("/proc/self/status").read_text()
peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
print(json.dumps({"code": code, "peak_kib": int(peak.split()[1]), "ssl": "ssl" in sys.modules}))
"""


def release(segments: int) -> tuple[Manifest, bytes, int]:
    """A manifest, its payload, and the size of the index; the image is never in memory as a whole."""
    image, hashes, found, body = hashlib.sha256(), bytearray(), [], bytearray()
    for number in range(segments):
        text = f"line of segment {number}, which is like no other segment; ".encode()
        segment = (text * (MIB // len(text) + 1))[:MIB]
        image.update(segment)
        hashes += hashlib.sha256(segment).digest()
        encoded = compress(segment, 1)
        found.append(parts.Zstd(len(encoded), hashlib.sha256(encoded).digest()))
        body += encoded
    index = container.Index(image.digest(), segments * MIB, None, tuple(found))
    tail = container.encode_tail(index)
    made = Manifest(
        format="twinlock-manifest",
        format_version=1,
        product="demo",
        version="1",
        hardware=("board",),
        counter=1,
        image_size_bytes=segments * MIB,
        image_sha256=image.digest(),
        segment_size_bytes=MIB,
        segments=bytes(hashes),
    )
    return made, bytes(body) + tail, len(tail) - container.TRAILER_SIZE_BYTES


@contextmanager
def served(payload: bytes) -> Iterator[str]:
    """One payload with ranges, whatever its path."""
    etag = f'"{hashlib.sha256(payload).hexdigest()}"'

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            first, _, last = self.headers["range"].removeprefix("bytes=").partition("-")
            data = payload[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(payload)}")
            self.send_header("ETag", etag)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def device(folder: Path, made: Manifest, offer: PayloadOffer, server: str) -> Path:
    """A device with a plan for the release; gives its configuration."""
    size_bytes = made.image_size_bytes
    (folder / "state").mkdir(parents=True)
    with (folder / "disk").open("wb") as disk:
        disk.truncate(2 * size_bytes)
    (folder / "record").write_bytes(bootrecord.encode(bootrecord.initial()) * 16)
    (folder / "booted.json").write_text('{"slot":"a","boot_id":"1"}', encoding="utf-8")
    data = manifest.encode(made)
    digest = hashlib.sha256(data).digest()
    job = Job(
        assignment_id="r1",
        product="demo",
        version="1",
        counter=1,
        slot="b",
        trial_id=plans.trial_id("r1", digest, "b"),
        manifest_sha256=digest,
        image_sha256=made.image_sha256,
        image_size_bytes=size_bytes,
    )
    plan = Plan(job=job, manifest=data, payloads=(offer,), server=server, token="t", token_expires_s=0)
    (folder / "state/plan.json").write_bytes(msgspec.json.encode(plan))
    path = folder / "agent.toml"
    path.write_text(
        f"""
server = "{server}"
hardware = "board"
product = "demo"
state = "{folder}/state"
slots.a = {{path = "{folder}/disk", size_bytes = {size_bytes}}}
slots.b = {{path = "{folder}/disk", offset_bytes = {size_bytes}, size_bytes = {size_bytes}}}
boot = {{path = "{folder}/record", booted = "{folder}/booted.json", offset_bytes = [0, 4096]}}
reboot.mode = "exit"
""",
        encoding="utf-8",
    )
    return path


def peak_kib(folder: Path, segments: int, env: dict[str, str]) -> int:
    made, payload, index_size_bytes = release(segments)
    offer = PayloadOffer(
        kind="full",
        sha256=hashlib.sha256(payload).digest(),
        size_bytes=len(payload),
        index_size_bytes=index_size_bytes,
    )
    with served(payload) as server:
        config = device(folder, made, offer, server)
        argv = [sys.executable, "-c", PROGRAM, str(config)]
        done = subprocess.run(argv, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["code"] == 10, done.stderr
    (folder / "disk").unlink()
    return int(said["peak_kib"])


def test_peak_memory_is_flat(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env["PYTHONPYCACHEPREFIX"] = str(tmp_path / "pycache")  # an installed agent has its bytecode, too
    peak_kib(tmp_path / "first", 1, env)
    small = peak_kib(tmp_path / "small", 64, env)
    large = peak_kib(tmp_path / "large", 1024, env)
    print(f"peak memory: {small} KiB for 64 MiB, {large} KiB for 1 GiB")
    assert large <= small * GROWTH_MAX
    assert large <= PEAK_KIB_MAX
