"""The character GRU: sizes, the recurrence written out, and text and image models told apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedmpi.config import NamedSection
from fedmpi.data.shapes import ImageShape, InputShape, TextShape
from fedmpi.errors import ConfigError
from fedmpi.flat import FlatModel
from fedmpi.models.registry import build_model, resolve

TEXT = TextShape(80)


def build(name: str = "char_gru", shape: InputShape = TEXT, num_classes: int = 86, **kw: Any) -> nn.Module:
    return build_model(resolve(NamedSection(name=name, **kw)), shape, num_classes, init_seed=1)


def num_params(module: nn.Module) -> int:
    return sum(param.numel() for param in module.parameters())


def test_parameter_counts() -> None:
    module = build()
    assert [num_params(part) for part in (module.embedding, module.gru, module.fc)] == [22_016, 3_938_304, 88_150]
    assert num_params(module) == 4_048_470
    first, second = 3 * 6 * (4 + 6 + 2), 3 * 6 * (6 + 6 + 2)
    assert num_params(build(num_classes=5, embedding=4, hidden=6, layers=2)) == 5 * 4 + first + second + 6 * 5 + 5


def plain_forward(module: nn.Module, x_BT: Tensor, layers: int) -> Tensor:
    w = dict(module.named_parameters())
    h_BTE = w["embedding.weight"][x_BT]
    for layer in range(layers):
        w_ih, w_hh, b_ih, b_hh = (
            w[f"gru.{kind}_l{layer}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        hidden, outputs = torch.zeros(len(x_BT), w_hh.shape[1]), []
        for t in range(x_BT.shape[1]):
            r_i, z_i, n_i = (h_BTE[:, t] @ w_ih.t() + b_ih).chunk(3, 1)
            r_h, z_h, n_h = (hidden @ w_hh.t() + b_hh).chunk(3, 1)
            r, z = torch.sigmoid(r_i + r_h), torch.sigmoid(z_i + z_h)
            hidden = (1 - z) * torch.tanh(n_i + r * n_h) + z * hidden
            outputs.append(hidden)
        h_BTE = torch.stack(outputs, 1)
    return torch.stack([h @ w["fc.weight"].t() + w["fc.bias"] for h in h_BTE.unbind(1)], 2)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("flat", [False, True])
def test_forward(layers: int, flat: bool) -> None:
    module = build(shape=TextShape(9), num_classes=11, embedding=5, hidden=7, layers=layers)
    if flat:
        module = FlatModel(module).module
    x_BT = torch.randint(0, 11, (3, 9), generator=torch.Generator().manual_seed(0))
    logits = module(x_BT)
    assert (logits.shape, logits.dtype) == ((3, 11, 9), torch.float32)
    torch.testing.assert_close(logits, plain_forward(module, x_BT, layers), rtol=1e-5, atol=1e-6)


def test_a_place_depends_on_no_later_one() -> None:
    module = build(shape=TextShape(6), num_classes=4, embedding=3, hidden=5)
    x_BT = torch.tensor([[0, 1, 2, 3, 0, 1]])
    other = x_BT.clone()
    other[0, 4] = 3
    first, second = module(x_BT), module(other)
    assert torch.equal(first[:, :, :4], second[:, :, :4])
    assert not torch.allclose(first[:, :, 4:], second[:, :, 4:])


def test_the_gru_is_the_head_of_the_flat_state() -> None:
    flat = FlatModel(build(num_classes=5, embedding=4, hidden=6))
    assert flat.module.gru.weight_ih_l0.data_ptr() == flat.state_S.untyped_storage().data_ptr()
    names = [entry.name for entry in flat.layout.entries[:4]]
    assert names == ["gru.weight_ih_l0", "gru.weight_hh_l0", "gru.bias_ih_l0", "gru.bias_hh_l0"]


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("char_gru", ImageShape(28, 28, 1), r"model\.name=char_gru takes text, but the data are images: .* cnn, .*mlp"),
        (
            "cnn",
            TextShape(80),
            r"model\.name=cnn takes images, but the data are text: models for text are char_gru, or",
        ),
        ("logreg", TextShape(80), r"model\.name=logreg takes images"),
        ("mnistnet", TextShape(80), r"model\.name=mnistnet takes images, but"),
        ("resnet18", TextShape(80), r"model\.name=resnet18 takes images"),
    ],
)
def test_data_of_the_other_sort(name: str, shape: InputShape, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(name, shape)


@pytest.mark.parametrize("key", ["embedding", "hidden", "layers"])
def test_wrong_settings(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{key} must be at least 1, got 0"):
        build(**{key: 0})
