"""Teachers: models that a student learns from, run in each forward or answered from a cache."""
