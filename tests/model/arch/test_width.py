"""The residual stream of every family: held at zero, taken out, and what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig

from cook.errors import CookError
from cook.model.arch import units, width
from cook.model.arch.anatomy import Anatomy
from cook.model.arch.families import STREAMS
from cook.model.edits import plain, removal
from cook.model.edits.blueprint import Blueprint
from cook.model.hub.quantizer import attach_quantizer, blueprint_of
from cook.model.hub.verify import Case, verify_all
from cook.model.nn.hooks import Hooks
from tests.helpers import families

HEADED = [
    *("BertForMaskedLM", "BertForPreTraining", "BertForTokenClassification", "BertForQuestionAnswering"),
    *("RobertaForMaskedLM", "RobertaForTokenClassification", "RobertaForMultipleChoice"),
    *("DistilBertForMaskedLM", "DistilBertForTokenClassification", "ElectraForMaskedLM"),
    *("ElectraForPreTraining", "GPT2LMHeadModel", "GPT2ForTokenClassification", "OPTForCausalLM"),
    *("LlamaForCausalLM", "LlamaForQuestionAnswering", "BertModel", "ViTModel"),
]
SAID = {"llama", "mistral", "qwen2", "qwen3", "vit"}
"""The families whose config tells the width of a head apart from the model's."""


def headed(name: str, **config: Any) -> nn.Module:
    kind = getattr(transformers, name)
    family = kind.config_class.model_type
    settings = AutoConfig.for_model(
        family, **{**families.SETTINGS[family], "initializer_range": 0.3, **config}
    )
    torch.manual_seed(0)
    return kind(settings).eval()


