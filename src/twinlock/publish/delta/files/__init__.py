"""Which file lies where in an image: parsers of file systems, read only, bounded, without mounting."""
