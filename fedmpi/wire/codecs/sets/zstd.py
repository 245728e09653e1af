"""Codec 20: Zstandard of the packed bits."""

from __future__ import annotations

import numpy as np
import zstandard

from fedmpi.errors import WireError
from fedmpi.wire.codecs.sets.base import Positions, from_packed

_LEVEL = 3
_MAGICLESS = zstandard.FORMAT_ZSTD1_MAGICLESS


class Zstd:
    """Zstandard, level 3, of the packed bits; best where positions cluster, as top-k of rows and columns does."""

    codec_id = 20
    name = "zstd"

    def least_nbytes(self, positions: Positions) -> int:
        return 1  # its size cannot be told without running it, which is fast

    def encode(self, positions: Positions) -> np.ndarray:
        if positions.minority.count == 0:
            return np.array([positions.count > 0], np.uint8)
        packed = np.ascontiguousarray(positions.packed)
        parameters = zstandard.ZstdCompressionParameters.from_level(
            _LEVEL, source_size=packed.size, format=_MAGICLESS, write_content_size=0, write_checksum=0, write_dict_id=0
        )
        compressed = zstandard.ZstdCompressor(compression_params=parameters).compress(packed.data)
        return np.frombuffer(compressed, np.uint8)

    def decode(self, payload: np.ndarray, numel: int, where: str, offset: int, max_count: int) -> Positions:
        nbytes = (numel + 7) // 8
        if payload.size == 1 and payload[0] <= 1:
            empty = Positions(numel, indices=np.empty(0, np.int64))
            packed = (empty.complement if payload[0] else empty).packed
        else:
            packed = np.frombuffer(_decompress(payload, nbytes, where, offset), np.uint8)
        return from_packed(packed, numel, where, offset, max_count)


def _decompress(payload: np.ndarray, nbytes: int, where: str, offset: int) -> bytes:
    """Return the `nbytes` bytes of a frame without magic and content size.

    A frame that declares its size is refused: the library would allocate that much, whatever `max_output_size` says.
    """
    most = nbytes + nbytes // 256 + 128  # zstd's own bound of what it makes
    if payload.size > most:
        raise WireError(f"{where} zstd", offset=offset, expected=f"at most {most} bytes", got=payload.size)
    data = payload.tobytes()
    try:
        header = zstandard.get_frame_parameters(data, format=_MAGICLESS)
        if header.content_size != zstandard.CONTENTSIZE_UNKNOWN:
            raise WireError(f"{where} zstd", offset=offset, expected="no content size", got=header.content_size)
        decompressor = zstandard.ZstdDecompressor(
            format=_MAGICLESS, max_window_size=max(1 << 10, 1 << nbytes.bit_length())
        )
        unpacked = decompressor.decompress(data, max_output_size=max(nbytes, 1), allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(f"{where} zstd", offset=offset, expected=f"{nbytes} compressed bytes", got=error) from None
    if len(unpacked) != nbytes:
        raise WireError(f"{where} zstd", offset=offset, expected=f"{nbytes} bytes", got=len(unpacked))
    return unpacked
