"""Trust: a device's check beside python-tuf's own client, the director's answers, signing and verifying.

Both clients are processes of their own that fetch the same repository over HTTP from a server on loopback,
verify it and look one release up; ours then also decides whether the release fits the device, as the agent's
check does. First with no stored metadata, then with nothing new. Root and targets are signed by two of three.
"""

from __future__ import annotations

import hashlib
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from bench.harness import ROOT, Context, Measured, Row, clean_environment, interleave, measure, median
from twinlock.core.names import release_name
from twinlock.core.trust import director, keys
from twinlock.core.trust.verifier import CUSTOM_KEY

TITLE = "trust: a device's check beside python-tuf's client, the director, rates by type of key"
CPU_RATIO_MAX = 1.3
PEAK_MIB_MAX = 40.0
ANSWER_MS_MAX = 0.3
RELEASES = 20
BATCH_S = 0.25
PEER = "python-tuf"
NAME = release_name("demo", f"1.{RELEASES - 1}")

OURS = """
import sys
from pathlib import Path
from twinlock.agent import lean_check  # as the agent's own command begins
from twinlock.agent.clock import SystemClock
from twinlock.agent.config import NetworkConfig
from twinlock.agent.decide import check_fits
from twinlock.agent.http import HttpNetwork
from twinlock.agent.metadata import MetadataClient
from twinlock.agent.store import FolderStore
folder, server, name = sys.argv[1:]
clock = SystemClock()
client = MetadataClient(HttpNetwork(clock, NetworkConfig()), FolderStore(Path(folder)), clock, server)
client.refresh()
signed, claims = client.claims(name)
fits = {"hardware": "board", "product": "demo", "floor": 1, "inactive": "b", "inactive_size_bytes": 1 << 30}
check_fits(claims, what=name, **fits)
"""
THEIRS = """
import sys
from pathlib import Path
from tuf.ngclient import Updater
folder, server, name = sys.argv[1:]
pinned = Path(folder, "root.json").read_bytes()
metadata = Path(folder, "metadata")
metadata.mkdir(exist_ok=True)
updater = Updater(str(metadata), server + "/repository/metadata", bootstrap=pinned)
updater.refresh()
assert updater.get_targetinfo(name) is not None
"""


def entry(name: str, counter: int) -> TargetFile:
    found = TargetFile.from_data(name, name.encode() * 100, ["sha256"])
    found.unrecognized_fields["custom"] = {
        CUSTOM_KEY: {
            "product": "demo",
            "version": f"1.{counter}",
            "hardware": ["board"],
            "counter": counter + 1,
            "image_size_bytes": 1 << 29,
            "sbom_sha256": None,
        }
    }
    return found


