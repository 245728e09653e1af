"""The configuration: what is accepted, and that every refusal names the key, the value and the rule."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fedmpi.config import (
    DirichletPartition,
    IidPartition,
    RunConfig,
    TrainConfig,
)
from fedmpi.configfile import apply_overrides, describe, load_config, load_pretrain_config, parse_yaml, validate
from fedmpi.errors import ConfigError


def load(tmp_path: Path, text: str, *overrides: str) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return load_config(path, overrides)


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides)
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, "rounds: 3\n")
    assert config == RunConfig(rounds=3)
    assert config.partition == IidPartition(num_clients=100)
    assert (config.algorithm.name, config.model.name) == ("fedavg", "cnn")


def test_sections_and_a_union_by_name(tmp_path: Path) -> None:
    config = load(tmp_path, "rounds: 3\npartition: {name: dirichlet, beta: 0.1, num_clients: 20}\ntrain: {lr: 0.5}\n")
    assert config.partition == DirichletPartition(beta=0.1, num_clients=20)
    assert config.train == TrainConfig(lr=0.5)


def test_a_named_section_keeps_settings_that_it_does_not_know(tmp_path: Path) -> None:
    config = load(tmp_path, "rounds: 1\nalgorithm: {name: fedprox, mu: 0.5}\n")
    assert config.algorithm.model_dump() == {"name": "fedprox", "mu": 0.5}


def test_sections_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig(rounds=1).train.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rounds: 1\nlearning_rate: 7\n", "learning_rate: unknown key (value 7); did you mean train.lr?"),
        (
            "rounds: 1\ntrain: {learning_rate: 7}\n",
            "train.learning_rate: unknown key (value 7); did you mean train.lr?",
        ),
        ("rounds: many\n", "rounds must be a whole number, got 'many'"),
        ("rounds: 1.5\n", "rounds must be a whole number, got 1.5"),
        ("rounds:\n", "rounds must be a whole number, got null"),
        ("rounds: 1\ntrain: {lr: fast}\n", "train.lr must be a number, got 'fast'"),
        ("rounds: 1\ntrain: 3\n", "train must be a section of keys, got 3"),
        ("rounds: 1\npartition: 3\n", "partition must be a section of keys, got 3"),
        (
            "rounds: 1\nalgorithm: fedavg\n",
            "algorithm must be a section of keys, got 'fedavg'; did you mean algorithm.name=fedavg?",
        ),
        ("rounds: 1\ntrain: sgd\n", "train must be a section of keys, got 'sgd'"),
        ("rounds: '3'\n", "rounds must be a whole number, got '3' (in quotes it is a word: leave them out)"),
        (
            "rounds: 1\nplacement: {threads: '2'}\n",
            "placement.threads must be a whole number or 'auto', got '2' (in quotes it is a word: leave them out)",
        ),
        (
            "rounds: 1\ntrain: {clip_norm: '1e-3'}\n",
            "train.clip_norm must be a number, got '1e-3' (in quotes it is a word: leave them out)",
        ),
        ("rounds: 1\nledger: {save_model: 1}\n", "ledger.save_model must be true or false, got 1"),
        (
            "rounds: 1\nledger: {save_model: 'yes'}\n",
            "ledger.save_model must be true or false, got 'yes' (in quotes it is a word: leave them out)",
        ),
        ("rounds: 0\n", "rounds must be at least 1, got 0"),
        ("rounds: 1\nseed: -1\n", "seed must be at least 0, got -1"),
        ("rounds: 1\nseed: 9223372036854775808\n", f"seed must be at most {2**63 - 1}, got {2**63}"),
        ("rounds: 1\ntrain: {lr: 0}\n", "train.lr must be above 0, got 0"),
        ("rounds: 1\ntrain: {momentum: 1.0}\n", "train.momentum must be below 1, got 1.0"),
        ("rounds: 1\ntrain: {lr: .nan}\n", "train.lr must be a finite number, got nan"),
        ("rounds: 1\ntrain: {lr: .inf}\n", "train.lr must be a finite number, got inf"),
        ("rounds: 1\npartition: {name: iid, num_clients: 0}\n", "partition.num_clients must be at least 1, got 0"),
        ("rounds: 1\npartition: {num_clients: 0}\n", "partition.num_clients must be at least 1, got 0"),
        (
            "rounds: 1\npartition: {name: sorted}\n",
            "partition.name must be one of 'iid', 'dirichlet', 'shards', 'class_runs', 'quantity', 'natural', "
            "got 'sorted'",
        ),
        (
            "rounds: 1\npartition: {name: Dirichlt}\n",
            "partition.name must be one of 'iid', 'dirichlet', 'shards', 'class_runs', 'quantity', 'natural', "
            "got 'Dirichlt'; did you mean dirichlet?",
        ),
        (
            "rounds: 1\ndata: {augment: flip}\n",
            "data.augment must be 'none' or 'crop_flip', got 'flip'; did you mean crop_flip?",
        ),
        (
            "rounds: 1\nwire: {sparse: goloomb}\n",
            "wire.sparse must be 'auto', 'bits', 'byte-rans', 'gap-rans', 'golomb', 'zstd', 'uint32', 'int64', 'gaps', "
            "'ranks' or 'layers', got 'goloomb'; did you mean golomb?",
        ),
        ("rounds: 1\ndata: {root: 3}\n", "data.root must be a path, got 3"),
        ("rounds: 1\nledger: {save_model: maybe}\n", "ledger.save_model must be true or false, got 'maybe'"),
        ("rounds: 1\nmodel: {hidden: 3}\n", "model.name: required, and not given"),
        ("rounds: 1\nmodel: {name: 3}\n", "model.name must be a word, got 3"),
        ("seed: 1\n", "rounds: required, and not given"),
        ("rounds: 1\n2: 3\n", "a key must be a word, got 2"),
        (
            "rounds: 1\ncomm: {on: 3}\n",
            "comm: a key must be a word, got true (as YAML reads on, off, yes and no too)",
        ),
    ],
)
def test_refusals_name_file_key_value_and_rule(tmp_path: Path, text: str, problem: str) -> None:
    assert refusal(tmp_path, text) == f"{tmp_path / 'run.yaml'}: {problem}"


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, "rounds: 0\ntrain: {lr: -1, momentum: yes}\nwhat: 1\n")
    first, *others = message.splitlines()
    start = f"{tmp_path / 'run.yaml'}: "
    assert all(line.startswith(f"  {start}") for line in others)
    lines = [line.strip().removeprefix(start) for line in (first, *others)]
    assert {re.split(":| must", line)[0] for line in lines} == {"rounds", "train.lr", "train.momentum", "what"}
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e-3", 1e-3),
        ("1E3", 1000.0),
        ("-1e+3", -1000.0),
        ("2.5e-3", 2.5e-3),
        ("1.e2", 100.0),
        (".5e1", 5.0),
        ("0.001", 0.001),
    ],
)
def test_exponents_are_numbers(text: str, number: float) -> None:
    """YAML 1.1 wants a point and a sign in them and takes the others for words."""
    parsed = parse_yaml(f"lr: {text}\n", "a.yaml")["lr"]
    assert isinstance(parsed, float)
    assert parsed == number


@pytest.mark.parametrize("text", ["e3", "1e", "1e3x", "0x1e3z", "'1e-3'", "1-e3"])
def test_words_with_an_e_stay_words(text: str) -> None:
    assert parse_yaml(text, "a.yaml") == text.strip("'")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "nothing"), ("# rounds\n", "nothing"), ("- rounds\n", "a list"), ("just words\n", "a word"),
        ("7\n", "a number"), ("yes\n", "true or false"), ("2026-01-02\n", "a date"),
    ],
)  # fmt: skip
def test_not_a_mapping(tmp_path: Path, text: str, kind: str) -> None:
    message = refusal(tmp_path, text)
    assert "run.yaml" in message
    assert message.endswith(f"a configuration is a mapping of sections (`rounds: 20` at least), got {kind}")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*absent\.yaml"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(tmp_path)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"rounds: \xff\xfe\n")
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [("rounds: 1\nrounds: 2\n", 2, "rounds"), ("rounds: 1\ntrain:\n  lr: 1\n  momentum: 0\n  lr: 2\n", 5, "lr")],
)
def test_a_duplicate_key(tmp_path: Path, text: str, line: int, key: str) -> None:
    message = refusal(tmp_path, text)
    assert "run.yaml" in message
    assert f"line {line}: key {key!r} is given twice" in message


@pytest.mark.parametrize("text", ["rounds: [1\n", "a: b: c\n", "rounds: !!python/object/apply:os.getpid []\n"])
def test_broken_yaml(tmp_path: Path, text: str) -> None:
    assert "run.yaml" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    "text", ["rounds: 1\ntrain:\n  lr: {{lr}}\n", "rounds: 1\n[a, b]: 1\n", "rounds: 2026-99-99\n"]
)
def test_yaml_whose_values_cannot_be_made(tmp_path: Path, text: str) -> None:
    """An unfilled template, a list as a key, an impossible date: the user's mistakes, so ConfigError."""
    assert "run.yaml" in refusal(tmp_path, text)


