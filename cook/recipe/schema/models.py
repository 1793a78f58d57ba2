"""The sections of a recipe that name models: the source, the student, the teachers."""

from __future__ import annotations

from cook.builtin import TASKS
from cook.recipe.schema.fragments import (
    DTYPES,
    PICKLE,
    REVISION,
    TEXT,
    TRUST,
    choice,
    one_of,
    option,
    section,
)

MODEL = section(
    "the model to compress: exactly one of path, config and recipe",
    {
        "path": {**option(["string", "null"], None, "hub id or folder", minLength=1), "x-path": True},
        "config": {
            "type": ["object", "null"],
            "default": None,
            "description": "build the model from this configuration and train it from scratch",
            "properties": {"model_type": {**TEXT, "description": "the family, as transformers names it"}},
            "required": ["model_type"],
        },
        "recipe": {
            **option(["string", "null"], None, "a recipe whose output is the model", minLength=1),
            "x-path": True,
            "x-path-kind": "recipe",
        },
        "task": choice(
            None,
            "what the model is for; needed with data",
            *TASKS,
            None,
        ),
        "tokenizer": {
            **option(["string", "null"], None, "hub id or folder; null: the model's own", minLength=1),
            "x-path": True,
        },
        "revision": REVISION,
        "labels": option(
            ["array", "null"],
            None,
            "names of the labels in order; null: the model's own",
            items=TEXT,
            minItems=1,
        ),
        "head": {
            **choice(
                "keep",
                "keep the model's own classifier, or leave it out for a new one of the data's labels",
                "keep",
                "new",
            ),
            "x-added": True,  # after the first release: recipes that leave it out ask for what they did
        },
        "trust_remote_code": TRUST,
        "allow_pickle": PICKLE,
        "attention": choice(
            None, "attention implementation; null: transformers chooses", "eager", "sdpa", None
        ),
    },
    oneOf=one_of("path", "config", "recipe"),
)

STUDENT = section(
    "how a student is made from the model, which then is the source: exactly one of path, config and layers",
    {
        "layers": {
            "type": ["array", "null"],
            "default": None,
            "description": "keep these layers of the model, with their weights; -1 is the last",
            "items": {"type": "integer"},
            "minItems": 1,
        },
        "config": {
            "type": ["object", "null"],
            "default": None,
            "description": "a model of random weights: the model's configuration with these keys changed",
            "properties": {"model_type": {**TEXT, "description": "another family; the keys are its own"}},
        },
        "path": {
            **option(["string", "null"], None, "another model: hub id or folder", minLength=1),
            "x-path": True,
        },
        "revision": REVISION,
        "trust_remote_code": TRUST,
        "allow_pickle": PICKLE,
    },
    oneOf=one_of("path", "config", "layers"),
)

CACHE = {
    "anyOf": [
        {"type": "boolean"},
        section(
            "a cache with options",
            {
                "top": option(
                    "integer",
                    64,
                    "classes kept of each token's logits, where there are over twice as many",
                    minimum=1,
                ),
                "dtype": choice(None, "of what is kept; null: as the teacher gives it", *DTYPES, None),
            },
        ),
    ],
    "default": False,
    "description": "run it once over the training data, and keep on disk what it says",
}

_ONE_TEACHER = [
    {**TEXT, "description": "'self' (the model before compression), a hub id or a folder"},
    section(
        "a teacher with options",
        {
            "path": {
                **TEXT,
                "x-path": True,
                "description": "'self' (the model before compression), a hub id or a folder",
            },
            "trust_remote_code": TRUST,
            "allow_pickle": PICKLE,
            "revision": REVISION,
            "dtype": choice(None, "what it computes in; null: float32; of 'self', its own", *DTYPES, None),
            "weight": option("number", 1.0, "its share beside other teachers", exclusiveMinimum=0),
            "cache": CACHE,
        },
        required=("path",),
    ),
]

TEACHER = {
    "description": "the model that distillation learns from, or several",
    "anyOf": [*_ONE_TEACHER, {"type": "array", "items": {"anyOf": _ONE_TEACHER}, "minItems": 1}],
}
