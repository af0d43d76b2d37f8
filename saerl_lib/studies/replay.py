"""Which prompts will teach? Choice by predicted pass rate, judged on recorded rollouts of real policies, without training (ours).

A group of rollouts whose rewards are all equal is silent: it has no gradient. A selector that predicts pass rates saves such
groups by taking the prompts nearest to one half. Two records say how many. *DeepScaleR*: pass rates of a 7B policy over 128
attempts, as a stream that is seen once; a ridge on the features learns from the 8 rollouts of every prompt taken. *DSR-sub*: the
rewards of a 1.5B policy in training, epoch by epoch; the features are the prior of what a prompt's own history says.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import solve
from scipy.optimize import minimize_scalar
from scipy.stats import betabinom, norm, rankdata, spearmanr
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from saerl_lib import paths
from saerl_lib.artifacts import file_sha256, get_or_compute
from saerl_lib.config import Profile, sub_seed, to_dict
from saerl_lib.data.published import data_file
from saerl_lib.data.rows import jsonl
from saerl_lib.encode.store import DENSE, MAIN, PROMPT_COLUMNS, metadata_features
from saerl_lib.plan.batch_plan import rows_of
from saerl_lib.properties.clusters import pool_clusters
from saerl_lib.properties.probes import WORKERS, Matrix, Task, fit_tfidf, inner_products, texts_of
from saerl_lib.report.statistics import bootstrap_runs
from saerl_lib.studies.ladder import ALL, GROUPS, UNTRAINED_SAE, Blocks, balanced, has_real_data, real_groups

ROLLOUTS = 8
"""Rollouts of one group (paper, section 4.1)."""
STEP = 32
"""Prompts taken before the next choice."""
RUNS = 8
"""Streams: orders of the prompts and draws of their rollouts."""
SHARES = (0.5, 0.25, 0.125)
"""Shares of the prompts seen that are taken."""
GROWTH, TUNED = 1.25, 1024
"""The ridge is fitted again when so many times more prompts are known; its penalty until there are `TUNED`."""
PENALTIES = np.logspace(-1, 4, 11)
"""Of a kernel with a mean diagonal of 1; chosen by leave-one-out."""
SCREENED = (2, 3, 4, 5)
"""Rollouts of a group after which it is broken off if they agree."""
OWN_ROLLOUTS = (0, 1, 2, 4, 8, 16, 40, 80)
"""Rollouts of a prompt's own history; a whole epoch has 8."""
CORRELATIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99)
NOTHING, SHUFFLED, TRUE = "none", "shuffled", "true rates"
COLUMNS = ["record", "form", "features", "share", "own_rollouts", "spearman", "silent", "silent_groups_saved", "saved_low",
           "saved_high", "lead", "lead_low", "lead_high", "teaching", "teaching_low", "teaching_high", "n", "runs"]  # fmt: skip

Floats = NDArray[np.float64]


# A predictor: ridge regression on any features, as a kernel.


def kernel_of(x: Matrix) -> NDArray[np.float32]:
    """[N, N] centred linear kernel of features [N, D], mean diagonal 1: standardised columns, or a sparse matrix as it is."""
    if sparse.issparse(x):
        found = inner_products(x, x).astype(np.float32)
    else:
        scaled = StandardScaler().fit_transform(np.asarray(x, dtype=np.float32))
        found = scaled @ scaled.T
    found -= found.mean(axis=0)
    found -= found.mean(axis=1, keepdims=True)
    return found / np.trace(found) * len(found)


def loo_penalty(kernel: np.ndarray, y: Floats) -> float:
    """The ridge penalty of `PENALTIES` with the smallest leave-one-out error."""
    values, vectors = np.linalg.eigh(kernel.astype(np.float64))
    inside = vectors.T @ (y - y.mean())
    errors = []
    for penalty in PENALTIES:
        left = (vectors @ (inside / (values + penalty))) / (vectors**2 @ (1 / (values + penalty)))
        errors.append(np.mean(left**2))
    return float(PENALTIES[np.argmin(errors)])


def fitted(kernel: np.ndarray, known: np.ndarray, y: Floats, penalty: float) -> Floats:
    """[N] predictions for everybody from targets y of the rows `known`."""
    inner = kernel[np.ix_(known, known)].astype(np.float64)
    inner[np.diag_indices_from(inner)] += penalty
    return y.mean() + kernel[:, known] @ solve(inner, y - y.mean(), assume_a="pos", overwrite_a=True)


# What a choice is worth.


