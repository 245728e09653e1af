"""What a model was trained on, in words and as a hash."""

from __future__ import annotations

import hashlib

import numpy as np

from fedmpi.config import DataConfig
from fedmpi.data.datasets import Dataset, load_dataset
from fedmpi.data.source import data_hash, source_words


def test_hashes_tell_data_apart() -> None:
    hashes = set()
    for change in ({}, {"classes": [0, 1]}, {"classes": [1, 0]}, {"convert": {"height": 9}}):
        data = DataConfig.model_validate(
            {"name": "synthetic", "synthetic": {"num_train": 40, "num_test": 40}, **change}
        )
        hashes.add(data_hash(load_dataset(data, 0)))
        assert data_hash(load_dataset(data, 0)) in hashes
    assert len(hashes) == 4
    assert source_words(DataConfig()) == "fashion_mnist_mini"
    assert source_words(DataConfig.model_validate({"convert": {}})) == "fashion_mnist_mini"


def test_the_hash_by_hand() -> None:
    images, labels = np.arange(4, dtype=np.uint8).reshape(2, 2, 1, 1), np.array([1, 0])
    dataset = Dataset("x", images, labels, images[:1], labels[:1], 2, (0.5,), (0.5,))
    content = b"[[2, 2, 1, 1], [2]]" + bytes([0, 1, 2, 3]) + bytes([1, *[0] * 7, *[0] * 8])
    assert data_hash(dataset) == hashlib.sha256(content).hexdigest()


def test_words() -> None:
    data = DataConfig.model_validate({"name": "mnist", "classes": [3, 1], "convert": {"channels": 3}})
    assert source_words(data) == "mnist, classes 3 1, channels 3"
