"""The peers: each makes its delta of one pair and applies it, and the result is compared with the image."""

from __future__ import annotations

import filecmp
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.deltas.remembered import Outcome, outcome, remembered_outcome, sha256_of
from bench.harness import ROOT, BenchError, Measured, measure, tool
from bench.pairs.build import Pair
from bench.pairs.tools import need

LEVEL = 9  # of 22: at 19 zstd --patch-from takes 290 CPU s for one pair and saves 15%
_LONG = ["--long=30", "--memory=2048MB"]


# Some take minutes of CPU, and a machine may be busy: what counts is CPU seconds.
TIMEOUT_S = 4 * 3600.0


def _measure(argv: Sequence[str | Path]) -> Measured:
    return measure(argv, timeout_s=TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to bring an image: what it is called, its version's command, and how it runs."""

    name: str
    program: str
    version: tuple[str, ...]
    run: Callable[[Pair, Path], Outcome]
    options: str = ""


def _same(pair: Pair, made: Path) -> None:
    if not filecmp.cmp(pair.new, made, shallow=False):
        raise BenchError(f"{made} is not {pair.new}")


def _xdelta3(pair: Pair, folder: Path) -> Outcome:
    delta, made = folder / "delta", folder / "made"
    window = str(max(pair.old.stat().st_size, 1 << 20))
    made_by = _measure(["xdelta3", "-e", "-9", "-f", "-B", window, "-s", pair.old, pair.new, delta])
    applied = _measure(["xdelta3", "-d", "-f", "-B", window, "-s", pair.old, delta, made])
    _same(pair, made)
    return outcome(delta.stat().st_size, made_by, applied)


def _patch_from(pair: Pair, folder: Path) -> Outcome:
    delta, made = folder / "delta", folder / "made"
    source = f"--patch-from={pair.old}"
    made_by = _measure(["zstd", "-q", "-f", f"-{LEVEL}", *_LONG, source, pair.new, "-o", delta])
    applied = _measure(["zstd", "-q", "-f", "-d", *_LONG, source, delta, "-o", made])
    _same(pair, made)
    return outcome(delta.stat().st_size, made_by, applied)


def pack_full(pair: Pair, folder: Path) -> Measured:
    """The full image, compressed, as `packed` in the folder."""
    return _measure(["zstd", "-q", "-f", f"-{LEVEL}", "--long=27", pair.new, "-o", folder / "packed"])


def unpack_full(pair: Pair, folder: Path) -> Measured:
    """`packed` in the folder, unpacked; into a new file, as a delta is applied."""
    made = folder / "made"
    made.unlink(missing_ok=True)
    applied = _measure(["zstd", "-q", "-d", "--long=27", folder / "packed", "-o", made])
    _same(pair, made)
    made.unlink()
    return applied


def _casync(pair: Pair, folder: Path) -> Outcome:
    store, made = folder / "store.castr", folder / "made"
    tool(["casync", "make", f"--store={store}", folder / "old.caibx", pair.old])
    before = _files_of(store)
    made_by = _measure(["casync", "make", f"--store={store}", folder / "new.caibx", pair.new])
    new = sum(size for name, size in _files_of(store).items() if name not in before)
    seed = f"--seed={pair.old}"
    applied = _measure(["casync", "extract", f"--store={store}", seed, folder / "new.caibx", made])
    _same(pair, made)
    return outcome(new + (folder / "new.caibx").stat().st_size, made_by, applied)


def _files_of(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def _zchunk(pair: Pair, folder: Path) -> Outcome:
    """Its client fetches over HTTP; its own tool tells how much that is."""
    old, new = folder / "old.zck", folder / "new.zck"
    tool(["zck", "-o", old, pair.old])
    made_by = _measure(["zck", "-o", new, pair.new])
    said = tool(["zck_delta_size", old, new])
    found = re.search(r"download ([\d]+) of", said.replace(",", ""))
    if found is None:
        raise BenchError(f"zck_delta_size says {said[:200]!r}")
    return outcome(int(found[1]), made_by, None)


def _rauc(pair: Pair, folder: Path) -> Outcome:
    argv: list[str | Path] = [
        sys.executable,
        ROOT / "bench/deltas/rauc_model.py",
        pair.old,
        pair.new,
        folder / "out",
    ]
    made_by = _measure(argv)
    return outcome((folder / "out").stat().st_size, made_by, None)


def _ostree(pair: Pair, folder: Path) -> Outcome:
    """A static delta of the trees that the images were made from: not an image, bit for bit."""
    repo, device, delta = (folder / name for name in ("repo", "device", "delta"))
    tool(["ostree", "init", f"--repo={repo}", "--mode=archive"])
    commits = []
    for tree in (pair.old_tree, pair.new_tree):
        argv = ["ostree", "commit", f"--repo={repo}", "-b", "main", f"--tree=dir={tree}"]
        commits.append(tool([*argv, "--timestamp=2026-01-01"]).strip())
    old, new = commits
    generate = ["ostree", "static-delta", "generate", f"--repo={repo}", f"--from={old}", f"--to={new}"]
    made_by = _measure([*generate, "--min-fallback-size=0", "--inline", f"--filename={delta}"])
    tool(["ostree", "init", f"--repo={device}", "--mode=bare-user"])
    tool(["ostree", "pull-local", f"--repo={device}", repo, old])
    applied = _measure(["ostree", "static-delta", "apply-offline", f"--repo={device}", delta])
    tool(["ostree", "fsck", f"--repo={device}", "--quiet", new])
    return outcome(delta.stat().st_size, made_by, applied)


XDELTA3 = Peer("xdelta3", "xdelta3", ("xdelta3", "-V"), _xdelta3, "-9")
PATCH_FROM = Peer(f"zstd --patch-from -{LEVEL}", "zstd", ("zstd", "-V"), _patch_from, f"-{LEVEL} --long=30")
RAUC = Peer("RAUC-style 4 KiB hashes (model)", "zstd", ("zstd", "-V"), _rauc, "2")
CASYNC = Peer("casync", "casync", ("casync", "--version"), _casync)
ZCHUNK = Peer("zchunk", "zck", ("zck", "--version"), _zchunk)
OSTREE = Peer("OSTree static delta (trees)", "ostree", ("ostree", "--version"), _ostree)
IMAGES = (XDELTA3, PATCH_FROM, RAUC, CASYNC, ZCHUNK)


def run(peer: Peer, pair: Pair, workdir: Path, *, fresh: bool | None = None) -> Outcome:
    """What the peer makes of the pair, from an earlier run if it is the same tool and pair."""
    need(peer.program)
    done = tool_version(peer)
    key = [peer.name, peer.options, done, sha256_of(pair.old), sha256_of(pair.new)]

    def make() -> Outcome:
        folder = workdir / re.sub(r"\W+", "-", f"{peer.name}-{pair.name}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            return peer.run(pair, folder)
        finally:
            shutil.rmtree(folder)

    return remembered_outcome(f"{peer.program}-{pair.name}", list(key), make, fresh=fresh)


def tool_version(peer: Peer) -> str:
    """What the program says of its version."""
    done = subprocess.run(peer.version, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return (done.stdout + done.stderr).strip()[:500]
