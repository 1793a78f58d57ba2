"""Vocabulary pruning: tokens that given texts never produce leave the model and its tokenizer.

Half of a small encoder is its word embedding, most of whose rows a narrow domain never reads (Abdaoui,
Pradel and Sigel 2020, "Load What You Need").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cook.errors import CookError
from cook.model.tokens.id_map import TokenIdMap, check_padding, named_ids
from cook.model.tokens.tokenizer import Lexicon, count_tokens
from cook.model.tokens.vocabulary import cut, find
from cook.passes import Effect, Pass, register
from cook.prune.specs.passes import VocabularySpec

if TYPE_CHECKING:
    from cook.context import Context
    from cook.model.arch.anatomy import Anatomy
    from cook.model.tokens.vocabulary import Vocabulary


def kept_tokens(counts: Tensor, minimum: int, always: Iterable[int], lexicon: Lexicon) -> Tensor:
    """Which tokens stay when those go that are produced fewer than `minimum` times.

    Args:
        counts: how often each token is produced: integers [tokens].
        minimum: at least 1.
        always: numbers of tokens that stay however rare they are.
        lexicon: says which others a token of BPE is put together from; those stay as well.

    Returns:
        Their numbers in increasing order: int64 [kept].
    """
    often = (counts >= minimum).nonzero().flatten().tolist()
    return torch.tensor(sorted(lexicon.closed({*often, *always})), dtype=torch.long)


@register
class PruneVocabulary(VocabularySpec, Pass):
    """Counts tokens when attached, trains with all of them, and removes the unused ones at the end.

    Until then student, teacher, caches and rows share the old token ids.
    """

    def plan(self, anatomy: Anatomy) -> Effect:
        found = self._find(anatomy.model)
        names = {id(parameter): name for name, parameter in anatomy.model.named_parameters()}
        weights = [anatomy.model.get_submodule(name).weight for name in (*found.embeddings, *found.heads)]
        return Effect(
            parameters=list(dict.fromkeys(names[id(weight)] for weight in weights)),
            note=f"of {found.entries:,} tokens those that the texts never produce; the run counts them",
            sizes="at most",
        )

    def attach(self, context: Context) -> None:
        self.vocabulary = self._find(context.model)
        lexicon = self._lexicon(context)
        if context.token_id_map is not None:
            raise self.error("another pass takes tokens away already", hint="leave out one of the two")
        counts, texts = self._count(context, lexicon)
        always = lexicon.fixed | named_ids(context.model) | self._asked(lexicon)
        if self.options.alphabet or lexicon.needs_alphabet:
            always |= lexicon.alphabet
        kept = kept_tokens(counts, self.options.minimum, always, lexicon)
        self.tokenizer, kept = self._settled(context, lexicon, kept)
        unknown = _unknown(context.tokenizer, kept)
        numbers = TokenIdMap(kept, self.vocabulary.entries, unknown, labels=bool(self.vocabulary.heads))
        with self._placed():
            check_padding(context.model, numbers)
        context.token_id_map = numbers
        own = counts
        if self.options.corpora:
            own, _ = count_tokens(lexicon.encode(context.texts(None)), self.vocabulary.entries)
        self.found = {
            "tokens_before": self.vocabulary.entries,
            "tokens_after": len(kept),
            "texts": texts,
            "covered": int(counts[kept].sum()) / int(counts.sum()),
            "own_tokens_gone": int(own.sum() - own[kept].sum()),
        }

    def settled(self, done: int) -> bool:
        """Rows leave at the very end; no step makes the model more or less of what it will be."""
        return True

    def finish(self, context: Context) -> None:
        assert context.token_id_map is not None
        before = sum(parameter.numel() for parameter in context.model.parameters())
        for name in cut(context.model, self.vocabulary, context.token_id_map):
            context.masks.select(name, {0: context.token_id_map.kept})
        context.renumber(self.tokenizer)
        self.found["parameters_gone"] = before - sum(each.numel() for each in context.model.parameters())

    def facts(self, context: Context) -> dict[str, Any]:
        before, after = (self.found[f"tokens_{when}"] for when in ("before", "after"))
        self.check_measured("tokens", self._find(context.model).entries, after)
        note = f"{after:,} of {before:,} tokens kept"
        if self.found["texts"]:
            covered, texts = 100 * self.found["covered"], self.found["texts"]
            note += f", {covered:.1f} % of all tokens in {texts:,} texts"
        return {**self.found, "note": note}

    def _find(self, model: Any) -> Vocabulary:
        with self._placed():
            return find(model)

    def _lexicon(self, context: Context) -> Lexicon:
        with self._placed():
            lexicon = Lexicon(context.tokenizer)
        if lexicon.size > self.vocabulary.entries:
            raise self.error(
                f"the tokenizer has {lexicon.size:,} tokens, the model {self.vocabulary.entries:,}",
                hint="is it the tokenizer of this model?",
            )
        return lexicon

    def _asked(self, lexicon: Lexicon) -> set[int]:
        with self._placed("keep"):
            return {lexicon.named(token) for token in self.options.keep}

    def _count(self, context: Context, lexicon: Lexicon) -> tuple[Tensor, int]:
        counts, texts = count_tokens(lexicon.encode(self._texts(context)), self.vocabulary.entries)
        if not counts.sum():
            files = self.options.corpora
            what = "there is no text in them" if files else "there are no texts to count tokens in"
            hint = "give other files" if files else "name files: corpora: [texts.txt], or give data"
            raise self.error(what, option="corpora", hint=hint)
        return counts, texts

    def _texts(self, context: Context) -> Iterator[str]:
        with self._placed("corpora"):
            yield from context.texts(self.options.corpora)

    @contextmanager
    def _placed(self, option: str | None = None) -> Iterator[None]:
        """Errors inside of it point at this pass, or at one of its options."""
        try:
            yield
        except CookError as error:
            raise self.error(error.message, option=option, hint=error.hint) from error

    def _settled(self, context: Context, lexicon: Lexicon, kept: Tensor) -> tuple[Any, Tensor]:
        """The tokenizer with the tokens `kept`, and those that had to stay besides.

        Every text of which no token is gone must be read as before. A word that WordPiece cannot read may
        be read once a longer beginning of it is gone; then all that could be part of it stays.
        """
        while True:
            with self._placed():
                tokenizer = lexicon.pruned(kept.tolist())
            if not (changed := list(self._changed(context, lexicon, tokenizer, kept))):
                return tokenizer, kept
            more = lexicon.closed({*kept.tolist()}.union(*map(lexicon.within, changed)))
            if len(more) == len(kept):
                raise self.error(
                    f"without the other tokens a text would be read otherwise: {changed[0][:80]!r}",
                    hint="please report it with the tokenizer; leave it out of the corpora until then",
                )
            kept = torch.tensor(sorted(more), dtype=torch.long)

    def _changed(self, context: Context, lexicon: Lexicon, tokenizer: Any, kept: Tensor) -> Iterator[str]:
        """The texts that the new tokenizer reads otherwise though it has all their tokens."""
        new = np.full(self.vocabulary.entries, -1)
        new[kept.numpy()] = np.arange(len(kept))
        theirs = Lexicon(tokenizer).encode(self._texts(context))
        for text, before, after in zip(
            self._texts(context), lexicon.encode(self._texts(context)), theirs, strict=True
        ):
            expected = new[before]
            if (expected >= 0).all() and not np.array_equal(expected, after):
                yield text


def _unknown(tokenizer: Any, kept: Tensor) -> int:
    """What stands for tokens that are gone, where a text is not read anew."""
    choices = (tokenizer.unk_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, int(kept[0]))
    return next(number for number in choices if number is not None)
