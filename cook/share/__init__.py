"""Sharing: fewer parameters by having layers use the same ones."""
