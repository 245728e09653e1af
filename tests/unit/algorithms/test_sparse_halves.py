"""Masked training through real frames: the mean, who is sent which mask, and what a message weighs."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from masked import DATA, PARTS, TRAIN, World, initial, layout, mask_of, module, vector_of
from staged import StagedWorld
from torch import Tensor

from fedmpi.algorithms.base import GlobalModel
from fedmpi.algorithms.sparse_messages import NOTHING, SparseModelDown, SparseModelUp, SparseSeedDown, check_budgets
from fedmpi.algorithms.sparse_server import SparseMean
from fedmpi.config import RunConfig, TrainConfig
from fedmpi.configfile import validate
from fedmpi.data.shard import Shard
from fedmpi.errors import ConfigError, ProtocolError, WireError
from fedmpi.flat import FlatModel
from fedmpi.rng import stream
from fedmpi.train.local import train_local
from fedmpi.wire.codecs.numbers import put_varint
from fedmpi.wire.codecs.reference import put_reference
from fedmpi.wire.frame import encode
from fedmpi.wire.known import KnownMask
from fedmpi.wire.values import Dense, Mask, MaskedValues

P = layout().num_params
NUM_BUFFERS = layout().num_state - P
EVERY = {"alpha": 0.3, "interval": 1, "end_round": 100}


def up(mask_P: Tensor, params_P: Tensor, weight: int = 1, **changes: Any) -> SparseModelUp:
    known = KnownMask.of(mask_P, 0)
    values = MaskedValues.of(params_P[mask_P], known)
    buffers = Dense.of(torch.ones(NUM_BUFFERS))
    fields = {"mask": None, "int_buffers": Dense.of(torch.tensor([5])), "buffers": buffers, "weights": values}
    return SparseModelUp(**{"weight": weight, "version": 0, **fields, **changes})


def mean_of(*ups: SparseModelUp) -> Tensor:
    mean, model = SparseMean(layout()), GlobalModel(torch.full((layout().num_state,), 7.0), torch.tensor([1]))
    for one in ups:
        mean.add(one, torch.from_numpy(one.weights.mask.indices))
    mean.mean_into(model)
    return model.state_S[:P]


def random_ups(seed: int = 0) -> list[SparseModelUp]:
    rng = torch.Generator().manual_seed(seed)
    return [up(torch.rand(P, generator=rng) < 0.4, torch.randn(P, generator=rng), weight) for weight in (3, 50, 1, 17)]


def test_of_disjoint_masks_each_weight_is_its_only_holders() -> None:
    """Invariant 5."""
    rng = torch.Generator().manual_seed(1)
    holder_P = torch.randint(0, 4, (P,), generator=rng)  # 3: nobody
    numbers = [torch.randn(P, generator=rng) for _ in range(3)]
    mean_P = mean_of(*(up(holder_P == i, numbers[i], 2 * i + 1) for i in range(3)))
    for i in range(3):
        assert torch.equal(mean_P[holder_P == i], numbers[i][holder_P == i])
    assert bool((holder_P == 3).any()) and not bool(mean_P[holder_P == 3].any())


def test_the_mean_of_overlapping_masks_is_a_plain_loop() -> None:
    mean_P, ups = mean_of(*random_ups()), random_ups()
    for i in range(P):
        held = [(u.weight, float(dense_of(u)[i])) for u in ups if u.weights.mask.array[i]]
        want = sum(n * w for n, w in held) / sum(n for n, _ in held) if held else 0.0
        assert float(mean_P[i]) == pytest.approx(want, rel=1e-6, abs=1e-12)


def dense_of(one: SparseModelUp) -> Tensor:
    out_P = torch.zeros(P)
    out_P[torch.from_numpy(one.weights.mask.array)] = one.weights.tensor_values()
    return out_P


def test_the_mean_does_not_depend_on_the_order_or_the_scale_of_the_weights() -> None:
    """Invariant 5."""
    ups = random_ups()
    want = mean_of(*ups)
    torch.testing.assert_close(mean_of(*reversed(ups)), want, rtol=1e-7, atol=0)
    torch.testing.assert_close(mean_of(*(replace(u, weight=1000 * u.weight) for u in ups)), want, rtol=1e-7, atol=0)
    assert torch.equal(mean_of(*(replace(u, weight=2**20 * u.weight) for u in ups)), want)


def test_a_mean_of_nothing_leaves_the_model_and_is_forgotten() -> None:
    assert mean_of().tolist() == [7.0] * P
    mean = SparseMean(layout())
    (one, *_) = random_ups()
    mean.add(one, torch.from_numpy(one.weights.mask.indices))
    mean.reset()
    assert mean.total == 0 and not bool(mean.votes_P.any())


@pytest.mark.parametrize("weight", [0, -3])
def test_a_client_must_weigh_something(weight: int) -> None:
    with pytest.raises(ProtocolError, match=f"a weight of at least 1, got {weight}"):
        mean_of(up(torch.ones(P, dtype=torch.bool), torch.zeros(P), weight))


def test_rounds_without_readjustment_are_fedavg_on_the_mask() -> None:
    """Invariant 4: no mask travels, all masks are the server's, and the model is a plain loop's, bit for bit."""
    world = World("randommask", density=0.4)
    mask_P = world.mask_P
    params_P, state_B = world.params_P.clone(), world.first.state_S[P:].clone()
    ints_I = world.first.ints_I.clone()
    assert torch.equal(params_P, world.first.state_S[:P] * mask_P)
    for round_idx, cohort in enumerate([[0, 1], [2, 1], [0, 3, 4]]):
        turns = world.play(round_idx, cohort)
        assert all(turn.up.mask is None and torch.equal(mask_of(turn), mask_P) for turn in turns)
        assert all(down.mask is None for turn in turns if (down := turn.model_down) is not None)
        sum_S, first_ints = torch.zeros(layout().num_state, dtype=torch.float64), None
        for client_id in sorted(cohort):
            flat = FlatModel(module())
            flat.load(torch.cat([params_P, state_B]), ints_I)

            def keep(model: FlatModel) -> None:
                model.params_P.mul_(mask_P)

            rng = stream(7, round_idx, client_id, "batches")
            train_local(flat, Shard(DATA, PARTS[client_id]), TRAIN, rng=rng, after_step=keep)
            sum_S += len(PARTS[client_id]) * flat.state_S.double()
            first_ints = flat.ints_I.clone() if first_ints is None else first_ints
        mean_S = (sum_S / sum(len(PARTS[client_id]) for client_id in cohort)).float()
        params_P, state_B = mean_S[:P], mean_S[P:]
        assert first_ints is not None
        ints_I = first_ints
        assert torch.equal(world.params_P, params_P)
        assert torch.equal(world.server.model.state_S[P:], state_B)
        assert torch.equal(world.server.model.ints_I, ints_I)
        assert torch.equal(world.mask_P, mask_P)
    assert world.server.mask.version == 0


@pytest.mark.parametrize("name", ["randommask", "feddst", "feddst_released"])
def test_nothing_but_zeros_outside_the_mask_and_no_bias_is_masked(name: str) -> None:
    """Invariant 6, at every message and in the model that is tested."""
    world = World(name, density=0.3, **({} if name == "randommask" else EVERY))
    biases_P = ~world.space.is_weight(torch.device("cpu"))
    for round_idx in range(5):
        before_P, before_mask_P = world.params_P.clone(), world.mask_P.clone()
        turns = world.play(round_idx, [round_idx % 5, (round_idx + 2) % 5])
        for turn in turns:
            assert bool(mask_of(turn)[biases_P].all())
            down = turn.model_down
            if down is not None:
                assert np.array_equal(down.weights.mask.array, before_mask_P.numpy())
                assert torch.equal(down.weights.tensor_values(), before_P[before_mask_P])
        assert bool(world.mask_P[biases_P].all())
        assert not bool(world.params_P[~world.mask_P].any())
        assert world.server.global_model() is world.server.model
    if name != "randommask":
        assert world.server.mask.version > 0


def test_a_client_receives_zeros_outside_the_mask_and_sends_its_weights() -> None:
    """Invariant 6: what is loaded before training, and what lies in the model after it."""
    world = World(density=0.3, **EVERY)
    seen: list[tuple[Tensor, Tensor]] = []
    inner = world.client.fit

    def fit(*args: Any, **kwargs: Any) -> None:
        start_P = world.model.params_P.clone()
        inner(*args, **kwargs)
        seen.append((start_P, world.model.params_P.clone()))

    world.client.fit = fit  # type: ignore[method-assign]
    for round_idx in range(4):
        params_P = world.params_P.clone()
        for turn in world.play(round_idx, [0, 1]):
            start_P, end_P = seen.pop(0)
            assert torch.equal(start_P, params_P)
            assert torch.equal(end_P, vector_of(turn))
            assert not bool(end_P[~mask_of(turn)].any())


COHORTS = [[0, 1], [1, 2], [0, 3], [4, 1], [2, 0], [2, 1], [1, 0], [2, 1], [3, 0]]


def test_who_is_sent_a_mask_and_who_sends_one() -> None:
    """Invariant 9: down where the client's version is older, up in rounds of readjustment; all masks arrive whole."""
    world = World(density=0.3, alpha=0.4, interval=2, end_round=100)
    held: dict[int, int] = {}
    gaps: set[int] = set()
    for round_idx in range(len(COHORTS)):
        version, mask_P = world.server.mask.version, world.mask_P.clone()
        turns = world.play(round_idx, COHORTS[round_idx])
        for turn in turns:
            is_new = turn.client_id not in held
            gaps.add(version - held.get(turn.client_id, 0))
            assert isinstance(turn.downs[0], SparseSeedDown) == is_new
            assert len(turn.downs) == (2 if is_new and round_idx else 1)
            down = turn.model_down
            if down is not None:
                assert (down.mask is not None) == (held.get(turn.client_id, 0) != version)
                assert down.version == version
                assert down.mask is None or np.array_equal(down.mask.bits, mask_P.numpy())
            moves = round_idx % 2 == 1
            assert (turn.up.mask is not None) == moves
            assert turn.up.version == version
            if turn.up.mask is not None:
                assert np.array_equal(turn.up.mask.bits, mask_of(turn).numpy())
                assert not np.array_equal(turn.up.mask.bits, mask_P.numpy())
            held[turn.client_id] = version
        assert (world.server.mask.version > version) == (round_idx % 2 == 1)
        for client_id, state in world.states.items():
            assert int(state["version"]) == held[client_id] == world.server._held[client_id]
            known = world.server.ctx.known.get("mask", held[client_id])
            assert isinstance(known, KnownMask)
            assert np.array_equal(state["mask"].numpy(), known.packed)
    assert gaps >= {0, 1, 2, 3}
    # The server keeps what somebody holds, the first and the newest, and nothing else.
    assert world.server.ctx.known.versions("mask") == sorted({0, world.server.mask.version, *held.values()})


