"""Quantized numbers: their scales and zero points as they are, their symbols packed or entropy coded.

A payload is the first dimension as a varint where it may vary, the scales (float32), the zero points if there are any
(1 byte each), and the symbols. Signed symbols and zero points travel with 2^(bits - 1) added, so that all are from 0.

For the context coder (see `neighbours`) the symbol that stands for 0 is the zero point as it travels: of several, in
ascending order, the one at index s // 2; of none, 2^(bits - 1) if symbols are signed, else 0.
"""

from __future__ import annotations

import math

import numpy as np

from fedmpi.config import WireConfig
from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import CONTEXT, NAMES, ORDER0, PACKED, Decoded, Encoded, FieldSpec
from fedmpi.wire.codecs.bitpack import pack, packed_nbytes, unpack
from fedmpi.wire.codecs.context import SCALE_BITS, decode_in_context, encode_in_context
from fedmpi.wire.codecs.neighbours import Classified, classify, group
from fedmpi.wire.codecs.numbers import MAX_VARINT_NBYTES, put_varint, take_varint
from fedmpi.wire.codecs.rans import STATES_NBYTES, decode_symbols, encode_symbols
from fedmpi.wire.codecs.tables import put_table, quantize_counts, take_table
from fedmpi.wire.known import Known
from fedmpi.wire.values import Quantized, Value

_SIGNED = 1 << 3
_ZERO_POINTS = 1 << 4
_AXIS_SHIFT = 5
_AXES = (None, 0, 1)

_CLOSE = 1.003
_CLOSE_NBYTES = 16
"""Estimates nearer to the least one than this are no judgement: the payloads themselves are compared."""

_SMALL_NBYTES = 512
"""Packed bytes below which all payloads are compared: what lanes and tables take is a matter of luck there."""


class QuantizedFormat:
    """Symbols of 1 to 8 bits with their scales.

    The section's param byte is bits - 1, plus 8 if symbols are signed, 16 if there are zero points, and 32 or 64 for
    a scale for each index of axis 0 or 1.
    """

    def encode(self, value: Value, spec: FieldSpec, wire: WireConfig) -> Encoded:
        assert isinstance(value, Quantized)
        _check_shape(value, spec)
        head = bytearray()
        if spec.at_most:
            put_varint(value.symbols.shape[0], head)
        head += _checked_scales(value, spec.where).astype("<f4").tobytes()
        head += _checked_zero_points(value, spec.where).tobytes()
        stored = _checked_symbols(value, spec.where)
        level = _level(value.zero_points, value.bits, value.signed)
        codec_id, symbols = _encode_symbols(stored, value.symbols.shape, value.bits, level, wire.quantized)
        param = value.bits - 1 | _AXES.index(value.axis) << _AXIS_SHIFT
        param |= _SIGNED * value.signed | _ZERO_POINTS * (value.zero_points is not None)
        payload = np.concatenate([np.frombuffer(bytes(head), np.uint8), symbols])
        return Encoded(codec_id, NAMES[codec_id], param, payload, 0, payload.size)

    def alignment(self, codec_id: int, spec: FieldSpec) -> int:
        return 1

    def decode(
        self, codec_id: int, param: int, payload: np.ndarray, spec: FieldSpec, known: Known, offset: int
    ) -> Decoded:
        where = spec.where
        if codec_id not in (PACKED, ORDER0, CONTEXT):
            raise WireError(f"{where} codec", offset=offset, expected="a codec of quantized numbers", got=codec_id)
        axis_code = param >> _AXIS_SHIFT
        if axis_code >= len(_AXES) or axis_code >= len(spec.shape) + 1:
            expected = f"an axis below {min(len(_AXES) - 1, len(spec.shape))}, or none"
            raise WireError(f"{where} param byte", offset=offset, expected=expected, got=param)
        bits, signed, axis = (param & 7) + 1, bool(param & _SIGNED), _AXES[axis_code]
        if signed and bits == 1 and param & _ZERO_POINTS:
            raise WireError(f"{where} param byte", offset=offset, expected="no zero points of signs", got=param)
        shape, position = _take_shape(payload, spec, offset)
        num_scales = 1 if axis is None else shape[axis]
        num_zero_points = num_scales if param & _ZERO_POINTS else 0
        end = position + 4 * num_scales + num_zero_points
        if end > payload.size:
            expected = f"{num_scales} scales and {num_zero_points} zero points"
            got = f"{payload.size - position} bytes"
            raise WireError(f"{where} scales", offset=offset + position, expected=expected, got=got)
        scales = payload[position : end - num_zero_points].copy().view("<f4").astype(np.float32)
        if not np.isfinite(scales).all():
            raise WireError(f"{where} scales", offset=offset + position, expected="finite ones", got="NaN or infinity")
        zero_points = None
        if param & _ZERO_POINTS:
            stored = payload[end - num_zero_points : end]
            if stored.size and int(stored.max()) >> bits:
                expected = f"0 to {(1 << bits) - 1}"
                at = offset + end - num_zero_points
                raise WireError(f"{where} zero points", offset=at, expected=expected, got=int(stored.max()))
            zero_points = stored.astype(np.int32) - _added(bits, signed)
        level = _level(zero_points, bits, signed)
        stored = _decode_symbols(codec_id, payload[end:], shape, bits, level, where, offset + end)
        symbols = _signed(stored, bits) if signed else stored
        value = Quantized(symbols.reshape(shape), bits, scales, zero_points, axis)
        return Decoded(value, NAMES[codec_id], 0, payload.size)

    def warm_up(self) -> None:
        symbols = np.arange(8 * 2 * 4, dtype=np.uint8).reshape(8, 2, 4) // 8
        spec = FieldSpec("warm-up", "", symbols.shape)
        value = Quantized(symbols, 3, np.ones(1, np.float32))
        for codec in ("auto", "packed", "order0", "context"):
            section = self.encode(value, spec, WireConfig(quantized=codec))
            self.decode(section.codec_id, section.param, section.payload, spec, Known(), 0)


