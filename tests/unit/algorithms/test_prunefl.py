"""PruneFL: the greedy rule against an exhaustive search, the first client's stage, and rounds with importances."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from masked import DATA, PARTS, TRAIN, initial, layout, mask_of, module
from staged import StagedWorld
from torch import Tensor, nn

from fedmpi.algorithms.masking import MaskSpace
from fedmpi.algorithms.prunefl import ALGORITHM, ImportanceUp, PruneFLConfig, check, is_steady, reconfigure
from fedmpi.algorithms.sparse_messages import MASK, SparseModelUp
from fedmpi.config import RunConfig
from fedmpi.configfile import validate
from fedmpi.data.shard import Shard
from fedmpi.errors import ConfigError, NonFiniteError
from fedmpi.flat import FlatModel
from fedmpi.rng import stream
from fedmpi.train.local import train_local

SMALL = FlatModel(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))).layout
SPACE = MaskSpace(SMALL)
TIMES = np.array([0.3, 1.7])
FAST = {"initial_iterations": 12, "initial_interval": 3, "constant_s": 20.0, "layer_times": [1.0, 0.5, 0.7]}


def times_P(times_L: np.ndarray = TIMES, space: MaskSpace = SPACE) -> np.ndarray:
    out = np.zeros(space.num_params)
    for (start, stop), seconds in zip(space.spans, times_L, strict=True):
        out[start:stop] = seconds
    return out


def quotient(mask_P: Tensor, importance_P: Tensor, constant_s: float) -> float:
    kept = mask_P.numpy()
    return float(importance_P.double().numpy()[kept].sum() / (constant_s + times_P()[kept].sum()))


def must_stay(params_P: Tensor, mask_P: Tensor, removable: float) -> Tensor:
    """The larger weights of each layer, written as a plain loop."""
    stay_P = ~SPACE.is_weight(torch.device("cpu"))
    for start, stop in SPACE.spans:
        active = [i for i in range(start, stop) if mask_P[i]]
        by_size = sorted(active, key=lambda i: (-abs(float(params_P[i])), i))
        for i in by_size[: len(active) - math.floor(removable * len(active))]:
            stay_P[i] = True
    return stay_P


def case(seed: int, density: float = 0.6) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask_P = (torch.rand(SPACE.num_params, generator=generator) < density) | ~SPACE.is_weight(torch.device("cpu"))
    params_P = torch.randn(SPACE.num_params, generator=generator) * mask_P
    importance_P = torch.randn(SPACE.num_params, generator=generator).square() ** 2
    return params_P, importance_P, mask_P


def run(params_P: Tensor, importance_P: Tensor, mask_P: Tensor, constant_s: float, removable: float = 0.3) -> Tensor:
    return reconfigure(SPACE, params_P, importance_P, mask_P, times_L=TIMES, constant_s=constant_s, removable=removable)


@pytest.mark.parametrize("constant_s", [0.01, 1.0, 5.0, 100.0])
@pytest.mark.parametrize("seed", range(6))
def test_no_other_mask_with_what_must_stay_does_better(seed: int, constant_s: float) -> None:
    params_P, importance_P, mask_P = case(seed)
    got_P = run(params_P, importance_P, mask_P, constant_s)
    stay_P = must_stay(params_P, mask_P, 0.3)
    assert bool((got_P | ~stay_P).all())
    best = quotient(got_P, importance_P, constant_s)
    assert best >= quotient(mask_P, importance_P, constant_s) - 1e-12
    others = (~stay_P).nonzero().squeeze(1)[:10]  # a search of all sets of ten of them, with the rest as it was chosen
    for bits in itertools.product([False, True], repeat=len(others)):
        tried_P = got_P.clone()
        tried_P[others] = torch.tensor(bits)
        assert quotient(tried_P, importance_P, constant_s) <= best + 1e-12


@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_greedy_rule(seed: int) -> None:
    params_P, importance_P, mask_P = case(seed, 0.4)
    stay_P = must_stay(params_P, mask_P, 0.5)
    times, gains = times_P(), importance_P.double().numpy()
    kept = stay_P.numpy().copy()
    gain, cost = gains[kept].sum(), 2.0 + times[kept].sum()
    for j in sorted(np.flatnonzero(~kept), key=lambda j: -gains[j] / times[j]):
        if not gains[j] / times[j] > gain / cost:
            break
        kept[j] = True
        gain, cost = gain + gains[j], cost + times[j]
    assert np.array_equal(run(params_P, importance_P, mask_P, 2.0, 0.5).numpy(), kept)


def test_without_gradients_only_what_must_stay_remains() -> None:
    params_P, importance_P, mask_P = case(3)
    got_P = run(params_P, torch.zeros_like(importance_P), mask_P, 5.0, 0.9)
    assert torch.equal(got_P, must_stay(params_P, mask_P, 0.9))
    assert (SPACE.kept(got_P) >= 1).all()  # of a layer that had a weight, one stays


def test_the_scale_of_importances_does_not_matter_but_the_constant_does() -> None:
    params_P, importance_P, mask_P = case(1)
    for constant_s in (0.5, 3.0):
        assert torch.equal(
            run(params_P, importance_P, mask_P, constant_s), run(params_P, importance_P * 1024, mask_P, constant_s)
        )
    sizes = [int(run(params_P, importance_P, mask_P, c).sum()) for c in (0.01, 1.0, 10.0, 1e9)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert bool(run(params_P, importance_P + 1e-3, mask_P, 1e9).all())  # no weight costs anything beside it


def test_nothing_that_may_go_only_grows() -> None:
    params_P, importance_P, mask_P = case(2)
    assert bool((run(params_P, importance_P, mask_P, 1.0, 0.0) | ~mask_P).all())


def test_of_equals_the_first_are_added_one_by_one() -> None:
    mask_P = ~SPACE.is_weight(torch.device("cpu"))
    mask_P[0] = True
    importance_P = torch.zeros(SPACE.num_params)
    importance_P[:4] = 1.0
    params_P = mask_P.float()
    got_P = run(params_P, importance_P, mask_P, 1.0, 0.0)
    assert got_P[:12].nonzero().squeeze(1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_squares_that_are_not_finite_are_refused(bad: float) -> None:
    params_P, importance_P, mask_P = case(0)
    importance_P[2] = bad
    with pytest.raises(NonFiniteError, match="squares"):
        run(params_P, importance_P, mask_P, 1.0)


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


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_first_clients_stage_is_a_plain_loop(optimizer: Any) -> None:
    """The same steps with torch's own optimizer, reconfiguring every third."""
    train = TRAIN.model_copy(update={"optimizer": optimizer, "lr": 0.01, "adam_eps": 1e-3})
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
        opt.step()
        for turn_idx in (0, 1) if step % 3 == 0 else (0,):
            if turn_idx:
                new_P = reconfigure(
                    world.space, flat(lambda p: p.detach()), squares_P, mask_P, times_L=np.array([1.0, 0.5, 0.7]),
                    constant_s=20.0, removable=0.3,
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


@pytest.mark.parametrize("send_seed", [True, False])
def test_importances_reconfigure_the_mask_every_so_often(send_seed: bool) -> None:
    world = StagedWorld("prunefl", reconfigure_every=2, send_seed=send_seed, **FAST)
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
        total_P, params_P = torch.zeros(before_P.numel(), dtype=torch.float64), world.params_P
        for turn in turns:
            assert isinstance(turn.up, ImportanceUp)
            want_P = mean_squares(round_idx, turn.client_id, start, ints, before_P)
            torch.testing.assert_close(turn.up.importance.tensor(), want_P, rtol=1e-6, atol=0)
            assert bool(want_P[~before_P].any())
            total_P += turn.up.weight * turn.up.importance.tensor().double()
            assert turn.up.paper_nbits(world.server_schema) == 32 * (
                world.space.num_weights + int(before_P.sum()) + turn.up.buffers.numel + turn.up.int_buffers.numel  # type: ignore[union-attr]
            )
        mean_P = sum(turn.up.weight * scattered(turn.up, before_P) for turn in turns) / sum(t.up.weight for t in turns)
        want_P = reconfigure(
            world.space, mean_P.float(), total_P, before_P, times_L=np.array(FAST["layer_times"]), constant_s=20.0,
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


def mean_squares(round_idx: int, client_id: int, state_S: Tensor, ints_I: Tensor, mask_P: Tensor) -> Tensor:
    """The client's training with weight decay and clipping left to the step: neither is in the squares."""
    flat, squares = FlatModel(module()), []

    def keep(model: FlatModel) -> None:
        model.params_P.mul_(mask_P)

    flat.load(state_S, ints_I)
    train_local(
        flat,
        Shard(DATA, PARTS[client_id]),
        TRAIN,
        rng=stream(7, round_idx, client_id, "batches"),
        after_backward=lambda model: squares.append(model.grads_P.square()),
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
    assert isinstance(turn.up, ImportanceUp) and turn.up.importance.numel == world.space.num_params


def test_a_first_client_that_diverges_says_so_with_its_model() -> None:
    train = TRAIN.model_copy(update={"lr": 1e30})
    world = StagedWorld("prunefl", train=train, **FAST)
    world.server.begin_round(0, [1])
    turn = world.turn(0, 1)
    assert turn.up.nonfinite_field() is not None


def test_it_stops_after_five_steady_reconfigurations() -> None:
    assert not is_steady([100] * 5) and is_steady([100] * 6)
    assert is_steady([900, 100, 95, 96, 91, 99, 100])
    assert not is_steady([100, 100, 100, 80, 80, 80, 80])
    assert is_steady([100, 110, 110, 110, 110, 110]) and not is_steady([100, 112, 112, 112, 112, 112])
    settings = {**FAST, "removable": 0.0, "initial_iterations": 1000}  # nothing goes: steady from the start
    world = StagedWorld("prunefl", **settings)
    world.play(0, [1])
    assert world.client.ctx.stats[0].num_steps == 6 * 3


def test_times_follow_from_uses_unless_they_are_given() -> None:
    config = PruneFLConfig(name="prunefl", comm_s=2.0, compute_s_per_op=0.5, samples_per_round=10)
    uses = {entry.name: i for i, entry in enumerate(SPACE.weights)}
    assert config.times(SPACE, uses).tolist() == [2.0, 2.0 + 6 * 0.5 * 10]
    assert replace_times(config, [3.0, 4.0]).times(SPACE, uses).tolist() == [3.0, 4.0]


def replace_times(config: PruneFLConfig, times: list[float]) -> PruneFLConfig:
    return config.model_copy(update={"layer_times": times})


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
    with pytest.raises(ConfigError, match=r"2 layers \(0.weight, 1.weight\), got 1"):
        check(config, SMALL, RunConfig(rounds=60))


def test_a_mask_that_will_not_change_is_warned_of() -> None:
    assert check(PruneFLConfig(name="prunefl"), SMALL, RunConfig(rounds=51)) == []
    (warning,) = check(PruneFLConfig(name="prunefl"), SMALL, RunConfig(rounds=50))
    assert "reconfigure_every=50" in warning
    settings = {"initial_iterations": 5, "initial_interval": 6}
    (warning,) = check(PruneFLConfig(name="prunefl", **settings), SMALL, RunConfig(rounds=51))
    assert "prunes nothing" in warning


def test_initial_model_is_not_changed() -> None:
    world = StagedWorld("prunefl", **FAST)
    world.play(0, [1])
    assert torch.equal(world.server.ctx.initial.state_S, initial().state_S)
    assert replace(world.server.ctx, seed=1).layout == layout()
