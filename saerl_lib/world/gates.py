"""Gates of the world: one table of measured values, allowed ranges and whether they are met.

Text gates are read off texts and labels: neither topic, difficulty nor source may be read trivially. Policy gates are read off
the base attempts, beside a published histogram of pass rates. Gates that need training runs are measured by `python -m saerl_lib
world --check` on reserved seeds and kept with their provenance in `TRAINED_RECORD`.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from saerl_lib import paths
from saerl_lib.artifacts import TRAINED_GATES, Stage, file_sha256, get_or_compute
from saerl_lib.config import WORLD_VERSION, Profile, content_hash, get_profile, sub_seed, to_dict
from saerl_lib.data.sample import Sample, load_split
from saerl_lib.train.policy import load_policy
from saerl_lib.train.sampler import correct_attempts
from saerl_lib.world.sources import MIXTURE_PATH

Bounds = tuple[float | None, float | None]
BOUNDS: dict[str, Bounds] = {
    "guess rate": (None, 0.01),
    "rho(difficulty, prompt length)": (None, 0.4),
    "rho(difficulty, solution length)": (None, 0.6),
    "best single-token leaf accuracy": (None, 0.5),
    "TF-IDF leaf accuracy": (0.4, 0.8),
    "TF-IDF leaf accuracy, signs as tokens": (0.4, 0.8),
    "TF-IDF AUC target vs parent": (0.7, 0.95),
    "total variation from published pass rates": (None, 0.10),
    "rho(difficulty, pass rate)": (-0.7, -0.4),
    "transfer: other domains' gain / own gain": (None, 0.5),
    "grpo: gain in the last quarter, points": (0.5, None),
    "sensitivity: order effect / minimum detectable effect": (1.0, None),
    "sensitivity of speed: order effect / minimum detectable effect": (1.0, None),
}
"""Allowed ranges, fixed before any SAERL arm was trained; the last four are of training runs."""
WORDS = r"(?u)\b\w\w+\b"
"""scikit-learn's default tokens: words and numbers of two characters or more."""
SIGNS = r"\w+|[^\w\s]"
"""Every word, number and sign: the stronger reader of bare notation, and that of the probe ladder."""
REFERENCE_SHARES = (0.3623, 0.0627, 0.0509, 0.0479, 0.0418, 0.0474, 0.049, 0.0535, 0.0899, 0.1946)
"""Shares per tenth of the pass rates in AdaRFT's union of DeepScaleR subsets (29,405 prompts, 128 attempts each)."""
REFERENCE_N = 29_405
TRAINED_RECORD = paths.ROOT / "saerl_lib" / "data" / TRAINED_GATES
USED = (
    "rollouts_per_prompt", "learning_rate", "temperature", "max_completion_tokens", "checkpoint_every_steps", "eval_every_steps",
    "eval_samples_small", "eval_samples_full",
)  # fmt: skip
"""Fields of TrainConfig that reserved runs depend on: they are GRPO by the packed engine, on seeds of their own."""


def tokens(text: str) -> set[str]:
    """Words and marks of a text, without its numbers."""
    return set(re.findall(r"[a-z]+|[^\sa-z0-9]", text.lower()))


def guess_rate(train: Sequence[Sample], test: Sequence[Sample]) -> float:
    """Share of test answers that equal the most frequent training answer of their leaf."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in train:
        answers[sample.topic][sample.answer] += 1
    best = {topic: min(c, key=lambda a: (-c[a], a)) for topic, c in answers.items()}
    return float(np.mean([best.get(s.topic) == s.answer for s in test]))


def single_token_accuracy(train: Sequence[Sample], test: Sequence[Sample]) -> float:
    """Test accuracy of the token, best in training, whose presence or absence picks the leaf."""
    bags = [tokens(s.prompt) for s in train]
    totals = Counter(s.topic for s in train)
    inside: dict[str, Counter[str]] = defaultdict(Counter)
    for bag, sample in zip(bags, train, strict=True):
        for token in bag:
            inside[token][sample.topic] += 1

    def rule(token: str) -> tuple[str, str, int]:
        absent = totals - inside[token]
        with_it, without = (max(sorted(c), key=lambda t: c[t], default="") for c in (inside[token], absent))
        return with_it, without, inside[token][with_it] + absent[without]

    best = max(sorted(inside), key=lambda token: rule(token)[2])
    with_it, without, _ = rule(best)
    return float(np.mean([(with_it if best in tokens(s.prompt) else without) == s.topic for s in test]))


def _tfidf_model(
    train: Sequence[Sample], labels: Sequence[Any], penalty: float, pattern: str = WORDS
) -> tuple[TfidfVectorizer, LogisticRegression]:
    """1-2-grams of the prompt and a logistic regression on them; `pattern` says what a token is."""
    texts = [s.prompt for s in train]
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=pattern).fit(texts)
    return words, LogisticRegression(C=penalty, max_iter=1000).fit(words.transform(texts), labels)


def tfidf_leaf_accuracy(train: Sequence[Sample], test: Sequence[Sample], pattern: str = WORDS) -> float:
    """Test accuracy of the leaf topic from 1-2-grams of the prompt."""
    words, model = _tfidf_model(train, [s.topic for s in train], 10.0, pattern)
    return float(model.score(words.transform([s.prompt for s in test]), [s.topic for s in test]))


def tfidf_source_auc(train: Sequence[Sample], test: Sequence[Sample]) -> float:
    """ROC-AUC of target against parent from 1-2-grams of the prompt."""
    words, model = _tfidf_model(train, [s.source == "target" for s in train], 1.0)
    scores = model.decision_function(words.transform([s.prompt for s in test]))
    return float(roc_auc_score([s.source == "target" for s in test], scores))


def text_gates(
    labelled: Sequence[Sample], test: Sequence[Sample], negatives: Sequence[Sample], pool: Sequence[Sample]
) -> dict[str, tuple[float, int]]:
    """gate -> (value, n), fitted on `labelled` (and `negatives`).

    Measured on `test`; the source on `pool`; guessing, a rare event, on both.
    """
    difficulty = [s.difficulty for s in test]
    n = len(test)
    return {
        "guess rate": (guess_rate(labelled, [*test, *pool]), n + len(pool)),
        "rho(difficulty, prompt length)": (float(spearmanr(difficulty, [len(s.prompt) for s in test])[0]), n),
        "rho(difficulty, solution length)": (float(spearmanr(difficulty, [len(s.solution) for s in test])[0]), n),
        "best single-token leaf accuracy": (single_token_accuracy(labelled, test), n),
        "TF-IDF leaf accuracy": (tfidf_leaf_accuracy(labelled, test), n),
        "TF-IDF leaf accuracy, signs as tokens": (tfidf_leaf_accuracy(labelled, test, SIGNS), n),
        "TF-IDF AUC target vs parent": (tfidf_source_auc([*labelled, *negatives], pool), len(pool)),
    }


def met(value: float, bounds: Bounds) -> bool:
    """Whether a value lies inside its bounds, ends included."""
    low, high = bounds
    return (low is None or value >= low) and (high is None or value <= high)


def histogram(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares per tenth of [0, 1]; the last tenth is closed on the right."""
    return np.histogram(rates, bins=np.linspace(0, 1, 11))[0] / len(rates)


