"""The analysis scripts, on small ledgers."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedmpi.ledger.writer import LedgerWriter

pytest.importorskip("matplotlib")

FOLDER = Path(__file__).parents[2] / "analysis"


@pytest.fixture(scope="module", autouse=True)
def beside_each_other():
    """Scripts find what they share in their own folder, as when python is given their path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return load("accuracy_vs_bytes")


@pytest.fixture(scope="module")
def partition_script():
    return load("partition")


def write(path: Path, algorithm: str, nbytes: int, every: int = 2, status: str = "done", more: str = "") -> Path:
    path.parent.mkdir(exist_ok=True)
    config = f"algorithm:\n  name: {algorithm}  # set\nevaluate:\n  every: {every}\n{more}"
    writer = LedgerWriter(path, attrs={}, config_yaml=config, flush_s=1.0)
    for i in range(12):
        accuracy = 0.9 - 0.8 / (i + 1) if every and i % every == 0 and every < 12 else np.nan
        writer.add_round(
            {"round_idx": i, "num_clients": 2, "test_accuracy": accuracy, "down_nbytes": nbytes, "up_nbytes": nbytes}
            | {"cum_down_nbytes": nbytes * (i + 1), "cum_up_nbytes": 2 * nbytes * (i + 1)}
        )
    writer.finish(status, {})
    return path


