"""The sections of a recipe as JSON Schema: every key with its type, range, default and meaning."""

from __future__ import annotations

from cook.recipe.schema.fragments import (
    DTYPES,
    REVISION,
    TEXT,
    Schema,
    choice,
    files,
    one_of,
    option,
    schedule_point,
    section,
)
from cook.recipe.schema.models import MODEL, STUDENT, TEACHER

AUGMENT = {
    **section(
        "copies of the training texts with words replaced by similar ones; null: none",
        {
            "method": choice(
                "neighbours",
                "similar are the nearest in the teacher's word embeddings, or the most probable of a masked "
                "language model",
                "neighbours",
                "masked-lm",
            ),
            "copies": option(
                "integer", 4, "of every example: an epoch is as many examples longer", minimum=1, maximum=1000
            ),
            "share": option(
                "number",
                0.2,
                "probability that a word is replaced; one at least is",
                exclusiveMinimum=0,
                maximum=1,
            ),
            "candidates": option("integer", 15, "similar words to draw from", minimum=1),
            "seed": option(
                ["integer", "null"], None, "null: train.data_seed, or seed", minimum=0, maximum=2**32 - 1
            ),
            "model": {
                **option(
                    ["string", "null"], None, "hub id or folder of the masked language model", minLength=1
                ),
                "x-path": True,
            },
        },
    ),
    "type": ["object", "null"],
    "default": None,
}

_VALIDATION = files(
    "validation",
    "split name, file or list of files to evaluate on; or rows drawn from train: {split: 10%}",
)
VALIDATION = {
    **_VALIDATION,
    "anyOf": [
        *_VALIDATION["anyOf"],
        section(
            "rows that are drawn from train, which keeps the others",
            {
                "split": {
                    "anyOf": [
                        {
                            "type": "string",
                            "pattern": r"^(?!0+(\.0+)?%)[0-9]{1,2}(\.[0-9]+)?%$",
                            "examples": ["10%"],
                        },
                        {"type": "integer", "minimum": 1},
                    ],
                    "description": "how many: a share of the rows, as in 10%, or a number of rows",
                },
                "stratify": option("boolean", False, "draw the same share of every class"),
                "seed": option("integer", 0, "of the draw", minimum=0, maximum=2**32 - 1),
            },
            required=("split",),
        ),
    ],
}

DATA = section(
    "the examples to train and evaluate on",
    {
        "path": {
            **option(
                ["string", "null"],
                None,
                "hub id, folder, file or 'sklearn:digits'; null: train and validation are files",
                minLength=1,
            ),
            "x-path": True,
        },
        "config": option(["string", "null"], None, "the data set's configuration on the hub"),
        "revision": REVISION,
        "train": files("train", "split name, file or list of files to train on"),
        "validation": VALIDATION,
        "text": {
            "anyOf": [
                TEXT,
                {"type": "array", "items": TEXT, "minItems": 2, "maxItems": 2},
                {"type": "null"},
            ],
            "default": None,
            "description": "column of the text, or the two columns of a pair",
        },
        "image": option(["string", "null"], None, "column of the image", minLength=1),
        "label": option("string", "label", "column of the label", minLength=1),
        "max_length": option(
            ["integer", "null"], None, "tokens of an example; null: the model's own, at most 512", minimum=1
        ),
        "limit": option(["integer", "null"], None, "how many rows of train to use; null: all", minimum=1),
        "missing": choice("error", "what to do with rows that have no text, image or label", "error", "drop"),
        "delimiter": option(
            ["string", "null"],
            None,
            "between the columns of csv and tsv files; null: found in the file",
            pattern="^.$",
            examples=[";"],
        ),
        "encoding": option(
            ["string", "null"],
            None,
            "of files of text, such as cp1252; null: UTF-8, or what a byte order mark says",
            minLength=1,
        ),
        "augment": AUGMENT,
    },
)

TRACKERS = "tensorboard wandb comet_ml mlflow aim clearml dvclive swanlab trackio".split()
"""What accelerate logs to."""

TRAIN = section(
    "the one training run that all passes share: epochs or steps",
    {
        "epochs": option(
            ["number", "null"], None, "passes over the data, may be fractional", exclusiveMinimum=0
        ),
        "steps": option(["integer", "null"], None, "updates of the weights", minimum=1),
        "batch_size": option("integer", 32, "examples of one update, over all processes", minimum=1),
        "accumulate": option("integer", 1, "micro-batches that an update is cut into", minimum=1),
        "learning_rate": option("number", 5e-5, "of AdamW, at its highest", exclusiveMinimum=0),
        "weight_decay": option("number", 0.01, "of AdamW, for matrices only", minimum=0),
        "betas": option(
            "array",
            [0.9, 0.999],
            "of AdamW",
            items={"type": "number", "minimum": 0, "exclusiveMaximum": 1},
            minItems=2,
            maxItems=2,
        ),
        "epsilon": option("number", 1e-8, "of AdamW", exclusiveMinimum=0),
        "schedule": choice("linear", "how the learning rate falls", "linear", "cosine", "constant"),
        "warmup": schedule_point("0%", "until when the learning rate rises"),
        "clip": option(["number", "null"], 1.0, "largest gradient norm; null: off", exclusiveMinimum=0),
        "precision": choice("fp32", "of the forward and backward; weights stay fp32", "fp32", "bf16", "fp16"),
        "seed": option("integer", 0, "of everything random", minimum=0, maximum=2**32 - 1),
        "data_seed": option(
            ["integer", "null"], None, "of the order of examples; null: seed", minimum=0, maximum=2**32 - 1
        ),
        "eval_every": schedule_point(
            None, "how often to evaluate; null: at the end and where passes begin or end"
        ),
        "save_every": schedule_point("10%", "how often to write a checkpoint"),
        "select": choice("last", "which checkpoint becomes the model", "last", "best"),
        "metric": option(["string", "null"], None, "what 'best' means; null: the task's", minLength=1),
        "gradient_checkpointing": option("boolean", False, "compute twice to save memory"),
        "device": choice(None, "where to train; null: cuda when there is one", "cpu", "cuda", None),
        "workers": option("integer", 0, "processes that prepare batches", minimum=0, maximum=256),
        "log_every": schedule_point("1%", "how often losses are logged"),
        "track": choice(
            None,
            "tracker of losses, metrics and sparsity",
            *TRACKERS,
            None,
        ),
    },
    oneOf=one_of("epochs", "steps"),
)

EVAL = section(
    "how the model is evaluated",
    {
        "batch_size": option("integer", 64, "examples at a time", minimum=1),
        "limit": option(["integer", "null"], None, "how many rows of validation; null: all", minimum=1),
        "latency": option("boolean", True, "measure the time of a forward before and after"),
    },
    default={},
)

OUTPUT = section(
    "where the compressed model goes",
    {
        "path": {**TEXT, "x-path": True, "x-path-kind": "output", "description": "the folder to write"},
        "dtype": choice(None, "of stored floats; null: the source's", *DTYPES, None),
        "shard_size": option(
            "string", "5GB", "largest weight file", pattern=r"^(?!0+(\.0+)?[KMGT])[0-9]+(\.[0-9]+)?[KMGT]B$"
        ),
    },
    required=("path",),
)

SECTIONS: dict[str, Schema] = {
    "version": {"const": 1, "description": "of the recipe format"},
    "model": MODEL,
    "student": STUDENT,
    "teacher": TEACHER,
    "data": DATA,
    "train": TRAIN,
    "eval": EVAL,
    "output": OUTPUT,
}
