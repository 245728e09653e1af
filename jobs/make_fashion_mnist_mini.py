"""Make fedmpi/data/fashion_mnist_mini from the whole of Fashion-MNIST.

python jobs/make_fashion_mnist_mini.py /usr/share/datasets/fashion-mnist fedmpi/data/fashion_mnist_mini

Takes the first 600 training and the first 100 test images of each class, and keeps them in their original order.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from fedmpi.data.idx import IDX_NAMES, idx_files, read_idx, write_idx_gz

NUM_CLASSES = 10


def main(source: Path, target: Path) -> None:
    """Write the four files of the small data set into `target`, which must exist."""
    train_images, train_labels, test_images, test_labels = idx_files(source)
    for images_path, labels_path, names, per_class in (
        (train_images, train_labels, IDX_NAMES[:2], 600),
        (test_images, test_labels, IDX_NAMES[2:], 100),
    ):
        images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
        kept = np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(NUM_CLASSES)]))
        for name, values in zip(names, (images[kept], labels[kept]), strict=True):
            write_idx_gz(target / f"{name}.gz", values)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
