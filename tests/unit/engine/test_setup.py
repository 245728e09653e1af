"""What is said before a run of settings that do nothing, or not what one might think."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import ALGORITHMS, small_config

from fedmpi.engine.setup import prepare, resolve

NET = {"name": f"{ALGORITHMS / 'splitnet.py'}:Net"}
VGG = {"name": "vgg11", "width": 0.125}
LARGE = {"name": "synthetic", "synthetic": {"num_train": 60, "num_test": 20, "height": 17, "width": 17}}
IID = {"name": "iid", "num_clients": 6}
CROPS = {**LARGE, "augment": "crop_flip"}


def warnings(folder: Path, **changes: Any) -> list[str]:
    return prepare(resolve(small_config(folder, **{"data": LARGE, "partition": IID, **changes}))).warnings


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (NET, []),
        ({**NET, "pretrained_units": 2}, []),
        ({**NET, "pretrained_units": 3}, ["model.pretrained_units does nothing without model.pretrained"]),
        ({**VGG, "norm_groups": 2}, []),
        ({**VGG, "norm_groups": 4, "norm": "group"}, []),
        ({**VGG, "norm_groups": 4}, ["model.norm_groups does nothing with model.norm=batch_nostats"]),
        ({"name": "resnet18", "width": 8, "norm_groups": 4}, []),
    ],
)
def test_a_models_settings_that_do_nothing(tmp_path: Path, model: dict[str, Any], wanted: list[str]) -> None:
    assert warnings(tmp_path, model=model) == wanted


@pytest.mark.parametrize(
    ("settings", "data", "is_wanted"),
    [
        ({"error_feedback": True}, CROPS, True),
        ({"error_feedback": True}, LARGE, False),
        ({"error_feedback": False}, CROPS, False),
    ],
)
def test_error_feedback_across_crops_of_a_sample(
    tmp_path: Path, settings: dict[str, Any], data: dict[str, Any], is_wanted: bool
) -> None:
    said = warnings(tmp_path, model=NET, data=data, algorithm={"name": "ecofed", **settings})
    about_it = [line for line in said if "error_feedback" in line]
    words = (
        "with data.augment=crop_flip algorithm.error_feedback adds to a sample's activations what rounding took from "
    )
    assert about_it == ([f"{words}another crop or flip of it"] if is_wanted else [])
