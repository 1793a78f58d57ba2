"""Model families: locations of layers, attention, FFN and embeddings, and the units they consist of."""
