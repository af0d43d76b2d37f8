"""What the representation knows about a sample: topic, difficulty, quality, and its cluster (paper, sections 2 and 4).

`probes` and `text` measure; `clusters`, `difficulty` and `quality` produce what the batch plan needs.
Arrays only: no model, no file. Axes: N samples, D features (z 4 x S, metadata 26, phi both), K clusters.
Here: the input checks that all of them share.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse, stats

Matrix = Any
"""Dense array or scipy sparse matrix [N, D]."""


def require_finite(name: str, values: Matrix) -> None:
    """Raise ValueError that names `values` and its first bad row when an entry is NaN or infinite."""
    matrix = sparse.coo_matrix(values) if sparse.issparse(values) else np.asarray(values)
    bad = ~np.isfinite(matrix.data if sparse.issparse(matrix) else matrix)
    if bad.any():
        rows = matrix.row[bad] if sparse.issparse(matrix) else np.nonzero(bad)[0]
        raise ValueError(
            f"{name} holds {len(rows)} non-finite values, first in row {rows.min()}: encode that sample again or drop it"
        )


def require_rows(**arrays: Matrix) -> None:
    """Raise ValueError unless all named arrays have the same, non-zero number of rows."""
    sizes = {name: (a.shape[0] if hasattr(a, "shape") else len(a)) for name, a in arrays.items()}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise ValueError(f"row counts must be equal and above zero, found {sizes}: pass the arrays of the same samples")


def correlation(kind: str, first: np.ndarray, second: np.ndarray) -> float:
    """Spearman or Pearson correlation of two vectors [N]; 0 when one of them is constant, since it orders nothing."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float((stats.spearmanr if kind == "spearman" else stats.pearsonr)(first, second)[0])