def make_repository(folder: Path) -> None:
    """Writes FOLDER/repository/metadata as a server serves it."""
    expires = datetime.now(UTC) + timedelta(days=30)
    signers = {
        role: [CryptoSigner.generate_ecdsa() for _ in range(3 if role in ("root", "targets") else 1)]
        for role in ("root", "targets", "snapshot", "timestamp")
    }
    root = Root(expires=expires)
    for role, held in signers.items():
        for signer in held:
            root.add_key(signer.public_key, role)
        root.roles[role].threshold = (len(held) + 1) // 2
    names = [release_name("demo", f"1.{number}") for number in range(RELEASES)]
    targets = Targets(expires=expires, targets={name: entry(name, n) for n, name in enumerate(names)})
    where = folder / "repository/metadata"
    where.mkdir(parents=True)

    def write(name: str, role: str, metadata: Metadata[Any]) -> MetaFile:
        for signer in signers[role][: root.roles[role].threshold]:
            metadata.sign(signer, append=True)
        data = metadata.to_bytes()
        (where / name).write_bytes(data)
        return MetaFile.from_data(1, data, ["sha256"])

    write("1.root.json", "root", Metadata(root))
    listed = write("1.targets.json", "targets", Metadata(targets))
    snapshot = Metadata(Snapshot(expires=expires, meta={"targets.json": listed}))
    timestamp = Timestamp(expires=expires, snapshot_meta=write("1.snapshot.json", "snapshot", snapshot))
    write("timestamp.json", "timestamp", Metadata(timestamp))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base's own name
        """Nobody reads it."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder's address while it is served."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def checks(context: Context) -> list[Row]:
    make_repository(context.workdir)
    pinned = (context.workdir / "repository/metadata/1.root.json").read_bytes()
    env = clean_environment() | {"PYTHONPATH": str(ROOT / "src")}
    rows: list[Row] = []
    with served(context.workdir) as address:

        def job(program: str, name: str, *, first: bool) -> Callable[[], Measured]:
            folder = context.workdir / name

            def run() -> Measured:
                if first:
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.mkdir()
                    (folder / "root.json").write_bytes(pinned)
                return measure([sys.executable, "-c", program, folder, address, NAME], env=env)

            return run

        for what, first in (("first check", True), ("check with nothing new", False)):
            jobs = {"ours": job(OURS, "ours", first=first), PEER: job(THEIRS, "theirs", first=first)}
            results = interleave(jobs, max(5, context.rounds), context.note)
            cpu = {name: [used.cpu_s for used in found] for name, found in results.items()}
            peak = [used.peak_rss_mib for used in results["ours"]]
            rows += [
                Row(
                    f"{what}: CPU",
                    "s",
                    median(results["ours"], lambda used: used.cpu_s),
                    PEER,
                    median(results[PEER], lambda used: used.cpu_s),
                    CPU_RATIO_MAX,
                    {"ours": cpu["ours"], "peer": cpu[PEER]},
                ),
                Row(f"{what}: peak memory", "MiB", max(peak), bound=PEAK_MIB_MAX, raw={"ours": peak}),
            ]
    return rows


def cpu_of(step: Callable[[], object], rounds: int) -> list[float]:
    """CPU seconds of one step, by rounds."""
    found = []
    for _ in range(rounds):
        count, started = 0, time.process_time()
        while (used := time.process_time() - started) < BATCH_S:
            step()
            count += 1
        found.append(used / count)
    return found


def answers(rounds: int) -> list[Row]:
    rows = []
    release = entry(NAME, 1)
    now = datetime.now(UTC)
    kinds = {"Ed25519": CryptoSigner.generate_ed25519, "P-256": CryptoSigner.generate_ecdsa}
    for kind, make in kinds.items():
        key = director.online_key(make().private_bytes)
        sign = partial(director.sign_answer, key, "device-1", release, version=1, now=now)
        used = [value * 1000 for value in cpu_of(sign, rounds)]
        answer = sign()
        size = len(answer.targets) + len(answer.snapshot) + len(answer.timestamp)
        what, ms = f"director's answer, {kind}", statistics.median(used)
        rows.append(Row(f"{what}: CPU", "ms", ms, bound=ANSWER_MS_MAX, raw={"ours": used}))
        rows.append(Row(f"{what}: size", "B", float(size)))
    return rows


def rates(rounds: int) -> list[Row]:
    kinds: dict[str, Callable[[], CryptoSigner]] = {
        "Ed25519": CryptoSigner.generate_ed25519,
        "ECDSA P-256": CryptoSigner.generate_ecdsa,
        "RSA-2048": lambda: CryptoSigner.generate_rsa(size=2048),
        "RSA-3072": lambda: CryptoSigner.generate_rsa(size=3072),
        "ML-DSA-65": CryptoSigner.generate_mldsa,
    }
    text = hashlib.sha256(b"text").digest() * 32
    rows = []
    for kind, make in kinds.items():
        signer = make()
        public = signer.public_key
        key = keys.public_key(public.keytype, public.scheme, public.keyval["public"])
        assert key is not None
        signature = signer.sign(text).signature
        for what, step in (
            ("sign", partial(signer.sign, text)),
            ("verify", partial(key.verifies, signature, text)),
        ):
            used = statistics.median(cpu_of(step, rounds))
            rows.append(Row(f"{kind}: {what}", "/s", 1 / used))
    return rows


def run(context: Context) -> list[Row]:
    return [*checks(context), *answers(context.rounds), *rates(context.rounds)]
