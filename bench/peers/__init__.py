"""Programs that ours are measured beside, each behind the same three steps: prepare, pack, install."""
