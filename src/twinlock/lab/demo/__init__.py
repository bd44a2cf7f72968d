"""The demo: one whole story on one machine, told in seven steps and checked at each. Start at `story`."""