def _signed(stored: np.ndarray, bits: int) -> np.ndarray:
    """Return signed symbols, int8, from what travels; those of 1 bit are -1 and 1."""
    if bits == 1:
        return (2 * stored).view(np.int8) - np.int8(1)
    return (stored - np.uint8(_added(bits, True))).view(np.int8)


def _added(bits: int, signed: bool) -> int:
    return 1 << (bits - 1) if signed else 0


def _level(zero_points: np.ndarray | None, bits: int, signed: bool) -> int:
    """Return the symbol, as it travels, that stands for 0; see the module."""
    zero_point = int(np.sort(zero_points)[zero_points.size // 2]) if zero_points is not None and zero_points.size else 0
    return zero_point + _added(bits, signed)


def _check_shape(value: Quantized, spec: FieldSpec) -> None:
    shape = value.symbols.shape
    first_fits = shape[:1] <= spec.shape[:1] if spec.at_most else shape[:1] == spec.shape[:1]
    if len(shape) != len(spec.shape) or not shape or shape[1:] != spec.shape[1:] or not first_fits:
        at_most = "at most " if spec.at_most else ""
        raise ValueError(f"{spec.where}: expected symbols of shape {at_most}{spec.shape}, got {shape}")
    if value.symbols.dtype not in (np.uint8, np.int8):
        raise ValueError(f"{spec.where}: symbols must be uint8 or int8, got {value.symbols.dtype}")
    if value.bits not in range(1, 9):
        raise ValueError(f"{spec.where}: symbols have 1 to 8 bits, got {value.bits}")
    if value.axis not in _AXES or (value.axis == 1 and len(shape) < 2):
        raise ValueError(
            f"{spec.where}: scales are for all, for axis 0 or for axis 1; got axis {value.axis} of {len(shape)}"
        )


def _checked_scales(value: Quantized, where: str) -> np.ndarray:
    scales = value.scales
    wanted = (1 if value.axis is None else value.symbols.shape[value.axis],)
    if scales.dtype != np.float32 or scales.shape != wanted:
        raise ValueError(f"{where}: expected scales float32 of shape {wanted}, got {scales.dtype} {scales.shape}")
    if not np.isfinite(scales).all():
        raise ValueError(f"{where}: a scale is {'NaN' if np.isnan(scales).any() else 'infinite'}")
    return scales


def _range(value: Quantized) -> tuple[int, int]:
    lowest = -_added(value.bits, value.signed)
    return lowest, lowest + (1 << value.bits) - 1


def _checked_zero_points(value: Quantized, where: str) -> np.ndarray:
    """Return the zero points as they travel, uint8; none if there are none."""
    zero_points = value.zero_points
    if zero_points is None:
        return np.empty(0, np.uint8)
    if value.signed and value.bits == 1:
        raise ValueError(f"{where}: signed symbols of 1 bit are -1 and 1 and have no zero points")
    if zero_points.dtype != np.int32 or zero_points.shape != value.scales.shape:
        expected, got = f"int32 of shape {value.scales.shape}", f"{zero_points.dtype} {zero_points.shape}"
        raise ValueError(f"{where}: expected zero points {expected}, got {got}")
    lowest, highest = _range(value)
    wrong = zero_points[(zero_points < lowest) | (zero_points > highest)]
    if wrong.size:
        raise ValueError(f"{where}: zero points of {value.bits} bits are {lowest} to {highest}, got {wrong[0]}")
    return (zero_points - lowest).astype(np.uint8)


def _checked_symbols(value: Quantized, where: str) -> np.ndarray:
    """Return the symbols as they travel, uint8 of shape (n,)."""
    flat = np.ascontiguousarray(value.symbols).reshape(-1)
    if value.signed and value.bits == 1:
        if (np.abs(flat) != 1).any():
            raise ValueError(f"{where}: signed symbols of 1 bit are -1 and 1, got {flat[np.abs(flat) != 1][0]}")
        return (flat > 0).view(np.uint8)
    # What is too low wraps around and is too high.
    stored = flat.view(np.uint8) + np.uint8(_added(value.bits, True)) if value.signed else flat
    if value.bits < 8 and stored.size and int(stored.max()) >> value.bits:
        lowest, highest = _range(value)
        got = int(flat[stored.argmax()])
        raise ValueError(f"{where}: symbols of {value.bits} bits are {lowest} to {highest}, got {got}")
    return stored


def _encode_symbols(
    stored: np.ndarray, shape: tuple[int, ...], bits: int, level: int, wanted: str
) -> tuple[int, np.ndarray]:
    """Return the codec and its bytes: the one that is wanted, or the smallest for "auto"."""
    packed = packed_nbytes(stored.size, bits)
    if stored.size == 0 or wanted == "packed" or (wanted == "auto" and packed <= STATES_NBYTES):
        return PACKED, pack(stored, bits)
    classified = classify(stored, shape, bits, level)
    if wanted == "order0":
        return ORDER0, _encode_order0(stored, classified)
    grouped = group(classified.counts)
    if wanted == "context":
        return CONTEXT, encode_in_context(stored, shape, classified, grouped.starts)
    is_small = packed < _SMALL_NBYTES
    estimates = {ORDER0: grouped.single_nbits / 8 + STATES_NBYTES}
    if grouped.starts.sum() > 1 or is_small:
        estimates[CONTEXT] = grouped.nbits / 8 + STATES_NBYTES
    enough = min(packed, *estimates.values()) * _CLOSE + _CLOSE_NBYTES
    best, payload = PACKED, None
    for codec_id in (number for number, nbytes in estimates.items() if is_small or nbytes <= enough):
        if codec_id == ORDER0:
            coded = _encode_order0(stored, classified)
        else:
            coded = encode_in_context(stored, shape, classified, grouped.starts)
        if coded.size < (packed if payload is None else payload.size):
            best, payload = codec_id, coded
    return best, pack(stored, bits) if payload is None else payload


def _encode_order0(stored: np.ndarray, classified: Classified) -> np.ndarray:
    freqs = quantize_counts(classified.counts.sum(axis=0), SCALE_BITS)
    return np.concatenate([put_table(freqs), encode_symbols(stored, freqs, SCALE_BITS)])


def _take_shape(payload: np.ndarray, spec: FieldSpec, offset: int) -> tuple[tuple[int, ...], int]:
    """Return the symbols' shape and where the payload goes on."""
    if not spec.at_most:
        return spec.shape, 0
    length, position = take_varint(payload[:MAX_VARINT_NBYTES].tobytes(), 0, offset)
    if length > spec.shape[0]:
        raise WireError(f"{spec.where} length", offset=offset, expected=f"at most {spec.shape[0]}", got=length)
    return (length, *spec.shape[1:]), position


def _decode_symbols(
    codec_id: int, payload: np.ndarray, shape: tuple[int, ...], bits: int, level: int, where: str, offset: int
) -> np.ndarray:
    """Return the symbols as they travel, uint8 of shape (n,), in memory of their own."""
    count = math.prod(shape)
    if codec_id == PACKED or count == 0:
        symbols = unpack(payload, count, bits, where, offset)
        return symbols.copy() if bits == 8 else symbols
    if codec_id == CONTEXT:
        return decode_in_context(payload, shape, bits, level, where, offset)
    freqs, nbytes = take_table(payload, 1 << bits, SCALE_BITS, where, offset)
    if not freqs.any():
        raise WireError(f"{where} table", offset=offset, expected=f"{count} symbols", got="a table without symbols")
    return decode_symbols(payload[nbytes:], count, freqs, SCALE_BITS, where, offset + nbytes)


FORMAT = QuantizedFormat()
