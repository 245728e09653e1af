"""The estimate of a rank's memory: its parts against counts made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import small_config

from fedmpi.comm.placement import Place
from fedmpi.engine.memory import RankMemory, activation_nbytes, estimate_memory, resident_nbytes
from fedmpi.engine.setup import Setup, prepare, resolve

NUM_PARAMS = 144 * 16 + 16 + 16 * 10 + 10
FLOAT, SUM = 4, 8


def setup(folder: Path, *overrides: str) -> Setup:
    return prepare(resolve(small_config(folder, *overrides)))


def place(rank: int, role: str) -> Place:
    return Place(rank, role, "a", rank, "cpu", "x86_64", "", "0", 1, 3, 2, 100 + rank)


def parts(folder: Path, *overrides: str, up_nbytes: int = 1000) -> dict[str, RankMemory]:
    places = [place(0, "server"), place(1, "worker"), place(2, "both")]
    return {found.role: found for found in estimate_memory(setup(folder, *overrides), places, 7, up_nbytes)}


@pytest.mark.parametrize(
    ("overrides", "slots"),
    [([], 1), (["train.momentum=0"], 0), (["train.optimizer=adam"], 2)],
)
def test_a_workers_model_is_two_models_gradients_and_the_optimizers_state(
    tmp_path: Path, overrides: list[str], slots: int
) -> None:
    found = parts(tmp_path, *overrides)
    assert found["worker"].model == FLOAT * NUM_PARAMS * (2 + 1 + slots)
    assert found["server"].model == NUM_PARAMS * (2 * FLOAT + SUM)
    assert found["both"].model == found["worker"].model + found["server"].model


def test_data_are_the_workers_and_replies_the_servers(tmp_path: Path) -> None:
    found = parts(tmp_path)
    assert found["server"].data == 0
    assert found["worker"].data == (600 + 230) * (144 + 8)
    assert found["server"].messages == 5 * 1000 + FLOAT * NUM_PARAMS
    assert found["worker"].messages == 3 * 1000
    held = parts(tmp_path, "server.hold_nbytes=2000")["server"]
    assert held.messages == 2000 + FLOAT * NUM_PARAMS


def test_the_total_is_the_sum(tmp_path: Path) -> None:
    worker = parts(tmp_path)["worker"]
    assert worker.total == 7 + worker.data + worker.model + worker.activations + worker.messages


def test_activations_are_those_of_a_step_or_of_a_tests_largest_layer(tmp_path: Path) -> None:
    """A step keeps at least its batch of inputs, hidden values before or after ReLU, and the softmax."""
    step = activation_nbytes(setup(tmp_path, "evaluate.every=0", "train.batch_size=10"))
    assert 10 * FLOAT * (144 + 16 + 10) <= step <= 10 * FLOAT * (144 + 2 * 16 + 3 * 10) + 200_000
    assert (
        activation_nbytes(setup(tmp_path, "evaluate.batch_size=230", "model.hidden=[5000]")) == 2 * 230 * FLOAT * 5000
    )


def test_more_samples_a_step_keep_more(tmp_path: Path) -> None:
    few, many = (
        activation_nbytes(setup(tmp_path, "evaluate.every=0", "model.hidden=[3000]", f"train.batch_size={size}"))
        for size in (4, 32)
    )
    assert many > 4 * few


def test_the_estimate_leaves_torchs_random_numbers_alone(tmp_path: Path) -> None:
    prepared = setup(tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    activation_nbytes(prepared)
    assert torch.equal(torch.rand(1), expected)


def test_resident_memory_is_that_of_a_process_with_torch() -> None:
    assert 50e6 < resident_nbytes() < 20e9
