"""Images on the device, and a client's share of them as batches gathered into kept buffers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fedmpi.data.datasets import Dataset

_BLOCK_NUMEL = 1 << 18
_PAD = 4


class DeviceImages:
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
        self.images_NHWC = torch.from_numpy(images).to(device)
        self.labels_N = torch.from_numpy(labels).to(device)
        self.device = device
        self.augment = augment
        # (pixel / 255 - mean) / std as one multiplication and one subtraction, with a factor for every number of an
        # image: broadcasting over the channels alone takes torch eight times as long.
        num_pixels = images.shape[1] * images.shape[2]
        std = torch.tensor(dataset.std, device=device)
        self._scale = (1.0 / (255.0 * std)).repeat(num_pixels)
        self._shift = (torch.tensor(dataset.mean, device=device) / std).repeat(num_pixels)
        self._kept: dict[str, Tensor] = {}

    def _keep(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a kept buffer of this shape: fresh tensors would page-fault on every batch."""
        numel = int(np.prod(shape))
        buffer = self._kept.get(name)
        if buffer is None or buffer.numel() < numel:
            buffer = self._kept[name] = torch.empty(numel, dtype=dtype, device=self.device)
        return buffer[:numel].view(shape)

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

    def gather(self, index_N: Tensor, draws_N3: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the images of `index_N` as (n, C, H, W) float32, channels last in memory, and their labels.

        Both are views of kept buffers: valid until the next call.
        """
        shape = (index_N.numel(), *self.images_NHWC.shape[1:])
        pixels = self._keep("pixels", shape, torch.uint8)
        torch.index_select(self.images_NHWC, 0, index_N, out=pixels)
        if draws_N3 is not None:
            pixels = self._crop_flip(pixels, draws_N3)
        labels = self._keep("labels", (index_N.numel(),), torch.int64)
        torch.index_select(self.labels_N, 0, index_N, out=labels)
        return self._normalize(pixels).permute(0, 3, 1, 2), labels

    def slice(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return images `start` to `stop` in their order, as `gather` does."""
        return self._normalize(self.images_NHWC[start:stop]).permute(0, 3, 1, 2), self.labels_N[start:stop]


class Shard:
    """One client's data for the length of its turn: indices into the shared images, no copy.

    Parameters
    ----------
    data : DeviceImages
    index_N : numpy.ndarray, shape (num_samples,), int64
    """

    def __init__(self, data: DeviceImages, index_N: np.ndarray) -> None:
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
        x_BCHW : Tensor, float32
        y_B : Tensor, int64
            Both valid until the next batch.
        """
        # Several batches are gathered and normalized at once: on small images a batch's own work is mostly overhead.
        per_image = int(np.prod(self.data.images_NHWC.shape[1:]))
        block = batch_size * max(1, _BLOCK_NUMEL // (per_image * batch_size))
        for _ in range(num_epochs):
            order = torch.from_numpy(self._index_N[rng.permutation(self.num_samples)]).to(self.data.device)
            draws = self._draw(rng) if self.data.augment else None
            for start in range(0, self.num_samples, block):
                rows = slice(start, start + block)
                x, y = self.data.gather(order[rows], draws[rows] if draws is not None else None)
                yield from zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True)

    def _draw(self, rng: np.random.Generator) -> Tensor:
        """Return (num_samples, 3): vertical and horizontal offset of the crop, and whether to flip."""
        draws = rng.integers(0, [2 * _PAD + 1, 2 * _PAD + 1, 2], (self.num_samples, 3))
        return torch.from_numpy(draws).to(self.data.device)
