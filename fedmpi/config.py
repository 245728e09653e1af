"""The configuration of a run: one YAML file, dotted overrides, checked before anything starts.

Sections whose settings belong to code that a name selects (``algorithm``, ``model``) are kept as given here and
validated by that code's own ``Config`` once the name is resolved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticUndefined

from fedmpi.errors import ConfigError


class Section(BaseModel):
    """A part of the configuration: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class NamedSection(Section):
    """A section whose ``name`` selects code that validates the other keys with its own `Section`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str


class SyntheticConfig(Section):
    """Settings of the generated data set ``synthetic``."""

    num_train: int = Field(2000, ge=1, description="training images")
    num_test: int = Field(500, ge=1, description="test images")
    num_classes: int = Field(10, ge=2, le=1000, description="classes")
    height: int = Field(28, ge=1, le=512, description="pixels")
    width: int = Field(28, ge=1, le=512, description="pixels")
    channels: int = Field(1, ge=1, le=16, description="channels")
    noise: float = Field(64.0, ge=0, description="standard deviation of the pixel noise, in grey levels of 255")


class DataConfig(Section):
    """Which images, where they lie, and what is done to them on the device."""

    name: str = Field("fashion_mnist_mini", description="data set")
    root: Path | None = Field(
        None, description="folder looked in first, before the user's cache and the system's folder"
    )
    augment: Literal["none", "crop_flip"] = Field(
        "none", description="crop_flip: random crop after padding by 4, then a horizontal flip with probability 1/2"
    )
    synthetic: SyntheticConfig | None = Field(None, description="only with name=synthetic")


class IidPartition(Section):
    """Shuffle, then deal the samples out evenly."""

    name: Literal["iid"] = "iid"
    num_clients: int = Field(100, ge=1, description="clients in the pool")


class DirichletPartition(Section):
    """Split every class over the clients in shares drawn from Dirichlet(beta)."""

    name: Literal["dirichlet"] = "dirichlet"
    num_clients: int = Field(100, ge=1, description="clients in the pool")
    beta: float = Field(0.3, gt=0, description="concentration: small is uneven")


class ShardsPartition(Section):
    """Sort by label, cut into shards of equal size, deal ``shards_per_client`` to each client at random."""

    name: Literal["shards"] = "shards"
    num_clients: int = Field(100, ge=1, description="clients in the pool")
    shards_per_client: int = Field(2, ge=1, description="shards each client holds")
    samples_per_shard: int | None = Field(
        None, ge=1, description="size of a shard; by default all samples are dealt out"
    )


PartitionConfig = Annotated[IidPartition | DirichletPartition | ShardsPartition, Field(discriminator="name")]


class TrainConfig(Section):
    """Local SGD on a client."""

    local_epochs: int = Field(1, ge=1, description="passes over the client's data a round")
    batch_size: int = Field(32, ge=1, description="samples a step; the last step of an epoch may be smaller")
    lr: float = Field(0.05, gt=0, description="learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum; reset at the start of each client's work")
    weight_decay: float = Field(0.0, ge=0, description="L2 term added to the gradient")
    clip_norm: float | None = Field(None, gt=0, description="largest Euclidean norm of the gradient")


class ParticipationConfig(Section):
    """Who takes part in a round."""

    clients_per_round: int = Field(10, ge=1, description="clients drawn uniformly without replacement each round")


class EvaluateConfig(Section):
    """Test of the global model."""

    every: int = Field(5, ge=0, description="rounds between tests, the last round always; 0 is never")
    batch_size: int = Field(500, ge=1, description="test images a batch; part of the result's rounding")


class ServerConfig(Section):
    """The server's side."""

    initial_model: Literal["seed", "full"] = Field(
        "seed", description="what the first round's downlink carries: the seed of the initial model, or the model"
    )
    host: Literal["rank0", "player", "peer"] = Field(
        "rank0",
        description="where the server's side of a conversation runs: on rank 0, on the worker that plays the client, "
        "or on the next worker",
    )
    hold_nbytes: int = Field(
        1_000_000_000, ge=0, description="bytes of replies that may wait for their turn to be added"
    )


class CommConfig(Section):
    """How buffers move between ranks."""

    timeout_s: float = Field(
        1800.0, gt=0, description="seconds without any message after which a waiting rank gives up"
    )
    chunk_nbytes: int = Field(2**31 - 1, ge=64, le=2**31 - 1, description="largest single MPI transfer")
    limit_nbytes: int = Field(2**36, ge=4096, description="largest message or state accepted from another rank")
    doorbell: bool = Field(True, description="wake waiting ranks of the same node through a UNIX socket")


