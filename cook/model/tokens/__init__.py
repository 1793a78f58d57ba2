"""Tokenizers and vocabularies: the per-token rows of a model, and their removal."""
