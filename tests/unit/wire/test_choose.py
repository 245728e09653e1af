"""The choice among ways to say where: its estimates are near, and what a field may have is checked."""

from __future__ import annotations

import numpy as np
import pytest

from fedmpi.wire.codecs import choose
from fedmpi.wire.codecs.base import FieldSpec
from fedmpi.wire.codecs.positions import Positions, encode_set
from fedmpi.wire.known import KnownMask


@pytest.mark.parametrize("numel", [0, 1, 9, 1000, 200_000])
@pytest.mark.parametrize("density", [0.0, 0.001, 0.03, 0.2, 0.5, 0.9, 1.0])
def test_the_estimate_of_a_random_set_is_from_below_and_near(numel: int, density: float) -> None:
    rng = np.random.default_rng(0)
    indices = np.sort(rng.choice(numel, int(numel * density), replace=False))
    estimate = choose.set_nbytes(numel, indices.size)
    exact = encode_set(Positions.from_indices(indices, numel)).payload.size
    assert exact - 20 - 0.015 * exact <= estimate <= exact + 2


def test_a_value_of_another_length_is_not_made_of_the_tensors() -> None:
    segments = np.array([0, 3, 9])
    spec = FieldSpec("Test", "", (9,), at_most=True, segments=segments)
    assert choose.segments_of(spec, 9) is segments
    assert choose.segments_of(spec, 8) is None
    assert choose.segments_of(FieldSpec("Test", "", (9,)), 9) is None


def test_references_that_fit_are_accepted() -> None:
    spec = FieldSpec("Test", "", (9,), base="before")
    choose.check_references(spec, 9)
    choose.check_references(spec, 9, KnownMask(np.zeros(9, np.bool_), 0))


def test_only_what_is_allowed_is_chosen() -> None:
    base = KnownMask(np.random.default_rng(0).random(3000) < 0.5, 1)
    choice = choose.Choice(Positions.from_mask(base.array), np.array([0, 3000]), base)
    nothing: frozenset[int] = frozenset()
    for codec in ("auto", "ranks", "change", "layers"):
        codec_id, payload = choose.encode_positions(choice, codec, nothing)
        assert payload.size == choose.encode_positions(choice, "bits", nothing)[1].size == 375
        assert codec_id == choose.BITS
