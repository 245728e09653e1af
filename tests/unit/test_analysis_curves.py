"""Curve files: what a table and a picture need of a ledger, in a few kilobytes of text."""

import csv
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedmpi.ledger.schema import MessageRow
from fedmpi.ledger.writer import LedgerWriter

pytest.importorskip("matplotlib")

FOLDER = Path(__file__).parents[2] / "analysis"
CONFIG = """\
seed: {seed}
rounds: 30
data: {{name: {data}, root: /where/the/data/lie, text: null}}
partition: {{name: shards, num_clients: 400}}
algorithm: {algorithm}
train: {{lr: 1.0e-02, adam_eps: 1.0e-08}}
participation: {{clients_per_round: 2}}
"""
ATTRS = {"program": "fedmpi 0.1.0", "commit": "0123456789ab", "cpu": "AVX2", "model_digest": "d1", "folder": "/secret"}
PLACEMENT = {"rank": 0, "device_name": "Some Chip"}


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
def run(script, capsys):
    """Return a function that runs the script and returns what it printed, or what it said went wrong."""

    def call(*words, status=0):
        capsys.readouterr()
        assert script.main([str(word) for word in words]) == status
        said = capsys.readouterr()
        if status:
            assert said.err.count("\n") == 1, said.err
        return said.err if status else said.out

    return call


