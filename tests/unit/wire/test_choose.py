"""The choice among ways to say where: its estimates are near, and what a field may have is checked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmpi.wire.codecs import choose, estimates
from fedmpi.wire.codecs.base import CHANGE, LAYERS, NAMES, RANKS, FieldSpec
from fedmpi.wire.codecs.change import moves_of
from fedmpi.wire.codecs.positions import Positions, encode_set, set_codec_names
from fedmpi.wire.known import KnownMask

FOR_MASKS = frozenset({LAYERS, CHANGE, RANKS})
FOR_SPARSE = frozenset({LAYERS, RANKS})


@pytest.mark.parametrize("numel", [0, 1, 9, 1000, 200_000])
@pytest.mark.parametrize("density", [0.0, 0.001, 0.03, 0.2, 0.5, 0.9, 1.0])
def test_the_estimate_of_a_random_set_is_from_below_and_near(numel: int, density: float) -> None:
    rng = np.random.default_rng(0)
    indices = np.sort(rng.choice(numel, int(numel * density), replace=False))
    estimate = estimates.set_nbytes(numel, indices.size)
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


def choices(numel: int, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return pairs of a mask and its base: changes at random, and ones that cluster."""
    rng = np.random.default_rng(seed)
    places = np.arange(numel)
    sparse, half = rng.random(numel) < 0.1, rng.random(numel) < 0.5
    third, moved = half & (places < numel // 3), rng.random(numel) < 0.5
    rows = np.repeat(rng.random(numel // 50 + 1) < 0.2, 50)[:numel]
    return {
        "nothing": (sparse, sparse),
        "a position": (sparse ^ (places == numel // 2), sparse),
        "few at random": (sparse ^ (rng.random(numel) < 0.01), sparse),
        "many at random": (half ^ (rng.random(numel) < 0.2), half),
        "another set": (rng.random(numel) < 0.3, half),
        "half of a dense third grown": (third, third & (places < numel // 6)),
        "a dense half dropped, another grown": (
            (half & (places < numel // 4)) | (moved & (places >= 3 * numel // 4)),
            half & (places < numel // 2),
        ),
        "a quarter drawn anew": (np.where(places < numel // 4, moved, sparse), sparse),
        "one tensor all kept": (sparse | (places < numel // 20), sparse),
        "rows flipped": (half ^ rows, half),
        "rows kept, a base at random": (rows, rows ^ (rng.random(numel) < 0.3)),
        "a dense third, a base of it at random": (third, third ^ (rng.random(numel) < 0.3)),
    }


def assert_hardly_larger_than_any(bits: np.ndarray, before: np.ndarray, segments: np.ndarray, listed: bool) -> None:
    """Fail if another codec is more than 2 bytes smaller than what is chosen for a mask, or a set that is listed."""
    positions = Positions.from_indices(np.flatnonzero(bits), bits.size) if listed else Positions.from_mask(bits)
    choice, allowed = choose.Choice(positions, segments, KnownMask(before, 1)), FOR_SPARSE if listed else FOR_MASKS
    names = [*set_codec_names(), *(NAMES[number] for number in allowed)]
    sizes = {name: choose.encode_positions(choice, name, allowed)[1].size for name in names}
    codec_id, payload = choose.encode_positions(choice, "auto", allowed)
    assert payload.size <= min(sizes.values()) + 2, (NAMES[codec_id], payload.size, sizes)


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("numel", [8, 33, 200, 1000, 4096, 5000, 20_000, 200_000])
def test_auto_is_hardly_larger_than_any_codec_however_a_base_changed(numel: int, listed: bool) -> None:
    for bits, before in choices(numel, numel).values():
        for segments in (np.array([0, numel]), np.array([0, numel // 50, numel // 3, numel])):
            assert_hardly_larger_than_any(bits, before, segments, listed)


@pytest.mark.parametrize(
    "name", ["few at random", "a dense half dropped, another grown", "a dense third, a base of it at random"]
)
def test_auto_is_hardly_larger_than_any_codec_for_a_million_positions(name: str) -> None:
    bits, before = choices(1_000_000, 0)[name]
    assert_hardly_larger_than_any(bits, before, np.arange(0, 1_000_001, 50_000), False)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(1, 9)), min_size=1, max_size=60), st.booleans())
def test_auto_is_hardly_larger_than_any_codec_of_small_sets(runs: list[tuple[bool, bool, int]], listed: bool) -> None:
    lengths = np.array([length for _, _, length in runs])
    bits, before = (np.repeat(np.array([run[i] for run in runs]), lengths) for i in (0, 1))
    assert_hardly_larger_than_any(bits, before, np.array([0, bits.size // 3, bits.size]), listed)


def test_moves_that_cluster_are_seen() -> None:
    rng = np.random.default_rng(0)
    numel = 400_000
    base = KnownMask(rng.random(numel) < 0.5, 1)
    for moved, seen in (
        (rng.random(numel) < 0.2, False),
        (np.repeat(rng.random(numel // 50) < 0.2, 50), True),
        ((rng.random(numel) < 0.5) & (np.arange(numel) > 0.6 * numel), True),
    ):
        moves = moves_of(Positions.from_mask(base.array ^ moved), base)
        assert estimates.moves_may_cluster(moves, int(estimates.ranks_nbytes(moves) * 0.98)) is seen
