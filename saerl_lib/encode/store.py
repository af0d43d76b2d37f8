"""Pooled statistics of all latents on disk, the retained set chosen from them, metadata, and the feature table of both.

A shard is one safetensors file with the entries of a few hundred samples in CSR form over the combined index (span, latent), once
for every SAE that read them: row pointers [n + 1], column = span * F + latent, mean and peak; with them the lengths and, if
wanted, the pooled activations. Ids and what the shard was made from stand in the file's header. The paper keeps 240 latents and
does not say which, and names three kinds of shallow metadata m (sections 3.1 and B.1); the list of 26 is ours.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from scipy import sparse
from sklearn.feature_selection import f_regression
from sklearn.linear_model import ElasticNet

from saerl_lib.artifacts import ArtifactError, Stage
from saerl_lib.data.sample import Sample

MAIN, DENSE = "sae", "dense"
"""Names of the reader's own SAE and of the activations themselves in a shard."""
HEADER = "shard"
"""Key of the header's one entry: several would be written in no fixed order."""
ENTRIES = ("pointers", "column", "mean", "peak")
"""Arrays of one SAE in a shard, in CSR form."""


@dataclass(frozen=True)
class Store:
    """Shards of one list of samples, in its order, as one SAE reads them."""

    folder: Path
    name: str = MAIN
    """Of the SAE."""

    def files(self) -> list[Path]:
        """The shards, in order. Raises ArtifactError when there is none."""
        files = sorted(self.folder.glob("shard-*.safetensors"))
        if not files:
            raise ArtifactError(f"{self.folder}: no shard; `encode` has not finished there")
        return files

    @property
    def width(self) -> int:
        """F of the SAE."""
        return int(_header(self.files()[0])["record"]["widths"][self.name])

    @property
    def ids(self) -> tuple[str, ...]:
        """Sample ids, in order."""
        return tuple(name for path in self.files() for name in _header(path)["ids"])

    def shards(self) -> Iterator[tuple[NDArray[np.bool_], sparse.csr_matrix]]:
        """Of one shard after another: whether a sample has a solution span [n], and the blocks of z with all latents [n, 4 F]."""
        width = self.width
        for path in self.files():
            with safe_open(path, framework="numpy") as handle:
                pointers, column, *both = (handle.get_tensor(f"{self.name}.{field}") for field in ENTRIES)
                solved = handle.get_tensor("solved")
            matrices = [sparse.csr_matrix((values, column, pointers), shape=(len(solved), 2 * width)) for values in both]
            yield solved, sparse.hstack([m[:, s * width : (s + 1) * width] for s in (0, 1) for m in matrices], format="csr")

    def values(self, name: str) -> NDArray:
        """[N] `solved`, `tokens` or `truncated`, or [N, 4 D] `dense`."""
        parts = []
        for path in self.files():
            with safe_open(path, framework="numpy") as handle:
                parts.append(handle.get_tensor(name))
        return np.concatenate(parts)

    def select(self, retained: NDArray[np.int64]) -> NDArray[np.float32]:
        """z [N, 4 S] of a retained set; solution blocks are NaN without a solution span."""
        parts, columns = [], np.concatenate([block * self.width + retained for block in range(4)])
        for solved, blocks in self.shards():
            parts.append(blocks[:, columns].toarray())
            parts[-1][~solved, 2 * len(retained) :] = np.nan
        return np.concatenate(parts)

    def blocks(self) -> sparse.csr_matrix:
        """[N, 4 F] all blocks of z with every latent; a missing solution span has no entries."""
        return sparse.vstack([blocks for _, blocks in self.shards()], format="csr")


def _header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="numpy") as handle:
        return json.loads(handle.metadata()[HEADER])


def shard_path(folder: Path, number: int) -> Path:
    """Where shard `number` of a store lies; names sort like numbers."""
    return folder / f"shard-{number:06d}.safetensors"


def read_record(path: Path, key: str) -> dict[str, Any] | None:
    """The record that `write_shard` returned for the file; None when it is missing, of another key or not as it was written."""
    try:
        header = _header(path)
        record, values = header["record"], values_hash(header["ids"], load_file(path))
        return record if (record["key"], record["values"]) == (key, values) else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def values_hash(ids: Sequence[str], arrays: Mapping[str, NDArray]) -> str:
    found = hashlib.sha256(json.dumps(list(ids)).encode())
    for name in sorted(arrays):
        found.update(np.ascontiguousarray(arrays[name]))
    return found.hexdigest()


RULES = ("variance", "anova", "elastic_net", "gradient", "random")
"""Names of the rules; the first, the default, reads no label: one that does makes the out-of-fold scores of the same labels look
better than they are."""
LABELLED = ("anova", "elastic_net")
"""Rules that read labels, which must be those of training samples."""


