"""EcoFed's debts: what rounding took from a sample's activations, and not what a quantizer cuts off."""

from __future__ import annotations

import pytest
import torch

from fedmpi.algorithms.ecofed import EcoFedClient
from fedmpi.algorithms.ecofed_messages import EcoFedConfig
from fedmpi.algorithms.split_messages import QuantizedActivations, decode_activations


@pytest.mark.parametrize("quantizer", ["exact", "released"])
def test_debts_stay_within_a_step(quantizer: str) -> None:
    """The same activations are sent again and again, some of them further below 0 than the largest is above."""
    client = object.__new__(EcoFedClient)
    client.config = client.eco = EcoFedConfig(name="ecofed", bits=4, quantizer=quantizer, error_feedback=True)
    client.client_state = {"owed": torch.zeros(3, 24)}
    a = torch.randn(3, 2, 3, 4, generator=torch.Generator().manual_seed(1)) - 1.0
    assert a.min() < -1.2 * a.max() < 0
    sent, within = torch.zeros_like(a), a >= -a.max()
    for _ in range(40):
        message = client._message(a, torch.arange(3))
        assert isinstance(message, QuantizedActivations)
        sent += decode_activations(message, (2, 3, 4), torch.device("cpu"))
        step = float(message.symbols.scales[0])
        assert float(client.client_state["owed"].abs().max()) <= step * (1 + 1e-5)
    # The mean of what was sent is what was meant, but for what is cut off.
    assert float((sent / 40 - a)[within].abs().max()) <= step / 20
    assert bool((sent / 40 > a + step / 2)[~within].any()) == (quantizer == "released")
