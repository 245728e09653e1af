"""Weights a layer keeps: the published and the released distributions, exact sums, bounds, and what is refused."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.algorithms.budgets import Distribution, empty_layers, layer_counts
from fedmpi.config import NamedSection
from fedmpi.data.shapes import ImageShape
from fedmpi.errors import ConfigError
from fedmpi.flat import Entry, layout_of
from fedmpi.models.registry import build_model, resolve

EXACT: tuple[Distribution, ...] = ("erk", "er", "uniform")
ALL: tuple[Distribution, ...] = (*EXACT, "erk_released")


def entries(*shapes: tuple[int, ...]) -> list[Entry]:
    return [Entry(f"layer{i}.weight", "param", shape, shape, 0) for i, shape in enumerate(shapes)]


def registered(name: str, shape: ImageShape) -> list[Entry]:
    module = build_model(resolve(NamedSection(name=name)), shape, 10, init_seed=1)
    return [entry for entry in layout_of(module).entries if entry.name.endswith("weight")]


MNISTNET = registered("mnistnet", ImageShape(28, 28, 1))
CIFAR10NET = registered("cifar10net", ImageShape(32, 32, 3))
CIFAR100NET = entries((6, 3, 5, 5), (16, 6, 5, 5), (120, 6400), (100, 120))
CONV2 = entries((32, 1, 5, 5), (64, 32, 5, 5), (2048, 3136), (62, 2048))
NETS = [MNISTNET, CIFAR10NET, CIFAR100NET, CONV2]


def numels(weights: list[Entry]) -> np.ndarray:
    return np.array([entry.numel for entry in weights])


def biases(weights: list[Entry]) -> list[int]:
    return [entry.shape[0] for entry in weights]


def assert_densities(counts: np.ndarray, weights: list[Entry], printed: list[str]) -> None:
    """Whole weights differ from the density that is printed by its last digit's half, and by one for the rounding."""
    for count, numel, digits in zip(counts, numels(weights), printed, strict=True):
        half = 0.5 * 10.0 ** -len(digits.partition(".")[2])
        assert abs(count - float(digits) * numel) <= half * numel + 1, (count, numel, digits)


# FedDST's released code, run with sparsities .8, .5, .9; it counts the biases.
@pytest.mark.parametrize(
    ("weights", "density", "printed"),
    [
        (MNISTNET, 0.2, [".260", ".191", ".200", ".286"]),
        (CIFAR10NET, 0.2, [".229", ".205", ".1998", ".211", ".286"]),
        (CIFAR10NET, 0.5, [".522", ".505", ".4999", ".510", ".558"]),
        (CIFAR100NET, 0.5, [".522", ".505", ".500", ".509"]),
        (CIFAR10NET, 0.1, [".131", ".105", ".0997", ".111", ".195"]),
        (CONV2, 0.2, [".251", ".201", ".1998", ".2125"]),
    ],
)
def test_densities_of_the_released_code(weights: list[Entry], density: float, printed: list[str]) -> None:
    counts = layer_counts(weights, density, "erk_released", num_biases=biases(weights))
    assert [
        f"{count / numel:.{len(p) - 1}f}".lstrip("0")
        for count, numel, p in zip(counts, numels(weights), printed, strict=True)
    ] == printed


def test_the_released_code_keeps_a_little_more_than_asked_for() -> None:
    counts = layer_counts(CIFAR10NET, 0.2, "erk_released", num_biases=biases(CIFAR10NET))
    assert counts.sum() == 156_399
    assert f"{1 - counts.sum() / 781_770:.5f}" == "0.79994"
    without_biases = layer_counts(CIFAR10NET, 0.2, "erk_released")
    assert 156_354 - len(CIFAR10NET) <= without_biases.sum() <= 156_354


