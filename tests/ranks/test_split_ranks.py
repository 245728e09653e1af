"""Split learning on several ranks: the same models and messages, bit for bit, wherever the server's work is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from agreement import Delaying, check_agreement
from support import ALGORITHMS

SPLITNET = f"{ALGORITHMS / 'splitnet.py'}:Net"


FEW = {
    "split",
    "split, one after the other",
    "local losses",
    "distilled",
    "distilled, clients' own networks",
    "replayed, with a peer",
    "replayed, clients lost",
}
"""Cases that five ranks are tried with every time; three ranks are tried with all."""


@pytest.mark.ranks(3, timeout=240)
def test_split_learning_on_three_ranks(shared_folder):
    check_split(shared_folder)


@pytest.mark.ranks(5, timeout=180)
def test_split_learning_on_five_ranks(shared_folder):
    check_split(shared_folder, only=FEW)


@pytest.mark.slow
@pytest.mark.ranks(2, timeout=240)
def test_all_split_learning_on_two_ranks(shared_folder):
    check_split(shared_folder)


@pytest.mark.slow
@pytest.mark.ranks(5, timeout=240)
def test_all_split_learning_on_five_ranks(shared_folder):
    check_split(shared_folder)


def check_split(folder: Path, only: set[str] | None = None) -> None:
    lost = {"participation": {"clients_per_round": 8, "dropout": 0.4, "sampling": "by_size", "availability": 0.9}}
    apart = {"placement": {"state_dir": str(folder / "state{rank}")}}
    split: dict[str, Any] = {"model": {"name": SPLITNET, "dropout": 0.3}, "rounds": 4}
    v1 = {**split, "algorithm": {"name": "splitfed", "point": 1}}
    v2 = {**split, "algorithm": {"name": "splitfed", "version": 2}}
    lgl = {**split, "algorithm": {"name": "lgl", "bits": 4}}
    fedgkt = {**split, "algorithm": {"name": "fedgkt"}}
    original = {**split, "algorithm": {"name": "fedgkt", "variant": "original"}}
    ecofed = {**split, "algorithm": {"name": "ecofed", "error_feedback": True}}
    lost_ecofed = {**ecofed, **lost, "server": {"initial_model": "full"}}
    cases: list[tuple[str, str, dict[str, Any], Any]] = [
        ("split", "v1", v1, Delaying),
        ("split, with a peer", "v1", {**v1, "server": {"host": "peer"}}, None),
        ("split, one after the other", "v2", v2, Delaying),
        ("split, one after the other, with a peer", "v2", {**v2, "server": {"host": "peer"}}, None),
        ("local losses", "lgl", {**lgl, "server": {"max_in_flight": 1}}, Delaying),
        ("local losses, with the player", "lgl", {**lgl, "server": {"host": "player"}}, None),
        ("distilled", "fedgkt", {**fedgkt, "server": {"host": "peer"}}, Delaying),
        ("distilled, clients' own networks", "original", {**original, **apart}, Delaying),
        ("distilled, clients' own networks, with a peer", "original", {**original, "server": {"host": "peer"}}, None),
        ("replayed", "ecofed", {**ecofed, **apart}, Delaying),
        ("replayed, with the player", "ecofed", {**ecofed, "server": {"host": "player"}}, None),
        ("replayed, with a peer", "ecofed", {**ecofed, "server": {"host": "peer"}}, Delaying),
        ("replayed, clients lost", "ecofed lost", {**lost_ecofed, **apart}, Delaying),
    ]
    sections = {
        "v1": v1,
        "v2": v2,
        "lgl": lgl,
        "fedgkt": fedgkt,
        "original": original,
        "ecofed": ecofed,
        "ecofed lost": lost_ecofed,
    }
    check_agreement(folder, cases, sections, only)
