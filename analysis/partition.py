"""Draw which client holds how many samples of which class, as the ledger of a run has it; sizes beside.

python analysis/partition.py RUN -o OUT.png

RUN is the folder of a run or a ledger.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import yaml

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.colors import LogNorm
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator
from pictures import PictureError, ledger_path, picture_path, run, save

from fedmpi.ledger.reader import Ledger

SIZE_COLOUR = "#0072B2"
# Up to so many clients the rows are theirs in order; more lines are too thin to be told apart, and are sorted.
MAX_NAMED = 60
# More rows than the picture has lines of pixels would be left out at random.
MAX_ROWS = 800


class Holdings(NamedTuple):
    """Who holds what: title, samples (num_clients,), labels by class (num_clients, num_classes)."""

    title: str
    sizes: np.ndarray[Any, Any]
    class_counts: np.ndarray[Any, Any]


class Rows(NamedTuple):
    """What is drawn: label of the axis, client or place of each row's upper edge and the last's lower, its clients."""

    label: str
    edges: np.ndarray[Any, Any]
    clients: np.ndarray[Any, Any]


def read_holdings(path: Path) -> Holdings:
    """Read a ledger's partition; raises OutputError as `Ledger` does, PictureError if none was stored."""
    with Ledger(path) as ledger:
        partition = ledger.partition
        config = yaml.safe_load(ledger.config_yaml) or {}
    if partition is None:
        raise PictureError(f"{path}: expected the table of clients and classes, got none; the run ended before it")
    sizes, class_counts = partition
    settings = dict(config.get("partition", {}))
    name, asked = settings.pop("name", "unknown partition"), settings.pop("num_clients", None)
    settings.pop("empty_clients", None)  # seen in the number of clients
    words = ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None)
    clients = f"{len(sizes):,}" if asked in (None, len(sizes)) else f"{len(sizes):,} of {asked:,}"
    title = f"{config.get('data', {}).get('name', 'unknown data')}, {name}" + (f" ({words})" if words else "")
    title += f"\nclients: {clients}, samples: {sizes.sum():,}, {class_words(sizes, class_counts)[1]}: "
    return Holdings(title + f"{class_counts.shape[1]:,}", sizes, class_counts)


def class_words(sizes: np.ndarray[Any, Any], class_counts: np.ndarray[Any, Any]) -> tuple[str, str]:
    """Return what a column is called, one and many: in a text every character has a label of its own."""
    return ("class", "classes") if class_counts.sum() == sizes.sum() else ("character", "characters")


def choose_rows(class_counts: np.ndarray[Any, Any], word: str) -> Rows:
    """Return the rows to draw: all clients in order, or sorted by their largest class, or a sample of these."""
    num_clients = len(class_counts)
    if num_clients <= MAX_NAMED:
        return Rows("client", np.arange(num_clients + 1) - 0.5, np.arange(num_clients))
    share = class_counts.max(axis=1) / np.maximum(1, class_counts.sum(axis=1))
    order = np.lexsort((-share, class_counts.argmax(axis=1)))
    step = -(-num_clients // MAX_ROWS)
    label = f"clients, sorted by their largest {word}" + (f"; 1 in {step} is drawn" if step > 1 else "")
    clients = order[step // 2 :: step]
    return Rows(label, np.linspace(0, num_clients, len(clients) + 1), clients)


def plot(holdings: Holdings, out: Path) -> None:
    """Draw the heat map and the sizes and save them; the suffix of `out` says the format."""
    num_clients, num_classes = holdings.class_counts.shape
    word, _ = class_words(holdings.sizes, holdings.class_counts)
    rows = choose_rows(holdings.class_counts, word)
    counts = holdings.class_counts[rows.clients]

    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    # Rows about as high as the letters where there are few, thin lines where there are many.
    height = float(np.clip(1.8 + 0.17 * num_clients, 3.2, 9.0))
    width = float(np.clip(3.2 + 0.28 * num_classes, 4.6, 9.5))
    figure, (cells, bars, scale) = plt.subplots(
        1, 3, figsize=(width + 3.0, height), layout="constrained", width_ratios=(width, 1.6, 0.16)
    )
    most = max(2, counts.max(initial=0))
    image = cells.pcolormesh(
        np.arange(num_classes + 1) - 0.5,
        rows.edges,
        np.ma.masked_equal(counts, 0),
        norm=LogNorm(1, most),
        cmap="viridis_r",
        # White lines part the cells of a small table; in a large one they would hide them.
        edgecolors="white" if num_clients <= MAX_NAMED and num_classes <= 100 else "none",
        linewidth=0.4,
        rasterized=True,
    )
    cells.set_xlabel(word)
    cells.set_ylabel(rows.label)
    cells.xaxis.set_major_locator(MaxNLocator(20 if num_classes <= 20 else 10, integer=True, min_n_ticks=1))
    cells.yaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    bars.stairs(holdings.sizes[rows.clients], rows.edges, orientation="horizontal", fill=True, color=SIZE_COLOUR)
    bars.set_xlim(left=0)
    bars.set_xlabel("samples")
    bars.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    bars.xaxis.set_major_formatter(EngFormatter(sep=""))
    bars.grid(axis="x", color="0.9", linewidth=0.8)
    bars.set_axisbelow(True)
    bars.tick_params(axis="y", left=False, labelleft=False)
    for axes in (cells, bars):
        axes.set_ylim(rows.edges[-1], rows.edges[0])
    figure.colorbar(
        image,
        cax=scale,
        label=f"{'samples' if word == 'class' else 'characters'} in a cell (white: none)",
        ticks=LogLocator(subs=(1.0, 2.0, 5.0) if most <= 500 else (1.0,)),
        format=FuncFormatter(lambda value, _: f"{value:g}"),
    )
    scale.minorticks_off()
    figure.suptitle(holdings.title, fontsize=11, x=0.01, ha="left")
    save(figure, out)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ledger", type=ledger_path, metavar="RUN", help="folder of a run, or its ledger")
    parser.add_argument("-o", "--out", type=picture_path, required=True, metavar="OUT", help="picture: png, pdf, svg")
    args = parser.parse_args(argv)
    return run(lambda: plot(read_holdings(args.ledger), args.out))


if __name__ == "__main__":
    sys.exit(main())