@pytest.mark.parametrize(
    ("weights", "density", "printed"),
    [
        (MNISTNET, 0.2, [".833", ".079", ".2002", "1.0"]),
        (CIFAR10NET, 0.2, [".969", ".306", ".195", ".465", "1.0"]),
        (CIFAR10NET, 0.5, ["1.0", ".772", ".492", "1.0", "1.0"]),
        (CIFAR100NET, 0.5, ["1.0", ".771", ".491", "1.0"]),
        (CIFAR10NET, 0.1, [".482", ".152", ".0969", ".231", "1.0"]),
        (CONV2, 0.2, ["1.0", ".467", ".182", "1.0"]),
    ],
)
def test_densities_of_erk(weights: list[Entry], density: float, printed: list[str]) -> None:
    counts = layer_counts(weights, density, "erk")
    assert_densities(counts, weights, printed)
    dense = [digits == "1.0" for digits in printed]
    assert (counts == numels(weights)).tolist() == dense
    assert counts.dtype == np.int64


def raw_density(shape: tuple[int, ...], distribution: Distribution) -> Fraction:
    """The paper's formula at eps = 1, written out for each kind of layer."""
    num_out, num_in = shape[:2]
    if distribution == "uniform":
        return Fraction(1)
    if distribution == "er" or len(shape) == 2:
        return Fraction(num_in + num_out, num_in * num_out)
    return Fraction(num_in + num_out + sum(shape[2:]), num_in * num_out * math.prod(shape[2:]))


def solved(weights: list[Entry], total: int, distribution: Distribution) -> list[Fraction]:
    """Return the real budgets by trying every set of dense layers, from the largest raw density down."""
    raw = [raw_density(entry.shape, distribution) for entry in weights]
    order = sorted(range(len(raw)), key=lambda i: -raw[i])
    for num_dense in range(len(raw)):
        free = order[num_dense:]
        left = total - sum(weights[i].numel for i in order[:num_dense])
        eps = left / sum(raw[i] * weights[i].numel for i in free)
        if all(eps * raw[i] <= 1 for i in free):
            return [
                eps * raw[i] * weights[i].numel if i in free else Fraction(weights[i].numel) for i in range(len(raw))
            ]
    raise AssertionError("no set of dense layers fits")


SHAPES = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 7)),
    st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 5), st.integers(1, 5)),
    st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(SHAPES, min_size=1, max_size=8),
    st.floats(0, 1, exclude_min=True),
    st.sampled_from(EXACT),
)
def test_the_real_budgets_rounded_so_that_the_sum_is_exact(
    shapes: list[tuple[int, ...]], density: float, distribution: Distribution
) -> None:
    weights = entries(*shapes)
    total = round(density * numels(weights).sum())
    if total == 0:
        with pytest.raises(ConfigError, match="must keep at least one"):
            layer_counts(weights, density, distribution)
        return
    counts = layer_counts(weights, density, distribution)
    assert counts.sum() == total
    assert (counts >= 0).all() and (counts <= numels(weights)).all()
    budgets = solved(weights, total, distribution)
    assert all(abs(int(count) - budget) < 1 for count, budget in zip(counts, budgets, strict=True))
    # Largest remainders: no layer that was rounded down had more left over than one that was rounded up.
    down = [budget % 1 for count, budget in zip(counts, budgets, strict=True) if int(count) < budget]
    up = [budget % 1 for count, budget in zip(counts, budgets, strict=True) if int(count) > budget]
    assert max(down, default=Fraction(0)) <= min(up, default=Fraction(1))


@pytest.mark.parametrize("weights", NETS)
@pytest.mark.parametrize("distribution", EXACT)
def test_counts_rise_with_the_density(weights: list[Entry], distribution: Distribution) -> None:
    """Of layers up to the one weight that largest remainders may take back; the sum always."""
    before = np.zeros(len(weights), np.int64)
    for density in np.linspace(0.005, 1, 80).tolist():
        counts = layer_counts(weights, density, distribution)
        assert counts.sum() == round(density * numels(weights).sum()) > before.sum()
        assert (counts >= before - 1).all()
        before = counts
    assert before.tolist() == numels(weights).tolist()


def test_equal_remainders_go_to_the_first_layers() -> None:
    weights = entries((2, 5), (2, 5), (2, 5), (2, 5))
    assert layer_counts(weights, 0.55, "uniform").tolist() == [6, 6, 5, 5]
    assert layer_counts(weights, 0.55, "erk").tolist() == [6, 6, 5, 5]


