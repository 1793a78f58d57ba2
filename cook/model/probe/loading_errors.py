"""The exceptions by which transformers says that it cannot build or load a model."""

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
"""What transformers raises for a source that it cannot read."""
