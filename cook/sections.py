"""The sections of a recipe as typed dataclasses; their schema and defaults follow from the fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from cook.builtin import TASKS
from cook.options import REQUIRED, Schema, option, schedule_point

Dtype = Literal["float32", "bfloat16", "float16"]
SEED = 2**32 - 1
TEXT: Schema = {"type": "string", "minLength": 1}
_REVISION = "Branch, tag or commit on the hub; null: the newest"
_TRUST = "Run the Python code that a hub repository contains"
_PICKLE = "Read weights that are not safetensors (loading a pickle can run code)"
_SELF = "'self' (the model before compression), a hub id or a folder"


def path_option(default: Any, help: str, kind: str | None = None) -> Any:
    """An option that names a hub id, a file or a folder.

    Args:
        kind: `file` (a file or a plain name, never a folder), `recipe` (an existing file) or `output` (a
            folder, which may be new); None: a local folder or anything that is no local path.
    """
    narrowed = {} if kind is None else {"x-path-kind": kind}
    types = ["string", "null"] if default is None else "string"
    return option(default, help, schema={"type": types, "minLength": 1, "x-path": True, **narrowed})


def text_option(help: str) -> Any:
    """An optional text that is not empty."""
    return option(None, help, schema={"type": ["string", "null"], "minLength": 1})


def config_option(help: str, family: str, *, needed: bool) -> Any:
    """An option that holds keys of a model's configuration.

    Args:
        family: what `model_type` means there.
        needed: whether `model_type` must be given.
    """
    known = {"model_type": {**TEXT, "description": family}}
    required = {"required": ["model_type"]} if needed else {}
    return option(None, help, schema={"type": ["object", "null"], "properties": known, **required})


def files_option(default: str, help: str, nested: type | None = None) -> Any:
    """An option that names a split, a file or several files.

    Args:
        nested: a dataclass that its values may be besides.
    """
    item = {**TEXT, "x-path": True, "x-path-kind": "file"}
    several = {"type": "array", "items": item, "minItems": 1}
    schema = {"anyOf": [item, several], "x-path": True, "x-path-kind": "file"}
    return option(default, help, schema=schema, nested=nested)


@dataclass(frozen=True, kw_only=True)
class ModelSection:
    """The model to compress: exactly one of path, config and recipe."""

    path: str | None = path_option(None, "Hub id or folder")
    config: Mapping[str, Any] | None = config_option(
        "Build the model from this configuration and train it from scratch",
        "Family, as transformers names it",
        needed=True,
    )
    recipe: str | None = path_option(None, "Recipe whose output is the model", "recipe")
    task: str | None = option(None, "Task of the model; needed with data", schema={"enum": [*TASKS, None]})
    tokenizer: str | None = path_option(None, "Hub id or folder of the tokenizer; null: the model's own")
    revision: str | None = option(None, _REVISION)
    labels: tuple[str, ...] | None = option(
        None,
        "Names of the labels in order; null: the model's own",
        schema={"type": ["array", "null"], "items": TEXT, "minItems": 1},
    )
    head: Literal["keep", "new"] = option(
        "keep",
        "Keep the model's own classifier, or replace it by a new one for the data's labels",
        # Added after the first release: recipes that leave it out ask for what they did.
        schema={"enum": ["keep", "new"], "x-added": True},
    )
    trust_remote_code: bool = option(False, _TRUST)
    allow_pickle: bool = option(False, _PICKLE)
    attention: Literal["eager", "sdpa"] | None = option(
        None, "Attention implementation; null: chosen by transformers"
    )


@dataclass(frozen=True, kw_only=True)
class StudentSection:
    """How a student is made from the model, the source: exactly one of path, config and layers."""

    layers: tuple[int, ...] | None = option(
        None, "Keep these layers of the model, with their weights; -1 is the last layer", min_items=1
    )
    config: Mapping[str, Any] | None = config_option(
        "A model with random weights: the model's configuration with these keys changed",
        "Another family; the keys are those of its configuration",
        needed=False,
    )
    path: str | None = path_option(None, "Another model: hub id or folder")
    revision: str | None = option(None, _REVISION)
    trust_remote_code: bool = option(False, _TRUST)
    allow_pickle: bool = option(False, _PICKLE)


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """A cache with options."""

    top: int = option(
        64, "Classes kept of each token's logits, where there are more than twice as many", minimum=1
    )
    dtype: Dtype | None = option(None, "Type of what is kept; null: as the teacher gives it")


@dataclass(frozen=True, kw_only=True)
class TeacherSection:
    """A teacher with options."""

    path: str = path_option(REQUIRED, _SELF)
    trust_remote_code: bool = option(False, _TRUST)
    allow_pickle: bool = option(False, _PICKLE)
    revision: str | None = option(None, _REVISION)
    dtype: Dtype | None = option(
        None, "Type in which it computes; null: float32, and for 'self' the type of the model"
    )
    weight: float = option(1.0, "Weight beside other teachers", above=0)
    cache: bool | CacheOptions = option(
        False,
        "Run it once over the training data and keep its outputs on disk",
        nested=CacheOptions,
        schema={"anyOf": [{"type": "boolean"}]},
    )


@dataclass(frozen=True, kw_only=True)
class AugmentSection:
    """Copies of the training texts with words replaced by similar ones; null: none."""

    method: Literal["neighbours", "masked-lm"] = option(
        "neighbours",
        "Source of similar words: the nearest in the teacher's word embeddings, or the most probable words of"
        " a masked language model",
    )
    copies: int = option(4, "Copies of every example; an epoch is as much longer", minimum=1, maximum=1000)
    share: float = option(
        0.2, "Probability that a word is replaced; at least one word is", above=0, maximum=1
    )
    candidates: int = option(15, "Number of similar words to draw from", minimum=1)
    seed: int | None = option(
        None, "Random seed; null: train.data_seed, or train.seed", minimum=0, maximum=SEED
    )
    model: str | None = path_option(None, "Hub id or folder of the masked language model")


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Rows that are drawn from train, which keeps the others."""

    split: str | int = option(
        REQUIRED,
        "Share of the rows, such as 10%, or a number of rows",
        schema={
            "anyOf": [
                {
                    "type": "string",
                    "pattern": r"^(?!0+(\.0+)?%)[0-9]{1,2}(\.[0-9]+)?%$",
                    "examples": ["10%"],
                },
                {"type": "integer", "minimum": 1},
            ]
        },
    )
    stratify: bool = option(False, "Draw the same share of every class")
    seed: int = option(0, "Random seed", minimum=0, maximum=SEED)


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """The examples to train and evaluate on."""

    path: str | None = path_option(
        None, "Hub id, folder, file or 'sklearn:digits'; null: train and validation are files"
    )
    config: str | None = option(None, "Configuration of the data set on the hub")
    revision: str | None = option(None, _REVISION)
    train: str | tuple[str, ...] = files_option("train", "Split name, file or list of files to train on")
    validation: str | tuple[str, ...] | Cut = files_option(
        "validation",
        "Split name, file or list of files to evaluate on; or rows drawn from train: {split: 10%}",
        Cut,
    )
    text: str | tuple[str, str] | None = option(
        None,
        "Column of the text, or the two columns of a pair",
        schema={
            "anyOf": [TEXT, {"type": "array", "items": TEXT, "minItems": 2, "maxItems": 2}, {"type": "null"}]
        },
    )
    image: str | None = text_option("Column of the image")
    label: str = option("label", "Column of the label", schema=TEXT)
    max_length: int | None = option(
        None, "Maximum tokens of an example; null: the model's own limit, at most 512", minimum=1
    )
    limit: int | None = option(None, "Maximum rows of train; null: all", minimum=1)
    missing: Literal["error", "drop"] = option(
        "error", "What to do with rows without a text, an image or a label"
    )
    delimiter: str | None = option(
        None,
        "Delimiter between the columns of csv and tsv files; null: detected",
        schema={"type": ["string", "null"], "pattern": "^.$", "examples": [";"]},
    )
    encoding: str | None = text_option(
        "Encoding of text files, such as cp1252; null: UTF-8, or what a byte order mark says"
    )
    augment: AugmentSection | None = option(None, "Data augmentation of texts")


