"""SGD and Adam on the flat vectors: a few passes over kept memory a step, with torch's formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fedmpi.config import TrainConfig
from fedmpi.flat import FlatVectors


def make_step(model: FlatVectors, cfg: TrainConfig, *, fresh: bool = True) -> Callable[[], None]:
    """Return a function that takes one step of ``train.optimizer`` from the model's gradients, which it uses up.

    The optimizer's state lies in vectors that the model keeps, and is set to zero here, unless SGD is to go on from
    what is in them (`fresh` is False), perhaps with another learning rate. A part of a model is stepped alone:
    ``train.clip_norm`` then limits the norm of the part's own gradient.
    """
    assert fresh or cfg.optimizer == "sgd", "Adam's number of steps is not kept"
    params_P, grads_P = model.params_P, model.grads_P
    if cfg.optimizer == "adam":
        first_P, second_P = model.momentum_P.zero_(), model.second_moment_P.zero_()
        num_steps = 0

        def adam() -> None:
            nonlocal num_steps
            num_steps += 1
            adam_step(params_P, grads_P, first_P, second_P, num_steps, cfg)

        return adam
    momentum_P = model.momentum_P if cfg.momentum else None
    if momentum_P is not None and fresh:
        momentum_P.zero_()
    return lambda: sgd_step(params_P, grads_P, momentum_P, cfg)


def forget_at(model: FlatVectors, cfg: TrainConfig, where_P: Tensor) -> None:
    """Zero what the optimizer remembers of some parameters, as if they had just begun.

    Parameters
    ----------
    model : FlatVectors
    cfg : TrainConfig
    where_P : Tensor, shape (num_params,), bool
    """
    if cfg.momentum or cfg.optimizer == "adam":
        model.momentum_P.masked_fill_(where_P, 0.0)
    if cfg.optimizer == "adam":
        model.second_moment_P.masked_fill_(where_P, 0.0)


def sgd_step(params_P: Tensor, grads_P: Tensor, momentum_P: Tensor | None, cfg: TrainConfig) -> None:
    """Take one step in place: clip, weight decay, momentum, update, in the order and with the formulas of torch's SGD.

    `grads_P` is used up. With ``nesterov`` the update is along gradient + momentum * (new momentum vector).
    """
    _clip_and_decay(params_P, grads_P, cfg)
    if momentum_P is not None:
        momentum_P.mul_(cfg.momentum).add_(grads_P)
        grads_P = grads_P.add_(momentum_P, alpha=cfg.momentum) if cfg.nesterov else momentum_P
    params_P.add_(grads_P, alpha=-cfg.lr)


def adam_step(
    params_P: Tensor, grads_P: Tensor, first_P: Tensor, second_P: Tensor, num_steps: int, cfg: TrainConfig
) -> None:
    """Take one step in place: clip, weight decay added to the gradient, Adam with bias correction, as torch's Adam.

    Parameters
    ----------
    params_P, grads_P : Tensor, shape (num_params,), float32
        `grads_P` is used up.
    first_P, second_P : Tensor, shape (num_params,), float32
        Running means of the gradient and of its square; zero before the first step.
    num_steps : int
        Steps with this one, from 1.
    cfg : TrainConfig
    """
    _clip_and_decay(params_P, grads_P, cfg)
    first_P.lerp_(grads_P, 1.0 - cfg.momentum)
    second_P.mul_(cfg.adam_beta2).addcmul_(grads_P, grads_P, value=1.0 - cfg.adam_beta2)
    # lr m/c1 / (sqrt(v)/c2 + eps) with c2 taken out of the denominator: one pass less. The gradient's memory holds it.
    c1 = 1.0 - cfg.momentum**num_steps
    c2 = math.sqrt(1.0 - cfg.adam_beta2**num_steps)
    denominator_P = torch.sqrt(second_P, out=grads_P).add_(cfg.adam_eps * c2)
    params_P.addcdiv_(first_P, denominator_P, value=-cfg.lr * c2 / c1)


def _clip_and_decay(params_P: Tensor, grads_P: Tensor, cfg: TrainConfig) -> None:
    if cfg.clip_norm is not None:
        norm = torch.linalg.vector_norm(grads_P)
        grads_P.mul_(torch.clamp(cfg.clip_norm / (norm + 1e-6), max=1.0))
    if cfg.weight_decay:
        grads_P.add_(params_P, alpha=cfg.weight_decay)
