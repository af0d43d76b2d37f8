"""The k largest entries of each row of a wide array, for TopK SAEs: at F = 131,072 a full partition of each row is the cost.

Both ways look at groups of `GROUP` neighbouring entries first; they differ in what a CPU and a GPU do well.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

GROUP = 128
"""Entries a group."""


def topk_entries(hidden: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positive entries among the k largest of each row of [n, F], as (row, column, value); by ascending row.

    On a CPU columns ascend within a row too.

    >>> [v.tolist() for v in topk_entries(torch.tensor([[3.0, -1.0, 2.0, 1.0]]), 2)]
    [[0, 0], [0, 2], [3.0, 2.0]]
    """
    n, width = hidden.shape
    grouped = width % GROUP == 0 and width // GROUP >= 2 * k
    if hidden.device.type == "cpu" and grouped:
        return _above_bound(hidden, k)
    values, columns = _of_best_groups(hidden, k) if grouped else hidden.topk(k, dim=1, sorted=False)
    if hidden.device.type == "cpu":
        columns, order = columns.sort(dim=1)
        values = values.gather(1, order)
    rows = torch.arange(n, device=hidden.device).unsqueeze(1).expand_as(columns)
    keep = values > 0
    return rows[keep], columns[keep], values[keep]


def _above_bound(hidden: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k-th largest of the groups' maxima is a lower bound of the k-th largest entry: only entries above it are sorted.

    This reads the array twice.
    """
    n, width = hidden.shape
    maxima = hidden.view(n, width // GROUP, GROUP).amax(dim=2)
    bound = maxima.topk(k, dim=1, sorted=True).values[:, -1:].clamp_min(0)
    keep = hidden >= bound
    keep &= hidden > 0
    rows, columns = keep.nonzero(as_tuple=True)
    values = hidden[rows, columns]
    # by row, then by falling value: the first k of each row are its largest
    order = torch.from_numpy(np.lexsort((columns.numpy(), -values.float().numpy(), rows.numpy())))
    starts = torch.searchsorted(rows, torch.arange(n))
    rank = torch.arange(len(rows)) - starts[rows]
    order = order[rank < k].sort().values
    return rows[order], columns[order], values[order]


def _of_best_groups(hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and columns [n, k] of the k largest entries, which lie in the k groups with the largest maxima.

    Sizes do not depend on the values, so a GPU need not wait for them.
    """
    n, width = hidden.shape
    groups = hidden.view(n, width // GROUP, GROUP)
    best = groups.amax(dim=2).topk(k, dim=1, sorted=False).indices
    near = groups.gather(1, best.unsqueeze(2).expand(-1, -1, GROUP)).flatten(1)
    values, place = near.topk(k, dim=1, sorted=False)
    return values, best.gather(1, place // GROUP) * GROUP + place % GROUP
