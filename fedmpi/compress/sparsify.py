"""A sparse part of a vector as its message needs it: where, and what is sent there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedmpi.compress.cast import cast
from fedmpi.compress.topk import topk_indices
from fedmpi.wire.known import KnownMask
from fedmpi.wire.values import Sparse


@dataclass(frozen=True, eq=False)
class Sparsified:
    """The numbers of a vector that are sent.

    Parameters
    ----------
    indices_K : Tensor, shape (K,), int64, ascending
    sent_K : Tensor, shape (K,), float32, float16 or bfloat16
        The numbers in the type that they travel in.
    """

    indices_K: Tensor
    sent_K: Tensor

    def value(self, size: int, base: KnownMask | None = None) -> Sparse:
        """Return what a message carries of a vector of `size` numbers; K indices and numbers leave the device."""
        return Sparse.of(size, self.indices_K, self.sent_K, base)


def sparsify(
    vector_P: Tensor,
    k: int | Sequence[int] | np.ndarray,
    offsets: Sequence[int] | np.ndarray | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    on_overflow: Literal["raise", "clamp"] = "raise",
) -> Sparsified:
    """Choose the k numbers of largest magnitude (see `topk_indices`) and cast them (see `cast`).

    Raises
    ------
    NonFiniteError
        If the vector holds NaN or infinity, or, on "raise", a number too large for `dtype`: what is sent is finite.
    """
    indices_K = topk_indices(vector_P, k, offsets)
    return Sparsified(indices_K, cast(vector_P.detach()[indices_K], dtype, on_overflow=on_overflow))