def mean_variance(blocks: sparse.csr_matrix, width: int) -> NDArray[np.float64]:
    """Variance over samples of the square root of each latent's mean activation, both spans added up, [F]."""
    total = np.zeros(width)
    for span in (0, 1):
        means = blocks[:, 2 * span * width : (2 * span + 1) * width].astype(np.float64)
        total += np.asarray(means.mean(axis=0)).ravel() - np.asarray(means.sqrt().mean(axis=0)).ravel() ** 2
    return total


def _coefficients(blocks: sparse.csr_matrix, labels: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Sum of |coefficient| over the four blocks of a latent, in an elastic net on columns of unit deviation."""
    scaled = blocks.astype(np.float64).tocsc()
    mean = np.asarray(scaled.mean(axis=0)).ravel()
    deviation = np.sqrt(np.maximum(np.asarray(scaled.multiply(scaled).mean(axis=0)).ravel() - mean**2, 0.0))
    scaled = scaled @ sparse.diags(1.0 / np.where(deviation > 0, deviation, 1.0))
    centred = labels - labels.mean()
    alpha = 0.1 * np.abs(scaled.T @ centred).max() / len(labels) or 1.0  # a tenth of the penalty that empties the model
    model = ElasticNet(alpha=alpha, l1_ratio=0.5, max_iter=300, tol=1e-3).fit(scaled.tocsc(), centred)
    return np.abs(model.coef_).reshape(4, width).sum(axis=0)


def choose_retained(
    store: Store, count: int, *, rule: str = RULES[0], labels: NDArray[np.float64] | None = None,
    influence: Callable[[], NDArray[np.float64]] | None = None, seed: int = 0, rows: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:  # fmt: skip
    """Ascending indices of `count` retained latents, chosen from the samples of `rows` [N] of a store (default: all). variance:
    largest `mean_variance`. anova: largest F statistic of the peak with `labels`. elastic_net: largest coefficients on all
    blocks. gradient: largest `influence()` [F]. random: a seeded draw among the latents that fire. Raises ValueError for an
    unknown rule, missing labels, or a count outside 1..F."""
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} does not exist; choose one of {', '.join(RULES)}")
    if not 1 <= count <= store.width:
        raise ValueError(f"retained_latents={count} must lie between 1 and the SAE's {store.width} latents")
    if rule in LABELLED and (labels is None or not np.isfinite(labels).all()):
        raise ValueError(f"rule {rule!r} needs a finite label for every sample that it reads; pass the labels of L")
    blocks, width = store.blocks()[slice(None) if rows is None else np.flatnonzero(rows)], store.width
    if rule == "variance":
        score = mean_variance(blocks, width)
    elif rule == "anova":
        peaks = blocks[:, width : 2 * width].maximum(blocks[:, 3 * width :]).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            score = np.nan_to_num(f_regression(peaks, labels)[0], nan=0.0, posinf=0.0)
    elif rule == "elastic_net":
        variance = mean_variance(blocks, width)
        score = _coefficients(blocks, labels, width) + 1e-12 * variance / (variance.max() or 1.0)
    elif rule == "gradient":
        score = influence()
    else:
        score = np.random.default_rng(seed).random(width)
    fires = blocks.getnnz(axis=0).reshape(4, width).any(axis=0)
    order = np.lexsort((np.arange(width), -score, ~fires))  # ties to the lower number, silent latents last
    return np.sort(order[:count]).astype(np.int64)


def _share(pattern: str) -> Callable[[str], float]:
    return lambda text: len(re.findall(pattern, text)) / max(1, len(text))


def _count(pattern: str) -> Callable[[str], float]:
    return lambda text: float(len(re.findall(pattern, text)))


def _numbers(text: str) -> list[int]:
    return [int(v[:15]) for v in re.findall(r"\d+", text)]


_BOTH: dict[str, tuple[Callable[[str], float], str]] = {
    "characters": (lambda text: float(len(text)), "number of characters"),
    "words": (_count(r"\S+"), "number of runs without white space"),
    "numbers": (_count(r"\d+"), "number of digit runs"),
    "digit_ratio": (_share(r"\d"), "digits / characters"),
    "tex_ratio": (_share(r"\\[a-zA-Z]+|[${}^_]"), r"TeX commands and the signs $ { } ^ _ / characters"),
    "operators": (_count(r"[-+*/%:]"), "number of the signs - + * / % :"),
    "punctuation_ratio": (_share(r"[.,;!?]"), "signs . , ; ! ? / characters"),
    "log10_largest_number": (lambda text: math.log10(1 + max(_numbers(text), default=0)),
                             "log10(1 + largest digit run as a number), 15 digits at the most"),
    "log10_mean_number": (lambda text: math.log10(1 + sum(found := _numbers(text)) / max(1, len(found))),
                          "log10(1 + mean of the digit runs as numbers)"),
    "distinct_word_share": (lambda text: len(set(words := re.findall(r"\w+", text.lower()))) / max(1, len(words)),
                            "distinct words / words, lower case"),
    "brackets": (_count(r"[()\[\]]"), "number of ( ) [ ]"),
}  # fmt: skip
"""Feature of either side -> how it is computed, and that in words."""
_PROMPT = _BOTH | {
    "question_marks": (_count(r"\?"), "number of ?"),
    "upper_case_ratio": (_share(r"[A-Z]"), "capital letters A-Z / characters"),
}
_SOLUTION = _BOTH | {"lines": (lambda text: text.count("\n") + 1.0, "number of lines")}
_SIDES = {"prompt": _PROMPT, "solution": _SOLUTION}

FEATURES: tuple[str, ...] = (*(f"{side}_{name}" for side in _SIDES for name in _SIDES[side]), "solution_to_prompt_length")
"""Names of the 26 features, in column order."""
PROMPT_COLUMNS = [i for i, name in enumerate(FEATURES) if name.startswith("prompt_")]
"""Columns that need no solution."""


def formula_table() -> list[tuple[str, str, str]]:
    """(feature, span, formula) of the 26 features, in column order."""
    rows = [(f"{side}_{name}", side, formula) for side in _SIDES for name, (_, formula) in _SIDES[side].items()]
    return [*rows, (FEATURES[-1], "prompt and solution", "characters of the solution / characters of the prompt")]


def metadata_features(samples: Sequence[Sample]) -> NDArray[np.float32]:
    """[N, 26] metadata of the samples, unscaled, columns as in `FEATURES`; NaN where a feature needs a missing solution."""
    rows = np.full((len(samples), len(FEATURES)), np.nan, dtype=np.float32)
    for row, sample in zip(rows, samples, strict=True):
        prompt, solution = sample.prompt, sample.solution
        row[: len(_PROMPT)] = [of(prompt) for of, _ in _PROMPT.values()]
        if sample.solved:
            row[len(_PROMPT) :] = [*(of(solution) for of, _ in _SOLUTION.values()), len(solution) / len(prompt)]
    return rows


@dataclass(frozen=True)
class FeatureTable:
    """Representation of N samples."""

    ids: tuple[str, ...]
    z: NDArray[np.float32]
    """[N, 4 S] pooled SAE features; the solution blocks are NaN for a sample without a worked solution."""
    metadata: NDArray[np.float32]
    """[N, 26] metadata features; those of the solution are NaN for a sample without one."""

    @property
    def phi(self) -> NDArray[np.float32]:
        """[N, 4 S + 26], phi = [z ; m] (paper, section 3.1)."""
        return np.concatenate([self.z, self.metadata], axis=1)

    @property
    def solved(self) -> NDArray[np.bool_]:
        """[N] whether the sample has a solution span."""
        return np.isfinite(self.z[:, self.z.shape[1] // 2 :]).all(axis=1)

    @property
    def prompt_phi(self) -> NDArray[np.float32]:
        """[N, 2 S + 13], the prompt-only representation: prompt blocks and prompt metadata, for pools without solutions."""
        return np.concatenate([self.z[:, : self.z.shape[1] // 2], self.metadata[:, PROMPT_COLUMNS]], axis=1)

    def complete(self, reference: FeatureTable | None = None) -> FeatureTable:
        """Samples without a solution get the mean solution of `reference` (default: of this table) in place of NaN. The mean says
        "no information" to a standardised linear model and to k-means; zeros would say "nothing fires". Raises ValueError when no
        sample of the reference has a solution: use `prompt_phi` then."""
        source = reference or self
        if not source.solved.any():
            raise ValueError("no sample has a worked solution; use the prompt-only features (prompt_phi)")
        filled = [np.where(np.isnan(own), np.nanmean(given[source.solved], axis=0), own).astype(np.float32)
                  for own, given in ((self.z, source.z), (self.metadata, source.metadata))]  # fmt: skip
        return FeatureTable(self.ids, *filled)


def save_features(table: FeatureTable, path: Path) -> None:
    """Write a feature table as safetensors, the ids in its header."""
    arrays = {"z": np.ascontiguousarray(table.z), "metadata": np.ascontiguousarray(table.metadata)}  # views are written whole
    save_file(arrays, path, metadata={"ids": json.dumps(table.ids)})


def load_features(path: Path) -> FeatureTable:
    """Read a feature table."""
    with safe_open(path, framework="numpy") as handle:
        ids = tuple(json.loads(handle.metadata()["ids"]))
        return FeatureTable(ids, handle.get_tensor("z"), handle.get_tensor("metadata"))


def load_split_features(features: Stage, name: str) -> FeatureTable:
    """The feature table of one split; a sample without a solution gets the pool's mean one (`FeatureTable.complete`)."""
    table = load_features(features.path(f"{name}.safetensors"))
    return table if table.solved.all() else table.complete(load_features(features.path("pool.safetensors")))
