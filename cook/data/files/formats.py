"""Names and formats of data in a recipe; fast to import."""

from __future__ import annotations

import re

DATA_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".txt", ".xlsx")
"""The suffixes of data files."""

DIGITS = "sklearn:digits"
"""The `data.path` of scikit-learn's digits."""
SLICE = re.compile(r"(?P<name>[\w.\-]+)(\[(?P<first>-?\d+%?)?:(?P<last>-?\d+%?)?\])?")
"""A split, or a part of one: `train`, `train[:90%]`, `train[-500:]`."""
DELIMITERS = (",", ";", "\t", "|")
"""Possible column separators of text tables."""
