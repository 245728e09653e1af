"""A group of equally long columns that grow in batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import h5py
import numpy as np
from h5py import h5s, h5t

from fedmpi.ledger.schema import Column


class Table:
    """The equally long 1-D datasets of a group, appended to in batches.

    They are written through h5py's low-level calls: ``dataset[n:] = batch`` costs ten times as much, for every column.
    """

    def __init__(self, group: h5py.Group, columns: Iterable[Column], chunk_rows: int) -> None:
        self._group = group
        self.name = str(group.name).strip("/")
        self._chunk_rows = chunk_rows
        self._datasets: dict[str, tuple[Any, Any]] = {}
        self.dtypes: dict[str, str] = {}
        self.num_rows = 0
        for column in columns:
            self.add_column(column)

    def add_column(self, column: Column) -> None:
        """Create a dataset; rows that are already there read as its fill value, NaN where there is one."""
        dataset = self._group.create_dataset(
            column.name,
            shape=(self.num_rows,),
            maxshape=(None,),
            chunks=(self._chunk_rows,),
            dtype=column.dtype,
            fillvalue=math.nan if "f" in column.dtype else None,
        )
        dataset.attrs["unit"] = column.unit
        dataset.attrs["meaning"] = column.meaning
        self._datasets[column.name] = dataset.id, h5t.py_create(np.dtype(column.dtype))
        self.dtypes[column.name] = column.dtype

    def append(self, batch: Mapping[str, np.ndarray[Any, Any]], num_rows: int) -> None:
        """Write ``num_rows`` values of each column, in the column's dtype."""
        end = self.num_rows + num_rows
        memory = h5s.create_simple((num_rows,))
        space = h5s.create_simple((end,), (h5s.UNLIMITED,))
        space.select_hyperslab((self.num_rows,), (num_rows,))
        for name, (dataset, memory_type) in self._datasets.items():
            dataset.set_extent((end,))
            dataset.write(memory, space, batch[name], memory_type)
        self.num_rows = end
