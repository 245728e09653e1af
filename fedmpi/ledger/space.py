"""Room for the ledger on its file system, set aside before HDF5 writes."""

from __future__ import annotations

import errno
import os

import h5py

# Disk kept in hand beyond what a batch needs: partial chunks, B-tree nodes, and the last words on a full disk.
_SLACK_NBYTES = 1 << 20
_CANNOT_RESERVE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


class NoRoomError(OSError):
    """The file system has no room for the next batch; nothing was touched."""


class Space:
    """What is set aside behind the end of one file.

    HDF5 that runs out of room half-way leaves a file that it will not open again, and can crash when it closes the
    file; failing here leaves it whole.
    """

    def __init__(self) -> None:
        self._reserved_nbytes = 0

    def reserve(self, file: h5py.File, nbytes: int) -> None:
        """Make the file system set aside room for ``nbytes`` more and the slack, or raise `NoRoomError`."""
        begin = file.id.get_filesize()
        end = begin + nbytes + _SLACK_NBYTES
        if end <= self._reserved_nbytes:
            return
        end += _SLACK_NBYTES
        try:
            _allocate(file.id.get_vfd_handle(), begin, end - begin)
        except OSError as error:
            raise NoRoomError(*error.args) from None
        self._reserved_nbytes = end


def _allocate(descriptor: int, begin: int, nbytes: int) -> None:
    try:
        os.posix_fallocate(descriptor, begin, nbytes)
        return
    except AttributeError:  # macOS
        pass
    except OSError as error:
        if error.errno not in _CANNOT_RESERVE:
            raise
    zeros = memoryview(bytes(nbytes))
    while zeros:
        written = os.pwrite(descriptor, zeros, begin)
        begin, zeros = begin + written, zeros[written:]