def test_a_change_against_what_the_client_holds_is_coded_as_such() -> None:
    changed = World(density=0.3, alpha=0.05, interval=1, end_round=100, wire={"mask": "change"})
    whole = World(density=0.3, alpha=0.05, interval=1, end_round=100, wire={"mask": "bits"})
    for round_idx in range(4):
        pairs = zip(changed.play(round_idx, [0, 1]), whole.play(round_idx, [0, 1]), strict=True)
        for small, large in pairs:
            assert np.array_equal(small.up.weights.mask.array, large.up.weights.mask.array)
            if round_idx >= 1:
                assert small.up_frame.index_nbytes < large.up_frame.index_nbytes
            if round_idx >= 2:
                assert small.down_frames[-1].index_nbytes < large.down_frames[-1].index_nbytes
    assert torch.equal(changed.params_P, whole.params_P)


def test_without_a_seed_the_first_message_has_the_whole_mask() -> None:
    """Invariant 9; the models are the same."""
    seed, full = (World(density=0.3, **EVERY, send_seed=send_seed) for send_seed in (True, False))
    for round_idx, cohort in enumerate([[0, 1], [1, 2], [0, 4]]):
        new = set(cohort) - set(full.states)
        seed.play(round_idx, cohort)
        for turn in full.play(round_idx, cohort):
            (down,) = turn.downs
            assert isinstance(down, SparseModelDown)
            assert (down.mask is not None) == (turn.client_id in new or round_idx == 2)
            if turn.client_id in new and down.mask is not None:
                assert down.mask.base is None
    assert torch.equal(seed.params_P, full.params_P)
    assert torch.equal(seed.mask_P, full.mask_P)


