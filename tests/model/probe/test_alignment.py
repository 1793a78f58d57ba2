"""Which token a row of logits is about: by the loss of the model, never by the name of its class."""

from types import SimpleNamespace

import pytest
import torch
import transformers as T
from torch.nn import functional

from cook.errors import CookError
from cook.model.probe.alignment import beside, by_gradient, by_value, predicts_next

H = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
H |= {"vocab_size": 23, "max_position_embeddings": 40, "pad_token_id": 0}
B = {"d_model": 16, "vocab_size": 23, "pad_token_id": 0, "max_position_embeddings": 40}
B |= {f"{part}_layers": 1 for part in ("encoder", "decoder")}
B |= {f"{part}_attention_heads": 4 for part in ("encoder", "decoder")}
B |= {f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")}
V = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
V |= {"image_size": 8, "patch_size": 4}
TEXT = {**H, "head_dim": 4, "num_key_value_heads": 2}

MODELS = {
    "LlamaForCausalLM": lambda: T.LlamaConfig(**H),
    "BertLMHeadModel": lambda: T.BertConfig(**H, is_decoder=True),
    "BertForMaskedLM": lambda: T.BertConfig(**H),
    "RobertaForCausalLM": lambda: T.RobertaConfig(**H, is_decoder=True),
    "XLMRobertaForCausalLM": lambda: T.XLMRobertaConfig(**H, is_decoder=True),
    "XLMRobertaForMaskedLM": lambda: T.XLMRobertaConfig(**H),
    "BartForCausalLM": lambda: T.BartConfig(**B),
    "MBartForCausalLM": lambda: T.MBartConfig(**B),
    "PegasusForCausalLM": lambda: T.PegasusConfig(**B),
    "BartForConditionalGeneration": lambda: T.BartConfig(**B),
    "XGLMForCausalLM": lambda: T.XGLMConfig(
        vocab_size=23, d_model=16, num_layers=1, attention_heads=4, ffn_dim=32, pad_token_id=0
    ),
    "XLMWithLMHeadModel": lambda: T.XLMConfig(vocab_size=23, emb_dim=16, n_layers=1, n_heads=4),
    "MixtralForCausalLM": lambda: T.MixtralConfig(
        **H, num_key_value_heads=2, num_local_experts=2, output_router_logits=True
    ),
    "Gemma3ForConditionalGeneration": lambda: T.Gemma3Config(
        text_config=TEXT, vision_config=V, mm_tokens_per_image=4, image_token_index=20
    ),
    "LlavaForConditionalGeneration": lambda: T.LlavaConfig(
        text_config=T.LlamaConfig(**H), vision_config=T.CLIPVisionConfig(**V), image_token_index=20
    ),
}


def read_by_the_loss(model, batch) -> list[int]:
    """The positions of the first example whose logits the loss depends on, by changing each in turn."""
    head, changed = model.get_output_embeddings(), []
    with torch.no_grad():
        plain = float(model(**batch).loss)
        for position in range(batch["input_ids"].shape[1]):

            def change(_, __, output, position=position):
                output = output.clone()
                output[0, position, 7] += 3
                return output

            hook = head.register_forward_hook(change)
            if float(model(**batch).loss) != plain:
                changed.append(position)
            hook.remove()
    return changed


@pytest.mark.parametrize("name", MODELS)
def test_alignment_of_language_models(name):
    torch.manual_seed(0)
    model = getattr(T, name)(MODELS[name]()).eval()
    tokens = torch.randint(3, 19, (2, 8), generator=torch.Generator().manual_seed(3))
    labels = tokens.clone()
    labels[:, :4] = -100
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}
    read = read_by_the_loss(model, batch)
    assert read in ([3, 4, 5, 6], [4, 5, 6, 7])
    assert predicts_next(model, model(**batch), labels) is (read == [3, 4, 5, 6])


def test_rows_of_a_prefix_have_no_labels():
    torch.manual_seed(0)
    model = T.GitForCausalLM(T.GitConfig(**H, vision_config=V, num_image_with_embedding=None)).eval()
    tokens = torch.randint(3, 19, (2, 6), generator=torch.Generator().manual_seed(3))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
    outputs = model(**batch, pixel_values=torch.zeros(2, 3, 8, 8))
    before = outputs.logits.shape[1] - 6
    assert before > 0
    assert predicts_next(model, outputs, tokens)
    about = beside(tokens, outputs.logits)
    assert about[:, before:].equal(tokens)
    assert bool((about[:, :before] == -100).all())


@pytest.mark.parametrize("shift", [True, False])
def test_a_loss_that_leaves_out_rows_by_a_mask(shift):
    logits = torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]])
    rows, about = (logits[:, :-1], labels[:, 1:]) if shift else (logits, labels)
    loss = functional.cross_entropy(rows[:, 2:].flatten(0, 1), about[:, 2:].flatten())
    assert by_value(loss, logits, labels) is None
    assert by_gradient(loss, logits, labels) is shift


@pytest.mark.parametrize("shift", [True, False])
def test_a_loss_that_is_no_plain_mean_is_judged_by_its_gradient(shift):
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([[-100, 1, 2, -100, 3], [4, 5, -100, 6, 0]])
    rows, about = (logits[:, :-1], labels[:, 1:]) if shift else (logits, labels)
    loss = functional.cross_entropy(rows.flatten(0, 1), about.flatten(), label_smoothing=0.3) + 1
    assert by_value(loss, logits, labels) is None
    assert by_gradient(loss, logits, labels) is shift


def test_a_loss_that_fits_neither_is_refused():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    outputs = SimpleNamespace(loss=logits[:, 1].square().sum(), logits=logits)
    with pytest.raises(CookError, match="neither the label of each token nor the next"):
        predicts_next(torch.nn.Linear(1, 1), outputs, torch.ones(2, 5, dtype=torch.long))


def test_nothing_labelled_decides_nothing():
    model, logits = torch.nn.Linear(1, 1), torch.randn(1, 3, 7, requires_grad=True)
    nothing = torch.full((1, 3), -100)
    assert not predicts_next(model, SimpleNamespace(loss=logits.sum() * 0, logits=logits), nothing)
    labels = torch.tensor([[1, 2, 3]])
    loss = functional.cross_entropy(logits[0, :-1], labels[0, 1:])
    assert predicts_next(model, SimpleNamespace(loss=loss, logits=logits), labels)
