"""Accuracy before the upload passes a cap, on small ledgers."""

import csv
import importlib.util
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fedmpi.ledger.schema import MessageRow
from fedmpi.ledger.writer import LedgerWriter

pytest.importorskip("matplotlib")

FOLDER = Path(__file__).parents[2] / "analysis"
NUM_PARAMS = 1000
DENSE_MB = 4 * NUM_PARAMS / 1e6
# Of 2 clients a round; the header and the counts of the messages here are 40 bytes.
ROUND_NBYTES = 2 * (4 * NUM_PARAMS + 40)
CONFIG = """\
seed: {seed}
rounds: {rounds}
data: {{name: cifar10, root: {root}}}
partition: {{name: shards, num_clients: 400}}
algorithm: {algorithm}
participation: {{clients_per_round: {clients}}}
placement: {{device: {device}}}
"""


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        spec = importlib.util.spec_from_file_location("accuracy_at_cap", FOLDER / "accuracy_at_cap.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def picture(script):
    """Return the module that draws."""
    return sys.modules[script.plot.__module__]


@pytest.fixture
def write(tmp_path):
    """Write a ledger of 8 rounds, tested after every second, and return its path."""
    names = iter(range(1000))

    def ledger(
        algorithm="{name: fedavg}", *, accuracies=(0.1, 0.3, 0.2, 0.4), kept=1.0, paper=1.0, num_params=NUM_PARAMS,
        status="done", num_rounds=8, config=CONFIG, num_clients=2, client=True, **settings,
    ):  # fmt: skip
        path = tmp_path / f"{next(names)}.h5"
        settings = {
            "seed": 1,
            "rounds": 8,
            "root": "null",
            "device": "cpu",
            "clients": num_clients,
            "algorithm": algorithm,
        } | settings
        writer = LedgerWriter(path, attrs={}, config_yaml=config.format(**settings), flush_s=1e9)
        writer.set_partition(np.full(398, 40), np.full((398, 1), 40))
        up_nbytes = int(4 * num_params * kept) + 40
        for i in range(num_rounds):
            for j in range(num_clients):
                # A changed mask rides along in the first round: the message is about more than the model.
                about = num_params * (2 if i == 0 else 1)
                for way, nbytes in (("down", 50), ("up", up_nbytes)):
                    sizes = 40, nbytes - 40, nbytes, 0, 0, 4 * about, 0.0, 32.0 * num_params * paper, about, about
                    writer.add_message(MessageRow(i, 0, j, 0, way, "model", "raw", *sizes, 0, 0, 0, 0))
            accuracy = accuracies[i // 2] if i % 2 else np.nan
            row = {"round_idx": i, "num_clients": num_clients, "test_accuracy": accuracy, "down_nbytes": 0}
            row |= {"client_accuracy": accuracy + 0.05} if client else {}
            sums = {"up_nbytes": num_clients * up_nbytes, "cum_up_nbytes": num_clients * up_nbytes * (i + 1)}
            writer.add_round(row | sums | {"cum_down_nbytes": 0})
        writer.finish(status, {})
        return path

    return ledger


def tables(script, capsys, *words):
    """Run the script; return the cells of its tables, a list of rows each."""
    capsys.readouterr()
    assert script.main([*map(str, words), "--markdown"]) == 0
    found = []
    for line in capsys.readouterr().out.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[1] == "runs":
            found.append([])
        if line.startswith("|") and "---" not in line:
            found[-1].append(cells)
    return found


def test_best_accuracy_under_caps(script, write, capsys):
    sparse = write("{name: feddst}", kept=0.25, paper=0.5, accuracies=(0.2, 0.25, 0.3, 0.35))
    wire, paper = tables(script, capsys, write(), sparse, "--caps", "1/8,1/4,1/2,.75,1,2")
    sizes = ["8.128 kB", "16.26 kB", "32.51 kB", "48.77 kB", "65.02 kB", "130 kB"]
    header = [f"{cap} ({size})" for cap, size in zip(["1/8", "1/4", "1/2", ".75", "1", "2"], sizes, strict=True)]
    assert wire[0] == paper[0] == ["", "runs", *header]
    # A worse test later does not count, nor a test whose round passes the cap; N dense rounds do fit their cap.
    dense = ["fedavg", "1", "-", "10.00", "30.00", "30.00", "40.00", "40.00"]
    assert wire[1] == paper[1] == dense
    assert wire[2] == ["feddst", "1", "20.00", "30.00", "35.00", "35.00", "35.00", "35.00"]
    assert paper[2] == ["feddst", "1", "20.00", "25.00", "35.00", "35.00", "35.00", "35.00"]


def test_at_most_the_cap(script, write, capsys):
    """A test after round 1 has 2 rounds' bytes behind it."""
    for nbytes, cell in ((2 * ROUND_NBYTES, "10.00"), (2 * ROUND_NBYTES - 1, "-")):
        ((_, row),) = tables(script, capsys, write(), "--caps", f"{nbytes}B", "--count", "wire")
        assert row[2] == cell
    for nbytes, cell in ((16_000, "10.00"), (15_999, "-")):
        ((_, row),) = tables(script, capsys, write(), "--caps", f"{nbytes}B", "--count", "paper")
        assert row[2] == cell


def test_dense_rounds(script, write, capsys):
    words = ["--caps", "1", "--count", "wire", write(), write("{name: short}", num_rounds=4)]
    ((_, full, short),) = tables(script, capsys, *words)
    assert (full[2], short[2]) == ("40.00", "30.00")
    ((header, full, short),) = tables(script, capsys, *words, "--of-dense-rounds", "2")
    assert header[2] == "1 (16.26 kB)"
    assert (full[2], short[2]) == ("10.00", "10.00")


def test_metric(script, write, capsys):
    words = ["--caps", "1", "--count", "wire", "--metric", "client"]
    ((_, row),) = tables(script, capsys, write(), *words)
    assert row[2] == "45.00"
    old = write(client=False)
    assert script.main([str(write("{name: new}")), str(old), *words]) == 6
    error = capsys.readouterr().err
    assert f"{old}: expected the mean over clients" in error
    assert "--metric test" in error


def test_seeds_are_one_row(script, write, capsys, tmp_path):
    first = write(root="/here")
    second = write(seed=2, root="/there", device="cuda", accuracies=(0.3, 0.1, 0.2, 0.1), kept=1.1)
    other = write("{name: fedavg, mu: 1}")
    out = tmp_path / "new" / "table.csv"
    words = [first, second, other, "--caps", "1/4,1/2", "--count", "wire", "--csv", out]
    ((_, both, alone),) = tables(script, capsys, *words)
    # The second sends more than dense, so that its first test passes the smaller cap.
    assert both == ["fedavg", "2", "10.00 [10.00, -] (1 of 2 runs)", "30.00 [30.00, 30.00]"]
    assert alone == ["fedavg: mu=1", "1", "10.00", "30.00"]
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["cap"], row["num_runs_under_cap"], row["num_runs"]) for row in rows] == [
        ("fedavg", "1/4", "1", "2"),
        ("fedavg", "1/2", "2", "2"),
        ("fedavg: mu=1", "1/4", "1", "1"),
        ("fedavg: mu=1", "1/2", "1", "1"),
    ]
    assert float(rows[0]["accuracy_mean"]) == 0.1
    assert [row["accuracy_by_seed"] for row in rows[:3]] == ["1:0.1", "1:0.3 2:0.3", "1:0.1"]
    assert rows[0]["cap_nbytes"] == str(8 * 2 * (4 * NUM_PARAMS + 64) // 4)
    assert script.main([str(first), str(write(root="/elsewhere"))]) == 6
    assert "runs of the same settings and seed" in capsys.readouterr().err


def test_mean_and_each_seed(script, write, capsys, tmp_path):
    """In the order of the seeds, whatever that of the arguments."""
    seeds = [write(seed=seed, accuracies=(0.1, 0.1, 0.1, best)) for seed, best in ((10, 0.7), (2, 0.5), (1, 0.6))]
    words = [*seeds, "--caps", "1", "--count", "wire", "--csv", tmp_path / "table.csv"]
    ((_, row),) = tables(script, capsys, *words)
    assert row == ["fedavg", "3", "60.00 [60.00, 50.00, 70.00]"]
    assert "1:0.6 2:0.5 10:0.7" in (tmp_path / "table.csv").read_text()
    assert script.main([*map(str, words), "--tests"]) == 0
    assert "passes; in brackets each seed's, in ascending order; in parentheses the" in capsys.readouterr().out


def test_labels_name_the_settings_that_differ(script, write):
    algorithms = ["{name: feddst, density: 0.2, mu: 0}", "{name: feddst, density: 0.1, mu: 0}", "{name: fedavg}"]
    rows = script.rows_of([script.read_curve(write(algorithm)) for algorithm in algorithms], "test")
    assert [row.label for row in rows] == ["feddst: density=0.2", "feddst: density=0.1", "fedavg"]
    assert script.title(rows) == "cifar10, shards: 398 clients, 2 a round"


def test_every_setting_that_differs_is_named(script, write, capsys, tmp_path):
    """Here one setting alone would tell the rows apart."""
    settings = [
        "alpha: 0.1, interval: 2, end_round: null, final_density: 0.9",
        "alpha: 0.1, interval: 3, end_round: 6, final_density: null",
    ]
    labels = [
        "feddst: interval=2, end_round=null, final_density=0.9",
        "feddst: interval=3, end_round=6, final_density=null",
        "fedavg",
    ]
    ledgers = [*(write(f"{{name: feddst, {words}}}") for words in settings), write()]
    out = tmp_path / "table.csv"
    for _, *rows in tables(script, capsys, *ledgers, "--csv", out):
        assert [row[0] for row in rows] == labels
    with out.open(newline="") as file:
        assert list(dict.fromkeys(row["run"] for row in csv.DictReader(file))) == labels


def test_runs_of_unequal_length(script, write, capsys, tmp_path):
    ledgers = [
        write(),
        write("{name: short}", rounds=4, num_rounds=4),
        write("{name: shorter}", rounds=2, num_rounds=2),
    ]
    out = tmp_path / "table.csv"
    words = [*ledgers, "--caps", "1/4,1", "--count", "wire", "--csv", out]
    ((header, *rows),) = tables(script, capsys, *words)
    assert header[1:3] == ["runs", "rounds"]
    assert [row[1:] for row in rows] == [
        ["1", "8", "10.00", "40.00"],
        ["1", "4", "10.00", "30.00"],
        ["1", "2"] + ["10.00"] * 2,
    ]
    with out.open(newline="") as file:
        assert [row["num_rounds"] for row in csv.DictReader(file)] == ["8", "8", "4", "4", "2", "2"]

    def said(*options):
        assert script.main([*map(str, ledgers), *options]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("runs of unequal")]

    assert said() == ["runs of unequal length: 2, 4 and 8 rounds; the longest sets what 1 means"]
    # Where no cap is a share of the longest run nothing is said of that.
    alone = ["runs of unequal length: 2, 4 and 8 rounds"]
    assert said("--of-dense-rounds", "4") == said("--caps", "8kB") == alone
    # A run that was cut off is of the same length as the others.
    ledgers = [write(), write("{name: feddst}", num_rounds=4, status="running")]
    assert said() == []


def test_unfinished_runs_are_told(script, write, capsys, tmp_path):
    killed = write(seed=2, num_rounds=3, status="running")
    nothing_yet = write("{name: feddst}", num_rounds=0, status="running")
    out = tmp_path / "o.png"
    words = [write(), killed, nothing_yet, "--caps", "1/4,1", "--count", "wire", "-o", out]
    ((header, both, none),) = tables(script, capsys, *words)
    assert header[-1] == "unfinished"
    assert both[-1] == "seed 2: 3 of 8 rounds"
    assert both[3] == "25.00 [40.00, 10.00]"
    assert none == ["feddst", "1", "-", "-", "seed 1: 0 of 8 rounds"]
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": CONFIG.replace("cifar10", "mnist")}, "data.name is cifar10 in "),
        ({"config": CONFIG.replace("shards", "iid")}, "partition.name is shards in "),
        ({"config": CONFIG.replace("400", "40")}, "partition.num_clients is 400 in "),
        ({"num_params": 900}, "2 of 900 in "),
        ({"num_clients": 3}, "3 of 1000 in "),
    ],
)
def test_runs_that_cannot_be_compared(script, write, capsys, change, words):
    first, second = write(), write("{name: other}", **change)
    assert script.main([str(first), str(second)]) == 6
    error = capsys.readouterr().err
    assert words in error
    assert str(second) in error
    # Bytes can be compared whatever the model.
    assert (script.main([str(first), str(second), "--caps", "20kB"]) == 0) == ("config" not in change)