class Choice(NamedTuple):
    """Prompts that some runs of one selector took, and what their rollouts cost and taught; all [runs, N]."""

    taken: NDArray[np.bool_]
    taught: Floats
    """Chance that the prompt's group has a gradient."""
    spent: Floats
    """Expected rollouts that its group generates."""
    whole: Floats
    """[N] chance that a whole group of the prompt has a gradient: uniform choice."""
    spearman: float = float("nan")
    """Of predicted and true pass rates, when they were needed."""

    def saved(self, rows: np.ndarray, run: int) -> float:
        """Share of uniform's silent groups that the choice leaves out, on some rows [n] of a run."""
        taken, taught = self.taken[run, rows], self.taught[run, rows]
        return 1.0 - float((1 - taught[taken]).mean() / (1 - taught).mean())

    def teaching(self, rows: np.ndarray, run: int) -> float:
        """Groups that teach per generated rollout, against whole groups of everybody."""
        taken = self.taken[run, rows]
        own = self.taught[run, rows][taken].sum() / self.spent[run, rows][taken].sum()
        return float(own / (self.whole[rows].mean() / ROLLOUTS))


def whole_groups(taken: NDArray[np.bool_], taught: Floats, spearman: float = float("nan")) -> Choice:
    """The choice of prompts [runs, N] whose groups are generated whole and teach with a chance [N]."""
    return Choice(taken, np.tile(taught, (RUNS, 1)), np.full(taken.shape, float(ROLLOUTS)), taught, spearman)


def mixed(rates: Floats, rollouts: int = ROLLOUTS) -> Floats:
    """Chance that so many rollouts of pass rates [N] neither all fail nor all pass.

    >>> mixed(np.array([0.0, 0.5, 1.0])).tolist()
    [0.0, 0.9921875, 0.0]
    """
    return 1 - rates**rollouts - (1 - rates) ** rollouts


