"""What the scripts here share: which file an argument means, how runs are told apart, and pictures that are written.

What cannot be drawn or written is refused in words.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# As a run that cannot write its output ends with.
EXIT_OUTPUT = 6
# Okabe and Ito's colours, which also the colour-blind tell apart; the markers do so in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*X"
# Settings that name a file: in which folder it lay tells no runs apart, and is nobody else's.
FILES = ("model.weights", "model.pretrained")
# Sections of a configuration whose settings are the first to tell runs apart.
SECTIONS = ("algorithm", "wire", "partition", "model", "train", "participation")


class PictureError(Exception):
    """There is nothing to draw, or the picture cannot be written; its text is what the user reads."""

    exit_status = EXIT_OUTPUT


def ledger_path(text: str) -> Path:
    """Return the ledger that an argument means: the folder of a run stands for the one in it."""
    path = Path(text)
    return path / "ledger.h5" if path.is_dir() else path


def picture_path(text: str) -> Path:
    """Return the path of a picture; raises ArgumentTypeError if its suffix names no format that can be written."""
    path, formats = Path(text), FigureCanvasAgg.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise argparse.ArgumentTypeError(
            f"{text} must end in a picture's suffix, such as .png, .pdf or .svg; got {path.suffix or 'none'}"
        )
    return path


def flat_settings(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a configuration by their dotted keys; of a file of weights its name alone."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from flat_settings(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" in FILES and isinstance(value, str):
            yield f"{prefix}{key}", Path(value).name
        else:
            yield f"{prefix}{key}", value


def alike(labels: Sequence[str]) -> list[list[int]]:
    """Return where each label stands that occurs more than once."""
    return [[i for i, other in enumerate(labels) if other == label] for label, n in Counter(labels).items() if n > 1]


def differences(settings: Sequence[Mapping[str, Any]], *, fewest: bool = True) -> list[str]:
    """Return for each of several runs the settings that tell it from the others, such as "wire.sparse=uint32".

    All of the algorithm's that differ, and of others as few as will do: one that differs only where an earlier one does
    is left out, and so is null. Without `fewest` all that differ, null too; a setting that a run does not have at all
    is always left out.
    """
    chosen: list[str] = []
    for key in sorted(dict.fromkeys(key for one in settings for key in one), key=_interest):
        before = chosen if fewest and not key.startswith("algorithm.") else []
        if len({_values(one, [*before, key]) for one in settings}) > len({_values(one, before) for one in settings}):
            chosen.append(key)
    told = [{key: one[key] for key in chosen if key in one and not (fewest and one[key] is None)} for one in settings]
    return [", ".join(f"{key}={_word(value)}" for key, value in one.items()) for one in told]


def _interest(key: str) -> int:
    """Return the rank of a setting among those that may tell runs apart; the seed and folders come last."""
    section = key.partition(".")[0]
    return SECTIONS.index(section) if section in SECTIONS else len(SECTIONS)


def _values(settings: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(repr(settings.get(key)) for key in keys)


def _word(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def save(figure: Figure, out: Path) -> None:
    """Write a figure, in a folder that is made if need be; raises PictureError."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=160)
    except FileExistsError as error:
        raise PictureError(f"cannot write {out}: {out.parent} is no folder; choose another with -o") from error
    except OSError as error:
        raise PictureError(f"cannot write {out}: {error.strerror or error}; choose another with -o") from error


def run(draw: Callable[[], None]) -> int:
    """Call `draw` and return the command's exit status; what the user can mend is said in a line."""
    try:
        draw()
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read it has read enough, as `head` does; what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        # fedmpi's errors carry words for the user and an exit status; any other is a bug to be seen whole.
        exit_status: int | None = getattr(error, "exit_status", None)
        if exit_status is None:
            raise
        print(f"error: {error}", file=sys.stderr)
        return exit_status
    return 0
