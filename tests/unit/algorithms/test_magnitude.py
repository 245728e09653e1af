"""Magnitude pruning at the start: which weights, that they stay, and which layers are warned of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from masked import World, initial

from fedmpi.algorithms.magnitude import ALGORITHM, check
from fedmpi.algorithms.masking import MaskSpace
from fedmpi.algorithms.sparse_messages import DensityConfig
from fedmpi.config import NamedSection, RunConfig
from fedmpi.configfile import validate
from fedmpi.data.shapes import ImageShape
from fedmpi.errors import ConfigError
from fedmpi.flat import FlatModel
from fedmpi.models.initial import InitialModel
from fedmpi.models.registry import build_model, resolve


def config(**settings: float) -> DensityConfig:
    made = validate(ALGORITHM.config, {"name": "magnitude", **settings}, "algorithm")
    assert isinstance(made, DensityConfig)
    return made


def test_the_largest_of_all_layers_are_kept_and_never_move() -> None:
    world = World("magnitude", density=0.3)
    is_weight = world.space.is_weight(torch.device("cpu")).numpy()
    params = initial().state_S[: world.space.num_params].numpy()
    order = np.flatnonzero(is_weight)[np.argsort(-np.abs(params[is_weight]), kind="stable")]
    want = ~is_weight
    want[order[: round(0.3 * world.space.num_weights)]] = True
    for round_idx in range(3):
        turns = world.play(round_idx, [0, 2, 4])
        assert np.array_equal(world.mask_P.numpy(), want)
        assert all(np.array_equal(turn.up.weights.mask.array, want) for turn in turns)
        assert world.scalars["mask_version"] == 0
        assert world.scalars["weight_density"] == round(0.3 * world.space.num_weights) / world.space.num_weights
        assert not bool(world.params_P[~world.mask_P].any())


def test_a_density_of_1_is_dense_and_a_tiny_one_keeps_one_weight() -> None:
    assert bool(World("magnitude", density=1.0).mask_P.all())
    assert int(World("magnitude", density=1e-6).space.kept(World("magnitude", density=1e-6).mask_P).sum()) == 1


@pytest.mark.parametrize("density", [0.2, 0.01, 0.002])
def test_layers_are_warned_of_that_the_mask_leaves_empty(density: float) -> None:
    flat = FlatModel(build_model(resolve(NamedSection(name="cifar10net")), ImageShape(32, 32, 3), 10, 1))
    space = MaskSpace(flat.layout)
    kept = space.kept(space.largest_of_model(flat.params_P, round(density * space.num_weights)))
    empty = [entry.name for entry, count in zip(space.weights, kept, strict=True) if not count]
    first = InitialModel(1, flat.layout, flat.state_S, flat.ints_I, 0)
    warnings = check(config(density=density), first, RunConfig(rounds=60))
    assert len(warnings) == len(empty)
    assert all(name in warning for name, warning in zip(empty, warnings, strict=True))
    assert bool(empty) == (density < 0.2)


def test_the_ledger_is_told_how_many_layers_are_empty() -> None:
    world = World("magnitude", density=0.03)
    world.play(0, [0])
    assert world.scalars["num_empty_layers"] == np.count_nonzero(world.space.kept(world.mask_P) == 0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"density": 0.0}, "density"), ({"density": 1.5}, "density"), ({"mu": -1.0}, "mu"), ({"alpha": 0.1}, "alpha")],
)
def test_bad_settings_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config(**settings)


def test_there_is_no_setting_for_layers() -> None:
    with pytest.raises(ConfigError, match="layer_distribution"):
        validate(ALGORITHM.config, {"name": "magnitude", "layer_distribution": "erk"}, "algorithm")