def test_nothing_to_show(script, write, capsys, tmp_path):
    assert script.main([str(write(num_rounds=1))]) == 6
    assert "no round was tested" in capsys.readouterr().err
    assert script.main([str(tmp_path / "none.h5")]) == 6
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "torn.h5").write_text("torn")
    assert script.main([str(write()), str(tmp_path / "torn.h5")]) == 6
    assert "torn.h5" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert script.main([str(write()), "--csv", str(tmp_path / "file" / "table.csv")]) == 6
    assert "choose another with --csv" in capsys.readouterr().err


def test_mean_of_the_last_tests(script, write, capsys, tmp_path):
    words = [write(), write("{name: feddst}", kept=0.25, accuracies=(0.5, 0.1, 0.3, 0.2)), "--count", "wire"]
    ((_, dense, sparse),) = tables(script, capsys, *words, "--caps", "1/8,1/4,3/4,1", "--mean-of", "2")
    # Of one test where there is but one; what comes after the cap does not count.
    assert dense == ["fedavg", "1", "-", "10.00", "25.00", "30.00"]
    assert sparse == ["feddst", "1", "50.00", "20.00", "25.00", "25.00"]
    ((_, dense, sparse),) = tables(script, capsys, *words, "--caps", "1/4,1", "--mean-of", "1")
    assert (dense[2:], sparse[2:]) == (["10.00", "40.00"], ["30.00", "20.00"])
    out = tmp_path / "table.csv"
    ((_, dense, _),) = tables(script, capsys, *words, "--caps", "1/8,1", "--mean-of", "999", "--csv", out)
    assert dense[2:] == ["-", "25.00"]
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["mean_of"] for row in rows] == ["999"] * 4
    assert float(rows[1]["accuracy_mean"]) == pytest.approx(0.25)


