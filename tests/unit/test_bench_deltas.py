"""The delta benchmark's own arithmetic: what is remembered, the model of RAUC, where a delta's bytes are."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from bench import delta
from bench.deltas import kinds, peers
from bench.deltas.ours import apply, encode
from bench.deltas.remembered import STARTED_AT, Outcome, outcome, remembered, remembered_outcome, sha256_of
from bench.deltas.together import measure_together, pss_kib, tree
from bench.harness import ROOT, BenchError, Measured
from bench.pairs.build import Pair
from twinlock.core.limits import MIB


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINLOCK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FRESH", raising=False)
    monkeypatch.delenv("LATER", raising=False)


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    rng = random.Random(1)
    old = rng.randbytes(3 * MIB)
    new = old[:MIB] + rng.randbytes(8192) + old[MIB : 3 * MIB - 8192]
    for name, data in (("old", old), ("new", new)):
        (tmp_path / name).write_bytes(data)
    return tmp_path / "old", tmp_path / "new"


def test_a_result_is_made_once_for_each_key(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def make() -> dict[str, object]:
        made.append(1)
        return {"number": len(made)}

    assert remembered("name", ["a"], make) == remembered("name", ["a"], make) == {"number": 1}
    assert remembered("name", ["b"], make) == {"number": 2}
    monkeypatch.setenv("FRESH", "1")
    assert remembered("name", ["a"], make) == {"number": 3}


def test_an_outcome_comes_back_as_it_was() -> None:
    made = outcome(10, Measured(1.5, 2, 2048), None, decoder_mib=3.5)
    assert (made.create_cpu_s, made.create_mib, made.apply_cpu_s) == (1.5, 2.0, None)

    def never() -> Outcome:
        raise AssertionError

    assert remembered_outcome("name", ["k"], lambda: made) == remembered_outcome("name", ["k"], never) == made


def test_a_files_hash_follows_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"one")
    first = sha256_of(tmp_path / "file")
    assert sha256_of(tmp_path / "file") == first
    (tmp_path / "file").write_bytes(b"other")
    assert sha256_of(tmp_path / "file") != first


def test_the_model_of_rauc_sends_missing_blocks_and_an_index(
    images: tuple[Path, Path], tmp_path: Path
) -> None:
    done = subprocess.run([sys.executable, ROOT / "bench/deltas/rauc_model.py", *images, tmp_path / "out"])
    assert done.returncode == 0
    size = (tmp_path / "out").stat().st_size
    index = 3 * MIB // 4096 * 32
    assert 8192 + index < size < 8192 + index + 1000  # noise does not compress


def test_the_measured_programs_do_what_the_product_does(
    images: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encode(*images, tmp_path / "delta")
    monkeypatch.setenv("LATER", "1")
    apply(images[0], tmp_path / "delta", tmp_path / "made")
    assert (tmp_path / "made").read_bytes() == images[1].read_bytes()
    words = capsys.readouterr().out.split()
    early, late = map(int, words[:2])
    assert 0 < early <= late
    assert all(float(word) >= 0 for word in words[2:])
    assert len(words) == 5


def test_every_byte_of_a_delta_is_of_some_kind(images: tuple[Path, Path], tmp_path: Path) -> None:
    encode(*images, tmp_path / "delta")
    found = kinds.remaining(tmp_path / "delta", *images)
    assert sum(found.values()) == (tmp_path / "delta").stat().st_size
    assert set(found) == {kinds.METADATA, kinds.INDEX}


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("boot/vmlinuz-6.1.0-50-cloud-amd64", kinds.KERNEL),
        ("usr/lib/modules/6.1.0-50/kernel/fs/xfs/xfs.ko", kinds.MODULES),
        ("usr/lib/x86_64-linux-gnu/libc.so.6", "programs and libraries"),
        ("usr/bin/perl", "programs and libraries"),
        ("usr/lib/python3.11/ast.py", "Python"),
        ("etc/hostname", "other files"),
    ],
)
def test_the_kind_of_a_file(path: str, kind: str) -> None:
    assert kinds.kind_of(path) == kind


MORE = {
    "decoder_mib": 6.0,
    "kernel_decoder_mib": 20.0,
    "create_together_mib": 900.0,
    "userland_cpu_s": 0.4,
    "kernel_cpu_s": 0.6,
    "packing_cpu_s": 0.2,
    "xdelta3_create_cpu_s": 1.0,
    "full_apply_cpu_s": 0.3,
}


def test_rows_hold_ours_against_every_peer(tmp_path: Path) -> None:
    mine = Outcome(40, 2.0, 100.0, 1.0, 30.0, dict(MORE), STARTED_AT)
    theirs = Outcome(100, 1.0, 100.0, 1.0, 30.0, {}, "2020-01-01T00:00:00Z")
    pair = Pair("security-ext4", *[tmp_path] * 4)
    others = {peer.name: theirs for peer in (*peers.IMAGES, peers.OSTREE)}
    rows = delta._rows(delta.Result(pair, mine, {kinds.KERNEL: 30.0, "Python": 10.0}, others))
    bounded = {(row.figure, row.peer): row.holds for row in rows if row.bound is not None}
    assert bounded[("security-ext4: bytes", peers.XDELTA3.name)] is True
    assert bounded[("security-ext4: bytes", peers.RAUC.name)] is False
    assert bounded[("security-ext4: CPU to create", "xdelta3, same run")] is True
    assert bounded[("security-ext4: CPU to apply", "zstd -d of the full image, same run")] is False
    assert not any("CPU" in figure for figure, peer in bounded if "same run" not in str(peer))
    assert bounded[("security-ext4: decoder beyond the interpreter", None)] is True
    assert {row.kept for row in rows if row.peer in others} == {True}
    assert {row.kept for row in rows if row.peer not in others} == {False}
    apart = {row.figure: row.ours for row in rows}
    assert apart["security-ext4: kernel and its modules"] == 30
    assert apart["security-ext4: userland, tables, index"] == 10


def test_memory_of_a_command_counts_what_it_started() -> None:
    code = f"import subprocess, sys; held = b'x' * {40 * MIB}; "
    code += (
        f"subprocess.run([sys.executable, '-c', \"import time; held = b'x' * {40 * MIB}; time.sleep(1)\"])"
    )
    measured, together_mib = measure_together([sys.executable, "-c", code], timeout_s=60)
    assert 80 < together_mib < 160
    assert 40 < measured.peak_rss_mib < 80


def test_a_command_that_does_not_end_is_ended() -> None:
    with pytest.raises(BenchError, match="did not end"):
        measure_together([sys.executable, "-c", "import time; time.sleep(600)"], timeout_s=0.3)


def test_a_process_that_has_ended_holds_nothing() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert pss_kib(done.pid) == 0
    assert tree(done.pid) == [done.pid]
