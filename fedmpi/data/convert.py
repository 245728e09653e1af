"""Some of the classes of a data set of images, and its images in another size or number of channels.

All of it is exact: sums of whole numbers, rounded once, so that every machine makes the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedmpi.config import ConvertConfig
from fedmpi.data.arrays import Arrays
from fedmpi.data.shapes import ImageShape

_LUMA = (299, 587, 114)
"""Thousandths of red, green and blue in grey (ITU-R BT.601)."""
_IMAGES_AT_ONCE = 1024
"""The sums take eight bytes a number, where images take one."""


def converted_shape(shape: ImageShape, cfg: ConvertConfig | None) -> ImageShape:
    """Return the shape that images have after ``data.convert``: what it does not set stays."""
    if cfg is None:
        return shape
    return ImageShape(cfg.height or shape.height, cfg.width or shape.width, cfg.channels or shape.channels)


def can_convert_channels(num_from: int, num_to: int) -> bool:
    """Return whether there is a rule: the same number, grey to any, three (red, green, blue) to grey."""
    return num_from in (num_to, 1) or (num_from, num_to) == (3, 1)


def convert_statistics(values: tuple[float, ...], num_channels: int) -> tuple[float, ...]:
    """Return means or standard deviations of channels for as many others.

    For grey made of colours both are weighted as the colours are: right for means, and for standard deviations as far
    as the colours go up and down together, which those of photographs nearly do.
    """
    if len(values) == num_channels:
        return values
    if len(values) == 1:
        return values * num_channels
    return (sum(part * value for part, value in zip(_LUMA, values, strict=True)) / sum(_LUMA),)


def select_and_convert(arrays: Arrays, num_classes: int, classes: Sequence[int] | None, shape: ImageShape) -> Arrays:
    """Return the samples of some classes, with images of another shape.

    Parameters
    ----------
    arrays : Arrays
        Images (N, H, W, C). They are read in parts, so they may be memory-mapped.
    num_classes : int
        Labels are from 0 to `num_classes` - 1.
    classes : sequence of int or None
        Labels to keep, in the order that numbers them anew from 0; None for all. A split may lose all its samples.
    shape : ImageShape
        What the images become; `can_convert_channels` must hold of it.

    Returns
    -------
    Arrays
        Copies, in the order of `arrays`; the writers of what is kept keep their numbers.
    """
    numbers = np.full(num_classes, -1, np.int64)
    kept = list(range(num_classes)) if classes is None else list(classes)
    numbers[kept] = np.arange(len(kept))

    def split(
        inputs: NDArray[np.uint8], labels: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
        new_labels = numbers[labels]
        index_N = np.flatnonzero(new_labels >= 0)
        images = np.empty((len(index_N), *shape), np.uint8)
        for start in range(0, len(index_N), _IMAGES_AT_ONCE):
            rows = slice(start, start + _IMAGES_AT_ONCE)
            images[rows] = convert_images(inputs[index_N[rows]], shape)
        return images, new_labels[index_N], index_N

    train_inputs, train_labels, train_index_N = split(arrays.train_inputs, arrays.train_labels)
    test_inputs, test_labels, _ = split(arrays.test_inputs, arrays.test_labels)
    groups = arrays.train_groups[train_index_N] if arrays.train_groups is not None else None
    return Arrays(train_inputs, train_labels, test_inputs, test_labels, groups, arrays.group_names)


def convert_images(images_NHWC: NDArray[np.uint8], shape: ImageShape) -> NDArray[np.uint8]:
    """Return images in another shape: colours to grey, then the size, then grey to several channels.

    Grey is (299 red + 587 green + 114 blue) / 1000, and becomes several equal channels. A pixel of another size is
    the mean of the old ones under a triangle around its centre, which is as wide as two old pixels or, where images
    shrink, two new ones: bilinear interpolation, which where it shrinks leaves out no pixel. Half a grey level is
    rounded up.

    Parameters
    ----------
    images_NHWC : numpy.ndarray, uint8
    shape : ImageShape
        `can_convert_channels` must hold of it.

    Returns
    -------
    numpy.ndarray
        (N, `shape`) uint8.
    """
    height, width, channels = images_NHWC.shape[1:]
    if channels == 3 and shape.channels == 1:
        sums = images_NHWC.astype(np.int64) @ np.array(_LUMA)
        images_NHWC = _rounded(sums, np.int64(sum(_LUMA)))[..., np.newaxis]
    if (height, width) != (shape.height, shape.width):
        rows_PH, columns_QW = _triangles(height, shape.height), _triangles(width, shape.width)
        # Whole numbers below 2^53 are exact in float64 and in any order, and its products are the fast ones.
        pixels = np.einsum("ph,nhwc->npwc", rows_PH, images_NHWC.astype(np.float64), optimize=True)
        sums = np.einsum("qw,npwc->npqc", columns_QW, pixels, optimize=True).astype(np.int64)
        weight_PQ = np.outer(rows_PH.sum(1), columns_QW.sum(1)).astype(np.int64)
        images_NHWC = _rounded(sums, weight_PQ[..., np.newaxis])
    if images_NHWC.shape[3] != shape.channels:
        images_NHWC = np.repeat(images_NHWC, shape.channels, axis=3)
    return images_NHWC


def _triangles(num_from: int, num_to: int) -> NDArray[np.float64]:
    """Return the weights of old pixels in new ones along one side, (num_to, num_from), whole numbers."""
    # In units of 1 / (2 num_to) of an old pixel all centres are whole numbers.
    old = (2 * np.arange(num_from) + 1) * num_to
    new = (2 * np.arange(num_to) + 1) * num_from
    distance = np.abs(old - new[:, np.newaxis])
    weights: NDArray[np.float64] = np.maximum(0, 2 * max(num_from, num_to) - distance).astype(np.float64)
    return weights


def _rounded(sums: NDArray[np.int64], weight: NDArray[np.int64] | np.int64) -> NDArray[np.uint8]:
    return ((2 * sums + weight) // (2 * weight)).astype(np.uint8)
