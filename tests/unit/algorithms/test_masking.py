"""Choosing and moving the weights of a mask, against the same done with Python's sort."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedmpi.algorithms.masking import Growth, MaskSpace, readjust, reprune, reprune_released
from fedmpi.errors import ConfigError, NonFiniteError
from fedmpi.flat import layout_of

SIZES = (12, 6, 3)
SPACE = MaskSpace(layout_of(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2), nn.Linear(1, 3))))
P = SPACE.num_params  # 12 + 3, 3 + 3, 6 + 2, 3 + 3
WEIGHTS = SPACE.is_weight(torch.device("cpu"))


def vector(numbers: list[int]) -> Tensor:
    """Return parameters whose weights are these numbers, one after the other."""
    out_P = torch.full((P,), 9.0)
    out_P[WEIGHTS] = torch.tensor(numbers, dtype=torch.float32)
    return out_P


def by_layer(vector_P: Tensor) -> list[list[Any]]:
    return [vector_P[start:stop].tolist() for start, stop in SPACE.spans]


def largest(values: list[float], count: int, among: list[int]) -> set[int]:
    """Return the positions of the largest magnitudes, of equal ones the first."""
    return set(sorted(among, key=lambda i: (-abs(values[i]), i))[:count])


small = st.lists(st.integers(-3, 3), min_size=sum(SIZES), max_size=sum(SIZES))
bits = st.lists(st.booleans(), min_size=sum(SIZES), max_size=sum(SIZES))
budgets = st.tuples(*(st.integers(0, size) for size in SIZES))


def masked(kept: list[bool]) -> Tensor:
    mask_P = ~WEIGHTS
    mask_P[WEIGHTS] = torch.tensor(kept)
    return mask_P


def test_what_a_mask_may_leave_out() -> None:
    assert [entry.name for entry in SPACE.weights] == ["0.weight", "2.weight", "3.weight"]
    assert SPACE.sizes.tolist() == list(SIZES)
    assert (SPACE.num_params, SPACE.num_weights, SPACE.num_biases) == (35, 21, 14)
    assert SPACE.refuses(SPACE.full()) is None
    assert SPACE.refuses(~WEIGHTS) is None
    assert SPACE.refuses(SPACE.full()[1:]) == "a mask of this model has 35 positions, got 34"
    without_biases = SPACE.full()
    without_biases[12:14] = False
    assert SPACE.refuses(without_biases) == "a mask leaves out 2 numbers that are never masked"
    assert SPACE.kept(masked([True] * 12 + [False] * 9)).tolist() == [12, 0, 0]


@pytest.mark.parametrize("net", [nn.Embedding(4, 3), nn.LayerNorm(3), nn.GRU(2, 3)])
def test_a_model_without_weights_to_mask_is_refused(net: nn.Module) -> None:
    with pytest.raises(ConfigError, match="no weight of a convolution or fully connected layer"):
        MaskSpace(layout_of(net))


@given(small, budgets)
@settings(max_examples=50)
def test_the_first_mask_keeps_the_largest_of_each_layer_and_all_biases(numbers: list[int], counts: Any) -> None:
    params_P = vector(numbers)
    mask_P = SPACE.first_mask(params_P, np.array(counts))
    assert bool(mask_P[~WEIGHTS].all())
    for values, kept, count in zip(by_layer(params_P), by_layer(mask_P), counts, strict=True):
        assert {i for i, bit in enumerate(kept) if bit} == largest(values, count, list(range(len(values))))


def test_the_largest_of_the_whole_model() -> None:
    params_P = vector([0] * 12 + [5, -4, 3, 0, 0, 0] + [4, 0, 0])
    mask_P = SPACE.largest_of_model(params_P, 3)
    assert bool(mask_P[~WEIGHTS].all())
    assert SPACE.kept(mask_P).tolist() == [0, 2, 1]
    assert SPACE.kept(SPACE.largest_of_model(params_P, 6)).tolist() == [2, 3, 1]  # ties: those of the lowest index


@given(small, small, bits, budgets, st.sampled_from([0.01, 0.1, 0.3, 0.5, 0.9, 1.0]), st.sampled_from([0, 1]))
@settings(max_examples=200)
def test_readjustment_moves_the_smallest_to_where_the_gradient_is_largest(
    numbers: list[int], slopes: list[int], kept: list[bool], counts: Any, alpha: float, stay: int
) -> None:
    """Invariants 1 to 3, a layer at a time, with many ties, whatever the layer kept before."""
    growth: Growth = "pruned_stay" if stay else "inactive"
    mask_P, grads_P = masked(kept), vector(slopes)
    params_P = vector(numbers) * mask_P
    mine = params_P.clone(), grads_P.clone(), mask_P.clone()
    result = readjust(SPACE, params_P, grads_P, mask_P, np.array(counts), alpha, growth)
    assert all(torch.equal(a, b) for a, b in zip(mine, (params_P, grads_P, mask_P), strict=True))
    assert bool(result.mask_P[~WEIGHTS].all()) and not bool(result.grown_P[~WEIGHTS].any())
    assert bool(result.mask_P[result.grown_P].all())
    parts = (params_P, grads_P, mask_P, result.mask_P, result.grown_P)
    for w, g, old, new, grown, count in zip(*map(by_layer, parts), counts, strict=True):
        size, positions = len(w), set(range(len(w)))
        before = {i for i in positions if old[i]}
        after, fresh = {i for i in positions if new[i]}, {i for i in positions if grown[i]}
        if count == size:
            assert (after, fresh) == (positions, positions - before)  # dense: what it lacked starts anew
            continue
        assert len(after) == count  # 1
        keep = min(round(count * (1 - alpha)), len(before))
        if stay:
            keep = max(keep, min(len(before), count - (size - len(before))))
        stayed = after - fresh
        assert stayed == largest(w, keep, sorted(before))  # 2
        dropped = before - stayed
        assert all(abs(w[i]) >= abs(w[j]) for i in stayed for j in dropped)
        candidates = positions - (before if stay else stayed)
        assert fresh == largest(g, count - keep, sorted(candidates))  # 3
        assert not (stay and fresh & dropped)
        assert not fresh & stayed


@given(small, small, bits, budgets, st.sampled_from([0.1, 0.5, 1.0]))
@settings(max_examples=100)
def test_growth_anywhere_is_that_of_the_released_code(
    numbers: list[int], slopes: list[int], kept: list[bool], counts: Any, alpha: float
) -> None:
    mask_P, grads_P = masked(kept), vector(slopes)
    params_P = vector(numbers) * mask_P
    result = readjust(SPACE, params_P, grads_P, mask_P, np.array(counts), alpha, "all")
    parts = (params_P, grads_P, result.mask_P, result.grown_P)
    for w, g, new, grown, count in zip(*map(by_layer, parts), counts, strict=True):
        if count == len(w):
            continue
        everywhere = list(range(len(w)))
        stayed = largest(w, round(count * (1 - alpha)), everywhere)
        fresh = largest(g, count - len(stayed), everywhere)
        assert {i for i in everywhere if grown[i]} == fresh
        assert {i for i in everywhere if new[i]} == stayed | fresh


def test_growth_anywhere_opens_no_position_for_an_active_weight() -> None:
    """B3: the gradient is largest where the trained weights are."""
    mask_P = masked([True] * 4 + [False] * 17)
    params_P, grads_P = vector([4, 3, 2, 1] + [0] * 17) * mask_P, vector([9, 8, 1, 1] + [0] * 17)
    counts = np.array([4, 0, 0])
    right = readjust(SPACE, params_P, grads_P, mask_P, counts, 0.5)
    released = readjust(SPACE, params_P, grads_P, mask_P, counts, 0.5, "all")
    assert by_layer(right.grown_P)[0][:4] == [False, False, True, True]
    assert SPACE.kept(right.mask_P).tolist() == [4, 0, 0]
    assert by_layer(released.grown_P)[0][:4] == [True, True, False, False]
    assert SPACE.kept(released.mask_P).tolist() == [2, 0, 0]


@pytest.mark.parametrize("growth", ["inactive", "pruned_stay", "all"])
def test_numbers_that_are_none_cannot_be_chosen_among(growth: Growth) -> None:
    mask_P, zeros_P = masked([True] * 6 + [False] * 15), torch.zeros(P)
    nan_P = torch.full((P,), float("nan"))
    for params_P, grads_P in ((nan_P, zeros_P), (zeros_P, nan_P)):
        with pytest.raises(NonFiniteError):
            readjust(SPACE, params_P, grads_P, mask_P, np.array([6, 0, 0]), 0.5, growth)


@given(small, st.lists(st.integers(0, 3), min_size=sum(SIZES), max_size=sum(SIZES)), budgets)
@settings(max_examples=100)
def test_the_server_keeps_the_largest_of_what_anybody_kept(numbers: list[int], votes: list[int], counts: Any) -> None:
    """Invariant 1, and 11: of equal magnitudes those with more votes, then those of lower index."""
    votes_P = torch.ones(P, dtype=torch.float64)
    votes_P[WEIGHTS] = torch.tensor(votes, dtype=torch.float64)
    params_P = vector(numbers) * (votes_P > 0)
    mask_P = reprune(SPACE, params_P, votes_P, np.array(counts))
    assert bool(mask_P[~WEIGHTS].all())
    for w, v, new, count in zip(*map(by_layer, (params_P, votes_P, mask_P)), counts, strict=True):
        union = [i for i in range(len(w)) if v[i]]
        chosen = set(sorted(union, key=lambda i: (-abs(w[i]), -v[i], i))[:count])
        assert {i for i in range(len(w)) if new[i]} == chosen
        assert len(chosen) == min(count, len(union))


@given(small, st.lists(st.integers(0, 3), min_size=sum(SIZES), max_size=sum(SIZES)), budgets)
@settings(max_examples=100)
def test_the_released_server_loses_places_to_zeros(numbers: list[int], votes: list[int], counts: Any) -> None:
    """B2: it prunes while the model is too dense, and then keeps the largest of all, with or without votes."""
    votes_P = torch.ones(P, dtype=torch.float64)
    votes_P[WEIGHTS] = torch.tensor(votes, dtype=torch.float64)
    params_P = vector(numbers) * (votes_P > 0)
    mask_P = reprune_released(SPACE, params_P, votes_P, np.array(counts))
    assert bool(mask_P[~WEIGHTS].all())
    too_dense = sum(v > 0 for v in votes) > sum(counts)
    for w, v, new, count in zip(*map(by_layer, (params_P, votes_P, mask_P)), counts, strict=True):
        union = {i for i in range(len(w)) if v[i]}
        chosen = union & largest(w, count, list(range(len(w)))) if too_dense else union
        assert {i for i in range(len(w)) if new[i]} == chosen


def test_of_grown_zeros_those_of_several_clients_get_in() -> None:
    """Invariant 11: three weights differ from zero, four are kept; position 5 has two votes, 4 and 6 have one."""
    votes_P = masked([True] * 3 + [False, True, True, True] + [False] * 14).double()
    votes_P[5] = 2
    params_P = vector([3, 2, 1] + [0] * 18)
    mask_P = reprune(SPACE, params_P, votes_P, np.array([4, 0, 0]))
    assert np.flatnonzero(by_layer(mask_P)[0]).tolist() == [0, 1, 2, 5]
    # The released rule gives the place to position 3, which nobody kept: one weight less.
    released_P = reprune_released(SPACE, params_P, votes_P, np.array([4, 0, 0]))
    assert np.flatnonzero(by_layer(released_P)[0]).tolist() == [0, 1, 2]