def test_uniform_and_er_by_hand() -> None:
    weights = entries((2, 3, 5, 5), (10, 20))  # 150 and 200 weights
    assert layer_counts(weights, 0.2, "uniform").tolist() == [30, 40]
    # (2 + 3) * 25 = 125 and 10 + 20 = 30 of 155, of 70 weights: 56.45 and 13.55
    assert layer_counts(weights, 0.2, "er").tolist() == [56, 14]
    # 2 + 3 + 5 + 5 = 15 and 30 of 45, of 70 weights: 23.3 and 46.7
    assert layer_counts(weights, 0.2, "erk").tolist() == [23, 47]


def test_kernels_of_one_and_of_three_dimensions() -> None:
    weights = entries((4, 6, 5), (4, 6, 2, 3, 5), (30, 20))  # 15 : 20 : 50
    assert layer_counts(weights, 85 / 1440, "erk").tolist() == [15, 20, 50]


@pytest.mark.parametrize("distribution", ALL)
@pytest.mark.parametrize("weights", [*NETS, entries((1, 1), (2, 2))])
def test_density_one_is_dense(weights: list[Entry], distribution: Distribution) -> None:
    counts = layer_counts(weights, 1.0, distribution, num_biases=biases(weights))
    assert counts.tolist() == numels(weights).tolist()


def test_the_released_distribution_never_keeps_more_than_a_layer_has() -> None:
    weights = entries((10, 20), (5, 40))
    counts = layer_counts(weights, 0.99, "erk_released", num_biases=[10, 5])
    assert counts.tolist() == [200, 200]  # 207 and 203 with the biases


def test_layers_that_keep_nothing_are_found() -> None:
    weights = entries((100, 100), (2, 2), (1, 3))
    counts = layer_counts(weights, 0.01, "uniform")
    assert counts.tolist() == [100, 0, 0]
    assert empty_layers(weights, counts) == ["layer1.weight", "layer2.weight"]
    assert empty_layers(weights, layer_counts(weights, 0.01, "erk")) == []


@pytest.mark.parametrize("distribution", ALL)
@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, math.nan, math.inf])
def test_a_density_out_of_range(density: float, distribution: Distribution) -> None:
    with pytest.raises(ConfigError, match=rf"density must be in \(0, 1\], got {density}; 1.0 is dense"):
        layer_counts(MNISTNET, density, distribution)


@pytest.mark.parametrize("distribution", ALL)
def test_no_weights(distribution: Distribution) -> None:
    with pytest.raises(ConfigError, match="the model has no weight of a convolution or linear layer to mask"):
        layer_counts([], 0.5, distribution)


@pytest.mark.parametrize("distribution", ALL)
def test_a_density_that_keeps_no_weight(distribution: Distribution) -> None:
    with pytest.raises(ConfigError, match=r"at least one of the 600 weights .*; 0.0005 of them is 0.3, rounded to 0"):
        layer_counts(entries((20, 30)), 0.0005, distribution)


def test_released_densities_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"erk_released conv2.weight comes to a density of -0.00\d+, .* \[0, 1\]"):
        layer_counts(MNISTNET, 0.01, "erk_released")
    # A 1x1 convolution of 2 channels has a raw density of 6 / 4.
    with pytest.raises(ConfigError, match=r"layer0.weight comes to a density of 1.\d+"):
        layer_counts(entries((2, 2, 1, 1), (50, 50)), 0.5, "erk_released")
    with pytest.raises(ConfigError, match=r"must be positive, got 0.0000; take erk"):
        layer_counts(entries((2, 2)), 0.5, "erk_released")


def test_wrong_calls() -> None:
    with pytest.raises(ValueError, match="'even'"):
        layer_counts(MNISTNET, 1.0, "even")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="zip"):
        layer_counts(MNISTNET, 0.5, "erk_released", num_biases=[1, 2])
    with pytest.raises(ValueError, match="zip"):
        empty_layers(MNISTNET, [1, 2])


def test_every_distribution_is_tested() -> None:
    assert set(ALL) == set(get_args(Distribution))
