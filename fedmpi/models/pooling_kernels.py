"""Kernels of 3x3 maximum pooling of stride 1 with ReLU behind it, on images that lie channels last.

A row of an image is W pixels of C numbers each, so that a window's neighbour is C numbers away: all loops run over
whole rows, whatever C is. A maximum is taken along rows first and of three rows then; of equal numbers the first stays,
and a NaN always takes the place, which chooses the same element as one pass over the window does.
"""
# mypy: disallow_untyped_decorators = False

from __future__ import annotations

import numpy as np
from numba import njit

NO_GRADIENT = 255
"""The index of a window that ReLU makes 0."""


@njit(cache=True)
def pool_relu(x: np.ndarray, channels: int, out: np.ndarray, index: np.ndarray) -> None:
    """Pool images and apply ReLU.

    Parameters
    ----------
    x : numpy.ndarray, shape (B, H, W * C), float32
        H and W are at least 3.
    channels : int
        C.
    out : numpy.ndarray, shape (B, H - 2, (W - 2) * C), float32
        Written: the pooled images.
    index : numpy.ndarray, the same shape, uint8
        Written: where in its window the maximum is, 3 * row + column, or `NO_GRADIENT`.
    """
    width = out.shape[2]
    # Maxima along the last three rows and where they are; 4 bytes for both make one width of vectors.
    highest = np.empty((3, width), np.float32)
    column = np.empty((3, width), np.int32)
    for image in range(x.shape[0]):
        for y in range(x.shape[1]):
            row = x[image, y]
            left, middle, right = row[:width], row[channels : channels + width], row[2 * channels :]
            high, where = highest[y % 3], column[y % 3]
            for j in range(width):
                best, at = left[j], np.int32(0)
                v = middle[j]
                if (v > best) | np.isnan(v):
                    best, at = v, np.int32(1)
                v = right[j]
                if (v > best) | np.isnan(v):
                    best, at = v, np.int32(2)
                high[j] = best
                where[j] = at
            if y < 2:
                continue
            first, second = highest[(y - 2) % 3], highest[(y - 1) % 3]
            in_first, in_second = column[(y - 2) % 3], column[(y - 1) % 3]
            pooled, chosen = out[image, y - 2], index[image, y - 2]
            for j in range(width):
                best, at = first[j], in_first[j]
                v = second[j]
                if (v > best) | np.isnan(v):
                    best, at = v, in_second[j] + np.int32(3)
                v = high[j]
                if (v > best) | np.isnan(v):
                    best, at = v, where[j] + np.int32(6)
                if best <= np.float32(0):
                    at = np.int32(NO_GRADIENT)
                pooled[j] = np.float32(0) if best < np.float32(0) else best
                chosen[j] = at


@njit(cache=True)
def pool_relu_backward(grad_out: np.ndarray, index: np.ndarray, channels: int, grad: np.ndarray) -> None:
    """Add up the gradients of the windows that chose a number, in the order of the windows.

    Parameters
    ----------
    grad_out : numpy.ndarray, shape (B, H - 2, (W - 2) * C), float32
    index : numpy.ndarray, the same shape, uint8
        As `pool_relu` writes it.
    channels : int
        C.
    grad : numpy.ndarray, shape (B, H, W * C), float32
        Written.
    """
    height, width = grad_out.shape[1:]
    for image in range(grad.shape[0]):
        for y in range(grad.shape[1]):
            grad[image, y] = 0
            for dy in range(min(2, y), max(0, y - height + 1) - 1, -1):
                coming, chosen = grad_out[image, y - dy], index[image, y - dy]
                for dx in range(2, -1, -1):
                    going = grad[image, y, dx * channels : dx * channels + width]
                    wanted = np.uint8(3 * dy + dx)
                    for j in range(width):
                        going[j] += coming[j] if chosen[j] == wanted else np.float32(0)
