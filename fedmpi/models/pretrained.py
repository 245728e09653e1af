"""Files of pre-trained weights: written with where they come from, and read for a part of a model.

A file is safetensors; its metadata say, as strings, on what data, how and with what result the model was trained, and
a hash over its tensors. Files without metadata, of torch.save too, are read as well: their source is unknown.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fedmpi.errors import ConfigError, DataError, OutputError
from fedmpi.models.weights import converted, read_tensors, some_of, wrapped_hint

FORMAT = "fedmpi.pretrained"
FORMAT_VERSION = "1"
UNKNOWN = "unknown"
SUFFIX = ".safetensors"
_KEY = "pretrained weights"
_NEEDED = ("source", "data_hash", "tensors_hash")
_ALIGNMENT = 8


@dataclass(frozen=True)
class PretrainedInfo:
    """What a file of weights says of itself.

    Parameters
    ----------
    source : str
        The data in words, such as ``fashion_mnist_mini, classes 5 6 7 8 9``; "unknown" where the file does not say.
    hash : str
        SHA-256, in hex, over the names, dtypes, shapes and numbers of all its tensors; worked out from them.
    data_hash : str
        SHA-256, in hex, of the training samples and labels; "unknown" where the file does not say.
    metadata : mapping of str to str
        All that the file says; empty where it is not one of `fedmpi pretrain`.
    """

    source: str
    hash: str
    data_hash: str = UNKNOWN
    metadata: Mapping[str, str] = field(default_factory=dict)


def describe(path: Path, *, key: str = _KEY) -> PretrainedInfo:
    """Return what a file of weights says of itself, once its tensors are what it says they are.

    Parameters
    ----------
    path : Path
    key : str
        The setting to blame in errors.

    Raises
    ------
    DataError
        If the file is missing, damaged, no weights, or written by a newer fedmpi.
    """
    return _read(path, key)[1]


def load_tensors(
    path: Path,
    names: Iterable[str],
    targets: Mapping[str, Tensor] | None = None,
    *,
    key: str = _KEY,
) -> dict[str, Tensor]:
    """Return some of a file's tensors, in the order of `names`; what else it holds is not looked at.

    Parameters
    ----------
    path : Path
        Of `fedmpi pretrain`, any other .safetensors file, or a torch.save of a state_dict; no code in it is run.
    names : iterable of str
        Of parameters and buffers, as a state_dict has them.
    targets : mapping of str to Tensor, optional
        A module's tensors, float32 or int64, whose shapes and dtypes the file's must fit: floats of all widths fit
        float32, int64 alone fits int64. Tensors of names that are not in it may be either, of any shape.
    key : str
        The setting to blame in errors.

    Returns
    -------
    dict of str to Tensor
        On the CPU, float32 or int64.

    Raises
    ------
    DataError
        If the file is missing, damaged or no weights, or one of the tensors is of another dtype, or has NaN or infinity
        in it.
    ConfigError
        If it lacks one of the names, or a shape is another.
    """
    tensors, _ = _read(path, key)
    names = list(names)
    targets = targets or {}
    missing = [name for name in names if name not in tensors]
    reshaped = [
        f"{name} {tuple(tensors[name].shape)} (the model's is {tuple(targets[name].shape)})"
        for name in names
        if name in tensors and name in targets and tensors[name].shape != targets[name].shape
    ]
    problems = [
        f"{what}: {some_of(found)}" for what, found in (("missing", missing), ("of another shape", reshaped)) if found
    ]
    if problems:
        raise ConfigError(
            f"{key}: {path} does not fit the model; {'; '.join(problems)}; the file holds "
            f"{some_of(sorted(tensors)) or 'nothing'}{wrapped_hint(tensors)}"
        )
    return {
        name: converted(tensors[name], targets[name].dtype if name in targets else None, name, path, key)
        for name in names
    }


def fill_part(module: nn.Module, path: Path, names: Iterable[str], *, key: str = _KEY) -> None:
    """Overwrite some of a module's parameters and persistent buffers, in place, with those of a file.

    The module's other tensors stay as they are, and the file's are ignored: a classifier may be of other classes.

    Raises
    ------
    DataError, ConfigError
        As `load_tensors`; nothing is overwritten then.
    """
    own = module.state_dict()
    targets = {name: own[name] for name in names}
    for name, tensor in load_tensors(path, targets, targets, key=key).items():
        targets[name].copy_(tensor)  # of one storage with the module's


def write_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Write weights and what is known of them, under the name when all is there; equal arguments give equal bytes.

    Parameters
    ----------
    path : Path
        Replaced if it exists.
    tensors : mapping of str to Tensor
    metadata : mapping of str to str
        At least ``source`` and ``data_hash``; the format's name and version, and the hash, are added.

    Returns
    -------
    str
        The hash over the tensors.

    Raises
    ------
    OutputError
    """
    # Copies: safetensors takes no tensors that share memory, and those of a flat model all do.
    apart = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    tensors_hash = _hash(apart)
    known = {**metadata, "format": FORMAT, "format_version": FORMAT_VERSION, "tensors_hash": tensors_hash}
    raw = _with_sorted_metadata(save(apart, known))
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another file with -o") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return tensors_hash


def _with_sorted_metadata(raw: bytes) -> bytes:
    """Return a safetensors file with its metadata in order: safetensors writes them in another order each time."""
    (header_nbytes,) = struct.unpack_from("<Q", raw)
    header = json.loads(raw[8 : 8 + header_nbytes])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text + raw[8 + header_nbytes :]


def _hash(tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _read(path: Path, key: str) -> tuple[dict[str, Tensor], PretrainedInfo]:
    path = Path(path)
    tensors = read_tensors(path, key)
    metadata: dict[str, str] = {}
    if path.suffix == SUFFIX:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = dict(file.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise DataError(f"{key}: {path} cannot be read as weights: {error}") from error
    tensors_hash = _hash(tensors)
    if metadata.get("format") != FORMAT:  # others write metadata, too
        return tensors, PretrainedInfo(UNKNOWN, tensors_hash)
    if (version := metadata.get("format_version")) != FORMAT_VERSION:
        raise DataError(
            f"{key}: {path} has format version {version}, this fedmpi reads {FORMAT_VERSION}; take the fedmpi that "
            f"wrote it ({metadata.get('fedmpi_version', 'not named')}) or a newer one"
        )
    if missing := [name for name in _NEEDED if name not in metadata]:
        raise DataError(f"{key}: {path} is damaged: its metadata lack {', '.join(missing)}")
    if metadata["tensors_hash"] != tensors_hash:
        raise DataError(
            f"{key}: {path} is damaged or was changed: its tensors have hash {tensors_hash[:16]}, not "
            f"{metadata['tensors_hash'][:16]} as it says; make it anew with `fedmpi pretrain`"
        )
    return tensors, PretrainedInfo(metadata["source"], tensors_hash, metadata["data_hash"], metadata)
