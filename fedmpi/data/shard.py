"""Samples on the device, and a client's share of them as batches gathered into kept buffers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fedmpi.data.datasets import Dataset
from fedmpi.data.shapes import TextShape

_BLOCK_NUMEL = 1 << 18
_PAD = 4


class DeviceData(ABC):
    """Samples and labels of one split on the device, with the buffers that batches are gathered into.

    Parameters
    ----------
    inputs : numpy.ndarray, shape (N, ...), uint8
        Memory-mapped; goes to the device once (on a CPU it stays where it is, shared between ranks).
    labels : numpy.ndarray, shape (N, ...), int64
    device : torch.device

    Attributes
    ----------
    sample_numel : int
        Numbers in one sample.
    """

    def __init__(self, inputs: np.ndarray, labels: np.ndarray, device: torch.device) -> None:
        self._inputs = torch.from_numpy(inputs).to(device)
        self._labels = torch.from_numpy(labels).to(device)
        self.device = device
        self.sample_numel = int(np.prod(inputs.shape[1:]))
        self._kept: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._labels)

    def draw(self, num_samples: int, rng: np.random.Generator) -> Tensor | None:
        """Return what chance decides of that many samples, for `gather`; None if nothing is changed at random."""
        return None

    @abstractmethod
    def gather(self, index_N: Tensor, draws: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the samples of `index_N` as a model takes them, and their labels.

        Both are views of kept buffers: valid until the next call.
        """

    @abstractmethod
    def slice(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return samples `start` to `stop` in their order, as `gather` does."""

    def labels_of(self, index_N: Tensor) -> Tensor:
        """Return the labels of `index_N`, a copy."""
        return self._labels[index_N]

    def _keep(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a kept buffer of this shape: fresh tensors would page-fault on every batch."""
        numel = int(np.prod(shape))
        buffer = self._kept.get(name)
        if buffer is None or buffer.numel() < numel:
            buffer = self._kept[name] = torch.empty(numel, dtype=dtype, device=self.device)
        return buffer[:numel].view(shape)

    def _select(self, name: str, source: Tensor, index_N: Tensor) -> Tensor:
        out = self._keep(name, (index_N.numel(), *source.shape[1:]), source.dtype)
        return torch.index_select(source, 0, index_N, out=out)


class DeviceImages(DeviceData):
    """Images and labels of one split on the device, with the buffers that batches are gathered into.

    Parameters
    ----------
    images : numpy.ndarray, shape (N, H, W, C), uint8
        Memory-mapped; goes to the device once (on a CPU it stays where it is, shared between ranks).
    labels : numpy.ndarray, shape (N,), int64
    dataset : Dataset
        Gives the mean and standard deviation of each channel.
    device : torch.device
    augment : bool
        Random crop after padding by 4 pixels, and horizontal flip with probability 1/2.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, dataset: Dataset, device: torch.device, augment: bool = False
    ) -> None:
        super().__init__(images, labels, device)
        self.augment = augment
        # (pixel / 255 - mean) / std as one multiplication and one subtraction, with a factor for every number of an
        # image: broadcasting over the channels alone takes torch eight times as long.
        num_pixels = images.shape[1] * images.shape[2]
        std = torch.tensor(dataset.std, device=device)
        self._scale = (1.0 / (255.0 * std)).repeat(num_pixels)
        self._shift = (torch.tensor(dataset.mean, device=device) / std).repeat(num_pixels)

    @property
    def images_NHWC(self) -> Tensor:
        """All images, uint8."""
        return self._inputs

    @property
    def labels_N(self) -> Tensor:
        """All labels, int64."""
        return self._labels

    def draw(self, num_samples: int, rng: np.random.Generator) -> Tensor | None:
        """Return (num_samples, 3): vertical and horizontal offset of the crop, and whether to flip."""
        if not self.augment:
            return None
        draws = rng.integers(0, [2 * _PAD + 1, 2 * _PAD + 1, 2], (num_samples, 3))
        return torch.from_numpy(draws).to(self.device)

    def _normalize(self, pixels_NHWC: Tensor) -> Tensor:
        out = self._keep("float", tuple(pixels_NHWC.shape), torch.float32)
        out.copy_(pixels_NHWC)
        out.view(out.shape[0], -1).mul_(self._scale).sub_(self._shift)
        return out

    def _crop_flip(self, pixels_NHWC: Tensor, draws_N3: Tensor) -> Tensor:
        n, height, width, channels = pixels_NHWC.shape
        padded = self._keep("padded", (n, height + 2 * _PAD, width + 2 * _PAD, channels), torch.uint8)
        padded.zero_()
        padded[:, _PAD:-_PAD, _PAD:-_PAD] = pixels_NHWC
        rows_NH = draws_N3[:, :1] + torch.arange(height, device=self.device)
        cols_NW = draws_N3[:, 1:2] + torch.arange(width, device=self.device)
        cols_NW = torch.where(draws_N3[:, 2:] == 1, cols_NW.flip(1), cols_NW)
        first_N11 = (torch.arange(n, device=self.device) * (height + 2 * _PAD))[:, None, None]
        pixel_NHW = (first_N11 + rows_NH[:, :, None]) * (width + 2 * _PAD) + cols_NW[:, None, :]
        out = self._keep("cropped", (n * height * width, channels), torch.uint8)
        torch.index_select(padded.view(-1, channels), 0, pixel_NHW.view(-1), out=out)
        return out.view(n, height, width, channels)

    def gather(self, index_N: Tensor, draws: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the images of `index_N` as (n, C, H, W) float32, channels last in memory, and their labels (n,)."""
        pixels = self._select("pixels", self._inputs, index_N)
        if draws is not None:
            pixels = self._crop_flip(pixels, draws)
        return self._normalize(pixels).permute(0, 3, 1, 2), self._select("labels", self._labels, index_N)

    def slice(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self._normalize(self._inputs[start:stop]).permute(0, 3, 1, 2), self._labels[start:stop]


class DeviceText(DeviceData):
    """Sequences of characters, (N, T) uint8, and the next character at each place, (N, T) int64."""

    def gather(self, index_N: Tensor, draws: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the sequences of `index_N` and their labels, both (n, T) int64."""
        characters = self._select("characters", self._inputs, index_N)
        return self._widen(characters), self._select("labels", self._labels, index_N)

    def slice(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        return self._widen(self._inputs[start:stop]), self._labels[start:stop]

    def _widen(self, characters_NT: Tensor) -> Tensor:
        return self._keep("int64", tuple(characters_NT.shape), torch.int64).copy_(characters_NT)


def device_data(
    dataset: Dataset, split: Literal["train", "test"], device: torch.device, augment: bool = False
) -> DeviceData:
    """Put one split of a data set on the device.

    Parameters
    ----------
    dataset : Dataset
    split : "train" or "test"
    device : torch.device
    augment : bool
        Crop and flip images at random. Text stays as it is: `check_data_config` refuses the setting for it.
    """
    if split == "train":
        inputs, labels = dataset.train_inputs, dataset.train_labels
    else:
        inputs, labels = dataset.test_inputs, dataset.test_labels
    if isinstance(dataset.shape, TextShape):
        return DeviceText(inputs, labels, device)
    return DeviceImages(inputs, labels, dataset, device, augment)


class Shard:
    """One client's data for the length of its turn: indices into the shared samples, no copy.

    Parameters
    ----------
    data : DeviceData
    index_N : numpy.ndarray, shape (num_samples,), int64
    """

    def __init__(self, data: DeviceData, index_N: np.ndarray) -> None:
        self.data = data
        self._index_N = index_N
        self.num_samples = int(index_N.size)

    def batches(self, batch_size: int, num_epochs: int, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield shuffled batches, epoch after epoch; the last of an epoch may be smaller.

        Parameters
        ----------
        batch_size, num_epochs : int
        rng : numpy.random.Generator
            The client's own stream: decides order, crops and flips.

        Yields
        ------
        x : Tensor
            Images (B, C, H, W) float32, or characters (B, T) int64.
        y : Tensor, int64
            (B,) or (B, T). Both are valid until the next batch.
        """
        for _ in range(num_epochs):
            yield from self.plan(batch_size, 1, rng)

    def plan(
        self,
        batch_size: int,
        num_epochs: int,
        rng: np.random.Generator,
        chance: np.random.Generator | None = None,
    ) -> Batches:
        """Settle which samples `batches` would yield, without gathering them yet.

        With `chance`, that decides crops and flips, and `rng` the order alone.
        """
        epochs = []
        for _ in range(num_epochs):
            positions_N = torch.from_numpy(rng.permutation(self.num_samples))
            epochs.append((positions_N, self.data.draw(self.num_samples, chance or rng)))
        return Batches(self.data, torch.from_numpy(self._index_N), batch_size, epochs)


class Batches:
    """The batches of one turn: which samples come when is settled, what they hold is gathered while they are taken.

    Parameters
    ----------
    data : DeviceData
    index_N : Tensor, shape (num_samples,), int64
        The client's samples.
    batch_size : int
    epochs : list of (Tensor, Tensor or None)
        For each epoch the order of the samples, positions in `index_N`, and what chance decides of each.
    """

    def __init__(
        self, data: DeviceData, index_N: Tensor, batch_size: int, epochs: list[tuple[Tensor, Tensor | None]]
    ) -> None:
        self._data = data
        self._index_N = index_N
        self._batch_size = batch_size
        self._epochs = epochs

    def labels(self) -> Tensor:
        """Return the labels of all batches one after the other, (num_epochs * num_samples, ...) int64, a copy."""
        order = torch.cat([self._index_N[positions] for positions, _ in self._epochs])
        return self._data.labels_of(order.to(self._data.device))

    def positions(self) -> Iterator[Tensor]:
        """Yield, for each batch, where its samples stand among the client's, (B,) int64."""
        for positions_N, _ in self._epochs:
            yield from torch.split(positions_N, self._batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches as `Shard.batches` does."""
        # Several batches are gathered and prepared at once: on small samples a batch's own work is mostly overhead.
        size = self._batch_size
        block = size * max(1, _BLOCK_NUMEL // (self._data.sample_numel * size))
        for positions_N, draws in self._epochs:
            order = self._index_N[positions_N].to(self._data.device)
            for start in range(0, len(order), block):
                rows = slice(start, start + block)
                x, y = self._data.gather(order[rows], draws[rows] if draws is not None else None)
                yield from zip(torch.split(x, size), torch.split(y, size), strict=True)
