"""Maximum pooling followed by ReLU; windows of 3x3 pixels at stride 1 have kernels of their own on the CPU.

torch's maximum over channels-last images of few channels takes longer than the convolution before it. The kernels give
the same bits, forward and backward, in a fifth of the time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_SIDE = 3
_MIN_BATCH = 3
"""Smaller batches are left to torch: whether a model fits its data is tried with two samples, by every rank at once and
before rank 0 has compiled the kernels for all."""


class PoolReLU(nn.Module):
    """``relu(max_pool2d(x, size, stride))``.

    Parameters
    ----------
    size, stride : int
        Side of the windows and their distance in pixels.
    """

    def __init__(self, size: int, stride: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(size, stride)
        self._has_kernels = (size, stride) == (_SIDE, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the pooled images; those that the kernels make lie channels last."""
        if (
            self._has_kernels
            and x_BCHW.device.type == "cpu"
            and x_BCHW.dtype == torch.float32
            and x_BCHW.ndim == 4
            and x_BCHW.shape[0] >= _MIN_BATCH
            and min(x_BCHW.shape[2:]) >= _SIDE
        ):
            return pool_relu(x_BCHW)
        return F.relu(self.pool(x_BCHW))


def pool_relu(x_BCHW: Tensor) -> Tensor:
    """Return ``relu(max_pool2d(x, 3, 1))`` with the same bits, and its gradient with the same bits as torch's.

    A window's gradient goes to the first of its equal maxima, row by row; NaN is larger than any number, and of several
    the last is chosen.

    Parameters
    ----------
    x_BCHW : Tensor, float32, on the CPU
        Of any strides; channels-last ones are not copied. H and W are at least 3.

    Returns
    -------
    Tensor, shape (B, C, H - 2, W - 2), float32, channels last
    """
    pooled_BCHW: Tensor = _PoolReLU.apply(x_BCHW)  # type: ignore[no-untyped-call]
    return pooled_BCHW


def warm_up() -> None:
    """Compile, or load from the cache, the kernels."""
    pool_relu(torch.zeros(1, 1, _SIDE, _SIDE, requires_grad=True)).sum().backward()  # type: ignore[no-untyped-call]


class _PoolReLU(Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor) -> Tensor:
        from fedmpi.models import pooling_kernels  # numba: only a run that pools so loads it

        batch, channels, height, width = x_BCHW.shape
        rows = _rows(x_BCHW)
        pooled = rows.new_empty(batch, height - 2, (width - 2) * channels)
        index = torch.empty_like(pooled, dtype=torch.uint8)
        pooling_kernels.pool_relu(rows.numpy(), channels, pooled.numpy(), index.numpy())
        ctx.save_for_backward(index)
        return _images(pooled, channels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> Tensor:
        from fedmpi.models import pooling_kernels

        (index,) = ctx.saved_tensors
        batch, channels, height, width = grad_BCHW.shape
        grad = grad_BCHW.new_empty(batch, height + 2, (width + 2) * channels)
        pooling_kernels.pool_relu_backward(_rows(grad_BCHW).numpy(), index.numpy(), channels, grad.numpy())
        return _images(grad, channels)


def _rows(x_BCHW: Tensor) -> Tensor:
    """Return the numbers of images, channels last, as (batch, height, width * channels)."""
    return x_BCHW.detach().permute(0, 2, 3, 1).contiguous().flatten(2)


def _images(rows: Tensor, channels: int) -> Tensor:
    """Return the images of `_rows`, (batch, channels, height, width)."""
    batch, height, width = rows.shape
    return rows.view(batch, height, width // channels, channels).permute(0, 3, 1, 2)
