"""Pruning: what can be left out of a model, one method a file."""
