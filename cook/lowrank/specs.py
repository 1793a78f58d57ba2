"""Declarations of the low-rank passes: names and checks of options, without heavy imports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from cook.lowrank.options import WAYS, EmbeddingOptions, LinearOptions
from cook.passes import Conflict, Spec


class EmbeddingSpec(Spec):
    """The declaration of `FactoriseEmbedding`."""

    name = "lowrank.embedding"
    summary = "factorize the word embedding, and heads tied to it, into two matrices (ALBERT)"
    phase = "shape"
    reads = "text"
    once = True
    Options = EmbeddingOptions
    options: EmbeddingOptions
    examples = ({"rank": 4}, {"rank": 4, "method": "frequency"})

    def check(self) -> None:
        if self.options.corpora and self.options.method != "frequency":
            hint = "write method: frequency, or leave corpora out"
            raise self.error("texts are for method frequency", option="corpora", hint=hint)

    def wants(self) -> frozenset[str]:
        return frozenset({"tokenizer"} if self.options.method == "frequency" else ())


class LinearSpec(Spec):
    """The declaration of `LowRankLinear`."""

    name = "lowrank.linear"
    summary = "factorize linear layers into two smaller ones, fitted to examples or to the weights"
    phase = "shape"
    Options = LinearOptions
    options: LinearOptions
    examples = (
        {"spread": False},
        {},
        {"method": "svd", "rank": 3},
        {"method": "fisher", "parameters": 0.4, "fused": "apart"},
        {"energy": 0.9, "fused": "apart", "dtype": "float64"},
        {"budget": {"parameters": 0.8}},
        {"budget": {"macs": 0.8}, "method": "svd"},
        {"method": "svd", "parameters": 0.6, "spread": True, "include": ["ffn"]},
        {"ranks": {"attention": 2, "layers[1]": 3}},
    )
    incompatible: ClassVar[Mapping[str, Conflict]] = {
        "lowrank.linear": Conflict(
            "a matrix that is two factors already is not factorised again",
            "`include` or `exclude` of the first leaves layers whole",
        ),
        "share.layers": Conflict(
            "a matrix that layers share cannot become the factors of one of them",
            "`exclude` names what is shared",
            only_below=True,
        ),
    }

    @property
    def method(self) -> str:
        return str(self.options.method)

    def check(self) -> None:
        asked = [way for way in WAYS if getattr(self.options, way) is not None]
        if len(asked) > 1:
            hint = "take one of them: parameters: 0.5 is a share for all"
            raise self.error(f"found {' and '.join(asked)}, which all say ranks", option=asked[1], hint=hint)
        way, budget = asked[0] if asked else "parameters", self.options.budget
        if self.options.spread and way != "parameters":
            hint = "leave it out; a budget is always spread"
            raise self.error(f"means nothing with {way}", option="spread", hint=hint)
        if self.options.multiple > 1 and way in ("rank", "ranks"):
            message = f"means nothing with {way}, which says the very ranks"
            raise self.error(message, option="multiple", hint="leave it out")
        if self.options.dtype != "float32" and self.method != "data":
            message = f"means nothing with {self.method}, which sums no Gram matrices"
            raise self.error(message, option="dtype", hint="leave it out")
        if budget is not None and (budget.parameters is None) == (budget.macs is None):
            hint = "write budget: {parameters: 0.5}"
            raise self.error("expected either parameters or macs", option="budget", hint=hint)

    def wants(self) -> frozenset[str]:
        counts = self.options.budget is not None and self.options.budget.macs is not None
        return frozenset({"calibration"}) if self.method != "svd" or counts else frozenset()
