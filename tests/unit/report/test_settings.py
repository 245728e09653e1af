"""The list of all settings: complete, true to the classes that check them, and equal to the page in docs."""

from __future__ import annotations

import shlex
import textwrap
from pathlib import Path

import pytest
import yaml

from fedmpi.algorithms.registry import BUILT_IN
from fedmpi.config import RunConfig
from fedmpi.configfile import describe, load_config
from fedmpi.engine.setup import resolve
from fedmpi.errors import ConfigError
from fedmpi.models.registry import describe_models
from fedmpi.report.catalog import all_parts
from fedmpi.report.settings import HOW, settings_markdown, settings_text

ROOT = Path(__file__).parents[3]
SETTINGS = {(part.title, setting.key): setting for part in all_parts() for setting in part.settings}

UPLINK = ["algorithm.compress", "algorithm.density", "algorithm.scope", "algorithm.error_feedback"]


def test_the_page_in_docs_is_this_one() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == settings_markdown(), "make it anew: fedmpi config --markdown > docs/configuration.md"


def keys_of(tree: object, prefix: str = "") -> set[str]:
    """Return the dotted keys of a tree of dicts."""
    if not isinstance(tree, dict):
        return {prefix}
    return {key for name, value in tree.items() for key in keys_of(value, f"{prefix}.{name}" if prefix else name)}


@pytest.mark.parametrize("model", [model.name for model in describe_models()])
@pytest.mark.parametrize("algorithm", BUILT_IN)
def test_every_key_that_a_run_has_is_listed(algorithm: str, model: str) -> None:
    config = resolve(
        RunConfig.model_validate({"rounds": 1, "algorithm": {"name": algorithm}, "model": {"name": model}})
    )
    optional = ("data.convert", "data.synthetic", "data.text", "time")
    has = keys_of(yaml.safe_load(describe(config))) - set(optional)
    titles = {part.title for part in all_parts() if "=" not in part.title}
    titles |= {f"algorithm.name={algorithm}", f"model.name={model}", "partition.name=iid"}
    listed = {key for title, key in SETTINGS if title in titles and not key.startswith(optional)}
    assert listed == has


@pytest.mark.parametrize(
    ("title", "key", "kind", "default", "allowed"),
    [
        ("run", "rounds", "whole number", None, ">= 1"),
        ("run", "seed", "whole number", "0", "in [0, 2^63 - 1]"),
        ("train", "train.lr", "number", "0.05", "> 0"),
        ("train", "train.momentum", "number", "0.9", "in [0, 1)"),
        ("train", "train.clip_norm", "number or null", "null", "> 0"),
        ("train", "train.optimizer", "word", "sgd", "one of sgd, adam"),
        ("train", "train.adam_eps", "number", "1e-08", "> 0"),
        ("participation", "participation.availability", "number", "1", "in (0, 1]"),
        ("data", "data.root", "path or null", "null", ""),
        ("data.synthetic", "data.synthetic.num_classes", "whole number", "10", "in [2, 1000]"),
        ("comm", "comm.doorbell", "true or false", "true", ""),
        ("comm", "comm.chunk_nbytes", "whole number", "2147483647", "in [64, 2^31 - 1]"),
        ("placement", "placement.threads", "whole number or auto", "1", ">= 1"),
        ("partition.name=natural", "partition.num_clients", "whole number or null", "null", ">= 1"),
        ("partition.name=dirichlet", "partition.beta", "number", "0.3", "> 0"),
        ("partition.name=quantity", "partition.beta", "number", "0.5", "> 0"),
        ("algorithm.name=fedavgm", "algorithm.server_momentum", "number", "0.9", "in [0, 1)"),
        ("model.name=mlp", "model.hidden", "list of whole numbers", "[256]", "at least 1 in it"),
    ],
)
def test_types_defaults_and_ranges(title: str, key: str, kind: str, default: str | None, allowed: str) -> None:
    setting = SETTINGS[title, key]
    assert (setting.kind, setting.default, setting.allowed) == (kind, default, allowed)


def test_every_setting_says_what_it_means() -> None:
    assert [key for (_, key), setting in SETTINGS.items() if not setting.meaning] == []
    assert [part.title for part in all_parts() if not part.about.endswith(".")] == []
    assert {setting.kind for setting in SETTINGS.values() if "value" in setting.kind} == set()


def test_the_names_of_a_section() -> None:
    for section, names in (("algorithm", BUILT_IN), ("model", tuple(model.name for model in describe_models()))):
        setting = SETTINGS[section, f"{section}.name"]
        assert setting.allowed.startswith(f"one of {', '.join(names)}, or" if section == "model" else "one of ")
        assert {part.title for part in all_parts() if part.title.startswith(f"{section}.name=")} == {
            f"{section}.name={name}" for name in names
        }


def examples() -> list[str]:
    """Return the blocks of code in the text about files and overrides."""
    lines = [line[4:] if line.startswith("    ") else "" for line in HOW.splitlines()]
    return [block.strip("\n") for block in "\n".join(lines).split("\n\n") if block.strip()]