TRACKERS = tuple("tensorboard wandb comet_ml mlflow aim clearml dvclive swanlab trackio".split())
"""The trackers of accelerate."""


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    """The one training run that all passes share: either epochs or steps."""

    epochs: float | None = option(None, "Epochs over the data; may be fractional", above=0)
    steps: int | None = option(None, "Optimizer updates", minimum=1)
    batch_size: int = option(32, "Examples per update, over all processes", minimum=1)
    accumulate: int = option(1, "Micro-batches per update", minimum=1)
    learning_rate: float = option(5e-5, "Peak learning rate of AdamW", above=0)
    weight_decay: float = option(0.01, "Weight decay of AdamW, for matrices only", minimum=0)
    betas: tuple[float, float] = option(
        (0.9, 0.999),
        "Betas of AdamW",
        schema={
            "type": "array",
            "items": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
            "minItems": 2,
            "maxItems": 2,
        },
    )
    epsilon: float = option(1e-8, "Epsilon of AdamW", above=0)
    schedule: Literal["linear", "cosine", "constant"] = option("linear", "Decay of the learning rate")
    warmup: str | int = schedule_point("0%", "Until when the learning rate rises")
    clip: float | None = option(1.0, "Maximum gradient norm; null: no clipping", above=0)
    precision: Literal["fp32", "bf16", "fp16"] = option(
        "fp32", "Precision of the forward and backward; weights stay in fp32"
    )
    seed: int = option(0, "Random seed", minimum=0, maximum=SEED)
    data_seed: int | None = option(
        None, "Random seed of the order of examples; null: seed", minimum=0, maximum=SEED
    )
    eval_every: str | int | None = schedule_point(
        None, "How often to evaluate; null: at the end and where passes begin or end"
    )
    save_every: str | int = schedule_point("10%", "How often to write a checkpoint")
    select: Literal["last", "best"] = option("last", "Which checkpoint becomes the model")
    metric: str | None = text_option("Metric that 'best' means; null: that of the task")
    gradient_checkpointing: bool = option(False, "Recompute activations in the backward to save memory")
    device: Literal["cpu", "cuda"] | None = option(None, "Device to train on; null: cuda if available")
    workers: int = option(0, "Worker processes that prepare batches", minimum=0, maximum=256)
    log_every: str | int = schedule_point("1%", "How often losses are logged")
    track: str | None = option(
        None, "Tracker of losses, metrics and sparsity", schema={"enum": [*TRACKERS, None]}
    )


@dataclass(frozen=True, kw_only=True)
class EvalSection:
    """How the model is evaluated."""

    batch_size: int = option(64, "Examples per batch", minimum=1)
    limit: int | None = option(None, "Maximum rows of validation; null: all", minimum=1)
    latency: bool = option(True, "Measure the time of a forward before and after")


@dataclass(frozen=True, kw_only=True)
class OutputSection:
    """Where the compressed model is written."""

    path: str = path_option(REQUIRED, "The folder to write", "output")
    dtype: Dtype | None = option(None, "Type of stored floats; null: that of the source")
    shard_size: str = option(
        "5GB", "Maximum size of a weight file", pattern=r"^(?!0+(\.0+)?[KMGT])[0-9]+(\.[0-9]+)?[KMGT]B$"
    )
