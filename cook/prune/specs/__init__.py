"""Declarations of the pruning passes, without heavy imports."""
