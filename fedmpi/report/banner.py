"""The head of a run's output: versions, where and how it was started, its configuration, its placement."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import torch

from fedmpi import __version__
from fedmpi.comm.placement import Place
from fedmpi.config import Section
from fedmpi.configfile import describe
from fedmpi.engine.setup import Setup
from fedmpi.report.console import table


def commit() -> str:
    """Return the commit of the checkout that fedmpi is run from, with a mark if it was changed; "" elsewhere."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def provenance(mpi_library: str) -> dict[str, str]:
    """Return what a result must be read with: versions, commit, command, place and time."""
    return {
        "program": f"fedmpi {__version__}",
        "commit": commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "mpi": mpi_library,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "folder": os.getcwd(),
        "job": os.environ.get("SLURM_JOB_ID", ""),
    }


def banner(facts: dict[str, str]) -> str:
    """Return the first lines of a run's output."""
    lines = [f"fedmpi {__version__}" + (f" ({facts['commit']})" if facts["commit"] else "")]
    lines += [f"  {name:8}{value}" for name, value in facts.items() if value and name not in ("program", "commit")]
    return "\n".join(lines)


def echo(config: Section) -> str:
    """Return the resolved configuration; what differs from the defaults carries a comment."""
    return "configuration\n" + "\n".join("  " + line for line in describe(config).splitlines())


def data(setup: Setup) -> str:
    """Return one line on the data and how they are shared out."""
    dataset, sizes = setup.dataset, setup.partition.sizes
    text = (
        f"data\n  {dataset.name}: {len(dataset.train_labels)} training and {len(dataset.test_labels)} test samples, "
        f"{dataset.num_classes} classes\n  {setup.config.partition.name}: {sizes.size} clients with {sizes.min()} to "
        f"{sizes.max()} samples, {sizes.sum()} in all"
    )
    if setup.partition.num_dropped:
        text += f"\n  {setup.partition.num_dropped} clients got no sample and were left out"
    if setup.pretrained is not None:
        config = setup.model_config
        text += (
            f"\n  first {config.pretrained_units} units of the network from {config.pretrained}, pre-trained on "
            f"{setup.pretrained.source} (hash {setup.pretrained.hash[:16]})"
        )
    return text


def placement(places: Sequence[Place], warnings: Sequence[str]) -> str:
    """Return the placement table, and the warnings that go with it."""
    header = ("rank", "role", "host", "local", "pid", "device", "name", "uuid", "cores", "threads")
    rows = [
        (p.rank, p.role, p.host, p.local_rank, p.pid, p.device, p.device_name, p.device_uuid or "-", p.cores, p.threads)
        for p in places
    ]
    text = "placement\n" + table(header, rows)
    return "\n".join([text, *(f"  warning: {warning}" for warning in warnings)])
