"""Virtual time to an accuracy, on small ledgers."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from support import small_config

from fedmpi.ledger.reader import Ledger
from fedmpi.ledger.schema import MessageRow
from fedmpi.ledger.writer import LedgerWriter

pytest.importorskip("matplotlib")

FOLDER = Path(__file__).parents[2] / "analysis"
ACCURACIES = (np.nan, 0.5, 0.4, 0.8)


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        spec = importlib.util.spec_from_file_location("time_to_accuracy", FOLDER / "time_to_accuracy.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def write(tmp_path):
    """Write a ledger of 4 rounds of 2 clients, 100 bytes down and 50 up, and return its path."""
    names = iter(range(1000))

    def ledger(algorithm="{name: fedavg}", *, turns=True, accuracies=ACCURACIES, seed=1, cut=False, once=0):
        path = tmp_path / f"{next(names)}.h5"
        config = f"seed: {seed}\nalgorithm: {algorithm}\n"
        writer = LedgerWriter(path, attrs={}, config_yaml=config, flush_s=1e9)
        for i, accuracy in enumerate(accuracies):
            for client in range(2):
                if once and i == 0:
                    sizes = once, 0, once, 0, 0, 4, 0.0, 0.0, 1, 1
                    writer.add_message(MessageRow(i, 0, client, 0, "down", "init-model", "raw", *sizes, 0, 0, 0, 0))
                for way, nbytes in (("down", 100), ("up", 50)):
                    sizes = 40, nbytes - 40, nbytes, 0, 0, 4, 0.0, 0.0, 1, 1
                    writer.add_message(MessageRow(i, 0, client, 0, way, "model", "raw", *sizes, 0, 0, 0, 0))
                if turns:
                    writer.add_turn(i, client, 1000.0 * client, 10.0)
            if cut and i == len(accuracies) - 1:
                break
            nbytes = dict.fromkeys(("down_nbytes", "up_nbytes", "cum_down_nbytes", "cum_up_nbytes"), 1)
            ops = {"device_ops": 1000.0, "server_ops": 20.0, "aggregate_ops": 5.0} if turns else {}
            writer.add_round({"round_idx": i, "num_clients": 2, "test_accuracy": accuracy, **nbytes, **ops})
        writer.finish("done", {})
        return path

    return ledger


def rows(script, capsys, *words):
    """Run the script; return the cells of its tables, a list of rows."""
    capsys.readouterr()
    assert script.main([*map(str, words), "--markdown"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# A byte takes 1 s down and 2 s up; a turn 2 latencies, 100 + 100 s, 0 or 10 s of the device, 1 s of the server.
SETTING = ("--link", "8/4/3", "--device", "100", "--server", "10", "--target", "0.5,0.6,0.9")
MEAN, MAX, SUM = 6 + 200 + 5 + 1 + 0.5, 6 + 200 + 10 + 1 + 0.5, 2 * 207 + 10 + 0.5


def test_a_round_of_a_run_without_tests(script, write, capsys):
    untested = write(accuracies=(np.nan,) * 4)
    found = rows(script, capsys, untested, *SETTING[:-2], "--of", "mean,max,sum", "--per-round")
    assert found[0] == ["", "round", "s a round"]
    by_name = {row[1]: row[2] for row in found[2:]}
    assert [by_name[name] for name in ("mean", "max", "sum")] == [f"{s:.4g}" for s in (MEAN, MAX, SUM)]
    assert by_name["max overlap"] == f"{MAX - 1:.4g}"
    # What is sent once is no part of a round.
    assert (
        rows(script, capsys, write(accuracies=(np.nan,) * 4, once=400), *SETTING[:-2], "--per-round")[2:] == found[2:6]
    )


def test_per_round_has_no_targets_and_no_picture(script, write, capsys, tmp_path):
    for more in (("--target", "0.5"), ("-o", tmp_path / "a.png")):
        with pytest.raises(SystemExit) as end:
            script.main([str(write()), "--per-round", *map(str, more)])
        assert end.value.code == 2
        assert "--per-round has no targets and no picture" in capsys.readouterr().err
    assert script.main([str(write(accuracies=())), "--per-round"]) == 6
    assert "no round is over" in capsys.readouterr().err


def test_by_hand(script, write, capsys):
    found = rows(script, capsys, write(), *SETTING, "--of", "mean,max,sum")
    assert found[0] == ["", "round", "50 %", "60 %", "90 %"]
    by_name = {row[1]: row[2:] for row in found[2:]}
    for name, seconds, server in (("mean", MEAN, 1), ("max", MAX, 1), ("sum", SUM, 2)):
        assert by_name[name] == [f"{2 * seconds:.4g}", f"{4 * seconds:.4g}", "-"]
        # The server works while the device or a link does.
        assert by_name[f"{name} overlap"] == [f"{n * (seconds - server):.4g}" for n in (2, 4)] + ["-"]


def test_several_links_and_the_presets(script, write, capsys):
    found = rows(script, capsys, write(), "--link", "wifi_100m,nb_slow", "--device", "phone", "--of", "max")
    assert [row[0] for row in found].count("fedavg") == 4
    wifi, slow = (float(found[at][2]) for at in (2, 6))
    assert slow > 100 * wifi
    assert found[0][2:] == ["65 %", "70 %", "75 %", "80 %"]


def test_without_operations_only_links_take_time(script, write, capsys):
    path = write(turns=False)
    found = rows(script, capsys, path, "--link", "8/4/3", "--target", "0.8", "--of", "mean")
    assert [row[2] for row in found[2:]] == ["824", "824"]
    assert script.main([str(path), "--device", "phone"]) == 6
    assert "expected operations (turns), got none: the run had no section `time`" in capsys.readouterr().err


def test_a_round_that_was_cut_short_is_left_out(script, write, capsys):
    found = rows(script, capsys, write(cut=True), *SETTING, "--of", "mean")
    assert found[2][2:] == [f"{2 * MEAN:.4g}", "-", "-"]


def test_runs_are_told_apart_and_drawn(script, write, capsys, tmp_path):
    paths = [write(), write(seed=2), write("{name: fedpm}"), write("{name: fedprox, mu: 1}")]
    out = tmp_path / "new" / "a.png"
    found = rows(script, capsys, *paths, *SETTING, "-o", out)
    assert list(dict.fromkeys(row[0] for row in found[2:])) == ["fedavg: seed=1", "fedavg: seed=2", "fedpm", "fedprox"]
    assert out.stat().st_size > 10_000


def test_it_gives_what_the_run_logged(script, tmp_path):
    from fedmpi.comm.local import LocalCommunicator
    from fedmpi.engine.clock import system_of
    from fedmpi.runner import run

    time = {"link": "lte_20m_5m", "device": "phone", "server": 1e9, "link_spread": 0.5, "device_spread": 0.5}
    talk = Path(__file__).parents[1] / "algorithms" / "talk.py"
    config = small_config(tmp_path, time=time, algorithm={"name": f"{talk}:TALK"})
    assert run(config, tmp_path / "out", LocalCommunicator()) == 0
    path = tmp_path / "out" / "ledger.h5"
    found = script.read_run(path, True)
    assert config.time is not None
    with Ledger(path) as ledger:
        for of in ("sum", "mean", "max"):
            for words, overlap in (("", False), ("overlap_", True)):
                seconds = found.seconds(system_of(config.time), of, overlap)
                assert seconds == pytest.approx(np.cumsum(ledger.rounds[f"virtual_{words}{of}_s"]), rel=1e-12)
        assert (ledger.rounds["virtual_overlap_max_s"] < ledger.rounds["virtual_max_s"]).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--link", "wifi"], "a link must be one of lan_1g,"),
        (["--link", "1e6/0/1"], "got '1e6/0/1'"),
        (["--link", ","], "at least one link"),
        (["--device", "phon"], "a device must be one of microcontroller,"),
        (["--server", "nan"], "got 'nan'"),
        (["--target", "80"], "targets must be accuracies in (0, 1]"),
        (["--of", "median"], "must be some of mean, sum, max"),
        (["--link-spread", "-1"], "must be a number of at least 0"),
    ],
)
def test_words_that_say_nothing(script, capsys, words, said):
    with pytest.raises(SystemExit) as caught:
        script.main(["x.h5", *words])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_a_run_without_tests(script, write, capsys):
    assert script.main([str(write(accuracies=(np.nan,) * 3))]) == 6
    assert "no round was tested" in capsys.readouterr().err
