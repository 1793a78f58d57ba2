"""Quantisation: numbers of fewer bits, one method a file."""
