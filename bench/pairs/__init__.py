"""Real image pairs for the delta benchmark, built from Debian packages and cached outside the tree."""
