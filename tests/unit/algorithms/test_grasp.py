"""GraSP: the scores against finite differences, which weights they keep, and the round that makes them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from masked import PARTS, initial, mask_of
from staged import StagedWorld
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional as F

from fedmpi.algorithms.grasp import ALGORITHM, GraSPConfig, GraSPScores, check, grasp_scores, highest_mask
from fedmpi.algorithms.masking import MaskSpace
from fedmpi.algorithms.sparse_messages import SparseModelUp
from fedmpi.config import RunConfig
from fedmpi.configfile import validate
from fedmpi.data.shapes import ImageShape
from fedmpi.errors import ConfigError, ProtocolError
from fedmpi.flat import FlatModel
from fedmpi.models.initial import InitialModel
from fedmpi.models.vision import ConvNet
from fedmpi.wire.values import Dense


class Data:
    """Samples in their order, as a shard that says it has `num_samples`."""

    def __init__(self, x: Tensor, y: Tensor, num_samples: int | None = None) -> None:
        self.x, self.y, self.num_samples = x, y, num_samples or len(y)

    def batches(self, batch_size: int, num_epochs: int, rng: object) -> Iterator[tuple[Tensor, Tensor]]:
        assert num_epochs == 1
        yield from zip(self.x.split(batch_size), self.y.split(batch_size), strict=True)


def small() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 3))


def data(num: int = 10, channels: int = 2, side: int = 3) -> Data:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(num, channels, side, side, generator=generator)
    return Data(x, torch.randint(0, 3, (num,), generator=generator))


def scores(module: nn.Module, shard: Any, batch_size: int = 4, temperature: float = 2.0) -> Tensor:
    return grasp_scores(
        FlatModel(module), shard, batch_size, temperature, lambda: np.random.default_rng(0), lambda: None
    )


def test_scores_are_those_of_finite_differences() -> None:
    flat, shard, temperature = FlatModel(small()), data(), 2.0
    entries = flat.layout.maskable_entries

    def gradient(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors = {name: p.detach().double() for name, p in flat.module.named_parameters()} | {
            name: w.clone().requires_grad_() for name, w in weights.items()
        }
        loss = F.cross_entropy(functional_call(flat.module, tensors, (shard.x.double(),)) / temperature, shard.y)
        return dict(zip(weights, torch.autograd.grad(loss, [tensors[name] for name in weights]), strict=True))

    start = {entry.name: entry.view(flat.params_P).detach().double() for entry in entries}
    z = gradient(start)
    step = 1e-4
    ahead = gradient({name: w + step * z[name] for name, w in start.items()})
    behind = gradient({name: w - step * z[name] for name, w in start.items()})
    want_P = torch.zeros(flat.layout.num_params)
    for entry in entries:
        name = entry.name
        entry.view(want_P).copy_(start[name] * (ahead[name] - behind[name]) / (2 * step))
    want_N = want_P[MaskSpace(flat.layout).is_weight(flat.device)]
    got_N = scores(small(), shard, temperature=temperature)
    assert got_N.dtype == torch.float32 and got_N.shape == want_N.shape
    torch.testing.assert_close(got_N, want_N, rtol=1e-5, atol=1e-9)
    assert bool((want_N > 0).any()) and bool((want_N < 0).any())


def test_batches_do_not_matter_and_the_model_is_left_as_it_was() -> None:
    torch.testing.assert_close(scores(small(), data(), 10), scores(small(), data(), 3), rtol=1e-5, atol=1e-10)
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 3))
    flat = FlatModel(module)
    before, ints = flat.state_S.clone(), flat.ints_I.clone()
    grasp_scores(flat, data(), 5, 200.0, lambda: np.random.default_rng(0), lambda: None)  # type: ignore[arg-type]
    assert torch.equal(flat.state_S, before) and torch.equal(flat.ints_I, ints)
    assert not bool(flat.grads_P.any()) and all(p.dtype == torch.float32 for p in module.parameters())


def test_a_scaled_loss_keeps_the_same_weights() -> None:
    shard = data()
    space = MaskSpace(FlatModel(small()).layout)
    one = scores(small(), shard)
    quarter = scores(small(), Data(shard.x, shard.y, 2 * len(shard.y)))  # the loss and each gradient are half
    torch.testing.assert_close(quarter, one / 4, rtol=1e-5, atol=0)
    masks = [highest_mask(space, values.double().numpy(), 20) for values in (one, quarter, 1e3 * one)]
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])


def test_pooling_with_kernels_of_its_own_can_be_scored() -> None:
    torch.manual_seed(1)
    net = ConvNet((1, 2, 3), 3, 1, ImageShape(14, 14, 1), (5,), 3)
    plain = copy.deepcopy(net)
    plain.pool = nn.Sequential(nn.MaxPool2d(3, 1), nn.ReLU())  # type: ignore[assignment]
    shard = data(8, 1, 14)
    got = scores(net, shard)
    assert torch.equal(got, scores(plain, shard)) and bool(got.any())


def test_a_layer_that_is_not_called_scores_zero() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(18, 3), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x.flatten(1))  # type: ignore[no-any-return]

    got = scores(Idle(), data())
    assert bool(got[:54].any()) and not bool(got[54:].any())


def test_a_model_without_second_derivatives_is_refused() -> None:
    class Once(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * 2

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(x)  # type: ignore[no-any-return,no-untyped-call]

    with pytest.raises(ConfigError, match="second derivatives"):
        scores(nn.Sequential(nn.Flatten(), nn.Linear(18, 3), Layer()), data())


def test_the_signed_score_counts_and_ties_go_to_the_lower_index() -> None:
    flat = FlatModel(nn.Linear(3, 2))
    space = MaskSpace(flat.layout)
    values = np.array([-5.0, 1.0, 0.0, 2.0, 0.0, 0.0])
    for count, want in [(1, [3]), (2, [1, 3]), (3, [1, 2, 3]), (5, [1, 2, 3, 4, 5]), (6, [0, 1, 2, 3, 4, 5])]:
        mask_P = highest_mask(space, values, count)
        assert mask_P[:6].nonzero().squeeze(1).tolist() == want
        assert bool(mask_P[6:].all())
    assert highest_mask(space, np.zeros(6), 2)[:6].tolist() == [True, True] + [False] * 4


@pytest.mark.parametrize("send_seed", [True, False])
@pytest.mark.parametrize("density", [0.05, 0.37, 1.0])
def test_the_first_round_scores_and_the_mask_is_static_from_then_on(density: float, send_seed: bool) -> None:
    world = StagedWorld("grasp", density=density, send_seed=send_seed)
    count = round(density * world.space.num_weights)
    (turn,) = world.play(0, [4, 1, 3])
    assert turn.client_id == 1 and isinstance(turn.up, GraSPScores)
    assert turn.up.weight == len(PARTS[1])
    assert turn.up.paper_nbits(world.server_schema) == 32 * world.space.num_weights
    assert not world.client.ctx.stats
    mask_P = world.mask_P
    assert int(world.space.kept(mask_P).sum()) == count and world.scalars["mask_version"] == 1
    assert torch.equal(world.params_P, initial().state_S[: world.space.num_params] * mask_P)
    checksum = world.server.mask.checksum
    for round_idx in range(1, 4):
        turns = world.play(round_idx, [0, 1, 2])
        assert len(turns) == 3
        assert all(isinstance(turn.up, SparseModelUp) and torch.equal(mask_of(turn), mask_P) for turn in turns)
        assert world.server.mask.checksum == checksum and world.scalars["mask_version"] == 1
        assert not bool(world.params_P[~mask_P].any())


def test_scores_are_averaged_by_samples() -> None:
    world = StagedWorld("grasp", density=0.3, score_clients=2)
    turns = world.play(0, [4, 0, 1])
    assert [turn.client_id for turn in turns] == [0, 1]
    vectors = [turn.up.scores.array.astype(np.float64) for turn in turns]  # type: ignore[attr-defined]
    mean = (10 * vectors[0] + 30 * vectors[1]) / 40
    want = highest_mask(world.space, mean, round(0.3 * world.space.num_weights))
    assert torch.equal(world.mask_P, want)
    assert not torch.equal(want, highest_mask(world.space, vectors[0], round(0.3 * world.space.num_weights)))


def test_if_those_who_score_are_lost_the_next_round_scores() -> None:
    world = StagedWorld("grasp", density=0.3)
    assert world.play(0, [1, 2], lost=[1]) == [] and world.server.mask.version == 0
    (turn,) = world.play(1, [2, 3])
    assert turn.client_id == 2 and isinstance(turn.up, GraSPScores)
    assert [type(turn.up) for turn in world.play(2, [0, 1])] == [SparseModelUp, SparseModelUp]


def test_another_rank_goes_on_from_the_servers_state() -> None:
    world = StagedWorld("grasp", density=0.3)
    world.play(0, [1])
    kept = copy.deepcopy(world.server.state_dict())
    world.play(1, [0, 2])
    want = world.params_P.clone()
    other = StagedWorld("grasp", density=0.3)
    other.server.load_state_dict(kept)
    other.play(1, [0, 2])
    assert torch.equal(other.params_P, want)


def test_a_dry_run_sends_scores_of_the_same_size() -> None:
    world = StagedWorld("grasp", density=0.3)
    world.client.ctx.dry_run = True
    (turn,) = world.play(0, [1])
    assert isinstance(turn.up, GraSPScores) and not turn.up.scores.array.any()
    assert turn.up.scores.numel == world.space.num_weights
    assert int(world.space.kept(world.mask_P).sum()) == round(0.3 * world.space.num_weights)


def test_scores_without_samples_are_refused() -> None:
    world = StagedWorld("grasp", density=0.3)
    up = GraSPScores(weight=0, scores=Dense.of(torch.zeros(world.space.num_weights)))
    with pytest.raises(ProtocolError, match="at least 1, got 0"):
        world.server.aggregate(0, 1, up)


@pytest.mark.parametrize(
    "settings", [{"density": 0.0}, {"score_clients": 0}, {"temperature": 0.0}, {"layer_distribution": "erk"}]
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        validate(ALGORITHM.config, {"name": "grasp", **settings}, "algorithm")


def test_what_cannot_be_done_as_asked_is_warned_of() -> None:
    run = RunConfig(rounds=1, participation={"clients_per_round": 3})  # type: ignore[arg-type]
    assert check(GraSPConfig(name="grasp"), initial_of(small()), RunConfig(rounds=60)) == []
    warnings = check(GraSPConfig(name="grasp", score_clients=5), initial_of(small()), run)
    assert len(warnings) == 2 and "score_clients=5" in warnings[0] and "rounds=1" in warnings[1]
    with pytest.raises(ConfigError, match="to mask"):
        check(GraSPConfig(name="grasp"), initial_of(nn.Embedding(3, 3)), run)


def initial_of(module: nn.Module) -> InitialModel:
    flat = FlatModel(module)
    return InitialModel(0, flat.layout, flat.state_S, flat.ints_I, 0)


def test_layers_that_the_scores_leave_empty_are_warned_of_once() -> None:
    world = StagedWorld("grasp", density=0.01)
    world.play(0, [0])
    kept = world.space.kept(world.mask_P)
    empty = [entry.name for entry, count in zip(world.space.weights, kept, strict=True) if not count]
    assert empty and world.scalars["num_empty_layers"] == len(empty)
    said = "version 1 of the mask keeps no weight of {}: only its bias remains"
    assert world.warnings == [said.format(name) for name in empty]
    world.play(1, [1, 2])
    assert len(world.warnings) == len(empty)
