"""Evaluation: counts and summed losses of fixed batches, without a trace on the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedmpi.data.datasets import Dataset
from fedmpi.data.shard import DeviceImages
from fedmpi.flat import FlatModel
from fedmpi.train.evaluate import evaluate_batch


def device_images(num: int = 50) -> DeviceImages:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (num, 8, 8, 1), np.uint8), rng.integers(0, 4, num)
    return DeviceImages(
        images, labels, Dataset("x", images, labels, images, labels, 4, (0.5,), (0.3,)), torch.device("cpu")
    )


def net() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 4))
    module(torch.randn(20, 1, 8, 8))  # running statistics that are not those of the test batch
    return module


def by_hand(module: nn.Module, data: DeviceImages, start: int, stop: int) -> tuple[list[int], float]:
    """Count by class and sum image by image, with the softmax written out in float64."""
    num_correct, loss_sum = [0] * 4, 0.0
    module.eval()
    for idx in range(start, stop):
        image = (data.images_NHWC[idx].double() / 255 - 0.5) / 0.3
        logits = module.double()(image.permute(2, 0, 1)[None])[0].detach().numpy()
        label = int(data.labels_N[idx])
        num_correct[label] += int(logits.argmax()) == label
        loss_sum += np.log(np.exp(logits).sum()) - logits[label]
    return num_correct, loss_sum


@pytest.mark.parametrize(("start", "stop"), [(0, 50), (13, 37), (49, 50)])
def test_against_a_loop_over_the_images(start: int, stop: int) -> None:
    data = device_images()
    want_correct, want_loss = by_hand(net(), data, start, stop)
    num_correct, loss_sum = evaluate_batch(FlatModel(net()), data, start, stop, num_counts=4)
    assert type(loss_sum) is float
    assert (num_correct.dtype, num_correct.tolist()) == (np.int64, want_correct)
    assert loss_sum == pytest.approx(want_loss, rel=1e-5)
    together, same_loss = evaluate_batch(FlatModel(net()), data, start, stop)
    assert (together.dtype, together.tolist(), same_loss) == (np.int64, [sum(want_correct)], loss_sum)


def test_classes_without_images_are_counted() -> None:
    num_correct, _ = evaluate_batch(FlatModel(net()), device_images(), 0, 50, num_counts=9)
    assert num_correct.tolist() == by_hand(net(), device_images(), 0, 50)[0] + [0] * 5


def test_batches_add_up() -> None:
    data, flat = device_images(), FlatModel(net())
    parts = [evaluate_batch(flat, data, start, min(start + 16, 50)) for start in range(0, 50, 16)]
    whole = evaluate_batch(flat, data, 0, 50)
    assert 0 < whole[0] < 50
    assert sum(part[0] for part in parts) == whole[0]
    assert sum(part[1] for part in parts) == pytest.approx(whole[1], rel=1e-5)


def test_the_model_and_the_random_state_are_left_alone() -> None:
    flat = FlatModel(net())
    flat.module.train()
    flat.grads_P.fill_(3.0)
    before = flat.state_S.clone(), flat.ints_I.clone(), torch.get_rng_state()
    first = evaluate_batch(flat, device_images(), 0, 50)
    assert torch.equal(flat.state_S, before[0])
    assert torch.equal(flat.ints_I, before[1])
    assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.equal(flat.grads_P, torch.full_like(flat.grads_P, 3.0))
    flat.module.train()
    assert evaluate_batch(flat, device_images(), 0, 50) == first  # neither dropout nor batch statistics
