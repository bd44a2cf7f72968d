"""The payload format: one encoding of an image for transport. Layout in `container`, parts in `parts`."""
