"""What memory a rank will take, estimated before a run from the parts that are known."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedmpi.comm.placement import Place
from fedmpi.data.shard import Shard, device_data
from fedmpi.engine.schedule import IN_FLIGHT
from fedmpi.engine.setup import Setup
from fedmpi.flat import FlatModel
from fedmpi.models.registry import build_model
from fedmpi.rng import ANY, stream

_FLOAT_NBYTES = 4
_SUM_NBYTES = 8


@dataclass(frozen=True)
class RankMemory:
    """Bytes of one rank, by what they are for.

    Parameters
    ----------
    rank : int
    role : str
    program : int
        Interpreter, libraries and what preparing took, as resident in this process now.
    data : int
        Samples and labels that the rank reads. Ranks of a node share these pages; a GPU holds its own copy.
    model : int
        Parameters, gradients, the optimizer's state, sums.
    activations : int
        What one training step, or one batch of a test, keeps at once.
    messages : int
        Frames that are sent, received, or wait for their turn.
    """

    rank: int
    role: str
    program: int
    data: int
    model: int
    activations: int
    messages: int

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return self.program + self.data + self.model + self.activations + self.messages


def estimate_memory(setup: Setup, places: list[Place], program_nbytes: int, up_nbytes: int) -> list[RankMemory]:
    """Estimate the memory of every rank; the algorithm's own state beside one model is not known and not in it.

    Parameters
    ----------
    setup : Setup
    places : list of Place
    program_nbytes : int
        Resident memory of a process that has prepared a run and not begun it.
    up_nbytes : int
        Size of the largest message up.
    """
    config, layout, dataset = setup.config, setup.initial.layout, setup.dataset
    data = sum(
        array.nbytes for array in (dataset.train_inputs, dataset.train_labels, dataset.test_inputs, dataset.test_labels)
    )
    activations = activation_nbytes(setup)
    state, params = layout.num_state * _FLOAT_NBYTES, layout.num_params * _FLOAT_NBYTES
    num_slots = 2 if config.train.optimizer == "adam" else bool(config.train.momentum)
    # A model, the initial one that a seed stands for, gradients, optimizer; on the server a model and its sum instead.
    worker_model = 2 * state + params * (1 + num_slots)
    server_model = 2 * state + layout.num_state * _SUM_NBYTES
    held = min(config.server.hold_nbytes, config.participation.clients_per_round * up_nbytes)
    found = []
    for place in places:
        serves, works = place.role in ("server", "both"), place.role in ("worker", "both")
        found.append(
            RankMemory(
                place.rank,
                place.role,
                program_nbytes,
                works * data,
                serves * server_model + works * worker_model,
                works * activations,
                serves * (held + state) + works * (1 + IN_FLIGHT) * up_nbytes,
            )
        )
    return found


def activation_nbytes(setup: Setup) -> int:
    """Return the bytes that one training step keeps for its backward pass, or one test batch for its largest layer.

    The model is built and run forward once; nothing is trained.
    """
    config, dataset = setup.config, setup.dataset
    module = build_model(setup.model_config, dataset.shape, dataset.num_classes, setup.initial.init_seed)
    model = FlatModel(module, torch.device("cpu"))
    own = {model.state_S.untyped_storage().data_ptr(), model.ints_I.untyped_storage().data_ptr()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    data = device_data(dataset, "train", torch.device("cpu"))
    largest = int(setup.partition.sizes.argmax())
    shard = Shard(data, setup.partition.client(largest))
    rng_state = torch.get_rng_state()
    x, y = next(shard.batches(config.train.batch_size, 1, stream(config.seed, ANY, ANY, "memory estimate")))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(module.train()(x), y)
    del loss
    torch.set_rng_state(rng_state)
    if not config.evaluate.every:
        return sum(kept.values())
    per_sample = _largest_layer_nbytes(module, x[:1])
    batch = min(config.evaluate.batch_size, len(dataset.test_labels))
    return max(sum(kept.values()), 2 * per_sample * batch)


def _largest_layer_nbytes(module: nn.Module, x: Tensor) -> int:
    largest = 0

    def see(_: nn.Module, __: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() * output.element_size())

    handles = [part.register_forward_hook(see) for part in module.modules()]
    with torch.no_grad():
        module.eval()(x)
    for handle in handles:
        handle.remove()
    return largest


def resident_nbytes() -> int:
    """Return the memory that this process has resident now; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0