def test_overrides(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "rounds: 3\ntrain: {lr: 0.5, momentum: 0.0}\n",
        "train.lr=1e-3",
        "seed=7",
        "algorithm.name=fedprox",
        "algorithm.mu=0.25",
        "partition={name: shards, num_clients: 50}",
        "placement.state_dir=/tmp/a=b",
    )
    assert config.train == TrainConfig(lr=0.001, momentum=0.0)
    assert (config.seed, config.rounds) == (7, 3)
    assert config.algorithm.model_dump() == {"name": "fedprox", "mu": 0.25}
    assert config.partition.model_dump() == {
        "name": "shards", "num_clients": 50, "shards_per_client": 2, "samples_per_shard": None,
    }  # fmt: skip
    assert config.placement.state_dir == Path("/tmp/a=b")


def test_overrides_leave_the_tree_as_it_was() -> None:
    tree: dict[str, Any] = {"a": {"b": {"c": 1}}, "d": 2}
    assert apply_overrides(tree, ["a.b.c=5", "a.x=null", "e.f=[1, 2]"]) == {
        "a": {"b": {"c": 5}, "x": None}, "d": 2, "e": {"f": [1, 2]},
    }  # fmt: skip
    assert tree == {"a": {"b": {"c": 1}}, "d": 2}


