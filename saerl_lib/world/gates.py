"""Gates of the world: one table of measured values, allowed ranges and whether they are met.

Text gates are read off the texts, policy gates off the base attempts. Gates that need training runs are
measured by `python -m saerl_lib world --check` on reserved seeds and kept with their provenance in `TRAINED_RECORD`.

Gates of the world that its texts and labels alone decide: neither topic, difficulty nor source may be read off trivially.

Each function of a text gate returns one number; bounds lie in `TEXT_BOUNDS`.

Pass rates of the base policy on the pool, and the published histogram that they are held against.
"""

from __future__ import annotations

import gzip
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

TEXT_BOUNDS: dict[str, Bounds] = {
    "guess rate": (None, 0.01),
    "rho(difficulty, prompt length)": (None, 0.4),
    "rho(difficulty, solution length)": (None, 0.6),
    "best single-token leaf accuracy": (None, 0.5),
    "TF-IDF leaf accuracy": (0.4, 0.8),
    "TF-IDF leaf accuracy, signs as tokens": (0.4, 0.8),
    "TF-IDF AUC target vs parent": (0.7, 0.95),
}
"""Allowed ranges, fixed before any SAERL arm was trained."""


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


WORDS = r"(?u)\b\w\w+\b"
"""scikit-learn's default tokens: words and numbers of two characters or more."""
SIGNS = r"\w+|[^\w\s]"
"""Every word, number and sign: the stronger reader of bare notation, and that of the probe ladder."""


def _tfidf(texts: Sequence[str], pattern: str = WORDS) -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=(1, 2), token_pattern=pattern).fit(texts)


def tfidf_leaf_accuracy(train: Sequence[Sample], test: Sequence[Sample], pattern: str = WORDS) -> float:
    """Accuracy of a logistic regression on 1-2-grams of the prompt; `pattern` says what a token is."""
    vectors = _tfidf([s.prompt for s in train], pattern)
    model = LogisticRegression(C=10.0, max_iter=1000).fit(vectors.transform([s.prompt for s in train]), [s.topic for s in train])
    return float(model.score(vectors.transform([s.prompt for s in test]), [s.topic for s in test]))


def tfidf_source_auc(train: Sequence[Sample], test: Sequence[Sample]) -> float:
    """ROC-AUC of target against parent from 1-2-grams of the prompt."""
    vectors = _tfidf([s.prompt for s in train])
    model = LogisticRegression(C=1.0, max_iter=1000)
    model.fit(vectors.transform([s.prompt for s in train]), [s.source == "target" for s in train])
    scores = model.decision_function(vectors.transform([s.prompt for s in test]))
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


REFERENCE_SHARES = (0.3623, 0.0627, 0.0509, 0.0479, 0.0418, 0.0474, 0.049, 0.0535, 0.0899, 0.1946)
"""Shares per tenth of the pass rates in AdaRFT's union of DeepScaleR subsets (29,405 prompts, 128 attempts each)."""
REFERENCE_N = 29_405


def reference_shares(path: Path) -> tuple[float, ...]:
    """`REFERENCE_SHARES` recomputed from `deepscaler_pass_rate.jsonl.gz`."""
    with gzip.open(path, "rt", encoding="utf-8") as handle:
        frame = pd.read_json(handle, lines=True, dtype={"id": str})
    return tuple(round(float(v), 4) for v in histogram(frame["pass_rate"].to_numpy()))


