"""Models in and out: loading, saving, verification, and the quantizer that transformers calls."""
