"""Feature vectors of a set on disk: a raw float32 table and a JSON description.

`NAME.memmap` holds [num, dim] little-endian float32 rows in discovery order without a header, `NAME_desc.json` says
`{"shape": [num, dim], "filepath_to_idx": {path: row}, ...}`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from threedgp.errors import DataError
from threedgp.files import read_json

CHECKED_ROWS = 4096  # rows looked at for NaN at a time


def description_path(path: Path) -> Path:
    """`NAME.memmap` -> `NAME_desc.json`."""
    return path.with_name(path.name.removesuffix(".memmap") + "_desc.json")


@dataclass(frozen=True)
class Embeddings:
    """A memory map of float32 rows, and which row belongs to which path."""

    path: Path
    rows: np.ndarray  # [N, D]
    row_of: dict[str, int]

    @classmethod
    def open(cls, path: Path | str) -> Embeddings:
        """Open `<name>.memmap` with its `<name>_desc.json`.

        Raises:
            DataError: either file is missing, or they do not belong together.
        """
        path = Path(path)
        description = read_json(description_path(path))
        try:
            shape = tuple(int(side) for side in description["shape"])
            row_of = {str(name): int(row) for name, row in description["filepath_to_idx"].items()}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise DataError(
                f"The description of {path} is damaged. Make the embeddings again: 3dgp data embed"
            ) from None
        size = path.stat().st_size if path.is_file() else -1
        if len(shape) != 2 or size != 4 * shape[0] * shape[1]:
            raise DataError(
                f"{path} does not hold the {shape} numbers its description says: run 3dgp data embed again."
            )
        if sorted(row_of.values()) != list(range(shape[0])):
            raise DataError(
                f"The description of {path} does not give each image a row of its own: run 3dgp data embed again."
            )
        rows = np.memmap(path, "<f4", "r", shape=shape) if size else np.zeros(shape, np.float32)
        return cls(path, rows, row_of)

    @property
    def dim(self) -> int:
        return self.rows.shape[1]

    @cached_property
    def names(self) -> list[str]:
        """Paths, row by row."""
        return sorted(self.row_of, key=self.row_of.__getitem__)

    def non_finite(self) -> list[str]:
        """Paths whose row holds NaN or Inf; reads the whole file in pieces."""
        bad: set[int] = set()
        for begin in range(0, len(self.rows), CHECKED_ROWS):
            finite = np.isfinite(self.rows[begin : begin + CHECKED_ROWS]).all(axis=1)
            bad.update(begin + int(row) for row in np.flatnonzero(~finite))
        return sorted(name for name, row in self.row_of.items() if row in bad) if bad else []
