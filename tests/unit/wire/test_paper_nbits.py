"""What papers count for each value: 32 bits a number and an index, 1 a mask's position, the bits a symbol has."""

from __future__ import annotations

import numpy as np
import pytest

from fedmpi.wire.known import KnownMask, KnownProbabilities, KnownVector
from fedmpi.wire.message import (
    Message,
    Schema,
    counts,
    dense,
    labels,
    mask,
    masked_values,
    message,
    quantized,
    single,
    sparse,
)
from fedmpi.wire.values import Counts, Dense, Labels, Mask, MaskedValues, Quantized, Sparse, storage

WIDTHS = [
    ("float32", 32), ("float64", 32), ("float16", 16), ("bfloat16", 16), ("int64", 32), ("int32", 32), ("uint8", 8)
]  # fmt: skip
FOUR_BITS = Quantized(np.zeros(3, np.uint8), 4, np.ones(1, np.float32))


def known(numel: int) -> KnownMask:
    return KnownMask(np.ones(numel, np.bool_), 0)


@pytest.mark.parametrize(("dtype", "width"), WIDTHS)
def test_a_number_is_32_bits_unless_its_dtype_is_narrower(dtype: str, width: int) -> None:
    numbers = np.zeros(5, storage(dtype))
    assert Dense(numbers, dtype=dtype).paper_nbits == 5 * width
    assert Dense(numbers, dtype=dtype, base=KnownVector(numbers, 0)).paper_nbits == 5 * width
    assert MaskedValues(numbers, known(5), dtype).paper_nbits == 5 * width


@pytest.mark.parametrize(("dtype", "width"), WIDTHS)
def test_a_sparse_entry_is_a_32_bit_index_and_a_number(dtype: str, width: int) -> None:
    value = Sparse(1000, np.arange(5), np.zeros(5, storage(dtype)), dtype)
    assert value.paper_nbits == 5 * (32 + width)
    assert Sparse(1000, np.arange(5), value.values, dtype, known(1000)).paper_nbits == 5 * (32 + width)


def test_a_mask_is_a_bit_a_position_whatever_both_ends_hold() -> None:
    bits = np.array([True, False, True])
    prior = KnownProbabilities(np.full(3, 2048, np.uint16), 0)
    assert {Mask(bits).paper_nbits, Mask(bits, prior).paper_nbits, Mask(bits, None, known(3)).paper_nbits} == {3.0}


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_quantized_numbers_are_their_bits_and_32_a_scale(bits: int) -> None:
    symbols = np.zeros((6, 5), np.uint8)
    assert Quantized(symbols, bits, np.ones(1, np.float32)).paper_nbits == 30 * bits + 32
    assert Quantized(symbols, bits, np.ones(6, np.float32), axis=0).paper_nbits == 30 * bits + 6 * 32
    # Papers do not count zero points.
    points = np.zeros(5, np.int32)
    assert Quantized(symbols, bits, np.ones(5, np.float32), points, 1).paper_nbits == 30 * bits + 5 * 32


def test_quantized_numbers_at_positions() -> None:
    assert MaskedValues(FOUR_BITS, known(3)).paper_nbits == 3 * 4 + 32
    assert Sparse(9, np.arange(3), FOUR_BITS).paper_nbits == 3 * (32 + 4) + 32


def test_labels_and_counts_are_32_bits_each() -> None:
    assert Labels(np.zeros(7, np.int64), 10).paper_nbits == 7 * 32
    assert Counts(np.zeros(7, np.int64)).paper_nbits == 7 * 32


def test_nothing_is_0() -> None:
    none = np.zeros(0, np.int64)
    assert Dense(none).paper_nbits == Sparse(9, none, none).paper_nbits == Mask(none.astype(np.bool_)).paper_nbits == 0
    assert Labels(none, 10).paper_nbits == Counts(none).paper_nbits == 0


@message("paper.all", "up")
class All(Message):
    num_samples: int
    loss: float
    norm: float = single()
    vector: Dense | None = dense(4)
    kept: Mask | None = mask(9)
    update: Sparse | None = sparse(1000)
    at_kept: MaskedValues | None = masked_values(9, mask="kept")
    cut: Quantized | None = quantized((2, 3))
    classes: Labels | None = labels(5, num_classes=10)
    per_class: Counts | None = counts(10)


SCHEMA = Schema({"params": 1000}, 0)
NOTHING = dict.fromkeys(("vector", "kept", "update", "at_kept", "cut", "classes", "per_class"))


def test_a_message_is_the_sum_of_its_values_without_its_plain_numbers() -> None:
    values = {
        "vector": Dense(np.zeros(4, np.float32)),
        "kept": Mask(np.ones(9, np.bool_)),
        "update": Sparse(1000, np.arange(3), np.zeros(3, np.float32)),
        "at_kept": MaskedValues(np.zeros(9, np.float32), known(9)),
        "cut": Quantized(np.zeros((2, 3), np.uint8), 4, np.ones(1, np.float32)),
        "classes": Labels(np.zeros(5, np.int64), 10),
        "per_class": Counts(np.zeros(10, np.int64)),
    }
    sent = All(num_samples=600, loss=0.5, norm=0.5, **values)
    # 4 numbers, 9 positions, 3 entries, 9 numbers, 6 symbols of 4 bits and a scale, 5 labels, 10 counts.
    assert sent.paper_nbits(SCHEMA) == 4 * 32 + 9 + 3 * 64 + 9 * 32 + (6 * 4 + 32) + 5 * 32 + 10 * 32
    assert All(num_samples=600, loss=0.5, norm=0.5, **NOTHING).paper_nbits(SCHEMA) == 0


def test_numbers_that_no_value_carries_are_32_bits_each() -> None:
    """As those of a model that a seed stands for."""

    @message("paper.seed", "down")
    class Seed(Message):
        seed: int

        def num_params(self, schema: Schema) -> int:
            return schema.size("params")

    assert Seed(seed=5).paper_nbits(SCHEMA) == 1000 * 32


def test_a_message_may_state_its_papers_own_count() -> None:
    @message("paper.own", "up")
    class Own(Message):
        kept: Mask = mask("params")

        def paper_nbits(self, schema: Schema) -> float:
            return schema.size("params") / 2

    assert Own(kept=Mask(np.ones(1000, np.bool_))).paper_nbits(SCHEMA) == 500
