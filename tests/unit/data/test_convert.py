"""Some of the classes, other sizes and channels: values worked out by hand, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmpi.config import ConvertConfig, DataConfig, NaturalPartition
from fedmpi.data import datasets, shared
from fedmpi.data.arrays import Arrays
from fedmpi.data.convert import convert_images, convert_statistics, select_and_convert
from fedmpi.data.datasets import Dataset, load_dataset
from fedmpi.data.partition import make_partition
from fedmpi.data.shapes import ImageShape
from fedmpi.errors import ConfigError

SMALL = {"num_train": 60, "num_test": 30, "num_classes": 6, "height": 8, "width": 6}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDMPI_CACHE", str(tmp_path / "cache"))


def load(**settings: Any) -> Dataset:
    return load_dataset(DataConfig.model_validate(settings), seed=3)


def row(*pixels: int, width: int) -> list[int]:
    images = np.array(pixels, np.uint8).reshape(1, 1, -1, 1)
    out: list[int] = convert_images(images, ImageShape(1, width, 1)).ravel().tolist()
    return out


def test_sizes_by_hand() -> None:
    # Centres of the new pixels at 1/4, 3/4, 5/4, 7/4 of an old one: 0, 1/4, 3/4 and all of the way from 0 to 100.
    assert row(0, 100, width=4) == [0, 25, 75, 100]
    # Centres at 1 and 3; triangles from -1 to 3 and from 1 to 5: weights 3, 3, 1 of what is there.
    assert row(0, 70, 140, 210, width=2) == [50, 160]
    assert row(0, 1, width=1) == [1]  # half a grey level is rounded up
    assert row(7, 9, 200, width=3) == [7, 9, 200]


@pytest.mark.parametrize(("old", "new"), [((7, 5), (11, 9)), ((9, 8), (4, 3)), ((5, 6), (5, 3)), ((28, 28), (32, 32))])
def test_every_pixel_is_the_exact_mean_under_its_triangle(old: tuple[int, int], new: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (1, *old, 1), np.uint8)
    got = convert_images(image, ImageShape(*new, 1))[0, :, :, 0]

    def weights(num_from: int, num_to: int, place: int) -> list[Fraction]:
        step = Fraction(num_from, num_to)
        centre = (place + Fraction(1, 2)) * step
        taps = [max(Fraction(0), 1 - abs(i + Fraction(1, 2) - centre) / max(1, step)) for i in range(num_from)]
        return [tap / sum(taps) for tap in taps]

    for i in {0, 1, new[0] - 1}:
        for j in {0, 2, new[1] - 1}:
            rows, columns = weights(old[0], new[0], i), weights(old[1], new[1], j)
            exact = sum(a * b * int(image[0, y, x, 0]) for y, a in enumerate(rows) for x, b in enumerate(columns))
            assert got[i, j] == int(exact + Fraction(1, 2))


def test_channels_by_hand() -> None:
    grey = np.array([[[[5], [6]]]], np.uint8)
    assert convert_images(grey, ImageShape(1, 2, 3)).tolist() == [[[[5, 5, 5], [6, 6, 6]]]]
    colour = np.array([[[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [10, 20, 30]]]], np.uint8)
    # .299 * 255 = 76.2, .587 * 255 = 149.7, .114 * 255 = 29.1; 2.99 + 11.74 + 3.42 = 18.15
    assert convert_images(colour, ImageShape(1, 5, 1)).ravel().tolist() == [76, 150, 29, 255, 18]
    assert convert_statistics((0.25,), 3) == (0.25, 0.25, 0.25)
    assert convert_statistics((0.1, 0.2, 0.3), 1) == pytest.approx((0.0299 + 0.1174 + 0.0342,))
    assert convert_statistics((0.1, 0.2, 0.3), 3) == (0.1, 0.2, 0.3)


def test_classes_are_numbered_in_the_order_given() -> None:
    whole, some = load(name="synthetic", synthetic=SMALL), load(name="synthetic", synthetic=SMALL, classes=[4, 0, 5])
    assert (whole.num_classes, some.num_classes) == (6, 3)
    for split in ("train", "test"):
        labels = getattr(whole, f"{split}_labels")
        kept = np.isin(labels, [4, 0, 5])
        assert np.array_equal(getattr(some, f"{split}_inputs"), getattr(whole, f"{split}_inputs")[kept])
        assert getattr(some, f"{split}_labels").tolist() == [[4, 0, 5].index(label) for label in labels[kept]]


def test_disjoint_classes_share_no_image() -> None:
    low, high = (load(classes=classes) for classes in ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9]))
    assert len(low.train_labels) == len(high.train_labels) == 3000
    assert np.bincount(high.test_labels).tolist() == [100] * 5
    images = {image.tobytes() for image in low.train_inputs}
    assert images.isdisjoint(image.tobytes() for image in high.train_inputs)


def test_files_are_converted_once_and_mapped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = {"classes": [1, 2], "convert": {"height": 32, "width": 32, "channels": 3}}
    first = load(**settings)
    assert first.shape == ImageShape(32, 32, 3)
    assert first.mean == (0.2860,) * 3
    assert (first.train_inputs[..., 0] == first.train_inputs[..., 2]).all()
    assert np.array_equal(first.train_inputs[:5], convert_images(load(classes=[1, 2]).train_inputs[:5], first.shape))
    monkeypatch.setattr(datasets, "select_and_convert", None)  # a second time nothing is made
    second = load(**settings)
    assert np.array_equal(first.train_inputs, second.train_inputs)
    assert isinstance(second.train_inputs.base, np.memmap)
    assert len(list((shared.cache_dir() / "arrays").iterdir())) == 3  # as they are, and two ways changed


@pytest.mark.parametrize("settings", [{}, {"convert": {}}, {"convert": {"height": 28, "channels": 1}}])
def test_what_changes_nothing_needs_no_copy(settings: dict[str, Any]) -> None:
    assert load(**settings).train_inputs.shape == (6000, 28, 28, 1)
    assert len(list((shared.cache_dir() / "arrays").iterdir())) == 1


def test_writers_keep_their_samples() -> None:
    images = np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1)
    labels = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    groups = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    arrays = Arrays(images, labels, images, labels, groups, ("a", "b", "c"))
    some = select_and_convert(arrays, 3, [2, 1], ImageShape(1, 1, 1))
    assert some.train_groups is not None
    assert some.train_groups.tolist() == [0, 0, 1, 1, 2]
    assert (some.train_labels.tolist(), some.group_names) == ([1, 0, 1, 0, 1], ("a", "b", "c"))
    split = make_partition(NaturalPartition(), some.train_labels, 2, 0, some.train_groups)
    assert [some.train_inputs[split.client(i)].ravel().tolist() for i in range(3)] == [[1, 2], [4, 5], [7]]
    # A writer with none of the classes is no client.
    some = select_and_convert(arrays, 3, [2, 0], ImageShape(1, 1, 1))._replace(train_groups=np.array([0, 0, 2, 2, 2]))
    assert make_partition(NaturalPartition(), some.train_labels, 2, 0, some.train_groups).num_clients == 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"classes": [0, 10]}, r"data\.classes must be labels of .*fashion_mnist_mini, which are 0 to 9, got 10"),
        ({"classes": [3, 1, 3]}, r"data\.classes must name each label once, got 3 again"),
        ({"name": "play_mini", "classes": [0, 1]}, r"data\.classes goes with data sets of images only.*play_mini"),
        ({"name": "shakespeare", "convert": {"height": 8}}, r"data\.convert goes with data sets of images only"),
        ({"name": "cifar10", "convert": {"channels": 4}}, r"channels must be 3 or 1 for .*cifar10.* have 3, got 4"),
        ({"name": "synthetic", "synthetic": {"channels": 2}, "convert": {"channels": 1}}, r"must be 2 for .* got 1"),
        (
            {"name": "synthetic", "synthetic": {**SMALL, "num_train": 3, "num_classes": 10}, "classes": [8, 9]},
            r"data\.classes must have training images in data\.name=synthetic, got \[8, 9\]",
        ),
    ],
)
def test_what_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load(**settings)


def test_limits() -> None:
    assert ConvertConfig(height=512, width=1, channels=16).channels == 16
    extreme = np.full((1, 512, 512, 1), 255, np.uint8)
    assert (convert_images(extreme, ImageShape(1, 3, 1)) == 255).all()
