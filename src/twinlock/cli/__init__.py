"""The `twinlock` command of operators and builders: `main` is the entry, one module per group of commands."""
