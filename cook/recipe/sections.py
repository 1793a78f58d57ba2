"""The sections of a recipe as JSON Schema: every key with its type, range, default and meaning.

Two annotations of our own: `x-moment` marks a moment of the run, `x-path` a text that may name a
local file or folder. `x-path-kind` narrows the latter: `file` (a file or a plain name, never a
folder), `recipe` (always a path, which must exist), `output` (always a path, which may be new).
"""

from __future__ import annotations

from typing import Any

from cook.passes import MOMENT

Schema = dict[str, Any]


def _section(description: str, properties: Schema, required: tuple[str, ...] = (), **more: Any) -> Schema:
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
        **more,
    }


def _one_of(*keys: str) -> list[Schema]:
    """Exactly one of the keys is given, null not counting."""
    return [{"required": [key], "properties": {key: {"not": {"type": "null"}}}} for key in keys]


def _option(kind: str | list[str], default: Any, description: str, **more: Any) -> Schema:
    return {"type": kind, "default": default, "description": description, **more}


def _choice(default: Any, description: str, *values: Any) -> Schema:
    return {"enum": list(values), "default": default, "description": description}


def _moment(default: Any, description: str) -> Schema:
    kinds = [*MOMENT["type"], "null"] if default is None else MOMENT["type"]
    return {**MOMENT, "type": kinds, "default": default, "description": description}


def _files(default: str, description: str) -> Schema:
    item = {"type": "string", "minLength": 1, "x-path": True, "x-path-kind": "file"}
    return {
        "anyOf": [item, {"type": "array", "items": item, "minItems": 1}],
        "x-path": True,
        "x-path-kind": "file",
        "default": default,
        "description": description,
    }


_TEXT = {"type": "string", "minLength": 1}
_DTYPES = ("float32", "bfloat16", "float16")
_TRUST = _option("boolean", False, "run the Python code that a hub repository brings")
_PICKLE = _option("boolean", False, "read weights that are not safetensors (a pickle can run code)")
_REVISION = _option(["string", "null"], None, "branch, tag or commit on the hub; null: the newest")

MODEL = _section(
    "the model to compress: exactly one of path, config and recipe",
    {
        "path": {**_option(["string", "null"], None, "hub id or folder", minLength=1), "x-path": True},
        "config": {
            "type": ["object", "null"],
            "default": None,
            "description": "build the model from this configuration and train it from scratch",
            "properties": {"model_type": {**_TEXT, "description": "the family, as transformers names it"}},
            "required": ["model_type"],
        },
        "recipe": {
            **_option(["string", "null"], None, "a recipe whose output is the model", minLength=1),
            "x-path": True,
            "x-path-kind": "recipe",
        },
        "task": _choice(
            None,
            "what the model is for; needed with data",
            "text-classification",
            "image-classification",
            None,
        ),
        "tokenizer": {
            **_option(["string", "null"], None, "hub id or folder; null: the model's own", minLength=1),
            "x-path": True,
        },
        "revision": _REVISION,
        "labels": _option(
            ["array", "null"],
            None,
            "names of the labels in order; null: the model's own",
            items=_TEXT,
            minItems=1,
        ),
        "trust_remote_code": _TRUST,
        "allow_pickle": _PICKLE,
        "attention": _choice(
            None, "attention implementation; null: transformers chooses", "eager", "sdpa", None
        ),
    },
    oneOf=_one_of("path", "config", "recipe"),
)

TEACHER = {
    "description": "the model that distillation learns from",
    "anyOf": [
        {**_TEXT, "description": "'self' (the model before compression), a hub id or a folder"},
        _section(
            "a teacher with options",
            {
                "path": {
                    **_TEXT,
                    "x-path": True,
                    "description": "'self' (the model before compression), a hub id or a folder",
                },
                "trust_remote_code": _TRUST,
                "allow_pickle": _PICKLE,
                "revision": _REVISION,
                "dtype": _choice(
                    None, "what it computes in; null: float32; of 'self', its own", *_DTYPES, None
                ),
            },
            required=("path",),
        ),
    ],
}

