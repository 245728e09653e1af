"""A run's curve, what a table or a picture needs of its ledger: read from the ledger, or from a small CSV file of it.

A curve file outlives its ledger. It is plain text of a few kilobytes: lines `# key: value`, the value as JSON, that say
what was run (FACTS first, then every setting by its dotted key), and below them a row for each tested round (COLUMNS).
Floats are written so that they read back as the same numbers.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from pictures import PictureError, flat_settings

from fedmpi.ledger.reader import Ledger

SUFFIX = ".csv"
FILETYPE, FORMAT_VERSION = "fedmpi-curve", 1
COLUMNS: Mapping[str, Any] = {
    "round_idx": np.int32,
    "test_accuracy": np.float64,
    "client_accuracy": np.float64,
    "cum_up_nbytes": np.uint64,
    "cum_down_nbytes": np.uint64,
    "cum_up_paper_nbits": np.float64,
    "density": np.float64,
}
ACCURACIES = ("test_accuracy", "client_accuracy")
# Facts that a file must have, and those that it has where the ledger did.
COUNTED = ("num_rounds", "num_tests", "num_params", "num_clients")
NEEDED = ("configuration", "status", *COUNTED)
NEEDED_SETTINGS = ("seed", "rounds", "participation.clients_per_round")
PROVENANCE = ("program", "commit", "torch", "cpu", "devices", "model_digest", "ledger_digest", "data_note")
FACTS = ("filetype", "format_version", *NEEDED, *PROVENANCE)
FACT = re.compile(r"# (.+?): (.+)")

Array = np.ndarray[Any, Any]


class Curve(NamedTuple):
    """A run's tested rounds and what the run was.

    `facts` has those of NEEDED and PROVENANCE that are known: `num_rounds` is how many were played, `num_params` 0 if
    no message was sent yet, `num_clients` the number of clients that hold data. `columns` are those of COLUMNS, shape
    (num_tests,) each, NaN where there is no such accuracy.
    """

    path: Path
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    columns: Mapping[str, Array]

    @property
    def file_name(self) -> str:
        """The name of its file: the configuration's and the seed's."""
        return f"{self.facts['configuration']}_seed{self.settings.get('seed')}{SUFFIX}"


def read_curve(path: Path) -> Curve:
    """Read a curve file, known by its suffix, or a ledger.

    Raises
    ------
    OutputError
        As `Ledger` does.
    PictureError
        If a curve file cannot be read, with the line and what was expected there; and for a folder of such files.
    """
    folder = path.parent  # of the ledger that it would be a run's
    if path.name == "ledger.h5" and not path.exists() and any(folder.glob(f"*{SUFFIX}")):
        raise PictureError(f"{folder} holds no run but curve files; give these, as {folder}/*{SUFFIX}")
    return _from_file(path) if path.suffix == SUFFIX else _from_ledger(path)


def save_curves(curves: Sequence[Curve], folder: Path) -> list[Path]:
    """Write a file a curve and return their paths.

    Parameters
    ----------
    curves : sequence of Curve
    folder : Path
        Made if need be. Files of the same names are replaced.

    Raises
    ------
    PictureError
        If two would have the same name, or if one cannot be written.
    """
    names = Counter(one.file_name for one in curves)
    if twice := [name for name, times in names.items() if times > 1]:
        paths = " and ".join(str(one.path) for one in curves if one.file_name == twice[0])
        raise PictureError(f"the curves of {paths} would both be {twice[0]}; save them in different folders")
    out = [folder / one.file_name for one in curves]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for one, path in zip(curves, out, strict=True):
            # Beside its name first: a file that is there is whole.
            part = folder / f".{path.name}.{os.getpid()}"
            part.write_text("\n".join(_lines(one)) + "\n", encoding="utf-8")
            part.replace(path)
    except OSError as error:
        raise PictureError(
            f"cannot write curves to {folder}: {error.strerror or error}; choose another with --save-curves"
        ) from error
    return out


def _from_ledger(path: Path) -> Curve:
    with Ledger(path) as ledger:
        rounds, messages, partition, summary = ledger.rounds, ledger.messages, ledger.partition, ledger.summary()
        model = ledger.model
        settings = dict(flat_settings(yaml.safe_load(ledger.config_yaml) or {}))
        devices = sorted({str(row["device_name"]) for row in ledger.placement if row.get("device_name")})
        facts = {
            "configuration": _configuration(path, settings.get("seed")),
            "status": ledger.status,
            **{name: ledger.attrs.get(name) for name in PROVENANCE},
            "devices": devices,
            **{name: summary[name] for name in ("model_digest", "ledger_digest")},
        }
    columns = {name: rounds[name] for name in COLUMNS if name in rounds}
    is_up, num_rounds = messages["direction"] == "up", int(rounds["round_idx"].max(initial=-1)) + 1
    paper_nbits = np.bincount(messages["round_idx"][is_up], messages["paper_nbits"][is_up], num_rounds)
    columns["cum_up_paper_nbits"] = np.cumsum(paper_nbits)[rounds["round_idx"]]
    tested = ~np.all([np.isnan(columns[name]) for name in ACCURACIES], axis=0)
    # A ledger without the model says by its messages how large that is: of a few more is sent, such as a mask that
    # changed, but most are about it alone, though not in split learning.
    sizes, times = np.unique(messages["num_params"], return_counts=True)
    num_params = int(sizes[times.argmax()]) if len(sizes) else 0
    if model is not None:
        num_params = sum(vector.size for vector in model)
    facts |= {
        "num_rounds": len(tested),
        "num_tests": int(tested.sum()),
        "num_params": num_params,
        "num_clients": len(partition[0]) if partition else settings.get("partition.num_clients") or 0,
    }
    return Curve(path, settings, facts, {name: columns[name][tested] for name in COLUMNS})


def _configuration(path: Path, seed: Any) -> str:
    """Return what a run is called: its folder, but for the seed's own, or the file itself."""
    path = path.resolve()
    name = path.stem if path.name != "ledger.h5" else path.parent.name
    if path.name == "ledger.h5" and name == f"seed{seed}":
        name = path.parent.parent.name
    return name.removesuffix(f"_seed{seed}")