def nearest(predicted: Floats, count: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of the `count` predictions nearest to one half; ties are broken at random."""
    return np.lexsort((rng.random(len(predicted)), abs(predicted - 0.5)))[:count]


# DeepScaleR: every prompt is seen once.


def stream(
    kernel: np.ndarray | None, rates: Floats, share: float, seed: int, known: Floats | None = None
) -> tuple[np.ndarray, float]:
    """Rows taken in one pass over the prompts in a random order, and the Spearman of predictions with rates at that time. Of
    every STEP / `share` prompts (fewer of a short stream), the STEP nearest to one half are taken, by `known` predictions [N] or
    by a ridge on the rewards of the prompts taken before; the first ones are taken at random."""
    rng, step = np.random.default_rng(seed), max(1, min(STEP, len(rates) // 16))
    size = round(step / share)
    order, attempts = rng.permutation(len(rates)), rng.binomial(ROLLOUTS, rates) / ROLLOUTS
    predicted = np.full(len(rates), 0.5) if known is None else known
    taken, used, fit_at, penalty = list[int](), np.full(len(rates), np.nan), 0, None
    for start in range(0, len(order) - size + 1, size):
        window = order[start : start + size]
        if start:
            used[window] = predicted[window]
        taken += window[nearest(predicted[window], step, rng)].tolist()
        if kernel is not None and len(taken) >= GROWTH * fit_at:
            rows, fit_at = np.array(taken), len(taken)
            if penalty is None or fit_at <= TUNED:
                penalty = loo_penalty(kernel[np.ix_(rows, rows)], attempts[rows])
            predicted = fitted(kernel, rows, attempts[rows], penalty)
    told = np.isfinite(used)
    return np.array(taken), float(spearmanr(used[told], rates[told])[0]) if told.any() else float("nan")


def streams(kernel: np.ndarray | None, rates: Floats, share: float, seed: int, known: Floats | None = None) -> Choice:
    """`RUNS` passes; a group teaches with the chance that its true rate gives."""
    with threadpool_limits(1):
        found = [stream(kernel, rates, share, sub_seed(seed, f"stream-{run}"), known) for run in range(RUNS)]
    taken = np.zeros((RUNS, len(rates)), dtype=bool)
    for run, (rows, _) in enumerate(found):
        taken[run, rows] = True
    return whole_groups(taken, mixed(rates), float(np.mean([rho for _, rho in found])))


def simulated(rates: Floats, rho: float, seed: int) -> Floats:
    """[N] expected pass rate given a normal score that correlates with the rank of the true one (a Gaussian copula). What a score
    expects is learned from another draw of the scores: on its own draw even noise would seem to know something."""
    rng = np.random.default_rng(seed)
    own = norm.ppf((rankdata(rates + 1e-9 * rng.random(len(rates))) - 0.5) / len(rates))
    first, second = rho * own + np.sqrt(1 - rho**2) * rng.standard_normal((2, len(rates)))
    return IsotonicRegression(out_of_bounds="clip").fit(first, rates).predict(second)


def screened(choice: Choice, rates: Floats, rollouts: int) -> Choice:
    """The same prompts, each broken off after `rollouts` equal rewards: what still teaches, and what is generated."""
    teaches = np.tile(mixed(rates, rollouts), (RUNS, 1))
    return Choice(choice.taken, teaches, rollouts + (ROLLOUTS - rollouts) * teaches, choice.whole, choice.spearman)


# DSR-sub: a prompt comes again, epoch after epoch.


def history(kernel: np.ndarray | None, successes: NDArray[np.int64], own: int, share: float, seed: int) -> Choice:
    """The choice for one epoch of a record [N, epochs] of successes in `ROLLOUTS`, from `own` earlier rollouts of each prompt. A
    Beta prior whose mean is a ridge prediction out of fold from the other prompts' first epoch (without features: their mean),
    and whose weight has the largest likelihood; then the prompt's own counts. A part of an epoch is a random part of its
    rollouts."""
    epoch, everyone = max(1, -(-own // ROLLOUTS)), np.arange(len(successes))
    first, taught = successes[:, 0] / ROLLOUTS, (successes[:, epoch] % ROLLOUTS > 0).astype(float)
    taken, correlations = np.zeros((RUNS, len(first)), dtype=bool), []
    for run in range(RUNS):
        rng = np.random.default_rng(sub_seed(seed, f"history-{run}"))
        prior = np.empty(len(first))
        for known, held in KFold(5, shuffle=True, random_state=sub_seed(seed, f"folds-{run}")).split(everyone):
            if kernel is None:
                prior[held] = first[known].mean()
            else:
                penalty = loo_penalty(kernel[np.ix_(known, known)], first[known])
                prior[held] = fitted(kernel, known, first[known], penalty)[held]
        seen = successes[:, : own // ROLLOUTS].sum(axis=1)
        if own % ROLLOUTS:
            now = successes[:, own // ROLLOUTS]
            seen = seen + rng.hypergeometric(now, ROLLOUTS - now, own % ROLLOUTS)
        expected = posterior_mean(np.clip(prior, 0.02, 0.98), seen, own)
        taken[run, nearest(expected, round(share * len(first)), rng)] = True
        correlations.append(spearmanr(expected, successes[:, epoch])[0] if np.ptp(expected) > 0 else 0.0)
    return whole_groups(taken, taught, float(np.mean(correlations)))


def posterior_mean(prior: Floats, seen: np.ndarray, own: int) -> Floats:
    """[N] mean of Beta(w m, w (1 - m)) after `seen` successes in `own` rollouts; the weight w maximises their likelihood."""
    if not own:
        return prior

    def unlikely(log_weight: float) -> float:
        weight = np.exp(log_weight)
        return -float(betabinom.logpmf(seen, own, weight * prior, weight * (1 - prior)).sum())

    weight = np.exp(minimize_scalar(unlikely, bounds=(-3.0, 6.0), method="bounded").x)
    return (weight * prior + seen) / (weight + own)


def text_features(task: Task, blocks: Blocks, seed: int, profile: Profile) -> dict[str, Matrix]:
    """Name -> features [N, D] of the questions of task.test: the SAE's, those of its controls, and shuffled ones."""
    found: dict[str, Matrix] = {}
    for name in (MAIN + ALL, MAIN, UNTRAINED_SAE + ALL, DENSE):
        ids, values = blocks[name]
        x = values[rows_of([s.id for s in task.test], ids), : values.shape[1] // 2]
        found[name] = balanced(x, x, 2)[0] if sparse.issparse(x) else x
    texts, metadata = texts_of(task.test, False), metadata_features(task.test)[:, PROMPT_COLUMNS]
    found["tfidf"] = fit_tfidf(texts).transform(texts)
    label = pool_clusters(found[MAIN], profile.properties, seed).assign(found[MAIN]).label
    found["clusters"] = np.eye(label.max() + 1)[label]
    found["length"] = np.log1p(np.array([[len(text)] for text in texts], dtype=float))
    found[MAIN + "+metadata"] = np.concatenate([found[MAIN], metadata], axis=1)
    found[SHUFFLED] = found[MAIN + ALL][np.random.default_rng(seed).permutation(len(texts))]
    return found


Rows = dict[tuple[str, str, str, float, int], Choice]
"""record, form, features, share and own_rollouts of a row of the table -> its choice."""


def table_of(rows: Rows, samples: int, seed: int) -> pd.DataFrame:
    """Rows of replay.csv; 95 % intervals over prompts and runs. `lead` is what the form saves with all SAE latents, minus what
    this row saves, on the same streams."""
    nothing, found = (np.nan,) * 3, []
    for (record, form, features, share, own), choice in rows.items():
        whole, lead = form != "screening", nothing
        boot = functools.partial(bootstrap_runs, n=choice.taken.shape[1], runs=len(choice.taken), samples=samples, seed=seed)
        best = rows.get((record, form, MAIN + ALL, share, own), choice)
        if whole and best is not choice:
            lead = boot(lambda rows, run, a=best, b=choice: a.saved(rows, run) - b.saved(rows, run))
        silent = float(1 - choice.taught[choice.taken].mean()) if whole else np.nan
        found.append((record, form, features, share, own, choice.spearman, silent, *(boot(choice.saved) if whole else nothing),
                      *lead, *boot(choice.teaching), *choice.taken.shape[::-1]))  # fmt: skip
    return pd.DataFrame(found, columns=COLUMNS)


def stream_rows(features: Mapping[str, Matrix], rates: Floats, seed: int) -> Rows:
    """All forms on DeepScaleR: features alone, their simulation, true rates, screening, and features with screening."""
    kernels = {key: (kernel_of(x), None) for key, x in features.items()} | {TRUE: (None, rates)}
    jobs = [(key, share) for key in kernels for share in SHARES]
    done = Parallel(n_jobs=WORKERS)(delayed(streams)(kernels[key][0], rates, share, seed, kernels[key][1]) for key, share in jobs)
    chosen = dict(zip(jobs, done, strict=True))
    rows: Rows = {("deepscaler", "features", *job, 0): choice for job, choice in chosen.items()}
    for rho in CORRELATIONS:
        known = simulated(rates, rho, sub_seed(seed, f"copula-{rho}"))
        rows |= {("deepscaler", "simulated", f"rho {rho:g}", share, 0): streams(None, rates, share, seed, known)
                 for share in SHARES}  # fmt: skip
    whole = {(NOTHING, 1.0): whole_groups(np.ones((RUNS, len(rates)), dtype=bool), mixed(rates))}
    return rows | {("deepscaler", "screening", *job, k): screened(choice, rates, k)
                   for job, choice in (whole | chosen).items() for k in SCREENED}  # fmt: skip


def _everyone(task: Task, count: int | None = None) -> Task:
    samples, y = (*task.train, *task.test)[:count], np.concatenate([task.y_train, task.y_test])[:count]
    return replace(task, test=samples, y_test=y)


def replay_table(profile: Profile) -> pd.DataFrame:
    """replay.csv from the stores of the ladder; the stream has 6,000 prompts. Raises ArtifactError without `SAERL_DATA_DIR`."""
    groups, seed = real_groups(profile), sub_seed(profile.seed, "replay")
    task = _everyone(next(t for t in groups["deepmath"].tasks if t.target == "difficulty_by_pass_rate"), 6000)
    rates = -task.y_test
    rows = stream_rows(text_features(task, groups["deepmath"].blocks(profile), seed, profile), rates, seed)
    accuracy = {row["id"]: (row.get("meta") or {}).get("train_acc_history") for row in jsonl(data_file(*GROUPS["dsr"]))}
    task = _everyone(groups["dsr"].tasks[0])
    task = replace(task, test=tuple(s for s in task.test if accuracy.get(s.id)))  # a prompt without a record goes
    epochs = min(len(accuracy[s.id]) for s in task.test)
    successes = np.rint(ROLLOUTS * np.array([accuracy[s.id][:epochs] for s in task.test])).astype(np.int64)
    features = text_features(task, groups["dsr"].blocks(profile), seed, profile)
    priors = (MAIN + ALL, DENSE, "tfidf", "clusters", SHUFFLED)  # what is saved by own rollouts, without and with a prior
    kernels = {NOTHING: None, **{key: kernel_of(x) for key, x in features.items() if key in priors}}
    known = [own for own in OWN_ROLLOUTS if own <= ROLLOUTS * (epochs - 1)]
    jobs = [(key, own, share) for key in kernels for own in known for share in SHARES[:2]]
    done = Parallel(n_jobs=WORKERS)(delayed(history)(kernels[key], successes, own, share, seed) for key, own, share in jobs)
    rows |= {("dsr_sub", "history", key, share, own): choice for (key, own, share), choice in zip(jobs, done, strict=True)}
    return table_of(rows, profile.properties.bootstrap_samples, seed)


def replay(profile: Profile) -> pd.DataFrame:
    """Rows of replay.csv: computed where the real data lie (stage `replay`), else as they were published."""
    if not has_real_data(profile):
        return pd.read_csv(paths.PUBLISHED / "replay.csv")
    groups = real_groups(profile)
    inputs = tuple(groups[name].stage(profile) for name in ("deepmath", "dsr"))
    files = {name: file_sha256(data_file(name))[:16] for name in (*GROUPS["deepmath"], *GROUPS["dsr"])}
    config = {"properties": to_dict(profile.properties), "ladder": to_dict(profile.ladder), "data": files, "seed": profile.seed}
    stage = get_or_compute(profile, "replay", config, lambda _: {"replay": replay_table(profile)}, inputs)
    return pd.read_parquet(stage.path("replay.parquet"))