@pytest.mark.parametrize("override", ["train.lr", "=3", ".lr=3", "train..lr=3", "train.=3", "lr 3"])
def test_an_override_of_another_form(tmp_path: Path, override: str) -> None:
    assert f"override {override!r} must look like section.key=value" in refusal(tmp_path, "rounds: 1\n", override)


@pytest.mark.parametrize("value", [5, "text", 0, False])
def test_an_override_below_a_plain_value(value: object) -> None:
    with pytest.raises(ConfigError, match=f"override 'train.lr=1': train holds the value {value!r}, not a section"):
        apply_overrides({"train": value}, ["train.lr=1"])


def test_an_override_whose_value_is_not_yaml(tmp_path: Path) -> None:
    assert "override 'train.lr=[1'" in refusal(tmp_path, "rounds: 1\n", "train.lr=[1")


def test_an_override_is_checked_like_the_file(tmp_path: Path) -> None:
    message = refusal(tmp_path, "rounds: 1\n", "train.lr=-2")
    assert "train.lr must be above 0, got -2" in message


def test_more_clients_a_round_than_there_are(tmp_path: Path) -> None:
    message = refusal(
        tmp_path, "rounds: 1\n", "partition.num_clients=5", "participation.clients_per_round=6", "partition.name=iid"
    )
    assert "participation.clients_per_round must be at most partition.num_clients = 5, got 6" in message
    load(tmp_path, "rounds: 1\n", "partition={name: iid, num_clients: 6}", "participation.clients_per_round=6")


@pytest.mark.parametrize(("key", "value"), [("adam_beta2", 0.9), ("adam_eps", 1e-6)])
def test_adams_settings_without_adam(tmp_path: Path, key: str, value: float) -> None:
    message = refusal(tmp_path, "rounds: 1\n", f"train.{key}={value}")
    assert message.endswith(f"train.{key} is only for train.optimizer=adam, got sgd")
    assert getattr(load(tmp_path, "rounds: 1\n", f"train.{key}={value}", "train.optimizer=adam").train, key) == value


def test_a_spread_of_availability_needs_room(tmp_path: Path) -> None:
    message = refusal(tmp_path, "rounds: 1\n", "participation.availability_spread=0.1")
    assert "participation.availability, which must then be below 1, got 1.0" in message
    config = load(tmp_path, "rounds: 1\nparticipation: {availability_spread: 0.1, availability: 0.5}\n")
    assert config.participation.availability_spread == 0.1


