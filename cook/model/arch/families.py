"""The names of each model family's parts: one table entry per family, and no code.

Names are relative: those of a stack's layers to the base model, the others to one layer. To add a family,
add an entry here and one with tiny settings in `tests/helpers/families.py`; the shared tests then cover it.
"""

from __future__ import annotations

from cook.model.arch.parts import CONFIG, Attention, Family, FeedForward, Stack, Stream


def _named(prefix: str, *names: str) -> tuple[str, str, str]:
    query, key, value = (f"{prefix}.{name}" for name in names)
    return query, key, value


_WORDS = tuple(f"embeddings.{name}_embeddings" for name in ("word", "position", "token_type"))
_BERT = Stream(
    (*_WORDS, "embeddings_project"),
    ("embeddings.LayerNorm",),
    ("attention.output.LayerNorm", "output.LayerNorm"),
)
_LLAMA = Stream(("embed_tokens",), ("norm",))
_HEADS = {"num_attention_heads": "heads", "all_head_size": "width"}
_BEFORE_EACH = (("input_layernorm",), ("post_attention_layernorm",))


def _bert(*names: str, gives: str = "states", stream: Stream | None = None, **attention: object) -> Family:
    """BERT and similar families, which use these names for queries, keys and values."""
    found = Attention(
        _named("attention.self", *names),
        "attention.output.dense",
        counts=_HEADS,
        **attention,  # type: ignore[arg-type]
    )
    ffn = FeedForward(("intermediate.dense",), "output.dense")
    parts = ("attention",), ("intermediate", "output")
    stack = Stack("encoder.layer", *parts, (found,), ffn, gives=gives)
    return Family((stack,), ("embeddings",), stream)


