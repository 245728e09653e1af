"""A user's own code by name: ``path/to/file.py:NAME`` or ``package.module:NAME``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from fedmpi.errors import ConfigError


def is_plugin(name: str) -> bool:
    """Return whether a name is one of code outside the package."""
    return ":" in name


def load_plugin(name: str, key: str) -> Any:
    """Return the object that ``path/to/file.py:NAME`` or ``package.module:NAME`` names.

    Parameters
    ----------
    name : str
        A path is relative to the folder that fedmpi runs in.
    key : str
        The configuration's key that holds the name, for errors.

    Raises
    ------
    ConfigError
        If the file or module is not there or fails to import, or has no such name; the text says which line failed.
    """
    path, _, attribute = name.rpartition(":")
    module = _import_file(Path(path), key) if path.endswith(".py") else _import_module(path, attribute, key)
    if not hasattr(module, attribute):
        have = ", ".join(n for n in vars(module) if not n.startswith("_") and n[:1].isupper()) or "none"
        raise ConfigError(f"{key}={name}: {path} has no {attribute!r}; of names with a capital it has: {have}")
    return getattr(module, attribute)


def _import_file(path: Path, key: str) -> ModuleType:
    # Once a process, and files of one name in two folders apart: a message class must stay the same object.
    module_name = f"fedmpi_user_{path.stem}_{hashlib.blake2b(str(path.resolve()).encode(), digest_size=4).hexdigest()}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"{key}: there is no file {path} (looked for from {Path.cwd()})")
    # A file may import its neighbours, as a script may; under `python -m fedmpi` it could anyway, from the same folder.
    if not {"", str(path.parent.resolve())} & set(sys.path):
        sys.path.append(str(path.parent.resolve()))
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise ConfigError(f"{key}: importing {path} failed: {error_words(error, spec.origin or '')}") from error
    return module


def _import_module(name: str, attribute: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        words = error_words(error, _file_of(name))
        raise ConfigError(f"{key}: importing {name} failed: {words}{_file_hint(name, attribute)}") from error


def _file_hint(name: str, attribute: str) -> str:
    """Return the way to write a file that was named without its .py; nothing if there is none."""
    for path in (Path(f"{name}.py"), Path(f"{name.replace('.', '/')}.py")):
        if name and path.is_file():
            return f"; did you mean the file? write {path}:{attribute}"
    return ""


def _file_of(name: str) -> str:
    """Return the file of a module that may have failed to import, without importing anything."""
    parent = name.rpartition(".")[0]
    if parent and parent not in sys.modules:
        return ""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return ""
    return (spec.origin or "") if spec is not None else ""


def error_words(error: BaseException, file: str) -> str:
    """Return an error as ``Type: text``, with the last line of `file` on the way to it where there is one."""
    line = ""
    trace = error.__traceback__
    while trace is not None:
        if file and trace.tb_frame.f_code.co_filename == file:
            line = f" ({Path(file).name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}{line}"
