"""A doorbell between ranks of one node: a byte on a UNIX socket that ends a waiting rank's nap.

It may ring before MPI's data can be seen, and a ring may be lost: naps stay as the net beneath it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import sys
import time
from collections.abc import Mapping


class Doorbell:
    """A rank's own bell, and the addresses of its neighbours'.

    Attributes
    ----------
    address : str
        To be told to the other ranks of the node; empty where the system has no abstract UNIX sockets.
    """

    def __init__(self) -> None:
        self.address = ""
        self._socket: socket.socket | None = None
        self._others: dict[int, bytes] = {}
        if sys.platform.startswith("linux"):
            # An abstract address leaves no file behind, whatever ends the process.
            self.address = f"fedmpi-{os.getpid()}-{secrets.token_hex(8)}"
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            self._socket.bind(b"\0" + self.address.encode())

    def connect(self, addresses: Mapping[int, str]) -> None:
        """Learn the bells of the ranks of this node."""
        self._others = {rank: b"\0" + address.encode() for rank, address in addresses.items() if address}

    def ring(self, rank: int) -> None:
        """End the nap of `rank`, if it is on this node."""
        address = self._others.get(rank)
        if address is not None and self._socket is not None:
            # A full queue means that the rank has been rung already; a closed one that it has gone.
            with contextlib.suppress(OSError):
                self._socket.sendto(b"!", address)

    @property
    def num_others(self) -> int:
        """Number of neighbours whose bells are known; they know this one too."""
        return len(self._others)

    def nap(self, seconds: float) -> bool:
        """Sleep until rung, at most `seconds`; return whether it was."""
        if self._socket is None:
            time.sleep(seconds)
            return False
        if not select.select([self._socket], [], [], seconds)[0]:
            return False
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(1)
        return True

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
