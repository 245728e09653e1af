"""The one training loop, written on the flat vectors, with hooks where algorithms differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedmpi.config import TrainConfig
from fedmpi.data.shard import Shard
from fedmpi.flat import FlatModel
from fedmpi.train.cuda_graph import Step, step_by_graph
from fedmpi.train.direct import make_direct_step
from fedmpi.train.optimizer import make_step

PROGRESS_S = 1e-3
"""Least time between two calls of ``progress``."""


@dataclass(frozen=True)
class LocalStats:
    """What one client's training was.

    Parameters
    ----------
    num_steps : int
    num_samples : int
        Labels seen, counted once an epoch: one an image, one a character of a text.
    loss : float
        Mean of the data loss over them; without `extra_loss`.
    """

    num_steps: int
    num_samples: int
    loss: float


def train_local(
    model: FlatModel,
    shard: Shard,
    cfg: TrainConfig,
    *,
    rng: np.random.Generator,
    fresh: bool = True,
    after_forward: Callable[[Tensor, Tensor], None] | None = None,
    extra_loss: Callable[[Tensor], Tensor] | None = None,
    after_backward: Callable[[FlatModel], None] | None = None,
    after_step: Callable[[FlatModel], None] | None = None,
    after_epoch: Callable[[int, Tensor, Tensor], None] | None = None,
    progress: Callable[[], None] | None = None,
) -> LocalStats:
    """Train a model on one client's data with ``train.optimizer``.

    Parameters
    ----------
    model : FlatModel
        Trained in place.
    shard : Shard
    cfg : TrainConfig
    rng : numpy.random.Generator
        Decides the batches.
    fresh : bool
        The optimizer's state starts at zero. Only SGD can go on with what the model's last training left.
    after_forward : callable, optional
        ``f(logits, y)``, called before each step.
    extra_loss : callable, optional
        Maps the flat parameters (num_params,) to a scalar that is added to the loss.
    after_backward, after_step : callable, optional
        Called with the model when its gradients are complete, and after each step, which uses them up.
    after_epoch : callable, optional
        ``f(epoch_idx, x, y)``, called after an epoch's last step with the batch of that step. It may change the model
        and leave what it likes in the gradients.
    progress : callable, optional
        Called between steps, at most every millisecond, so that the rank can serve its messages.

    Returns
    -------
    LocalStats
    """
    module, grads_P = model.module, model.grads_P
    module.train()
    seed_torch(model.device, int(rng.integers(2**63)))  # dropout and the like
    update = make_step(model, cfg, fresh=fresh)
    # Where nobody looks at the gradients between backward and step, the two may be one.
    is_plain = extra_loss is None and after_backward is None
    direct_step = make_direct_step(model, cfg) if fresh and is_plain else None

    def forward(x: Tensor, y: Tensor) -> Tensor:
        logits = module(x)
        if after_forward is not None:
            after_forward(logits.detach(), y)
        return F.cross_entropy(logits, y)

    def backward(x: Tensor, y: Tensor) -> Tensor:
        loss = forward(x, y)
        grads_P.zero_()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def backward_and_update(x: Tensor, y: Tensor) -> Tensor:
        if direct_step is None:
            loss = backward(x, y)
            update()
        else:
            direct_step(loss := forward(x, y))
        return loss.detach()

    recorded: Step = backward_and_update if is_plain else backward
    if after_forward is None:
        recorded = step_by_graph(model, cfg, recorded, updates=is_plain)

    def take_step(x: Tensor, y: Tensor) -> Tensor:
        loss = recorded(x, y)
        if extra_loss is not None:
            extra_loss(model.leaf_P).backward()  # type: ignore[no-untyped-call]
        if after_backward is not None:
            after_backward(model)
        if not is_plain:
            update()
        if after_step is not None:
            after_step(model)
        return loss

    loss_sum = torch.zeros((), dtype=torch.float64, device=model.device)
    num_steps = num_samples = 0
    steps_per_epoch = -(-shard.num_samples // cfg.batch_size) if after_epoch is not None else 0
    due = perf_counter() + PROGRESS_S
    for x, y in shard.batches(cfg.batch_size, cfg.local_epochs, rng):
        loss_sum.add_(take_step(x, y), alpha=y.numel())
        num_steps += 1
        num_samples += y.numel()
        if after_epoch is not None and num_steps % steps_per_epoch == 0:
            after_epoch(num_steps // steps_per_epoch - 1, x, y)
        if progress is not None and perf_counter() > due:
            progress()
            due = perf_counter() + PROGRESS_S
    return LocalStats(num_steps, num_samples, loss_sum.item() / max(1, num_samples))


def seed_torch(device: torch.device, seed: int) -> None:
    """Seed torch's own generators, of the CPU and of `device`."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def random_state(device: torch.device) -> tuple[Tensor, ...]:
    """Return the states of torch's own generators, of the CPU and of `device`."""
    return (torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else []))


def set_random_state(device: torch.device, state: tuple[Tensor, ...]) -> None:
    """Take over a `random_state`."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
