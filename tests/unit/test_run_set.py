"""The script that runs a set of experiments, and the experiments of the FedDST study."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from support import write_config

from fedmpi.configfile import describe, load_config
from fedmpi.engine.setup import resolve
from fedmpi.ledger.reader import Ledger
from fedmpi.ledger.writer import LedgerWriter

JOBS = Path(__file__).parents[2] / "jobs"
STUDY = sorted((JOBS / "configs" / "feddst").glob("*.yaml"))

Script = Callable[..., tuple[int, list[str]]]


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_set", JOBS / "run_set.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """Put back what the script did to signals."""
    before = {wish: signal.getsignal(wish) for wish in (signal.SIGINT, signal.SIGTERM)}
    yield
    for wish, handler in before.items():
        signal.signal(wish, handler)


def pretend(folder: Path, config: Path, overrides: list[str], status: str = "done") -> None:
    """Leave what a run of the configuration would."""
    text = describe(resolve(load_config(config, overrides)))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ledger.h5").unlink(missing_ok=True)
    LedgerWriter(folder / "ledger.h5", attrs={}, config_yaml=text, flush_s=1.0).finish(status, {})
    (folder / "config.yaml").write_text(text)


@pytest.fixture
def started() -> list[tuple[str, int]]:
    """Folders of the runs that were started, in order, and their numbers of ranks."""
    return []


@pytest.fixture
def script(
    module: ModuleType,
    started: list[tuple[str, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Script:
    """Run the script with runs that take no time: they do what `statuses` says of their folder, else leave a ledger."""

    def command(*words: object, **statuses: int) -> tuple[int, list[str]]:
        def launch(run: object, num_ranks: int) -> int:
            folder = str(run.out.relative_to(tmp_path / "out"))  # type: ignore[attr-defined]
            started.append((folder, num_ranks))
            status = statuses.get(folder.replace("/", "_"), 0)
            if not status:
                pretend(run.out, run.config, run.overrides)  # type: ignore[attr-defined]
            return status

        monkeypatch.setattr(module, "launch", launch)
        capsys.readouterr()
        status = module.main([*map(str, words), "-o", str(tmp_path / "out")])
        return status, capsys.readouterr().out.splitlines()

    return command


@pytest.mark.usefixtures("launches")
def test_a_run_that_is_finished_is_left_out(
    tmp_path: Path, module: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a user starts it, with a real run on one rank."""
    config = write_config(tmp_path)
    words = [f"{config}@4", "rounds=2", "-o", "out"]
    command = [sys.executable, str(JOBS / "run_set.py"), *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("small seed4: done in ")
    monkeypatch.chdir(tmp_path)
    assert module.main(words) == 0
    assert capsys.readouterr().out == "small seed4: skipped, done in out/small/seed4\n"
    with Ledger(tmp_path / "out" / "small" / "seed4" / "ledger.h5") as ledger:
        assert (ledger.status, len(ledger.rounds["round_idx"]), ledger.attrs["seed"]) == ("done", 2, 4)


def test_order_seeds_and_overrides(script: Script, started: list[tuple[str, int]], tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_config(tmp_path, name=f"{name}.yaml")
    (tmp_path / "notes.txt").touch()
    words = [f"{tmp_path}/c.yaml@7", "train.lr=0.5", f"{tmp_path}@1,2", "-n", 3]
    status, lines = script(*words)
    assert status == 0
    folders = ["c/seed7", *(f"{name}/seed{seed}" for name in "abc" for seed in (1, 2))]
    assert started == [(folder, 3) for folder in folders]
    assert [line.split(":")[0] for line in lines] == [folder.replace("/", " ") for folder in folders]
    for folder in folders:
        config = yaml.safe_load((tmp_path / "out" / folder / "config.yaml").read_text())
        assert (config["train"]["lr"], f"seed{config['seed']}") == (0.5, folder.partition("/")[2])
    # Without seeds it is the file's own, and what is there is not made again.
    started.clear()
    assert script(*words, f"{tmp_path}/a.yaml", "--only", "[ac]")[0] == 0
    assert started == [("a/seed3", 3)]


def test_failures_do_not_end_the_set(script: Script, started: list[tuple[str, int]], tmp_path: Path) -> None:
    for name in "abc":
        write_config(tmp_path, name=f"{name}.yaml")
    write_config(tmp_path, name="unknown.yaml", algorithm={"name": "fedavvg"})
    files = [tmp_path / f"{name}.yaml" for name in ("a", "unknown", "b")]
    status, lines = script(*files, a_seed3=5)
    assert status == 1
    assert lines[0].startswith("a seed3: failed with status 5 in ")
    assert lines[1].startswith("unknown seed3: refused: algorithm.name must be one of ")
    assert lines[2].startswith("b seed3: done in ")
    assert started == [("a/seed3", 1), ("b/seed3", 1)]
    # What failed is run again.
    started.clear()
    status, lines = script(tmp_path / "a.yaml", tmp_path / "b.yaml")
    assert (status, started) == (0, [("a/seed3", 1)])
    assert lines[1] == f"b seed3: skipped, done in {tmp_path / 'out' / 'b' / 'seed3'}"


def test_runs_without_data_are_no_failures(script: Script, started: list[tuple[str, int]], tmp_path: Path) -> None:
    files = [write_config(tmp_path, name=f"{name}.yaml") for name in "abc"]
    status, lines = script(*files, a_seed3=3, c_seed3=3)
    assert status == 0
    assert [line.partition(" in ")[0] for line in lines[:3]] == [
        "a seed3: left out, no data",
        "b seed3: done",
        "c seed3: left out, no data",
    ]
    assert lines[3].startswith("2 of 3 runs left out, no data")
    # They are asked for again; another's failure still counts, and where nothing is left out nothing is said of it.
    status, lines = script(*files, a_seed3=3, c_seed3=1)
    assert (status, len(lines)) == (1, 4)
    assert lines[3].startswith("1 of 3 runs left out, no data")
    status, lines = script(*files)
    assert (status, len(lines)) == (0, 3)
    assert [folder for folder, _ in started] == [f"{name}/seed3" for name in "abcacac"]


def test_no_data_for_anything_that_was_to_do(script: Script, started: list[tuple[str, int]], tmp_path: Path) -> None:
    files = [write_config(tmp_path, name=f"{name}.yaml") for name in "abc"]
    no_data = {f"{name}_seed3": 3 for name in "abc"}
    assert script(*files, **no_data)[0] == 3
    assert script(*files, **{**no_data, "b_seed3": 5})[0] == 1
    # What was done before was not to do; what is to do is not known to lack data.
    assert script(files[0])[0] == 0
    assert script(*files, **no_data)[0] == 3
    assert script(*files, "--list")[0] == 0
    assert script(files[0])[0] == 0


@pytest.mark.usefixtures("launches")
def test_a_real_run_without_data(module: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Status 3 comes through from the ranks, and their words say where it was looked for."""
    (tmp_path / "empty").mkdir()
    config = write_config(tmp_path, data={"name": "femnist", "root": str(tmp_path / "empty")})
    assert module.main([str(config), "-o", str(tmp_path / "out")]) == 3
    said, errors = capfd.readouterr()
    assert said.splitlines()[0] == "small seed3: left out, no data"
    assert said.splitlines()[1].startswith("1 of 1 runs left out, no data")
    assert str(tmp_path / "empty") in errors
    assert not (tmp_path / "out" / "small" / "seed3" / "ledger.h5").exists()


@pytest.mark.parametrize("status", ["stopped", "failed: why", "running"])
def test_what_was_cut_off_begins_anew(
    script: Script, started: list[tuple[str, int]], tmp_path: Path, status: str
) -> None:
    config = write_config(tmp_path)
    pretend(tmp_path / "out" / "small" / "seed3", config, ["train.lr=0.5"], status)
    assert script(config)[0] == 0
    assert len(started) == 1
    (tmp_path / "out" / "small" / "seed3" / "ledger.h5").write_text("torn")
    assert script(config)[0] == 0
    assert len(started) == 2


def test_a_finished_run_of_other_settings_is_refused(
    script: Script, started: list[tuple[str, int]], tmp_path: Path
) -> None:
    config = write_config(tmp_path)
    pretend(tmp_path / "out" / "small" / "seed3", config, ["data.root=elsewhere"])
    assert script(config)[0] == 0  # where the data lie makes no other run
    for override, section in [
        ("train.lr=0.5", "train"),
        ("rounds=5", "rounds"),
        ("algorithm.name=fedprox", "algorithm"),
    ]:
        status, (line,) = script(config, override)
        assert status == 1
        assert f"is done with other settings of {section}; remove it" in line
    assert not started


def test_listing_starts_nothing(script: Script, started: list[tuple[str, int]], tmp_path: Path) -> None:
    config = write_config(tmp_path)
    pretend(tmp_path / "out" / "small" / "seed1", config, ["seed=1"])
    status, lines = script(f"{config}@1,2", "--list")
    assert status == 0
    assert [line.split(" ")[2] for line in lines] == ["skipped,", "to"]
    assert not started
    assert not (tmp_path / "out" / "small" / "seed2").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.yaml"], "cannot read the configuration none.yaml"),
        (["small.yaml@1,x"], "got 'small.yaml@1,x'"),
        (["small.yaml@"], "got 'small.yaml@'"),
        (["empty"], "FOLDER with .yaml files in it"),
        (["small.yaml", "rounds=-1"], "rounds must be"),
        (["small.yaml", "--only", "big*"], "none with --only big*"),
        (["rounds=1"], "expected a run"),
        ([], "the following arguments are required"),
    ],
)
def test_bad_words(
    module: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as end:
        module.main(words)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("wish", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_run_and_the_set(
    module: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wish: signal.Signals,
) -> None:
    """A shell stands in for the run: it must hear of the interruption once, and is waited for."""
    heard, ready = tmp_path / "heard", tmp_path / "ready"
    (tmp_path / "python").write_text(
        f"#!/bin/sh\ntrap 'echo once >> {heard}; sleep 0.3; echo over >> {heard}; exit 1' INT\n"
        f"touch {ready}\nwhile :; do sleep 0.02; done\n"
    )
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(module.sys, "executable", str(tmp_path / "python"))
    config = write_config(tmp_path)

    def interrupt() -> None:
        end = time.monotonic() + 30
        while not ready.exists() and time.monotonic() < end:
            time.sleep(0.02)
        os.kill(os.getpid(), wish)

    thread = threading.Thread(target=interrupt)
    thread.start()
    status = module.main([f"{config}@1,2", "-o", str(tmp_path / "out")])
    thread.join()
    assert status == 130
    assert heard.read_text().split() == ["once", "over"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("small seed1: interrupted in ")


def test_an_interruption_while_a_run_is_being_started(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run has begun, but Popen has not returned: it must not be left behind."""
    processes = []

    def start(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        processes.append(subprocess.Popen(["sleep", "60"]))
        os.kill(os.getpid(), signal.SIGINT)
        return processes[0]

    monkeypatch.setattr(module, "subprocess", SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL))
    assert module.main([str(write_config(tmp_path)), "-o", str(tmp_path / "out")]) == 130
    assert processes[0].returncode == -signal.SIGINT
    assert capsys.readouterr().out.startswith("small seed3: interrupted in ")


def test_an_interruption_between_runs(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(run: object) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        return False

    monkeypatch.setattr(module, "is_done", interrupt)
    assert module.main([str(write_config(tmp_path)), "-o", str(tmp_path / "out")]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_a_reader_that_has_read_enough(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    command = [sys.executable, str(JOBS / "run_set.py"), f"{config}@1,2,3", "--list"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 141


@pytest.mark.parametrize("path", STUDY, ids=lambda path: path.stem)
def test_an_experiment_of_the_study_is_valid(path: Path) -> None:
    config = resolve(load_config(path))
    assert (config.rounds, config.seed, config.evaluate.every) == (400, 1, 5)
    assert config.participation.clients_per_round == 20
    # float32 as it is, in dense vectors and under masks alike.
    assert (config.wire.dense, config.wire.values) == ("raw", "raw")


def test_experiments_on_the_same_data_differ_in_the_algorithm_alone() -> None:
    trees = {path.stem: yaml.safe_load(path.read_text()) for path in STUDY}
    assert len(trees) == 27
    for name, tree in trees.items():
        usual = trees[f"{name.partition('_')[0]}_fedavg"]
        assert {**tree, "algorithm": None} == {**usual, "algorithm": None}, name
    algorithms = [(name.partition("_")[0], repr(tree["algorithm"])) for name, tree in trees.items()]
    assert len(set(algorithms)) == len(algorithms)


@pytest.mark.parametrize(
    ("name", "statuses", "status", "num_calls"),
    [
        ("feddst_tune", "000000", 0, 6),
        ("feddst_tune", "333333", 3, 6),
        ("feddst_tune", "003000", 3, 6),
        ("feddst_tune", "031300", 1, 6),
        ("feddst_tune", "200000", 1, 6),
        ("feddst_tune", "0i0000", 130, 2),
        ("feddst_tune", "3p0000", 141, 2),
        # Its runs are all on the same data: without them there is nothing more to do, and it is said once.
        ("ecofed_headline", "0000000000000", 0, 13),
        ("ecofed_headline", "0100000000000", 1, 13),
        ("ecofed_headline", "3333333333333", 3, 1),
        ("ecofed_headline", "2333333333333", 1, 2),
        ("ecofed_headline", "0i00000000000", 130, 2),
        ("ecofed_headline", "00000000000p0", 141, 12),
    ],
)
def test_the_status_of_several_sets(tmp_path: Path, name: str, statuses: str, status: int, num_calls: int) -> None:
    """Python is stood in for: its calls end as `statuses` says in turn, i after Ctrl-C and p without a reader."""
    (tmp_path / "python").write_text(
        f"#!/bin/sh\necho >> {tmp_path}/calls\nn=$(wc -l < {tmp_path}/calls)\n"
        f"exit $(echo {statuses} | cut -c$n | sed 's/i/130/; s/p/141/')\n"
    )
    (tmp_path / "python").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([str(JOBS / f"{name}.sh")], env=env, cwd=tmp_path, timeout=30, check=False)
    assert done.returncode == status
    assert len((tmp_path / "calls").read_text().splitlines()) == num_calls


def test_a_trial_goes_where_its_folder_says(tmp_path: Path) -> None:
    """The -o that is added replaces the study's own, as the head of the script promises."""
    command = [str(JOBS / "feddst.sh"), "--list", "--only", "cifar10_grasp", "-o", str(tmp_path), "rounds=20"]
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == f"cifar10_grasp seed1: to run in {tmp_path}/cifar10_grasp/seed1\n"
    assert "-o runs/trial rounds=" in (JOBS / "feddst.sh").read_text()


@pytest.mark.parametrize(("name", "num_runs"), [("feddst", 33), ("feddst_tune", 12)])
def test_the_studys_scripts_name_runs_that_are_there(tmp_path: Path, name: str, num_runs: int) -> None:
    """Python is stood in for: what it is asked to run must be files, and settings."""
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\necho ---\n')
    (tmp_path / "python").chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = [str(JOBS / f"{name}.sh"), "-n", "8"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True)
    found = 0
    for call in done.stdout.split("---\n")[:-1]:
        script, *words = call.splitlines()
        assert Path(script) == JOBS / "run_set.py"
        assert words[-2:] == ["-n", "8"]
        for path, seeds in (word.split("@") for word in words if "@" in word):
            files = STUDY if Path(path).is_dir() else [Path(path)]
            assert set(files) <= set(STUDY)
            found += len(files) * len(seeds.split(","))
    assert found == num_runs
