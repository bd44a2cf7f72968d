"""The edge that operators look at: a status page, with everything it needs in the package."""
