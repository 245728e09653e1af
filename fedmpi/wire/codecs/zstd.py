"""Zstandard for bytes whose number the receiver knows: frames without magic number, content size and checksum."""

from __future__ import annotations

import numpy as np
import zstandard

from fedmpi.errors import WireError

_FORMAT = zstandard.FORMAT_ZSTD1_MAGICLESS


def compress(data: np.ndarray, level: int) -> np.ndarray:
    """Return the frame of a contiguous vector of uint8, uint8, read-only.

    Another version of the library may make another frame, which decodes all the same.
    """
    parameters = zstandard.ZstdCompressionParameters.from_level(level, format=_FORMAT, write_content_size=False)
    return np.frombuffer(zstandard.ZstdCompressor(compression_params=parameters).compress(data.data), np.uint8)


def decompress(payload: np.ndarray, nbytes: int, where: str, offset: int) -> np.ndarray:
    """Return the `nbytes` bytes of a frame, uint8, writable; at least one byte.

    Raises
    ------
    WireError
        If the payload is not one whole frame of so many bytes.
    """
    data = payload.tobytes()
    try:
        # The size that a frame states is allocated, whatever max_output_size says, and so is the window it asks for.
        stated = zstandard.get_frame_parameters(data, format=_FORMAT).content_size
        if stated != zstandard.CONTENTSIZE_UNKNOWN:
            raise WireError(f"{where} zstd frame", offset=offset, expected="no content size", got=stated)
        window = max(1 << 10, 1 << nbytes.bit_length())
        decompressor = zstandard.ZstdDecompressor(format=_FORMAT, max_window_size=window)
        found = decompressor.decompress(data, max_output_size=nbytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        expected = f"{nbytes} bytes compressed"
        raise WireError(f"{where} zstd frame", offset=offset, expected=expected, got=str(error)) from None
    if len(found) != nbytes:
        raise WireError(f"{where} zstd frame", offset=offset, expected=f"{nbytes} bytes", got=len(found))
    return np.frombuffer(bytearray(found), np.uint8)
