"""Delta payloads: the same segments, made from what a device already has."""
