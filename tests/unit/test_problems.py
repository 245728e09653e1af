"""What a refusal says: one line a key, in the terms of the file, and what may have been meant."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, model_validator

from fedmpi.config import NamedSection, RunConfig, Section
from fedmpi.configfile import validate
from fedmpi.errors import ConfigError
from fedmpi.problems import did_you_mean


class Inner(Section):
    """A section in a section."""

    width: int = Field(3, ge=2)


class Odd(NamedSection):
    """Settings of every form that a key may have."""

    model_config = {"extra": "forbid"}

    sizes: tuple[int, ...] = Field((3,), min_length=1, max_length=3, description="numbers of units, by layer")
    rate: float | None = None
    flag: bool | None = None
    mixed: int | bool = 3
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    inner: Inner | None = None

    @model_validator(mode="after")
    def _together(self) -> Odd:
        if self.rate == 13:
            raise ValueError("rate must not be 13")
        return self


def problems(section: type[Section], values: dict[Any, Any], where: str = "") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(section, values, where)
    first, *others = str(caught.value).splitlines()
    assert all(line.startswith("  ") for line in others)
    return [first, *(line[2:] for line in others)]


def odd(**values: Any) -> list[str]:
    return problems(Odd, {"name": "odd", **values}, "model")


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"seed": True}, "seed"),
        ({"train": {"lr": True}}, "train.lr"),
        ({"train": {"clip_norm": True}}, "train.clip_norm"),
        ({"partition": {"name": "dirichlet", "beta": True}}, "partition.beta"),
        ({"partition": {"name": "natural", "num_clients": True}}, "partition.num_clients"),
        ({"data": {"name": "synthetic", "synthetic": {"noise": True}}}, "data.synthetic.noise"),
        ({"placement": {"threads": True}}, "placement.threads"),
    ],
)
def test_true_is_no_number_and_is_refused_once(values: dict[str, Any], key: str) -> None:
    assert problems(RunConfig, {"rounds": 1, **values}) == [f"{key} must be a number, got true"]


def test_false_is_no_number_even_where_0_would_be_out_of_range() -> None:
    assert problems(RunConfig, {"rounds": False}) == ["rounds must be a number, got false"]
    assert problems(RunConfig, {"rounds": 1, "placement": {"threads": False}}) == [
        "placement.threads must be a number, got false"
    ]


def test_true_in_a_list() -> None:
    assert odd(sizes=[3, True]) == ["model.sizes.1 must be a number, got true"]


def test_true_where_it_belongs() -> None:
    config = validate(Odd, {"name": "odd", "flag": True, "mixed": True})
    assert config.flag is True
    assert config.mixed is True
    assert validate(RunConfig, {"rounds": 1, "comm": {"doorbell": False}}).comm.doorbell is False


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"threads": 0}, "model.threads must be at least 1 or 'auto', got 0"),
        ({"threads": "all"}, "model.threads must be a whole number or 'auto', got 'all'"),
        ({"sizes": []}, "model.sizes must be a list of at least 1 values, got []"),
        ({"sizes": [1, 2, 3, 4]}, "model.sizes must be a list of at most 3 values, got [1, 2, 3, 4]"),
        ({"sizes": 3}, "model.sizes must be a list, got 3"),
        ({"sizes": [3, "x"]}, "model.sizes.1 must be a whole number, got 'x'"),
        ({"inner": 3}, "model.inner must be a section of keys, got 3"),
        ({"inner": {"width": 1}}, "model.inner.width must be at least 2, got 1"),
        ({"rate": 13}, "model: rate must not be 13"),
        ({"name": None}, "model.name must be a word, got null"),
    ],
)
def test_one_line_a_key_whatever_its_form(values: dict[str, Any], problem: str) -> None:
    assert odd(**values) == [problem]


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("batchsize", "did you mean train.batch_size?"),
        ("momemtum", "did you mean train.momentum?"),
        ("learning_rate", "did you mean train.lr?"),  # by what the key means
        ("clients_per_round", "did you mean participation.clients_per_round?"),  # in another section
        (
            "zzz",
            "the keys of train are local_epochs, batch_size, optimizer, lr, momentum, nesterov, weight_decay, "
            "clip_norm, adam_beta2, adam_eps",
        ),
    ],
)
def test_an_unknown_key_has_a_hint(key: str, hint: str) -> None:
    found = problems(RunConfig, {"rounds": 1, "train": {key: 7}})
    assert found == [f"train.{key}: unknown key (value 7); {hint}"]


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("trian", "did you mean train?"),
        ("lr", "did you mean train.lr?"),
        ("num_clients", "did you mean partition.num_clients?"),
        ("zzz", f"the keys of a configuration are {', '.join(RunConfig.model_fields)}"),
    ],
)
def test_an_unknown_section_has_a_hint(key: str, hint: str) -> None:
    assert problems(RunConfig, {"rounds": 1, key: 7}) == [f"{key}: unknown key (value 7); {hint}"]


def test_a_key_of_another_partition_says_of_which() -> None:
    found = problems(RunConfig, {"rounds": 1, "partition": {"name": "iid", "beta": 1}})
    assert found == ["partition.beta: unknown key (value 1); beta goes with partition.name=dirichlet or quantity"]


def test_hints_for_an_algorithms_own_settings() -> None:
    assert odd(size=3) == ["model.size: unknown key (value 3); did you mean model.sizes?"]
    assert odd(inner={"widht": None}) == [
        "model.inner.widht: unknown key (value null); did you mean model.inner.width?"
    ]


def test_a_name_that_has_no_settings_says_so() -> None:
    class Bare(NamedSection):
        model_config = {"extra": "forbid"}

    found = problems(Bare, {"name": "fedavg", "mu": True}, "algorithm")
    assert found == ["algorithm.mu: unknown key (value true); algorithm.name=fedavg has no settings"]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({2: 3}, "a key must be a word, got 2"),
        ({"train": {2: 3}}, "train: a key must be a word, got 2"),
        ({"partition": {"name": "iid", 2.5: 3}}, "partition: a key must be a word, got 2.5"),
        ({"train": {False: 3}}, "train: a key must be a word, got false (as YAML reads on, off, yes and no too)"),
    ],
)
def test_keys_that_are_no_words(values: dict[Any, Any], problem: str) -> None:
    assert problems(RunConfig, {"rounds": 1, **values}) == [problem]


def test_a_partition_without_a_name() -> None:
    found = problems(RunConfig, {"rounds": 1, "partition": {"beta": True}})
    assert found == ["partition.name: required, and not given"]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"sizes": [3, "4"]}, "model.sizes.1 must be a whole number, got '4' (in quotes it is a word: leave them out)"),
        ({"rate": "1e-3"}, "model.rate must be a number, got '1e-3' (in quotes it is a word: leave them out)"),
        ({"inner": {"width": "3"}}, "model.inner.width must be a whole number, got '3'"),
        ({"threads": "3"}, "model.threads must be a whole number or 'auto', got '3'"),
        ({"flag": 1}, "model.flag must be true or false, got 1"),
        ({"flag": "true"}, "model.flag must be true or false, got 'true'"),
    ],
)
def test_what_pydantic_would_convert_is_refused(values: dict[str, Any], problem: str) -> None:
    (found,) = odd(**values)
    assert found.removesuffix(" (in quotes it is a word: leave them out)") == problem.removesuffix(
        " (in quotes it is a word: leave them out)"
    )
    assert found.endswith("leave them out)") == ("got '" in found)


def test_what_is_of_its_type_or_nearly_is_taken() -> None:
    config = validate(Odd, {"name": "3", "sizes": [3, 4], "rate": 3, "threads": "auto", "mixed": 1, "inner": None})
    assert (config.name, config.sizes, config.rate, config.threads, config.mixed) == ("3", (3, 4), 3.0, "auto", 1)


@pytest.mark.parametrize(
    ("word", "hint"), [("mnits", "; did you mean mnist?"), ("MNIST", "; did you mean mnist?"), ("zzz", ""), ("", "")]
)
def test_the_nearest_of_several_words(word: str, hint: str) -> None:
    assert did_you_mean(word, ["cifar10", "mnist", "synthetic"]) == hint
