"""What a decoder may return: messages whose numbers and values are such as class and schema declare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedmpi.wire.codecs.base import FieldSpec
from fedmpi.wire.message import Message, Schema
from fedmpi.wire.values import Counts, Dense, Labels, Mask, MaskedValues, Numbers, Quantized, Sparse, Value, storage


def check_message(received: Message, schema: Schema) -> None:
    """Fail unless all numbers and values are such as the class and the receiver's schema declare."""
    for number in received.number_fields:
        got = getattr(received, number.name)
        assert type(got) is number.number_class
        assert number.dtype != "int" or -(2**63) <= got < 2**63
    inside: dict[str, np.ndarray] = {}
    for each, spec in zip(received.value_fields, schema.specs(type(received)), strict=True):
        value = getattr(received, each.name)
        if value is None:
            assert each.optional
            continue
        assert type(value) is each.declared.value_class
        _CHECKS[type(value)](value, spec)
        if isinstance(value, MaskedValues):
            bits = inside.get(spec.base)
            held = [reference.array for (name, _), reference in schema.known._held.items() if name == spec.base]
            assert any(np.array_equal(value.mask.array, mask) for mask in ([bits] if bits is not None else held))
        if isinstance(value, Mask):
            inside[each.name] = value.bits


def _check_vector(array: np.ndarray, dtype: Any, where: str) -> None:
    assert isinstance(array, np.ndarray) and array.dtype == dtype and array.ndim == 1, where
    assert array.flags.writeable and array.flags.c_contiguous, where


def _check_numbers(numbers: Numbers, spec: FieldSpec, count: int) -> None:
    if spec.dtype:
        assert isinstance(numbers, np.ndarray)
        _check_vector(numbers, storage(spec.dtype), spec.where)
        assert numbers.size == count
    else:
        assert isinstance(numbers, Quantized)
        _check_quantized(numbers, FieldSpec(spec.where, "", (count,)))


def _check_dense(value: Dense, spec: FieldSpec) -> None:
    assert value.dtype == spec.dtype
    _check_vector(value.array, storage(spec.dtype), spec.where)
    assert spec.accepts(value.array.size)


def _check_mask(value: Mask, spec: FieldSpec) -> None:
    _check_vector(value.bits, np.bool_, spec.where)
    assert spec.accepts(value.bits.size)
    assert value.bits.view(np.uint8).max(initial=0) <= 1


def _check_sparse(value: Sparse, spec: FieldSpec) -> None:
    assert spec.accepts(value.size) and value.dtype == spec.dtype
    assert not spec.max_kept or value.indices.size <= spec.max_kept
    _check_vector(value.indices, np.int64, spec.where)
    assert (np.diff(value.indices) > 0).all()
    assert value.indices.size == 0 or 0 <= value.indices[0] <= value.indices[-1] < value.size
    _check_numbers(value.values, spec, value.indices.size)


def _check_masked_values(value: MaskedValues, spec: FieldSpec) -> None:
    assert value.mask.array.dtype == np.bool_ and value.mask.array.shape == (spec.numel,)
    assert value.dtype == spec.dtype
    _check_numbers(value.values, spec, np.count_nonzero(value.mask.array))


def _check_quantized(value: Quantized, spec: FieldSpec) -> None:
    shape = value.symbols.shape
    assert len(shape) == len(spec.shape) and shape[1:] == spec.shape[1:]
    assert shape[0] <= spec.shape[0] if spec.at_most else shape[0] == spec.shape[0]
    assert value.bits in range(1, 9) and value.axis in (None, 0, 1)
    assert value.symbols.dtype == (np.int8 if value.signed else np.uint8) and value.symbols.flags.writeable
    lowest = -(1 << (value.bits - 1)) if value.signed else 0
    highest = lowest + (1 << value.bits) - 1
    if value.signed and value.bits == 1:
        assert (np.abs(value.symbols) == 1).all() and value.zero_points is None
    elif value.symbols.size:
        assert lowest <= value.symbols.min() and value.symbols.max() <= highest
    count = 1 if value.axis is None else shape[value.axis]
    assert value.scales.dtype == np.float32 and value.scales.shape == (count,) and np.isfinite(value.scales).all()
    if value.zero_points is not None:
        assert value.zero_points.dtype == np.int32 and value.zero_points.shape == (count,)
        assert ((value.zero_points >= lowest) & (value.zero_points <= highest)).all()
    assert value.dequantize().shape == shape


def _check_labels(value: Labels, spec: FieldSpec) -> None:
    _check_vector(value.array, np.int64, spec.where)
    assert spec.accepts(value.array.size) and value.num_classes == spec.num_classes
    assert ((value.array >= 0) & (value.array < spec.num_classes)).all()


def _check_counts(value: Counts, spec: FieldSpec) -> None:
    _check_vector(value.array, np.int64, spec.where)
    assert spec.accepts(value.array.size) and (value.array >= 0).all()


_CHECKS: dict[type[Value], Callable[[Any, FieldSpec], None]] = {
    Dense: _check_dense,
    Mask: _check_mask,
    Sparse: _check_sparse,
    MaskedValues: _check_masked_values,
    Quantized: _check_quantized,
    Labels: _check_labels,
    Counts: _check_counts,
}
