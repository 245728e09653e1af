"""Initial weights from a file: torch's format or safetensors. No code of a file is ever run."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fedmpi.errors import ConfigError, DataError

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_NAMED = 5
_WRAPPED = "module."
_WANTED = (
    "It must be a torch.save of a state_dict, with nothing but tensors in it, or a .safetensors file; no code in it is "
    "run"
)


def fill_from_file(module: nn.Module, path: Path, model_name: str) -> None:
    """Overwrite a module's parameters and persistent buffers with those of a file.

    Floats of 16 and 64 bits become float32. A tensor that the module has under several names (tied weights) may stand
    in the file under one or all of them.

    Parameters
    ----------
    module : torch.nn.Module
        Filled in place, so that views of flat vectors stay views.
    path : Path
        A torch.save of a state_dict or of ``{"state_dict": ...}``, or a file that ends in .safetensors.
    model_name : str
        For errors.

    Raises
    ------
    DataError
        If the file is missing, damaged, or holds what are no weights: other objects, dtypes, NaN, infinity.
    ConfigError
        If names or shapes are not the module's.
    """
    tensors = read_tensors(path)
    groups = _names_by_tensor(module)
    _check_names(tensors, groups, path, model_name)
    for names, target in groups:
        found = [(name, converted(tensors[name], target.dtype, name, path)) for name in names if name in tensors]
        (first_name, first), *others = found
        for name, other in others:
            if not torch.equal(first, other):
                raise ConfigError(
                    f"model.weights={path}: {first_name} and {name} differ, but model.name={model_name} has one tensor "
                    "for both"
                )
        target.detach().copy_(first)


def read_tensors(path: Path, key: str = "model.weights") -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the CPU, in the file's dtypes; `key` is the setting to blame in errors.

    Raises
    ------
    DataError
    """
    if path.is_dir():
        raise DataError(f"{key}: {path} is a folder: give the file of weights in it")
    if not path.is_file():
        raise DataError(f"{key}: there is no file {path} (looked for from {Path.cwd()})")
    try:
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:
            _check_start(path, key)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickle protocols and TorchScript: what matters comes as an error
                content = torch.load(path, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except Exception as error:  # the readers raise whatever a damaged byte leads them to
        raise DataError(f"{key}: {path} cannot be read as weights: {_why(error)}. {_WANTED}") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise DataError(f"{key}: {path} must hold tensors by name (a state_dict), got {type(content).__name__}")
    _refuse_nested(content, path, key)
    for name, tensor in content.items():
        if not isinstance(tensor, Tensor):
            raise DataError(f"{key}: {path}: {name!r} must be a tensor, got {type(tensor).__name__}")
        if tensor.layout != torch.strided or tensor.is_meta:
            raise DataError(f"{key}: {path}: {name!r} must be a dense tensor with its numbers")
    return {str(name): tensor.detach() for name, tensor in content.items()}


def _check_start(path: Path, key: str) -> None:
    """Raise `DataError` for a file that begins like none of torch.save's: its reader's own errors say little then."""
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK" and start[:1] != b"\x80":  # a zip archive, or a pickle of protocol 2 or later
        found = "an empty file" if not start else "a file that torch.save did not write"
        raise DataError(f"{key}: {path} cannot be read as weights: it is {found}. {_WANTED}")


def _refuse_nested(content: Mapping[Any, object], path: Path, key: str) -> None:
    """Raise `DataError` for a checkpoint that holds a state_dict under a key, and say under which."""
    inner = [
        name
        for name, value in content.items()
        if isinstance(value, Mapping) and value and all(isinstance(tensor, Tensor) for tensor in value.values())
    ]
    if inner:
        keys = " and ".join(repr(name) for name in inner)
        raise DataError(
            f"{key}: {path} is a checkpoint with a state_dict under {keys}: save that alone, by "
            f"torch.save(torch.load({str(path)!r})[{inner[0]!r}], 'weights.pt')"
        )


def _names_by_tensor(module: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Return each parameter and persistent buffer with all its names."""
    saved = module.state_dict().keys()
    groups: dict[int, tuple[list[str], Tensor]] = {}
    everything: Iterable[tuple[str, Tensor]] = chain(
        module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    )
    for name, tensor in everything:
        if name in saved:
            groups.setdefault(id(tensor), ([], tensor))[0].append(name)
    return list(groups.values())


def some_of(names: Sequence[str]) -> str:
    """Write the first of some names, and how many more there are."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def wrapped_hint(names: Collection[str]) -> str:
    """Return what to do about names that all begin as a wrapped model's do; "" for others."""
    if not names or not all(name.startswith(_WRAPPED) for name in names):
        return ""
    return (
        f". All names in the file begin with {_WRAPPED!r}, as DataParallel has them: save `model.module.state_dict()`"
    )


def _check_names(
    tensors: Mapping[str, Tensor], groups: list[tuple[list[str], Tensor]], path: Path, model_name: str
) -> None:
    missing = [names[0] for names, _ in groups if not any(name in tensors for name in names)]
    wanted = {name: tuple(target.shape) for names, target in groups for name in names}
    unexpected = [name for name in tensors if name not in wanted]
    reshaped = [
        f"{name} {tuple(tensors[name].shape)} (the model's is {shape})"
        for name, shape in wanted.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    problems = [
        f"{what}: {some_of(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if names
    ]
    if problems:
        raise ConfigError(
            f"model.weights={path} does not fit model.name={model_name}; {'; '.join(problems)}{wrapped_hint(tensors)}"
        )


def converted(tensor: Tensor, dtype: torch.dtype | None, name: str, path: Path, key: str = "model.weights") -> Tensor:
    """Return a file's tensor in a module's dtype, float32 or int64; None takes the one that the tensor fits.

    Raises
    ------
    DataError
        If it is of a dtype that does not fit, or has a number that is not finite.
    """
    fitting = {torch.float32: FLOATS, torch.int64: (torch.int64,), None: (*FLOATS, torch.int64)}[dtype]
    if tensor.dtype not in fitting:
        words = ", ".join(str(kind).removeprefix("torch.") for kind in fitting)
        one_of = "one of " if len(fitting) > 1 else ""
        raise DataError(f"{key}: {path}: {name} must be {one_of}{words}, got {tensor.dtype}")
    result = tensor.to(dtype or (torch.float32 if tensor.dtype in FLOATS else torch.int64))
    if not bool(torch.isfinite(result).all()):
        raise DataError(f"{key}: {path}: {name} has NaN, infinity or numbers beyond float32 in it")
    return result


def _why(error: Exception) -> str:
    """Return the line that says what was wrong: torch wraps it in advice to run the file's code after all."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if "GLOBAL" in line or line.startswith("Unsupported")] or lines
    if not said:
        return f"{type(error).__name__}: the file ends too early"
    if isinstance(error, (LookupError, TypeError, AttributeError)):
        return f"{type(error).__name__}: the file is damaged, or torch.save did not write it"
    first = said[0].removeprefix("WeightsUnpickler error: ").split(". ")[0].rstrip(".")
    return f"{type(error).__name__}: {first}"