def test_numbers_of_tests(script, write, capsys, tmp_path):
    seeds = [write(), write(seed=2, kept=1.5), write(seed=3, kept=2.5)]
    out = tmp_path / "table.csv"
    words = [*seeds, write("{name: feddst}", kept=0.25), "--caps", "1/4,1/2,1", "--tests", "--csv", out]
    wire, paper = tables(script, capsys, *words)
    assert wire[1][2:] == [
        "10.00 [10.00, -, -] (1; 1 of 3 runs)",
        "20.00 [30.00, 10.00, -] (1 to 2; 2 of 3 runs)",
        "26.67 [40.00, 30.00, 10.00] (1 to 4)",
    ]
    assert wire[2][2:] == ["30.00 (3)", "40.00 (4)", "40.00 (4)"]
    assert paper[2][2:] == ["10.00 (1)", "30.00 (2)", "40.00 (4)"]
    with out.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["count"] == "wire"]
    numbers = [(row["num_tests_min"], row["num_tests_max"], row["num_runs_under_cap"]) for row in rows]
    assert numbers == [("1", "1", "1"), ("1", "2", "2"), ("1", "4", "3"), ("3", "3", "1"), *[("4", "4", "1")] * 2]
    assert {row["mean_of"] for row in rows} == {""}
    # Where no test is under the cap, with or without a table of its own.
    ((_, row),) = tables(script, capsys, seeds[0], "--caps", "1B", "--count", "wire", "--tests", "--csv", out)
    assert row[2] == "-"
    with out.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["accuracy_mean"], row["num_tests_min"], row["num_tests_max"]) == ("", "0", "0")


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "1e3", "few", "9" * 10, "9" * 5000])
@pytest.mark.parametrize("option", ["--mean-of", "--of-dense-rounds"])
def test_whole_numbers_that_are_none(script, capsys, option, text):
    with pytest.raises(SystemExit) as end:
        script.main(["run", f"{option}={text}"])
    assert end.value.code == 2
    assert "must be a whole number from 1, of at most 9 digits" in capsys.readouterr().err


