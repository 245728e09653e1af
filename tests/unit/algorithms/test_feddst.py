"""FedDST's schedule and its readjustments in real rounds; and what its released code does instead, by mechanism."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from masked import PARTS, World, initial, layout, mask_of, vector_of
from torch import Tensor
from torch.nn import functional as F

from fedmpi.algorithms import feddst
from fedmpi.algorithms.feddst import FedDSTConfig, FedDSTReleasedConfig, check
from fedmpi.algorithms.masking import MaskSpace, Readjusted
from fedmpi.config import RunConfig, TrainConfig
from fedmpi.configfile import validate
from fedmpi.errors import ConfigError, NonFiniteError

EVERY = {"alpha": 0.3, "interval": 1, "end_round": 100}
EPOCHS = TrainConfig(lr=0.1, momentum=0.9, batch_size=8, local_epochs=4)
COHORTS = [[0, 1], [1, 2], [0, 3], [4, 1], [2, 0], [3, 1], [1, 0], [2, 4]]


def config(**settings: Any) -> FedDSTConfig:
    return FedDSTConfig(name="feddst", **settings)


def run_config(**train: Any) -> RunConfig:
    return RunConfig(rounds=60, train=TrainConfig(**train))


class Spy:
    """Records what each readjustment was given and made, and the vectors right after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, world: World) -> None:
        self.seen: list[dict[str, Any]] = []
        inner, start_anew = feddst.readjust, world.client._readjust  # type: ignore[attr-defined]

        def watched(space: MaskSpace, params_P: Tensor, grads_P: Tensor, mask_P: Tensor, *rest: Any) -> Readjusted:
            result = inner(space, params_P, grads_P, mask_P, *rest)
            self.seen.append({"params": params_P.clone(), "grads": grads_P.clone(), "mask": mask_P.clone()})
            self.seen[-1] |= {"counts": rest[0], "alpha": rest[1], "result": result}
            return result

        def after(round_idx: int, mask_P: Tensor, alpha: float, x: Tensor, y: Tensor) -> Tensor:
            state_S, ints_I = world.model.state_S.clone(), world.model.ints_I.clone()
            drawn = torch.get_rng_state()
            new_P = start_anew(round_idx, mask_P, alpha, x, y)
            left = world.model
            self.seen[-1] |= {"x": x.clone(), "y": y.clone(), "before": state_S, "after": left.state_S.clone()}
            self.seen[-1] |= {"momentum": left.momentum_P.clone(), "second": left.second_moment_P.clone()}
            assert torch.equal(left.ints_I, ints_I) and torch.equal(torch.get_rng_state(), drawn)
            assert isinstance(new_P, Tensor)
            return new_P

        monkeypatch.setattr(feddst, "readjust", watched)
        monkeypatch.setattr(world.client, "_readjust", after)


def test_the_schedule_of_alpha() -> None:
    """Invariant 8."""
    for end in (1, 2, 3, 7, 40):
        for alpha in (0.01, 0.5, 1.0):
            alphas = [config(alpha=alpha, end_round=end).alpha_at(r, 100) for r in range(end + 3)]
            assert alphas[0] == alpha
            assert alphas == sorted(alphas, reverse=True)
            assert all(a > 0 for a in alphas[:end]) and alphas[end:] == [0.0] * 3
            for r in range(end):
                assert alphas[r] == pytest.approx(alpha / 2 * (1 + math.cos(math.pi * r / end)))
    assert config(end_round=0).alpha_at(0, 100) == 0
    assert config().last_round(401) == 200
    released = FedDSTReleasedConfig(name="feddst_released", alpha=0.4)
    assert [released.alpha_at(r, 10) for r in range(7)] == [0.4] * 5 + [0.0] * 2  # B4: it does not decay


@pytest.mark.parametrize("name", ["feddst", "feddst_released"])
def test_the_number_of_readjustments(name: str) -> None:
    """Invariant 8."""
    half = World(name).server
    assert isinstance(half, feddst.FedDSTServer)
    for end in range(1, 30):
        for interval in range(1, 12):
            half.config = config(alpha=0.2, end_round=end, interval=interval)
            rounds = [r for r in range(40) if half.alpha(r)]
            assert len(rounds) == math.ceil((end - 1) / interval)
            assert rounds == [1 + i * interval for i in range(len(rounds))]


