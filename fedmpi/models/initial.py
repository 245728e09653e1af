"""The initial model as a function of a seed, so that a seed can be sent in its place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor

from fedmpi.flat import FlatModel, Layout
from fedmpi.models.registry import ImageShape, ModelConfig, build_model


@dataclass(frozen=True)
class InitialModel:
    """A model before training.

    Parameters
    ----------
    init_seed : int
        What it was built from.
    layout : Layout
    state_S : Tensor, shape (num_state,), float32
    ints_I : Tensor, shape (num_int_buffers,), int64
    state_hash : int
        31 bits of a hash of both vectors: a client that builds the model from the seed checks it.
    """

    init_seed: int
    layout: Layout
    state_S: Tensor
    ints_I: Tensor
    state_hash: int


def initial_model(config: ModelConfig, shape: ImageShape, num_classes: int, init_seed: int) -> InitialModel:
    """Build the model of a seed on the CPU and return its vectors."""
    flat = FlatModel(build_model(config, shape, num_classes, init_seed), torch.device("cpu"))
    digest = xxhash.xxh3_64(flat.state_S.numpy().data)
    digest.update(flat.ints_I.numpy().data)
    return InitialModel(init_seed, flat.layout, flat.state_S, flat.ints_I, digest.intdigest() & 0x7FFFFFFF)
