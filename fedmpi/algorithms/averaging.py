"""Messages that carry a whole model, and the weighted mean: what FedAvg and its kin have in common."""

from __future__ import annotations

import torch
from torch import Tensor

from fedmpi.algorithms.base import ClientContext, GlobalModel
from fedmpi.errors import ProtocolError
from fedmpi.flat import FlatModel, Layout
from fedmpi.models.initial import InitialModel
from fedmpi.wire.message import Message, Schema, dense, message
from fedmpi.wire.values import Dense


@message("seed", "down")
class SeedDown(Message):
    """The initial model, as the seed to build it from and a hash to check it by."""

    init_seed: int
    state_hash: int

    def num_params(self, schema: Schema) -> int:
        return schema.size("state") + schema.size("int_buffers")

    def num_kept(self, schema: Schema) -> int:
        return 0


@message("model", "down")
class ModelDown(Message):
    """The global model."""

    int_buffers: Dense | None = dense("int_buffers", dtype="int64")
    state: Dense = dense("state")


@message("model", "up")
class ModelUp(Message):
    """A client's trained model, and how many samples it was trained on."""

    num_samples: int
    int_buffers: Dense | None = dense("int_buffers", dtype="int64")
    state: Dense = dense("state")


def initial_downlink(initial: InitialModel) -> SeedDown:
    """Return the message that stands for the initial model."""
    return SeedDown(init_seed=initial.init_seed, state_hash=initial.state_hash)


def load_downlink(ctx: ClientContext, down: SeedDown | ModelDown) -> None:
    """Load the model that a downlink carries or stands for.

    Raises
    ------
    ProtocolError
        If the model built from a seed is not the server's.
    """
    if isinstance(down, ModelDown):
        ctx.model.load(down.state.tensor(), down.int_buffers.tensor() if down.int_buffers else None)
        return
    initial = ctx.initial_model(down.init_seed)
    if initial.state_hash != down.state_hash:
        raise ProtocolError(
            f"the model built from seed {down.init_seed} has hash {initial.state_hash:08x}, the server's has "
            f"{down.state_hash:08x}: this rank has another CPU or other versions; server.initial_model=full sends it"
        )
    ctx.model.load(initial.state_S, initial.ints_I)


def model_uplink(model: FlatModel, num_samples: int) -> ModelUp:
    """Return the message that carries the model's numbers."""
    return ModelUp(num_samples=num_samples, state=Dense.of(model.state_S), int_buffers=dense_ints(model.ints_I))


def dense_ints(ints_I: Tensor) -> Dense | None:
    """Return integer buffers as a value, None where there are none."""
    return Dense.of(ints_I) if ints_I.numel() else None


class WeightedMean:
    """Sum of models weighted by sample counts, divided once.

    Integer weights and one division leave nothing in the sum that depends on more than the order of adding, which
    the engine fixes. The sum is kept in float64.
    """

    def __init__(self, layout: Layout) -> None:
        self._sum_S = torch.zeros(layout.num_state, dtype=torch.float64)
        self._ints_I: Tensor | None = None
        self.total_samples = 0

    def reset(self) -> None:
        """Forget all that was added."""
        self._sum_S.zero_()
        self._ints_I = None
        self.total_samples = 0

    def add(self, up: Message) -> None:
        """Add one model; integer buffers are those of the first added, which has the lowest client_id.

        Raises
        ------
        ProtocolError
            If the client says that it has no samples.
        """
        assert isinstance(up, ModelUp)
        self._count(up.num_samples, up.int_buffers)
        self._sum_S.add_(up.state.tensor(), alpha=up.num_samples)

    def _count(self, num_samples: int, int_buffers: Dense | None) -> None:
        """Take in what every kind of uplink has."""
        if num_samples < 1:
            raise ProtocolError(f"a client's model must stand for at least 1 sample, got {num_samples}")
        self.total_samples += num_samples
        if self._ints_I is None and int_buffers is not None:
            self._ints_I = int_buffers.tensor().clone()

    def mean_into(self, model: GlobalModel) -> None:
        """Write the mean over `model`; where nothing was added, leave it as it is."""
        if not self.total_samples:
            return
        torch.div(self._sum_S, self.total_samples, out=self._sum_S)
        model.state_S.copy_(self._sum_S)
        if self._ints_I is not None:
            model.ints_I.copy_(self._ints_I)