@pytest.mark.parametrize("growth", ["inactive", "pruned_stay"])
@pytest.mark.parametrize("density", [0.3, 0.9])
def test_what_a_readjustment_does_to_a_client(growth: str, density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariants 1 to 3 in rounds: also where hardly any position is left to grow in."""
    world = World(density=density, growth=growth, layer_distribution="uniform", train=EPOCHS, **EVERY)
    spy = Spy(monkeypatch, world)
    space, biases_P = world.space, ~world.space.is_weight(torch.device("cpu"))
    budgets = space.kept(world.mask_P).tolist()
    for round_idx, cohort in enumerate(COHORTS[:5]):
        for turn in world.play(round_idx, cohort):
            assert space.kept(mask_of(turn)).tolist() == budgets
        assert space.kept(world.mask_P).tolist() == budgets
        assert world.server.mask.version == round_idx
    assert len(spy.seen) == 8
    for seen in spy.seen:
        result, mask_P, params_P = seen["result"], seen["mask"], seen["params"]
        grown_P, after_P = result.grown_P, seen["after"][: space.num_params]
        stayed_P = result.mask_P & ~grown_P
        assert bool(grown_P.any()) and not bool((grown_P & biases_P).any())
        assert not bool((grown_P & stayed_P).any())
        if growth == "pruned_stay":
            assert not bool((grown_P & mask_P).any())
        assert not bool(after_P[grown_P].any()) and not bool(seen["momentum"][grown_P].any())
        assert torch.equal(after_P[stayed_P], params_P[stayed_P])  # no trained weight that stays is touched
        assert not bool(after_P[~result.mask_P].any())
        assert bool(seen["momentum"][stayed_P].any())
        for start, stop in space.spans:
            old, stays, grown = (v[start:stop] for v in (mask_P, stayed_P, grown_P))
            w, g = params_P[start:stop].abs(), seen["grads"][start:stop].abs()
            dropped = old & ~stays
            assert not bool(dropped.any()) or float(w[dropped].max()) <= float(w[stays].min())
            rest = ~grown & ~(old if growth == "pruned_stay" else stays)
            assert not bool(rest.any() & grown.any()) or float(g[rest].max()) <= float(g[grown].min())


def test_dense_layers_stay_dense() -> None:
    """Invariant 1: ERK at density .5 keeps all of the first and the last layer."""
    world = World(density=0.5, train=EPOCHS, **EVERY)
    assert world.space.kept(world.mask_P).tolist() == [16, 157, 30]
    for round_idx, cohort in enumerate(COHORTS[:4]):
        for turn in world.play(round_idx, cohort):
            assert world.space.kept(mask_of(turn)).tolist() == [16, 157, 30]
        assert world.space.kept(world.mask_P).tolist() == [16, 157, 30]
    assert world.server.mask.version == 3


def test_the_gradient_is_of_the_data_loss_alone_on_the_last_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(density=0.4, mu=5.0, **EVERY, train=TrainConfig(lr=0.1, weight_decay=0.1, batch_size=8))
    spy = Spy(monkeypatch, world)
    world.play(0, [1])
    world.play(1, [1])
    (seen,) = spy.seen
    assert seen["x"].shape[0] == 30 % 8
    world.model.state_S.copy_(seen["before"])
    world.model.grads_P.zero_()
    F.cross_entropy(world.model.module(seen["x"]), seen["y"]).backward()  # type: ignore[no-untyped-call]
    assert torch.equal(world.model.grads_P, seen["grads"])
    # The running statistics are those of training: a batch is not counted twice.
    num_params = world.space.num_params
    assert torch.equal(seen["after"][num_params:], seen["before"][num_params:])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_what_has_grown_starts_without_the_optimizers_memory(optimizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train = TrainConfig(optimizer=optimizer, lr=0.01, batch_size=8, local_epochs=2)
    world = World(density=0.4, **EVERY, train=train)
    spy = Spy(monkeypatch, world)
    world.play(0, [1])
    world.play(1, [1, 3])
    for seen in spy.seen:
        grown_P, stayed_P = seen["result"].grown_P, seen["result"].mask_P & ~seen["result"].grown_P
        vectors = ("momentum", "second") if optimizer == "adam" else ("momentum",)
        for name in vectors:
            assert not bool(seen[name][grown_P].any())
            assert bool(seen[name][stayed_P].any())
    assert len(spy.seen) == 2


@pytest.mark.parametrize(("epoch", "trains_on"), [("middle", True), (0, True), (2, True), (3, False), ("last", False)])
def test_what_has_grown_is_trained_where_epochs_are_left(
    epoch: Any, trains_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 11."""
    world = World(density=0.3, readjust_epoch=epoch, train=EPOCHS, **EVERY)
    spy = Spy(monkeypatch, world)
    world.play(0, [0, 1])
    sent = []
    for turn, seen in zip(world.play(1, [0, 1]), spy.seen, strict=True):
        sent.append(vector_of(turn)[seen["result"].grown_P])
    assert all(bool(values.any()) == trains_on for values in sent)
    if trains_on:
        assert all(float((values != 0).float().mean()) > 0.5 for values in sent)


def test_the_epoch_in_the_middle() -> None:
    for num_epochs, epoch in ((1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (10, 4)):
        world = World(train=TrainConfig(local_epochs=num_epochs))
        assert world.client._epoch == epoch  # type: ignore[attr-defined]


@pytest.mark.parametrize("settings", [{"alpha": 0.0}, {"alpha": 0.5, "end_round": 1}, {"alpha": 0.5, "end_round": 0}])
def test_without_readjustment_it_is_randommask(settings: dict[str, Any]) -> None:
    """Invariant 7: the same frames."""
    worlds = World(density=0.4, mu=0.1, interval=1, **settings), World("randommask", density=0.4, mu=0.1)
    for round_idx, cohort in enumerate(COHORTS[:3]):
        for one, other in zip(*(world.play(round_idx, cohort) for world in worlds), strict=True):
            assert one.up_frame.buffer.tobytes() == other.up_frame.buffer.tobytes()
            pairs = zip(one.down_frames, other.down_frames, strict=True)
            assert all(a.buffer.tobytes() == b.buffer.tobytes() for a, b in pairs)
    assert torch.equal(worlds[0].server.model.state_S, worlds[1].server.model.state_S)


@pytest.mark.parametrize(("start", "final"), [(0.6, 0.2), (0.2, 0.6), (0.3, 1.0)])
@pytest.mark.parametrize(("interval", "end"), [(1, 6), (2, 7), (3, 6)])
def test_the_density_goes_to_its_final_value_in_steps(start: float, final: float, interval: int, end: int) -> None:
    world = World(density=start, final_density=final, alpha=0.3, interval=interval, end_round=end)
    totals = [int(world.space.kept(world.mask_P).sum())]
    for round_idx in range(8):
        turns = world.play(round_idx, COHORTS[round_idx])
        totals.append(int(world.space.kept(world.mask_P).sum()))
        if round_idx >= 1 and (round_idx - 1) % interval == 0 and round_idx < end:
            assert {int(world.space.kept(mask_of(turn)).sum()) for turn in turns} == {totals[-1]}
            assert totals[-1] != totals[-2]
        else:
            assert totals[-1] == totals[-2]
    assert totals == sorted(totals, reverse=final < start)
    assert totals[0] == round(start * 406) and totals[-1] == round(final * 406)
    assert isinstance(world.config, FedDSTConfig)
    want = world.config.counts_at(end - 1 - (end - 2) % interval, world.space, layout(), world.rounds)
    assert world.space.kept(world.mask_P).tolist() == want.tolist()
    assert world.scalars["weight_density"] == totals[-1] / 406


def test_a_layer_that_becomes_dense_starts_its_new_weights_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their momentum has grown while they were masked."""
    world = World(density=0.3, final_density=1.0, alpha=0.3, interval=1, end_round=2)
    spy = Spy(monkeypatch, world)
    world.play(0, [0, 1])
    world.play(1, [0, 1])
    for seen in spy.seen:
        new_P = seen["result"].mask_P & ~seen["mask"]
        assert int(new_P.sum()) > 200
        assert torch.equal(new_P, seen["result"].grown_P)
        assert not bool(seen["momentum"][new_P].any())


def test_a_diverged_client_keeps_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server finds the numbers that are none."""

    def refuse(*arguments: Any) -> Readjusted:
        raise NonFiniteError("NaN")

    world = World(density=0.3, **EVERY)
    world.play(0, [0, 1])
    monkeypatch.setattr(feddst, "readjust", refuse)
    for turn in world.play(1, [0, 1]):
        assert torch.equal(mask_of(turn), world.mask_P)


def test_a_turn_without_training_sends_the_mask_it_has() -> None:
    """As in a dry run."""
    world = World(density=0.3, **EVERY)
    world.client.ctx.dry_run = True
    world.play(0, [0, 1])
    for turn in world.play(1, [0, 1]):
        assert turn.up.mask is not None
        assert torch.equal(mask_of(turn), world.mask_P)
    assert world.server.mask.version == 0


# The released profile: its causes are seen where they act.


def survivors(readjust_epoch: str, name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Return how many distinct positions clients have grown in a round, and how many of them the server kept."""
    settings = {"layer_distribution": "erk", "growth": "inactive", "decay": "none", "alpha": 0.2, "interval": 1}
    world = World(name, density=0.3, readjust_epoch=readjust_epoch, train=EPOCHS, **settings)
    with monkeypatch.context() as patch:
        spy = Spy(patch, world)
        world.play(0, [0, 1, 3, 4])
        before_P = world.mask_P
        world.play(1, [0, 1, 3, 4])
    grown_P = torch.stack([seen["result"].grown_P for seen in spy.seen]).any(0) & ~before_P
    return int(grown_P.sum()), int((world.mask_P & grown_P).sum())


def test_what_grows_after_the_last_step_is_pruned_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """B1: zeros compete with what the other clients have trained."""
    num_grown, num_last = survivors("last", "feddst_released", monkeypatch)
    num_grown_middle, num_middle = survivors("middle", "feddst_released", monkeypatch)
    assert num_grown > 20 and num_grown_middle > 20
    assert num_last <= 0.1 * num_grown
    assert num_middle > 4 * max(1, num_last)
    assert survivors("middle", "feddst", monkeypatch)[1] > 0


def drifted(name: str, **settings: Any) -> list[int]:
    """Return the number of weights kept after each round of readjustments at alpha .5."""
    world = World(name, density=0.5, alpha=0.5, interval=1, end_round=100, train=EPOCHS, **settings)
    kept = []
    for round_idx, cohort in enumerate([[0], [0], [1], [3], [1]]):
        world.play(round_idx, cohort)
        kept.append(int(world.space.kept(world.mask_P).sum()))
    return kept


def test_the_released_code_loses_weights() -> None:
    """B2: places go to zeros that nobody kept, and a mask that is too sparse is never filled up again."""
    kept = drifted("feddst_released")
    assert max(kept[1:]) < 0.95 * kept[0]
    right = drifted("feddst")
    assert set(right) == {round(0.5 * 406)}


def test_the_released_growth_zeroes_trained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """B3: the client ends below its budget."""
    world = World("feddst_released", density=0.5, alpha=0.2, interval=1, end_round=100, train=EPOCHS)
    spy = Spy(monkeypatch, world)
    world.play(0, [0, 1])
    budget = int(world.space.kept(world.mask_P).sum())
    for turn, seen in zip(world.play(1, [0, 1]), spy.seen, strict=True):
        lost_P = seen["result"].grown_P & (seen["params"] != 0)
        assert int(lost_P.sum()) > 0
        assert not bool(vector_of(turn)[lost_P].any())
        assert int(world.space.kept(mask_of(turn)).sum()) < budget
        assert seen["alpha"] == 0.2  # B4: the first readjustment's alpha is that of the settings


def test_the_released_weights_are_twice_the_batches() -> None:
    """B9."""
    for name, weigh in (("feddst_released", lambda n: 2 * math.ceil(n / 8)), ("feddst", lambda n: n)):
        for turn in World(name).play(0, [0, 1, 2]):
            assert turn.up.weight == weigh(len(PARTS[turn.client_id]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"density": 0}, "density"),
        ({"density": 1.5}, "density"),
        ({"alpha": -0.1}, "alpha"),
        ({"alpha": 1.5}, "alpha"),
        ({"interval": 0}, "interval"),
        ({"end_round": -1}, "end_round"),
        ({"mu": -1}, "mu"),
        ({"readjust_epoch": -1}, "readjust_epoch must be at least 0, got -1"),
        ({"readjust_epoch": "first"}, "readjust_epoch"),
        ({"alpha": 0, "final_density": 0.5}, "final_density needs alpha > 0"),
        ({"final_density": 0}, "final_density"),
        ({"growth": "everywhere"}, "growth"),
        ({"layer_distribution": "erk2"}, "layer_distribution"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], words: str) -> None:
    for section in (FedDSTConfig, FedDSTReleasedConfig):
        with pytest.raises(ConfigError, match=words):
            validate(section, {"name": "feddst", **settings}, "algorithm")


def test_what_does_not_fit_the_run_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"readjust_epoch must be below train.local_epochs=2, as epochs count from 0, "
    ):
        check(config(readjust_epoch=10), initial(), run_config(local_epochs=2))
    with pytest.raises(ConfigError, match=r"erk_released.*take erk"):
        check(config(layer_distribution="erk_released", density=0.01), initial(), run_config())
    with pytest.raises(ConfigError, match="must keep at least one of the 406 weights"):
        check(config(density=0.001), initial(), run_config())
    with pytest.raises(ConfigError, match=r"algorithm\.final_density must keep at least one of the 406 weights"):
        check(config(final_density=0.001), initial(), run_config())
    with pytest.raises(ConfigError, match=r"algorithm\.final_density=0\.01: with erk_released"):
        check(config(layer_distribution="erk_released", final_density=0.01, density=0.9), initial(), run_config())


def test_what_is_warned_of() -> None:
    assert check(config(), initial(), run_config(local_epochs=2)) == []
    (last,) = check(config(readjust_epoch=1), initial(), run_config(local_epochs=2))
    assert "what grows is sent before it was trained" in last
    assert check(config(readjust_epoch="last"), initial(), run_config(local_epochs=2)) == [last]
    assert check(config(), initial(), run_config(local_epochs=1)) == [last]
    assert check(config(alpha=0), initial(), run_config(local_epochs=1)) == []
    empty = check(
        config(layer_distribution="uniform", density=0.5, final_density=0.02), initial(), run_config(local_epochs=2)
    )
    assert empty == ["algorithm.final_density=0.02 leaves no weight of 0.weight: only its bias remains"]
    (still,) = check(config(alpha=1e-4), initial(), run_config(local_epochs=2))
    assert still.startswith("algorithm.alpha=0.0001 is less than half a weight of every layer: none moves")
    assert check(config(alpha=1e-4, final_density=0.5), initial(), run_config(local_epochs=2)) == []
    assert check(config(alpha=1e-4, density=1), initial(), run_config(local_epochs=2)) == []


def test_settings_under_which_nothing_moves_are_warned_of() -> None:
    run = run_config(local_epochs=2)
    short = run.model_copy(update={"rounds": 3})
    (once,) = check(config(interval=40), initial(), run)
    assert once == ("algorithm.interval=40 with end_round=30 of rounds=60: weights move in one round alone, the second")
    (still,) = check(config(alpha=0.3, final_density=0.5), initial(), short)
    assert still.startswith("algorithm.end_round=1 of rounds=3: no weight ever moves")
    assert check(config(alpha=0.0), initial(), short) == []
    beyond = config(end_round=1000, interval=10, final_density=0.5)
    assert check(beyond, initial(), run) == [
        f"algorithm.end_round=1000 is beyond rounds={run.rounds}: final_density=0.5 is not reached"
    ]
    assert check(beyond.model_copy(update={"end_round": run.rounds}), initial(), run) == []
