"""Twinlock: over-the-air system images for embedded Linux fleets."""
