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

import os

import torch
from torch import Tensor

from fedmpi.algorithms.base import (
    Algorithm,
    AlgorithmConfig,
    Channel,
    ClientContext,
)
from fedmpi.algorithms.ecofed_messages import (
    DeviceInit,
    DeviceInitSeed,
    EcoFedConfig,
    RoundStart,
    device_hash,
    ecofed_sizes,
    message_classes,
)
from fedmpi.algorithms.ecofed_server import EcoFedServer
from fedmpi.algorithms.replay import check_folder
from fedmpi.algorithms.split_client import SplitClient
from fedmpi.algorithms.split_messages import (
    QuantizedActivations,
    decode_activations,
    encode_activations,
    labels_of,
    split_warnings,
)
from fedmpi.config import RunConfig
from fedmpi.data.shard import Shard
from fedmpi.errors import ConfigError, ProtocolError
from fedmpi.models.initial import InitialModel
from fedmpi.wire.message import Message
from fedmpi.wire.values import Dense


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
        if self.eco.quantizer == "released" and isinstance(sent, QuantizedActivations):
            # What is cut off is cut off each time: as a debt it would grow without end.
            step = abs(float(sent.symbols.scales[0]))
            lost.clamp_(-step, step)
        owed[positions_B] = lost.reshape(len(lost), -1).cpu()
        return sent


def _ints(value: Dense | None) -> Tensor:
    return value.tensor() if value is not None else torch.zeros(0, dtype=torch.int64)


def check(config: AlgorithmConfig, initial: InitialModel, run: RunConfig) -> list[str]:
    """Return warnings about settings; raises ConfigError for those that cannot be."""
    assert isinstance(config, EcoFedConfig)
    warnings = split_warnings(config)
    if config.period == "adaptive" and not run.evaluate.every:
        raise ConfigError("algorithm.period=adaptive goes by tests: evaluate.every must be 1 or more, got 0")
    if config.error_feedback and config.bits is None:
        warnings.append("algorithm.error_feedback does nothing with algorithm.bits=null")
    elif config.error_feedback and run.data.augment != "none":
        warnings.append(
            f"with data.augment={run.data.augment} algorithm.error_feedback adds to a sample's activations what "
            "rounding took from another crop or flip of it"
        )
    if config.period != "adaptive" and config.adaptive_periods != EcoFedConfig.model_fields["adaptive_periods"].default:
        warnings.append("algorithm.adaptive_periods does nothing without algorithm.period=adaptive")
    model = run.model.model_dump()
    taken = model.get("pretrained_units", 2)
    if model.get("pretrained") is None and model.get("weights") is None:
        warnings.append("without model.pretrained the device's part is frozen as drawn from the seed")
    elif model.get("pretrained") is not None and taken < config.point:
        warnings.append(
            f"algorithm.point={config.point} freezes units that model.pretrained_units={taken} leaves as drawn"
        )
    return warnings


def check_server(config: AlgorithmConfig) -> None:
    """Raise ConfigError or OutputError if the replay buffer's files could not be written."""
    assert isinstance(config, EcoFedConfig)
    folder = config.replay_dir
    if folder is None:
        return
    if os.path.isfile(folder):  # unlike Path's, never raises
        raise ConfigError(f"algorithm.replay_dir must be a folder, or a path to make one at; {folder} is a file")
    check_folder(folder)


def cycle(config: AlgorithmConfig) -> int | None:
    """Return how many rounds there are from one update to the next, if that is the same throughout."""
    assert isinstance(config, EcoFedConfig)
    return config.period if isinstance(config.period, int) else None


ALGORITHM = Algorithm(
    "ecofed",
    EcoFedConfig,
    EcoFedServer,
    EcoFedClient,
    model_sizes=ecofed_sizes,
    messages=message_classes,
    check=check,
    cycle=cycle,
    check_server=check_server,
)
