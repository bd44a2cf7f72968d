"""One module per version, each named after its number."""
