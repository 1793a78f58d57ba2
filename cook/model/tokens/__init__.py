"""Tokenizers and vocabularies: where a model has a row for each token, and how rows leave."""
