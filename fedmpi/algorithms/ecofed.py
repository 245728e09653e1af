"""EcoFed: the device's part is pre-trained and frozen, so no gradient travels, and old activations are replayed.

Wu, Ullah, Rodgers, Kilpatrick, Spence, Varghese: "EcoFed: Efficient Communication for DNN Partitioning-based Federated
Learning", IEEE TPDS 2024::

    once:      send the device's part W^C to each client that has not got it
    round t, every rho-th (update):
      client k:  for each batch: A = f(x; W^C); send A in 8 bits, and the labels
      server:    keep what client k sent in the replay buffer; step a copy W^S_k on each batch
    round t, else (replay):
      server:    for each client of the cohort: step a copy W^S_k on what some client of the buffer sent last
    server:    W^S_{t+1} = mean over the copies, weighted by samples

Nothing but a flag goes down after the first time, and nothing at all goes up in a replay round. The clients replayed
are drawn from the buffer without replacement where it has enough. With ``period: adaptive`` rho is chosen after each
test by how much the accuracy has changed; the thresholds are those of the authors' code, whose choices are all 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import xxhash
from pydantic import Field, field_validator
from torch import Tensor

from fedmpi.algorithms.averaging import dense_ints
from fedmpi.algorithms.base import (
    Algorithm,
    AlgorithmConfig,
    Channel,
    ClientContext,
    Conversation,
    ServerContext,
    StateDict,
)
from fedmpi.algorithms.replay import ReplayBuffer, Upload
from fedmpi.algorithms.split_client import SplitClient
from fedmpi.algorithms.split_messages import (
    ACTIVATIONS,
    SplitConfig,
    SplitResult,
    TurnLabels,
    decode_activations,
    encode_activations,
    labels_of,
    message_types,
    split_sizes,
    split_warnings,
)
from fedmpi.algorithms.split_server import Bench, SplitServer
from fedmpi.config import RunConfig
from fedmpi.data.shard import Shard
from fedmpi.errors import ConfigError, ProtocolError
from fedmpi.models.initial import InitialModel
from fedmpi.models.spec import ModelSpec
from fedmpi.rng import ANY, stream
from fedmpi.wire import frame as framing
from fedmpi.wire.message import Message, Schema, counts, dense, message
from fedmpi.wire.values import Counts, Dense

_MOST_FRAMES_NBYTES = 2**40
_MOST_FRAMES = 2**20
_RECENT_ROUNDS = 40
"""How far back the accuracy is compared to (the authors' code)."""


class EcoFedConfig(SplitConfig):
    """Settings of EcoFed."""

    bits: int | None = Field(8, ge=1, le=8, description="bits of a number of an activation; null sends float32")
    period: Annotated[int, Field(ge=1)] | Literal["adaptive"] = Field(
        2, description="every how many rounds clients send activations; adaptive: by the change of the test accuracy"
    )
    adaptive_periods: tuple[int, int, int, int] = Field(
        (8, 4, 2, 1),
        description="only with period=adaptive: the period while the accuracy has changed by more than .1, .01, .001 "
        "of itself in 40 rounds, and below",
    )
    error_feedback: bool = Field(
        False, description="what rounding took from a sample's activations is added when the sample is next sent"
    )
    replay_memory_nbytes: int = Field(
        2_000_000_000, ge=0, description="bytes of the replay buffer in memory; what is beyond goes to files"
    )
    replay_nbytes: int | None = Field(None, ge=1, description="bytes of the replay buffer at most; null is no limit")
    replay_dir: Path | None = Field(None, description="where its files go; by default the system's temporary folder")

    @field_validator("adaptive_periods")
    @classmethod
    def _check_periods(cls, periods: tuple[int, ...]) -> tuple[int, ...]:
        if min(periods) < 1:
            raise ValueError(f"must be 1 or more each, got {list(periods)}")
        return periods


@message("init", "down")
class DeviceInit(Message):
    """The frozen device part; `init_seed` tells the client's own copy by, and the hash checks it."""

    init_seed: int
    device_hash: int
    int_buffers: Dense | None = dense("device_ints", dtype="int64")
    state: Dense = dense("device_state")


@message("init-seed", "down")
class DeviceInitSeed(Message):
    """The frozen device part where it follows from a seed: the seed, and a hash of what is built from it."""

    init_seed: int
    device_hash: int

    def num_params(self, schema: Schema) -> int:
        return schema.size("device_state") + schema.size("device_ints")

    def num_kept(self, schema: Schema) -> int:
        return 0


@message("control", "down")
class RoundStart(Message):
    """Whether the client is to send activations in this round."""

    update: int


@message("ecofed-result", "up")
class EcoFedResult(Message):
    """What a conversation comes to on the server: a network, and what the client sent. It never leaves the server."""

    num_samples: int
    int_buffers: Dense | None = dense("int_buffers", dtype="int64")
    state: Dense = dense("state")
    frames: Dense | None = dense("frames", dtype="uint8", at_most=True)
    lengths: Counts | None = counts("num_frames", at_most=True)


class EcoFedServer(SplitServer):
    """Trains on what has just been sent, or on what was sent before."""

    def __init__(self, config: EcoFedConfig, ctx: ServerContext) -> None:
        super().__init__(config, ctx)
        self.eco = config
        self.reads_evaluation = config.period == "adaptive"
        self.buffer = ReplayBuffer(config.replay_memory_nbytes, config.replay_nbytes, config.replay_dir)
        self._frozen = self.cut.device.take(ctx.initial.state_S).clone(), ctx.initial.ints_I[self.cut.device.ints]
        self._hash = device_hash(*self._frozen)
        self._holders: set[int] = set()
        self._buffered: list[int] = []  # whose uploads rank 0 has; other ranks have none of them
        self._briefs: dict[int, Upload] = {}
        self._period = config.adaptive_periods[0] if config.period == "adaptive" else config.period
        self._next_update = 0
        self._tests: list[tuple[int, float]] = []
        self._is_update = False
        self._replayed: dict[int, int] = {}  # client of the cohort: client of the buffer
        self._starts = {update: RoundStart(update=int(update)) for update in (False, True)}

    def begin_round(self, round_idx: int, cohort: Sequence[int]) -> None:
        super().begin_round(round_idx, cohort)
        self._starts = {update: RoundStart(update=int(update)) for update in (False, True)}
        self._replayed = {}
        self._is_update = bool(cohort)
        if cohort and round_idx < self._next_update and self._buffered:
            self._is_update = False
            rng = stream(self.ctx.seed, round_idx, ANY, "replay")
            replace = len(self._buffered) < len(cohort)
            drawn = rng.choice(self._buffered, len(cohort), replace=replace).tolist()
            self._replayed = dict(zip(cohort, drawn, strict=True))

    def first_message(self, round_idx: int) -> Message:
        state_D, ints = self._frozen
        seed = self.ctx.initial.init_seed
        if self.ctx.send_seed:
            return DeviceInitSeed(init_seed=seed, device_hash=self._hash)
        return DeviceInit(init_seed=seed, device_hash=self._hash, int_buffers=dense_ints(ints), state=Dense.of(state_D))

    def converse(self, round_idx: int, client_id: int) -> Conversation:
        if self._replayed:
            yield self._starts[False]
            return self._replay(round_idx, client_id)
        if client_id not in self._holders:
            yield self._down
        yield self._starts[True]
        labels = yield TurnLabels
        assert isinstance(labels, TurnLabels) and labels.received is not None
        frames = [labels.received.copy()]
        y_N = torch.from_numpy(labels.labels.array.copy()).to(self.ctx.device)
        position = 0
        with self.bench(round_idx, client_id) as bench:
            while position < len(y_N):
                activations = yield ACTIVATIONS
                assert activations is not None and activations.received is not None
                frames.append(activations.received.copy())
                position += self._train(bench, activations, y_N, position, client_id)
            return self._result(bench, len(y_N), Upload.of(frames))

    def _replay(self, round_idx: int, client_id: int) -> EcoFedResult:
        """Train on an upload of the buffer in this client's place."""
        source = self._replayed[client_id]
        upload = self._briefs.pop(client_id, None) or self.buffer.get(source)
        assert self.ctx.schema is not None
        first, *frames = upload.split()
        labels, _ = framing.decode(first, (TurnLabels,), self.ctx.schema)
        assert isinstance(labels, TurnLabels)
        y_N = torch.from_numpy(labels.labels.array).to(self.ctx.device)
        position = 0
        with self.bench(round_idx, client_id) as bench:
            for frame in frames:
                activations, _ = framing.decode(frame, ACTIVATIONS, self.ctx.schema)
                position += self._train(bench, activations, y_N, position, source)
            return self._result(bench, len(y_N), None)

    def _train(self, bench: Bench, activations: Message, y_N: Tensor, position: int, client_id: int) -> int:
        """Take a step on one batch; return how many samples it has."""
        a_BCHW = decode_activations(activations, self.cut.shape, self.ctx.device)
        y_B = self.labels_of_batch(y_N, position, len(a_BCHW), client_id)
        self.count_steps(len(y_B))
        if not self.ctx.dry_run:
            bench.train(a_BCHW, y_B)
        return len(y_B)

    def _result(self, bench: Bench, num_samples: int, upload: Upload | None) -> EcoFedResult:
        self.ctx.stats.append(bench.stats())
        result = bench.result(num_samples)
        return EcoFedResult(
            num_samples=num_samples,
            int_buffers=result.int_buffers,
            state=result.state,
            frames=Dense(upload.frames) if upload is not None else None,
            lengths=Counts(upload.lengths) if upload is not None else None,
        )

    def brief(self, round_idx: int, client_id: int) -> StateDict:
        if not self._replayed:
            return {}
        upload = self.buffer.get(self._replayed[client_id])
        return {"frames": torch.from_numpy(np.array(upload.frames)), "lengths": torch.from_numpy(upload.lengths)}

    def take_brief(self, round_idx: int, client_id: int, brief: StateDict) -> None:
        frames, lengths = brief["frames"], brief["lengths"]
        assert isinstance(frames, Tensor) and isinstance(lengths, Tensor)
        self._briefs[client_id] = Upload(frames.numpy().copy(), lengths.numpy().copy())

    def aggregate(self, round_idx: int, client_id: int, result: Message) -> None:
        assert isinstance(result, EcoFedResult)
        ints, state, num_samples = result.int_buffers, result.state, result.num_samples
        super().aggregate(
            round_idx, client_id, SplitResult(num_samples=num_samples, int_buffers=ints, state=state, auxiliary=None)
        )
        if result.frames is not None:
            assert result.lengths is not None
            self._holders.add(client_id)
            self.buffer.put(client_id, Upload(result.frames.array.copy(), result.lengths.array.copy()))

    def end_round(self, round_idx: int) -> Mapping[str, float]:
        super().end_round(round_idx)
        # A mean of equal numbers is that number; what is frozen is put back all the same, whatever is averaged above.
        state_D, ints = self._frozen
        self.cut.device.put(state_D, self.model.state_S)
        self.model.ints_I[self.cut.device.ints] = ints
        if self._is_update:
            self._next_update = round_idx + self._period
        self._buffered = self.buffer.clients()
        return {
            "is_update": float(self._is_update),
            "period": float(self._period),
            "replay_clients": float(len(self.buffer)),
            "replay_nbytes": float(self.buffer.nbytes),
        }

    def evaluated(self, round_idx: int, loss: float, accuracy: float) -> None:
        self._tests.append((round_idx, accuracy))
        before = [old for at, old in self._tests if at <= round_idx - _RECENT_ROUNDS]
        if before:
            change = abs(accuracy - before[-1]) / max(before[-1], 1e-9)
            self._period = self.eco.adaptive_periods[sum(change <= limit for limit in (0.1, 0.01, 0.001))]

    def close(self) -> None:
        self.buffer.close()

    def shared_state(self) -> StateDict:
        return {
            **super().state_dict(),
            "holders": torch.tensor(sorted(self._holders), dtype=torch.int64),
            "buffered": torch.tensor(self._buffered, dtype=torch.int64),
            "period": self._period,
            "next_update": self._next_update,
        }

    def state_dict(self) -> StateDict:
        state = self.shared_state()
        state["test_rounds"] = torch.tensor([at for at, _ in self._tests], dtype=torch.int64)
        state["test_accuracies"] = torch.tensor([accuracy for _, accuracy in self._tests], dtype=torch.float64)
        state["by_age"] = torch.tensor(self.buffer.by_age(), dtype=torch.int64)
        for client_id in self.buffer.clients():
            upload = self.buffer.get(client_id)
            state[f"frames.{client_id}"] = torch.from_numpy(np.array(upload.frames))
            state[f"lengths.{client_id}"] = torch.from_numpy(upload.lengths)
        return state

    def load_state_dict(self, state: StateDict) -> None:
        super().load_state_dict(state)
        holders, buffered = state["holders"], state["buffered"]
        assert isinstance(holders, Tensor) and isinstance(buffered, Tensor)
        self._holders, self._buffered = set(holders.tolist()), buffered.tolist()
        period, next_update = state["period"], state["next_update"]
        assert isinstance(period, int) and isinstance(next_update, int)
        self._period, self._next_update = period, next_update
        rounds, accuracies = state.get("test_rounds"), state.get("test_accuracies")
        if isinstance(rounds, Tensor) and isinstance(accuracies, Tensor):
            self._tests = list(zip(rounds.tolist(), accuracies.tolist(), strict=True))
        by_age = state.get("by_age")
        if isinstance(by_age, Tensor):
            for client_id in self.buffer.clients():
                self.buffer.drop(client_id)
        for client_id in by_age.tolist() if isinstance(by_age, Tensor) else ():
            frames, lengths = state.get(f"frames.{client_id}"), state.get(f"lengths.{client_id}")
            if isinstance(frames, Tensor) and isinstance(lengths, Tensor):
                self.buffer.put(client_id, Upload(frames.numpy().copy(), lengths.numpy().copy()))


class EcoFedClient(SplitClient):
    """Runs the frozen part on its data when it is asked to; in other rounds it does nothing."""

    def __init__(self, config: EcoFedConfig, ctx: ClientContext) -> None:
        super().__init__(config, ctx)
        self.eco = config

    def declare_state(self) -> dict[str, Tensor]:
        # Which frozen part the client has got: the same numbers on every rank, so its seed stands for them.
        state = {"held_seed": torch.tensor([-1])}
        if self.eco.error_feedback:
            state["owed"] = torch.zeros(self.ctx.max_samples, self.cut.numel)
        return state

    def run(self, round_idx: int, client_id: int, shard: Shard, channel: Channel) -> None:
        down = channel.recv(DeviceInit, DeviceInitSeed, RoundStart)
        if isinstance(down, (DeviceInit, DeviceInitSeed)):
            self.client_state["held_seed"].fill_(down.init_seed)
            state_D, ints = self._held()
            found = device_hash(state_D, ints)
            came = device_hash(down.state.tensor(), _ints(down.int_buffers)) if isinstance(down, DeviceInit) else found
            if not found == came == down.device_hash:
                raise ProtocolError(
                    f"the device's part has hash {found:08x} on this rank, {came:08x} as it came, "
                    f"{down.device_hash:08x} on the server: this rank has another CPU, other versions or another file "
                    "of weights"
                )
            down = channel.recv(RoundStart)
        assert isinstance(down, RoundStart)
        if not down.update:
            return
        self.device.load(*self._held())
        self.device.module.eval()  # frozen: running statistics too
        batches = self.batches(round_idx, client_id, shard)
        channel.send(labels_of(batches.labels(), self.num_classes))
        for (x_BCHW, _), positions_B in zip(batches, batches.positions(), strict=True):
            with torch.no_grad():
                a_BCHW = self.device.module(x_BCHW)
            self.count_passes(forward=len(x_BCHW))
            channel.send(self._message(a_BCHW, positions_B))
            self.ctx.progress()

    def _held(self) -> tuple[Tensor, Tensor]:
        """Return the frozen part that the client has got, its numbers and its integers."""
        seed = int(self.client_state["held_seed"])
        if seed < 0:
            raise ProtocolError("the server takes this client to hold the device's part, which it was never sent")
        initial, part = self.ctx.initial_model(seed), self.device.part
        return part.take(initial.state_S), initial.ints_I[part.ints]

    def _message(self, a_BCHW: Tensor, positions_B: Tensor) -> Message:
        if not self.eco.error_feedback:
            return encode_activations(a_BCHW, self.config)
        owed = self.client_state["owed"]
        wanted = a_BCHW + owed[positions_B].view(a_BCHW.shape).to(a_BCHW.device)
        if bool(a_BCHW.amin() >= 0):
            # Behind a ReLU: signed levels would be twice as coarse for the sake of debts that are no activations.
            wanted = wanted.clamp_(min=0)
        sent = encode_activations(wanted, self.config)
        lost = wanted - decode_activations(sent, tuple(a_BCHW.shape[1:]), a_BCHW.device)
        owed[positions_B] = lost.reshape(len(lost), -1).cpu()
        return sent


def _ints(value: Dense | None) -> Tensor:
    return value.tensor() if value is not None else torch.zeros(0, dtype=torch.int64)


def device_hash(state_D: Tensor, ints: Tensor) -> int:
    """Return 31 bits of a hash of the device's part."""
    digest = xxhash.xxh3_64(state_D.contiguous().cpu().numpy().data)
    digest.update(ints.contiguous().cpu().numpy().data)
    return digest.intdigest() & 0x7FFFFFFF


def ecofed_sizes(config: AlgorithmConfig, spec: ModelSpec, run: RunConfig) -> Mapping[str, int]:
    """Return the sizes that EcoFed's messages name."""
    return {**split_sizes(config, spec, run), "frames": _MOST_FRAMES_NBYTES, "num_frames": _MOST_FRAMES}


def message_classes(config: AlgorithmConfig) -> tuple[type[Message], ...]:
    """Return what EcoFed sends."""
    assert isinstance(config, EcoFedConfig)
    return DeviceInit, DeviceInitSeed, RoundStart, TurnLabels, message_types(config)


def check(config: AlgorithmConfig, initial: InitialModel, run: RunConfig) -> list[str]:
    """Return warnings about settings; raises ConfigError for those that cannot be."""
    assert isinstance(config, EcoFedConfig)
    warnings = split_warnings(config)
    if config.period == "adaptive" and not run.evaluate.every:
        raise ConfigError("algorithm.period=adaptive goes by tests: evaluate.every must be 1 or more, got 0")
    if config.replay_dir is not None and not config.replay_dir.is_dir():
        raise ConfigError(f"algorithm.replay_dir must be a folder, got {config.replay_dir}")
    if config.error_feedback and config.bits is None:
        warnings.append("algorithm.error_feedback does nothing with algorithm.bits=null")
    model = run.model.model_dump()
    taken = model.get("pretrained_units", 2)
    if model.get("pretrained") is not None and taken < config.point:
        warnings.append(
            f"algorithm.point={config.point} freezes units that model.pretrained_units={taken} leaves as drawn"
        )
    return warnings


ALGORITHM = Algorithm(
    "ecofed",
    EcoFedConfig,
    EcoFedServer,
    EcoFedClient,
    model_sizes=ecofed_sizes,
    messages=message_classes,
    check=check,
    rounds_alike=False,
)