def _llama(stream: Stream | None = None, **attention: object) -> Family:
    """Llama and similar families: grouped keys and values, a gated FFN."""
    found = Attention(
        _named("self_attn", "q_proj", "k_proj", "v_proj"),
        "self_attn.o_proj",
        **attention,  # type: ignore[arg-type]
    )
    ffn = FeedForward(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
    stack = Stack("layers", ("self_attn",), ("mlp",), (found,), ffn, norms=_BEFORE_EACH)
    return Family((stack,), ("embed_tokens",), stream)


def _single(
    layers: str,
    attention: Attention,
    ffn: FeedForward,
    *embeddings: str,
    norms: tuple[tuple[str, ...], tuple[str, ...]],
    neurons: str = "intermediate_size",
    stream: Stream | None = None,
) -> Family:
    """A family whose attention and FFN are each one module."""
    parts = (attention.module,), (ffn.down.rpartition(".")[0],)
    config = {**CONFIG, "neurons": neurons}
    stack = Stack(layers, *parts, (attention,), ffn, config, norms=norms)
    return Family((stack,), embeddings, stream)


def _bart_stack(name: str, *attentions: str) -> Stack:
    found = tuple(
        Attention(
            _named(each, "q_proj", "k_proj", "v_proj"),
            f"{each}.out_proj",
            counts={"num_heads": "heads"},
            scores=False,
        )
        for each in attentions
    )
    config = {
        "heads": f"{name}_attention_heads",
        "neurons": f"{name}_ffn_dim",
        "layers": f"{name}_layers",
    }
    norms = tuple(f"{each}_layer_norm" for each in attentions), ("final_layer_norm",)
    ffn = FeedForward(("fc1",), "fc2")
    return Stack(f"{name}.layers", attentions, ("fc1", "fc2"), found, ffn, config, norms=norms)


def _t5(number: int, name: str) -> Attention:
    path = f"layer.{number}.{name}"
    return Attention(
        _named(path, "q", "k", "v"),
        f"{path}.o",
        bias=f"{path}.relative_attention_bias",
        counts={"n_heads": "heads", "inner_dim": "width"},
        alike=True,  # the first layer's position bias is used by all
        scores=False,
    )


def _t5_stack(name: str, *attentions: Attention) -> Stack:
    at = f"layer.{len(attentions)}.DenseReluDense"
    ffn = FeedForward((f"{at}.wi", f"{at}.wi_0", f"{at}.wi_1"), f"{at}.wo")
    parts = tuple(each.module for each in attentions), (at,)
    config = {**CONFIG, "neurons": "d_ff"}
    norms = tuple(f"layer.{number}.layer_norm" for number in range(len(attentions) + 1))
    return Stack(
        f"{name}.block",
        *parts,
        attentions,
        ffn,
        config,
        gives="position biases too",
        norms=(norms[:-1], norms[-1:]),
    )


FAMILIES: dict[str, Family] = {
    "bert": _bert("query", "key", "value", stream=_BERT),
    "roberta": _bert("query", "key", "value", stream=_BERT),
    "electra": _bert("query", "key", "value", stream=_BERT),
    "deberta-v2": _bert(
        "query_proj",
        "key_proj",
        "value_proj",
        gives="pair",
        also=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
        scores=False,
    ),
    "distilbert": _single(
        "transformer.layer",
        Attention(
            _named("attention", "q_lin", "k_lin", "v_lin"),
            "attention.out_lin",
            counts={"n_heads": "heads"},
        ),
        FeedForward(("ffn.lin1",), "ffn.lin2"),
        "embeddings",
        norms=(("sa_layer_norm",), ("output_layer_norm",)),
        neurons="hidden_dim",
        stream=Stream(_WORDS, ("embeddings.LayerNorm",)),
    ),
    # The number of layers is that of the modules, not how often each runs.
    "albert": Family(
        (
            Stack(
                "encoder.albert_layer_groups.*.albert_layers",
                ("attention",),
                ("ffn", "ffn_output"),
                (
                    Attention(
                        _named("attention", "query", "key", "value"),
                        "attention.dense",
                        counts=_HEADS,
                        scores=False,
                    ),
                ),
                FeedForward(("ffn",), "ffn_output"),
                norms=((), ("full_layer_layer_norm",)),
            ),
        ),
        ("embeddings",),
    ),
    "vit": _single(
        "layers",
        Attention(
            _named("attention", "q_proj", "k_proj", "v_proj"),
            "attention.o_proj",
            counts={"num_attention_heads": "heads"},
        ),
        FeedForward(("mlp.fc1",), "mlp.fc2"),
        "embeddings",
        norms=(("layernorm_before",), ("layernorm_after",)),
        stream=Stream(("embeddings", "embeddings.patch_embeddings.projection"), ("layernorm",)),
    ),
    "gpt2": _single(
        "h",
        Attention(
            _named("attn", "c_attn", "c_attn", "c_attn"),
            "attn.c_proj",
            layout="stacked",
            counts={"num_heads": "heads", "split_size": "width"},
        ),
        FeedForward(("mlp.c_fc",), "mlp.c_proj"),
        "wte",
        "wpe",
        norms=(("ln_1",), ("ln_2",)),
        neurons="n_inner",
        stream=Stream(("wte", "wpe"), ("ln_f",)),
    ),
    "gpt_neox": _single(
        "layers",
        Attention(
            _named("attention", "query_key_value", "query_key_value", "query_key_value"),
            "attention.dense",
            layout="interleaved",
            scores=False,
        ),
        FeedForward(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
        "embed_in",
        norms=_BEFORE_EACH,
    ),
    "opt": Family(
        (
            Stack(
                "decoder.layers",
                ("self_attn",),
                ("fc1", "fc2"),
                (
                    Attention(
                        _named("self_attn", "q_proj", "k_proj", "v_proj"),
                        "self_attn.out_proj",
                        counts={"num_heads": "heads"},
                    ),
                ),
                FeedForward(("fc1",), "fc2"),
                {**CONFIG, "neurons": "ffn_dim"},
                norms=(("self_attn_layer_norm",), ("final_layer_norm",)),
            ),
        ),
        ("decoder.embed_tokens", "decoder.embed_positions"),
        Stream(("decoder.embed_tokens", "decoder.embed_positions"), ("decoder.final_layer_norm",)),
    ),
    "llama": _llama(_LLAMA),
    "mistral": _llama(_LLAMA),
    "qwen2": _llama(_LLAMA),
    "qwen3": _llama(_LLAMA, scores=False),  # queries and keys pass through norms
    "gemma": _llama(),
    "phi3": _single(
        "layers",
        Attention(
            _named("self_attn", "qkv_proj", "qkv_proj", "qkv_proj"),
            "self_attn.o_proj",
            layout="stacked",
            counts={"config.num_attention_heads": "heads", "num_key_value_heads": "groups"},
            scores=False,
        ),
        FeedForward(("mlp.gate_up_proj",), "mlp.down_proj"),
        "embed_tokens",
        norms=_BEFORE_EACH,
    ),
    "t5": Family(
        (
            _t5_stack("encoder", _t5(0, "SelfAttention")),
            _t5_stack("decoder", _t5(0, "SelfAttention"), _t5(1, "EncDecAttention")),
        ),
        ("shared",),
    ),
    "bart": Family(
        (_bart_stack("encoder", "self_attn"), _bart_stack("decoder", "self_attn", "encoder_attn")),
        ("shared", "encoder.embed_positions", "decoder.embed_positions"),
    ),
}

STREAMS: dict[str, Stream] = {name: each.stream for name, each in FAMILIES.items() if each.stream is not None}
"""The families with a known residual stream."""

HEAD_WIDTHS = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim")
"""Attribute names for the width of one head in attention modules."""

COUNTS: dict[str, str] = {
    name: what
    for family in FAMILIES.values()
    for stack in family.stacks
    for attention in stack.attentions
    for name, what in attention.counts.items()
}
"""All count attributes used by entries; a reshaped model may change no others."""
