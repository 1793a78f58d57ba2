"""Maps label names in data to the model's label ids.

Data may name a label (`positive`) or number it (`1`, also as the text `"1"`). A model names every id, or has
the defaults `LABEL_0`, `LABEL_1`, which carry no meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset

from cook.data.files.cells import as_name, is_missing, stripped
from cook.data.rows.sources import ErrorAt, quiet
from cook.errors import CookError

NUMBER = re.compile(r"-?\d+")


def names(datasets: Iterable[Dataset], column: str, error: ErrorAt) -> list[str]:
    """The labels of all `datasets`: a ClassLabel's names, else the values, numbers in numeric order.

    Raises:
        CookError: the column is missing, holds no labels, or has gaps.
    """
    found: set[str] = set()
    several = list(datasets)
    if not all(map(len, several)):
        raise error("data", "the data has no rows")
    for dataset in several:
        feature = feature_of(dataset, column, error)
        if isinstance(feature, ClassLabel):
            return declared(feature, column, error)
        with quiet():
            values = dataset.unique(column)
        if any(is_missing(value) for value in values):
            raise error("data.label", f"column {column!r} has rows without a label")
        if any(isinstance(value, float) and not value.is_integer() for value in values):
            raise error("data.label", f"column {column!r} holds real numbers; labels are names or integers")
        found |= {as_name(value) for value in values}
    if all(NUMBER.fullmatch(name) for name in found):
        return sorted(found, key=int)
    return sorted(found)


def declared(feature: ClassLabel, column: str, error: ErrorAt) -> list[str]:
    """The names of a ClassLabel without surrounding whitespace.

    Raises:
        CookError: a name is empty, or two are the same.
    """
    found = [as_name(name) for name in feature.names]
    if "" in found or len(set(found)) < len(found):
        message = (
            f"column {column!r} declares the labels {feature.names}, of which some are empty or the same"
        )
        raise error("data.label", message, "rename them in the data set")
    return found


def feature_of(dataset: Dataset, column: str, error: ErrorAt) -> Any:
    """The feature of the label column.

    Raises:
        CookError: there is no such column, or it holds lists or objects.
    """
    if column not in dataset.features:
        columns = ", ".join(dataset.column_names)
        raise error("data.label", f"there is no column {column!r}", f"the columns are {columns}")
    feature = dataset.features[column]
    kind = getattr(feature, "dtype", None)
    if not isinstance(kind, str) or kind in ("list", "dict"):
        raise error("data.label", f"column {column!r} holds {feature}; labels are names or integers")
    return feature


def ids(
    labels: Sequence[str], label2id: Mapping[str, int], error: ErrorAt, *, numbered: bool = False
) -> dict[str, int]:
    """The model's id for each of `labels`.

    Args:
        labels: from `names`.
        label2id: of the model's config.
        numbered: the names belong to a ClassLabel, so that their positions are also numbers.

    Raises:
        CookError: the model lacks some of the labels; the message shows both lists.
    """
    known = {as_name(name): int(index) for name, index in label2id.items()}
    if len(known) < len(label2id):
        known = {str(name): int(index) for name, index in label2id.items()}
    folded = {name.casefold(): index for name, index in known.items()}
    if all(label in known for label in labels):
        return {label: known[label] for label in labels}
    if len(folded) == len(known) and all(label.casefold() in folded for label in labels):
        return {label: folded[label.casefold()] for label in labels}
    if numbered and is_default(known) and len(labels) <= len(known):
        return {label: index for index, label in enumerate(labels)}
    if all(NUMBER.fullmatch(label) and int(label) in known.values() for label in labels):
        return {label: int(label) for label in labels}
    numbers = {str(index) for index in known.values()}
    strange = [label for label in labels if label not in known and label not in numbers]
    hint = (
        "name the model's labels in model.labels, or number the labels of the data; for other labels than "
        "the model was trained on, write model.head: new (in Python, load the model with num_labels="
        f"{len(labels)})"
    )
    if len(labels) > len(known):
        hint = (
            f"a head of {len(known)} classes cannot tell {len(labels)} apart; write model.head: new to put a "
            "new one of the data's labels in its place (in Python, load the model with num_labels="
            f"{len(labels)})"
        )
    if strange == ["-1"]:
        hint = "-1 marks rows without a label: name a split that has labels"
    raise error(
        "data.label",
        f"the data has labels that the model does not: {_listed(strange or labels)}; "
        f"the data's are {_listed(labels)}, the model's are {_listed(list(known))}",
        hint,
    )


def names_of(config: Any, error: ErrorAt, key: str = "model.path") -> list[str]:
    """The names of a model's classes by id, from `id2label` and `label2id` of its config.

    A mapping with the defaults of transformers (`LABEL_0`) is ignored in favour of the other one. If both
    have names they must agree, apart from case and surrounding whitespace.

    Args:
        key: the recipe key that errors point to.

    Raises:
        CookError: the mappings contradict each other, do not number the classes from 0 without gaps, or give
            two classes the same name. Both mappings are shown.
    """
    by_id = {int(index): str(name) for index, name in (getattr(config, "id2label", None) or {}).items()}
    by_name = {str(name): int(index) for name, index in (getattr(config, "label2id", None) or {}).items()}
    count = int(getattr(config, "num_labels", None) or len(by_id))
    turned = {index: name for name, index in by_name.items()}
    use_names = is_default({name: index for index, name in by_id.items()})
    found = turned if use_names and turned and not is_default(by_name) else by_id

    def contradiction(message: str) -> CookError:
        shown = f"id2label is {by_id}, label2id is {by_name}"
        return error(key, f"{message}: {shown}", "correct the model's config.json, or set model.labels")

    if sorted(found) != list(range(count)):
        raise contradiction(f"the model has {count} classes, and its config does not name exactly these")
    names = [found[index] for index in range(count)]
    if len(set(names)) < count:
        raise contradiction("two classes of the model have the same name")
    if not is_default(by_name):
        folded = {index: _folded(name) for name, index in by_name.items()}
        same = all(folded.get(index) == _folded(name) for index, name in enumerate(names))
        if not same or len(by_name) != count:
            raise contradiction("the label maps of the model's config contradict each other")
    return names


def _folded(name: str) -> str:
    return stripped(name).casefold()


def is_default(label2id: Mapping[str, int]) -> bool:
    """Whether the names are the defaults generated by transformers."""
    return all(name == f"LABEL_{index}" for name, index in label2id.items())


def _listed(names: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
