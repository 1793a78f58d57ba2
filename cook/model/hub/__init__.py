"""Loading, saving and verifying models, and the quantizer that transformers calls."""

METHOD = "cook"
"""The `quant_method` in config.json."""
