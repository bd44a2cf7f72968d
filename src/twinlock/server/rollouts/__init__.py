"""Bringing a release to devices: what a report changes (`state`), who gets what (`policy`), and both done."""
