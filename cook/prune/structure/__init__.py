"""Structured pruning of heads, neurons, layers and hidden dimensions."""
