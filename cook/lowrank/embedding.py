"""Factorised embeddings: the word embedding becomes a narrow table and a factor that widens it.

Z. Lan et al., "ALBERT: A Lite BERT for Self-supervised Learning of Language Representations", ICLR 2020,
section 3.1. From a trained model the two factors are the truncated SVD of its embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from cook.errors import CookError
from cook.lowrank.specs import EmbeddingSpec
from cook.lowrank.table import factors
from cook.model.edits.blueprint import Blueprint
from cook.model.edits.edit import Edit
from cook.model.nn import surgery
from cook.model.nn.embedding import FactorisedEmbedding, fill, find, places
from cook.model.tokens.tokenizer import Lexicon, count_tokens
from cook.passes import Effect, Pass, register

if TYPE_CHECKING:
    from cook.context import Context
    from cook.model.arch.anatomy import Anatomy


@register
class FactoriseEmbedding(EmbeddingSpec, Pass):
    """Factorises the embedding when attached: the optimizer and all other passes see the factors."""

    def settled(self, done: int) -> bool:
        """The factors are there from the start."""
        return True

    def plan(self, anatomy: Anatomy) -> Effect:
        name = self._find(anatomy.model)
        embedding: Any = anatomy.model.get_submodule(name)
        entries, width = embedding.weight.shape
        rank = self.options.rank
        sizes = f"{entries:,} x {width} become {entries:,} x {rank} and {rank} x {width}"
        tied, untied = _heads(anatomy.model, name)
        note = f"{sizes}, of {', '.join(tied)} too" if tied else sizes
        if untied:
            note += f"; {untied} is not tied to it and stays whole"
        return Effect(
            parameters=[f"{name}.weight"],
            edits=[self._edit(name)],
            claims=frozenset({"word embedding"}),
            note=note,
        )

    def attach(self, context: Context) -> None:
        model = context.model
        self.embedding = name = self._find(model)
        embedding: Any = model.get_submodule(name)
        if not bool(embedding.weight.isfinite().all()):
            raise self.error(f"{name} holds numbers that are not finite", hint="look at the model's weights")
        counts = self._counts(context, len(embedding.weight)) if self.wants() else None
        found = factors(embedding.weight.detach(), self.options.rank, counts)
        tied, untied = _heads(model, name)
        before = embedding.weight.numel()
        edit = self._edit(name)
        Blueprint(edits=[edit]).apply(model)
        fill(model, name, found.table, found.factor)
        context.edit(edit)
        self.found = {
            "rank": self.options.rank,
            "parameters_before": before,
            "parameters_after": sum(each.numel() for each in surgery.get(model, name).parameters()),
            "error": found.error,
            "energy": 1 - found.error**2,
            "tied": tied,
            "untied": [untied] if untied else [],
        }

    def facts(self, context: Context) -> dict[str, Any]:
        embedding = surgery.get(context.model, self.embedding)
        rank = embedding.table.embedding_dim if isinstance(embedding, FactorisedEmbedding) else None
        self.check_measured(f"rank of {self.embedding}", rank, self.found["rank"])
        before, after = (self.found[f"parameters_{when}"] for when in ("before", "after"))
        note = (
            f"rank {self.found['rank']}, {after:,} of {before:,} parameters left,"
            f" {100 * self.found['energy']:.1f} % of the energy kept"
        )
        return {**self.found, "note": note}

    def _find(self, model: nn.Module) -> str:
        """The name of the embedding, if factors of this rank make it smaller."""
        try:
            name = find(model)
        except CookError as error:
            raise self.error(error.message, hint=error.hint) from error
        embedding: Any = model.get_submodule(name)
        entries, width = embedding.weight.shape
        # rank * (entries + width) numbers have to be fewer than entries * width.
        most = (entries * width - 1) // (entries + width)
        if self.options.rank > most:
            raise self.error(
                f"{name} is {entries:,} x {width}: a rank of {self.options.rank} saves nothing",
                option="rank",
                hint=f"at most {most}" if most else "leave the pass out",
            )
        return name

    def _counts(self, context: Context, entries: int) -> Tensor:
        """How often each token is in the texts, and one more: what no text has is not lost altogether."""
        try:
            lexicon = Lexicon(context.tokenizer)
            if lexicon.size > entries:
                message = f"the tokenizer has {lexicon.size:,} tokens, the model {entries:,}"
                raise CookError(message, hint="is it the tokenizer of this model?")
            texts = context.texts(self.options.corpora)
            counts, _ = count_tokens(lexicon.encode(texts, template=True), entries)
        except CookError as error:
            option = "corpora" if self.options.corpora else "method"
            raise self.error(error.message, option=option, hint=error.hint) from error
        if not counts.sum():
            hint = "name files with some: corpora: [texts.txt]"
            raise self.error("there are no texts to count tokens in", option="corpora", hint=hint)
        return counts + 1

    def _edit(self, name: str) -> Edit:
        return Edit("factorise", name, {"rank": self.options.rank})


def _heads(model: Any, name: str) -> tuple[list[str], str | None]:
    """The output heads that share the matrix of embedding `name`, and one that does not, by name."""
    together = places(model, name)
    tied = [each for each in together if not isinstance(model.get_submodule(each), nn.Embedding)]
    head = model.get_output_embeddings()
    if head is None:
        return tied, None
    own = next(each for each, module in model.named_modules() if module is head)
    return tied, None if own in together else own
