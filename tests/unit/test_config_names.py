"""What happens to a section's settings when an override changes its name."""

from __future__ import annotations

from fedmpi.config import apply_overrides

TREE = {"partition": {"name": "dirichlet", "num_clients": 7, "beta": 0.5}, "algorithm": {"name": "fedprox", "mu": 1}}


def test_another_name_drops_the_settings_of_the_first() -> None:
    tree = apply_overrides(TREE, ["partition.shards_per_client=3", "partition.name=shards", "algorithm.name=fedavg"])
    assert tree == {
        "partition": {"name": "shards", "num_clients": 7, "shards_per_client": 3},
        "algorithm": {"name": "fedavg"},
    }


def test_the_same_name_keeps_them() -> None:
    tree = apply_overrides(TREE, ["partition.name=dirichlet", "algorithm.name=fedprox", "algorithm.mu=2"])
    assert tree["partition"] == TREE["partition"]
    assert tree["algorithm"] == {"name": "fedprox", "mu": 2}


def test_the_data_sections_settings_are_for_every_data_set() -> None:
    tree = apply_overrides({"data": {"name": "mnist", "root": "/x"}}, ["data.name=cifar10"])
    assert tree["data"] == {"name": "cifar10", "root": "/x"}
