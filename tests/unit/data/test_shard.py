"""Batches: the right images, normalized and augmented by the formula, in kept buffers."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.data.datasets import Dataset
from fedmpi.data.shard import DeviceImages, DeviceText, Shard, device_data
from fedmpi.rng import stream

CPU = torch.device("cpu")
MEAN, STD = (0.2, 0.5, 0.7), (0.25, 0.125, 0.3)


def device_images(num: int, height: int, width: int, channels: int, *, augment: bool = False) -> DeviceImages:
    """Return random images; the label of each is its index."""
    images = np.random.default_rng(0).integers(0, 256, (num, height, width, channels), np.uint8)
    labels = np.arange(num)
    dataset = Dataset("x", images, labels, images, labels, num, MEAN[:channels], STD[:channels])
    return DeviceImages(images, labels, dataset, CPU, augment)


def normalized(images: np.ndarray) -> np.ndarray:
    """(pixel / 255 - mean) / std, in float64, as (n, C, H, W)."""
    channels = images.shape[-1]
    return ((images / 255.0 - np.array(MEAN[:channels])) / np.array(STD[:channels])).transpose(0, 3, 1, 2)


def cropped(image: np.ndarray, top: int, left: int, flip: int) -> np.ndarray:
    """Crop a padded image and flip it, pixel by pixel."""
    height, width, channels = image.shape
    out = np.zeros_like(image)
    for row in range(height):
        for col in range(width):
            y, x = row + top - 4, (width - 1 - col if flip else col) + left - 4
            if 0 <= y < height and 0 <= x < width:
                for channel in range(channels):
                    out[row, col, channel] = image[y, x, channel]
    return out


@pytest.mark.parametrize("channels", [1, 3])
def test_gather_normalizes_the_images_of_its_indices(channels: int) -> None:
    data = device_images(9, 5, 4, channels)
    index = torch.tensor([7, 0, 3, 3])
    x, y = data.gather(index)
    assert (tuple(x.shape), x.dtype, y.dtype) == ((4, channels, 5, 4), torch.float32, torch.int64)
    assert y.tolist() == [7, 0, 3, 3]
    np.testing.assert_allclose(x.numpy(), normalized(data.images_NHWC.numpy()[index.numpy()]), rtol=1e-5, atol=2e-6)
    assert x.permute(0, 2, 3, 1).is_contiguous()


def test_slice_is_gather_in_order() -> None:
    data = device_images(9, 5, 4, 3)
    x, y = (tensor.clone() for tensor in data.gather(torch.arange(2, 7)))
    xs, ys = data.slice(2, 7)
    assert torch.equal(xs, x)
    assert torch.equal(ys, y)
    assert xs.permute(0, 2, 3, 1).is_contiguous()


def test_neither_changes_the_images() -> None:
    data = device_images(9, 5, 4, 3, augment=True)
    before = data.images_NHWC.clone()
    data.slice(0, 9)
    for _ in Shard(data, np.arange(9)).batches(4, 2, np.random.default_rng(0)):
        pass
    assert torch.equal(data.images_NHWC, before)


@given(
    draws=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.integers(0, 1)), min_size=1, max_size=6),
    shape=st.sampled_from([(6, 6, 1), (5, 7, 3), (1, 1, 1), (3, 9, 2)]),
)
@settings(deadline=None, max_examples=50)
def test_crop_and_flip(draws: list[tuple[int, int, int]], shape: tuple[int, int, int]) -> None:
    data = device_images(6, *shape)
    index = torch.arange(len(draws)).flip(0)
    x, y = data.gather(index, torch.tensor(draws))
    want = np.stack(
        [cropped(data.images_NHWC[i].numpy(), *draw) for i, draw in zip(index.tolist(), draws, strict=True)]
    )
    np.testing.assert_allclose(x.numpy(), normalized(want), rtol=1e-5, atol=2e-6)
    assert torch.equal(y, index)


def test_a_draw_of_the_middle_changes_nothing() -> None:
    data = device_images(6, 6, 6, 1)
    plain = data.gather(torch.arange(6))[0].clone()
    assert torch.equal(data.gather(torch.arange(6), torch.tensor([[4, 4, 0]] * 6))[0], plain)


def labels_of(shard: Shard, batch_size: int, epochs: int, seed: int = 0) -> list[list[int]]:
    return [y.tolist() for _, y in shard.batches(batch_size, epochs, stream(seed, 0, 0, "batches"))]


def test_each_epoch_holds_each_sample_once_in_an_order_of_its_own() -> None:
    shard = Shard(device_images(50, 3, 3, 1), np.arange(10, 43))
    assert shard.num_samples == 33
    batches = labels_of(shard, 8, 3)
    assert [len(batch) for batch in batches] == [8, 8, 8, 8, 1] * 3
    epochs = [list(chain(*batches[start : start + 5])) for start in (0, 5, 10)]
    assert all(sorted(epoch) == list(range(10, 43)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_is_the_streams_permutation() -> None:
    """Pinned: the order of the samples is part of every result."""
    index = np.array([3, 1, 4, 15, 9, 2, 6])
    rng = stream(5, 0, 0, "batches")
    want = [index[rng.permutation(7)].tolist() for _ in range(2)]
    got = labels_of(Shard(device_images(20, 3, 3, 1), index), 3, 2, seed=5)
    assert got == [want[0][:3], want[0][3:6], want[0][6:], want[1][:3], want[1][3:6], want[1][6:]]


@pytest.mark.parametrize("augment", [False, True])
def test_same_stream_same_batches(augment: bool) -> None:
    shard = Shard(device_images(40, 6, 6, 1, augment=augment), np.arange(40))

    def batches(seed: int) -> list[bytes]:
        rng = stream(seed, 1, 2, "batches")
        return [x.contiguous().numpy().tobytes() + y.numpy().tobytes() for x, y in shard.batches(16, 2, rng)]

    first = batches(0)
    assert batches(1) != first
    assert batches(0) == first


@pytest.mark.parametrize(("num", "batch_size"), [(300, 7), (296, 8), (41, 40), (5, 1000), (1, 1), (262, 131)])
def test_blocks_do_not_show(num: int, batch_size: int) -> None:
    """Images of 40 x 40 x 3 are gathered some 54 at a time; what comes out is as if there were no blocks."""
    data = device_images(num, 40, 40, 3)
    order = stream(0, 0, 0, "batches").permutation(num)
    start = 0
    for x, y in Shard(data, np.arange(num)).batches(batch_size, 1, stream(0, 0, 0, "batches")):
        want = order[start : start + batch_size]
        assert y.tolist() == want.tolist()
        assert len(y) == min(batch_size, num - start)
        np.testing.assert_allclose(x.numpy(), normalized(data.images_NHWC.numpy()[want]), rtol=1e-5, atol=2e-6)
        start += batch_size
    assert start >= num


def test_augmented_batches_are_crops_of_their_images_across_blocks() -> None:
    """Images of 64 x 64 x 3 are gathered 20 at a time; each must be one of its 162 crops, and not all the same one."""
    data = device_images(45, 64, 64, 3, augment=True)
    used = set()
    for x, y in Shard(data, np.arange(45)).batches(10, 1, stream(0, 0, 0, "batches")):
        for image, label in zip(x, y.tolist(), strict=True):
            padded = np.pad(data.images_NHWC[label].numpy(), ((4, 4), (4, 4), (0, 0)))
            got = image.permute(1, 2, 0).numpy()
            found = [
                (top, left, flip)
                for top in range(9)
                for left in range(9)
                for flip in (0, 1)
                if np.allclose(
                    normalized(padded[top : top + 64, left : left + 64][None, 30:32, :: -1 if flip else 1])[0],
                    got[30:32].transpose(2, 0, 1), atol=1e-4,
                )
            ]  # fmt: skip
            assert len(found) == 1
            top, left, flip = found[0]
            want = normalized(cropped(data.images_NHWC[label].numpy(), top, left, flip)[None])[0] if label < 3 else None
            assert want is None or np.allclose(want, got.transpose(2, 0, 1), atol=1e-4)
            used.add(found[0])
    assert len(used) > 25
    assert len({flip for _, _, flip in used}) == 2
    assert {top for top, _, _ in used} == set(range(9))


@pytest.mark.parametrize("augment", [False, True])
def test_kept_buffers_are_not_reallocated(augment: bool) -> None:
    data = device_images(100, 8, 8, 3, augment=augment)

    def addresses(num: int) -> set[tuple[int, int]]:
        batches = Shard(data, np.arange(num)).batches(16, 2, stream(0, 0, 0, "b"))
        return {(x.untyped_storage().data_ptr(), y.untyped_storage().data_ptr()) for x, y in batches}

    first = addresses(100)
    assert len(first) == 1
    assert addresses(30) == addresses(100) == first


def text_dataset(num: int = 30, length: int = 7) -> Dataset:
    """Return random text whose labels are told apart from the inputs, and another test set."""
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 86, (num, length), np.uint8)
    labels = rng.integers(0, 86, (num, length))
    return Dataset("play", inputs, labels, inputs[:5] // 2, labels[:5] // 2, 86, (), ())


def test_text_is_gathered_as_it_is() -> None:
    dataset = text_dataset()
    data = device_data(dataset, "train", CPU)
    assert isinstance(data, DeviceText)
    assert (len(data), data.sample_numel) == (30, 7)
    x, y = data.gather(torch.tensor([4, 0, 4]))
    assert x.dtype == y.dtype == torch.int64
    assert np.array_equal(x.numpy(), dataset.train_inputs[[4, 0, 4]])
    assert np.array_equal(y.numpy(), dataset.train_labels[[4, 0, 4]])
    x, y = data.slice(3, 9)
    assert x.dtype == torch.int64
    assert np.array_equal(x.numpy(), dataset.train_inputs[3:9])
    assert np.array_equal(y.numpy(), dataset.train_labels[3:9])


@pytest.mark.parametrize("length", [7, 90_000])
def test_batches_of_text(length: int) -> None:
    """Also of sequences so long that a block holds few of them."""
    dataset = text_dataset(length=length)
    shard = Shard(device_data(dataset, "train", CPU), np.arange(20, 30))
    order = 20 + stream(0, 0, 0, "batches").permutation(10)
    for start, (x, y) in enumerate(shard.batches(4, 1, stream(0, 0, 0, "batches"))):
        rows = order[4 * start : 4 * start + 4]
        assert np.array_equal(x.numpy(), dataset.train_inputs[rows])
        assert np.array_equal(y.numpy(), dataset.train_labels[rows])
    assert start == 2


def test_kept_buffers_of_text_are_not_reallocated() -> None:
    data = device_data(text_dataset(), "train", CPU)
    batches = Shard(data, np.arange(30)).batches(8, 3, stream(0, 0, 0, "b"))
    assert len({(x.untyped_storage().data_ptr(), y.untyped_storage().data_ptr()) for x, y in batches}) == 1


def test_device_data_takes_the_split_and_the_kind_of_the_data_set() -> None:
    text = text_dataset()
    assert np.array_equal(device_data(text, "test", CPU).slice(0, 5)[1].numpy(), text.test_labels)
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 5, 1), np.uint8)
    dataset = Dataset("x", images, np.arange(6), images[:2], np.arange(2), 6, MEAN[:1], STD[:1])
    train, test = device_data(dataset, "train", CPU, augment=True), device_data(dataset, "test", CPU)
    assert isinstance(train, DeviceImages) and isinstance(test, DeviceImages)
    assert (len(train), len(test), train.sample_numel) == (6, 2, 25)
    draws = train.draw(4, np.random.default_rng(0))
    assert draws is not None and draws.shape == (4, 3)
    assert test.draw(4, np.random.default_rng(0)) is None
    np.testing.assert_allclose(test.slice(0, 2)[0].numpy(), normalized(images[:2]), rtol=1e-5, atol=2e-6)
