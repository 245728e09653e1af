"""Evaluation in fixed batches, so that the result does not depend on who computes which."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fedmpi.data.shard import DeviceData
from fedmpi.flat import FlatModel


def evaluate_batch(model: FlatModel, data: DeviceData, start: int, stop: int) -> tuple[int, float]:
    """Test a model on images `start` to `stop`.

    Returns
    -------
    num_correct : int
    loss_sum : float
        Sum of the cross entropy over the images.
    """
    model.module.eval()
    with torch.no_grad():
        x_BCHW, y_B = data.slice(start, stop)
        logits_BK = model.module(x_BCHW)
        loss = F.cross_entropy(logits_BK, y_B, reduction="sum")
        return int((logits_BK.argmax(1) == y_B).sum()), float(loss)
