"""What happens to a section's settings when an override changes its name."""

from __future__ import annotations

from fedmpi.configfile import apply_overrides

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


def test_another_data_set_drops_the_folder_and_what_only_the_first_has() -> None:
    data = {"name": "synthetic", "root": "/x", "augment": "crop_flip", "synthetic": {"noise": 3}, "text": {}}
    data |= {"classes": [1, 2], "convert": {"height": 8}}
    kept = {"name": "cifar10", "augment": "crop_flip", "convert": {"height": 8}}
    assert apply_overrides({"data": data}, ["data.name=cifar10"])["data"] == kept
    assert apply_overrides({"data": data}, ["data.name=synthetic"])["data"] == data


def test_a_folder_on_the_command_line_is_the_new_data_sets() -> None:
    tree = apply_overrides({"data": {"name": "mnist", "root": "/x"}}, ["data.root=/y", "data.name=cifar10"])
    assert tree["data"] == {"name": "cifar10", "root": "/y"}


def test_a_section_without_a_name_has_the_usual_one() -> None:
    tree = {"data": {"root": "/x"}, "partition": {"num_clients": 5}}
    same = apply_overrides(tree, ["data.name=fashion_mnist_mini", "partition.name=iid"])
    assert same["data"] == {"name": "fashion_mnist_mini", "root": "/x"}
    assert same["partition"] == {"name": "iid", "num_clients": 5}
    assert apply_overrides(tree, ["data.name=mnist"])["data"] == {"name": "mnist"}


def test_a_name_that_the_file_leaves_open_keeps_its_settings() -> None:
    tree = apply_overrides({"algorithm": {"mu": 1}}, ["algorithm.name=fedprox"])
    assert tree["algorithm"] == {"name": "fedprox", "mu": 1}


def test_a_partition_keeps_no_more_than_its_number_of_clients() -> None:
    tree = {"partition": {"name": "shards", "num_clients": 5, "shards_per_client": 3, "samples_per_shard": 2}}
    assert apply_overrides(tree, ["partition.name=iid"])["partition"] == {"name": "iid", "num_clients": 5}


def test_a_model_drops_the_others_settings() -> None:
    tree = {"model": {"name": "mlp", "hidden": [3]}}
    assert apply_overrides(tree, ["model.name=cnn"])["model"] == {"name": "cnn"}
    assert tree == {"model": {"name": "mlp", "hidden": [3]}}
