"""The end of a run's output: where the time went, where the bytes went, and one line for grep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedmpi.ledger.reader import Ledger
from fedmpi.report.console import megabytes, table


def timing_table(phase_s: Sequence[Mapping[str, float]], peak_nbytes: Sequence[int]) -> str:
    """Return seconds by phase over the ranks, and their peak memory.

    Parameters
    ----------
    phase_s : sequence of mappings
        By rank: seconds by phase.
    peak_nbytes : sequence of int
        By rank.
    """
    total = sum(sum(phases.values()) for phases in phase_s)
    rows: list[tuple[str, ...]] = []
    for name in phase_s[0]:
        seconds = [phases[name] for phases in phase_s]
        mean = sum(seconds) / len(seconds)
        share = 100 * sum(seconds) / total
        rows.append((name, f"{min(seconds):.3f}", f"{mean:.3f}", f"{max(seconds):.3f}", f"{share:.1f}"))
    text = "time (s, over ranks)\n" + table(("phase", "min", "avg", "max", "%"), rows)
    return text + "\n  peak memory by rank (MB): " + ", ".join(f"{peak / 1e6:.0f}" for peak in peak_nbytes)


def byte_table(ledger: Ledger) -> str:
    """Return bytes by kind and direction, from the ledger's rows; sizes in MB = 10^6 bytes."""
    messages = ledger.messages
    rows = []
    for direction in ("down", "up"):
        for kind in dict.fromkeys(messages["kind"][messages["direction"] == direction].tolist()):
            chosen = (messages["direction"] == direction) & (messages["kind"] == kind)
            sums = {name: float(messages[name][chosen].sum()) for name in _SUMMED}
            wire = sums["wire_nbytes"]
            bound = sums["bound_nbits"] / 8
            rows.append(
                (
                    direction,
                    kind,
                    int(np.count_nonzero(chosen)),
                    megabytes(sums["header_nbytes"]),
                    megabytes(sums["payload_nbytes"]),
                    megabytes(wire),
                    f"{wire / np.count_nonzero(chosen):.0f}",
                    f"{wire / sums['dense_nbytes']:.4f}" if sums["dense_nbytes"] else "-",
                    f"{wire / bound:.4f}" if bound else "-",
                )
            )
    header = ("direction", "kind", "messages", "header MB", "payload MB", "wire MB", "B/message", "/dense", "/bound")
    return "messages (measured; 1 MB = 10^6 bytes)\n" + table(header, rows, left=2)


_SUMMED = ("header_nbytes", "payload_nbytes", "wire_nbytes", "dense_nbytes", "bound_nbits")


def last_line(summary: Mapping[str, Any]) -> str:
    """Return the line that job scripts grep for."""
    accuracy = summary["accuracy"]
    return (
        f"fedmpi: {summary['status']} rounds={summary['rounds']} "
        f"acc={'-' if accuracy is None else format(accuracy, '.4f')} down_bytes={summary['down_nbytes']} "
        f"up_bytes={summary['up_nbytes']} simulation_bytes={summary['simulation_nbytes']} "
        f"wall={summary['wall_s']:.2f} model={summary['model_digest'][:16]} ledger={summary['ledger_digest'][:16]}"
    )


def info_text(summary: Mapping[str, Any]) -> str:
    """Return a summary as lines of names and values; seconds are rounded, and bytes have 1 MB = 10^6 bytes beside."""
    width = max(map(len, summary))
    return "\n".join(f"{name:{width}}  {_info_value(name, value)}" for name, value in summary.items())


def _info_value(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name.endswith("_s"):
        return f"{value:.2f}"
    return f"{value} ({megabytes(value)} MB)" if name.endswith("_nbytes") else str(value)


def info_table(summaries: Sequence[tuple[str | Path, Mapping[str, Any]]]) -> str:
    """Return the summaries of several ledgers as a table, a row each; sizes in MB = 10^6 bytes.

    Parameters
    ----------
    summaries : sequence of (path, summary)
        As `Ledger.summary` gives them. Of a status ``"failed: words"`` the first word is shown, of digests 16 digits.
    """
    rows = []
    for path, summary in summaries:
        accuracy, wall_s, model = summary["accuracy"], summary["wall_s"], summary["model_digest"]
        rows.append(
            (
                path,
                summary["algorithm"] or "-",
                summary["status"].partition(":")[0],
                summary["rounds"],
                summary["num_faults"],
                "-" if accuracy is None else f"{accuracy:.4f}",
                megabytes(summary["up_nbytes"]),
                megabytes(summary["down_nbytes"]),
                "-" if wall_s is None else f"{wall_s:.2f}",
                summary["ledger_digest"][:16],
                "-" if model is None else model[:16],
            )
        )
    header = ("file", "algorithm", "status", "rounds", "faults", "accuracy", "MB up", "MB down", "wall_s")
    return table((*header, "ledger_digest", "model_digest"), rows, left=3)


def fault_line(ledger: Ledger) -> str:
    """Return how many replies are missing, and why; a round without any left the model as it was."""
    faults, rounds = ledger.faults, ledger.rounds
    kinds = [f"{np.count_nonzero(faults['fault'] == kind)} {kind}" for kind in sorted(set(faults["fault"].tolist()))]
    text = f"  replies that are missing: {', '.join(kinds)} (of {rounds['num_clients'].sum()} clients drawn)"
    empty = np.count_nonzero(rounds["num_faults"] == rounds["num_clients"])
    return text + (f"\n  warning: {empty} rounds got no reply and left the model as it was" if empty else "")
