"""The error memory: what a client has not sent yet is added to what it wants to send next.

Sources: Seide et al. 2014 (1-bit SGD); Stich, Cordonnier and Jaggi 2018, "Sparsified SGD with Memory"; Karimireddy et
al. 2019, "Error Feedback Fixes SignSGD and other Gradient Compression Schemes"; for the clients of federated learning
Sattler et al. 2019, "Robust and Communication-Efficient Federated Learning from Non-i.i.d. Data".
"""

from __future__ import annotations

import torch
from torch import Tensor


class ErrorMemory:
    r"""What one client still owes: :math:`e \leftarrow (\Delta + e) - s`, with the update Δ and s as it is sent.

    In a round of a client::

        memory = ErrorMemory(memory_P)
        wanted_P = memory.add(update_P)                # update + memory, one addition in float32
        indices_K = topk_indices(wanted_P, k)
        sent_K = cast(wanted_P[indices_K], dtype)      # just what the server decodes
        memory.keep(wanted_P, indices_K, sent_K)       # memory = wanted - sent

    Nothing is lost between these lines: **sent + kept = wanted**, as real numbers and in float32.

    * Not sent: kept has the bits of wanted.
    * Sent in float32: kept is 0.
    * Sent as bfloat16 or float16, rounded to nearest: wanted - sent is exact in float32. Both are multiples of wanted's
      last bit, so their difference is one too; and it is no larger than wanted, since zero was not nearer than sent.
      This holds for what underflows as well: sent is 0 or a subnormal number, kept all or the rest of wanted.
    * Clamped to float16's 65504: exact as long as abs(wanted) < 2^29; beyond, wanted - sent is rounded to float32.
    * Rounded to levels by `quantize`: exact where a level is at most twice wanted and at least half of it (Sterbenz),
      as it is for rounding to nearest within the range of symmetric and unsigned levels, and where the level is 0.
      Otherwise (stochastic rounding, signs alone, clipped numbers) kept is wanted - sent rounded to float32, off by at
      most 2^-24 of kept.

    Where the processor flushes subnormal numbers to zero (``torch.set_flush_denormal``) a kept number below 2^-126 is
    lost.

    Parameters
    ----------
    memory_P : Tensor, shape (P,), float32, contiguous
        The client's state, zero before its first round. It is changed in place and belongs to this object from now on.

    Raises
    ------
    ValueError
        If it is not a contiguous vector of float32.
    """

    def __init__(self, memory_P: Tensor) -> None:
        if memory_P.ndim != 1 or memory_P.dtype != torch.float32 or not memory_P.is_contiguous():
            got = f"{memory_P.dtype} of shape {tuple(memory_P.shape)}"
            raise ValueError(f"an error memory is a contiguous vector of float32, got {got}")
        self.memory_P = memory_P

    @torch.no_grad()
    def add(self, update_P: Tensor) -> Tensor:
        """Return wanted = update + memory, shape (P,), float32.

        It is the memory's own tensor, so that no second large one is needed: from here to `keep` the client owes all
        that it wants to send.
        """
        if update_P.shape != self.memory_P.shape or update_P.dtype != torch.float32:
            expected = f"float32 of shape {tuple(self.memory_P.shape)}"
            raise ValueError(f"expected an update of {expected}, got {update_P.dtype} of {tuple(update_P.shape)}")
        return self.memory_P.add_(update_P)

    @torch.no_grad()
    def keep(self, wanted_P: Tensor, indices_K: Tensor, sent_K: Tensor) -> None:
        """Keep wanted - sent, in place.

        Parameters
        ----------
        wanted_P : Tensor, shape (P,), float32
            What `add` returned, or another vector in its place.
        indices_K : Tensor, shape (K,), int64
            Positions that are sent, each once.
        sent_K : Tensor, shape (K,), float32, float16 or bfloat16
            The numbers that the receiver will have there.
        """
        if indices_K.shape != sent_K.shape or wanted_P.shape != self.memory_P.shape:
            raise ValueError(
                f"expected {tuple(self.memory_P.shape)} wanted numbers and as many sent ones as indices, got "
                f"{tuple(wanted_P.shape)}, {tuple(sent_K.shape)} and {tuple(indices_K.shape)}"
            )
        if wanted_P is not self.memory_P:
            self.memory_P.copy_(wanted_P)
        self.memory_P[indices_K] -= sent_K.float()
