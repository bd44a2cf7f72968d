"""How a device becomes known (`decide`), and how it proves later that it is the same (`sessions`)."""
