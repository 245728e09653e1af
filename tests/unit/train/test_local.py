"""The one training loop against a plain torch loop over the same batches, and its hooks."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedmpi.config import NamedSection, TrainConfig
from fedmpi.data.datasets import Dataset
from fedmpi.data.shapes import TextShape
from fedmpi.data.shard import DeviceImages, Shard
from fedmpi.flat import FlatModel
from fedmpi.models.registry import build_model, resolve
from fedmpi.rng import stream
from fedmpi.train.evaluate import evaluate_batch
from fedmpi.train.local import PROGRESS_S, train_local


def device_images(num: int = 90, seed: int = 0) -> DeviceImages:
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (num, 8, 8, 1), np.uint8), rng.integers(0, 4, num)
    return DeviceImages(
        images, labels, Dataset("x", images, labels, images, labels, 4, (0.5,), (0.3,)), torch.device("cpu")
    )


def net(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(144, 4)
    )


class Recorder(Shard):
    """A shard that also keeps a copy of every batch it gives."""

    def batches(self, batch_size: int, num_epochs: int, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        self.seen: list[tuple[Tensor, Tensor]] = []
        for x, y in super().batches(batch_size, num_epochs, rng):
            self.seen.append((x.clone(), y.clone()))
            yield x, y


def test_each_batch_is_shown_with_its_logits() -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    flat, shard = FlatModel(net()), Recorder(device_images(), np.arange(40))
    cfg = TrainConfig(batch_size=16)
    train_local(flat, shard, cfg, rng=rng(), after_forward=lambda logits, y: seen.append((logits, y.clone())))
    assert [tuple(logits.shape) for logits, _ in seen] == [(16, 4), (16, 4), (8, 4)]
    assert all(torch.equal(y, batch) for (_, y), (_, batch) in zip(seen, shard.seen, strict=True))
    other = FlatModel(net())
    train_local(other, Shard(device_images(), np.arange(40)), cfg, rng=rng())
    assert torch.equal(other.state_S, flat.state_S)


def rng(client_id: int = 0) -> np.random.Generator:
    return stream(1, 0, client_id, "batches")


@pytest.mark.parametrize(
    "cfg",
    [
        TrainConfig(lr=0.1, momentum=0.0, batch_size=16, local_epochs=1),
        TrainConfig(lr=0.05, momentum=0.9, batch_size=16, local_epochs=2),
        TrainConfig(lr=0.05, momentum=0.9, weight_decay=0.01, clip_norm=0.5, batch_size=40, local_epochs=2),
        TrainConfig(optimizer="adam", lr=0.01, weight_decay=0.01, clip_norm=0.5, batch_size=16, local_epochs=2),
    ],
)
def test_equals_a_plain_loop(cfg: TrainConfig) -> None:
    plain = net()
    flat = FlatModel(copy.deepcopy(plain))
    shard = Recorder(device_images(), np.arange(70))
    stats = train_local(flat, shard, cfg, rng=rng())

    optimizer: torch.optim.Optimizer = torch.optim.SGD(
        plain.parameters(), lr=cfg.lr, momentum=cfg.momentum, weight_decay=cfg.weight_decay
    )
    if cfg.optimizer == "adam":
        betas = cfg.momentum, cfg.adam_beta2
        optimizer = torch.optim.Adam(plain.parameters(), cfg.lr, betas, cfg.adam_eps, cfg.weight_decay)
    loss_sum = 0.0
    plain.train()
    for x, y in shard.seen:
        optimizer.zero_grad()
        loss = F.cross_entropy(plain(x), y)
        loss.backward()
        if cfg.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(plain.parameters(), cfg.clip_norm)
        optimizer.step()
        loss_sum += float(loss.detach()) * len(y)

    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(flat.module.state_dict()[name], tensor, rtol=1e-4, atol=2e-6)
    steps = cfg.local_epochs * -(-70 // cfg.batch_size)
    assert (stats.num_steps, stats.num_samples) == (steps, 70 * cfg.local_epochs)
    assert len(shard.seen) == steps
    assert stats.loss == pytest.approx(loss_sum / stats.num_samples, rel=1e-4)
    start = FlatModel(net())
    assert float((flat.params_P - start.params_P).abs().max()) > 0.01


def test_hooks_are_called_in_order() -> None:
    flat = FlatModel(net())
    calls: list[str] = []
    seen: list[Tensor] = []

    def extra_loss(w_P: Tensor) -> Tensor:
        calls.append("extra_loss")
        assert torch.equal(w_P.detach(), flat.params_P)
        return w_P.sum()

    def after_backward(model: FlatModel) -> None:
        calls.append("after_backward")
        assert model is flat
        seen.extend([model.grads_P.clone(), model.params_P.clone()])

    def after_step(model: FlatModel) -> None:
        calls.append("after_step")
        before_g, before_p = seen[-2:]
        assert torch.allclose(model.params_P, before_p - 0.1 * before_g, atol=1e-7)

    cfg = TrainConfig(lr=0.1, momentum=0.0, batch_size=16)
    train_local(flat, Shard(device_images(), np.arange(32)), cfg, rng=rng(), extra_loss=extra_loss,
                after_backward=after_backward, after_step=after_step)  # fmt: skip
    assert calls == ["extra_loss", "after_backward", "after_step"] * 2


def test_what_a_hook_does_to_the_model_stays() -> None:
    flat = FlatModel(net())
    mask = torch.arange(flat.layout.num_params) % 2 == 0
    cfg = TrainConfig(lr=0.1, batch_size=16)
    train_local(flat, Shard(device_images(), np.arange(48)), cfg, rng=rng(),
                after_step=lambda model: model.params_P.mul_(mask))  # fmt: skip
    assert not flat.params_P[~mask].any()
    assert flat.params_P[mask].any()

    flat = FlatModel(net())
    start = flat.params_P.clone()
    train_local(flat, Shard(device_images(), np.arange(48)), cfg, rng=rng(),
                after_backward=lambda model: model.grads_P.zero_())  # fmt: skip
    assert torch.equal(flat.params_P, start)


def test_the_extra_loss_adds_its_gradient_and_not_its_value() -> None:
    target = torch.full((FlatModel(net()).layout.num_params,), 0.3)
    grads: dict[str, list[Tensor]] = {"plain": [], "extra": []}
    starts = []
    losses = []
    cfg = TrainConfig(lr=1e-9, momentum=0.0, batch_size=16)  # the parameters hardly move: batch after batch alike
    for name, found in grads.items():
        flat = FlatModel(net())
        starts.append(flat.params_P.clone())
        stats = train_local(
            flat, Shard(device_images(), np.arange(40)), cfg, rng=rng(),
            extra_loss=(lambda w_P: 0.5 * (w_P - target).square().sum()) if name == "extra" else None,
            after_backward=lambda model, found=found: found.append(model.grads_P.clone()),
        )  # fmt: skip
        losses.append(stats.loss)
    assert len(grads["plain"]) == 3
    for plain, extra in zip(grads["plain"], grads["extra"], strict=True):
        torch.testing.assert_close(extra - plain, starts[0] - target, rtol=1e-5, atol=1e-6)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_no_state_leaks_from_one_client_to_the_next(optimizer: Literal["sgd", "adam"]) -> None:
    data = device_images()
    cfg = TrainConfig(optimizer=optimizer, lr=0.1, weight_decay=0.01, clip_norm=1.0, batch_size=16, local_epochs=2)
    initial = FlatModel(net(0.5))

    def play(flat: FlatModel, client_id: int) -> bytes:
        flat.load(initial.state_S, initial.ints_I)
        train_local(flat, Shard(data, np.arange(client_id * 30, client_id * 30 + 30)), cfg, rng=rng(client_id))
        return flat.state_S.numpy().tobytes() + flat.ints_I.numpy().tobytes()

    fresh = [play(FlatModel(net(0.5)), client_id) for client_id in range(3)]
    assert len(set(fresh)) == 3
    shared = FlatModel(net(0.5))
    for client_id in (2, 0, 1, 1, 2):
        shared.module.eval()  # as evaluation leaves it
        torch.rand(3)  # someone else's use of torch's generator
        shared.grads_P.fill_(9.0)
        assert play(shared, client_id) == fresh[client_id]


def test_dropout_is_on_and_follows_the_stream() -> None:
    shard = Shard(device_images(), np.arange(40))
    cfg = TrainConfig(lr=0.1, batch_size=16)
    results = []
    for dropout, seed in ((0.5, 0), (0.5, 0), (0.0, 0)):
        flat = FlatModel(net(dropout))
        train_local(flat, shard, cfg, rng=rng(seed))
        results.append(flat.state_S.numpy().tobytes())
    assert results[0] == results[1] != results[2]


def test_progress_is_called_now_and_then() -> None:
    times: list[float] = []
    cfg = TrainConfig(lr=0.1, batch_size=1)
    shard = Shard(device_images(), np.arange(90))
    start = time.perf_counter()
    train_local(FlatModel(net()), shard, cfg, rng=rng(), progress=lambda: times.append(time.perf_counter()),
                after_step=lambda model: time.sleep(0.0003))  # fmt: skip
    took = time.perf_counter() - start
    gaps = np.diff([start, *times])
    assert gaps.min() >= PROGRESS_S == 1e-3
    assert 5 < len(times) <= 90
    assert len(times) <= took / PROGRESS_S


def test_progress_is_called_after_every_step_that_takes_longer() -> None:
    calls: list[int] = []
    cfg = TrainConfig(lr=0.1, batch_size=10)
    train_local(FlatModel(net()), Shard(device_images(), np.arange(50)), cfg, rng=rng(),
                progress=lambda: calls.append(1), after_step=lambda model: time.sleep(0.0015))  # fmt: skip
    assert len(calls) == 5


@pytest.mark.parametrize(("num", "batch_size"), [(32, 16), (35, 16), (5, 16), (16, 16)])
def test_after_each_epoch_a_hook_gets_its_last_batch(num: int, batch_size: int) -> None:
    flat, shard = FlatModel(net()), Recorder(device_images(), np.arange(num))
    calls: list[str] = []
    batches: list[tuple[int, Tensor, Tensor]] = []

    def after_epoch(epoch_idx: int, x: Tensor, y: Tensor) -> None:
        calls.append(f"epoch {epoch_idx}")
        batches.append((epoch_idx, x.clone(), y.clone()))

    def after_step(model: FlatModel) -> None:
        calls.append("step")

    cfg = TrainConfig(batch_size=batch_size, local_epochs=3)
    train_local(flat, shard, cfg, rng=rng(), after_step=after_step, after_epoch=after_epoch)
    steps = -(-num // batch_size)
    assert calls == [name for epoch in range(3) for name in [*["step"] * steps, f"epoch {epoch}"]]
    for epoch_idx, x, y in batches:
        want_x, want_y = shard.seen[(epoch_idx + 1) * steps - 1]
        assert torch.equal(x, want_x) and torch.equal(y, want_y)


def test_what_a_hook_leaves_in_the_gradients_is_not_trained_on() -> None:
    results = []
    for leave in (False, True):
        flat = FlatModel(net())

        def after_epoch(epoch_idx: int, x: Tensor, y: Tensor, model: FlatModel = flat, leave: bool = leave) -> None:
            if leave:
                model.grads_P.fill_(1e6)

        cfg = TrainConfig(batch_size=16, local_epochs=3)
        train_local(flat, Shard(device_images(), np.arange(40)), cfg, rng=rng(), after_epoch=after_epoch)
        results.append(flat.params_P)
    assert torch.equal(*results)


class TextShard:
    """Lines of random characters, each to be followed by the next; batches of a fixed order."""

    def __init__(self, num: int = 20, length: int = 6, alphabet: int = 5) -> None:
        text = torch.randint(0, alphabet, (num, length + 1), generator=torch.Generator().manual_seed(0))
        self.x_NT, self.y_NT = text[:, :-1], text[:, 1:]

    def batches(self, batch_size: int, num_epochs: int, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(num_epochs):
            yield from zip(self.x_NT.split(batch_size), self.y_NT.split(batch_size), strict=True)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_text(optimizer: Literal["sgd", "adam"]) -> None:
    config = resolve(NamedSection(name="char_gru", embedding=4, hidden=16))
    plain = build_model(config, TextShape(6), 5, 0)
    flat, shard = FlatModel(copy.deepcopy(plain)), TextShard()
    cfg = TrainConfig(optimizer=optimizer, lr=0.02, momentum=0.9, batch_size=8, local_epochs=3)
    stats = train_local(flat, shard, cfg, rng=rng())
    assert (stats.num_steps, stats.num_samples) == (9, 3 * 20 * 6)  # labels, not lines

    kinds = {"sgd": lambda p: torch.optim.SGD(p, 0.02, 0.9), "adam": lambda p: torch.optim.Adam(p, 0.02)}
    ours = kinds[optimizer](plain.parameters())
    loss_sum = 0.0
    for x_BT, y_BT in shard.batches(8, 3, rng()):
        ours.zero_grad()
        log_BTK = plain(x_BT).transpose(1, 2).log_softmax(2)
        loss = -log_BTK.gather(2, y_BT[:, :, None]).mean()
        loss.backward()
        ours.step()
        loss_sum += float(loss.detach()) * y_BT.numel()
    assert stats.loss == pytest.approx(loss_sum / stats.num_samples, rel=1e-4)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(flat.module.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_evaluation_of_text_counts_characters() -> None:
    flat = FlatModel(build_model(resolve(NamedSection(name="char_gru", embedding=4, hidden=8)), TextShape(6), 5, 0))
    shard = TextShard()

    class Lines:
        def slice(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
            return shard.x_NT[start:stop], shard.y_NT[start:stop]

    num_correct, loss_sum = evaluate_batch(flat, Lines(), 3, 17)
    log_BKT = flat.module(shard.x_NT[3:17]).detach().log_softmax(1)
    want = [(int(log[:, t].argmax() == y[t]), -float(log[y[t], t]))
            for log, y in zip(log_BKT, shard.y_NT[3:17], strict=True) for t in range(6)]  # fmt: skip
    assert num_correct == sum(right for right, _ in want)
    assert loss_sum == pytest.approx(sum(loss for _, loss in want), rel=1e-5)
