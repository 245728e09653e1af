"""What a model was trained on: in words, and as a hash of the samples."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from fedmpi.config import DataConfig
from fedmpi.data.datasets import Dataset


def source_words(data: DataConfig) -> str:
    """Return what a model was trained on in words: the data set, its classes, its images' shape where changed."""
    words = data.name
    if data.classes is not None:
        words += f", classes {' '.join(map(str, data.classes))}"
    changed = data.convert.model_dump(exclude_none=True) if data.convert is not None else {}
    if changed:
        words += f", {' '.join(f'{key} {value}' for key, value in changed.items())}"
    return words


def data_hash(dataset: Dataset) -> str:
    """Return the SHA-256, in hex, over shapes, bytes and labels (int64, little-endian) of the training samples."""
    inputs, labels = dataset.train_inputs, dataset.train_labels
    sha = hashlib.sha256(json.dumps([list(inputs.shape), list(labels.shape)]).encode())
    sha.update(np.ascontiguousarray(inputs).data)
    sha.update(np.ascontiguousarray(labels, "<i8").data)
    return sha.hexdigest()
