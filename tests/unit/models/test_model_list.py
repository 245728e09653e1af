"""The list of models: what `fedmpi list` and the documentation read."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmpi.config import NamedSection
from fedmpi.configfile import describe
from fedmpi.errors import ConfigError
from fedmpi.models.registry import ModelConfig, describe_models, resolve


def test_every_model_is_described() -> None:
    models = describe_models()
    assert [model.name for model in models] == sorted(model.name for model in models)
    shipped = {
        "char_gru", "cifar100net", "cifar10net", "cnn", "femnistnet", "logreg", "mlp", "mnistnet", "resnet18",
        "resnet9", "vgg11",
    }  # fmt: skip
    assert shipped <= {model.name for model in models}
    for model in models:
        assert model.summary.endswith(".") or ":" in model.summary
        assert "\n" not in model.summary
        assert issubclass(model.config, ModelConfig)
        assert model.takes == ("text" if model.name == "char_gru" else "images")
        for key, field in model.config.model_fields.items():
            assert field.description or key == "name"


@pytest.mark.parametrize("name", [model.name for model in describe_models()])
def test_what_is_written_down_is_read_back(name: str) -> None:
    config = resolve(NamedSection(name=name, weights="some/file.pt"))
    assert config.weights == Path("some/file.pt")
    assert "weights: some/file.pt  # default: None\n" in describe(config)
    assert resolve(config) == config
    assert resolve(NamedSection(name=name)).weights is None


def test_a_name_that_is_nearly_one() -> None:
    with pytest.raises(ConfigError, match=r"package\.module:NAME, got 'resnet19'; did you mean resnet9\?$"):
        resolve(NamedSection(name="resnet19"))