def test_validate_puts_the_section_before_the_key() -> None:
    with pytest.raises(ConfigError, match=r"^algorithm\.lr must be above 0, got -1$"):
        validate(TrainConfig, {"lr": -1}, "algorithm")


def marks(text: str) -> dict[str, str]:
    """Return the comment of each line of a description that has one, by the line's dotted key."""
    found, section = {}, ""
    for line in text.splitlines():
        name, _, rest = line.strip().partition(":")
        section = name if not line.startswith(" ") else section
        _, hash_sign, comment = rest.partition("  # ")
        if hash_sign:
            found[name if not line.startswith(" ") else f"{section}.{name}"] = comment
    return found


def test_describe_marks_what_differs_from_its_default() -> None:
    tree = {"rounds": 4, "train": {"lr": 0.5}, "evaluate": {"every": 5}, "algorithm": {"name": "fedavg"}}
    assert marks(describe(validate(RunConfig, tree))) == {"rounds": "set", "train.lr": "default: 0.05"}


def test_describe_marks_another_algorithm_and_settings_that_only_it_knows() -> None:
    tree = {"rounds": 4, "algorithm": {"name": "fedprox", "mu": 0.5}, "model": {"name": "cnn", "width": 8}}
    assert marks(describe(validate(RunConfig, tree))) == {
        "rounds": "set", "algorithm.name": "default: fedavg", "algorithm.mu": "set", "model.width": "set",
    }  # fmt: skip


TIME_RULES = [
    ("{link: wifi_10m, device: phone, server: jetson}", "time.link must be .*, got 'wifi_10m'; did you mean wifi_100m"),
    (
        "{link: nb_slow, device: phon, server: jetson}",
        "time.device must be .* or a number, got 'phon'; did you mean ph",
    ),
    ("{link: nb_slow, device: 0, server: jetson}", "time.device must be .* or above 0, got 0"),
    (
        "{link: nb_slow, device: '5', server: jetson}",
        "time.device must be a number or .*, got '5' .in quotes it is a w",
    ),
    ("{link: nb_slow, device: 5, server: -1}", "time.server must be .* or above 0, got -1"),
    ("{link: nb_slow, device: 5}", "time.server: required, and not given"),
    ("{link: nb_slow, device: 5, server: 6, latency: 1}", "time.latency: unknown key .* did you mean time.latency_s"),
    ("{link: nb_slow, device: 5, server: 6, up_bits_per_s: 0}", "time.up_bits_per_s must be above 0, got 0"),
    ("{link: nb_slow, device: 5, server: 6, link_spread: -1}", "time.link_spread must be at least 0, got -1"),
    (
        "{device: 5, server: 6, latency_s: 0}",
        "time.link is not given: name a preset, or give time.up_bits_per_s, time.down_bits_per_s too",
    ),
]


@pytest.mark.parametrize(("section", "words"), TIME_RULES)
def test_time_is_refused_in_words(tmp_path: Path, section: str, words: str) -> None:
    assert re.search(words, refusal(tmp_path, f"rounds: 1\ntime: {section}\n"))


def test_time(tmp_path: Path) -> None:
    assert load(tmp_path, "rounds: 1\ntime: null\n").time is None
    given = "rounds: 1\ntime: {up_bits_per_s: 1e6, down_bits_per_s: 2e6, latency_s: 0, device: phone, server: 1e12}\n"
    time = load(tmp_path, given, "time.link_spread=0.5").time
    assert time is not None
    assert (time.link, time.down_bits_per_s, time.device, time.server, time.link_spread) == (
        None,
        2e6,
        "phone",
        1e12,
        0.5,
    )
    again = load(tmp_path, describe(load(tmp_path, given)))
    assert again == load(tmp_path, given)


@pytest.mark.parametrize("threads", [0, -1])
def test_at_least_one_thread(tmp_path: Path, threads: int) -> None:
    assert "placement.threads" in refusal(tmp_path, "rounds: 1\n", f"placement.threads={threads}")


def test_describe_marks_a_partition_of_another_name() -> None:
    text = describe(validate(RunConfig, {"rounds": 4, "partition": {"name": "dirichlet"}}))
    assert "default: iid" in marks(text).get("partition.name", "")


