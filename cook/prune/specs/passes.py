"""Declarations of the passes that prune weights, layers and tokens, without heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cook.options import Window, corpora, option
from cook.passes import Spec
from cook.prune.specs.options import MOVING, ONE_SHOT, WeightsOptions, mistakes


@dataclass(frozen=True, kw_only=True)
class LayersOptions:
    """The options of `prune.layers`."""

    keep: tuple[int, ...] | None = option(
        None, "Numbers of the layers that are kept, in increasing order; -1 is the last layer", min_items=1
    )
    count: int | None = option(
        None, "Number of layers that are kept, chosen by `choose`; give either this or keep", minimum=1
    )
    choose: Literal["influence", "top", "bottom", "alternate"] = option(
        "influence",
        "Layers that are removed: those that change their input least (influence; ShortGPT), the last (top),"
        " the first (bottom), or every k-th (alternate)",
    )
    rows: int = option(
        128, "Training examples on which influence is measured; all if there are fewer", minimum=1
    )


@dataclass(frozen=True, kw_only=True)
class LayerDropOptions(Window):
    """The options of `prune.layerdrop`."""

    rate: float = option(
        0.2,
        "Probability that a forward skips a layer; 0.5 prepares for models with less than half of the layers",
        above=0,
        below=1,
    )
    keep: tuple[int, ...] = option((), "Numbers of layers that are never skipped; -1 is the last layer")
    seed: int = option(0, "Random seed", minimum=0)


@dataclass(frozen=True, kw_only=True)
class VocabularyOptions:
    """The options of `prune.vocabulary`."""

    corpora: tuple[str, ...] | None = corpora("Files that decide which tokens are kept")
    minimum: int = option(
        1,
        "Minimum occurrences of a token that is kept; rarer ones are read as smaller pieces or as the unknown"
        " token",
        minimum=1,
    )
    keep: tuple[str, ...] = option(
        (),
        "Tokens that are kept however rare, as the vocabulary spells them; special tokens always are",
        schema={"type": "array", "items": {"type": "string", "minLength": 1}},
    )
    alphabet: bool = option(
        True,
        "Keep every single character, so that other texts can still be read; a tokenizer without an unknown"
        " token always keeps its bytes",
    )


class WeightsSpec(Spec):
    """The declaration of `PruneWeights`."""

    name = "prune.weights"
    summary = "set the least important weights to zero, on a schedule or in one shot"
    phase = "weights"
    Options = WeightsOptions
    options: WeightsOptions
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
        return str(self.options.method)

    def wants(self) -> frozenset[str]:
        if self.method in MOVING:
            return frozenset({"training"})
        return frozenset({"calibration"}) if self.method in ONE_SHOT else frozenset()

    def check(self) -> None:
        for mistake in mistakes(self.options):
            raise self.error(mistake.message, option=mistake.option, hint=mistake.hint)


class LayersSpec(Spec):
    """The declaration of `PruneLayers`."""

    name = "prune.layers"
    summary = "remove whole layers before training; the result is a plain, smaller model"
    once = True
    phase = "shape"
    Options = LayersOptions
    options: LayersOptions
    examples = ({"keep": [0]}, {"count": 1}, {"count": 1, "choose": "bottom"})

    def check(self) -> None:
        if (self.options.keep is None) == (self.options.count is None):
            hint = "write keep: [1, 3, 5], or count: 3"
            raise self.error("expected either keep or count", option="keep", hint=hint)

    def wants(self) -> frozenset[str]:
        by_influence = self.options.count is not None and self.options.choose == "influence"
        return frozenset({"calibration"}) if by_influence else frozenset()


class LayerDropSpec(Spec):
    """The declaration of `PruneLayerDrop`."""

    name = "prune.layerdrop"
    summary = "skip layers at random in training, so that any number of them can be removed later"
    phase = "structure"
    needs = frozenset({"training"})
    once = True
    Options = LayerDropOptions
    options: LayerDropOptions
    examples = ({"rate": 0.5}, {"rate": 0.5, "keep": [-1]})


class VocabularySpec(Spec):
    """The declaration of `PruneVocabulary`."""

    name = "prune.vocabulary"
    summary = "remove tokens that given texts never use from embedding, output head and tokenizer"
    phase = "structure"
    needs = frozenset({"tokenizer"})
    reads = "text"
    once = True
    Options = VocabularyOptions
    options: VocabularyOptions