HUGE_CAPS = ["1e100", "1e400", "1e99999999", "9" * 21, "9" * 500 + "MB", "1/" + "9" * 5000]


@pytest.mark.parametrize(
    "caps",
    ["0", "-1", "1/0", "0MB", "half", "5mb", "1/2/3", "nan", "inf", "", ",", *HUGE_CAPS],
    ids=lambda caps: caps[:12],
)
def test_caps_that_are_none(script, capsys, caps):
    with pytest.raises(SystemExit) as end:
        script.main(["run", f"--caps={caps}"])
    assert end.value.code == 2
    assert "cap" in capsys.readouterr().err


def test_units_of_caps(script):
    caps = script.parse_caps("500MB, 2GiB,1.5 kB,2e3B,1/8,.5")
    assert [cap.nbytes(80) for cap in caps] == [500e6, 2 * 1024**3, 1500, 2000, 10, 40]


def test_the_largest_caps(script, write, capsys, tmp_path):
    words = ["--caps", f"1e99,{'9' * 17}e99TiB", "--of-dense-rounds", "9" * 9, "--count", "wire"]
    ((_, row),) = tables(script, capsys, write(), *words, "--csv", tmp_path / "table.csv", "-o", tmp_path / "o.png")
    assert row[2:] == ["40.00", "40.00"]


