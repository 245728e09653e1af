"""What EcoFed sends, and its settings; see `ecofed`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import xxhash
from pydantic import Field, field_validator
from torch import Tensor

from fedmpi.algorithms.base import (
    AlgorithmConfig,
)
from fedmpi.algorithms.split_messages import (
    SplitConfig,
    TurnLabels,
    message_types,
    split_sizes,
)
from fedmpi.config import RunConfig
from fedmpi.models.spec import ModelSpec
from fedmpi.wire.message import Message, Schema, counts, dense, message
from fedmpi.wire.values import Counts, Dense

_MOST_FRAMES_NBYTES = 2**40
_MOST_FRAMES = 2**20


class EcoFedConfig(SplitConfig):
    """Settings of EcoFed."""

    bits: int | None = Field(8, ge=1, le=8, description="bits of a number of an activation; null sends float32")
    period: Annotated[int, Field(ge=1)] | Literal["adaptive"] = Field(
        2, description="every how many rounds clients send activations; adaptive: by the change of the test accuracy"
    )
    adaptive_periods: tuple[int, int, int, int] = Field(
        (8, 4, 2, 1),
        description="only with period=adaptive: the period while the accuracy has changed by more than .1, .01, .001 "
        "of itself in 40 rounds, and below",
    )
    error_feedback: bool = Field(
        False, description="what rounding took from a sample's activations is added when the sample is next sent"
    )
    replay_memory_nbytes: int = Field(
        2_000_000_000, ge=0, description="bytes of the replay buffer in memory; what is beyond goes to files"
    )
    replay_nbytes: int | None = Field(None, ge=1, description="bytes of the replay buffer at most; null is no limit")
    replay_dir: Path | None = Field(
        None, description="where its files go, made if it is not there; by default the system's temporary folder"
    )

    @field_validator("adaptive_periods")
    @classmethod
    def _check_periods(cls, periods: tuple[int, ...]) -> tuple[int, ...]:
        if min(periods) < 1:
            raise ValueError(f"must be 1 or more each, got {list(periods)}")
        return periods


@message("init", "down")
class DeviceInit(Message):
    """The frozen device part; `init_seed` tells the client's own copy by, and the hash checks it."""

    init_seed: int
    device_hash: int
    int_buffers: Dense | None = dense("device_ints", dtype="int64")
    state: Dense = dense("device_state")


@message("init-seed", "down")
class DeviceInitSeed(Message):
    """The frozen device part where it follows from a seed: the seed, and a hash of what is built from it."""

    init_seed: int
    device_hash: int

    def num_params(self, schema: Schema) -> int:
        return schema.size("device_state") + schema.size("device_ints")

    def num_kept(self, schema: Schema) -> int:
        return 0


@message("control", "down")
class RoundStart(Message):
    """Whether the client is to send activations in this round."""

    update: int


@message("ecofed-result", "up")
class EcoFedResult(Message):
    """What a conversation comes to on the server: a network, and what the client sent. It never leaves the server."""

    num_samples: int
    int_buffers: Dense | None = dense("int_buffers", dtype="int64")
    state: Dense = dense("state")
    frames: Dense | None = dense("frames", dtype="uint8", at_most=True)
    lengths: Counts | None = counts("num_frames", at_most=True)


def device_hash(state_D: Tensor, ints: Tensor) -> int:
    """Return 31 bits of a hash of the device's part."""
    digest = xxhash.xxh3_64(state_D.contiguous().cpu().numpy().data)
    digest.update(ints.contiguous().cpu().numpy().data)
    return digest.intdigest() & 0x7FFFFFFF


def ecofed_sizes(config: AlgorithmConfig, spec: ModelSpec, run: RunConfig) -> Mapping[str, int]:
    """Return the sizes that EcoFed's messages name."""
    return {**split_sizes(config, spec, run), "frames": _MOST_FRAMES_NBYTES, "num_frames": _MOST_FRAMES}


def message_classes(config: AlgorithmConfig) -> tuple[type[Message], ...]:
    """Return what EcoFed sends."""
    assert isinstance(config, EcoFedConfig)
    return DeviceInit, DeviceInitSeed, RoundStart, TurnLabels, message_types(config)
