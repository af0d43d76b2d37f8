"""Features of every reader in one pass over the texts, although the retained set is chosen from the same texts.

All pooled latents of a part of the samples lie on disk until the parts together say which latents are retained; the model
and the SAEs, which are the cost, run once. `readers.retained_sets` followed by `readers.read_all` gives the same in two passes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tqdm.auto import tqdm

from saerl_lib.data.sample import Sample
from saerl_lib.encode.pooling import Pooled, fill_z, pool_vectors
from saerl_lib.encode.readers import DENSE, PooledVectors, Reader, pool_dense, token_vectors_of
from saerl_lib.encode.retain import choose_label_free, require_label_free

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
