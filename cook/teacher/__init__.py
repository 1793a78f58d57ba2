"""Teachers: models to distil from, run in each forward or read from a cache."""
