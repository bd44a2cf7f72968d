"""Side-by-side measurements: `make bench` runs every benchmark, `make bench NAME=agent` one of them.

A benchmark is a module here with a `TITLE` and `run(ctx: Context) -> list[Row]`; `harness` measures
processes, `fleet` runs a real server with real devices, `peers/` drives what ours is compared with.
"""
