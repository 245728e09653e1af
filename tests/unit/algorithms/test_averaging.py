"""The weighted mean against vectors worked by hand, and the messages that carry a model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmpi.algorithms.averaging import (
    ModelDown,
    ModelUp,
    SeedDown,
    WeightedMean,
    dense_ints,
    initial_downlink,
    load_downlink,
    model_uplink,
)
from fedmpi.algorithms.base import ClientContext, GlobalModel
from fedmpi.config import NamedSection, TrainConfig
from fedmpi.data.shapes import ImageShape
from fedmpi.errors import ProtocolError
from fedmpi.flat import FlatModel, Layout, layout_of
from fedmpi.models.initial import InitialModel, initial_model
from fedmpi.models.registry import resolve
from fedmpi.wire.values import Dense


class Tiny(nn.Module):
    """Two parameters, one floating buffer, one integer."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def tiny_layout() -> Layout:
    return layout_of(Tiny())


def up(num_samples: int, state: list[float], ints: list[int] | None = None) -> ModelUp:
    return ModelUp(
        num_samples=num_samples,
        state=Dense(np.array(state, np.float32)),
        int_buffers=None if ints is None else Dense(np.array(ints, np.int64)),
    )


def model() -> GlobalModel:
    return GlobalModel(torch.full((3,), 99.0), torch.full((1,), 99))


def test_by_hand() -> None:
    mean, got = WeightedMean(tiny_layout()), model()
    mean.add(up(1, [1, 2, 10], [7]))
    mean.add(up(3, [5, -2, 2], [8]))
    mean.mean_into(got)
    assert mean.total_samples == 4
    # (1*1 + 3*5) / 4, (1*2 - 3*2) / 4, (1*10 + 3*2) / 4
    assert got.state_S.tolist() == [4.0, -1.0, 4.0]
    assert got.ints_I.tolist() == [7]  # of the first, which has the lowest client_id


def test_reset_forgets() -> None:
    mean, got = WeightedMean(tiny_layout()), model()
    mean.add(up(5, [1, 1, 1], [7]))
    mean.mean_into(got)
    mean.reset()
    assert mean.total_samples == 0
    mean.add(up(2, [3, 4, 5], [8]))
    mean.mean_into(got)
    assert got.state_S.tolist() == [3.0, 4.0, 5.0]
    assert got.ints_I.tolist() == [8]


def test_a_model_without_integers_keeps_what_is_there() -> None:
    mean, got = WeightedMean(tiny_layout()), model()
    mean.add(up(1, [1, 1, 1]))
    mean.mean_into(got)
    assert got.ints_I.tolist() == [99]


def test_sums_are_kept_in_float64() -> None:
    """In float32 the ones would vanish beside 2^24."""
    mean, got = WeightedMean(tiny_layout()), model()
    for value in (2.0**24, 1.0, 1.0, 1.0, 1.0, -(2.0**24)):
        mean.add(up(1, [value, 0, 0]))
    mean.mean_into(got)
    assert float(got.state_S[0]) == float(np.float32(4 / 6))


def test_weights_are_whole_numbers_divided_once() -> None:
    """With fractions n/N, seven sevenths of 0.1 would not be 0.1."""
    mean, got = WeightedMean(tiny_layout()), model()
    for _ in range(7):
        mean.add(up(3, [0.1, 1 / 3, 1e-30]))
    mean.mean_into(got)
    assert got.state_S.numpy().tobytes() == np.array([0.1, 1 / 3, 1e-30], np.float32).tobytes()


def test_what_was_added_is_not_kept_by_reference() -> None:
    mean, got = WeightedMean(tiny_layout()), model()
    first = up(1, [1, 1, 1], [7])
    mean.add(first)
    first.state.array[:] = 50
    assert first.int_buffers is not None
    first.int_buffers.array[:] = 50
    mean.mean_into(got)
    assert (got.state_S.tolist(), got.ints_I.tolist()) == ([1.0, 1.0, 1.0], [7])


def test_what_messages_convey() -> None:
    schema = tiny_layout().schema()
    seed = SeedDown(init_seed=3, state_hash=4)
    assert (seed.num_params(schema), seed.num_kept(schema), seed.paper_nbits(schema)) == (4, 0, 128.0)
    full = up(1, [1, 2, 3], [4])
    assert (full.num_params(schema), full.num_kept(schema)) == (4, 4)


SHAPE = ImageShape(2, 2, 1)


def initial(seed: int) -> InitialModel:
    return initial_model(resolve(NamedSection(name="logreg")), SHAPE, 3, seed)


def context(flat: FlatModel) -> ClientContext:
    return ClientContext(0, flat, TrainConfig(), initial, lambda: None)


def logreg() -> FlatModel:
    return FlatModel(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))


def test_a_seed_stands_for_its_model() -> None:
    flat = logreg()
    down = initial_downlink(initial(11))
    assert (down.init_seed, down.state_hash) == (11, initial(11).state_hash)
    load_downlink(context(flat), down)
    assert torch.equal(flat.state_S, initial(11).state_S)


def test_a_seed_that_gives_another_model_here() -> None:
    wrong = SeedDown(init_seed=11, state_hash=initial(11).state_hash ^ 1)
    with pytest.raises(ProtocolError, match=r"the model built from seed 11 has hash .*server\.initial_model=full"):
        load_downlink(context(logreg()), wrong)


def test_a_model_is_copied_in() -> None:
    flat = FlatModel(Tiny())
    down = ModelDown(state=Dense(np.array([1, 2, 3], np.float32)), int_buffers=Dense(np.array([4])))
    load_downlink(context(flat), down)
    down.state.array[:] = 0
    assert flat.state_S.tolist() == [1, 2, 3]
    assert flat.ints_I.tolist() == [4]
    assert int(flat.module.count) == 4


def test_an_uplink_is_the_models_own_memory() -> None:
    flat = FlatModel(Tiny())
    message = model_uplink(flat, 17)
    flat.state_S.fill_(6)
    assert message.num_samples == 17
    assert message.state.array.tolist() == [6, 6, 6]
    assert message.int_buffers is not None
    assert message.int_buffers.array.tolist() == [0]
    assert model_uplink(logreg(), 1).int_buffers is None


@pytest.mark.parametrize(("ints", "want"), [(torch.zeros(0, dtype=torch.int64), None), (torch.tensor([5, 6]), [5, 6])])
def test_integers_are_sent_where_there_are_any(ints: Tensor, want: list[int] | None) -> None:
    value = dense_ints(ints)
    assert (None if value is None else value.array.tolist()) == want
