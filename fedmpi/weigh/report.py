"""The figures of ``fedmpi wire``, and how they are printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np

from fedmpi.config import WireConfig
from fedmpi.errors import ConfigError
from fedmpi.problems import did_you_mean
from fedmpi.weigh.arrays import ACCEPTS, Options, check_words, choose_kind, load_array, name_dtype
from fedmpi.weigh.cases import make_case
from fedmpi.weigh.measure import measure
from fedmpi.wire.message import Schema

_NEEDS = {"prior": "prior", "change": "base", "ranks": "base", "delta": "base"}
"""Codecs that need what the receiver holds, and the option that says it."""

_NOTES = {
    "codec": "",
    "wire_nbytes": "the whole frame",
    "header_nbytes": "",
    "payload_nbytes": "",
    "index_nbytes": "",
    "value_nbytes": "",
    "bound_nbits": "",
    "dense_nbytes": "the same numbers as plain float32",
    "paper_nbits": "as papers count",
    "encode_s": "CPU time, median",
    "decode_s": "CPU time, median",
}
"""Columns of the ledger that are shown, and words beside them."""


def weigh(path: Path, kind: str | None = None, codec: str = "auto", options: Options | None = None) -> dict[str, Any]:
    """Return what an array weighs as a message in a frame, which came back bit for bit.

    Parameters
    ----------
    path : Path
        A .npy file.
    kind : {"mask", "sparse", "quantized", "dense"}, optional
        What it is sent as. By default bool is a mask and whole numbers are quantized. Floats are quantized with
        `bits`, sparse with a base of bool, dense with a base of numbers; with neither, sparse if at least half of them
        are 0, else dense (-0.0 is a number like others). Quantized numbers have neighbours along their last two
        dimensions; all else is sent as a vector, in C order.
    codec : str
        One of the kind's in `WireConfig`; for sparse arrays that of the positions, or both, such as "uint32+raw".
    options : Options, optional
        ``prior``: a file of the probabilities of a mask's bits, which the receiver holds. ``base``: of what else it
        holds, a mask for masks and sparse arrays, numbers of the same dtype for dense ones. ``bits``: of quantized
        numbers, 1 to 8, by default the fewest that hold whole ones; floats are rounded to so many first, with one
        scale for all. ``dtype``: "bfloat16" if the file, and that of a dense array's base, hold its bit patterns as
        uint16.

    Returns
    -------
    dict
        Columns of the ledger, by the code that fills it; file, kind, dtype and shape; wire_over_bound, both in bits
        (None where the bound is 0); num_set, the bits of a mask that are 1 (None for others); and rounding_error, the
        largest that rounding made (None if nothing was rounded).

    Raises
    ------
    ConfigError
        If an option does not fit the kind, a codec the values, or a file what it is given as.
    DataError
        If a file is missing or broken.
    ProtocolError
        If what came out is not what went in.
    """
    options = options or Options()
    check_words(kind, options)
    array = load_array(path)
    dtype = name_dtype(path, array, options)
    kind = choose_kind(path, array, dtype, kind, options)
    for name, given in options._asdict().items():
        if given is not None and name not in ACCEPTS[kind]:
            kinds = " and ".join(other for other, names in ACCEPTS.items() if name in names)
            raise ConfigError(f"--{name} goes with {kinds} arrays, and {path} is sent as {kind}")
    wire = _wire_config(kind, codec, options)
    case = make_case(path, array, kind, options)
    try:
        row = measure(case.message, Schema({}, 0, wire=wire, known=case.known))._asdict()
    except ValueError as error:
        if codec == "auto":
            raise
        raise ConfigError(f"--codec {codec} cannot hold {path}: {error}") from None
    bound_nbits = row["bound_nbits"]
    return {
        "file": str(path),
        "kind": kind,
        "dtype": dtype,
        "shape": list(array.shape),
        "num_params": row["num_params"],
        "num_kept": row["num_kept"],
        "num_set": int(np.count_nonzero(array)) if kind == "mask" else None,
        **{name: row[name] for name in _NOTES},
        "wire_over_bound": 8 * row["wire_nbytes"] / bound_nbits if bound_nbits else None,
        "rounding_error": case.rounding_error,
    }


def weigh_text(figures: dict[str, Any]) -> str:
    """Return the figures of `weigh` as lines."""
    shape = " x ".join(map(str, figures["shape"])) or "a single number"
    lines = [f"{figures['file']}: {figures['dtype']}, {shape}{_density(figures)}; sent as {figures['kind']}"]
    notes = {**_NOTES, "bound_nbits": _over_bound(figures)}
    for name, note in notes.items():
        value = figures[name]
        if isinstance(value, float):
            value = f"{value:.6f}" if name.endswith("_s") else f"{value:.0f}"
        lines.append(f"  {name:<14}  {value!s:>12}  {note}".rstrip())
    error = figures["rounding_error"]
    if error is not None:
        lost = f"something: numbers are off by up to {error:.6g}" if error else "nothing"
        lines.append(f"  rounding before that lost {lost}")
    lines.append("  decoded bit for bit to what was encoded")
    return "\n".join(lines)


def _density(figures: dict[str, Any]) -> str:
    """Return how many bits are set, or numbers kept where not all are."""
    if figures["num_set"] is not None:
        density = f" (density {figures['num_set'] / figures['num_params']:.4g})" if figures["num_params"] else ""
        return f", {figures['num_set']} set{density}"
    return f", {figures['num_kept']} kept" if figures["num_kept"] != figures["num_params"] else ""


def _over_bound(figures: dict[str, Any]) -> str:
    if figures["kind"] == "dense":
        return "no model: plain width"  # codecs may well stay below it
    over = figures["wire_over_bound"]
    return "" if over is None else f"wire / bound {over:.4f}"


def _wire_config(kind: str, codec: str, options: Options) -> WireConfig:
    """Return the configuration that asks for a codec; raises ConfigError for one that the kind does not have."""
    positions, plus, values = codec.partition("+")
    wanted = {"sparse": positions, "values": values if plus else "auto"} if kind == "sparse" else {kind: codec}
    for field, name in wanted.items():
        # A plain array has no tensors that could each have a density.
        names = [word for word in get_args(WireConfig.model_fields[field].annotation) if word != "layers"]
        if name not in names:
            part = {"sparse": "positions", "values": "values"}.get(field, f"{kind} arrays")
            hint = did_you_mean(name, names)
            raise ConfigError(f"--codec for {part} must be one of {', '.join(names)}, got {name!r}{hint}")
        needed = _NEEDS.get(name)
        if needed is not None and getattr(options, needed) is None:
            raise ConfigError(f"--codec {name} needs --{needed}")
    # Dense vectors are sent as they are by default; here the smallest is asked for, as everywhere else.
    return WireConfig.model_validate({"dense": "auto", **wanted})
