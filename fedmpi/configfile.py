"""Reading a configuration: one YAML file, dotted overrides, checked before anything starts; and writing it down."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from fedmpi.config import DataConfig, IidPartition, RunConfig, Section, TrainConfig
from fedmpi.errors import ConfigError
from fedmpi.problems import find_problems


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


# YAML 1.1, which PyYAML reads, takes 1e-3 for a word; people mean the number.
_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML; duplicate keys and syntax errors raise `ConfigError` naming `source`."""
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ConfigError, TypeError, ValueError) as error:
        # PyYAML lets unhashable keys and impossible dates through as plain errors.
        raise ConfigError(f"{source}: {error}") from error


_KEPT = {"algorithm": (), "model": (), "partition": ("num_clients",), "data": ("augment",)}
"""The sections whose other settings belong to what ``name`` says, but for these."""
_USUAL_NAMES = {"partition": IidPartition().name, "data": DataConfig().name}
"""Whose settings those of a section without a name are."""


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `tree` with ``a.b=value`` overrides applied; values are parsed as YAML.

    Where an override changes the name of an algorithm, a model, a partition or a data set, the other settings of that
    section in `tree` are dropped, as they were the other's. A partition keeps `num_clients`; data keep `augment`, but
    neither `synthetic` nor `text`, nor `root`, which was the other's folder.
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
        if leaf == "name" and len(parents) == 1 and parents[0] in _KEPT:
            before = node.get("name", _USUAL_NAMES.get(parents[0]))
            if before not in (None, value):
                kept = {key: node[key] for key in _KEPT[parents[0]] if key in node}
                node.clear()
                node.update(kept)
        node[leaf] = value
    return tree


def validate(section: type[Section], values: Mapping[str, Any], where: str = "") -> Any:
    """Build `section` from `values`; every problem is named by its dotted key, with the rule, the value and a way out.

    Raises
    ------
    ConfigError
    """
    valid, errors = None, []
    try:
        valid = section.model_validate(dict(values))
    except ValidationError as error:
        errors = error.errors()
    problems = find_problems(section, values, errors, where)
    if problems:
        raise ConfigError("\n".join(problems))
    return valid


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
            tree["partition"] = {"name": _USUAL_NAMES["partition"], **tree["partition"]}
        config: RunConfig = validate(RunConfig, tree)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    _check_together(config)
    return config


def _check_together(config: RunConfig) -> None:
    """Refuse settings that do not go with each other."""
    num_clients = config.partition.num_clients
    if num_clients is not None and config.participation.clients_per_round > num_clients:
        raise ConfigError(
            f"participation.clients_per_round must be at most partition.num_clients = {num_clients}, "
            f"got {config.participation.clients_per_round}"
        )
    if config.train.optimizer != "adam":
        for key in ("adam_beta2", "adam_eps"):
            if getattr(config.train, key) != TrainConfig.model_fields[key].default:
                raise ConfigError(f"train.{key} is only for train.optimizer=adam, got {config.train.optimizer}")
    if config.participation.availability_spread and config.participation.availability == 1.0:
        raise ConfigError(
            "participation.availability_spread spreads the clients' availability around participation.availability, "
            f"which must then be below 1, got {config.participation.availability}"
        )


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
