"""Models in and out: loading, saving, verification, and the quantizer that transformers calls."""

METHOD = "cook"
"""The `quant_method` in config.json."""
