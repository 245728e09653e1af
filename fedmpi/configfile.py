"""Reading a configuration: one YAML file, dotted overrides, checked before anything starts; and writing it down."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from fedmpi.config import (
    DataConfig,
    IidPartition,
    PretrainConfig,
    PretrainRunConfig,
    RunConfig,
    Section,
    TrainConfig,
)
from fedmpi.errors import ConfigError
from fedmpi.problems import Problem, find_problems, sections_of


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, which would otherwise let the last of two equal keys win in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            line = f"line {key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{line}: a key must be a word, got {_what(self.construct_object(key_node, True))}")
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise ConfigError(f"{line}: key {key!r} is given twice")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# YAML 1.1, which PyYAML reads, takes 1e-3 for a word; people mean the number.
class _Dumper(yaml.SafeDumper):
    """YAML's safe dumper, which quotes a word that the loader would take for a number."""


for _side in (_UniqueKeyLoader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML; duplicate keys and syntax errors raise `ConfigError` naming `source`."""
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, ConfigError, TypeError, ValueError) as error:
        # PyYAML lets impossible dates through as plain errors.
        raise ConfigError(f"{source}: {_yaml_words(error)}") from error


def _yaml_words(error: Exception) -> str:
    """Say what is wrong with YAML, and where, in a line."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        if "'\\t'" in (error.problem or ""):
            return f"{where}a tab; YAML indents with spaces"
        words = ", ".join(part for part in (error.context, error.problem) if part)
        words = words.replace("'<stream end>'", "the end")
        return f"{where}no YAML: {words}"
    if isinstance(error, yaml.reader.ReaderError):
        return f"no YAML: a character that cannot be shown ({error.character:#x}) at position {error.position + 1}"
    return str(error)


def _what(value: object) -> str:
    """Name the sort of a value, as somebody who writes YAML knows it."""
    if value is None:
        return "nothing"
    sorts = {
        bool: "true or false",
        str: "a word",
        list: "a list",
        dict: "a section",
        int: "a number",
        float: "a number",
    }
    return sorts.get(type(value), "a date" if isinstance(value, date) else "something else")


_KEPT = {"algorithm": (), "model": (), "partition": ("num_clients",), "data": ("augment", "convert")}
"""The sections whose other settings belong to what ``name`` says, but for these."""
_USUAL_NAMES = {"partition": IidPartition().name, "data": DataConfig().name}
"""Whose settings those of a section without a name are."""


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return `tree` with ``a.b=value`` overrides applied; values are parsed as YAML.

    Where an override changes the name of an algorithm, a model, a partition or a data set, the other settings of that
    section in `tree` are dropped, as they were the other's. A partition keeps `num_clients`; data keep `augment` and
    `convert`, but neither `synthetic` nor `text`, nor `root` and `classes`, which were the other's folder and labels.
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

    A section in `values` that is null, as YAML reads one with nothing below its name, has all its defaults.

    Raises
    ------
    ConfigError
    """
    valid, problems = _validated(section, values, where)
    if problems:
        raise ConfigError("\n  ".join(problem.text for problem in problems))
    return valid


def _validated(section: type[Section], values: Mapping[str, Any], where: str) -> tuple[Any, list[Problem]]:
    values = {key: value for key, value in values.items() if not (value is None and _is_section(section, key))}
    valid, errors = None, []
    try:
        valid = section.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
    return valid, find_problems(section, values, errors, where)


def _is_section(section: type[Section], key: object) -> bool:
    """Return whether a key holds a section that has defaults and may not be null."""
    field = section.model_fields.get(str(key))
    if field is None or field.is_required() or NoneType in get_args(field.annotation):
        return False
    return bool(sections_of(field.annotation))


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply overrides, validate.

    Raises
    ------
    ConfigError
        Naming the file or the command line, the key, the value and the rule.
    """
    tree = _load_tree(path, overrides, "`rounds: 20` at least")
    if isinstance(tree.get("partition"), dict):
        tree["partition"] = {"name": _USUAL_NAMES["partition"], **tree["partition"]}
    config: RunConfig = _load_section(RunConfig, tree, path, overrides, _clashes)
    return config


def load_pretrain_config(path: Path, overrides: Sequence[str] = ()) -> PretrainRunConfig:
    """Read the file of a pre-training as `load_config` does that of a run."""
    tree = _load_tree(path, overrides, "such as `model: {name: cnn}`")
    config: PretrainRunConfig = _load_section(
        PretrainRunConfig, tree, path, overrides, lambda config: _clashes_of_sgd("pretrain", config.pretrain)
    )
    return config


def _load_tree(path: Path, overrides: Sequence[str], example: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text()
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read the configuration {path}: it is not text in UTF-8") from error
    except OSError as error:
        hint = ""
        if "=" in str(path) and isinstance(error, FileNotFoundError):
            file = next((word for word in overrides if "=" not in word), "CONFIG.yaml")
            hint = f"; the file comes first, then the settings: {file} {path}"
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror or error}{hint}") from error
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of sections ({example}), got {_what(tree)}")
    try:
        return apply_overrides(tree, overrides)
    except ConfigError as error:
        raise ConfigError(f"on the command line: {error}") from None


def _load_section(
    section: type[Section],
    tree: Mapping[str, Any],
    path: Path,
    overrides: Sequence[str],
    clashes: Callable[[Any], Iterable[tuple[tuple[str, ...], str]]],
) -> Any:
    """Validate a whole file; a problem's line begins with where it comes from."""
    config, problems = _validated(section, tree, "")
    typed = [override.partition("=")[0] for override in overrides]
    lines = [f"{_source(path, [problem.key], typed)}: {problem.text}" for problem in problems]
    if not lines:
        lines = [f"{_source(path, keys, typed)}: {words}" for keys, words in clashes(config)]
    if lines:
        raise ConfigError("\n  ".join(lines))
    return config


def _source(path: Path, keys: Iterable[str], typed: Sequence[str]) -> str:
    """Say where a problem comes from: the command line where something typed there is at, below or above a key."""
    for key in keys:
        if any(f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.") for other in typed):
            return "on the command line"
    return str(path)


def _clashes(config: RunConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    """Find settings that do not go with each other: their keys, and what is wrong."""
    num_clients = config.partition.num_clients
    if num_clients is not None and config.participation.clients_per_round > num_clients:
        yield (
            ("participation.clients_per_round", "partition.num_clients"),
            f"participation.clients_per_round must be at most partition.num_clients = {num_clients}, "
            f"got {config.participation.clients_per_round}",
        )
    if config.train.optimizer != "adam":
        for key in ("adam_beta2", "adam_eps"):
            if getattr(config.train, key) != TrainConfig.model_fields[key].default:
                yield (
                    (f"train.{key}", "train.optimizer"),
                    f"train.{key} is only for train.optimizer=adam, got {config.train.optimizer}",
                )
    yield from _clashes_of_sgd("train", config.train)
    if config.participation.availability_spread and config.participation.availability == 1.0:
        yield (
            ("participation.availability_spread", "participation.availability"),
            "participation.availability_spread spreads the clients' availability around participation.availability, "
            f"which must then be below 1, got {config.participation.availability}",
        )
    if config.time is not None and config.time.link is None:
        numbers = ("up_bits_per_s", "down_bits_per_s", "latency_s")
        missing = [f"time.{name}" for name in numbers if getattr(config.time, name) is None]
        if missing:
            words = f"time.link is not given: name a preset, or give {', '.join(missing)} too"
            yield ("time.link", *missing), words


def _clashes_of_sgd(where: str, section: TrainConfig | PretrainConfig) -> Iterator[tuple[tuple[str, ...], str]]:
    if section.nesterov and isinstance(section, TrainConfig) and section.optimizer != "sgd":
        yield (
            (f"{where}.nesterov", f"{where}.optimizer"),
            f"{where}.nesterov is only for {where}.optimizer=sgd, got {section.optimizer}",
        )
    elif section.nesterov and not section.momentum:
        yield (
            (f"{where}.nesterov", f"{where}.momentum"),
            f"{where}.nesterov needs {where}.momentum above 0, got {section.momentum}; set {where}.nesterov=false",
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
        dumped = yaml.dump(_plain(value), Dumper=_Dumper, default_flow_style=True, width=1000)
        plain = dumped.strip().removesuffix("...").strip()
        mark = "" if value == usual else "  # set" if usual is PydanticUndefined else f"  # default: {usual}"
        lines.append(f"{indent}{name}: {plain}{mark}")
    return lines


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
