"""Releases: a publication is verified from the pinned root, or changes nothing."""
