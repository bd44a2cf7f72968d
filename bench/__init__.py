"""Side-by-side measurements: `make bench` runs every benchmark, `make bench NAME=agent` one of them.

A benchmark is a module here with a `TITLE` and `run(ctx: Context) -> list[Row]`; `harness` measures
processes, `peers/` drives the programs that ours are compared with.
"""
