"""SGD and Adam on the flat vectors: a few passes over kept memory a step, with torch's formulas."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from fedmpi.config import TrainConfig
from fedmpi.flat import FlatVectors

# Floats of a cache line. The fused kernel rounds what is left over of whole vectors otherwise than the operations do.
_LINE = 16
# Of a comparison of bits: where two formulas round differently, some hundreds of so many numbers show it.
_NUM_COMPARED, _STEPS_COMPARED = 4096, 3


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
    takes_fused = momentum_P is not None and not cfg.nesterov
    if takes_fused and fused_keeps_bits(model.device.type, cfg.lr, cfg.momentum, cfg.weight_decay):
        assert momentum_P is not None
        return lambda: fused_sgd_step(params_P, grads_P, momentum_P, cfg)
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
    _clip(grads_P, cfg)
    _sgd(params_P, grads_P, momentum_P, cfg.lr, cfg.momentum, cfg.weight_decay, cfg.nesterov)


def fused_sgd_step(params_P: Tensor, grads_P: Tensor, momentum_P: Tensor, cfg: TrainConfig) -> None:
    """Take the step of `sgd_step` in one pass over memory instead of four; the same bits where `fused_keeps_bits`."""
    _clip(grads_P, cfg)
    end = params_P.numel() // _LINE * _LINE
    _fused_sgd(params_P[:end], grads_P[:end], momentum_P[:end], cfg.lr, cfg.momentum, cfg.weight_decay)
    if end < params_P.numel():
        _sgd(params_P[end:], grads_P[end:], momentum_P[end:], cfg.lr, cfg.momentum, cfg.weight_decay)


@lru_cache(maxsize=64)
def fused_keeps_bits(device_type: str, lr: float, momentum: float, weight_decay: float) -> bool:
    """Return whether torch has the fused kernel, and it rounds as the four operations do on this processor.

    What the compiler made one rounding of two in either differs between processors and builds of torch, so it is
    tried, once a process. Only CPUs are: elsewhere the four operations stay.
    """
    if device_type != "cpu" or not hasattr(torch, "_fused_sgd_"):
        return False
    random = torch.Generator().manual_seed(0)
    ours, fused = torch.zeros(2, 2, _NUM_COMPARED)  # parameters and momentum of each
    ours[0] = torch.randn(_NUM_COMPARED, generator=random)
    fused[0] = ours[0]
    for _ in range(_STEPS_COMPARED):
        grads = torch.randn(_NUM_COMPARED, generator=random)
        try:
            _fused_sgd(fused[0], grads, fused[1], lr, momentum, weight_decay)
        except (RuntimeError, TypeError):  # private, so another torch may have another one
            return False
        _sgd(ours[0], grads, ours[1], lr, momentum, weight_decay)
    return torch.equal(ours.view(torch.int32), fused.view(torch.int32))


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
    _clip(grads_P, cfg)
    if cfg.weight_decay:
        grads_P.add_(params_P, alpha=cfg.weight_decay)
    first_P.lerp_(grads_P, 1.0 - cfg.momentum)
    second_P.mul_(cfg.adam_beta2).addcmul_(grads_P, grads_P, value=1.0 - cfg.adam_beta2)
    # lr m/c1 / (sqrt(v)/c2 + eps) with c2 taken out of the denominator: one pass less. The gradient's memory holds it.
    c1 = 1.0 - cfg.momentum**num_steps
    c2 = math.sqrt(1.0 - cfg.adam_beta2**num_steps)
    denominator_P = torch.sqrt(second_P, out=grads_P).add_(cfg.adam_eps * c2)
    params_P.addcdiv_(first_P, denominator_P, value=-cfg.lr * c2 / c1)


def _clip(grads_P: Tensor, cfg: TrainConfig) -> None:
    if cfg.clip_norm is not None:
        norm = torch.linalg.vector_norm(grads_P)
        grads_P.mul_(torch.clamp(cfg.clip_norm / (norm + 1e-6), max=1.0))


def _sgd(
    params: Tensor,
    grads: Tensor,
    momentum_buffer: Tensor | None,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool = False,
) -> None:
    if weight_decay:
        grads.add_(params, alpha=weight_decay)
    if momentum_buffer is not None:
        momentum_buffer.mul_(momentum).add_(grads)
        grads = grads.add_(momentum_buffer, alpha=momentum) if nesterov else momentum_buffer
    params.add_(grads, alpha=-lr)


def _fused_sgd(
    params: Tensor, grads: Tensor, momentum_buffer: Tensor, lr: float, momentum: float, weight_decay: float
) -> None:
    # A first step would copy the gradient to the momentum, where it is added to the zeros here: -0 becomes 0.
    torch._fused_sgd_(
        [params], [grads], [momentum_buffer], lr=lr, momentum=momentum, weight_decay=weight_decay,
        dampening=0.0, nesterov=False, maximize=False, is_first_step=False,
    )  # fmt: skip