def base_rates_stage(profile: Profile, world: Stage) -> Stage:
    """Attempts of the base policy on the first target prompts of the pool (parents may hold planted wrong answers).

    pass_rates.parquet: sample_id, domain, difficulty, pass_rate, attempts.
    """
    config, train = profile.world, profile.train
    attempts = config.rated_attempts
    wanted = {"prompts": config.rated_prompts, "attempts": attempts, "train": to_dict(train), "seed": profile.seed}

    def compute(folder: Path) -> None:
        torch.set_num_threads(1)  # these small products lose time on more, and the samples would depend on the machine
        samples = [s for s in load_split(world, "pool") if s.source == "target"][: config.rated_prompts]
        with tqdm(total=len(samples) * attempts, desc="base attempts", file=sys.stdout, mininterval=10) as bar:
            marks = correct_attempts(
                *load_policy(), samples, attempts, train.max_completion_tokens, train.temperature,
                sub_seed(profile.seed, "base-rates"), bar.update,
            )  # fmt: skip
        frame = pd.DataFrame({"sample_id": [s.id for s in samples], "domain": [s.topic.split(" -> ")[0] for s in samples],
                              "difficulty": [s.difficulty for s in samples]})  # fmt: skip
        frame = frame.assign(pass_rate=marks.mean(axis=1), attempts=attempts)
        frame.to_parquet(folder / "pass_rates.parquet", index=False)

    return get_or_compute(profile, "policy_rates", wanted, compute, (world,))


def pass_rate_table(rates: pd.DataFrame) -> pd.DataFrame:
    """Rows of pass_rates.csv: the world's histogram beside the published one."""
    edges = np.linspace(0, 1, 11)
    frame = pd.DataFrame({"bin_low": edges[:-1], "bin_high": edges[1:], "share_world": histogram(rates["pass_rate"].to_numpy())})
    return frame.assign(share_reference=REFERENCE_SHARES, n_world=len(rates), n_reference=REFERENCE_N)


def policy_gates(rates: pd.DataFrame) -> dict[str, tuple[float, int]]:
    """gate -> (value, n) from the base attempts."""
    distance = 0.5 * abs(histogram(rates["pass_rate"].to_numpy()) - pd.Series(REFERENCE_SHARES)).sum()
    return {
        "total variation from published pass rates": (float(distance), len(rates)),
        "rho(difficulty, pass rate)": (float(spearmanr(rates["difficulty"], rates["pass_rate"])[0]), len(rates)),
    }


def trained_gates() -> dict[str, dict[str, Any]]:
    """The recorded gates of training runs: gate -> value, n and note; empty before the first `world --check`.

    A record of another version of the world or of other training settings is not used: its gates count as not met.
    """
    if not TRAINED_RECORD.exists():
        return {}
    record = json.loads(TRAINED_RECORD.read_text(encoding="utf-8"))
    return record["gates"] if record["settings"] == trained_settings() else {}


def trained_settings() -> str:
    """Hash of what the recorded gates depend on: world version, mixture and the laptop profile's training."""
    laptop = get_profile("laptop")
    train = {name: getattr(laptop.train, name) for name in USED}
    batch = laptop.plan.prompts_per_step  # all that reserved orders take of the plan's settings
    parts = [WORLD_VERSION, file_sha256(MIXTURE_PATH), train, batch, laptop.pool_samples, to_dict(laptop.world)]
    return content_hash(parts)


def gate_table(world: Stage, rates: Stage) -> pd.DataFrame:
    """Rows of world_gates.csv."""
    splits = (load_split(world, name) for name in ("labelled", "test", "filter_negatives", "pool"))
    measured = text_gates(*splits) | policy_gates(pd.read_parquet(rates.path("pass_rates.parquet")))
    rows = [(name, value, n, "measured in this run") for name, (value, n) in measured.items()]
    rows += [(name, record["value"], record["n"], record["note"]) for name, record in trained_gates().items()]
    table = [(name, value, *BOUNDS[name], met(value, BOUNDS[name]), n, "", note) for name, value, n, note in rows]
    return pd.DataFrame(table, columns=["gate", "value", "low", "high", "met", "n", "unit", "note"])
