"""FedDST as its authors' released code has it, where that is not what the paper says: see feddst."""

from fedmpi.algorithms.feddst import RELEASED as ALGORITHM

__all__ = ["ALGORITHM"]
