"""Who imports whom: floors of the house, held by parsing every import, and what heavy modules a command loads."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import write_config

import fedmpi

ROOT = Path(fedmpi.__file__).parent
FLOORS = (
    ("errors", "rng", "config", "configfile", "problems", "plugin", "netmodel"),
    ("flat", "parts", "wire"),
    ("ledger", "comm"),
    ("compress", "data", "models", "train"),
    ("algorithms",),
    ("engine",),
    ("report", "cli", "commands", "dryrun", "lastwords", "launch", "output", "pretrain", "runner", "weigh", "__main__"),
)
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}


def module_name(path: Path) -> str:
    parts = ["fedmpi", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports_of(module: str, tree: ast.AST) -> set[str]:
    """Return the full names of all modules that a piece of code imports, wherever in it the import stands."""
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in FILES else base for a in node.names}
    return found


IMPORTS = {module: imports_of(module, ast.parse(path.read_text())) for module, path in FILES.items()}


def part(module: str) -> str:
    """Return the part of the house that a module belongs to: the name after ``fedmpi.``."""
    return module.split(".")[1] if "." in module else ""


def importers(target: str) -> set[str]:
    """Return the modules that import a package, or anything in it."""
    return {m for m, names in IMPORTS.items() if any(name == target or name.startswith(target + ".") for name in names)}


def test_the_parser_sees_the_imports() -> None:
    """The checks below would hold of a parser that finds nothing."""
    assert {"fedmpi.rng", "fedmpi.data.shard", "numpy"} <= IMPORTS["fedmpi.algorithms.base"]
    assert "fedmpi.configfile" in IMPORTS["fedmpi.cli"]  # inside a function
    assert len(FILES) > 40


def test_every_module_has_a_floor() -> None:
    assert {part(module) for module in FILES} - {""} <= set(FLOOR_OF)


def test_a_module_imports_from_its_own_floor_and_below() -> None:
    wrong = [
        f"{module} (floor {FLOOR_OF[part(module)]}) imports {name} (floor {FLOOR_OF[part(name)]})"
        for module, names in IMPORTS.items()
        for name in names
        if name.startswith("fedmpi.") and (not part(module) or FLOOR_OF[part(name)] > FLOOR_OF[part(module)])
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("who", "never"),
    [("algorithms", "comm"), ("algorithms", "ledger"), ("algorithms", "engine"), ("engine", "report")],
)
def test_parts_that_do_not_know_each_other(who: str, never: str) -> None:
    assert [m for m in importers(f"fedmpi.{never}") if part(m) == who] == []


def test_the_engine_knows_no_algorithm_by_name() -> None:
    known = {n for m, names in IMPORTS.items() if part(m) == "engine" for n in names if part(n) == "algorithms"}
    assert known <= {"fedmpi.algorithms", "fedmpi.algorithms.base", "fedmpi.algorithms.registry"}


def test_no_codec_imports_the_bound_and_the_bound_imports_no_codec() -> None:
    assert [m for m in importers("fedmpi.wire.bound") if part(m) == "wire"] == []
    assert [name for name in IMPORTS["fedmpi.wire.bound"] if name.startswith("fedmpi.wire.codecs")] == []


def test_mpi_stays_behind_one_door() -> None:
    assert importers("mpi4py") == {"fedmpi.comm.mpi"}


def test_no_pickle_but_to_read_cifar_files() -> None:
    assert importers("pickle") | importers("dill") | importers("cloudpickle") == {"fedmpi.data.cifar"}


class _WithoutFunctions(ast.NodeTransformer):
    """Leaves out the bodies of functions, whose imports run when they are called."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        return None


def closure(start: str) -> set[str]:
    """Return the modules of the package that importing one executes."""
    seen, todo = set(), [start]
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        parents = [module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)]
        outside_functions = _WithoutFunctions().visit(ast.parse(FILES[module].read_text()))
        todo += [name for name in [*parents, *imports_of(module, outside_functions)] if name in FILES]
    return seen


