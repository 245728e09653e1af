"""Downloading one file: several servers, going on where a transfer was cut off, checksum."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fedmpi
from fedmpi.errors import DataError

TIMEOUT_S = 30.0
"""Seconds without a byte after which a server is given up."""
ATTEMPTS = 3
"""Transfers that are cut off without getting any further, before the next server is asked."""
PAUSE_S = 1.0
"""Seconds before a transfer is taken up again."""
PROGRESS_S = 5.0
"""Seconds between two reports of a transfer."""
_BLOCK_NBYTES = 1 << 20

Report = Callable[[str], None]


@dataclass(frozen=True)
class RemoteFile:
    """A file of a data set: its name, its checksum as ``ALGORITHM:HEX``, the addresses that have it."""

    name: str
    checksum: str
    urls: tuple[str, ...]


class _BadServerError(Exception):
    """What a server sends is of no use; the next one may do better."""


class _CutError(Exception):
    """The transfer ended early; what came is kept and can be gone on from."""


def download(file: RemoteFile, folder: Path, report: Report) -> Path:
    """Ask the file's servers in turn until one has given it whole and right.

    Parameters
    ----------
    file : RemoteFile
    folder : Path
        Where it goes. A file that is there and right is left alone; a wrong one is replaced once the right one has
        come. ``FILE.part`` beside it holds what came so far; it is kept if this fails.
    report : callable
        Takes a line of words about the progress.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    DataError
        If no server gave it; the text has each address and what was wrong.
    OSError
        If the folder cannot be written.
    """
    path = folder / file.name
    if path.exists():
        found = _checksum(path, file.checksum)
        if found == file.checksum:
            report(f"{path}: present, checksum right")
            return path
        report(f"{path}: expected {file.checksum}, got {found}; fetching it anew")
    failures: list[str] = []
    num_reported = 0

    def report_in_order(line: str) -> None:
        # A server's failure is reported once another one gives something; else the error at the end says it.
        nonlocal num_reported
        while num_reported < len(failures):
            report(failures[num_reported])
            num_reported += 1
        report(line)

    for url in file.urls:
        try:
            _fetch_from(url, file, path, report_in_order)
            return path
        except (_BadServerError, _CutError) as error:
            failures.append(f"{url}: {error}")
    listed = "".join(f"\n  {failure}" for failure in failures)
    raise DataError(
        f"{file.name}: expected one of its servers to give it, got:{listed}\n"
        f"Try again when the network is there (what has come so far is kept), or download it elsewhere from one of "
        f"these addresses and put it, as it is, into {folder}"
    )


def _fetch_from(url: str, file: RemoteFile, path: Path, report: Report) -> None:
    """Bring `path` from one server, in as many transfers as it takes; `_BadServerError` or `_CutError` if it fails."""
    part = path.with_name(path.name + ".part")
    furthest, idle, is_fresh = -1, 0, not part.exists()
    while True:
        try:
            is_fresh = _transfer(url, part, report) == 0 or is_fresh
        except _CutError as error:
            nbytes = part.stat().st_size if part.exists() else 0
            # A server that starts over each time must not keep us here for ever: only new ground counts.
            idle = 0 if nbytes > furthest >= 0 else idle + 1
            furthest = max(furthest, nbytes)
            if idle >= ATTEMPTS:
                raise
            report(f"{url}: {error}; trying again")
            time.sleep(PAUSE_S)
            continue
        found = _checksum(part, file.checksum)
        if found == file.checksum:
            os.replace(part, path)
            report(f"{path}: {path.stat().st_size / 1e6:.1f} MB, checksum right")
            return
        part.unlink()
        if is_fresh:
            raise _BadServerError(f"{file.name}: expected {file.checksum}, got {found}")
        report(f"{part}: expected {file.checksum}, got {found}; removed, starting over")
        is_fresh = True


def _transfer(url: str, part: Path, report: Report) -> int:
    """Append what is missing to `part`, or write it anew where the server knows no ranges; returns where it began."""
    start = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": f"fedmpi/{fedmpi.__version__}"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return start  # There is nothing behind what we have: its checksum says whether that is the file.
        raise _BadServerError(f"HTTP status {error.code} ({error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _BadServerError(f"cannot be reached ({_words(error)})") from error
    with response:
        if response.headers.get_content_type() == "text/html":
            raise _BadServerError("a web page came instead of the file")
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        elif not re.match(rf"bytes {start}-", response.headers.get("Content-Range", "")):
            raise _BadServerError(
                f"expected bytes from {start} on, got Content-Range {response.headers.get('Content-Range')!r}"
            )
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        report(f"{url}: {_progress(start, total)}")
        _receive(response, part, start, total, report)
    return start


def _receive(response: http.client.HTTPResponse, part: Path, start: int, total: int | None, report: Report) -> None:
    """Write the body behind the first `start` bytes of `part`; `_CutError` if it ends before `total`."""
    reported_at, nbytes = time.monotonic(), start
    with part.open("r+b" if start else "wb") as out:
        out.seek(start)
        while True:
            try:
                block = response.read1(_BLOCK_NBYTES)
            except (OSError, http.client.HTTPException) as error:
                raise _CutError(f"cut off after {nbytes} bytes ({_words(error)})") from error
            if not block:
                break
            out.write(block)
            nbytes += len(block)
            if time.monotonic() - reported_at >= PROGRESS_S:
                reported_at = time.monotonic()
                report(f"{part.name.removesuffix('.part')}: {_progress(nbytes, total)}")
    if total is not None and nbytes < total:
        raise _CutError(f"cut off after {nbytes} of {total} bytes")


def _checksum(path: Path, wanted: str) -> str:
    """Return ``ALGORITHM:HEX`` of a file, by the algorithm of `wanted`."""
    algorithm = wanted.partition(":")[0]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return f"{algorithm}:{digest.hexdigest()}"


def _progress(nbytes: int, total: int | None) -> str:
    return f"{nbytes / 1e6:.1f} MB" + (f" of {total / 1e6:.1f} MB" if total is not None else "")


def _words(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(reason) or type(error).__name__