DATA = _section(
    "the examples to train and evaluate on",
    {
        "path": {
            **_option(
                ["string", "null"],
                None,
                "hub id, folder, file or 'sklearn:digits'; null: train and validation are files",
                minLength=1,
            ),
            "x-path": True,
        },
        "config": _option(["string", "null"], None, "the data set's configuration on the hub"),
        "revision": _REVISION,
        "train": _files("train", "split name, file or list of files to train on"),
        "validation": _files("validation", "split name, file or list of files to evaluate on"),
        "text": {
            "anyOf": [
                _TEXT,
                {"type": "array", "items": _TEXT, "minItems": 2, "maxItems": 2},
                {"type": "null"},
            ],
            "default": None,
            "description": "column of the text, or the two columns of a pair",
        },
        "image": _option(["string", "null"], None, "column of the image", minLength=1),
        "label": _option("string", "label", "column of the label", minLength=1),
        "max_length": _option(
            ["integer", "null"], None, "tokens of an example; null: the model's own, at most 512", minimum=1
        ),
        "limit": _option(["integer", "null"], None, "how many rows of train to use; null: all", minimum=1),
    },
)

TRAIN = _section(
    "the one training run that all passes share: epochs or steps",
    {
        "epochs": _option(
            ["number", "null"], None, "passes over the data, may be fractional", exclusiveMinimum=0
        ),
        "steps": _option(["integer", "null"], None, "updates of the weights", minimum=1),
        "batch_size": _option("integer", 32, "examples of one update, over all processes", minimum=1),
        "accumulate": _option("integer", 1, "micro-batches that an update is cut into", minimum=1),
        "learning_rate": _option("number", 5e-5, "of AdamW, at its highest", exclusiveMinimum=0),
        "weight_decay": _option("number", 0.01, "of AdamW, for matrices only", minimum=0),
        "betas": _option(
            "array",
            [0.9, 0.999],
            "of AdamW",
            items={"type": "number", "minimum": 0, "exclusiveMaximum": 1},
            minItems=2,
            maxItems=2,
        ),
        "epsilon": _option("number", 1e-8, "of AdamW", exclusiveMinimum=0),
        "schedule": _choice("linear", "how the learning rate falls", "linear", "cosine", "constant"),
        "warmup": _moment("0%", "until when the learning rate rises"),
        "clip": _option(["number", "null"], 1.0, "largest gradient norm; null: off", exclusiveMinimum=0),
        "precision": _choice(
            "fp32", "of the forward and backward; weights stay fp32", "fp32", "bf16", "fp16"
        ),
        "seed": _option("integer", 0, "of everything random", minimum=0, maximum=2**32 - 1),
        "data_seed": _option(
            ["integer", "null"], None, "of the order of examples; null: seed", minimum=0, maximum=2**32 - 1
        ),
        "eval_every": _moment(None, "how often to evaluate; null: at the end and where passes begin and end"),
        "save_every": _moment("10%", "how often to write a checkpoint"),
        "select": _choice("last", "which checkpoint becomes the model", "last", "best"),
        "metric": _option(["string", "null"], None, "what 'best' means; null: the task's", minLength=1),
        "gradient_checkpointing": _option("boolean", False, "compute twice to save memory"),
        "device": _choice(None, "where to train; null: cuda when there is one", "cpu", "cuda", None),
        "workers": _option("integer", 0, "processes that prepare batches", minimum=0, maximum=256),
        "log_every": _moment("1%", "how often losses are logged"),
        "track": _choice(None, "tracker", "tensorboard", None),
    },
    oneOf=_one_of("epochs", "steps"),
)

EVAL = _section(
    "how the model is evaluated",
    {
        "batch_size": _option("integer", 64, "examples at a time", minimum=1),
        "limit": _option(["integer", "null"], None, "how many rows of validation; null: all", minimum=1),
        "latency": _option("boolean", True, "measure the time of a forward before and after"),
    },
    default={},
)

OUTPUT = _section(
    "where the compressed model goes",
    {
        "path": {**_TEXT, "x-path": True, "x-path-kind": "output", "description": "the folder to write"},
        "dtype": _choice(None, "of stored floats; null: the source's", *_DTYPES, None),
        "shard_size": _option(
            "string", "5GB", "largest weight file", pattern=r"^[0-9]+(\.[0-9]+)? ?([KMGT]i?)?B$"
        ),
    },
    required=("path",),
)

SECTIONS: dict[str, Schema] = {
    "version": {"const": 1, "description": "of the recipe format"},
    "model": MODEL,
    "teacher": TEACHER,
    "data": DATA,
    "train": TRAIN,
    "eval": EVAL,
    "output": OUTPUT,
}
