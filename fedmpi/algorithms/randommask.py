"""RandomMask: federated averaging under the initial mask, which never moves; a baseline of FedDST.

Bibikar, Vikalo, Wang, Chen: "Federated Dynamic Sparse Training", AAAI 2022, section 5. The mask keeps the largest
initial weights of each layer: it is random only as the initial weights are. It is FedDST with alpha = 0.
"""

from __future__ import annotations

from fedmpi.algorithms.base import Algorithm
from fedmpi.algorithms.masking import compile_choice
from fedmpi.algorithms.sparse_client import SparseClient
from fedmpi.algorithms.sparse_messages import SparseConfig, check_budgets, mask_sizes, message_classes
from fedmpi.algorithms.sparse_server import SparseServer

ALGORITHM = Algorithm(
    "randommask",
    SparseConfig,
    SparseServer,
    SparseClient,
    sizes=mask_sizes,
    messages=message_classes,
    check=check_budgets,
    warm_up=compile_choice,
)
