"""The passes and the tasks that are shipped here, and the modules that they live in; light to import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from cook.errors import nearest


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

TASKS = ("text-classification", "image-classification")
OTHER_TASKS = frozenset(
    "any-to-any audio-classification audio-text-to-text automatic-speech-recognition causal-lm "
    "depth-estimation document-question-answering feature-extraction fill-mask image-feature-extraction "
    "image-segmentation image-text-to-text image-to-image image-to-text keypoint-matching language-modeling "
    "mask-generation masked-lm multiple-choice ner next-sentence-prediction object-detection "
    "question-answering semantic-segmentation sentence-similarity seq2seq-lm summarization "
    "table-question-answering text-generation text-ranking text-to-audio text-to-image text-to-speech "
    "text2text-generation token-classification translation unconditional-image-generation "
    "video-classification video-text-to-text visual-question-answering zero-shot-classification "
    "zero-shot-image-classification zero-shot-object-detection".split()
)
"""Tasks of Hugging Face that cook does not train: a similar name would mislead."""


def task_hint(name: str) -> str | None:
    """What to say of a task that there is not: that it is not supported, or the nearest name."""
    known = f"the tasks are {' and '.join(TASKS)}"
    if name.strip().lower().replace("_", "-").replace(" ", "-") in OTHER_TASKS:
        return f"{name} is not supported yet; {known}"
    return nearest(name, TASKS) or known
