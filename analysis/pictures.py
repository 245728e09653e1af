"""What the scripts here share: which file an argument means, and pictures that are written, or refused in words."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# As a run that cannot write its output ends with.
EXIT_OUTPUT = 6


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
    except Exception as error:
        # fedmpi's errors carry words for the user and an exit status; any other is a bug to be seen whole.
        exit_status: int | None = getattr(error, "exit_status", None)
        if exit_status is None:
            raise
        print(f"error: {error}", file=sys.stderr)
        return exit_status
    return 0
