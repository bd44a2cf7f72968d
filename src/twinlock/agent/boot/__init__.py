"""Boot control: one file per way in which a device remembers which slot boots."""
