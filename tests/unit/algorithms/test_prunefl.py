"""PruneFL: the first client's stage, rounds with importances, and settings."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from masked import DATA, PARTS, TRAIN, initial, layout, mask_of, module
from staged import StagedWorld
from torch import Tensor, nn

from fedmpi.algorithms.masking import MaskSpace
from fedmpi.algorithms.prunefl import ALGORITHM, ImportanceUp, PruneFLConfig, check
from fedmpi.algorithms.pruning_rule import reconfigure
from fedmpi.algorithms.sparse_messages import MASK, SparseModelUp
from fedmpi.config import RunConfig, TrainConfig
from fedmpi.configfile import validate
from fedmpi.data.shard import Shard
from fedmpi.errors import ConfigError
from fedmpi.flat import FlatModel
from fedmpi.models.operations import Uses
from fedmpi.rng import stream
from fedmpi.train.local import train_local

FAST = {"initial_iterations": 12, "initial_interval": 3, "constant_s": 20.0, "layer_times": [1.0, 0.5, 0.7]}
SPACE = MaskSpace(layout())
WEIGHTS = SPACE.is_weight(torch.device("cpu"))


def test_the_first_client_prunes_alone() -> None:
    world = StagedWorld("prunefl", **FAST)
    (turn,) = world.play(0, [4, 1, 3])
    assert turn.client_id == 1 and type(turn.up) is SparseModelUp and turn.up.mask is not None
    (stats,) = world.client.ctx.stats
    assert stats.num_steps == 12
    assert world.server.mask.version == 1 and torch.equal(world.mask_P, mask_of(turn))
    assert torch.equal(world.params_P[world.mask_P], turn.up.weights.tensor_values())
    assert 0 < world.scalars["weight_density"] < 1
    assert not bool(world.params_P[~world.mask_P].any())


@pytest.mark.parametrize(("optimizer", "clip_norm"), [("sgd", None), ("adam", None), ("sgd", 0.5)])
def test_the_first_clients_stage_is_a_plain_loop(optimizer: Any, clip_norm: float | None) -> None:
    """The same steps with torch's own optimizer, reconfiguring every third."""
    train = TRAIN.model_copy(update={"optimizer": optimizer, "lr": 0.01, "adam_eps": 1e-3, "clip_norm": clip_norm})
    world = StagedWorld("prunefl", train=train, **FAST)
    (turn,) = world.play(0, [1])
    net = module()
    kind = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    opt = kind if optimizer == "sgd" else torch.optim.Adam(net.parameters(), 0.01, eps=1e-3)
    params = [(entry, net.get_parameter(entry.name)) for entry in layout().entries if entry.role == "param"]

    def flat(pick: Any) -> Tensor:
        out_P = torch.zeros(layout().num_params)
        for entry, param in params:
            entry.view(out_P).copy_(pick(param))
        return out_P

    rng = stream(7, 0, 1, "batches")
    rng.integers(2**63)
    mask_P, squares_P = torch.ones(layout().num_params, dtype=torch.bool), torch.zeros(layout().num_params)
    for step, (x, y) in enumerate(itertools.islice(Shard(DATA, PARTS[1]).batches(8, 3, rng), 12), 1):
        opt.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
        squares_P += flat(lambda p: p.grad).square()
        if clip_norm is not None:
            for entry, param in params:
                assert param.grad is not None
                param.grad.mul_(entry.view(mask_P))
            nn.utils.clip_grad_norm_(net.parameters(), clip_norm)
        opt.step()
        for turn_idx in (0, 1) if step % 3 == 0 else (0,):
            if turn_idx:
                new_P = reconfigure(
                    world.space, flat(lambda p: p.detach()), squares_P[WEIGHTS], mask_P,
                    times_L=np.array(FAST["layer_times"]), constant_s=20.0, removable=0.3,
                )  # fmt: skip
                for entry, param in params:
                    for name in ("momentum_buffer", "exp_avg", "exp_avg_sq"):
                        if name in opt.state[param]:
                            opt.state[param][name][entry.view(new_P & ~mask_P)] = 0.0
                mask_P, squares_P = new_P, torch.zeros_like(squares_P)
            with torch.no_grad():
                for entry, param in params:
                    param.mul_(entry.view(mask_P))
    assert torch.equal(mask_of(turn), mask_P)
    torch.testing.assert_close(
        turn.up.weights.tensor_values(), flat(lambda p: p.detach())[mask_P], rtol=1e-4, atol=1e-6
    )


def test_if_the_first_client_is_lost_another_is_the_first() -> None:
    world = StagedWorld("prunefl", reconfigure_every=1, **FAST)
    assert world.play(0, [1, 2], lost=[1]) == [] and world.server.mask.version == 0
    (turn,) = world.play(1, [2, 3])
    assert turn.client_id == 2 and type(turn.up) is SparseModelUp and world.server.mask.version == 1
    assert [type(turn.up) for turn in world.play(2, [0, 1])] == [ImportanceUp, ImportanceUp]


