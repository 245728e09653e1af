"""Zstandard for bytes whose number the receiver knows: frames without magic number, content size and checksum."""

from __future__ import annotations

from functools import lru_cache
from threading import get_ident

import numpy as np
import zstandard

from fedmpi.errors import WireError

_FORMAT = zstandard.FORMAT_ZSTD1_MAGICLESS


def compress(data: np.ndarray, level: int, *, sized: bool = False) -> np.ndarray:
    """Return the frame of a contiguous vector of uint8, uint8, read-only.

    Another version of the library may make another frame, which decodes all the same.

    Parameters
    ----------
    data : numpy.ndarray, shape (n,), uint8
    level : int
        1 to 22.
    sized : bool
        Whether the level means what it does for n bytes, rather than for many. Neither is always the smaller.
    """
    # A level's parameters are the same up to the next power of two.
    size_nbits = max(data.size - 1, 0).bit_length() if sized else None
    return np.frombuffer(_compressor(level, size_nbits, get_ident()).compress(data.data), np.uint8)


@lru_cache(maxsize=32)
def _compressor(level: int, size_nbits: int | None, thread: int) -> zstandard.ZstdCompressor:
    """Return a thread's compressor, for bytes up to 2^size_nbits: to make one takes as long as some thousand bytes."""
    size = 0 if size_nbits is None else 1 << size_nbits
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=size, format=_FORMAT, write_content_size=False
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


def decompress(payload: np.ndarray, nbytes: int, where: str, offset: int) -> np.ndarray:
    """Return the `nbytes` bytes of a frame, uint8, writable.

    Raises
    ------
    WireError
        If the payload is not one whole frame of so many bytes.
    """
    what = f"{where} zstd frame"
    most = nbytes + nbytes // 256 + 128  # the library's own bound of what it makes
    if payload.size > most:
        raise WireError(what, offset=offset, expected=f"at most {most} bytes", got=payload.size)
    data = payload.tobytes()
    try:
        # The size that a frame states is allocated, whatever max_output_size says, and so is the window it asks for.
        stated = zstandard.get_frame_parameters(data, format=_FORMAT).content_size
        if stated != zstandard.CONTENTSIZE_UNKNOWN:
            raise WireError(what, offset=offset, expected="no content size", got=stated)
        window = max(1 << 10, 1 << nbytes.bit_length())
        decompressor = zstandard.ZstdDecompressor(format=_FORMAT, max_window_size=window)
        # An output of at most 0 bytes means one of a stated size.
        found = decompressor.decompress(data, max_output_size=max(nbytes, 1), allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(what, offset=offset, expected=f"{nbytes} bytes compressed", got=str(error)) from None
    if len(found) != nbytes:
        raise WireError(what, offset=offset, expected=f"{nbytes} bytes", got=len(found))
    return np.frombuffer(bytearray(found), np.uint8)
