"""Evaluation in fixed batches, so that the result does not depend on who computes which."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fedmpi.data.shard import DeviceData
from fedmpi.flat import FlatModel


def evaluate_batch(model: FlatModel, data: DeviceData, start: int, stop: int) -> tuple[int, float]:
    """Test a model on samples `start` to `stop`: images, or sequences of characters.

    Returns
    -------
    num_correct : int
        Labels that are right: images, or characters of a text, of which a sample has many.
    loss_sum : float
        Sum of the cross entropy over the labels.
    """
    model.module.eval()
    with torch.no_grad():
        # Images: (B, C, H, W), labels (B,), logits (B, K). Text: (B, T), (B, T), (B, K, T).
        x, y = data.slice(start, stop)
        logits = model.module(x)
        loss = F.cross_entropy(logits, y, reduction="sum")
        return int((logits.argmax(1) == y).sum()), float(loss)