def test_nothing_that_fedavg_imports_imports_numba() -> None:
    reached = closure("fedmpi.algorithms.fedavg")
    assert {"fedmpi.train.local", "fedmpi.wire.message", "fedmpi"} <= reached
    reached |= closure("fedmpi.wire.frame")
    assert reached & importers("numba") == set()


def run(*args: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if path is not None:
        env["PYTHONPATH"] = os.pathsep.join([str(path), env.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=120, env=env, check=True)


def loaded(*args: str) -> set[str]:
    """Return the top-level modules that a Python process imports, as it reports them itself."""
    stderr = run("-X", "importtime", *args).stderr
    return {
        line.rpartition("|")[2].strip().split(".")[0] for line in stderr.splitlines() if line.startswith("import time:")
    }


def test_the_ledgers_reader_needs_neither_torch_nor_mpi() -> None:
    modules = loaded("-c", "import fedmpi.ledger.reader")
    assert {"fedmpi", "h5py"} <= modules
    assert modules & {"torch", "mpi4py"} == set()


def test_the_model_of_links_needs_numpy_alone() -> None:
    modules = loaded("-c", "import fedmpi.netmodel")
    assert {"fedmpi", "numpy"} <= modules
    assert modules & {"torch", "mpi4py", "h5py", "pydantic", "yaml"} == set()
    assert {name for name in IMPORTS["fedmpi.netmodel"] if name.startswith("fedmpi")} == {"fedmpi.rng"}


def test_scripts_that_read_ledgers_know_no_more_of_the_package() -> None:
    allowed = {"fedmpi.ledger.reader", "fedmpi.netmodel"}
    tree = ast.parse((Path(__file__).parents[2] / "analysis" / "time_to_accuracy.py").read_text())
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in found if name and name.startswith("fedmpi")} == allowed


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["launch", "--help"], ["info", "--help"]])
def test_help_is_quick(args: list[str]) -> None:
    modules = loaded("-m", "fedmpi", *args)
    assert {"fedmpi", "argparse"} <= modules
    assert modules & {"torch", "mpi4py", "h5py"} == set()


def test_help_answers_in_less_than_four_tenths_of_a_second() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        run("-m", "fedmpi", "--help")
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.4


def test_fedavg_runs_without_numba(tmp_path: Path) -> None:
    """A numba that breaks on import is put in the way of a FedAvg uplink that is encoded and decoded."""
    (tmp_path / "numba.py").write_text("raise SystemExit('numba was imported')\n")
    code = """if True:
        import sys
        import fedmpi.algorithms.fedavg
        from fedmpi.algorithms.averaging import ModelUp
        from fedmpi.wire.buffers import BufferPool
        from fedmpi.wire.frame import decode, encode
        from fedmpi.wire.message import Schema
        from fedmpi.wire.values import Dense
        schema = Schema({"params": 3, "state": 3, "int_buffers": 0}, 1)
        up = ModelUp(num_samples=1, int_buffers=None, state=Dense.framed(3))
        decode(encode(up, schema, BufferPool()).buffer, (ModelUp,), schema)
        print("numba" in sys.modules)
    """
    assert run("-c", code, path=tmp_path).stdout.split() == ["False"]


@pytest.mark.usefixtures("launches")
def test_a_whole_run_of_fedavg_needs_no_numba(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise SystemExit('numba was imported')\n")
    config = write_config(tmp_path, rounds=1)
    said = run("-m", "fedmpi", "run", str(config), "-o", str(tmp_path / "out"), path=tmp_path).stdout
    assert "fedmpi: done rounds=1" in said
    topk = ["algorithm.compress=topk", "-o", str(tmp_path / "topk")]
    with pytest.raises(subprocess.CalledProcessError) as error:
        run("-m", "fedmpi", "run", str(config), *topk, path=tmp_path)
    assert "numba was imported" in error.value.stderr
