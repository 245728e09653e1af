"""``fedmpi list``: what a configuration can name, one line each, from what the code says of itself."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import get_args

from fedmpi.algorithms.registry import describe_algorithms
from fedmpi.config import PartitionConfig
from fedmpi.data.datasets import describe_datasets
from fedmpi.models.registry import describe_models
from fedmpi.wire.codecs.base import CODECS


def _algorithms() -> list[tuple[str, str]]:
    return describe_algorithms()


def _datasets() -> list[tuple[str, str]]:
    return [(name, f"{what} [{where}]") for name, what, where in describe_datasets()]


def _partitions() -> list[tuple[str, str]]:
    (union, _) = get_args(PartitionConfig)
    return [(kind.model_fields["name"].default, first_line(kind)) for kind in get_args(union)]


def _models() -> list[tuple[str, str]]:
    return [(name, what) for name, what, *_ in describe_models()]


def _codecs() -> list[tuple[str, str]]:
    return [(codec.name, codec.summary) for codec in CODECS]


GROUPS: dict[str, tuple[str, Callable[[], list[tuple[str, str]]]]] = {
    "algorithms": ("algorithm.name", _algorithms),
    "datasets": ("data.name", _datasets),
    "partitions": ("partition.name", _partitions),
    "models": ("model.name", _models),
    "codecs": ("as the ledger's codec column names them", _codecs),
}


_OWN = {"algorithms": "an algorithm", "models": "a model"}
_COLUMNS = 100


def first_line(documented: object) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(documented) or "").split("\n")[0]


def choices_text(groups: Sequence[str]) -> str:
    """Lay out the choices of some groups in lines of at most 100 columns; names are those of `GROUPS`."""
    blocks = []
    for group in groups:
        key, find = GROUPS[group]
        rows = find()
        width = max(len(name) for name, _ in rows)
        lines = [f"{group} ({key})"]
        for name, what in rows:
            words = " ".join(what.replace("``", "`").split())
            lines += textwrap.wrap(
                words,
                _COLUMNS,
                initial_indent=f"  {name:{width}}  ",
                subsequent_indent=" " * (width + 4),
                break_long_words=False,
                break_on_hyphens=False,
            )
        if group in _OWN:
            lines.append(f"  or {_OWN[group]} of your own: path/to/file.py:NAME or package.module:NAME")
        blocks.append("\n".join(lines))
    return "\n".join(blocks)