def _lines(curve: Curve) -> Iterator[str]:
    facts = {"filetype": FILETYPE, "format_version": FORMAT_VERSION, **curve.facts}
    known = {name: facts[name] for name in FACTS if facts.get(name) not in (None, "", [])}
    # Where the data lay is nobody's business elsewhere, and tells no runs apart.
    settings = {key: value for key, value in curve.settings.items() if key != "data.root"}
    for key, value in {**known, **settings}.items():
        yield f"# {key}: {json.dumps(value, ensure_ascii=False, default=str)}"
    yield ",".join(COLUMNS)
    for row in zip(*(curve.columns[name].tolist() for name in COLUMNS), strict=True):
        yield ",".join(map(_field, row))


def _field(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if value == int(value) else repr(value)


def _from_file(path: Path) -> Curve:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise PictureError(f"{path}: cannot read the curve: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise PictureError(f"{path}: expected a curve file, got bytes that are no UTF-8 text") from error
    lines = text.split("\n")
    said: dict[str, Any] = {}
    for number, line in enumerate(lines, 1):
        if not line.startswith("#") and number > 1:
            break
        key, value = _fact(path, number, line)
        if key in said:
            raise _bad(path, number, "each key once", f"another {key}")
        said[key] = value
    for key in (*NEEDED, *NEEDED_SETTINGS):
        value, is_count = said.get(key), key not in ("configuration", "status")
        # A configuration is the name of a file, too.
        sound = type(value) is int and value >= 0 if is_count else isinstance(value, str) and "/" not in value
        if not sound:
            what = f"'# {key}: ' and a {'whole number from 0' if is_count else 'name'} above this line"
            raise _bad(path, number, what, repr(value) if key in said else "no such key")
    if line != ",".join(COLUMNS):
        raise _bad(path, number, f"the columns {','.join(COLUMNS)}", repr(line))
    rows = [_row(path, at, words.split(",")) for at, words in enumerate(lines[number:-1], number + 1)]
    if lines[-1] or len(rows) != said["num_tests"]:
        cut = "" if not lines[-1] else " and a line without an end"
        raise _bad(path, len(lines), f"{said['num_tests']} rows, as num_tests says", f"{len(rows)}{cut}; copy it again")
    columns = {name: np.array([row[name] for row in rows], dtype) for name, dtype in COLUMNS.items()}
    for name in ("round_idx", "cum_up_nbytes", "cum_down_nbytes", "cum_up_paper_nbits"):
        values = columns[name]
        falls = values[1:] <= values[:-1] if name == "round_idx" else values[1:] < values[:-1]
        if falls.any():
            at = int(falls.argmax()) + 1
            raise _bad(path, number + 1 + at, f"{name} to grow", f"{values[at]} after {values[at - 1]}")
    facts = {key: value for key, value in said.items() if key in (*NEEDED, *PROVENANCE)}
    settings = {key: value for key, value in said.items() if key not in FACTS}
    return Curve(path, settings, facts, columns)


def _fact(path: Path, number: int, line: str) -> tuple[str, Any]:
    first = {1: ("filetype", FILETYPE), 2: ("format_version", FORMAT_VERSION)}
    found = FACT.fullmatch(line)
    try:
        key, value = (found[1], json.loads(found[2])) if found else ("", None)
    except ValueError:
        key, value = "", None
    if number in first and (key, value) != first[number]:
        key, value = first[number]
        raise _bad(path, number, f"'# {key}: {json.dumps(value)}', as curve files begin", repr(line[:80]))
    if not key:
        raise _bad(path, number, "'# key: value' with a value as JSON", repr(line[:80]))
    return key, value


def _row(path: Path, number: int, words: Sequence[str]) -> dict[str, float]:
    if len(words) != len(COLUMNS):
        raise _bad(path, number, f"{len(COLUMNS)} values ({','.join(COLUMNS)})", f"{len(words)}")
    row: dict[str, float] = {}
    for (name, dtype), word in zip(COLUMNS.items(), words, strict=True):
        is_share, is_whole = name in (*ACCURACIES, "density"), np.issubdtype(dtype, np.integer)
        if is_share and not word:
            row[name] = math.nan
            continue
        most = 1 if is_share else np.iinfo(dtype).max if is_whole else sys.float_info.max
        try:
            row[name] = int(word) if is_whole else float(word)
        except ValueError:
            row[name] = -1
        if not 0 <= row[name] <= most:
            kind = "a number from 0 to 1, or nothing" if is_share else f"a {'whole ' * is_whole}number from 0"
            raise _bad(path, number, f"{name} to be {kind}", repr(word))
    return row


def _bad(path: Path, number: int, expected: str, got: str) -> PictureError:
    return PictureError(f"{path}, line {number}: expected {expected}, got {got}")