def stirred(model: nn.Module) -> nn.Module:
    """With biases and norms that are not those of a model that never trained."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def drawn(count: int, left: int = 12) -> Tensor:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(3))
    return torch.isin(torch.arange(count), order[:left])


@torch.no_grad()
def outputs(model: nn.Module, family: str) -> list[Tensor]:
    batch = families.batch(family)
    batch.pop("labels")
    if type(model).__name__.endswith("MultipleChoice"):
        batch = {name: value[None] for name, value in batch.items()}
    return [value for value in model(**batch).values() if torch.is_tensor(value)]


def narrowed(model: nn.Module, left: int = 12) -> tuple[nn.Module, nn.Module, Hooks, list[Any]]:
    """A copy with some dimensions held at zero, one without them, the hooks, and the edits."""
    stream = width.stream(Anatomy(model))
    keep = drawn(stream.count, left)
    held, cut, hooks = copy.deepcopy(model), copy.deepcopy(model), Hooks()
    width.narrowing(held, stream, hooks, lambda: keep)
    with torch.no_grad():
        for name, mask in units.masks(held, stream, keep):
            held.get_parameter(name).mul_(mask)
    edits, _ = removal.remove(cut, stream, keep)
    return held, cut, hooks, edits


@pytest.mark.parametrize("family", sorted(STREAMS))
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_taking_dimensions_out_is_holding_them_at_zero(family, attention):
    model = stirred(families.made(family, attention))
    held, cut, hooks, _ = narrowed(model)
    assert cut.config._attn_implementation == attention
    for one, other, whole in zip(
        outputs(cut, family), outputs(held, family), outputs(model, family), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(one, whole, atol=1e-3)
    hooks.close()


@pytest.mark.parametrize("name", HEADED)
def test_every_head_reads_the_narrower_stream(name):
    model = stirred(headed(name))
    family = model.config.model_type
    tied = _tied(model)
    held, cut, hooks, _ = narrowed(model)
    for one, other in zip(outputs(cut, family), outputs(held, family), strict=True):
        if one.shape != other.shape:  # a bare model gives the stream itself
            other = other[..., drawn(other.shape[-1])]
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert _tied(cut) == tied
    hooks.close()


def _tied(model: nn.Module) -> list[list[str]]:
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return [names for names in found.values() if len(names) > 1]


def test_without_a_gate_that_is_shut_norms_are_what_they_were():
    torch.manual_seed(0)
    states, ones = torch.randn(3, 5, 16), torch.ones(16)
    for norm in (nn.LayerNorm(16), nn.LayerNorm(16, bias=False), headed("LlamaForCausalLM").model.norm):
        stirred(norm)
        torch.testing.assert_close(width.weighted_norm(states, ones, norm), norm(states))


@pytest.mark.parametrize("centred", [True, False])
def test_weighted_statistics_against_loops(centred):
    torch.manual_seed(0)
    norm = nn.LayerNorm(6).double() if centred else headed("LlamaForCausalLM", hidden_size=8).model.norm
    states, z = torch.randn(2, len(norm.weight)).double(), torch.rand(len(norm.weight)).double()
    stirred(norm.double()).requires_grad_(False)
    for row, found in zip(states, width.weighted_norm(states, z, norm), strict=True):
        total = sum(z.tolist())
        mean = sum(a * b for a, b in zip(z.tolist(), row.tolist(), strict=True)) / total if centred else 0.0
        spread = sum(a * (b - mean) ** 2 for a, b in zip(z.tolist(), row.tolist(), strict=True)) / total
        epsilon = norm.eps if centred else norm.variance_epsilon
        for index, value in enumerate(row.tolist()):
            bias = float(norm.bias[index]) if centred else 0.0
            wanted = (value - mean) / (spread + epsilon) ** 0.5 * float(norm.weight[index]) + bias
            assert float(found[index]) == pytest.approx(float(z[index]) * wanted)


@pytest.mark.usefixtures("clean_processes")
def test_narrower_models_reload_in_a_fresh_process(tmp_path):
    made = {family: (families.made(family), 12) for family in sorted(STREAMS)}
    # A config may not say a width that is no multiple of the number of heads.
    made |= {"odd": (families.made("llama"), 11), "tied": (headed("BertForMaskedLM"), 12)}
    cases, plains = [], set()
    for name, (model, left) in made.items():
        _, cut, hooks, edits = narrowed(stirred(model), left)
        hooks.close()
        family = cut.config.model_type
        blueprint = blueprint_of(cut)
        for edit in edits:
            blueprint.append(edit)
        blueprint = plain.settle(cut, blueprint)
        if not blueprint.edits:
            plains.add(name)
        attach_quantizer(cut, blueprint)
        cut.save_pretrained(tmp_path / name)
        batch = {key: value for key, value in families.batch(family).items() if key != "labels"}
        with torch.inference_mode():
            expected = cut(**batch).logits
        kind = {"vit": "ImageClassification", "tied": "MaskedLM"}.get(name, "SequenceClassification")
        cases.append(Case(tmp_path / name, batch, expected, f"AutoModelFor{kind}"))
    assert all(found["exact"] for found in verify_all(cases))
    assert plains == SAID


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("gemma", "all that touches the residual stream of a 'gemma' model"),
        ("deberta-v2", "all that touches"),
        ("t5", "all that touches"),
    ],
)
def test_families_that_are_not_known(family, words):
    with pytest.raises(CookError, match=words) as told:
        width.stream(Anatomy(families.made(family, families.ATTENTION.get(family, "sdpa"), device="meta")))
    assert "bert" in told.value.hint


def test_what_is_not_accounted_for_is_named():
    model = families.made("bert", device="meta")
    model.bert.adapter = nn.Linear(16, 4, device="meta")
    with pytest.raises(CookError, match=r"bert\.adapter\.weight may belong to the residual stream"):
        width.stream(Anatomy(model))
    model = headed("BertForMaskedLM", is_decoder=True, add_cross_attention=True)
    with pytest.raises(CookError, match=r"crossattention.* and \d+ more may belong"):
        width.stream(Anatomy(model))
    model = headed("OPTForCausalLM", word_embed_proj_dim=8)
    with pytest.raises(CookError, match="project_"):
        width.stream(Anatomy(model))
    model = headed("ElectraForMultipleChoice")
    with pytest.raises(CookError, match=r"sequence_summary\.summary"):
        width.stream(Anatomy(model))
    model = families.made("bert")
    model.bert.embeddings.LayerNorm = nn.RMSNorm(16)
    with pytest.raises(CookError, match="whose statistics cook does not know"):
        width.stream(Anatomy(model))


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForTokenClassification", "BertForMultipleChoice"])
def test_a_head_for_another_width_is_refused(name, tmp_path):
    _, cut, _, edits = narrowed(headed("BertForSequenceClassification"))
    attach_quantizer(cut, Blueprint(edits=edits))
    cut.save_pretrained(tmp_path)
    with pytest.raises(CookError, match=f"is 12 wide, and .* of a {name} 16") as caught:
        getattr(transformers, name).from_pretrained(tmp_path)
    assert "BertForSequenceClassification" in str(caught.value.hint)
    assert transformers.AutoModel.from_pretrained(tmp_path).embeddings.word_embeddings.embedding_dim == 12


@pytest.mark.parametrize("name", ["BertForMaskedLM", "LlamaForCausalLM"])
def test_more_tokens_are_saved_with_a_narrower_model(name, tmp_path):
    _, cut, _, edits = narrowed(headed(name), left=11)
    attach_quantizer(cut, Blueprint(edits=edits))
    cut.resize_token_embeddings(27)
    cut.save_pretrained(tmp_path)
    back = getattr(transformers, name).from_pretrained(tmp_path).eval()
    tokens = torch.tensor([[24, 7, 26]])
    with torch.no_grad():
        assert torch.equal(back(tokens).logits, cut(tokens).logits)
    assert back.get_input_embeddings().weight.shape == (27, 11)
