"""What every reader of files gives back, and the checks that all of them share."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedmpi.errors import DataError


class Arrays(NamedTuple):
    """A decoded data set.

    Images are (N, H, W, C) uint8 with labels (N,) int64; text is (N, T) uint8 with labels (N, T) int64. `train_groups`,
    (N,) int64, says of each training sample whose it is, as an index into `group_names`.
    """

    train_inputs: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_inputs: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    train_groups: NDArray[np.int64] | None = None
    group_names: tuple[str, ...] = ()


def read_bytes(path: Path) -> bytes:
    """Return the content of a file; `DataError` if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def check_split(
    images_path: object, labels_path: object, images: NDArray[np.uint8], labels: NDArray[np.int64], num_classes: int
) -> None:
    """Raise `DataError` if a split is empty, images and labels differ in number, or a label is out of range.

    Parameters
    ----------
    images_path, labels_path : object
        The words to blame in the error's text.
    images : numpy.ndarray
        (N, H, W, C) uint8.
    labels : numpy.ndarray
        (N,) int64.
    num_classes : int
    """
    if images.size == 0:
        raise DataError(f"{images_path}: expected at least one image, got shape {images.shape}")
    if len(images) != len(labels):
        raise DataError(f"{labels_path}: expected {len(images)} labels as {images_path} has images, got {len(labels)}")
    for label in (labels.min(), labels.max()):
        if not 0 <= label < num_classes:
            raise DataError(f"{labels_path}: expected labels from 0 to {num_classes - 1}, got {label}")
