"""Tensors inside of a model, by their names in a recipe.

| name | meaning | shape |
|---|---|---|
| `layers[3].output`, `.input` | output and input of a layer | [batch, tokens, width] |
| `layers[3].attention.output`, `layers[3].ffn.output` | output of a part | [batch, tokens, width] |
| `layers[3].attention.queries`, `.keys`, `.values` | attention factors | [batch, heads, tokens, width] |
| `layers[3].attention.scores` | scaled, before mask and softmax | [batch, heads, tokens, tokens] |
| `embeddings.output` | input of the first layer | [batch, tokens, width] |
| `logits` | output of the head | that of the model |
| `PATH[in]`, `PATH[out]` | first input or output of a module | that of the module |

Scores and their factors are computed from the projections' outputs, so they are available under every
attention implementation. Queries and keys are taken after rotary embedding; keys and values occur once for
all queries that share them. The output of a part is that of its module: in BERT and similar families it
includes the residual and the norm.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cook.errors import CookError, nearest
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.targets import matching
from cook.model.nn.hooks import Hooks

PARTS = (
    "input",
    "output",
    "attention.output",
    "attention.queries",
    "attention.keys",
    "attention.values",
    "attention.scores",
    "ffn.output",
)
_SIDE = re.compile(r"(?P<path>.+)\[(?P<side>in|out)\]")
_LAYER = re.compile(r"(?P<layer>layers\[-?\d+\])\.(?P<part>\w+(?:\.\w+)?)")


class Read(NamedTuple):
    """What a hook records of one module: its first input, first output, logits, or rotation."""

    module: str
    what: str


@dataclass(frozen=True)
class Source:
    """The origin of a named tensor: what is recorded, and how the tensor is computed from it."""

    reads: tuple[Read, ...]
    make: Callable[..., Tensor]


def find(anatomy: Anatomy, name: str) -> Source:
    """The source of the tensor called `name`.

    Raises:
        CookError: the name is unknown in this model, or ambiguous.
    """
    if name == "logits":
        return Source((Read("", "logits"),), _same)
    if name == "embeddings.output":
        return Source((Read(anatomy.layers[0], "in"),), _same)
    if match := _SIDE.fullmatch(name):
        found = matching(anatomy, match["path"])
        if len(found) > 1:
            few = ", ".join(found[:3])
            raise CookError(f"{name} means {len(found)} modules ({few}, ...)", hint="name exactly one")
        return Source((Read(found[0], match["side"]),), _same)
    if match := _LAYER.fullmatch(name):
        layer = (anatomy.roots(match["layer"]) or [""])[0]
        if match["part"] in PARTS:
            return _of_layer(anatomy, layer, match["layer"], match["part"])
        hint = nearest(match["part"], PARTS) or f"a layer has {', '.join(PARTS)}"
        raise CookError(f"{name}: a layer has no tensor {match['part']!r}", hint=hint)
    forms = "layers[3].output, layers[3].attention.scores, embeddings.output, logits, PATH[in] or PATH[out]"
    raise CookError(f"{name!r} is no tensor of a model", hint=f"write {forms}")


def modules_of(sources: Iterable[Source]) -> list[str]:
    """The modules recorded for some tensors, without duplicates."""
    return list(dict.fromkeys(read.module for source in sources for read in source.reads))


def _of_layer(anatomy: Anatomy, layer: str, word: str, part: str) -> Source:
    if part in ("input", "output"):
        return Source((Read(layer, part.removesuffix("put")),), _same)
    if part == "ffn.output":
        return Source((Read((anatomy.roots(f"{word}.ffn") or [""])[-1], "out"),), _same)
    if part == "attention.output":
        return Source((Read((anatomy.roots(f"{word}.attention") or [""])[-1], "out"),), _same)
    if not anatomy.stacks[layer].attentions[0].scores:
        raise CookError(
            f"{word}.{part}: cook cannot tell them from what the projections of a {anatomy.kind} model give",
            hint=f"name {word}.output or {word}.attention.output",
        )
    projections = anatomy.projections(layer)
    attention = anatomy.model.get_submodule(projections[0].rpartition(".")[0])
    reads = (*(Read(each, "out") for each in projections), Read(projections[0].rpartition(".")[0], "rotary"))
    wanted = part.removeprefix("attention.")

    def make(query: Tensor, key: Tensor, value: Tensor, rotation: Any) -> Tensor:
        if query is key:  # one fused projection, its outputs concatenated (GPT-2)
            query, key, value = query.chunk(3, dim=-1)
        factors = [_by_head(each, attention) for each in (query, key, value)]
        rotate = vars(sys.modules[type(attention).__module__]).get("apply_rotary_pos_emb")
        if rotate is not None and wanted != "values":
            factors[:2] = rotate(*factors[:2], *rotation)
        if wanted == "scores":
            return scores(factors[0], factors[1], float(attention.scaling))  # type: ignore[arg-type]
        return factors[("queries", "keys", "values").index(wanted)]

    return Source(reads, make)


def scores(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """Attention scores before mask and softmax, in float32.

    Args:
        queries: [batch, heads, tokens, head width].
        keys: the same, or with fewer heads, each shared by several queries (grouped-query attention).
        scaling: factor of the products.

    Returns:
        [batch, heads, tokens, tokens].
    """
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
    device = "cpu" if queries.is_meta else queries.device.type
    with torch.autocast(device, enabled=False):
        return queries.float() @ keys.float().transpose(-1, -2) * scaling


def _by_head(projected: Tensor, attention: Any) -> Tensor:
    width = getattr(attention, "head_dim", None) or attention.attention_head_size
    return projected.unflatten(-1, (-1, width)).transpose(1, 2)


def _same(tensor: Tensor) -> Tensor:
    return tensor


class Tensors:
    """The watched tensors of a model, from its last recorded forward.

    Hooks keep references only in a recorded forward: not during recomputation in a backward (gradient
    checkpointing), and not in evaluations.

    Args:
        anatomy: of the model.
        hooks: used to register and remove hooks.
    """

    def __init__(self, anatomy: Anatomy, hooks: Hooks):
        self.anatomy, self.hooks = anatomy, hooks
        self._sources: dict[str, Source] = {}
        self._kept: dict[Read, Any] = {}
        self._made: dict[str, Tensor] = {}
        self._recording = False
        self._recomputed: list[nn.Module] = []

    def watch(self, name: str) -> None:
        """Register a tensor to watch; after `open` each recorded forward keeps it.

        Raises:
            CookError: from `find`.
        """
        self._sources.setdefault(name, find(self.anatomy, name))

    def open(self) -> None:
        """Register the hooks; call this once no module will be replaced any more.

        Raises:
            CookError: gradients of watched tensors would be lost.
        """
        model = self.anatomy.model
        # Modules that are not trained have no gradients to lose.
        if self._sources and any(parameter.requires_grad for parameter in model.parameters()):
            self._recomputed = [each for each in model.modules() if hasattr(each, "gradient_checkpointing")]
        refuse_reentrant(self._recomputed)
        for read in dict.fromkeys(read for source in self._sources.values() for read in source.reads):
            self._hook(read)

    @property
    def read(self) -> list[str]:
        """The modules recorded for the watched tensors."""
        return modules_of(self._sources.values())

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the forward in the context, replacing the previous one.

        Raises:
            CookError: gradients would be lost, as in `open`: checkpointing can be enabled later.
        """
        refuse_reentrant(self._recomputed)
        self.clear()
        self._recording = True
        try:
            yield
        finally:
            self._recording = False

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._made:
            source = self._sources[name]
            if missing := [read.module for read in source.reads if read not in self._kept]:
                raise CookError(f"{name}: {missing[0] or 'the model'} was not run to its end in this forward")
            self._made[name] = source.make(*(self._kept[read] for read in source.reads))
        return self._made[name]

    def clear(self) -> None:
        """Drop the recorded tensors."""
        self._kept, self._made = {}, {}

    def _hook(self, read: Read) -> None:
        module = self.anatomy.model.get_submodule(read.module)

        def keep(value: Any) -> None:
            if not self._recording:
                return
            if read in self._kept:
                raise CookError(
                    f"{read.module} runs several times in a forward: which one is meant?",
                    hint="name a module that runs once, such as one around it",
                )
            self._kept[read] = value

        def before(_: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            if read.what == "rotary":
                keep(named.get("position_embeddings"))
            else:
                keep(_first((*arguments, *named.values()), read.module))

        def after(_: nn.Module, arguments: Any, output: Any) -> None:
            keep(_logits(output) if read.what == "logits" else _first(output, read.module))

        if read.what in ("in", "rotary"):
            self.hooks.forward_pre(module, before, named=True)
        else:
            self.hooks.forward(module, after)


def _first(values: Any, module: str) -> Tensor:
    if isinstance(values, Tensor):
        return values
    found = values.values() if isinstance(values, Mapping) else values
    for value in found if isinstance(found, Iterable) else ():
        if isinstance(value, Tensor):
            return value
    raise CookError(f"{module} neither gets nor gives a tensor there")


def _logits(output: Any) -> Tensor:
    if (found := getattr(output, "logits", None)) is None:
        raise CookError("the model gives no logits", hint="take a model with a head, or name another tensor")
    return found


def refuse_reentrant(modules: Iterable[nn.Module]) -> None:
    """Raise CookError if one of `modules` is recomputed such that gradients of recorded tensors are lost."""
    for module in modules:
        function = getattr(module, "_gradient_checkpointing_func", None)
        # Reentrant is torch's default.
        chosen = getattr(function, "keywords", {}).get("use_reentrant")
        if module.gradient_checkpointing and chosen is not False:
            raise CookError(
                "reentrant gradient checkpointing loses the gradients of tensors inside of layers",
                hint='model.gradient_checkpointing_enable({"use_reentrant": False})',
            )
