"""The passes that are shipped here, and the modules that they live in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Home(NamedTuple):
    """Where a pass that is shipped here lives.

    Attributes:
        spec: module and name of its declaration, which is light to import.
        implementation: module and name of the pass itself, which imports torch.
    """

    spec: str
    implementation: str


BUILT_IN: Mapping[str, Home] = {
    "distill.hidden": Home("cook.distill.specs:HiddenSpec", "cook.distill.hidden:DistillHidden"),
    "distill.logits": Home("cook.distill.specs:LogitsSpec", "cook.distill.logits:DistillLogits"),
    "distill.minilm": Home("cook.distill.specs:MiniLMSpec", "cook.distill.minilm:DistillMiniLM"),
    "distill.patient": Home("cook.distill.specs:PatientSpec", "cook.distill.patient:DistillPatient"),
    "distill.tinybert": Home("cook.distill.specs:TinyBERTSpec", "cook.distill.tinybert:DistillTinyBERT"),
    "lowrank.embedding": Home(
        "cook.lowrank.specs:EmbeddingSpec", "cook.lowrank.embedding:FactoriseEmbedding"
    ),
    "lowrank.linear": Home("cook.lowrank.specs:LinearSpec", "cook.lowrank.linear:LowRankLinear"),
    "prune.heads": Home("cook.prune.specs.units:HeadsSpec", "cook.prune.structure.heads:PruneHeads"),
    "prune.layerdrop": Home("cook.prune.specs.passes:LayerDropSpec", "cook.prune.layerdrop:PruneLayerDrop"),
    "prune.layers": Home("cook.prune.specs.passes:LayersSpec", "cook.prune.layers:PruneLayers"),
    "prune.neurons": Home("cook.prune.specs.units:NeuronsSpec", "cook.prune.structure.neurons:PruneNeurons"),
    "prune.structured": Home(
        "cook.prune.specs.units:StructuredSpec", "cook.prune.structure.structured:PruneStructured"
    ),
    "prune.units": Home("cook.prune.specs.units:UnitsSpec", "cook.prune.structure.units:PruneUnits"),
    "prune.vocabulary": Home(
        "cook.prune.specs.passes:VocabularySpec", "cook.prune.vocabulary:PruneVocabulary"
    ),
    "prune.weights": Home("cook.prune.specs.passes:WeightsSpec", "cook.prune.weights.weights:PruneWeights"),
    "quant.qat": Home("cook.quant.specs:QatSpec", "cook.quant.qat:QuantAwareTraining"),
    "share.layers": Home("cook.share.specs:LayersSpec", "cook.share.layers:ShareLayers"),
}
"""The passes shipped here, by name; each half is imported when it is first asked for."""
