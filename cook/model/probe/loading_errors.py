"""The exceptions that transformers raises if it cannot build or load a model."""

from __future__ import annotations

import pickle

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

LOADING_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
    StrictDataclassError,
)
"""Raised by transformers for a source that it cannot read."""