def test_the_examples_work(tmp_path: Path) -> None:
    """What the text about files and overrides shows is loaded as it stands, and its claims are tried."""
    file, command = examples()
    path = tmp_path / "run.yaml"
    path.write_text(file)
    program, verb, name, *overrides = shlex.split(command)
    assert (program, verb, name) == ("fedmpi", "run", path.name)
    config = resolve(load_config(path, overrides))
    assert config.train.lr == 1e-3
    assert config.model.model_dump()["hidden"] == (200, 100)
    assert (config.partition.name, config.partition.num_clients) == ("iid", 20)
    path.write_text("rounds: 1\n")
    assert resolve(load_config(path)).rounds == 1
    (tmp_path / "config.yaml").write_text(describe(config))
    assert resolve(load_config(tmp_path / "config.yaml")) == config
    assert load_config(path, ["train.lr=1", "train.lr=2"]).train.lr == 2


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_fit_the_terminal(width: int) -> None:
    lines = settings_text("partition", width).splitlines()
    assert max(map(len, lines)) <= width


def test_all_of_it_for_a_terminal() -> None:
    text = settings_text(width=120)
    assert text.startswith(HOW)
    for setting in SETTINGS.values():
        default = "  (required)" if setting.default is None else f"={setting.default}"
        assert f"  {setting.key}{default}" in text
    assert "  train.lr=0.05                                 number, > 0\n      learning rate\n" in text


@pytest.mark.parametrize(
    ("prefix", "titles", "keys"),
    [
        ("train.lr", ["train"], ["train.lr"]),
        ("rounds", ["run"], ["rounds"]),
        ("data.synthetic.noise", ["data.synthetic"], ["data.synthetic.noise"]),
        ("evaluate", ["evaluate"], ["evaluate.every", "evaluate.batch_size"]),
        ("partition.beta", ["partition.name=dirichlet", "partition.name=quantity"], ["partition.beta"] * 2),
        ("algorithm.name=fedprox", ["algorithm.name=fedprox"], [*UPLINK, "algorithm.mu"]),
        ("algorithm.name=fedavg", ["algorithm.name=fedavg"], UPLINK),
        ("algorithm.name=magnitude", ["algorithm.name=magnitude"], ["algorithm.density", "algorithm.mu"]),
    ],
)
def test_a_part_of_it(prefix: str, titles: list[str], keys: list[str]) -> None:
    lines = settings_text(prefix, 120).splitlines()
    assert [line.partition(": ")[0] for line in lines if line[:1].strip()] == titles
    marked = [line.split()[0].partition("=")[0] for line in lines if line.startswith("  ") and line[2] != " "]
    assert marked == keys


def test_a_section_comes_with_those_in_it() -> None:
    text = settings_text("data", 120)
    assert "data.root=null" in text
    assert "data.text.sequence_length=80" in text
    assert "train.lr" not in text
    assert settings_text("algorithm", 120).count("algorithm.name=") == len(BUILT_IN) + 1


def test_settings_of_a_users_own_algorithm(tmp_path: Path) -> None:
    path = tmp_path / "own_settings.py"
    path.write_text(
        textwrap.dedent(
            """
            from pydantic import Field
            from fedmpi.algorithms.base import Algorithm, AlgorithmConfig
            from fedmpi.algorithms.fedavg import FedAvgClient, FedAvgServer

            class Settings(AlgorithmConfig):
                '''Settings of an algorithm of one's own.'''

                strength: float = Field(0.5, gt=0, description="how strong")

            OWN = Algorithm("own", Settings, FedAvgServer, FedAvgClient)
            """
        )
    )
    text = settings_text(f"algorithm.name={path}:OWN", 200)
    assert "Settings of an algorithm of one's own." in text
    assert "  algorithm.strength=0.5                        number, > 0\n      how strong" in text


def test_unknown_keys() -> None:
    with pytest.raises(ConfigError) as caught:
        settings_text("trian")
    sections = ", ".join(RunConfig.model_fields)
    assert str(caught.value) == (
        f"there is no setting 'trian'; did you mean train? the keys of a configuration are {sections}"
    )
    with pytest.raises(ConfigError, match=r"no setting 'train\.l'; did you mean train\.lr\?"):
        settings_text("train.l")
    with pytest.raises(ConfigError, match=r"algorithm\.name must be one of"):
        settings_text("algorithm.name=fedsomething")


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    rows = [line for line in settings_markdown().splitlines() if line.startswith("|")]
    assert len(rows) > 80
    assert {line.replace("\\|", "").count("|") for line in rows} == {6}


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("model.name=nonsense", r"^model\.name must be one of char_gru, .*vgg11, or path/to/file\.py:NAME or "),
        ("model.name=Resnet", r"got 'Resnet'; did you mean resnet9\?$"),
        ("partition.name=idd", r"^partition\.name must be one of iid, .*, natural, got 'idd'; did you mean iid\?$"),
        ("TRAIN", r"^there is no setting 'TRAIN'; did you mean train\? the keys"),
        ("zzz", r"^there is no setting 'zzz'; the keys of a configuration are seed, "),
    ],
)
def test_what_may_have_been_meant(prefix: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        settings_text(prefix)
