"""Results kept outside the tree, by what they were made of: encoders and peers take minutes on one pair.

A result is kept under the images' hashes, the tool's version and its options; `FRESH=1` measures anew. What
a row shows from an earlier run says when that was.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from bench.harness import Measured
from bench.pairs.tools import cache


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


STARTED_AT: Final = _now()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one tool made of one pair: bytes to send; CPU seconds and MiB of making and of applying it."""

    size_bytes: int
    create_cpu_s: float
    create_mib: float
    apply_cpu_s: float | None = None
    apply_mib: float | None = None
    more: dict[str, float] = field(default_factory=dict)
    measured_at: str = ""

    @property
    def kept(self) -> bool:
        """Whether it is from an earlier run."""
        return self.measured_at < STARTED_AT


def outcome(size_bytes: int, created: Measured, applied: Measured | None, **more: float) -> Outcome:
    """From two measured runs."""
    return Outcome(
        size_bytes,
        round(created.cpu_s, 2),
        round(created.peak_rss_mib, 1),
        None if applied is None else round(applied.cpu_s, 2),
        None if applied is None else round(applied.peak_rss_mib, 1),
        more,
        _now(),
    )


def sha256_of(path: Path) -> str:
    """The hash of a file, remembered by its size and time."""
    state = path.stat()
    return str(
        remembered(
            "hash",
            [str(path), state.st_size, state.st_mtime_ns],
            lambda: {"sha256": _hash(path)},
            fresh=False,
        )["sha256"]
    )


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered(
    name: str, key: list[object], make: Callable[[], dict[str, object]], *, fresh: bool | None = None
) -> dict[str, object]:
    """What `make` gave for this key, now or in an earlier run."""
    if fresh is None:
        fresh = os.environ.get("FRESH") == "1"
    folder = cache() / "pairs/results"
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(json.dumps([name, *key]).encode()).hexdigest()[:32]
    path = folder / f"{name}-{digest}.json"
    if path.exists() and not fresh:
        found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
        return found
    result = make()
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1), encoding="utf-8")
    temporary.replace(path)
    return result


def remembered_outcome(
    name: str, key: list[object], make: Callable[[], Outcome], *, fresh: bool | None = None
) -> Outcome:
    """An outcome by `remembered`."""
    return Outcome(**remembered(name, key, lambda: asdict(make()), fresh=fresh))  # type: ignore[arg-type]
