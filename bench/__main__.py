"""Run benchmarks: `python -m bench [NAME]`; prints each table and writes bench/results/NAME.json.

Exit codes: 0 every bound holds, 1 a bound is broken or a benchmark failed, 2 no such benchmark.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.table import Table

import bench
from bench.harness import ROOT, BenchError, Context, Row, machine

RESULTS = ROOT / "bench/results"


def benchmarks() -> dict[str, ModuleType]:
    """The modules of this package that are benchmarks, by name."""
    names = [info.name for info in pkgutil.iter_modules(bench.__path__) if not info.ispkg]
    modules = {name: importlib.import_module(f"bench.{name}") for name in names if name not in _SUPPORT}
    return {name: module for name, module in modules.items() if hasattr(module, "run")}


_SUPPORT = {"__main__", "fleet", "harness", "launch"}


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(title: str, rows: list[Row]) -> Table:
    caption = "* from an earlier run, of the same inputs and tools" if any(row.kept for row in rows) else None
    result = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for heading in ("figure", "unit"):
        result.add_column(heading)
    for heading in ("ours", "peer", "peer's", "ratio", "bound", "holds"):
        result.add_column(heading, justify="right")
    for row in rows:
        holds = {True: "yes", False: "NO", None: "-"}[row.holds]
        figures = (number(row.ours), row.peer or "-", number(row.peer_value), number(row.ratio))
        result.add_row(row.figure + "*" * row.kept, row.unit, *figures, number(row.bound), holds)
    return result


def write_results(name: str, rows: list[Row], folder: Path = RESULTS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    document = {"machine": machine(), "rows": [row.as_json() for row in rows]}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return path


def main(argv: list[str]) -> int:
    console = Console(width=120 if not sys.stdout.isatty() else None)
    known = benchmarks()
    wanted = argv or sorted(known)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        print(
            f"no benchmark named {', '.join(unknown)}; there are: {', '.join(sorted(known))}", file=sys.stderr
        )
        return 2
    good = True
    for name in wanted:
        with tempfile.TemporaryDirectory(prefix=f"twinlock-bench-{name}-") as folder:
            rounds = int(os.environ.get("BENCH_ROUNDS", "3"))
            context = Context(
                Path(folder), rounds, lambda line: print(f"  {line}", file=sys.stderr, flush=True)
            )
            try:
                rows: list[Row] = known[name].run(context)
            except BenchError as error:
                print(f"bench {name}: {error}", file=sys.stderr)
                good = False
                continue
        console.print(table(known[name].TITLE, rows))
        console.print(f"written to {write_results(name, rows).relative_to(ROOT)}")
        good = good and all(row.holds is not False for row in rows)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
