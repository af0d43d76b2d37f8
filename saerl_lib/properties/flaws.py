"""Does a quality score find wrong or ill-posed samples? (ours: the paper's filter predicts the source and asks no further)

Every score is turned so that larger means more suspect, without a look at the labels: the source probe as 1 - s, DSIR as
the negative log weight, surprise and length as they are. An AUC below 0.5 is therefore a finding, not a sign to be
flipped. Probes of flaws are trained on labelled samples outside the pool: an upper reference, since real pools come
without such labels. Axes: N samples, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from saerl_lib.config import PropertyConfig, sub_seed
from saerl_lib.properties import Matrix, require_finite, require_rows
from saerl_lib.properties.dsir import log_importance_weights
from saerl_lib.properties.probes import mean_squared_row_norm, scaler_for, shuffled
from saerl_lib.properties.quality import PENALTY
from saerl_lib.properties.text import fit_tfidf
from saerl_lib.report.statistics import bootstrap_weights, dropped_share, rank_metrics

COLUMNS = ("dataset", "pool", "flaw", "score", "metric", "value", "ci_low", "ci_high", "n_flawed", "n_sound")
"""Columns of filter_flaws.csv."""
PENALTIES = (1e-4, 1e-3, 1e-2)
"""Grid of alpha for probes of flaws, whatever they read; one held-out fold chooses (ours)."""
ANY = "any"
"""Name of "a flaw of whatever kind" in the column `flaw`."""


@dataclass(frozen=True)
class FlawData:
    """N samples with known flaws."""

    z: np.ndarray
    """[N, D] features that the probe reads."""
    metadata: np.ndarray
    """[N, M] shallow features."""
    texts: tuple[str, ...]
    flaw: np.ndarray
    """[N] kind of flaw, '' when the sample is sound."""

    def __post_init__(self) -> None:
        require_rows(z=self.z, metadata=self.metadata, texts=self.texts, flaw=self.flaw)

    @property
    def flawed(self) -> np.ndarray:
        """Mask bool [N]."""
        return np.asarray(self.flaw) != ""

    def rows(self, index: np.ndarray) -> FlawData:
        """The samples at some positions."""
        return FlawData(self.z[index], self.metadata[index], tuple(self.texts[i] for i in index), self.flaw[index])


def sgd_scores(
    train_x: Matrix, train_y: np.ndarray, test_x: Matrix, seed: int, penalty: float = PENALTY, standardise: bool = True
) -> np.ndarray:
    """[N test] decision values of the paper's probe (logistic SGD, equation 6), larger for the class True.

    Dense features are standardised on the training rows unless `standardise` is False; sparse ones never are. Rows are
    divided by their root mean squared norm. Raises ValueError for non-finite values, unequal rows or a single class.
    """
    require_rows(train_x=train_x, train_y=train_y)
    require_finite("train_x", train_x)
    require_finite("test_x", test_x)
    train_y = np.asarray(train_y, dtype=bool)
    if train_y.all() or not train_y.any():
        raise ValueError("train_y holds a single class: the probe needs samples of both classes")
    train_x, test_x = train_x.astype(np.float64), test_x.astype(np.float64)
    if standardise:
        scaler = scaler_for(train_x).fit(train_x)
        train_x, test_x = scaler.transform(train_x), scaler.transform(test_x)
    norm = mean_squared_row_norm(train_x) ** 0.5
    classifier = SGDClassifier(loss="log_loss", alpha=penalty, average=True, random_state=seed)
    return classifier.fit(train_x / norm, train_y).decision_function(test_x / norm)


def tuned_scores(train_x: Matrix, train_y: np.ndarray, test_x: Matrix, seed: int) -> np.ndarray:
    """`sgd_scores` with the penalty of `PENALTIES` that ranks a held-out third best; ties towards the stronger penalty.

    With fewer than six samples of the rarer class there is nothing to choose by, and the strongest penalty is taken.
    """
    train_y, penalty = np.asarray(train_y, dtype=bool), PENALTIES[-1]
    if min(train_y.sum(), (~train_y).sum()) >= 6:
        kept, held_out = train_test_split(np.arange(len(train_y)), test_size=1 / 3, random_state=seed, stratify=train_y)

        def held_out_auc(alpha: float) -> float:
            scores = sgd_scores(train_x[kept], train_y[kept], train_x[held_out], seed, alpha)
            return float(roc_auc_score(train_y[held_out], scores))

        penalty = max(reversed(PENALTIES), key=held_out_auc)
    return sgd_scores(train_x, train_y, test_x, seed, penalty)


def common_scores(train: FlawData, test: FlawData, target_texts: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """score -> [N test] suspicion, from arrays and texts alone.

    `flaw_probe_*`: probes of flaws fitted on `train` (SAE features; metadata; TF-IDF; SAE features with shuffled labels).
    `dsir`: how little a text looks like `target_texts` against the test pool, as a sum and per n-gram. `length`: characters.
    """
    vectorizer = fit_tfidf(train.texts)
    words = [vectorizer.transform(data.texts) for data in (train, test)]
    noise = shuffled(train.flawed, sub_seed(seed, "shuffled flaws"))
    probes = {
        "flaw_probe_sae": (train.z, train.flawed, test.z),
        "flaw_probe_metadata": (train.metadata, train.flawed, test.metadata),
        "flaw_probe_tfidf": (words[0], train.flawed, words[1]),
        "flaw_probe_shuffled": (train.z, noise, test.z),
    }
    scores = {name: tuned_scores(*data, sub_seed(seed, name)) for name, data in probes.items()}
    scores["dsir"] = -log_importance_weights(test.texts, target_texts)
    scores["dsir_per_ngram"] = -log_importance_weights(test.texts, target_texts, per_ngram=True)
    scores["length"] = np.array([len(text) for text in test.texts], dtype=float)
    return scores


def flaw_table(
    scores: Mapping[str, np.ndarray],
    flaw: Sequence[str],
    pools: Mapping[str, np.ndarray],
    *,
    dataset: str,
    keep_share: float,
    config: PropertyConfig,
    seed: int,
) -> pd.DataFrame:
    """Rows of filter_flaws.csv for suspicion scores [N] by name and kinds of flaw [N], '' when sound.

    `pools` maps a name to a mask [N]. roc_auc and average_precision set one kind against the sound samples;
    dropped_share is the share of that kind among all of the pool that goes when the `keep_share` least suspect stay. The score
    `chance` states what a random order gives. Intervals resample samples of the pool, the same resamples for every score.
    Raises ValueError when a pool lacks flawed or sound samples.
    """
    kinds, rows = np.asarray(flaw, dtype=str), []
    for pool, mask in pools.items():
        require_rows(flaw=kinds, mask=mask)
        inside = kinds[np.asarray(mask, dtype=bool)]
        sound = inside == ""
        if sound.all() or not sound.any():
            raise ValueError(f"pool {pool!r} has {int(sum(~sound))} flawed and {int(sum(sound))} sound samples: it needs both")
        weights = bootstrap_weights(len(inside), config.bootstrap_samples, sub_seed(seed, f"flaws {pool}"))
        for kind in (ANY, *sorted(set(inside[~sound]))):
            positive = ~sound if kind == ANY else inside == kind
            compared = positive | sound
            label, counts = (dataset, pool, kind), (int(positive.sum()), int(sound.sum()))
            chance = {"roc_auc": 0.5, "average_precision": positive.sum() / compared.sum(), "dropped_share": 1 - keep_share}
            rows += [(*label, "chance", metric, value, np.nan, np.nan, *counts) for metric, value in chance.items()]
            for name, values in scores.items():
                values = np.asarray(values, dtype=float)[mask]
                found = rank_metrics(values[compared], positive[compared], weights[:, compared])
                found["dropped_share"] = dropped_share(values, positive, weights, keep_share)
                rows += [(*label, name, metric, e.value, e.low, e.high, *counts) for metric, e in found.items()]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def flaw_rows_from_features(
    z: np.ndarray,
    metadata: np.ndarray,
    texts: Sequence[str],
    valid: np.ndarray,
    split: Sequence[str],
    *,
    dataset: str,
    keep_share: float,
    config: PropertyConfig,
    seed: int,
    kinds: Sequence[str] | None = None,
    extra_scores: Mapping[str, np.ndarray] | None = None,
) -> pd.DataFrame:
    """Rows of filter_flaws.csv for real data, from plain arrays of N samples: z [N, D], metadata [N, M], texts, valid bool [N].

    `split` is 'train' or 'test' a sample; the pool `test` is scored by probes fitted on `train`, and DSIR takes the valid
    training texts as its target. `kinds` names the flaw of each invalid sample (ignored where valid; default 'invalid').
    `extra_scores` are further suspicion scores [N], say nats a token. Raises ValueError for unequal rows, another split
    name, or a split with a single class.
    """
    require_rows(z=z, metadata=metadata, texts=texts, valid=valid, split=split)
    split, valid = np.asarray(split, dtype=str), np.asarray(valid, dtype=bool)
    unknown = sorted(set(split) - {"train", "test"})
    if unknown:
        raise ValueError(f"split holds {unknown[0]!r}: use 'train' and 'test' only")
    kinds = np.full(len(valid), "invalid") if kinds is None else np.asarray(kinds, dtype=str)
    require_rows(valid=valid, kinds=kinds)
    data = FlawData(np.asarray(z), np.asarray(metadata), tuple(texts), np.where(valid, "", kinds))
    train, test = (data.rows(np.flatnonzero(split == name)) for name in ("train", "test"))
    sound_texts = [text for text, flawed in zip(train.texts, train.flawed, strict=True) if not flawed]
    scores = common_scores(train, test, sound_texts, seed)
    scores |= {name: np.asarray(values, dtype=float)[split == "test"] for name, values in (extra_scores or {}).items()}
    pools = {"test": np.ones(len(test.flaw), dtype=bool)}
    return flaw_table(scores, test.flaw, pools, dataset=dataset, keep_share=keep_share, config=config, seed=seed)
