"""DSIR: importance weights of hashed n-grams, the text-only way to make a pool look like a target (arXiv 2302.03169).

A control for the quality filter. Each text is a bag of unigrams and bigrams hashed into a fixed number of buckets;
target and raw pool are each one categorical distribution over buckets; a text's log weight is the sum over its n-grams
of log p(bucket) - log q(bucket). Written from the formula. Word splitting and smoothing are not stated there for
mathematics; ours.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from saerl_lib.properties import require_finite, require_rows
from saerl_lib.properties.quality import keep_top_k
from saerl_lib.properties.text import TOKEN_PATTERN

BUCKETS = 10_000
"""Hash buckets (DSIR, section 4)."""
SMOOTHING = 1.0
"""Count added to every bucket of both distributions, so that no weight is infinite (ours)."""


def ngrams(text: str) -> list[str]:
    """Lower-case unigrams, then bigrams joined by a space; the words of `text.TOKEN_PATTERN`.

    >>> ngrams("Find 3+4")
    ['find', '3', '+', '4', 'find 3', '3 +', '+ 4']
    """
    words = re.findall(TOKEN_PATTERN, text.lower())
    return words + [f"{first} {second}" for first, second in zip(words, words[1:], strict=False)]


def bucket(ngram: str, buckets: int = BUCKETS) -> int:
    """Bucket of an n-gram, the same in every process: CRC-32 of its UTF-8 bytes (Python's `hash` is salted)."""
    return zlib.crc32(ngram.encode("utf-8")) % buckets


def hashed_counts(texts: Sequence[str], buckets: int = BUCKETS) -> sparse.csr_matrix:
    """[N, buckets] how often each bucket occurs in each text. Raises ValueError when there is no text."""
    if not len(texts):
        raise ValueError("texts is empty: DSIR needs at least one text")
    rows, columns = [], []
    for row, text in enumerate(texts):
        found = [bucket(ngram, buckets) for ngram in ngrams(text)]
        rows += [row] * len(found)
        columns += found
    ones = np.ones(len(rows))
    return sparse.csr_matrix((ones, (rows, columns)), shape=(len(texts), buckets))


def bucket_distribution(counts: sparse.csr_matrix, smoothing: float = SMOOTHING) -> np.ndarray:
    """[buckets] smoothed share of each bucket in counts [N, buckets]; sums to one."""
    if smoothing <= 0:
        raise ValueError(f"smoothing={smoothing} must be positive: an empty bucket would have an infinite weight")
    total = np.asarray(counts.sum(axis=0)).ravel() + smoothing
    return total / total.sum()


def log_importance_weights(
    pool_texts: Sequence[str],
    target_texts: Sequence[str],
    raw_texts: Sequence[str] | None = None,
    *,
    buckets: int = BUCKETS,
    smoothing: float = SMOOTHING,
    per_ngram: bool = False,
) -> np.ndarray:
    """[N] log p(x) - log q(x) in nats of every pool text; p from `target_texts`, q from `raw_texts` (None: the pool).

    `per_ngram` divides by the number of n-grams (ours): the sum grows with length. A text without words weighs 0.
    Raises ValueError for an empty list of texts.
    """
    pool = hashed_counts(pool_texts, buckets)
    target = bucket_distribution(hashed_counts(target_texts, buckets), smoothing)
    raw = bucket_distribution(pool if raw_texts is None else hashed_counts(raw_texts, buckets), smoothing)
    weights = np.asarray(pool @ (np.log(target) - np.log(raw))).ravel()
    return weights / np.maximum(np.asarray(pool.sum(axis=1)).ravel(), 1.0) if per_ngram else weights


def top_k(log_weights: np.ndarray, ids: Sequence[str], k: int) -> np.ndarray:
    """Mask bool [N] of the k largest log weights; equal ones in ascending order of id."""
    return keep_top_k(log_weights, ids, k)


def gumbel_top_k(log_weights: np.ndarray, ids: Sequence[str], k: int, seed: int) -> np.ndarray:
    """Mask bool [N] of k samples drawn without replacement in proportion to their weights (DSIR, section 3).

    The k largest of log weight plus Gumbel noise. Noise belongs to the id, so the order of the input does not matter.
    """
    require_rows(log_weights=log_weights, ids=ids)
    require_finite("log_weights", log_weights)
    noise = np.empty(len(ids))
    noise[np.argsort(np.asarray(ids, dtype=str), kind="stable")] = np.random.default_rng(seed).gumbel(size=len(ids))
    return keep_top_k(np.asarray(log_weights, dtype=float) + noise, ids, k)
