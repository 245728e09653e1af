"""The ledger: one HDF5 file a run, one row a message; `schema`, `writer`, `reader`, `digest`."""
