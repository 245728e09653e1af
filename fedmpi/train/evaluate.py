"""Evaluation in fixed batches, so that the result does not depend on who computes which."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fedmpi.data.shard import DeviceData
from fedmpi.flat import FlatModel


def evaluate_batch(
    model: FlatModel, data: DeviceData, start: int, stop: int, num_counts: int = 1
) -> tuple[NDArray[np.int64], float]:
    """Test a model on samples `start` to `stop`: images, or sequences of characters.

    Parameters
    ----------
    model : FlatModel
    data : DeviceData
    start, stop : int
    num_counts : int
        The number of classes, to count each apart, or 1, to count all labels together.

    Returns
    -------
    num_correct : numpy.ndarray, shape (num_counts,), int64
        Labels that are right, by true class: images, or characters of a text, of which a sample has many.
    loss_sum : float
        Sum of the cross entropy over the labels.
    """
    model.module.eval()
    with torch.no_grad():
        # Images: (B, C, H, W), labels (B,), logits (B, K). Text: (B, T), (B, T), (B, K, T).
        x, y = data.slice(start, stop)
        logits = model.module(x)
        loss = F.cross_entropy(logits, y, reduction="sum")
        right = logits.argmax(1) == y
        if num_counts == 1:
            return np.array([int(right.sum())]), float(loss)
        # Counted on the host, as not every device's counting is deterministic.
        return np.bincount(y[right].cpu().numpy(), minlength=num_counts), float(loss)