def histogram(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares per tenth of [0, 1]; the last tenth is closed on the right."""
    return np.histogram(rates, bins=np.linspace(0, 1, 11))[0] / len(rates)


def rated_prompts(pool: Sequence[Sample], count: int) -> list[Sample]:
    """The first `count` target-source prompts of the pool, in pool order; parents may hold planted wrong answers."""
    return [s for s in pool if s.source == "target"][:count]


def base_rates_stage(profile: Profile, world: Stage) -> Stage:
    """Attempts of the base policy on pool prompts: pass_rates.parquet with sample_id, domain, difficulty, pass_rate, attempts."""
    config = profile.world
    wanted = {
        "prompts": config.rated_prompts,
        "attempts": config.rated_attempts,
        "train": to_dict(profile.train),
        "seed": profile.seed,
    }

    def compute(folder: Path) -> None:
        torch.set_num_threads(1)  # these small products lose time on more, and the samples would depend on the machine
        samples = rated_prompts(load_split(world, "pool"), config.rated_prompts)
        model, tokenizer = load_policy()
        with tqdm(total=len(samples) * config.rated_attempts, desc="base attempts", file=sys.stdout, mininterval=10) as bar:
            marks = correct_attempts(
                model,
                tokenizer,
                samples,
                config.rated_attempts,
                profile.train.max_completion_tokens,
                profile.train.temperature,
                sub_seed(profile.seed, "base-rates"),
                bar.update,
            )
        frame = pd.DataFrame(
            {
                "sample_id": [s.id for s in samples],
                "domain": [s.topic.split(" -> ")[0] for s in samples],
                "difficulty": [s.difficulty for s in samples],
                "pass_rate": marks.mean(axis=1),
                "attempts": config.rated_attempts,
            }
        )
        frame.to_parquet(folder / "pass_rates.parquet", index=False)

    return get_or_compute(profile, "policy_rates", wanted, compute, (world,))


def pass_rate_table(rates: pd.DataFrame) -> pd.DataFrame:
    """Rows of pass_rates.csv: the world's histogram beside the published one."""
    edges = np.linspace(0, 1, 11)
    return pd.DataFrame(
        {
            "bin_low": edges[:-1],
            "bin_high": edges[1:],
            "share_world": histogram(rates["pass_rate"].to_numpy()),
            "share_reference": REFERENCE_SHARES,
            "n_world": len(rates),
            "n_reference": REFERENCE_N,
        }
    )


TRAINED_RECORD = paths.ROOT / "saerl_lib" / "data" / TRAINED_GATES
POLICY_BOUNDS: dict[str, Bounds] = {
    "total variation from published pass rates": (None, 0.10),
    "rho(difficulty, pass rate)": (-0.7, -0.4),
}
TRAINED_BOUNDS: dict[str, Bounds] = {
    "transfer: other domains' gain / own gain": (None, 0.5),
    "grpo: gain in the last quarter, points": (0.5, None),
    "sensitivity: order effect / minimum detectable effect": (1.0, None),
    "sensitivity of speed: order effect / minimum detectable effect": (1.0, None),
}
"""Ranges fixed before any SAERL arm was trained."""


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


USED = (
    "rollouts_per_prompt", "learning_rate", "temperature", "max_completion_tokens", "checkpoint_every_steps", "eval_every_steps",
    "eval_samples_small", "eval_samples_full",
)  # fmt: skip
"""Fields of TrainConfig that reserved runs depend on: they are GRPO by the packed engine, on seeds of their own."""


def trained_settings() -> str:
    """Hash of what the recorded gates depend on: world version, mixture and the laptop profile's training."""
    laptop = get_profile("laptop")
    train = {name: getattr(laptop.train, name) for name in USED}
    batch = laptop.plan.prompts_per_step  # all that reserved orders take of the plan's settings
    parts = [WORLD_VERSION, file_sha256(MIXTURE_PATH), train, batch, laptop.pool_samples, to_dict(laptop.world)]
    return content_hash(parts)


def gate_row(name: str, value: float, bounds: Bounds, n: int, note: str) -> dict[str, Any]:
    """One row of world_gates.csv."""
    return {
        "gate": name,
        "value": value,
        "low": bounds[0],
        "high": bounds[1],
        "met": met(value, bounds),
        "n": n,
        "unit": "",
        "note": note,
    }


def gate_table(profile: Profile, world: Stage, rates: Stage) -> pd.DataFrame:
    """Rows of world_gates.csv."""
    splits = (load_split(world, name) for name in ("labelled", "test", "filter_negatives", "pool"))
    measured = {**text_gates(*splits), **policy_gates(pd.read_parquet(rates.path("pass_rates.parquet")))}
    bounds = {**TEXT_BOUNDS, **POLICY_BOUNDS}
    rows = [gate_row(name, value, bounds[name], n, "measured in this run") for name, (value, n) in measured.items()]
    for name, record in trained_gates().items():
        rows.append(gate_row(name, record["value"], TRAINED_BOUNDS[name], record["n"], record["note"]))
    return pd.DataFrame(rows)
