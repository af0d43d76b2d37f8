"""What is sorted: one record a sample, whose key orders as (cluster, ranking score, raw score, id) does when read as bytes.

Cluster is a big-endian uint16; a float64 becomes eight bytes whose order is its own (sign bit flipped, a negative number
inverted); the id follows as UTF-8, whose byte order is that of its code points. Axes: n records.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from saerl_lib.plan import PlanError

CLUSTER_BYTES, SCORE_BYTES = 2, 8
FRONT = CLUSTER_BYTES + 2 * SCORE_BYTES
_SIGN = np.uint64(1 << 63)


@dataclass(frozen=True)
class Scored:
    """Samples with all that the plan needs, n rows."""

    ids: np.ndarray
    """UTF-8, bytes [n]."""
    clusters: np.ndarray
    """int64 [n]."""
    ranking: np.ndarray
    """Ranking score r, float64 [n]."""
    raw: np.ndarray
    """d_hat, breaks ties of r, float64 [n]."""
    length: np.ndarray
    """Sequence length, float64 [n]."""

    def __len__(self) -> int:
        return len(self.ids)


def record_dtype(id_bytes: int) -> np.dtype:
    """A record: key and length.

    >>> record_dtype(15).itemsize
    41
    """
    return np.dtype([("key", f"S{FRONT + id_bytes}"), ("length", "<f8")])


def float_key(values: np.ndarray) -> np.ndarray:
    """Big-endian uint64 [n] in the order of float64 [n]; -0.0 counts as 0.0."""
    bits = (np.asarray(values, dtype=np.float64) + 0.0).view(np.uint64)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN).astype(">u8")


def float_of_key(key: np.ndarray) -> np.ndarray:
    """The float64 [n] of `float_key`.

    >>> float_of_key(float_key(np.array([-1.5, 0.0, 2.0]))).tolist()
    [-1.5, 0.0, 2.0]
    """
    bits = key.astype(np.uint64)
    return np.where(bits & _SIGN, bits ^ _SIGN, ~bits).view(np.float64)


def pack(rows: Scored, id_bytes: int) -> np.ndarray:
    """Records [n] of `record_dtype`.

    Raises PlanError for non-finite scores, lengths of 0 or less, or a cluster outside uint16.
    """
    for name in ("ranking", "raw", "length"):
        if not np.isfinite(getattr(rows, name)).all():
            raise PlanError(f"{name} holds non-finite values: score every sample before planning")
    if (rows.length <= 0).any():
        raise PlanError("length holds values of 0 or less: count the tokens of every sample")
    if len(rows) and not 0 <= rows.clusters.min() <= rows.clusters.max() < 2**16:
        raise PlanError(f"clusters run from {rows.clusters.min()} to {rows.clusters.max()}: number them from 0 to 65,535")
    codes = np.zeros((len(rows), FRONT + id_bytes), dtype=np.uint8)
    codes[:, :CLUSTER_BYTES] = rows.clusters.astype(">u2").view(np.uint8).reshape(-1, CLUSTER_BYTES)
    for place, values in ((CLUSTER_BYTES, rows.ranking), (CLUSTER_BYTES + SCORE_BYTES, rows.raw)):
        codes[:, place : place + SCORE_BYTES] = float_key(values).view(np.uint8).reshape(-1, SCORE_BYTES)
    codes[:, FRONT:] = rows.ids.astype(f"S{id_bytes}").view(np.uint8).reshape(len(rows), id_bytes)
    found = np.empty(len(rows), dtype=record_dtype(id_bytes))
    found["key"], found["length"] = codes.view(f"S{codes.shape[1]}").ravel(), rows.length
    return found


def unpack(records: np.ndarray) -> Scored:
    """The samples of records [n]."""
    keys = np.ascontiguousarray(records["key"])
    codes = keys.view(np.uint8).reshape(len(keys), keys.dtype.itemsize)

    def part(first: int, last: int, dtype: str) -> np.ndarray:
        return np.ascontiguousarray(codes[:, first:last]).view(dtype).ravel()

    scores = [part(place, place + SCORE_BYTES, ">u8") for place in (CLUSTER_BYTES, CLUSTER_BYTES + SCORE_BYTES)]
    ids = part(FRONT, codes.shape[1], f"S{codes.shape[1] - FRONT}")
    clusters = part(0, CLUSTER_BYTES, ">u2").astype(np.int64)
    return Scored(ids, clusters, *map(float_of_key, scores), records["length"].copy())


def ranking_of(records: np.ndarray) -> np.ndarray:
    """The ranking scores float64 [n] of records [n] alone."""
    keys = np.ascontiguousarray(records["key"])
    codes = keys.view(np.uint8).reshape(len(keys), keys.dtype.itemsize)[:, CLUSTER_BYTES : CLUSTER_BYTES + SCORE_BYTES]
    return float_of_key(np.ascontiguousarray(codes).view(">u8").ravel())


def without_cluster(records: np.ndarray) -> np.ndarray:
    """Keys [n] that order by (ranking, raw, id) alone."""
    keys = np.ascontiguousarray(records["key"])
    codes = keys.view(np.uint8).reshape(len(keys), keys.dtype.itemsize)[:, CLUSTER_BYTES:]
    return np.ascontiguousarray(codes).view(f"S{codes.shape[1]}").ravel()
