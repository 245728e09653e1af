"""What a sample looks like; models are built for it."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias


class ImageShape(NamedTuple):
    """An image: height and width in pixels, channels. A model gets (batch, C, H, W) float32."""

    height: int
    width: int
    channels: int


class TextShape(NamedTuple):
    """A sequence of characters. A model gets (batch, length) int64 and learns the next character at each place.

    Its logits are (batch, num_classes, length), where num_classes is the size of the alphabet.
    """

    length: int


InputShape: TypeAlias = ImageShape | TextShape
