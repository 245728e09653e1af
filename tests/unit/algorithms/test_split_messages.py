"""What crosses the cut: activations as they lie or in few bits, and what is known of the cut."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ALGORITHMS

from fedmpi.algorithms.fedgkt_messages import distillation
from fedmpi.algorithms.split_messages import (
    Activations,
    Cut,
    QuantizedActivations,
    SplitConfig,
    as_stored,
    decode_activations,
    encode_activations,
    from_stored,
    logits_of,
)
from fedmpi.config import NamedSection
from fedmpi.data.shapes import ImageShape
from fedmpi.errors import ProtocolError
from fedmpi.models.registry import resolve
from fedmpi.models.spec import ModelSpec
from fedmpi.wire import frame as framing
from fedmpi.wire.buffers import BufferPool
from fedmpi.wire.message import Schema
from fedmpi.wire.values import Dense

CPU = torch.device("cpu")


def batch(*shape: int, seed: int = 0) -> torch.Tensor:
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return numbers.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else numbers


def config(**settings_: object) -> SplitConfig:
    return SplitConfig(name="splitfed", **settings_)


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (1, 8, 2, 2), (3, 7)])
def test_floats_cross_as_they_lie(shape: tuple[int, ...]) -> None:
    a = batch(*shape)
    value = as_stored(a)
    if len(shape) == 4:
        assert value.array.base is not None  # no copy of what lies channels last
        assert value.array.tolist() == a.permute(0, 2, 3, 1).reshape(-1).tolist()
    found = from_stored(value, shape[1:], CPU)
    assert torch.equal(found, a) and (len(shape) == 2 or found.is_contiguous(memory_format=torch.channels_last))
    message = encode_activations(a, config())
    assert isinstance(message, Activations) and torch.equal(decode_activations(message, shape[1:], CPU), a)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), bits=st.integers(1, 8), scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e6]))
def test_rounded_activations_keep_to_their_bound(seed: int, bits: int, scale: float) -> None:
    """Invariant 5: half a level of error at most, 0 stays 0, the largest stays, and a second time changes nothing."""
    a = batch(4, 3, 5, 6, seed=seed).clamp_(min=0) * scale
    for quantizer in ("exact", "released"):
        if quantizer == "released" and bits == 1:
            continue  # signs
        message = encode_activations(a, config(bits=bits, quantizer=quantizer))
        assert isinstance(message, QuantizedActivations)
        symbols, step = message.symbols.symbols, float(message.symbols.scales[0])
        levels = 2 ** (bits - 1) - 1 if quantizer == "released" else 2**bits - 1
        assert symbols.min() >= 0 and symbols.max() == levels
        found = decode_activations(message, (3, 5, 6), CPU)
        assert float((found - a).abs().max()) <= step / 2 * (1 + 1e-5)
        assert not found[a == 0].any()
        assert float(found.max()) == pytest.approx(float(a.max()), rel=1e-6)
        again = encode_activations(found, config(bits=bits, quantizer=quantizer))
        assert isinstance(again, QuantizedActivations) and np.array_equal(again.symbols.symbols, symbols)


def test_the_released_quantizer_wastes_a_bit() -> None:
    a = batch(4, 3, 5, 6).clamp_(min=0)
    errors = {}
    for quantizer in ("exact", "released"):
        message = encode_activations(a, config(bits=8, quantizer=quantizer))
        errors[quantizer] = float((decode_activations(message, (3, 5, 6), CPU) - a).abs().max())
    assert 1.8 < errors["released"] / errors["exact"] < 2.2


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("change", [lambda a: a - 2.0, lambda a: -a.abs() - 0.1])
def test_the_released_quantizer_is_that_of_the_authors_for_negative_activations_too(
    bits: int, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """scale = max(a) / 127, q = clamp(round(a / scale), -128, 127), for b bits, through a frame."""
    a, last = change(batch(4, 3, 5, 6)), 2 ** (bits - 1) - 1
    message = encode_activations(a, config(bits=bits, quantizer="released"))
    schema = Schema({"batch": 4, "channels": 3, "height": 5, "width": 6}, 0)
    came, _ = framing.decode(framing.encode(message, schema, BufferPool()).buffer, (QuantizedActivations,), schema)
    scale = a.max() / last
    wanted = (a / scale).round().clamp(-last - 1, last) * scale
    assert wanted.min() > a.min()  # some are cut off
    torch.testing.assert_close(decode_activations(came, (3, 5, 6), CPU), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("value", [0.0, 2.5, -1.0])
def test_constant_batches(bits: int, value: float) -> None:
    a = torch.full((2, 3, 2, 2), value)
    for quantizer in ("exact", *(["released"] if bits > 1 else [])):
        message = encode_activations(a, config(bits=bits, quantizer=quantizer))
        if not (bits == 1 and value == 0):
            found = decode_activations(message, (3, 2, 2), CPU)
            torch.testing.assert_close(found, a, rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_not_rounded(value: float) -> None:
    a = batch(2, 3, 4, 4)
    a[1, 2, 3, 0] = value
    message = encode_activations(a, config(bits=8))
    assert isinstance(message, Activations) and message.nonfinite_field() == "numbers"


def test_what_is_no_whole_number_of_samples_is_refused() -> None:
    with pytest.raises(ProtocolError, match="a batch of 95 numbers came, where a sample has 96"):
        from_stored(Dense(np.zeros(95, np.float32)), (6, 4, 4), CPU)
    message = encode_activations(batch(2, 6, 4, 4), config(bits=8))
    with pytest.raises(ProtocolError, match=r"activations of shape \(2, 6, 4, 4\) came, .* \(6, 4, 5\)"):
        decode_activations(message, (6, 4, 5), CPU)
    with pytest.raises(ProtocolError, match="19 logits came, where 2 samples of 10 classes have 20"):
        logits_of(Dense(np.zeros(19, np.float32)), 2, 10)
    assert logits_of(Dense(np.arange(6, dtype=np.float32)), 2, 3).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_what_is_known_of_a_cut() -> None:
    name = f"{ALGORITHMS / 'splitnet.py'}:Net"
    spec = ModelSpec(resolve(NamedSection(name=name)), ImageShape(12, 12, 1), 10)
    cut = Cut(spec, 2)
    assert cut.shape == (6, 6, 6) and cut.numel == 216 and cut.num_classes == 10
    assert cut.device.layout.num_params == (9 + 1) * 4 + 8 + (36 + 1) * 6 + 12
    assert cut.device.layout.num_state - cut.device.layout.num_params == 2 * (4 + 6)
    assert cut.layout.num_params == cut.device.layout.num_params + cut.server.layout.num_params
    ops = cut.operations()
    assert ops.device.forward == 2 * (9 * 4 * 144 + 36 * 6 * 36)
    assert cut.operations(passes_back=False).server.backward < ops.server.backward


def test_distillation_is_zero_where_logits_agree_and_scales_with_the_temperature() -> None:
    """Invariant 11, and by hand: T^2 sum p (log p - log q), the mean over the batch."""
    student, teacher = batch(5, 10), batch(5, 10, seed=1)
    assert float(distillation(student, student, 3.0)) == pytest.approx(0, abs=1e-6)
    assert float(distillation(student, student + 2.0, 3.0)) == pytest.approx(0, abs=1e-6)  # only differences count
    p, q = (teacher / 3).double().softmax(1), (student / 3).double().softmax(1)
    by_hand = 9 * (p * (p.log() - q.log())).sum(1).mean()
    assert float(distillation(student, teacher, 3.0)) == pytest.approx(float(by_hand), rel=1e-5)