def test_a_first_client_that_keeps_all_is_not_followed_by_another() -> None:
    world = StagedWorld("prunefl", **{**FAST, "initial_interval": 100})
    world.play(0, [1])
    assert world.server.mask.version == 1 and bool(world.mask_P.all())
    assert len(world.play(1, [0, 1, 2])) == 3


@pytest.mark.parametrize(("send_seed", "clip_norm"), [(True, None), (False, None), (True, 0.5)])
def test_importances_reconfigure_the_mask_every_so_often(send_seed: bool, clip_norm: float | None) -> None:
    train = TRAIN.model_copy(update={"clip_norm": clip_norm})
    world = StagedWorld("prunefl", reconfigure_every=2, send_seed=send_seed, train=train, **FAST)
    config = world.config
    assert isinstance(config, PruneFLConfig)
    world.play(0, [1])
    for round_idx in range(1, 5):
        before_P, version = world.mask_P, world.server.mask.version
        start = world.server.model.state_S.clone()
        ints = world.server.model.ints_I.clone()
        turns = world.play(round_idx, [0, 1, 4])
        for turn in turns:  # all hold the one mask
            assert torch.equal(mask_of(turn), before_P) and turn.up.version == version and turn.up.mask is None
            assert int(world.states[turn.client_id]["version"]) == version
            held = np.unpackbits(world.states[turn.client_id][MASK].numpy(), bitorder="little")
            assert np.array_equal(held[: before_P.numel()].astype(bool), before_P.numpy())
        if round_idx % 2:
            assert all(type(turn.up) is SparseModelUp for turn in turns)
            assert torch.equal(world.mask_P, before_P)
            continue
        total_N, params_P = torch.zeros(SPACE.num_weights, dtype=torch.float64), world.params_P
        for turn in turns:
            assert isinstance(turn.up, ImportanceUp)
            want_N = mean_squares(train, round_idx, turn.client_id, start, ints, before_P)[WEIGHTS]
            torch.testing.assert_close(turn.up.importance.tensor(), want_N, rtol=1e-6, atol=0)
            assert bool(want_N[~before_P[WEIGHTS]].any())
            total_N += turn.up.weight * turn.up.importance.tensor().double()
            values = [turn.up.weights.num_kept, turn.up.buffers.numel, turn.up.int_buffers.numel]  # type: ignore[union-attr]
            assert turn.up.importance.numel == SPACE.num_weights
            assert turn.up.num_kept(world.server_schema) == SPACE.num_weights + sum(values)
            assert turn.up.paper_nbits(world.server_schema) == 32 * (SPACE.num_weights + sum(values))
        mean_P = sum(turn.up.weight * scattered(turn.up, before_P) for turn in turns) / sum(t.up.weight for t in turns)
        want_P = reconfigure(
            world.space, mean_P.float(), total_N, before_P, times_L=np.array(FAST["layer_times"]), constant_s=20.0,
            removable=config.removable_at(round_idx),
        )  # fmt: skip
        assert torch.equal(world.mask_P, want_P)
        assert not torch.equal(want_P, before_P) and world.server.mask.version == version + 1
        assert not bool(params_P[want_P & ~before_P].any())  # what comes in starts from zero
        assert 0 < world.scalars["weight_density"] <= 1


def scattered(up: SparseModelUp, mask_P: Tensor) -> Tensor:
    out_P = torch.zeros(mask_P.numel(), dtype=torch.float64)
    out_P[mask_P] = up.weights.tensor_values().double()
    return out_P


def mean_squares(
    train: TrainConfig, round_idx: int, client_id: int, state_S: Tensor, ints_I: Tensor, mask_P: Tensor
) -> Tensor:
    """The client's training under the mask; neither the mask, nor clipping, nor weight decay is in the squares."""
    flat, squares = FlatModel(module()), []

    def look(model: FlatModel) -> None:
        squares.append(model.grads_P.square())
        if train.clip_norm is not None:
            model.grads_P.mul_(mask_P)

    def keep(model: FlatModel) -> None:
        model.params_P.mul_(mask_P)

    flat.load(state_S, ints_I)
    train_local(
        flat,
        Shard(DATA, PARTS[client_id]),
        train,
        rng=stream(7, round_idx, client_id, "batches"),
        after_backward=look,
        after_step=keep,
    )
    return torch.stack(squares).mean(0)


def test_another_rank_goes_on_from_the_servers_state() -> None:
    world = StagedWorld("prunefl", reconfigure_every=1, **FAST)
    world.play(0, [1])
    kept = copy.deepcopy(world.server.state_dict())
    world.play(1, [0, 2])
    want, mask = world.params_P.clone(), world.server.mask.checksum
    other = StagedWorld("prunefl", reconfigure_every=1, **FAST)
    other.server.load_state_dict(kept)
    other.play(1, [0, 2])
    assert torch.equal(other.params_P, want) and other.server.mask.checksum == mask


