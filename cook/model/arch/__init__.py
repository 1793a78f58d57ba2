"""Model families: where layers, attention, FFN and embeddings are, and what belongs together in them."""
