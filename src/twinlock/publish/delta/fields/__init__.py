"""Finding addresses in executables, and where the newer file moved what they refer to."""