def test_plot(script, tmp_path):
    runs = [("fedavg", 10**6), ("fedpm", 40_000), ("fedpm", 30_000)]
    ledgers = [write(tmp_path / f"{i}.h5", name, nbytes) for i, (name, nbytes) in enumerate(runs)]
    out = tmp_path / "out.png"
    assert script.main([*map(str, ledgers), "-o", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_curve(script, tmp_path):
    curve = script.read_curve(write(tmp_path / "a.h5", "fedavg", 10**6))
    assert curve.label == "fedavg"
    np.testing.assert_allclose(curve.sent_mb, [3, 9, 15, 21, 27, 33])
    np.testing.assert_allclose(curve.accuracy_percent[0], 10)
    [stopped] = script.read_curves([write(tmp_path / "b.h5", "x", 1, status="stopped")])
    assert stopped.label == "x (unfinished)"


@pytest.mark.parametrize(
    ("direction", "first_mb", "words"), [("up", 2, "sent up"), ("down", 1, "sent down"), ("both", 3, "down and up")]
)
def test_bytes_of_a_direction(script, tmp_path, monkeypatch, direction, first_mb, words):
    figures = []
    monkeypatch.setattr(script, "save", lambda figure, out: figures.append(figure))
    ledger = write(tmp_path / "a.h5", "fedavg", 10**6)
    out = str(tmp_path / "o.png")
    assert script.main([str(ledger), "-o", out, "--direction", direction]) == 0
    axes = figures[0].axes[0]
    assert words in axes.get_xlabel()
    np.testing.assert_allclose(axes.get_lines()[0].get_xdata(), first_mb * np.arange(1, 12, 2))
    assert script.main([str(ledger), "-o", out]) == 0
    assert figures[1].axes[0].get_xlabel().startswith("sent, down and up together (MB")


def test_labels_name_the_settings_that_differ(script, tmp_path):
    settings = [
        "seed: 1\nwire: {sparse: auto, values: auto}\ntrain: {lr: 0.1, nesterov: false}\n",
        "seed: 2\nwire: {sparse: uint32, values: raw}\ntrain: {lr: 0.1, nesterov: false}\n",
        "seed: 3\nwire: {sparse: uint32, values: raw}\ntrain: {lr: null, nesterov: true}\n",
    ]
    ledgers = [write(tmp_path / f"{i}.h5", "fedavg", 10, more=more) for i, more in enumerate(settings)]
    ledgers.append(write(tmp_path / "other.h5", "fedpm", 10, more="seed: 4\n"))
    ledgers.append(write(tmp_path / "stopped.h5", "fedavg", 10, status="stopped", more="wire: {sparse: bits}\n"))
    # What differs only where an earlier setting does, and null, would make labels long and say no more.
    assert [curve.label for curve in script.read_curves(ledgers)] == [
        "fedavg: wire.sparse=auto, train.lr=0.1",
        "fedavg: wire.sparse=uint32, train.lr=0.1",
        "fedavg: wire.sparse=uint32",
        "fedpm",
        "fedavg: wire.sparse=bits (unfinished)",
    ]
    assert script.differences([{"train.nesterov": True}, {"train.nesterov": False}]) == [
        "train.nesterov=true", "train.nesterov=false",
    ]  # fmt: skip
    assert script.differences([{"a": 1}, {"a": 1}]) == ["", ""]
    # All that differ, if asked for: null too, but nothing of a setting that a run does not have.
    several = [{"a": 1, "b": None, "c": 0, "d": 5}, {"a": 2, "b": 0.9, "c": 0, "d": 5}, {"a": 3, "b": 0.9, "c": 0}]
    assert script.differences(several) == ["a=1", "a=2", "a=3"]
    assert script.differences(several, fewest=False) == ["a=1, b=null, d=5", "a=2, b=0.9, d=5", "a=3, b=0.9"]
    assert script.differences([{"a": 1}, {"a": 1}], fewest=False) == ["", ""]
    # What differs only where the bits do says no less of what the runs are, if it is the algorithm's.
    bits, periods = "algorithm.bits", "algorithm.period"
    study = [{bits: 8, periods: 2, "train.lr": 0.1}, {bits: 4, periods: 8, "train.lr": 0.2}]
    assert script.differences(study) == [f"{bits}=8, {periods}=2", f"{bits}=4, {periods}=8"]


def test_equal_settings_leave_the_folder(script, tmp_path):
    ledgers = [write(tmp_path / name / "ledger.h5", "x", 10, more=f"seed: {i // 2}\n") for i, name in enumerate("abc")]
    labels = [curve.label for curve in script.read_curves(ledgers)]
    assert labels == [f"x: seed=0 ({tmp_path.name}/a)", f"x: seed=0 ({tmp_path.name}/b)", "x: seed=1"]


def test_nothing_to_plot(script, tmp_path, capsys):
    never, failed = write(tmp_path / "a.h5", "fedavg", 1, every=0), write(tmp_path / "b.h5", "x", 1, 50, "failed: why")
    assert script.main([str(never), str(failed), "-o", str(tmp_path / "o.png")]) == 6
    words = capsys.readouterr().err
    assert "a.h5: no round was tested; evaluate.every is 0" in words
    assert "b.h5: no round was tested; it failed after 12 rounds" in words
    assert "due after 50" in words
    assert not (tmp_path / "o.png").exists()
    assert script.main([str(tmp_path / "none"), "-o", str(tmp_path / "o.png")]) == 6
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize(("status", "said"), [("running", "was killed"), ("stopped", "was stopped")])
def test_one_untested_run_leaves_the_others(script, tmp_path, capsys, status, said):
    tested = [write(tmp_path / name / "ledger.h5", "fedavg", 10**6) for name in ("one", "two")]
    untested = write(tmp_path / "three" / "ledger.h5", "fedavg", 1, every=50, status=status)
    out = tmp_path / "new" / "folder" / "out.png"
    assert script.main([*(str(path.parent) for path in (tested[0], untested, tested[1])), "-o", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    words = capsys.readouterr().err
    assert words.count("warning: left out") == 1
    assert f"{untested}: no round was tested; it {said}" in words
    # Labels go with the runs that are left, and name their folders.
    labels = [curve.label for curve in script.read_curves([tested[0], untested, tested[1]])]
    assert labels == [f"fedavg ({tmp_path.name}/{name})" for name in ("one", "two")]


def test_curves_that_coincide_are_all_seen(script, tmp_path, monkeypatch):
    sent, accuracy = np.arange(1.0, 31.0), np.linspace(10, 90, 30)
    first = script.Curve("first", sent, accuracy, {}, True)
    same, other = first._replace(label="same"), first._replace(label="other", accuracy_percent=accuracy - 5)
    assert script.coincide(first, same)
    assert not script.coincide(first, other)
    assert not script.coincide(first, first._replace(sent_mb=sent[:9], accuracy_percent=accuracy[:9]))
    figures = []
    monkeypatch.setattr(script, "save", lambda figure, out: figures.append(figure))
    script.plot([first, other, same, same, same], tmp_path / "o.png")
    lines = figures[0].axes[0].get_lines()
    assert len({line.get_linewidth() for line in lines}) == len({line.get_markersize() for line in lines}) == 1
    assert [line.get_linestyle() for line in lines] == ["-", "-", "--", "--", "--"]
    marked = [set(range(30)[slice(line.get_markevery()[0], None, line.get_markevery()[1])]) for line in lines]
    assert marked[1] == set(range(0, 30, 2))
    together = [marked[0], *marked[2:]]
    assert all(together)
    assert sum(map(len, together)) == len(set.union(*together))


def test_long_labels_and_many_runs_leave_room_for_the_curves(script, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(script, "save", lambda figure, out: figures.append(figure))
    sent = np.arange(1.0, 9.0)
    curves = [script.Curve(f"fedavg: {f'some.setting={i}, ' * 8}", sent, sent * i, {}, True) for i in range(11)]
    script.plot(curves, tmp_path / "o.png")
    figures[0].draw_without_rendering()
    whole, axes = figures[0].bbox, figures[0].axes[0].get_window_extent()
    legend = figures[0].legends[0].get_window_extent()
    assert axes.height > 3 * figures[0].dpi
    assert whole.x0 <= legend.x0 < legend.x1 <= whole.x1
    assert axes.y1 < legend.y0 < legend.y1 <= whole.y1


@pytest.mark.parametrize("name", ["accuracy_vs_bytes", "partition"])
def test_a_picture_that_cannot_be_written(name, tmp_path):
    """As a user starts them, and without a traceback."""
    counts = np.eye(3, dtype=int)
    ledger = write_partition(tmp_path / "p.h5", counts, DIRICHLET) if name == "partition" else None
    ledger = ledger or write(tmp_path / "a.h5", "fedavg", 10**6)
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    refusals = [("o.xyz", 2, ".xyz"), ("o", 2, "got none"), ("file/o.png", 6, "is no folder")]
    for out, status, said in [*refusals, ("folder.png", 6, "cannot write")]:
        command = [sys.executable, str(FOLDER / f"{name}.py"), str(ledger), "-o", str(tmp_path / out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == status, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def write_partition(path: Path, counts: np.ndarray, config: str, labels_per_sample: int = 1) -> Path:
    writer = LedgerWriter(path, attrs={}, config_yaml=config, flush_s=1.0)
    writer.set_partition(counts.sum(axis=1) // labels_per_sample, counts)
    writer.finish("done", {})
    return path


DIRICHLET = """\
data:
  name: mnist
partition:
  name: dirichlet
  num_clients: 7  # set
  beta: 0.5
  empty_clients: drop
"""


@pytest.mark.parametrize("num_clients", [1, 2, 60, 61, 900])
def test_partition_plot(partition_script, tmp_path, num_clients):
    counts = np.random.default_rng(0).integers(0, 3, (num_clients, 10)) * 40
    ledger, out = write_partition(tmp_path / "ledger.h5", counts, DIRICHLET), tmp_path / "new" / "out.png"
    assert partition_script.main([str(ledger.parent), "-o", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_partition_of_ones(partition_script, tmp_path):
    """One colour only: a scale from 1 to 1 would be no scale."""
    ledger, out = write_partition(tmp_path / "a.h5", np.eye(3, dtype=int), DIRICHLET), tmp_path / "out.png"
    assert partition_script.main([str(ledger), "-o", str(out)]) == 0


def test_partition_title(partition_script, tmp_path):
    counts = np.full((5, 10), 200)
    holdings = partition_script.read_holdings(write_partition(tmp_path / "a.h5", counts, DIRICHLET))
    title = "mnist, dirichlet (beta 0.5)\nclients: 5 of 7, samples: 10,000, classes: 10"
    assert holdings.title == title
    natural = "data: {name: play_mini}\npartition: {name: natural, num_clients: null, min_samples: 3}\n"
    holdings = partition_script.read_holdings(write_partition(tmp_path / "b.h5", counts, natural, 80))
    assert holdings.title == "play_mini, natural (min_samples 3)\nclients: 5, samples: 125, characters: 10"
    np.testing.assert_array_equal(holdings.class_counts, counts)


def test_partition_rows(partition_script):
    few = partition_script.choose_rows(np.ones((60, 3), int), "class")
    np.testing.assert_array_equal(few.clients, np.arange(60))
    np.testing.assert_array_equal(few.edges, np.arange(61) - 0.5)
    counts = np.random.default_rng(0).integers(0, 50, (100, 3))
    sorted_rows = partition_script.choose_rows(counts, "character")
    assert "largest character" in sorted_rows.label
    assert sorted(sorted_rows.clients) == list(range(100))
    assert (np.diff(counts.argmax(axis=1)[sorted_rows.clients]) >= 0).all()
    many = partition_script.choose_rows(np.ones((2001, 3), int), "class")
    assert "1 in 3 is drawn" in many.label
    assert len(many.clients) == 667
    assert (many.edges[0], many.edges[-1], len(many.edges)) == (0, 2001, 668)


def test_no_partition_to_plot(partition_script, tmp_path, capsys):
    assert partition_script.main([str(write(tmp_path / "a.h5", "fedavg", 1)), "-o", str(tmp_path / "o.png")]) == 6
    assert "table of clients and classes" in capsys.readouterr().err
    assert partition_script.main([str(tmp_path / "none"), "-o", str(tmp_path / "o.png")]) == 6
    assert "no such file" in capsys.readouterr().err


def test_scripts_import_the_ledgers_reader_and_the_time_model_and_nothing_else_of_fedmpi():
    lines = [line.strip() for path in FOLDER.glob("*.py") for line in path.read_text().splitlines()]
    imports = [line for line in lines if "import" in line and "fedmpi" in line]
    assert imports
    allowed = ("from fedmpi.ledger.reader import ", "from fedmpi.netmodel import ")
    assert all(line.startswith(allowed) for line in imports)


def test_against_rounds(script, tmp_path):
    runs = [write(tmp_path / name / "ledger.h5", name, nbytes) for name, nbytes in (("fedavg", 10**6), ("ecofed", 10))]
    curve = script.read_curve(runs[0], script.ROUNDS)
    assert curve.sent_mb.tolist() == [1, 3, 5, 7, 9, 11]
    assert script.main([*map(str, runs), "-o", str(tmp_path / "rounds.png"), "--rounds"]) == 0
    assert (tmp_path / "rounds.png").stat().st_size > 5000


def test_of_a_file_of_weights_the_name_is_told(script):
    settings = {"model": {"name": "vgg11", "pretrained": "/home/me/fashion.safetensors", "weights": None}}
    flat = dict(script.flat_settings(settings))
    assert flat == {"model.name": "vgg11", "model.pretrained": "fashion.safetensors", "model.weights": None}
