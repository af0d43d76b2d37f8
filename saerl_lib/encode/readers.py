"""One forward pass, many readers: pooled features of several SAEs and of the dense activations of the same layer.

The control ladder compares what different SAEs keep of one residual stream, so the model runs once a batch and every SAE
encodes the same vectors. Axes: N samples, D model width, S retained latents.

Features of every reader in one pass over the texts, although the retained set is chosen from the same texts.

All pooled latents of a part of the samples lie on disk until the parts together say which latents are retained; the model
and the SAEs, which are the cost, run once. `retained_sets` followed by `read_all` gives the same in two passes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from sae_lens import SAE
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from saerl_lib.data.sample import Sample
from saerl_lib.encode.language_model import (
    CutModel,
    Layout,
    TokenBatch,
    activations,
    check_finite,
    load_model,
    token_batches,
    truncate,
)
from saerl_lib.encode.pool import Pooled, fill_z, pool_vectors
from saerl_lib.encode.sae import load_sae
from saerl_lib.encode.store import LABEL_FREE, choose_label_free, require_label_free

WORKERS = 2
"""Processes side by side where a command asks for no number, one thread each."""
DENSE = "dense"
"""Name of the features that are the activations themselves."""


@dataclass(frozen=True)
class Reader:
    """A model on disk, its hook, and SAEs on disk by name: everything a worker process needs."""

    model: Path
    """Folder in Hugging Face format."""
    layer: int
    saes: Mapping[str, Path]
    tokens_per_batch: int
    layout: Layout
    attention_width: int
    """D, checked against each SAE."""
    load: Callable[[Path], tuple[nn.Module, Any]] = load_model
    """Opens the folder: model and tokenizer. A function of a module, since workers get it by name."""

    def open(self) -> tuple[CutModel, object, dict[str, SAE]]:
        """Model cut at the hook, tokenizer and SAEs."""
        model, tokenizer = self.load(self.model)
        return truncate(model, self.layer), tokenizer, {n: load_sae(f, self.attention_width) for n, f in self.saes.items()}


@dataclass(frozen=True)
class PooledVectors:
    """Features of N samples by reader name, each as [prompt mean, prompt max, solution mean, solution max]."""

    features: dict[str, NDArray[np.float32]]
    """[N, 4 S] for an SAE, [N, 4 D] for `dense`; solution blocks are NaN without a solution."""
    truncated: int
    """Samples whose text was cut."""


def _group(batch: TokenBatch) -> tuple[Tensor, NDArray[np.int64], NDArray[np.int64]]:
    keep = batch.prompt | batch.solution
    group = (2 * torch.arange(len(batch.rows)).unsqueeze(1) + batch.solution.long())[keep].numpy()
    return keep, group, np.bincount(group, minlength=2 * len(batch.rows))


def pool_dense(vectors: NDArray[np.float32], group: NDArray[np.int64], rows: int) -> NDArray[np.float32]:
    """[rows, 4 D] mean and max of token vectors [n, D] over the groups 2 * row + span; `group` is ascending, gaps are NaN."""
    out = np.full((rows * 2, 2, vectors.shape[1]), np.nan, dtype=np.float32)
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    if len(starts):
        found = group[starts]
        counts = np.diff(np.append(starts, len(group)))[:, None]
        out[found, 0] = np.add.reduceat(vectors.astype(np.float64), starts, axis=0) / counts
        out[found, 1] = np.maximum.reduceat(vectors, starts, axis=0)
    return out.reshape(rows, -1)


@torch.inference_mode()
def token_vectors_of(
    samples: Sequence[Sample], decoder: CutModel, tokenizer: object, reader: Reader
) -> Iterator[tuple[TokenBatch, Tensor, NDArray[np.int64], NDArray[np.int64]]]:
    """Every batch with vectors [n, D] of prompt and solution tokens, their group 2 * row + span, tokens of a group."""
    for batch in token_batches(samples, tokenizer, reader.tokens_per_batch, reader.layout):
        values = activations(decoder, batch)
        check_finite(values, batch, samples)
        keep, group, tokens = _group(batch)
        yield batch, values[keep], group, tokens


def peak_statistics(samples: Sequence[Sample], reader: Reader) -> dict[str, tuple[NDArray, NDArray]]:
    """SAE name -> (share of samples a latent fires on, variance of its per-sample peak), [F] each."""
    torch.set_num_threads(1)
    decoder, tokenizer, saes = reader.open()
    sums = {name: np.zeros((3, sae.cfg.d_sae)) for name, sae in saes.items()}
    for batch, vectors, group, _ in token_vectors_of(samples, decoder, tokenizer, reader):
        row = group // 2
        for name, sae in saes.items():
            width = sae.cfg.d_sae
            pooled = pool_vectors(sae, vectors, 2 * row, np.ones(2 * len(batch.rows)))
            for i, values in enumerate((np.ones_like(pooled.peak), pooled.peak, pooled.peak.astype(np.float64) ** 2)):
                sums[name][i] += np.bincount(pooled.latent, weights=values, minlength=width)
    n = len(samples)
    return {name: (fired / n, squares / n - (total / n) ** 2) for name, (fired, total, squares) in sums.items()}


def retained_sets(
    samples: Sequence[Sample], reader: Reader, count: int, band: tuple[float, float], rule: str = LABEL_FREE[0],
    workers: int = 1,
) -> dict[str, NDArray[np.int64]]:  # fmt: skip
    """SAE name -> ascending indices of `count` latents that a rule of `LABEL_FREE` retains, from training samples.

    `workers` processes share the SAEs, and each reads the samples through the model once. Other numbers give the same sets.
    Raises ValueError for a rule that reads labels or gradients: it would take another store and other labels for every SAE.
    """
    require_label_free(rule)
    names, chosen = list(reader.saes), {}
    shares = [replace(reader, saes={n: reader.saes[n] for n in names[i::workers]}) for i in range(min(workers, len(names)))]
    found: dict[str, tuple[NDArray, NDArray]] = {}
    for part in Parallel(n_jobs=workers)(delayed(peak_statistics)(samples, share) for share in shares):
        found |= part
    for name in names:
        chosen[name] = choose_label_free(*found[name], count, band, rule)
    return chosen


def _encode_part(samples: Sequence[Sample], reader: Reader, retained: Mapping[str, NDArray[np.int64]]) -> PooledVectors:
    torch.set_num_threads(1)
    decoder, tokenizer, saes = reader.open()
    n = len(samples)
    features = {name: np.zeros((n, 4 * len(retained[name])), dtype=np.float32) for name in saes}
    features[DENSE] = np.empty((n, 4 * reader.attention_width), dtype=np.float32)
    longest = 0
    for batch, vectors, group, tokens in token_vectors_of(samples, decoder, tokenizer, reader):
        rows = np.asarray(batch.rows)
        features[DENSE][rows] = pool_dense(vectors.numpy(), group, len(rows))
        unsolved = rows[~batch.solution.any(dim=1).numpy()]
        for name, sae in saes.items():
            columns = len(retained[name])
            pooled = pool_vectors(sae, vectors, group, tokens, retained[name])
            pooled.row[:] = rows[pooled.row]
            fill_z(features[name], pooled, columns)
            features[name][unsolved, 2 * columns :] = np.nan
        if reader.layout.max_tokens:
            longest += int((batch.real.sum(dim=1) >= reader.layout.max_tokens).sum())
    return PooledVectors(features, longest)


def read_all(
    samples: Sequence[Sample], reader: Reader, retained: Mapping[str, NDArray[np.int64]], workers: int, part: int = 1000
) -> PooledVectors:
    """Features of every reader for N samples, parts of `part` samples spread over `workers` processes of one thread."""
    parts = [samples[start : start + part] for start in range(0, len(samples), part)]
    done = Parallel(n_jobs=workers)(delayed(_encode_part)(p, reader, retained) for p in parts)
    names = done[0].features
    return PooledVectors({n: np.concatenate([d.features[n] for d in done]) for n in names}, sum(d.truncated for d in done))


PART = 1000
"""Samples whose pooled latents one worker holds at a time."""


def _keep_part(samples: Sequence[Sample], reader: Reader, folder: Path) -> tuple[NDArray[np.float32], NDArray[np.bool_], int]:
    """Write <SAE>.safetensors with all pooled latents of a part; returns dense features, who has no solution, and texts cut."""
    torch.set_num_threads(1)
    decoder, tokenizer, saes = reader.open()
    dense = np.empty((len(samples), 4 * reader.attention_width), dtype=np.float32)
    unsolved, cut = np.zeros(len(samples), dtype=bool), 0
    kept: dict[str, list[Pooled]] = {name: [] for name in saes}
    for batch, vectors, group, tokens in token_vectors_of(samples, decoder, tokenizer, reader):
        rows = np.asarray(batch.rows)
        dense[rows] = pool_dense(vectors.numpy(), group, len(rows))
        unsolved[rows] = ~batch.solution.any(dim=1).numpy()
        for name, sae in saes.items():
            pooled = pool_vectors(sae, vectors, group, tokens)
            kept[name].append(Pooled(rows[pooled.row], *(getattr(pooled, field) for field in ("span", "latent", "mean", "peak"))))
        if reader.layout.max_tokens:
            cut += int((batch.real.sum(dim=1) >= reader.layout.max_tokens).sum())
    folder.mkdir()
    for name, parts in kept.items():
        joined = {f: np.concatenate([getattr(p, f) for p in parts]) for f in ("row", "span", "latent", "mean", "peak")}
        small = {f: v.astype(np.int32) if v.dtype == np.int64 else v for f, v in joined.items()}
        save_file({**small, "width": np.array([saes[name].cfg.d_sae])}, folder / f"{name}.safetensors")
    return dense, unsolved, cut


def _load(file: Path) -> tuple[Pooled, int]:
    values = load_file(file)
    width = int(values.pop("width")[0])
    return Pooled(**{name: v.astype(np.int64) if v.dtype == np.int32 else v for name, v in values.items()}), width


def _choose(
    files: Sequence[Path], training: Sequence[NDArray[np.int64]], count: int, band: tuple[float, float], rule: str
) -> NDArray[np.int64]:
    """Retained latents of one SAE, from the peaks of the training rows of every part."""
    sums, n = np.zeros(0), sum(map(len, training))
    for file, rows in zip(files, training, strict=True):
        pooled, width = _load(file)
        sums = sums if len(sums) else np.zeros((3, width))
        peak = np.zeros((len(rows), width))
        place = np.full(max(int(pooled.row.max(initial=-1)), int(rows.max(initial=-1))) + 1, -1)
        place[rows] = np.arange(len(rows))
        for span in (0, 1):
            own = (pooled.span == span) & (place[pooled.row] >= 0)
            at = place[pooled.row[own]], pooled.latent[own]
            peak[at] = np.maximum(peak[at], pooled.peak[own])
        sums += np.stack([(peak > 0).sum(axis=0), peak.sum(axis=0), (peak**2).sum(axis=0)])
    return choose_label_free(sums[0] / n, sums[2] / n - (sums[1] / n) ** 2, count, band, rule)


def _select(files: Sequence[Path], unsolved: Sequence[NDArray[np.bool_]], retained: NDArray[np.int64]) -> NDArray[np.float32]:
    """z [N, 4 S] of one SAE."""
    found, columns = [], len(retained)
    for file, without in zip(files, unsolved, strict=True):
        pooled, width = _load(file)
        column = np.full(width, -1)
        column[retained] = np.arange(columns)
        own = column[pooled.latent] >= 0
        z = np.zeros((len(without), 4 * columns), dtype=np.float32)
        latent = column[pooled.latent[own]]
        fill_z(z, Pooled(pooled.row[own], pooled.span[own], latent, pooled.mean[own], pooled.peak[own]), columns)
        z[without, 2 * columns :] = np.nan
        found.append(z)
    return np.concatenate(found)


def read_retaining(
    samples: Sequence[Sample], training: Collection[str], reader: Reader, count: int, band: tuple[float, float], rule: str,
    workers: int, part: int = PART,
) -> tuple[PooledVectors, dict[str, NDArray[np.int64]]]:  # fmt: skip
    """Features of every reader for N samples, and SAE name -> the latents [S] that `rule` retains.

    `training` holds the ids of the samples that the rule may read. Parts are spread over `workers` processes of one thread;
    their number changes no value. Raises ValueError for a rule that is not label-free and when no sample is a training sample.
    """
    require_label_free(rule)
    starts = range(0, len(samples), part)
    rows = [np.array([i for i, s in enumerate(samples[a : a + part]) if s.id in training], dtype=np.int64) for a in starts]
    if not any(map(len, rows)):
        raise ValueError("no sample is a training sample: the retained set needs some to be chosen from")
    with tempfile.TemporaryDirectory(prefix="saerl-one-pass-") as work:
        folders = [Path(work) / f"{number:05d}" for number in range(len(starts))]
        jobs = (delayed(_keep_part)(samples[a : a + part], reader, f) for a, f in zip(starts, folders, strict=True))
        done = tqdm(Parallel(n_jobs=workers, return_as="generator")(jobs), "encoding", len(starts), unit="part")
        dense, unsolved, cut = zip(*done, strict=True)
        features, retained = {}, {}
        for name in reader.saes:
            files = [folder / f"{name}.safetensors" for folder in folders]
            retained[name] = _choose(files, rows, count, band, rule)
            features[name] = _select(files, unsolved, retained[name])
    return PooledVectors({**features, DENSE: np.concatenate(dense)}, sum(cut)), retained
