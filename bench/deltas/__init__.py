"""Deltas beside their peers: what each makes of the real image pairs, remembered by content and tool."""
