"""Structural edits and the Blueprint that records them."""
