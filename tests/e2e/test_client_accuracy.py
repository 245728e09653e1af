"""Clients' own accuracies from one pass over the test set: what a test of each client's share of it gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import digests, run_ranks, write_config

from fedmpi.configfile import load_config
from fedmpi.engine.setup import prepare
from fedmpi.ledger.reader import Ledger
from fedmpi.models.registry import build_model

pytestmark = pytest.mark.usefixtures("launches")
Here = Callable[..., tuple[int, str, str]]

# 30 clients of one or two of 10 classes; 25 test images, so that some classes have few.
SECTIONS: dict[str, Any] = {
    "data": {"name": "synthetic", "synthetic": {"num_train": 600, "num_test": 25, "height": 12, "width": 12}},
    "partition": {"name": "shards", "num_clients": 30, "shards_per_client": 2},
    "evaluate": {"every": 2, "batch_size": 7},
}


def by_hand(config: Path, ledger: Ledger) -> list[float]:
    """Test the stored model image by image on each client's own test set: all test images of its training labels."""
    setup = prepare(load_config(config))
    data, partition = setup.dataset, setup.partition
    module = build_model(setup.model_config, data.shape, data.num_classes, 0).eval()
    assert ledger.model is not None
    state, parameters = torch.from_numpy(ledger.model[0]), dict(module.named_parameters())
    with torch.no_grad():
        for name, shape, offset in ledger.model_layout:
            parameters[name].copy_(state[offset : offset + int(np.prod(shape))].view(shape))
    pixels = (torch.from_numpy(np.array(data.test_inputs)).float() / 255 - torch.tensor(data.mean)) / torch.tensor(
        data.std
    )
    accuracies = []
    for client_id in range(partition.num_clients):
        labels = set(data.train_labels[partition.client(client_id)].tolist())
        right = [
            int(module(pixels[i].permute(2, 0, 1)[None]).argmax()) == int(label)
            for i, label in enumerate(data.test_labels)
            if int(label) in labels
        ]
        accuracies.append(sum(right) / len(right) if right else np.nan)
    return accuracies


def test_it_is_what_testing_every_client_gives(tmp_path: Path, here: Here) -> None:
    config = write_config(tmp_path, rounds=4, **SECTIONS)
    assert here("run", config, "-o", tmp_path / "one")[0] == 0
    with Ledger(tmp_path / "one" / "ledger.h5") as ledger:
        want = by_hand(config, ledger)
        got, rounds, tests = ledger.client_accuracies(3), ledger.rounds, ledger.class_tests
        summary = ledger.summary()
    np.testing.assert_array_equal(got, want)
    assert len(set(want)) > 3
    mean = np.nanmean(want)
    np.testing.assert_allclose(rounds["client_accuracy"][[0, 2, 3]], [np.nan, np.nan, mean], rtol=1e-12)
    assert rounds["client_accuracy_std"][3] == pytest.approx(np.nanstd(want), rel=1e-12)
    assert summary["client_accuracy"] == rounds["client_accuracy"][3]
    assert tests["round_idx"].tolist() == [1] * 10 + [3] * 10
    assert tests["num_tested"][:10].sum() == 25
    assert tests["num_correct"][10:].sum() / 25 == rounds["test_accuracy"][3]
    status, said, _ = here("check", tmp_path / "one")
    assert (status, "sound" in said) == (0, True)

    outcome = run_ranks(3, ["-m", "fedmpi", "run", str(config), "-o", str(tmp_path / "three")])
    assert outcome.status == 0, outcome.output
    assert digests(tmp_path / "three") == digests(tmp_path / "one")
    with Ledger(tmp_path / "three" / "ledger.h5") as ledger:
        for name in ("test_loss", "test_accuracy", "client_accuracy", "client_accuracy_std"):
            assert ledger.rounds[name].tobytes() == rounds[name].tobytes()
        for name, values in ledger.class_tests.items():
            assert values.tolist() == tests[name].tolist()


def test_a_text_has_none(tmp_path: Path, here: Here) -> None:
    config = write_config(
        tmp_path,
        rounds=1,
        data={"name": "play_mini"},
        partition={"name": "natural"},
        model={"name": "char_gru", "embedding": 4, "hidden": 8},
        participation={"clients_per_round": 2},
    )
    assert here("run", config, "-o", tmp_path / "out")[0] == 0
    with Ledger(tmp_path / "out" / "ledger.h5") as ledger:
        assert 0 < ledger.rounds["test_accuracy"][0] < 1
        assert np.isnan(ledger.rounds["client_accuracy"]).all()
        assert np.isnan(ledger.rounds["client_accuracy_std"]).all()
        assert len(ledger.class_tests["round_idx"]) == 0
        assert ledger.summary()["client_accuracy"] is None
    assert here("check", tmp_path / "out")[0] == 0