def write(path: Path, algorithm: str = "{name: fedavg}", *, seed=1, status="done", data="cifar10", client=True):
    """Write a ledger of 30 rounds with numbers that need all their digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    writer = LedgerWriter(path, attrs=ATTRS, config_yaml=CONFIG.format(seed=seed, algorithm=algorithm, data=data),
                          flush_s=1e9)  # fmt: skip
    writer.set_partition(np.full(398, 40), np.full((398, 1), 40))
    writer.set_placement([PLACEMENT])
    sent = 0
    for i in range(30):
        nbytes = 2000 + int(rng.integers(2000))
        for j in range(2):
            for way in ("down", "up"):
                sizes = 40, nbytes - 40, nbytes, 0, 0, 4000, 0.0, 1e5 * rng.random(), 1000, 1000
                writer.add_message(MessageRow(i, 0, j, 0, way, "model", "raw", *sizes, 0, 0, 0, 0))
        sent += 2 * nbytes
        accuracy = rng.random() if i % 3 == 2 else np.nan
        row = {"round_idx": i, "num_clients": 2, "test_accuracy": accuracy, "density": rng.random()}
        row |= {"client_accuracy": accuracy / 3} if client else {}
        sums = {"up_nbytes": 2 * nbytes, "cum_up_nbytes": sent, "down_nbytes": 2 * nbytes, "cum_down_nbytes": sent}
        writer.add_round(row | sums)
    writer.finish(status, {})
    return path


@pytest.fixture
def study(tmp_path):
    """Four ledgers as a study leaves them: two configurations, one of them with two seeds and one unfinished run."""
    runs, sparse = tmp_path / "runs", "{name: feddst, density: 0.2, end: null, names: [a, b]}"
    return [
        write(runs / "dense" / "seed1" / "ledger.h5"),
        write(runs / "sparse" / "seed1" / "ledger.h5", sparse),
        write(runs / "sparse" / "seed2" / "ledger.h5", sparse, seed=2),
        write(runs / "other" / "ledger.h5", "{name: feddst, density: 0.1, end: 3, names: [a]}", status="running"),
    ]


def test_curves_stand_for_their_ledgers(run, study, tmp_path):
    """The same tables, picture and CSV to the last digit, also of ledgers and curves together."""
    curves = tmp_path / "new" / "curves"
    note = ["--data-note", 'a JPEG copy: "not" the original']
    saved = run(*study, "--save-curves", curves, *note)
    names = ["dense_seed1.csv", "sparse_seed1.csv", "sparse_seed2.csv", "other_seed1.csv"]
    files = [curves / name for name in names]
    assert sorted(curves.iterdir()) == sorted(files)
    assert saved.splitlines()[:4] == [f"saved {file}" for file in files]
    found = []
    for runs in ([*study, *note], files, [study[0], *files[1:], *note]):
        out = tmp_path / str(len(found))
        options = ["-o", out / "o.png", "--csv", out / "table.csv"]
        said = [run(*runs, *options, "--tests")]
        said += [run(*runs, "--metric", "client", "--mean-of", "3", "--caps", "1/8,.3,1,2,50kB", "--markdown")]
        found.append((said, (out / "table.csv").read_bytes(), (out / "o.png").read_bytes()))
    assert found[0] == found[1] == found[2]
    assert "feddst: density=0.1, end=3, names=['a']" in found[0][0][0]
    assert saved.partition("other_seed1.csv\n")[2] == run(*study, *note)
    assert found[0][0][0].startswith(f"cifar10 ({note[1]}), shards: 398 clients")
    assert run(*study).startswith("cifar10, shards: 398 clients")
    # Saved again they stay as they are, the note with them.
    run(*files, "--save-curves", tmp_path / "again")
    assert [(tmp_path / "again" / name).read_bytes() for name in names] == [file.read_bytes() for file in files]


def test_what_a_curve_file_says(run, tmp_path):
    ledger = write(tmp_path / "runs" / "dense" / "seed1" / "ledger.h5")
    run(ledger.parent, "--save-curves", tmp_path, "--data-note", "generated")
    text = (tmp_path / "dense_seed1.csv").read_text()
    assert len(text) < 3000
    said = text.splitlines()
    assert said[:2] == ['# filetype: "fedmpi-curve"', "# format_version: 1"]
    wanted = ['configuration: "dense"', 'status: "done"', "num_rounds: 30", "num_tests: 10", "num_params: 1000"]
    wanted += ["num_clients: 398", 'program: "fedmpi 0.1.0"', 'commit: "0123456789ab"', 'cpu: "AVX2"']
    wanted += ['devices: ["Some Chip"]', 'model_digest: "d1"', 'data_note: "generated"', "seed: 1", "rounds: 30"]
    wanted += ['algorithm.name: "fedavg"', "train.adam_eps: 1e-08", "data.text: null"]
    assert {f"# {line}" for line in wanted} <= set(said)
    assert any(line.startswith('# ledger_digest: "') and len(line) == 83 for line in said)
    assert "/where" not in text and "/secret" not in text
    rows = list(csv.DictReader(line for line in said if not line.startswith("#")))
    assert [row["round_idx"] for row in rows] == [str(i) for i in range(2, 30, 3)]
    names = "round_idx,test_accuracy,client_accuracy,cum_up_nbytes,cum_down_nbytes,cum_up_paper_nbits,density"
    assert names in said


def test_the_name_of_a_copied_ledger(run, study, tmp_path):
    for name in ("copy.h5", "copy_seed1.h5"):
        shutil.copy(study[0], tmp_path / name)
        run(tmp_path / name, "--save-curves", tmp_path / name[:-3])
        assert [path.name for path in (tmp_path / name[:-3]).iterdir()] == ["copy_seed1.csv"]


def test_curves_that_cannot_be_compared_or_saved(run, study, tmp_path):
    run(*study[:2], "--save-curves", tmp_path)
    dense, sparse = tmp_path / "dense_seed1.csv", tmp_path / "sparse_seed1.csv"
    assert "are runs of the same settings and seed" in run(study[0], dense, status=6)
    other = write(tmp_path / "o" / "mnist" / "ledger.h5", data="mnist")
    assert "data.name is cifar10 in" in run(dense, other, status=6)
    text = dense.read_text()
    dense.write_text(text.replace("num_params: 1000", "num_params: 999"))
    assert "2 of 999 in" in run(dense, sparse, status=6)
    same_name = write(tmp_path / "elsewhere" / "dense" / "ledger.h5", "{name: fedprox}")
    error = run(study[0], same_name, "--save-curves", tmp_path / "none", status=6)
    assert f"{study[0]} and {same_name} would both be dense_seed1.csv" in error
    assert not (tmp_path / "none").exists()
    assert "choose another with --save-curves" in run(sparse, "--save-curves", dense, status=6)
    old = write(tmp_path / "old" / "ledger.h5", client=False)
    run(old, "--save-curves", tmp_path)
    assert "old_seed1.csv: expected the mean over clients" in run(
        tmp_path / "old_seed1.csv", "--metric", "client", status=6
    )


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("# filetype", "# kind", 1, "expected '# filetype: \"fedmpi-curve\"', as curve files begin"),
        ("format_version: 1", "format_version: 2", 2, "expected '# format_version: 1'"),
        ('"dense"', "dense", 3, "expected '# key: value' with a value as JSON, got '# configuration: dense'"),
        ('"dense"', '"../dense"', 0, "expected '# configuration: ' and a name above this line, got '../dense'"),
        ("# seed: 1\n", "", 0, "expected '# seed: ' and a whole number from 0 above this line, got no such key"),
        ("rounds: 30", "rounds: 30\n# seed: 1", 0, "expected each key once, got another seed"),
        ("# num_params: 1000", "# num_params: 1e3", 0, "a whole number from 0 above this line, got 1000.0"),
        ("density\n", "sparsity\n", 0, "expected the columns round_idx,test_accuracy,"),
        ("\n8,", "\n8,0.5,", 0, "expected 7 values (round_idx,"),
        ("\n8,", "\n8;", 0, "expected 7 values (round_idx,"),
        ("\n8,0.", "\n8,2.", 0, "expected test_accuracy to be a number from 0 to 1, or nothing, got '2."),
        ("\n8,0.", "\n8,nan0.", 0, "expected test_accuracy to be a number from 0 to 1, or nothing, got 'nan0."),
        ("\n8,", "\n8.0,", 0, "expected round_idx to be a whole number from 0, got '8.0'"),
        ("\n8,", "\n99999999999,", 0, "expected round_idx to be a whole number from 0, got '99999999999'"),
        ("\n8,", "\n5,", 0, "expected round_idx to grow, got 5 after 5"),
    ],
)
def test_bad_curve_files(run, tmp_path, old, new, line, said):
    ledger = write(tmp_path / "dense" / "ledger.h5")
    run(ledger, "--save-curves", tmp_path)
    path = tmp_path / "dense_seed1.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    error = run(path, status=6)
    assert f"error: {path}, line {line or ''}" in error
    assert said in error


def test_curve_files_that_were_cut_or_are_none(run, tmp_path):
    ledger = write(tmp_path / "dense" / "ledger.h5")
    run(ledger, "--save-curves", tmp_path)
    path = tmp_path / "dense_seed1.csv"
    whole = path.read_bytes()
    for end, got in ((whole.rindex(b"\n", 0, -1) + 1, "got 9; copy"), (-3, "got 9 and a line without an end; copy")):
        path.write_bytes(whole[:end])
        error = run(path, status=6)
        assert "expected 10 rows, as num_tests says" in error and got in error
    path.write_bytes(whole.replace(b"\n", b"\r\n"))
    assert run(path) == run(ledger)
    path.write_bytes(b"")
    assert f"{path}, line 1: expected" in run(path, status=6)
    path.write_bytes(b"\x89HDF\xff\xfe")
    assert "that are no UTF-8 text" in run(path, status=6)
    assert "cannot read the curve: No such file" in run(tmp_path / "none.csv", status=6)


def test_a_folder_of_curve_files_is_pointed_out(run, study, tmp_path):
    folder = tmp_path / "curves"
    run(study[0], "--save-curves", folder)
    assert f"{folder} holds no run but curve files; give these, as {folder}/*.csv" in run(folder, status=6)
