"""fedmpi: communication-efficient federated learning over MPI, with every byte measured."""

__version__ = "0.1.0"
