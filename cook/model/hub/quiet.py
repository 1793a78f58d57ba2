"""Suppresses progress bars and missing-key reports of transformers: cook has its own bar and key checks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Disable the progress bars and load report of transformers in the context."""
    from transformers.utils import logging as bars

    reports = logging.getLogger("transformers.modeling_utils")
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    reports.addFilter(_no_load_report)
    try:
        yield
    finally:
        reports.removeFilter(_no_load_report)
        if shown:
            bars.enable_progress_bar()


def _no_load_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()
