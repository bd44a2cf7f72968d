"""Who did what, in a chain of hashes that shows when something was taken out or changed."""