def test_describe_names_every_setting() -> None:
    tree = yaml.safe_load(describe(RunConfig(rounds=1)))
    assert tree == RunConfig(rounds=1).model_dump(mode="json")


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
train = {"lr": st.floats(1e-30, 1e30), "clip_norm": st.none() | st.floats(1e-9, 10), "batch_size": st.integers(1, 99)}
placement = {
    "state_dir": st.sampled_from(["/a b/{rank}", "#x", "- y", "~"]),
    "threads": st.just("auto") | st.integers(1, 9),
}
algorithm = {"name": texts, "list": st.lists(texts), "x": st.none() | st.booleans() | texts}
trees = st.fixed_dictionaries(
    {"rounds": st.integers(1, 10**6)},
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "train": st.fixed_dictionaries({}, optional=train),
        "partition": st.sampled_from(["iid", "dirichlet", "shards"]).map(lambda n: {"name": n, "num_clients": 77}),
        "algorithm": st.fixed_dictionaries(algorithm),
        "placement": st.fixed_dictionaries({}, optional=placement),
        "data": st.sampled_from([{}, {"name": "synthetic", "synthetic": {"noise": 1e-7}}, {"root": "/da: ta"}]),
    },
)


@given(tree=trees)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(tree={"rounds": 1, "algorithm": {"name": "0E0", "list": ["1e-3"], "x": None}})
def test_a_description_loads_back_to_the_same_configuration(tmp_path: Path, tree: dict[str, Any]) -> None:
    config = validate(RunConfig, tree)
    assert load(tmp_path, describe(config)) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rounds: 1\ntrain:\n\tlr: 1\n", "line 3, column 1: a tab; YAML indents with spaces"),
        (
            "rounds: [1\n",
            "line 2, column 1: no YAML: while parsing a flow sequence, expected ',' or ']', but got the end",
        ),
        ("a: b: c\n", "line 1, column 5: no YAML: mapping values are not allowed here"),
        ("rounds: \x01\n", "no YAML: a character that cannot be shown (0x1) at position 9"),
        ("rounds: 1\ntrain:\n  lr: {{lr}}\n", "line 3: a key must be a word, got a section"),
        ("[a, b]: 1\n", "line 1: a key must be a word, got a list"),
    ],
)
def test_words_for_broken_yaml(tmp_path: Path, text: str, words: str) -> None:
    assert refusal(tmp_path, text) == f"{tmp_path / 'run.yaml'}: {words}"


def test_a_setting_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("rounds: 1\n")
    for others, named in (([str(tmp_path / "run.yaml")], tmp_path / "run.yaml"), (["seed=1"], "CONFIG.yaml")):
        with pytest.raises(ConfigError) as caught:
            load_config(Path("train.lr=1e-3"), others)
        assert str(caught.value).endswith(
            f"train.lr=1e-3: No such file or directory; the file comes first, then the settings: {named} train.lr=1e-3"
        )


@pytest.mark.parametrize(
    ("overrides", "on_the_command_line"),
    [
        (["trian=3"], ["trian"]),
        (["trian.lr=3"], ["trian"]),
        (["train={lr: -1}"], ["train.lr"]),
        (["train.lr=-1"], ["train.lr"]),
        (["partition.name=sorted"], ["partition.name"]),
        (["seed=3", "train.momentum=0.5"], []),
        (["seeds=3", "participation.dropout=2"], ["seeds", "participation.dropout"]),
    ],
)
def test_a_problem_is_blamed_on_where_it_comes_from(
    tmp_path: Path, overrides: list[str], on_the_command_line: list[str]
) -> None:
    lines = [line.strip() for line in refusal(tmp_path, "rounds: 0\nevaluate: {every: x}\n", *overrides).splitlines()]
    start = f"{tmp_path / 'run.yaml'}: "
    by_file = {re.split(":| must", line.removeprefix(start))[0] for line in lines if line.startswith(start)}
    start = "on the command line: "
    typed = {re.split(":| must", line.removeprefix(start))[0] for line in lines if line.startswith(start)}
    assert by_file == {"rounds", "evaluate.every"}
    assert typed == set(on_the_command_line)
    assert len(lines) == 2 + len(on_the_command_line)


def test_an_override_that_cannot_be_applied_is_not_the_files(tmp_path: Path) -> None:
    assert refusal(tmp_path, "rounds: 1\n", "lr").startswith("on the command line: override 'lr' must look like")