def test_aligned_table(script, write, capsys):
    assert script.main([str(write()), str(write("{name: a_longer_name}")), "--count", "wire", "--caps", "8 kB,1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "cifar10, shards: 398 clients, 2 a round",
        "1 is the upload of 8 dense rounds: 65.02 kB",
        "",
        "best test accuracy (%) before the upload, as measured on the wire, passes",
        "",
        "               runs  8 kB  1 (65.02 kB)",
        "-------------  ----  ----  ------------",
        "fedavg            1     -         40.00",
        "a_longer_name     1     -         40.00",
    ]
    assert script.main([str(write()), "--caps", "1,20kB", "--count", "paper", "--mean-of", "3", "--tests"]) == 0
    assert capsys.readouterr().out.splitlines()[3:] == [
        "test accuracy, mean of the last 3 tests (%) before the upload, as the paper counts, passes; "
        "in parentheses the tests until then",
        "",
        "        runs  1 (65.02 kB)       20kB",
        "------  ----  ------------  ---------",
        "fedavg     1     30.00 (4)  10.00 (1)",
    ]


def test_plot(script, picture, write, monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(picture, "save", lambda figure, out: figures.append(figure))
    seeds = [write(seed=1), write(seed=2, accuracies=(0.3, 0.3, 0.4, 0.6), kept=0.5)]
    others = [write(f"{{name: some_algorithm_with_a_name, some_setting: {i}}}", paper=0.5) for i in range(9)]
    words = [*map(str, [*seeds, *others]), "-o", str(tmp_path / "o.png"), "--caps", "1/4,1"]
    assert script.main(words) == 0
    (figure,) = figures
    wire, paper = figure.axes
    dense_mb, sparse_mb = ROUND_NBYTES / 1e6, 2 * (2 * NUM_PARAMS + 40) / 1e6
    rounds = np.arange(2, 9, 2)
    np.testing.assert_allclose(wire.get_lines()[0].get_xdata(), rounds * (dense_mb + sparse_mb) / 2)
    np.testing.assert_allclose(wire.get_lines()[0].get_ydata(), [20, 30, 35, 50])
    np.testing.assert_allclose(paper.get_lines()[1].get_xdata(), rounds * DENSE_MB)
    band = wire.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((10, 60))
    assert wire.get_xscale() == "log"
    assert [text.get_text() for text in wire.texts] == ["1/4", "1"]
    assert "wire" in wire.get_xlabel() and "paper" in paper.get_xlabel()
    assert wire.get_ylabel() == "best test accuracy so far (%)"
    lines = wire.get_lines()[:10]
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == 10
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert len(figure.legends[0].get_texts()) == 10
    assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= legend.y0 < legend.y1 < wire.get_tightbbox().y0
    assert wire.get_window_extent().height > 2.5 * figure.dpi
    assert figure._suptitle.get_window_extent().y0 > wire.texts[0].get_window_extent().y1
    assert script.main([*words, "--count", "paper", "--metric", "client"]) == 0
    (axes,) = figures[1].axes
    figures[1].draw_without_rendering()
    label = axes.yaxis.label.get_window_extent()
    assert axes.get_ylabel() == "best mean client accuracy so far (%)"
    assert 0 < label.y0 < label.y1 < figures[1]._suptitle.get_window_extent().y0
    assert script.main([*words, "--count", "wire", "--metric", "client", "--mean-of", "3"]) == 0
    (axes,) = figures[2].axes
    figures[2].draw_without_rendering()
    label = axes.yaxis.label.get_window_extent()
    assert axes.get_ylabel() == "mean client accuracy,\nmean of the last 3 tests so far (%)"
    assert 0 < label.y0 < label.y1 < figures[2]._suptitle.get_window_extent().y0
    # Seeds of .1, .3, .2, .4 and .3, .3, .4, .6, and .05 for the clients'.
    np.testing.assert_allclose(
        axes.get_lines()[0].get_ydata(), [25, 30, 5 + (20 + 100 / 3) / 2, 5 + (30 + 130 / 3) / 2]
    )


def test_marked_tests(picture):
    few, many = np.arange(picture.NUM_MARKERS), np.arange(80)
    assert picture.marks([few, few + 1, np.array([])]) == [list(few), list(few), []]
    (marked,) = picture.marks([many])
    assert (marked[0], marked[-1]) == (0, 79)
    assert 8 <= len(marked) <= picture.NUM_MARKERS
    # Evenly spaced on the axis, once tests are dense enough there.
    ratios = [(after + 1) / (at + 1) for at, after in pairwise(marked) if at >= 4]
    assert max(ratios) < 1.2 * min(ratios)
    # Lines that hide each other take turns.
    first, other, second, third = picture.marks([many, many + 1, many, many])
    assert other == marked
    assert sorted([*first, *second, *third]) == marked
    assert min(map(len, (first, second, third))) >= 3


def test_markers_are_those_of_the_row_in_both_panels(script, picture, write, monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(picture, "save", lambda figure, out: figures.append(figure))
    ledgers = [write(), write("{name: feddst}", kept=0.2, paper=0.4, accuracies=(0.1, 0.2, 0.3, 0.4))]
    assert script.main([*map(str, ledgers), "-o", str(tmp_path / "o.png")]) == 0
    (figure,) = figures
    seen = [
        [(line.get_color(), line.get_marker(), line.get_markevery()) for line in axes.get_lines()[:2]]
        for axes in figure.axes
    ]
    assert seen[0] == seen[1]
    assert [marked for _, _, marked in seen[0]] == [[0, 1, 2, 3]] * 2
    assert {line.get_markersize() for axes in figure.axes for line in axes.get_lines()[:2]} == {8}
    figure.draw_without_rendering()
    assert [line.get_markevery() for line in figure.legends[0].get_lines()] == [[1], [1]]


def test_as_a_user_starts_it(write, tmp_path):
    command = [sys.executable, str(FOLDER / "accuracy_at_cap.py"), str(write())]
    refusals = [("o.xyz", 2, ".xyz"), ("file/o.png", 6, "is no folder")]
    (tmp_path / "file").touch()
    for out, status, said in refusals:
        words = [*command, "-o", str(tmp_path / out)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == status, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_a_reader_that_has_read_enough(write) -> None:
    command = [sys.executable, str(FOLDER / "accuracy_at_cap.py"), str(write())]
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")
