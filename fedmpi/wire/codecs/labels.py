"""Class labels as digits of large numbers: close to log2(classes) bits each, whatever their order.

For C classes, m labels make a number of w bytes, label 0 its lowest digit to the base C: of w = 1 to 8 with the most
labels m each that fit, C^m <= 256^w, the pair with the fewest bytes a label, and of equal ones the shortest. Numbers
are little-endian, one after the other. The last labels, fewer than m, make a number of the fewest whole bytes that hold
their count of digits. Labels of one class take no bytes. Where the count of labels may vary, it is a varint in front.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from fedmpi.config import WireConfig
from fedmpi.errors import WireError
from fedmpi.wire.codecs.base import NAMES, RADIX, Decoded, Encoded, FieldSpec
from fedmpi.wire.codecs.numbers import MAX_VARINT_NBYTES, put_varint, take_varint
from fedmpi.wire.known import Known
from fedmpi.wire.values import Labels, Value

MAX_CLASSES = 1 << 31


@lru_cache(maxsize=64)
def _number_size(num_classes: int) -> tuple[int, int]:
    """Return how many labels make a number, and its bytes."""
    best_digits, best_nbytes = 0, 1
    for nbytes in range(1, 9):
        digits = 0
        while num_classes ** (digits + 1) <= 256**nbytes:
            digits += 1
        if nbytes * best_digits < best_nbytes * digits:
            best_digits, best_nbytes = digits, nbytes
    return best_digits, best_nbytes


def _tail_nbytes(num_classes: int, digits: int) -> int:
    largest: int = num_classes**digits - 1
    return (largest.bit_length() + 7) // 8


def _nbytes(num_classes: int, count: int) -> int:
    if num_classes == 1:
        return 0
    digits, nbytes = _number_size(num_classes)
    return count // digits * nbytes + _tail_nbytes(num_classes, count % digits)


def _to_digits(labels: np.ndarray, num_classes: int, digits: int, nbytes: int) -> np.ndarray:
    """Return labels, (count * digits,) int64, as numbers' bytes, (count * nbytes,) uint8."""
    columns = labels.reshape(-1, digits).astype(np.uint64)
    numbers = np.zeros(len(columns), np.uint64)
    for column in columns.T[::-1]:
        numbers *= np.uint64(num_classes)
        numbers += column
    return numbers.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :nbytes].reshape(-1)


def _from_digits(
    payload: np.ndarray, num_classes: int, digits: int, nbytes: int, where: str, offset: int
) -> np.ndarray:
    """Undo `_to_digits`."""
    padded = np.zeros((payload.size // nbytes, 8), np.uint8)
    padded[:, :nbytes] = payload.reshape(-1, nbytes)
    numbers = padded.view("<u8").reshape(-1).astype(np.uint64)
    wrong = np.flatnonzero(numbers > np.uint64(num_classes**digits - 1))
    if wrong.size:
        expected, got = f"{digits} labels below {num_classes}", f"the number {numbers[wrong[0]]}"
        raise WireError(f"{where} labels", offset=offset + int(wrong[0]) * nbytes, expected=expected, got=got)
    labels = np.empty((len(numbers), digits), np.int64)
    for digit in range(digits):
        numbers, labels[:, digit] = np.divmod(numbers, np.uint64(num_classes))
    return labels.reshape(-1)


def _check_classes(num_classes: int, where: str) -> None:
    if not 1 <= num_classes <= MAX_CLASSES:
        raise ValueError(f"{where}: labels are of 1 to {MAX_CLASSES} classes, got {num_classes}")


class LabelsFormat:
    """Labels from 0 to the number of classes, which both ends know. The section's param byte is 0."""

    def encode(self, value: Value, spec: FieldSpec, wire: WireConfig) -> Encoded:
        assert isinstance(value, Labels)
        array, num_classes = value.array, spec.num_classes
        _check_classes(num_classes, spec.where)
        if value.num_classes != num_classes:
            raise ValueError(f"{spec.where}: expected labels of {num_classes} classes, got {value.num_classes}")
        if array.dtype != np.int64 or array.ndim != 1 or not spec.accepts(array.size):
            expected, got = f"{spec.length_words} labels as an int64 vector", f"{array.dtype} {array.shape}"
            raise ValueError(f"{spec.where}: expected {expected}, got {got}")
        if array.size and not 0 <= int(array.min()) <= int(array.max()) < num_classes:
            wrong = array[(array < 0) | (array >= num_classes)][0]
            raise ValueError(f"{spec.where}: labels are 0 to {num_classes - 1}, got {wrong}")
        head = bytearray()
        if spec.at_most:
            put_varint(array.size, head)
        parts = [np.frombuffer(bytes(head), np.uint8)]
        if num_classes > 1:
            digits, nbytes = _number_size(num_classes)
            whole = array.size - array.size % digits
            rest = array.size - whole
            parts.append(_to_digits(array[:whole], num_classes, digits, nbytes))
            if rest:
                parts.append(_to_digits(array[whole:], num_classes, rest, _tail_nbytes(num_classes, rest)))
        payload = np.concatenate(parts)
        return Encoded(RADIX, NAMES[RADIX], 0, payload, 0, payload.size)

    def alignment(self, codec_id: int, spec: FieldSpec) -> int:
        return 1

    def decode(
        self, codec_id: int, param: int, payload: np.ndarray, spec: FieldSpec, known: Known, offset: int
    ) -> Decoded:
        num_classes = spec.num_classes
        _check_classes(num_classes, spec.where)
        if codec_id != RADIX or param:
            expected, got = f"codec {RADIX}, 0", f"{codec_id}, {param}"
            raise WireError(f"{spec.where} codec", offset=offset, expected=expected, got=got)
        count, start = spec.numel, 0
        if spec.at_most:
            count, start = take_varint(payload[:MAX_VARINT_NBYTES].tobytes(), 0, offset)
            if not spec.accepts(count):
                raise WireError(f"{spec.where} count", offset=offset, expected=spec.length_words, got=count)
        wanted = _nbytes(num_classes, count)
        if payload.size - start != wanted:
            expected = f"{wanted} bytes of {count} labels"
            raise WireError(f"{spec.where} labels", offset=offset + start, expected=expected, got=payload.size - start)
        if num_classes == 1:
            array = np.zeros(count, np.int64)
        else:
            digits, nbytes = _number_size(num_classes)
            rest = count % digits
            end = start + count // digits * nbytes
            array = _from_digits(payload[start:end], num_classes, digits, nbytes, spec.where, offset + start)
            if rest:
                tail = payload[end:]
                last = _from_digits(tail, num_classes, rest, tail.size, spec.where, offset + end)
                array = np.concatenate([array, last])
        return Decoded(Labels(array, num_classes), NAMES[RADIX], 0, payload.size)

    def warm_up(self) -> None:
        pass


FORMAT = LabelsFormat()
