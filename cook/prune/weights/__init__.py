"""Unstructured pruning of weights."""
