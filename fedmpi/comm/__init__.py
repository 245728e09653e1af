"""How bytes move: one protocol, in one process or over MPI; doorbells and placement."""
