"""Which units go: exact counts, least important first, and what layers can spare."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cook.prune.structure.choice import least, spare

layers = st.lists(st.integers(2, 12), min_size=1, max_size=4)


def scores(sizes, seed, values=5):
    """Few different values, so that ties are common."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(values, (size,), generator=generator).float() for size in sizes]


@given(sizes=layers, seed=st.integers(0, 1000), share=st.floats(0.0, 1.0))
def test_exactly_so_many_go_or_all_that_can_be_spared(sizes, seed, share):
    found = scores(sizes, seed)
    keep = least(found, share)
    gone = sum(int((~each).sum()) for each in keep)
    assert gone == min(round(share * sum(sizes)), sum(size - 1 for size in sizes))
    assert all(each.any() for each in keep)


@given(sizes=layers, seed=st.integers(0, 1000), share=st.floats(0.0, 1.0))
def test_no_unit_goes_before_a_less_important_one_of_its_layer(sizes, seed, share):
    found = scores(sizes, seed)
    for each, keep in zip(found, least(found, share), strict=True):
        if not keep.all():
            assert each[~keep].max() <= each[keep].min()


@given(sizes=layers, seed=st.integers(0, 1000), share=st.floats(0.0, 0.6))
def test_over_all_layers_the_lowest_go_where_none_is_at_its_limit(sizes, seed, share):
    found = scores(sizes, seed, values=1000)
    keep = least(found, share)
    free = [i for i, each in enumerate(keep) if int(each.sum()) > 1]
    gone = [float(found[i][j]) for i, each in enumerate(keep) for j in (~each).nonzero()[:, 0].tolist()]
    left = [float(found[i][j]) for i in free for j in keep[i].nonzero()[:, 0].tolist()]
    assert not gone or not left or max(gone) <= min(left)


@given(
    sizes=layers,
    seed=st.integers(0, 1000),
    share=st.floats(0.0, 1.0),
    minimum=st.integers(1, 3),
    limit=st.floats(0.1, 1.0),
    multiple=st.sampled_from([1, 2, 3, 8]),
    scope=st.sampled_from(["global", "layer"]),
)
def test_limits_hold(sizes, seed, share, minimum, limit, multiple, scope):
    limits = {"minimum": minimum, "limit": limit, "multiple": multiple}
    for size, keep in zip(sizes, least(scores(sizes, seed), share, scope=scope, **limits), strict=True):
        stay = int(keep.sum())
        assert stay >= min(size, minimum)
        assert stay == size or stay % multiple == 0
        assert size - stay <= spare(size, **limits)
        assert size - stay <= limit * size + 1e-6


@given(sizes=layers, seed=st.integers(0, 1000), first=st.floats(0.0, 1.0), second=st.floats(0.0, 1.0))
def test_what_is_gone_stays_gone_when_more_goes(sizes, seed, first, second):
    first, second = sorted((first, second))
    found = scores(sizes, seed)
    for multiple in (1, 2):
        before = least(found, first, multiple=multiple)
        fresh = zip(scores(sizes, seed + 1), before, strict=True)
        again = [each.where(keep, torch.tensor(-torch.inf)) for each, keep in fresh]
        after = least(again, second, multiple=multiple)
        assert all(bool((one | ~other).all()) for one, other in zip(before, after, strict=True))


def test_of_equal_ones_the_first_go():
    (keep,) = least([torch.zeros(6)], 0.5)
    assert keep.tolist() == [False] * 3 + [True] * 3


def test_blocks_leave_a_multiple():
    important = torch.arange(20.0)
    (keep,) = least([important], 0.3, multiple=8)
    assert keep.nonzero()[:, 0].tolist() == list(range(4, 20))  # 6 asked for: the 4 that are over are nearest
    (keep,) = least([important], 0.5, multiple=8)
    assert int(keep.sum()) == 8
    (keep,) = least([important], 0.05, multiple=8)
    assert keep.all()


def test_each_layer_loses_as_many():
    low, high = torch.arange(4.0), 100 + torch.arange(8.0)
    keep = least([low, high], 0.5, scope="layer")
    assert [int(each.sum()) for each in keep] == [2, 4]
    keep = least([low, high], 0.5)
    assert [int(each.sum()) for each in keep] == [1, 5]
    with pytest.raises(ValueError, match="no scope 'row'"):
        least([low], 0.5, scope="row")
