"""Errors that reach the user, each with the exit status that a job script can test.

The statuses: 0 done, 1 unexpected, 2 configuration, 3 data missing, 4 placement or launch, 5 protocol or time-out,
6 output, 75 stopped early.
"""

from __future__ import annotations

EXIT_STOPPED = 75


class FedmpiError(Exception):
    """Base of every error that fedmpi raises on purpose; its text is what the user reads."""

    exit_status = 1


class ConfigError(FedmpiError):
    """A setting is unknown, of the wrong type or out of range."""

    exit_status = 2


class DataError(FedmpiError):
    """A data file is missing, truncated or not what it claims to be."""

    exit_status = 3


class PlacementError(FedmpiError):
    """The ranks, devices or the launcher are not what the run needs."""

    exit_status = 4


class ProtocolError(FedmpiError):
    """A message came that the protocol does not allow at this point, or none came in time."""

    exit_status = 5


class WireError(ProtocolError):
    """Bytes that are not a valid frame of the expected kind.

    Parameters
    ----------
    what : str
        What was being read.
    offset : int
        Byte offset in the frame at which reading failed.
    expected, got : object
        What the format or the receiver's schema asks for, and what the bytes say.
    hint : str, optional
        What that means.
    """

    def __init__(self, what: str, *, offset: int, expected: object, got: object, hint: str = "") -> None:
        super().__init__(f"{what}: at byte {offset} expected {expected}, got {got}{hint and ': '}{hint}")
        self.offset = offset
        self.expected = expected
        self.got = got


class NonFiniteError(ProtocolError):
    """A client's message holds NaN or infinity."""


class OutputError(FedmpiError):
    """The output folder or a file of a run cannot be written or read."""

    exit_status = 6


class RemoteError(FedmpiError):
    """Another rank failed; carries that rank's words and its exit status."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status