class PlacementConfig(Section):
    """Devices, threads and node-local folders."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where one is visible")
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        1, description="torch threads a rank on a CPU; part of the result. auto: cores of the node / ranks on it"
    )
    state_dir: Path | None = Field(
        None, description="node-local folder of client state; {rank} is replaced. Default: a fresh temporary folder"
    )


class LedgerConfig(Section):
    """The HDF5 ledger."""

    flush_s: float = Field(1.0, gt=0, description="seconds between flushes; a killed run loses at most the rows since")
    save_model: bool = Field(True, description="store the final model")


class RunConfig(Section):
    """Everything that decides a run."""

    seed: int = Field(0, ge=0, le=2**63 - 1, description="the root of all randomness")
    rounds: int = Field(..., ge=1, description="federated rounds")
    data: DataConfig = DataConfig()
    partition: PartitionConfig = IidPartition()
    model: NamedSection = NamedSection(name="cnn")
    algorithm: NamedSection = NamedSection(name="fedavg")
    train: TrainConfig = TrainConfig()
    participation: ParticipationConfig = ParticipationConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    server: ServerConfig = ServerConfig()
    comm: CommConfig = CommConfig()
    placement: PlacementConfig = PlacementConfig()
    ledger: LedgerConfig = LedgerConfig()


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, which would otherwise let the last of two equal keys win in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise ConfigError(f"line {key_node.start_mark.line + 1}: key {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML; duplicate keys and syntax errors raise `ConfigError` naming `source`."""
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ConfigError, TypeError, ValueError) as error:
        # PyYAML lets unhashable keys and impossible dates through as plain errors.
        raise ConfigError(f"{source}: {error}") from error


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `tree` with ``a.b=value`` overrides applied; values are parsed as YAML.

    Where an override changes the name of an algorithm, a model or a partition, the other settings of that section in
    `tree` are dropped (a partition keeps its number of clients): they were the other's.
    """
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in tree.items()}
    # Names first: a section whose name changes loses the settings that the file gave for the other.
    for override in sorted(overrides, key=lambda text: not text.partition("=")[0].endswith(".name")):
        path, eq, text = override.partition("=")
        if not eq or not path or "" in path.split("."):
            raise ConfigError(f"override {override!r} must look like section.key=value")
        node = tree
        *parents, leaf = path.split(".")
        for parent in parents:
            child = {} if node.get(parent) is None else node[parent]
            if not isinstance(child, dict):
                raise ConfigError(f"override {override!r}: {parent} holds the value {child!r}, not a section")
            node[parent] = child = dict(child)
            node = child
        value = parse_yaml(text, f"override {override!r}")
        if leaf == "name" and parents in (["algorithm"], ["model"], ["partition"]) and node.get("name") != value:
            kept = {"num_clients": node["num_clients"]} if "num_clients" in node else {}
            node.clear()
            node.update(kept if parents == ["partition"] else {})
        node[leaf] = value
    return tree


def validate(section: type[Section], values: Mapping[str, Any], where: str = "") -> Any:
    """Build `section` from `values`; every problem is named by its dotted key, with the value and the rule."""
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            # Pydantic puts a union's tag between the key and its field; the user never typed it.
            loc = [str(part) for part in problem["loc"]]
            if loc[:1] == ["partition"] and len(loc) > 2:
                del loc[1]
            key = ".".join(([where] if where else []) + loc)
            if problem["type"] == "extra_forbidden":
                lines.append(f"{key}: unknown key (value {problem['input']!r})")
            elif problem["type"] == "missing":
                lines.append(f"{key}: required, and not given")
            else:
                lines.append(f"{key}: {problem['msg']}, got {problem['input']!r}")
        raise ConfigError("\n".join(lines)) from None


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply overrides, validate.

    Raises
    ------
    ConfigError
        Naming the file or override, the key, the value and the rule.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of sections, got {type(tree).__name__}")
    try:
        tree = apply_overrides(tree, overrides)
        if isinstance(tree.get("partition"), dict):
            tree["partition"] = {"name": IidPartition().name, **tree["partition"]}
        config: RunConfig = validate(RunConfig, tree)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if config.participation.clients_per_round > config.partition.num_clients:
        raise ConfigError(
            f"participation.clients_per_round must be at most partition.num_clients = {config.partition.num_clients}, "
            f"got {config.participation.clients_per_round}"
        )
    if (config.data.synthetic is not None) and config.data.name != "synthetic":
        raise ConfigError(f"data.synthetic is only for data.name=synthetic, got data.name={config.data.name}")
    return config


def describe(config: Section) -> str:
    """Return the resolved configuration as YAML; a comment marks each value that differs from its default."""
    return "\n".join(_describe_lines(config, None, indent="")) + "\n"


def _describe_lines(section: Section, default: Section | None, indent: str) -> list[str]:
    """Describe a section; `default` is what the section above has in its place by default, if anything."""
    lines = []
    values: dict[str, Any] = {name: getattr(section, name) for name in type(section).model_fields}
    values.update(section.__pydantic_extra__ or {})
    for name, value in values.items():
        field = type(section).model_fields.get(name)
        usual = PydanticUndefined if field is None else field.get_default(call_default_factory=True)
        usual = getattr(default, name, usual)
        if isinstance(value, Section):
            lines.append(f"{indent}{name}:")
            lines.extend(_describe_lines(value, usual if isinstance(usual, Section) else None, indent + "  "))
            continue
        plain = yaml.safe_dump(_plain(value), default_flow_style=True, width=1000).strip().removesuffix("...").strip()
        mark = "" if value == usual else "  # set" if usual is PydanticUndefined else f"  # default: {usual}"
        lines.append(f"{indent}{name}: {plain}{mark}")
    return lines


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
