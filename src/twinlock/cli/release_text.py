"""How packed releases and findings are shown, to people and to programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twinlock.cli.output import Table, size_text
from twinlock.publish.inspect import Findings
from twinlock.publish.pack import Packed


def packed_data(packed: Packed, out: Path) -> dict[str, Any]:
    """The JSON of `release pack`."""
    payload = packed.record.payloads[0]
    return {
        "folder": str(out),
        "product": packed.record.product,
        "release": packed.record.version,
        "counter": packed.manifest.counter,
        "hardware": list(packed.manifest.hardware),
        "image_size_bytes": packed.manifest.image_size_bytes,
        "image_sha256": packed.manifest.image_sha256,
        "segments": packed.manifest.segment_count,
        "zero_segments": packed.zero_segments,
        "manifest_sha256": packed.record.manifest_sha256,
        "payload_sha256": payload.sha256,
        "payload_size_bytes": payload.size_bytes,
    }


def packed_text(packed: Packed, out: Path) -> list[str]:
    """What `release pack` says."""
    made, payload = packed.manifest, packed.record.payloads[0]
    ratio = payload.size_bytes / made.image_size_bytes
    return [
        f"Packed {made.product} {made.version} into {out}",
        f"  image    {size_text(made.image_size_bytes)}, {made.segment_count} segments "
        f"({packed.zero_segments} of zeros), SHA-256 {made.image_sha256.hex()}",
        f"  payload  {size_text(payload.size_bytes)} ({ratio:.1%} of the image), SHA-256 {payload.sha256}",
        f"Next: twinlock release sign {out}",
    ]


def found_data(found: Findings) -> dict[str, Any]:
    """The JSON of `release inspect`."""
    problem = found.problem
    return {
        "kind": found.kind.value,
        "path": str(found.path),
        "facts": found.facts,
        "checks": found.checks,
        "problem": None if problem is None else {"code": problem.code, "what": problem.what},
    }


def found_parts(found: Findings) -> list[str | Table]:
    """What `release inspect` says."""
    parts: list[str | Table] = [f"{found.path}: {found.kind.value}"]
    lists = {name: value for name, value in found.facts.items() if _is_rows(value)}
    words: list[str] = found.facts.get("words", [])
    parts += words
    rows = [
        [name, _text(name, value)]
        for name, value in found.facts.items()
        if name not in lists and name != "words"
    ]
    if rows:
        parts.append(Table(["fact", "value"], rows))
    for name, value in lists.items():
        if name == "payloads":
            for one in value:
                parts.append(
                    Table(["payload", one["sha256"]], [[key, _text(key, one[key])] for key in one][1:])
                )
        else:
            columns = list(value[0])
            cells = [[_text(column, one[column]) for column in columns] for one in value]
            parts.append(Table(columns, cells, title=name))
    parts += [f"ok: {check}" for check in found.checks]
    if found.problem is not None:
        parts.append(f"not ok: {found.problem.what}")
    return parts


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _text(name: str, value: Any) -> str:
    if value is None or value in ("", [], {}):
        return "-"
    if name.endswith("size_bytes") and isinstance(value, int):
        return f"{value} ({size_text(value)})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return "; ".join(f"{key} {_text(key, item)}" for key, item in value.items())
    return str(value)