def varint(number: int) -> int:
    out = bytearray()
    put_varint(number, out)
    return len(out)


def test_what_a_message_weighs_is_the_sum_of_its_parts() -> None:
    """Invariant 10, byte for byte, with plain codecs; and the paper's own count."""
    world = World(density=0.3, **EVERY, wire={"values": "raw", "mask": "bits"})
    schema = world.client_schema
    beside = NUM_BUFFERS + 1  # one integer buffer
    mask_nbytes = -(-P // 8)
    num_down_masks = 0
    for round_idx in range(4):
        nnz = int(world.mask_P.sum()) - world.space.num_biases
        for turn in world.play(round_idx, [round_idx, 0] if round_idx else [0, 1]):
            for message, frame in [(turn.up, turn.up_frame), (turn.model_down, turn.down_frames[-1])]:
                if message is None:
                    continue
                kept = message.weights.num_kept - world.space.num_biases
                assert kept == nnz
                values_nbytes = 4 * kept + 4 * world.space.num_biases
                reference = put_reference(message.weights.mask).size
                assert reference == 5
                of_mask = mask_nbytes if message.mask is not None else 0
                assert frame.index_nbytes == of_mask + reference
                assert frame.value_nbytes == values_nbytes + 4 * NUM_BUFFERS + 8
                numbers = frame.payload_nbytes - frame.index_nbytes - frame.value_nbytes
                if isinstance(message, SparseModelUp):
                    assert numbers == varint(2 * message.weight) + varint(2 * message.version)  # zigzag
                else:
                    assert numbers == varint(2 * message.version) + 8  # alpha
                    num_down_masks += message.mask is not None
                count = kept + world.space.num_biases + beside
                assert message.num_kept(schema) == count
                assert message.num_params(schema) == P + beside
                moves = isinstance(message, SparseModelUp) and round_idx >= 1
                assert (message.mask is not None) == moves or isinstance(message, SparseModelDown)
                assert message.paper_nbits(schema) == 32 * count + (kept if moves else 0)
            if isinstance(turn.downs[0], SparseSeedDown):
                assert turn.downs[0].paper_nbits(schema) == 0 and turn.downs[0].num_kept(schema) == 0
                assert turn.downs[0].num_params(schema) == P + beside
    assert num_down_masks >= 3


@pytest.mark.parametrize("name", ["randommask", "feddst"])
def test_a_server_continues_from_its_state(name: str) -> None:
    settings = EVERY if name == "feddst" else {}
    one, other = (World(name, density=0.3, **settings) for _ in range(2))
    for round_idx, cohort in enumerate([[0, 1], [1, 2], [0, 2], [3, 1]]):
        for world in (one, other):
            world.play(round_idx, cohort)
        state = copy.deepcopy(other.server.state_dict())
        other.server, other.server_schema = other.new_server()
        other.server.load_state_dict(state)
        assert other.server.ctx.known.versions("mask") == one.server.ctx.known.versions("mask")
        assert other.server.mask.checksum == one.server.mask.checksum
    assert torch.equal(one.server.model.state_S, other.server.model.state_S)
    assert torch.equal(one.mask_P, other.mask_P)
    assert one.scalars == other.scalars


def test_a_state_replaces_all_that_a_server_had() -> None:
    world, other = World(density=0.3, **EVERY), World(density=0.3, **EVERY)
    kept = copy.deepcopy(world.server.state_dict())
    first_P = world.params_P.clone()
    for round_idx in range(3):
        other.play(round_idx, [0, 1])
    other.server.load_state_dict(kept)
    assert other.server.mask.version == 0 and other.server._held == {}
    assert other.server.ctx.known.versions("mask") == [0]
    assert torch.equal(other.params_P, first_P)


def test_a_lost_client_holds_what_it_held_and_its_next_turn_works() -> None:
    world = World(density=0.3, **EVERY)
    world.play(0, [0, 1])
    world.play(1, [0, 1])
    for round_idx in (2, 3):
        world.play(round_idx, [0, 1, 2], lost=[1, 2])
        assert world.server._held == {0: round_idx - 1, 1: 0}
    turns = {turn.client_id: turn for turn in world.play(4, [0, 1, 2])}
    assert isinstance(turns[2].downs[0], SparseSeedDown)
    down = turns[1].model_down
    assert down is not None and down.mask is not None and down.mask.base is not None
    assert down.mask.base.version == 0
    assert {int(state["version"]) for state in world.states.values()} == {3}


def test_a_round_in_which_all_are_lost_changes_nothing() -> None:
    world = World(density=0.3, **EVERY)
    world.play(0, [0, 1])
    params_P, mask_P = world.params_P.clone(), world.mask_P.clone()
    world.play(1, [0, 1], lost=[0, 1])
    assert torch.equal(world.params_P, params_P) and torch.equal(world.mask_P, mask_P)
    assert world.scalars["mask_num_grown"] == 0


def test_a_client_whose_mask_is_ahead_of_the_servers() -> None:
    """The server's state was rolled back; both versions are named."""
    world = World(density=0.3, **EVERY)
    world.play(0, [0, 1])
    world.play(1, [0, 1])
    kept = copy.deepcopy(world.server.state_dict())
    for round_idx in (2, 3):
        world.play(round_idx, [0, 1])
    assert int(world.states[0]["version"]) == 2
    world.server.load_state_dict(kept)
    with pytest.raises(ProtocolError, match=r"mask version: .* one of those held: 2, got 0: what .* different"):
        world.play(2, [0, 1])
    world.server.change_mask(None)
    world.states[0]["version"].fill_(7)
    world.server._held[0] = 1
    with pytest.raises(ProtocolError, match=r"mask version: .* one of those held: 7, got 1: what .* different"):
        world.play(2, [0])


def test_a_client_that_trained_with_another_version_is_refused_by_the_server() -> None:
    world = World(density=0.3, **EVERY)
    turns = world.play(0, [0, 1])
    world.server.begin_round(1, [0])
    with pytest.raises(ProtocolError, match=r"client 0 has trained with version 5 of the mask, the server's is 0"):
        world.server.aggregate(1, 0, replace(turns[0].up, version=5))


def without_a_bias() -> Tensor:
    mask_P = torch.ones(P, dtype=torch.bool)
    mask_P[next(entry.offset for entry in layout().entries if entry.name == "2.bias")] = False
    return mask_P


def test_a_mask_that_leaves_out_a_bias_is_refused_by_the_server() -> None:
    """Invariant 6."""
    world = World(density=1.0, **EVERY)
    world.server.begin_round(1, [0])
    mask_P = without_a_bias()
    sent = up(mask_P, torch.zeros(P), mask=Mask(mask_P.numpy(), base=world.server.mask))
    with pytest.raises(ProtocolError, match="client 0, round 1: a mask leaves out 1 numbers that are never masked"):
        world.server.aggregate(1, 0, sent)


def test_a_mask_that_leaves_out_a_bias_is_refused_by_a_client() -> None:
    """Invariant 6."""
    world = World(density=1.0, **EVERY)
    world.play(0, [0])
    world.server.mask = KnownMask.of(without_a_bias(), 1)
    world.server.ctx.known.hold("mask", world.server.mask)
    with pytest.raises(ProtocolError, match="a mask leaves out 1 numbers that are never masked"):
        world.play(1, [0])


def test_a_mask_of_another_length_does_not_get_into_a_frame() -> None:
    """Invariant 6."""
    world = World(density=0.3, **EVERY)
    sent = up(world.mask_P, torch.zeros(P), mask=Mask(np.ones(P - 1, np.bool_)))
    with pytest.raises(ValueError, match=f"expected {P} positions, got {P - 1}"):
        encode(sent, world.client_schema, world.pool)
    short = KnownMask.of(torch.ones(P - 1, dtype=torch.bool), 0)
    sent = up(world.mask_P, torch.zeros(P), weights=MaskedValues.of(torch.zeros(P - 1), short))
    with pytest.raises(ValueError, match=f"a mask of {P} positions, got {P - 1}"):
        encode(sent, world.client_schema, world.pool)


def test_a_client_without_the_mask_refuses_weights_coded_against_it() -> None:
    world = World(density=0.3, **EVERY)
    world.play(0, [0])
    world.states[0]["version"].fill_(NOTHING)
    with pytest.raises(WireError, match="one of those held: none, got 0"):
        world.play(1, [0])


def test_a_seed_that_makes_another_model_or_another_mask_is_refused() -> None:
    for field, words in (("state_hash", "has hash 0000007b, the server's has 0000007c"), ("mask_checksum", "checksum")):
        world = World("randommask")
        world.server.begin_round(0, [0])
        seed = world.server._seed_down
        world.server._seed_down = replace(seed, **{field: getattr(seed, field) + 1})
        with pytest.raises(ProtocolError, match=f"{words}.*server.initial_model=full sends"):
            world.turn(0, 0)


def test_the_proximal_term_on_a_mask_is_a_plain_loop_with_the_term() -> None:
    train = TrainConfig(lr=0.05, momentum=0.5, batch_size=8, local_epochs=2)
    world, without = (World("randommask", density=0.4, mu=mu, train=train) for mu in (0.7, 0.0))
    (turn,), (plain,) = world.play(0, [1]), without.play(0, [1])
    flat = FlatModel(module())
    mask_P = mask_of(turn)
    flat.load(initial().state_S, initial().ints_I)
    flat.params_P.mul_(mask_P)
    start_P = flat.params_P.clone()

    def term(model: FlatModel) -> None:
        model.grads_P.add_(model.params_P - start_P, alpha=0.7)

    def keep(model: FlatModel) -> None:
        model.params_P.mul_(mask_P)

    rng = stream(7, 0, 1, "batches")
    train_local(flat, Shard(DATA, PARTS[1]), train, rng=rng, after_backward=term, after_step=keep)
    torch.testing.assert_close(vector_of(turn), flat.params_P, rtol=1e-5, atol=1e-7)
    near, far = ((vector_of(one) - start_P).norm() for one in (turn, plain))
    assert float(near) < 0.95 * float(far)


@pytest.mark.parametrize(
    ("distribution", "counts"),
    [("erk", [16, 157, 30]), ("er", [16, 157, 30]), ("uniform", [8, 180, 15]), ("erk_released", [14, 175, 21])],
)
def test_how_the_kept_weights_are_shared_out(distribution: str, counts: list[int]) -> None:
    world = World("randommask", density=0.5, layer_distribution=distribution)
    kept = world.space.kept(world.mask_P)
    assert world.space.sizes.tolist() == [16, 360, 30]
    assert kept.tolist() == counts
    (turn,) = world.play(0, [0])
    assert torch.equal(mask_of(turn), world.mask_P)
    assert world.scalars["weight_density"] == pytest.approx(kept.sum() / 406)
    assert world.scalars["density"] == pytest.approx((kept.sum() + world.space.num_biases) / P)


@pytest.mark.parametrize("density", [0, -0.1, 1.5, "much"])
def test_a_density_that_is_none(density: object) -> None:
    with pytest.raises(ConfigError, match="density"):
        validate(World("randommask").algorithm.config, {"name": "randommask", "density": density}, "algorithm")


def test_a_layer_that_keeps_nothing_is_warned_of_by_name() -> None:
    world = World("randommask", density=0.02, layer_distribution="uniform")
    (warning,) = check_budgets(world.config, initial(), RunConfig(rounds=1))
    assert warning == "algorithm.density=0.02 leaves no weight of 0.weight: only its bias remains"


def test_clipping_goes_by_the_gradient_of_the_active_weights() -> None:
    """One step without momentum is as long as the rate times the norm that gradients are clipped to."""
    train = TrainConfig(lr=0.1, momentum=0.0, batch_size=100, local_epochs=1, clip_norm=1e-3)
    world = World("randommask", density=0.2, train=train)
    start_P = world.params_P.clone()
    (turn,) = world.play(0, [1])
    moved = torch.linalg.vector_norm(turn.up.weights.tensor_values() - start_P[world.mask_P])
    assert float(moved) == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_operations_are_those_of_the_mask_that_the_round_began_with() -> None:
    world = StagedWorld("prunefl", initial_iterations=6, initial_interval=3, constant_s=0.01)
    world.play(0, [0])
    # 3 x 3 positions of the convolution, whose inputs are the sample; the fully connected layers are used once.
    uses, further = np.array([9, 1, 1]), np.array([0, 1, 1])
    dense = 2 * uses * world.space.sizes
    assert world.scalars["forward_ops"] == world.scalars["dense_forward_ops"] == dense.sum()
    assert world.scalars["backward_ops"] == world.scalars["dense_backward_ops"] == (dense * (1 + further)).sum()
    masked = 2 * uses * world.space.kept(world.mask_P)
    assert masked.sum() < dense.sum()
    world.play(1, [1, 2])
    assert world.scalars["forward_ops"] == masked.sum()
    assert world.scalars["backward_ops"] == (masked * (1 + further)).sum()
    assert world.scalars["dense_forward_ops"] == dense.sum()


def test_while_the_model_is_the_initial_one_a_new_client_is_sent_the_seed_alone() -> None:
    """Round 0 came to nothing, as all its clients were lost: what the seed stands for need not be sent."""
    world = World("feddst", density=0.3)
    world.play(0, [])
    (turn,) = world.play(1, [2])
    assert [type(down) for down in turn.downs] == [SparseSeedDown]
    (later,) = world.play(2, [3])
    assert [type(down) for down in later.downs] == [SparseSeedDown, SparseModelDown]
    state = copy.deepcopy(world.server.state_dict())
    world.server, world.server_schema = world.new_server()
    world.server.load_state_dict(state)
    (last,) = world.play(3, [4])
    assert [type(down) for down in last.downs] == [SparseSeedDown, SparseModelDown]


def test_weights_under_an_older_mask_that_the_server_still_holds_are_refused() -> None:
    world = World("feddst", density=0.3, **EVERY)
    world.play(0, [0, 1])
    world.play(1, [0])
    assert world.server.mask.version == 1
    old = world.server.ctx.known.get("mask", 0)
    assert isinstance(old, KnownMask)
    stale = replace(
        world.turn(2, 1).up, mask=None, weights=MaskedValues(np.zeros(old.indices.size, np.float32), old), version=1
    )
    with pytest.raises(ProtocolError, match="client 1 has trained with version 0 of the mask, the server's is 1"):
        world.server.aggregate(2, 1, stale)


def test_a_first_mask_that_does_not_fit_names_who_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    words = f"a mask of this model has {P} positions, got 5"
    world = World(density=0.3)
    monkeypatch.setattr(type(world.client), "first_mask", lambda self, initial: torch.ones(5, dtype=torch.bool))
    with pytest.raises(ValueError, match=f"first_mask of FedDSTClient: {words}"):
        world.play(0, [0])
    monkeypatch.setattr(type(world.server), "first_mask", lambda self: torch.ones(5, dtype=torch.bool))
    with pytest.raises(ValueError, match=f"first_mask of FedDSTServer: {words}"):
        World(density=0.3)
