"""The generated data set ``synthetic``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmpi.config import SyntheticConfig
from fedmpi.data.arrays import Arrays
from fedmpi.rng import ANY, stream


def make_synthetic(cfg: SyntheticConfig, seed: int) -> Arrays:
    """Make images that are a smooth pattern of their class plus noise; classes are balanced to within one image."""
    rng = stream(seed, ANY, ANY, "synthetic data")
    # A pattern is a sum of the lowest 4 x 4 cosines of the image.
    coefficients = rng.standard_normal((cfg.num_classes, 4, 4, cfg.channels))
    rows, columns = (
        np.cos(np.pi * np.arange(4)[:, np.newaxis] * (np.arange(size) + 0.5) / size) for size in (cfg.height, cfg.width)
    )
    patterns = (127.5 + 16 * np.einsum("kuvc,uh,vw->khwc", coefficients, rows, columns)).astype(np.float32)

    def make(num_images: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        labels = rng.permutation(np.arange(num_images, dtype=np.int64) % cfg.num_classes)
        images = np.empty((num_images, *patterns.shape[1:]), np.uint8)
        for start in range(0, num_images, 1024):  # In parts, as the noise takes four times the images' memory.
            part = patterns[labels[start : start + 1024]]
            part += np.float32(cfg.noise) * rng.standard_normal(part.shape, dtype=np.float32)
            images[start : start + 1024] = np.rint(part).clip(0, 255)
        return images, labels

    return Arrays(*make(cfg.num_train), *make(cfg.num_test))
