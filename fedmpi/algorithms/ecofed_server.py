"""The server's half of EcoFed; see `ecofed`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedmpi.algorithms.averaging import dense_ints
from fedmpi.algorithms.base import (
    Conversation,
    ServerContext,
    StateDict,
)
from fedmpi.algorithms.ecofed_messages import (
    DeviceInit,
    DeviceInitSeed,
    EcoFedConfig,
    EcoFedResult,
    RoundStart,
    device_hash,
)
from fedmpi.algorithms.replay import ReplayBuffer, Upload
from fedmpi.algorithms.split_messages import (
    ACTIVATIONS,
    SplitResult,
    TurnLabels,
    decode_activations,
)
from fedmpi.algorithms.split_server import Bench, SplitServer
from fedmpi.rng import ANY, stream
from fedmpi.wire import frame as framing
from fedmpi.wire.message import Message
from fedmpi.wire.values import Counts, Dense

_RECENT_ROUNDS = 40
"""How far back the accuracy is compared to (the authors' code)."""


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