def test_a_dry_run_sends_the_dense_model_and_importances() -> None:
    world = StagedWorld("prunefl", reconfigure_every=1, **FAST)
    world.client.ctx.dry_run = True
    world.play(0, [1])
    assert bool(world.mask_P.all()) and world.server.mask.version == 1
    (turn,) = world.play(1, [0])
    assert isinstance(turn.up, ImportanceUp) and turn.up.importance.numel == SPACE.num_weights


def test_a_first_client_that_diverges_says_so_with_its_model() -> None:
    train = TRAIN.model_copy(update={"lr": 1e30})
    world = StagedWorld("prunefl", train=train, **FAST)
    world.server.begin_round(0, [1])
    turn = world.turn(0, 1)
    assert turn.up.nonfinite_field() is not None


@pytest.mark.parametrize(("num_dropped", "num_reconfigurations"), [(0, 5), (44, 5), (45, 6), (300, 6)])
def test_the_first_client_stops_after_five_steady_reconfigurations(
    num_dropped: int, num_reconfigurations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first takes so many of 443 parameters from the dense model, the others leave it so."""

    def drop(space: MaskSpace, params_P: Tensor, importance_N: Tensor, mask_P: Tensor, **settings: Any) -> Tensor:
        start, _ = space.spans[1]
        new_P = mask_P.clone()
        new_P[start : start + num_dropped] = False
        return new_P

    monkeypatch.setattr("fedmpi.algorithms.prunefl.reconfigure", drop)
    world = StagedWorld("prunefl", **{**FAST, "initial_iterations": 1000})
    world.play(0, [1])
    assert world.client.ctx.stats[0].num_steps == num_reconfigurations * 3
    assert int(world.mask_P.sum()) == 443 - num_dropped


def test_times_follow_from_uses_unless_they_are_given() -> None:
    config = PruneFLConfig(name="prunefl", comm_s=2.0, compute_s_per_op=0.5, samples_per_round=10)
    uses = {entry.name: Uses(i, i > 0) for i, entry in enumerate(SPACE.weights)}
    assert config.times(SPACE, uses).tolist() == [2.0, 2.0 + 6 * 0.5 * 10, 2.0 + 2 * 6 * 0.5 * 10]
    given = config.model_copy(update={"layer_times": [3.0, 4.0, 5.0]})
    assert given.times(SPACE, uses).tolist() == [3.0, 4.0, 5.0]


def test_the_share_that_may_go_halves() -> None:
    config = PruneFLConfig(name="prunefl", removable=0.4, half_life=10)
    assert [config.removable_at(r) for r in (0, 10, 20)] == [0.4, 0.2, 0.1]
    assert [r for r in range(101) if PruneFLConfig(name="prunefl").reconfigures(r)] == [50, 100]


@pytest.mark.parametrize(
    "settings",
    [
        {"removable": 1.0},
        {"removable": -0.1},
        {"half_life": 0},
        {"reconfigure_every": 0},
        {"initial_iterations": 0},
        {"initial_interval": 0},
        {"constant_s": 0.0},
        {"comm_s": 0.0},
        {"compute_s_per_op": -1.0},
        {"layer_times": [1.0, 0.0]},
        {"mu": 0.1},
        {"density": 0.5},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        validate(ALGORITHM.config, {"name": "prunefl", **settings}, "algorithm")


def test_times_must_be_as_many_as_layers() -> None:
    config = PruneFLConfig(name="prunefl", layer_times=[1.0])
    with pytest.raises(ConfigError, match=r"3 layers \(0.weight, 2.weight, 5.weight\), got 1"):
        check(config, initial(), RunConfig(rounds=60))


def test_a_mask_that_will_not_change_is_warned_of() -> None:
    assert check(PruneFLConfig(name="prunefl"), initial(), RunConfig(rounds=51)) == []
    (warning,) = check(PruneFLConfig(name="prunefl"), initial(), RunConfig(rounds=50))
    assert "reconfigure_every=50" in warning
    settings = {"initial_iterations": 5, "initial_interval": 6}
    (warning,) = check(PruneFLConfig(name="prunefl", **settings), initial(), RunConfig(rounds=51))
    assert "prunes nothing" in warning


def test_times_that_are_given_leave_others_without_use() -> None:
    times = PruneFLConfig(name="prunefl", layer_times=[1.0, 2.0, 3.0], samples_per_round=40)
    (warning,) = check(times, initial(), RunConfig(rounds=51))
    assert "algorithm.samples_per_round does nothing" in warning
    assert check(PruneFLConfig(name="prunefl", samples_per_round=40), initial(), RunConfig(rounds=51)) == []


def test_initial_model_is_not_changed() -> None:
    world = StagedWorld("prunefl", **FAST)
    world.play(0, [1])
    assert torch.equal(world.server.ctx.initial.state_S, initial().state_S)
    assert replace(world.server.ctx, seed=1).layout == layout()
