"""SGD's step with large gradients as backward leaves them: not zeroed before, not added to a vector, read once."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fedmpi.config import TrainConfig
from fedmpi.flat import CONV_NDIM, Entry, FlatVectors
from fedmpi.train.optimizer import fused_keeps_bits, fused_sgd_step

# Below so many numbers, handling a tensor by itself costs more than passes over it.
LARGE = 1 << 15
# Added to a zeroed vector, a gradient's -0 becomes 0; taken as it is, it stays. That is seen in no parameter as long as
# momentum is never -0, and it is not: it begins at 0, sums are -0 only of two -0, and above this a product of a number
# that is not zero never underflows to zero.
_LEAST_MOMENTUM = 0.5


def make_direct_step(model: FlatVectors, cfg: TrainConfig) -> Callable[[Tensor], None] | None:
    """Return a function that takes a loss's gradient and one step of SGD, or None where it would not pay or keep bits.

    Its bits are those of `make_step` behind a backward into zeroed gradients. The model's gradients are then as before
    or used up, so nobody may look at them. The momentum is set to zero here, as `make_step` does. The loss may hang on
    other leaves too, as where a part of a network is trained: they get their gradients.
    """
    layout = model.layout
    large = [e for e in layout.entries if e.role == "param" and e.numel >= LARGE]
    if not large or cfg.optimizer != "sgd" or cfg.nesterov or cfg.clip_norm is not None:
        return None
    if cfg.momentum <= _LEAST_MOMENTUM:
        return None
    if not fused_keeps_bits(model.device.type, cfg.lr, cfg.momentum, cfg.weight_decay):
        return None
    model.momentum_P.zero_()
    params = dict(model.module.named_parameters())
    views = [(params[e.name], e.view(model.grads_P), e, _pieces(model, e.offset, e.offset + e.numel)) for e in large]
    starts, ends = [0, *(e.offset + e.numel for e in large)], [*(e.offset for e in large), layout.num_params]
    between = [_pieces(model, start, end) for start, end in zip(starts, ends, strict=True) if start < end]

    def step(loss: Tensor) -> None:
        for _, grads, _ in between:
            grads.zero_()
        for param, _, _, _ in views:
            param.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        for param, view, entry, (weights, unused, momentum) in views:
            grad, param.grad = param.grad, view
            grads = unused.zero_() if grad is None else _stored(entry, grad)
            fused_sgd_step(weights, grads, momentum, cfg)
        for weights, grads, momentum in between:
            fused_sgd_step(weights, grads, momentum, cfg)

    return step


def _pieces(model: FlatVectors, start: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
    return model.params_P[start:end], model.grads_P[start:end], model.momentum_P[start:end]


def _stored(entry: Entry, grad: Tensor) -> Tensor:
    """Return a gradient's numbers in stored order; a view, as backward lays gradients out as their parameters."""
    return (grad.permute(0, 2, 3, 1) if len(entry.shape) == CONV_NDIM else grad).reshape(-1)