@pytest.mark.parametrize(
    ("text", "override", "words"),
    [
        ("partition: {num_clients: 5}\n", "participation.clients_per_round=6", "participation.clients_per_round must"),
        ("train: {adam_eps: 1}\n", "train.lr=1", "train.adam_eps is only for"),
        ("participation: {availability_spread: 0.1}\n", "seed=1", "participation.availability_spread spreads"),
    ],
)
def test_what_does_not_go_together_names_its_source(tmp_path: Path, text: str, override: str, words: str) -> None:
    source = "on the command line" if override.startswith("part") else tmp_path / "run.yaml"
    assert refusal(tmp_path, f"rounds: 1\n{text}", override).startswith(f"{source}: {words}")
    file_alone = text if source != "on the command line" else f"{text}participation: {{clients_per_round: 6}}\n"
    assert refusal(tmp_path, f"rounds: 1\n{file_alone}").startswith(f"{tmp_path / 'run.yaml'}: {words}")


@pytest.mark.parametrize("section", [name for name in RunConfig.model_fields if name not in ("rounds", "seed")])
def test_a_section_with_nothing_below_has_its_defaults(tmp_path: Path, section: str) -> None:
    assert load(tmp_path, f"rounds: 3\n{section}:\n") == RunConfig(rounds=3)
    assert load(tmp_path, "rounds: 3\n", f"{section}=") == RunConfig(rounds=3)


def test_null_stays_what_it_is_where_it_may_be_given(tmp_path: Path) -> None:
    assert load(tmp_path, "rounds: 1\ndata: {synthetic: null}\n").data.synthetic is None
    assert "seed must be a whole number, got null" in refusal(tmp_path, "rounds: 1\nseed:\n")


def test_numbers_of_either_form_where_a_number_is_meant(tmp_path: Path) -> None:
    config = load(tmp_path, "rounds: 1e1\ntrain: {lr: 1, weight_decay: 1e-3}\nplacement: {threads: auto}\n")
    assert (config.rounds, config.train.lr, config.train.weight_decay) == (10, 1.0, 0.001)
    assert config.placement.threads == "auto"
    assert load(tmp_path, "rounds: 1\ndata: {root: '3'}\n").data.root == Path("3")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.nesterov=true", "train.optimizer=adam"], "train.nesterov is only for train.optimizer=sgd, got adam"),
        (["train.nesterov=true", "train.momentum=0"], "train.nesterov needs train.momentum above 0, got 0.0"),
    ],
)
def test_nesterov_needs_the_momentum_of_sgd(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=f"on the command line: {words}"):
        load(tmp_path, "rounds: 1\n", *overrides)
    assert load(tmp_path, "rounds: 1\n", "train.nesterov=true").train.nesterov


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pretrain: {momentum: 0}\n", "pretrain.nesterov needs pretrain.momentum above 0, got 0.0; set"),
        ("pretrain: {epochs: 0}\n", "pretrain.epochs must be at least 1, got 0"),
        ("pretrain: {lr_drops: [0.5, 1]}\n", "pretrain.lr_drops.1 must be below 1, got 1"),
        ("rounds: 3\n", "rounds: unknown key"),
        ("placement: {min_ranks: 2}\n", "placement.min_ranks: unknown key"),
        ("data: {classes: [1]}\n", "data.classes must be a list of at least 2 values"),
        ("data: {classes: [1, -1]}\n", "data.classes.1 must be at least 0, got -1"),
        ("- 1\n", r"a configuration is a mapping of sections \(such as `model: \{name: cnn\}`\), got a list"),
    ],
)
def test_a_pretraining_that_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "pre.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_pretrain_config(tmp_path / "pre.yaml")


def test_a_pretraining(tmp_path: Path) -> None:
    (tmp_path / "pre.yaml").write_text("model: {name: mlp}\ndata: {classes: [3, 4]}\n")
    config = load_pretrain_config(tmp_path / "pre.yaml", ["pretrain.epochs=3", "data.convert={height: 32}"])
    assert (config.pretrain.epochs, config.pretrain.lr_drops, config.data.classes) == (3, (0.5, 0.8), (3, 4))
    (tmp_path / "again.yaml").write_text(describe(config))
    assert load_pretrain_config(tmp_path / "again.yaml") == config
