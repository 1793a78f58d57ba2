"""The common part of text and image classification: one label per example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import ClassLabel, Dataset
from sklearn.metrics import f1_score

from cook.data.tasks import labels as label_names
from cook.data.tasks.task import Task


def scores(labels: torch.Tensor, predicted: torch.Tensor, classes: int) -> dict[str, float]:
    """Accuracy and F1, named after the averaging in scikit-learn.

    Args:
        labels, predicted: class ids, shape `(examples,)`.
        classes: of the model. With two, `f1_binary` is the F1 of class 1 (the positive one); with more,
            `f1_macro` is the unweighted mean of the F1 of every class.
    """
    average = "binary" if classes == 2 else "macro"
    f1 = f1_score(labels.numpy(), predicted.numpy(), average=average, zero_division=0.0)
    return {"accuracy": (labels == predicted).double().mean().item(), f"f1_{average}": float(f1)}


class Classification(Task):
    """One label per example, by name or number."""

    metric = "accuracy"

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.ids: dict[str, int] | None = None
        self._numbered = False

    def columns(self, dataset: Dataset) -> dict[str, list[str]]:
        label_names.feature_of(dataset, self.data.label, self.error)
        return {"data.label": [self.data.label]}

    def labels(self, datasets: Mapping[str, Dataset]) -> list[str]:
        """The ClassLabel's names, else the values of all splits: numbers in order, or names sorted."""
        found = label_names.names(datasets.values(), self.data.label, self.error)
        features = (dataset.features[self.data.label] for dataset in datasets.values())
        self._numbered = any(isinstance(feature, ClassLabel) for feature in features)
        return found

    def bind(self, config: Any, labels: Sequence[str] | None, *, building: bool = False) -> None:
        super().bind(config, labels, building=building)
        if getattr(config, "problem_type", None) not in (None, "single_label_classification"):
            raise self.error(
                "model.task", f"the model is made for {config.problem_type}, not for {self.name}"
            )
        if labels is None:
            return
        labels = [label_names.as_name(label) for label in labels]
        if building:
            if len(labels) < 2:
                raise self.error(
                    "data.label", f"the data has the single label {labels[0]!r}: nothing to learn"
                )
            self._name_classes(labels)
        if config.num_labels < 2:
            raise self.error("model.task", "the model has a single output: it is made for regression")
        # Set both maps, so that they are consistent for every reader.
        self._name_classes(label_names.names_of(config, self.error))
        self.ids = label_names.ids(labels, config.label2id, self.error, numbered=self._numbered)

    def _name_classes(self, names: Sequence[str]) -> None:
        self.config.id2label = dict(enumerate(names))
        self.config.label2id = {name: index for index, name in enumerate(names)}

    def predictions(self, outputs: Any, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`predicted` and `labels`, class ids of shape `(examples,)`."""
        return {"predicted": outputs.logits.argmax(-1), "labels": batch["labels"]}

    def metrics(self, predictions: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """`accuracy`, and `f1_binary` for a model of two classes or `f1_macro` for one of more."""
        return scores(predictions["labels"], predictions["predicted"], self.config.num_labels)

    def _label_ids(self, dataset: Dataset) -> list[int]:
        """The model's label id for each row."""
        feature = label_names.feature_of(dataset, self.data.label, self.error)
        return self._as_ids(dataset[self.data.label][:], feature)

    def _as_ids(self, values: list[Any], feature: Any) -> list[int]:
        if self.ids is None:
            raise RuntimeError("bind(config, labels) comes before prepare")
        declared = None
        if isinstance(feature, ClassLabel):
            declared = label_names.declared(feature, self.data.label, self.error)
        if declared:
            values = [declared[value] if value in range(len(declared)) else value for value in values]
        names = [label_names.as_name(value) for value in values]
        if strange := sorted(set(names) - self.ids.keys()):
            # The labels given to `bind` were the recipe's, or this split has different ones.
            missing = declared if declared and set(strange) <= set(declared) else strange
            found = label_names.ids(missing, self.config.label2id, self.error, numbered=missing is declared)
            self.ids = {**self.ids, **found}
        return [self.ids[name] for name in names]
