"""Movement pruning: gradients and scores against loops, masks that grow back, penalties that prune."""

import copy

import pytest
import torch

from cook.errors import CookError
from cook.model.nn.linear import matrix
from cook.model.nn.transformed import TransformedLinear
from cook.prune.weights.movement import MovementMask, ScoredWeight, soft_movement_mask, soft_movement_penalty
from tests.helpers import bound, tiny
from tests.prune.weights.test_weights import count, zeros


def test_gradients_against_loops():
    """L = sum_oi c_oi * W'_oi, so that dL/dW' = c: the weight gets c * M, the score c * W."""
    generator = torch.Generator().manual_seed(0)
    weight, scores, factor = (torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    keep = torch.rand(3, 4, generator=generator) > 0.5
    weight.requires_grad_()
    scores.requires_grad_()
    masked = ScoredWeight.apply(weight, scores, keep)
    (masked * factor).sum().backward()
    for row in range(3):
        for column in range(4):
            w, c, m = weight[row, column].item(), factor[row, column].item(), float(keep[row, column])
            assert masked[row, column].item() == w * m
            assert float(weight.grad[row, column]) == c * m
            assert float(scores.grad[row, column]) == pytest.approx(c * w)


def test_the_penalty_is_a_mean_over_all_scores_and_pushes_them_down():
    small, large = (torch.randn(2, size, dtype=torch.float64, requires_grad=True) for size in (1, 3))
    value = soft_movement_penalty([small, large])
    every = [score for scores in (small, large) for score in scores.detach().flatten().tolist()]
    sigmoids = [1 / (1 + 2.718281828459045**-score) for score in every]
    assert float(value.detach()) == pytest.approx(sum(sigmoids) / 8)
    value.backward()
    found = [float(each) for scores in (small, large) for each in scores.grad.flatten()]
    assert found == pytest.approx([sigmoid * (1 - sigmoid) / 8 for sigmoid in sigmoids])
    assert soft_movement_mask(torch.tensor([-3.0, -2.0, 0.0]), 0.1).tolist() == [False, True, True]


def test_scores_learn_faster_than_the_rate_under_any_optimizer():
    for optimizer, moved in ((torch.optim.SGD, 2.0), (torch.optim.Adam, 1.0)):
        mask = MovementMask(1, 1)
        mask.speed = 50.0
        using = optimizer([mask.parameter], lr=0.1)
        (2 * mask.scores).sum().backward()
        using.step()
        assert float(mask.scores.detach()) == pytest.approx(-50 * 0.1 * moved, rel=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_scores_and_masks_of_a_run_against_a_run_by_hand(family, accumulate):
    """Gradient descent, every step: S -= lr * W * dL/dW', and the lowest scores of all layers masked."""
    rate, final, start, end, steps = 0.1, 0.5, 1, 5, 7
    model = tiny.model(family).eval()
    hand = copy.deepcopy(model)
    options = {"method": "movement", "sparsity": final, "schedule": "linear", "start": start, "end": end}
    session = bound.session(model, {"prune.weights": options}, steps=steps)
    pruned = session.passes[0]
    optimizer = torch.optim.SGD(session.module.parameters(), lr=rate)
    session.bind(optimizer)

    weights = {name: matrix(hand.get_submodule(name)).detach().clone() for name in pruned.targets}
    scores = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    keep = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    others = [p for n, p in hand.named_parameters() if n not in pruned.parameters]

    def choose(share):
        every = sorted(
            (float(value), place, index)
            for place, name in enumerate(weights)
            for index, value in enumerate(scores[name].flatten())
        )
        names = list(weights)
        for name in names:
            keep[name].fill_(True)
        for _, place, index in every[: round(share * len(every))]:
            keep[names[place]][divmod(index, keep[names[place]].shape[1])] = False

    came_back = 0
    for step in range(steps):
        batches = [tiny.batch(family, seed=accumulate * step + part) for part in range(accumulate)]
        session.before_step(step)
        for batch in batches:
            (sum(session.module(batch).values()) / accumulate).backward()
        optimizer.step()
        session.after_step()
        optimizer.zero_grad()

        if start <= step < end:
            before = {name: mask.clone() for name, mask in keep.items()}
            choose(final * (step - start) / (end - start))
            came_back += sum(int((keep[name] & ~before[name]).sum()) for name in keep)
        for name in weights:
            layer = hand.get_submodule(name)
            masked = weights[name] * keep[name]
            layer.weight.data = (masked.t() if family == "gpt2" else masked).contiguous()
        hand.zero_grad()
        for batch in batches:
            (hand(**batch).loss / accumulate).backward()
        for name in weights:
            gradient = hand.get_submodule(name).weight.grad
            gradient = gradient.t() if family == "gpt2" else gradient
            if start <= step < end:
                scores[name] -= rate * gradient * weights[name]
            weights[name] -= rate * gradient * keep[name]
        for parameter in others:
            if parameter.grad is not None:
                parameter.data -= rate * parameter.grad
        if step == end - 1:
            choose(final)
    assert came_back
    for name, mask in zip(pruned.targets, pruned.scored, strict=True):
        assert torch.allclose(mask.scores.detach(), scores[name], atol=1e-6), name
        assert torch.equal(mask.keep, keep[name]), name
    session.finish()
    for name in pruned.targets:
        expected = weights[name] * keep[name]
        assert torch.allclose(matrix(model.get_submodule(name)), expected, atol=1e-5), name
    assert sum(zeros(session)) == round(final * count(session))


@pytest.mark.parametrize("block", [None, [4, 2]])
def test_movement_ends_at_the_sparsity_and_leaves_plain_layers(block):
    model = tiny.model()
    options = {"method": "movement", "sparsity": 0.5, "end": "60%", "block": block, "scope": "layer"}
    session = bound.session(model, {"prune.weights": options}, steps=10)
    bound.train(session)
    during = bound.logits(model)
    assert any(isinstance(module, TransformedLinear) for module in model.modules())
    session.finish()
    assert torch.equal(bound.logits(model), during)
    assert not any(isinstance(module, TransformedLinear) for module in model.modules())
    assert sum(zeros(session)) == count(session) // 2
    assert session.facts["prune.weights"]["sparsity"] == 0.5


def test_a_mask_that_stands_still_after_its_window():
    session = bound.session(
        tiny.model(), {"prune.weights": {"method": "movement", "sparsity": 0.5, "end": 4}}, steps=8
    )
    optimizer = torch.optim.AdamW(session.module.parameters(), lr=0.05)
    session.bind(optimizer)
    kept = []
    for step in range(8):
        session.before_step(step)
        sum(session.module(tiny.batch(seed=step)).values()).backward()
        optimizer.step()
        session.after_step()
        optimizer.zero_grad()
        kept.append([mask.keep.clone() for mask in session.passes[0].scored])
    for later in kept[4:]:
        assert all(torch.equal(*pair) for pair in zip(kept[3], later, strict=True))


def test_a_larger_penalty_prunes_more_and_its_term_grows_with_the_schedule():
    found = []
    for penalty in (0, 1000):
        options = {
            "method": "soft-movement",
            "penalty": penalty,
            "threshold": 0.4,
            "speed": 20,
            "end": "100%",
        }
        session = bound.session(tiny.model(), {"prune.weights": options}, steps=10)
        terms = bound.train(session)
        session.finish()
        found.append(session.facts["prune.weights"]["sparsity"])
        assert sum(zeros(session)) / count(session) == found[-1]
        assert all("penalty" in each for each in terms)
        if penalty:
            assert float(terms[0]["penalty"]) == 0
            assert float(terms[1]["penalty"]) == pytest.approx(1000 * (1 - 0.9**3) * 0.5, rel=0.05)
    assert found[0] < found[1]


def test_an_empty_window_and_tied_weights_are_refused():
    options = {"method": "movement", "sparsity": 0.5, "start": 3, "end": 3}
    with pytest.raises(CookError, match="in which nothing moves") as caught:
        bound.session(tiny.model(), {"prune.weights": options})
    assert (caught.value.where or "").endswith("passes[0].end")
    model = tiny.model()
    first, second = (layer.attention.self for layer in model.bert.encoder.layer)
    second.query.weight = first.query.weight
    with pytest.raises(CookError, match="which a soft mask would not reach"):
        bound.session(model, {"prune.weights": {"method": "movement", "sparsity": 0.5}})
    with pytest.raises(CookError, match="matches no linear layer"):
        bound.session(
            tiny.model(),
            {"prune.weights": {"method": "movement", "sparsity": 0.5, "include": ["embeddings"]}},
        )
    with pytest.raises(CookError, match="needs training"):
        bound.session(tiny.model(), {"prune.weights": {"method": "movement", "sparsity": 0.5}}, steps=0)
