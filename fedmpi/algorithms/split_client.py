"""The client's side of split learning: it runs, and where it is told a gradient trains, the device's part."""

from __future__ import annotations

from torch import Tensor

from fedmpi.algorithms.averaging import dense_ints
from fedmpi.algorithms.base import ClientContext, ClientHalf
from fedmpi.algorithms.split_messages import (
    DeviceDown,
    DeviceSeedDown,
    DeviceUp,
    SplitConfig,
    cut_of,
)
from fedmpi.data.shard import Batches, Shard
from fedmpi.errors import ProtocolError
from fedmpi.models.split import split
from fedmpi.parts import FlatPart
from fedmpi.train.local import seed_torch
from fedmpi.wire.values import Dense


class SplitClient(ClientHalf):
    """Holds the device's part of the network in the rank's model, whose other part it leaves alone.

    Parameters
    ----------
    config : SplitConfig
    ctx : ClientContext
    """

    def __init__(self, config: SplitConfig, ctx: ClientContext) -> None:
        super().__init__(config, ctx)
        assert ctx.spec is not None
        self.config = config
        self.num_classes = ctx.spec.num_classes
        self.cut = cut_of(ctx.spec, config.point)
        self._ops = self.cut.operations().device if ctx.counts_ops else None
        module, _ = split(ctx.model.module, config.point)
        self.device = FlatPart(ctx.model, module)

    def load_device(self, down: DeviceSeedDown | DeviceDown) -> None:
        """Load the device's part that a message carries or stands for.

        Raises
        ------
        ProtocolError
            If the network built from a seed is not the server's.
        """
        if isinstance(down, DeviceDown):
            ints = down.int_buffers.tensor() if down.int_buffers is not None else None
            self.device.load(down.state.tensor(), ints)
            return
        initial = self.ctx.initial_model(down.init_seed)
        if initial.state_hash != down.state_hash:
            raise ProtocolError(
                f"the model built from seed {down.init_seed} has hash {initial.state_hash:08x}, the server's has "
                f"{down.state_hash:08x}: this rank has another CPU or other versions; server.initial_model=full sends "
                "it"
            )
        part = self.device.part
        self.device.load(part.take(initial.state_S), initial.ints_I[part.ints])

    def count_passes(self, *, forward: int = 0, backward: int = 0) -> None:
        """Count so many samples' passes through the device's part, for the round's virtual time."""
        if self._ops is not None:
            self.ctx.count_ops(forward * self._ops.forward + backward * self._ops.backward)

    def batches(self, round_idx: int, client_id: int, shard: Shard) -> Batches:
        """Return the turn's batches."""
        cfg, rng = self.ctx.train_config, self.rng(round_idx, client_id, "batches")
        seed_torch(self.device.device, int(rng.integers(2**63)))  # as `train_local` does: the batches are FedAvg's
        return shard.plan(cfg.batch_size, cfg.local_epochs, rng)

    def uplink(self, auxiliary_A: Tensor | None = None) -> DeviceUp:
        """Return the message that carries the device's part."""
        auxiliary = Dense.of(auxiliary_A) if auxiliary_A is not None else None
        return DeviceUp(
            int_buffers=dense_ints(self.device.ints_I), state=Dense.of(self.device.state_S), auxiliary=auxiliary
        )
