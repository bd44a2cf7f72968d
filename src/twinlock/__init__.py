"""Twinlock: over-the-air system images for embedded Linux fleets."""

__version__ = "0.1.0"
