"""Files of a server: payloads by their hash, signed metadata by its name."""
