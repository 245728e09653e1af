"""PruneFL's greedy rule against an exhaustive search, and when a size has settled."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms.masking import MaskSpace
from fedmpi.algorithms.pruning_rule import is_steady, reconfigure
from fedmpi.errors import NonFiniteError
from fedmpi.flat import layout_of

SPACE = MaskSpace(layout_of(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))))
WEIGHTS = SPACE.is_weight(torch.device("cpu"))
TIMES = np.array([0.3, 1.7])
TIME_N = np.array([0.3] * 12 + [1.7] * 8)


def quotient(mask_P: Tensor, importance_N: Tensor, constant_s: float) -> float:
    kept_N = mask_P[WEIGHTS].numpy()
    return float(importance_N.double().numpy()[kept_N].sum() / (constant_s + TIME_N[kept_N].sum()))


def must_stay(params_P: Tensor, mask_P: Tensor, removable: float) -> Tensor:
    """The larger weights of each layer, written as a plain loop."""
    stay_P = ~WEIGHTS
    for start, stop in SPACE.spans:
        active = [i for i in range(start, stop) if mask_P[i]]
        by_size = sorted(active, key=lambda i: (-abs(float(params_P[i])), i))
        for i in by_size[: len(active) - math.floor(removable * len(active))]:
            stay_P[i] = True
    return stay_P


def case(seed: int, density: float = 0.6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask_P = (torch.rand(SPACE.num_params, generator=generator) < density) | ~WEIGHTS
    params_P = torch.randn(SPACE.num_params, generator=generator) * mask_P
    importance_N = torch.randn(SPACE.num_weights, generator=generator).square() ** 2
    return params_P, importance_N, mask_P


def run(params_P: Tensor, importance_N: Tensor, mask_P: Tensor, constant_s: float, removable: float = 0.3) -> Tensor:
    return reconfigure(SPACE, params_P, importance_N, mask_P, times_L=TIMES, constant_s=constant_s, removable=removable)


@pytest.mark.parametrize("constant_s", [0.01, 1.0, 5.0, 100.0])
@pytest.mark.parametrize("seed", range(6))
def test_no_other_mask_with_what_must_stay_does_better(seed: int, constant_s: float) -> None:
    params_P, importance_N, mask_P = case(seed)
    got_P = run(params_P, importance_N, mask_P, constant_s)
    stay_P = must_stay(params_P, mask_P, 0.3)
    assert bool((got_P | ~stay_P).all())
    best = quotient(got_P, importance_N, constant_s)
    assert best >= quotient(mask_P, importance_N, constant_s) - 1e-12
    others = (~stay_P).nonzero().squeeze(1)[:10]  # a search of all sets of ten of them, with the rest as it was chosen
    for bits in itertools.product([False, True], repeat=len(others)):
        tried_P = got_P.clone()
        tried_P[others] = torch.tensor(bits)
        assert quotient(tried_P, importance_N, constant_s) <= best + 1e-12


@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_greedy_rule(seed: int) -> None:
    params_P, importance_N, mask_P = case(seed, 0.4)
    gains = importance_N.double().numpy()
    kept_N = must_stay(params_P, mask_P, 0.5)[WEIGHTS].numpy()
    gain, cost = gains[kept_N].sum(), 2.0 + TIME_N[kept_N].sum()
    for j in sorted(np.flatnonzero(~kept_N), key=lambda j: -gains[j] / TIME_N[j]):
        if not gains[j] / TIME_N[j] > gain / cost:
            break
        kept_N[j] = True
        gain, cost = gain + gains[j], cost + TIME_N[j]
    got_P = run(params_P, importance_N, mask_P, 2.0, 0.5)
    assert np.array_equal(got_P[WEIGHTS].numpy(), kept_N)
    assert SPACE.refuses(got_P) is None


def test_without_gradients_only_what_must_stay_remains() -> None:
    params_P, importance_N, mask_P = case(3)
    got_P = run(params_P, torch.zeros_like(importance_N), mask_P, 5.0, 0.9)
    assert torch.equal(got_P, must_stay(params_P, mask_P, 0.9))
    assert (SPACE.kept(got_P) >= 1).all()  # of a layer that had a weight, one stays


def test_the_scale_of_importances_does_not_matter_but_the_constant_does() -> None:
    params_P, importance_N, mask_P = case(1)
    for constant_s in (0.5, 3.0):
        assert torch.equal(
            run(params_P, importance_N, mask_P, constant_s), run(params_P, importance_N * 1024, mask_P, constant_s)
        )
    sizes = [int(run(params_P, importance_N, mask_P, c).sum()) for c in (0.01, 1.0, 10.0, 1e9)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert bool(run(params_P, importance_N + 1e-3, mask_P, 1e9).all())  # no weight costs anything beside it


def test_nothing_that_may_go_only_grows() -> None:
    params_P, importance_N, mask_P = case(2)
    assert bool((run(params_P, importance_N, mask_P, 1.0, 0.0) | ~mask_P).all())


def test_of_equals_the_first_are_added_one_by_one() -> None:
    mask_P = ~WEIGHTS
    mask_P[0] = True
    importance_N = torch.zeros(SPACE.num_weights)
    importance_N[:4] = 1.0
    got_P = run(mask_P.float(), importance_N, mask_P, 1.0, 0.0)
    assert got_P[WEIGHTS].nonzero().squeeze(1).tolist() == [0, 1, 2, 3]


def test_a_weight_worth_no_more_than_the_rest_is_not_added() -> None:
    """One stays, worth 1 in 1 + 1 s: a second of the same layer is added if it is worth more than half as much."""
    mask_P = ~WEIGHTS
    mask_P[0] = True
    for gain, is_added in ((0.5, False), (0.501, True)):
        importance_N = torch.zeros(SPACE.num_weights)
        importance_N[0], importance_N[1] = 1.0, gain
        new_P = reconfigure(
            SPACE, mask_P.float(), importance_N, mask_P, times_L=np.ones(2), constant_s=1.0, removable=0.0
        )
        assert bool(new_P[1]) is is_added


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_squares_that_are_not_finite_are_refused(bad: float) -> None:
    params_P, importance_N, mask_P = case(0)
    importance_N[2] = bad
    with pytest.raises(NonFiniteError, match="squares"):
        run(params_P, importance_N, mask_P, 1.0)


def test_an_active_weight_that_is_nan_is_refused() -> None:
    params_P, importance_N, mask_P = case(0)
    params_P[mask_P & WEIGHTS] = float("nan")
    with pytest.raises(NonFiniteError):
        run(params_P, importance_N, mask_P, 1.0)


def test_a_size_has_settled_after_five_changes_of_less_than_a_tenth() -> None:
    assert not is_steady([100]) and not is_steady([100] * 5) and is_steady([100] * 6)
    assert is_steady([900, 100, 95, 96, 91, 99, 100])
    assert not is_steady([100, 100, 100, 80, 80, 80, 80])
    assert not is_steady([100, 100, 80, 80, 80, 80])  # the dense model's size counts


@pytest.mark.parametrize("size", [30, 100, 70, 447_000])
def test_a_tenth_is_too_much(size: int) -> None:
    for tenth in (size // 10, -(size // 10)):
        assert not is_steady([size] + [size + tenth] * 5)
        assert is_steady([size] + [size + tenth - (1 if tenth > 0 else -1)] * 5)
