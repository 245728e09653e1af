"""All settings of a configuration, laid out for a terminal and as a page of the docs."""

from __future__ import annotations

import shutil
import textwrap

from fedmpi.algorithms.registry import BUILT_IN
from fedmpi.config import RunConfig
from fedmpi.errors import ConfigError
from fedmpi.problems import did_you_mean
from fedmpi.report.catalog import Part, all_parts, pretrain_parts

HOW = """\
A configuration is one YAML file. Only `rounds` must be in it; every other setting has a default:

    rounds: 20
    data: {name: fashion_mnist_mini}
    partition: {name: dirichlet, num_clients: 50, beta: 0.3}
    train:
      lr: 0.05

On the command line `section.key=value` replaces or adds a setting, read as YAML too, so that a list or a whole section
can be given in quotes; of two for the same key the last counts:

    fedmpi run run.yaml train.lr=1e-3 model.name=mlp 'model.hidden=[200, 100]' 'partition={name: iid, num_clients: 20}'

A name changed there (`data.name`, `partition.name`, `model.name`, `algorithm.name`) drops the other settings that the
file has in that section, as they were for the other name. A partition keeps `num_clients`, data keep `augment` and
`convert`.

Everything is checked before anything starts. An unknown key, a value of another type (a number in quotes is a word) or
one out of range ends the command with status 2 and a line for each, which names the key, the rule and the value, and
whether the file or the command line has it. `null` leaves a setting unset where its type allows that, and a section
that is null or has nothing below its name has all its defaults. Paths are relative to the folder that fedmpi runs in. A
run writes all its settings to `config.yaml` in its folder, with a comment where one differs from the default; that file
can be run again.
"""
_HEAD = """\
# Configuration

This page is made by `fedmpi config --markdown > docs/configuration.md` from the classes that check a configuration, and
a test holds the two equal: change the classes, not the page. `fedmpi config train` prints the part of one section.
"""


def settings_text(prefix: str = "", width: int | None = None) -> str:
    """Return the settings laid out for a terminal.

    Parameters
    ----------
    prefix : str
        A section (``train``), a key (``train.lr``) or a name (``algorithm.name=fedprox``, of a user's own file too);
        "" for all, and how a configuration is written.
    width : int, optional
        Columns; the terminal's own by default, but at most 120.

    Raises
    ------
    ConfigError
        If nothing has that key.
    """
    width = width or min(shutil.get_terminal_size().columns, 120)
    blocks = [] if prefix else [HOW.rstrip()]
    for part in _chosen(prefix):
        lines = textwrap.wrap(f"{part.title}: {part.about}", width, subsequent_indent="    ")
        for setting in part.settings:
            default = "  (required)" if setting.default is None else f"={setting.default}"
            head = f"  {setting.key}{default}"
            rule = f"  {setting.kind}{', ' + setting.allowed if setting.allowed else ''}"
            if len(rule) + max(len(head), 46) <= width:
                lines.append(f"{head:46}{rule}")
            else:
                lines += [head, *textwrap.wrap(rule.strip(), width, initial_indent=" " * 6, subsequent_indent=" " * 6)]
            lines += textwrap.wrap(setting.meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def settings_markdown() -> str:
    """Return docs/configuration.md."""
    blocks = [_HEAD, HOW]
    for part in [*all_parts(), *pretrain_parts()]:
        blocks.append(f"## {part.title}\n" if "=" not in part.title else f"### `{part.title}`\n")
        blocks.append(f"{part.about}\n")
        if part.settings:
            rows = ["| key | type | default | range | meaning |", "|---|---|---|---|---|"]
            for setting in part.settings:
                default = "required" if setting.default is None else f"`{setting.default}`"
                cells = (f"`{setting.key}`", setting.kind, default, setting.allowed, setting.meaning)
                rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
            blocks.append("\n".join(rows) + "\n")
    return "\n".join(blocks)


def _chosen(prefix: str) -> list[Part]:
    """Find the parts, and in them the settings, that a prefix means."""
    section, _, name = prefix.partition(".name=")
    own = section == "algorithm" and name and name not in BUILT_IN
    parts = all_parts((*BUILT_IN, name) if own else BUILT_IN) + pretrain_parts()
    found = []
    for part in parts:
        whole = f"{part.title}.".startswith(f"{prefix}.") if prefix else True
        settings = tuple(s for s in part.settings if whole or f"{s.key}.".startswith(f"{prefix}."))
        if whole or settings:
            found.append(Part(part.title, part.about, settings))
    if not found:
        names = [part.title.partition("=")[2] for part in parts if name and part.title.startswith(f"{section}.name=")]
        if names:
            files = ", or path/to/file.py:NAME or package.module:NAME" if section in ("algorithm", "model") else ""
            hint = did_you_mean(name, names)
            raise ConfigError(f"{section}.name must be one of {', '.join(names)}{files}, got {name!r}{hint}")
        keys = [part.title for part in parts] + [setting.key for part in parts for setting in part.settings]
        raise ConfigError(
            f"there is no setting {prefix!r}{did_you_mean(prefix, keys) or ';'} the keys of a configuration are "
            f"{', '.join(RunConfig.model_fields)}"
        )
    return found
