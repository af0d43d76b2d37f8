"""The k largest entries of each row of a wide array, for TopK SAEs: partitioning whole rows would cost as much as the product.

Two ways, for wide and for narrow rows, look at the maxima of groups of entries first.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

GROUP = 128
"""Entries of a group at most."""
WIDE = 16
"""A row counts as wide on a CPU when its k best groups are at most one part in so many of it."""
TINY = torch.finfo(torch.float32).tiny


def topk_entries(hidden: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positive entries among the k largest of each row of [n, F], as (row, column, value); by ascending row.

    On a CPU columns ascend within a row too.

    >>> [v.tolist() for v in topk_entries(torch.tensor([[3.0, -1.0, 2.0, 1.0]]), 2)]
    [[0, 0], [0, 2], [3.0, 2.0]]
    """
    group, on_cpu = group_size(hidden.shape[1], k), hidden.device.type == "cpu"
    if on_cpu and group > 1 and hidden.shape[1] < WIDE * k * GROUP:
        return _above_bound(hidden, k, group)
    values, columns = _of_best_groups(hidden, k) if group == GROUP else hidden.topk(k, dim=1, sorted=False)
    if on_cpu:
        columns, order = columns.sort(dim=1)
        values = values.gather(1, order)
    rows = torch.arange(len(hidden), device=hidden.device).unsqueeze(1).expand_as(columns)
    keep = values > 0
    return rows[keep], columns[keep], values[keep]


def group_size(width: int, k: int) -> int:
    """Entries of a group: the largest power of two up to `GROUP` that leaves whole groups, at least twice k of them.

    >>> group_size(131_072, 50), group_size(2048, 32), group_size(100, 50)
    (128, 32, 1)
    """
    size = GROUP
    while size > 1 and (width % size or width // size < 2 * k):
        size //= 2
    return size


def _above_bound(hidden: Tensor, k: int, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k-th largest of the groups' maxima bounds the k-th largest entry from below: only entries above it are ranked.

    For rows so narrow that the k best groups would be much of them. This reads the array twice. A group is every
    (F / group)-th column, so that the maxima of neighbouring groups are taken at once.
    """
    n, width = hidden.shape
    maxima = hidden.view(n, group, width // group).amax(dim=1)
    bound = torch.from_numpy(_kth_largest(maxima.float().numpy(), k)).unsqueeze(1).clamp_min(TINY).to(hidden.dtype)
    place, flat = np.flatnonzero((hidden >= bound).numpy()), hidden.flatten()
    value = flat.numpy()[place] if hidden.dtype == torch.float32 else flat[torch.from_numpy(place)].float().numpy()
    row = place // width
    keep, tied = _largest(row, value, n, k)
    for i in tied:  # torch.topk takes its own of equal entries; so do we, and the same everywhere
        own = slice(*np.searchsorted(row, (i, i + 1)))
        keep[own] = np.isin(place[own] - i * width, hidden[i].topk(k, sorted=False).indices.numpy())
    row, place, value = row[keep], place[keep], value[keep]
    return torch.from_numpy(row), torch.from_numpy(place - row * width), torch.from_numpy(value).to(hidden.dtype)


def _kth_largest(values: np.ndarray, k: int) -> np.ndarray:
    """The k-th largest entry of each row, [n]."""
    return np.partition(values, values.shape[1] - k, axis=1)[:, values.shape[1] - k]


def _largest(row: np.ndarray, value: np.ndarray, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Mask of the entries, by ascending row, that are at least the k-th largest of their row, and the rows with more than k."""
    counts = np.bincount(row, minlength=n)
    within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((n, max(int(counts.max(initial=0)), k)), -np.inf, dtype=np.float32)
    table[row, within] = value
    keep = value >= _kth_largest(table, k)[row]
    return keep, np.flatnonzero(np.bincount(row[keep], minlength=n) > k)


def _of_best_groups(hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Values and columns [n, k] of the k largest entries, which lie in the k groups with the largest maxima.

    The array is read once. Sizes do not depend on the values, so a GPU need not wait for them.
    """
    n, width = hidden.shape
    groups = hidden.view(n, width // GROUP, GROUP)
    best = groups.amax(dim=2).topk(k, dim=1, sorted=False).indices
    near = groups.gather(1, best.unsqueeze(2).expand(-1, -1, GROUP)).flatten(1)
    values, place = near.topk(k, dim=1, sorted=False)
    return values, best.gather(1, place // GROUP) * GROUP + place % GROUP
