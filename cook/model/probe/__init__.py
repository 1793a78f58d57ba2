"""Runs a model to inspect it: example inputs, sizes, speed, and whether outputs are unchanged."""
