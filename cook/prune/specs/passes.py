"""What the passes that prune weights, layers and tokens declare: names, options and what fits together.

This module is read to check a recipe: it imports nothing heavy, and neither may its `check`s.
"""

from __future__ import annotations

from typing import Any, ClassVar

from cook.passes import CORPORA, WINDOW, Spec
from cook.prune.specs.options import MOVING, ONE_SHOT, OPTIONS, mistakes


class WeightsSpec(Spec):
    """The declaration of `PruneWeights`."""

    name = "prune.weights"
    summary = "set the least important weights to zero, under a schedule or in one shot, and keep them there"
    phase = "weights"
    options: ClassVar[dict[str, Any]] = OPTIONS
    examples = (
        {"sparsity": 0.5},
        {"sparsity": 0.6, "scope": "layer", "schedule": "linear", "every": 2},
        {"pattern": "2:4"},
        {"sparsity": 0.5, "block": [4, 2]},
        {"method": "movement", "sparsity": 0.5},
        {"method": "soft-movement", "penalty": 10, "speed": 100, "threshold": 0.4},
        {"method": "wanda", "pattern": "2:4"},
        {"method": "sparsegpt", "sparsity": 0.5},
    )

    @property
    def method(self) -> str:
        return str(self.given["method"])

    def wants(self) -> frozenset[str]:
        if self.method in MOVING:
            return frozenset({"training"})
        return frozenset({"calibration"}) if self.method in ONE_SHOT else frozenset()

    def check(self) -> None:
        for mistake in mistakes(self.given):
            raise self.error(mistake.message, option=mistake.option, hint=mistake.hint)


class LayersSpec(Spec):
    """The declaration of `PruneLayers`."""

    name = "prune.layers"
    summary = "leave whole layers out from the start; what is left is smaller and faster, and a plain model"
    once = True
    phase = "shape"
    options: ClassVar[dict[str, Any]] = {
        "keep": {
            "type": ["array", "null"],
            "items": {"type": "integer"},
            "minItems": 1,
            "default": None,
            "description": "the numbers of the layers that stay, in increasing order; -1 is the last",
        },
        "count": {
            "type": ["integer", "null"],
            "minimum": 1,
            "default": None,
            "description": "how many layers stay, where `choose` says which; either this or keep",
        },
        "choose": {
            "enum": ["influence", "top", "bottom", "alternate"],
            "default": "influence",
            "description": "which ones go: those that turn their input least (ShortGPT), the last ones, the"
            " first ones, or every k-th",
        },
        "rows": {
            "type": "integer",
            "minimum": 1,
            "default": 128,
            "description": "training examples that influence is measured on, all there are if fewer",
        },
    }
    examples = ({"keep": [0]}, {"count": 1}, {"count": 1, "choose": "bottom"})

    def check(self) -> None:
        if (self.given["keep"] is None) == (self.given["count"] is None):
            hint = "write keep: [1, 3, 5], or count: 3"
            raise self.error("expected either keep or count", option="keep", hint=hint)

    def wants(self) -> frozenset[str]:
        by_influence = self.given["count"] is not None and self.given["choose"] == "influence"
        return frozenset({"calibration"}) if by_influence else frozenset()


class LayerDropSpec(Spec):
    """The declaration of `PruneLayerDrop`."""

    name = "prune.layerdrop"
    summary = "train with layers left out at random, for a model that any number of layers can be cut from"
    phase = "structure"
    needs = frozenset({"training"})
    once = True
    options: ClassVar[dict[str, Any]] = {
        "rate": {
            "type": "number",
            "exclusiveMinimum": 0,
            "exclusiveMaximum": 1,
            "default": 0.2,
            "description": "how probable it is that a forward leaves a layer out; 0.5 prepares for models of"
            " less than half of the layers",
        },
        "keep": {
            "type": "array",
            "items": {"type": "integer"},
            "default": [],
            "description": "the numbers of layers that are never left out; -1 is the last",
        },
        "seed": {"type": "integer", "minimum": 0, "default": 0, "description": "of chance"},
        **WINDOW,
    }
    examples = ({"rate": 0.5}, {"rate": 0.5, "keep": [-1]})


class VocabularySpec(Spec):
    """The declaration of `PruneVocabulary`."""

    name = "prune.vocabulary"
    summary = "take tokens that given texts never produce out of embedding, output head and tokenizer"
    phase = "structure"
    needs = frozenset({"tokenizer"})
    reads = "text"
    once = True
    options: ClassVar[dict[str, Any]] = {
        "corpora": {**CORPORA, "description": f"files that say which tokens stay: {CORPORA['description']}"},
        "minimum": {
            "type": "integer",
            "minimum": 1,
            "default": 1,
            "description": "how often a token must be produced to stay; what is rarer is read as smaller"
            " pieces, or as the unknown token",
        },
        "keep": {
            "type": "array",
            "items": {"type": "string", "minLength": 1},
            "default": [],
            "description": "tokens that stay however rare, as the vocabulary spells them; special and added"
            " ones always do",
        },
        "alphabet": {
            "type": "boolean",
            "default": True,
            "description": "keep every single character, so that other texts can still be read; a tokenizer"
            " without an unknown token always keeps its bytes",
        },
    }
