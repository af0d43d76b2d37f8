"""Gates of the world: what it must meet to measure anything, stated before any SAERL arm was trained.

Text gates are read off texts and labels, policy gates off the exact likelihood of gold solutions under the base policy. Gates
that need training runs or the reader are measured by `python -m saerl_lib world --check` on reserved seeds and kept with their
provenance in `TRAINED_RECORD`. There is no gate on what a sorted order does: that is a result.

The world shows its pass rates more clearly than real mathematics does, so scores are blurred before they are planned: `blurred`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import bisect
from scipy.stats import norm, rankdata, spearmanr
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from saerl_lib import paths
from saerl_lib.artifacts import TRAINED_GATES, Stage, file_sha256, get_or_compute, read_json
from saerl_lib.config import WORLD_VERSION, Profile, content_hash, sub_seed
from saerl_lib.data.sample import Sample, load_split
from saerl_lib.encode.models import open_causal
from saerl_lib.properties.probes import TOKEN_PATTERN
from saerl_lib.train.arms import SHARP
from saerl_lib.train.policy import FOLDER, WORLD_POLICY, open_sampler, pass_rates, policy_folder
from saerl_lib.train.sampler import gold_probability


class Bounds(NamedTuple):
    """What a gate allows, ends included; None: no bound."""

    low: float | None = None
    high: float | None = None
    whole: bool = False
    """The whole 95 % interval must lie within, not the value alone."""


GUESS, TOKEN = "guess rate", "best single-token topic accuracy"
TFIDF, ETA = "TF-IDF topic accuracy", "eta squared of the label by topic"
BASE, MASTERED = "base pass rate, mean", "base pass rate, share above 0.9"
SEEN = "what features see: rho of base pass rate and prediction"
TRANSFER, FORGETTING = "transfer: gain on other topics / own gain", "forgetting: problems that lose > 0.2, middle to end"
LATE, STILL = "random order: gain in the last quarter", "random order: gain in the last quarter above 0"
POSITIVE, NEGATIVE = "positive control: nearest to one half now - random", "negative control: another shuffle - random"
DETECTABLE = "smallest detectable difference, 8 seeds, corrected"
GATES: dict[str, Bounds] = {
    GUESS: Bounds(high=0.01), TOKEN: Bounds(high=0.5), TFIDF: Bounds(high=0.95), ETA: Bounds(high=0.3),
    BASE: Bounds(0.15, 0.45), MASTERED: Bounds(high=0.1), SEEN: Bounds(0.35, 0.65), TRANSFER: Bounds(0.3, 1.0),
    FORGETTING: Bounds(high=0.02), LATE: Bounds(1.0), STILL: Bounds(0.0, whole=True), POSITIVE: Bounds(0.0, whole=True),
    NEGATIVE: Bounds(-1.5, 1.5, whole=True), DETECTABLE: Bounds(high=1.5),
}  # fmt: skip
"""References: DSR-sub and one-example RLVR (transfer, forgetting), MATH and ValiMath (eta squared), DeepScaleR with a 7B policy
(features, 0.45), the paper's gains of 3.0 and 1.4 points (detectable); differences are in points."""
POINTS = frozenset({LATE, STILL, POSITIVE, NEGATIVE, DETECTABLE})
"""Gates in points of exact accuracy."""
REFERENCE_SHARES = (0.3623, 0.0627, 0.0509, 0.0479, 0.0418, 0.0474, 0.049, 0.0535, 0.0899, 0.1946)
"""Shares per tenth of the pass rates in AdaRFT's union of DeepScaleR subsets (29,405 prompts, 128 attempts each)."""
TRAINED_RECORD = paths.ROOT / "saerl_lib" / "data" / TRAINED_GATES


class Measured(NamedTuple):
    """A measured gate."""

    value: float
    n: int
    ci_low: float = math.nan
    ci_high: float = math.nan
    note: str = "measured in this run"


def met(found: Measured, bounds: Bounds) -> bool:
    """Whether a gate is met; one on the whole interval is not met without an interval.

    >>> met(Measured(2.0, 8, 0.5, 3.5), Bounds(0.0, whole=True)), met(Measured(2.0, 1), Bounds(0.0, whole=True))
    (True, False)
    """
    ends = (found.ci_low, found.ci_high) if bounds.whole else (found.value, found.value)
    return (bounds.low is None or ends[0] >= bounds.low) and (bounds.high is None or ends[1] <= bounds.high)


def guess_rate(train: Sequence[Sample], test: Sequence[Sample]) -> float:
    """Share of test answers that equal the most frequent training answer of their topic."""
    answers = pd.Series([s.answer for s in train]).groupby([s.topic for s in train])
    best = answers.agg(lambda own: own.mode()[0])
    return float(np.mean([best.get(s.topic) == s.answer for s in test]))


def single_token_accuracy(train: Sequence[Sample], test: Sequence[Sample]) -> float:
    """Test accuracy of the word or mark, best in training, whose presence or absence picks the topic."""
    words = CountVectorizer(binary=True, token_pattern=r"[a-z]+|[^\sa-z0-9]")
    inside = words.fit_transform([s.prompt for s in train]).toarray()
    topics, own = np.unique([s.topic for s in train], return_inverse=True)
    present = inside.T @ np.eye(len(topics), dtype=int)[own]
    absent = np.bincount(own) - present
    best = (present.max(axis=1) + absent.max(axis=1)).argmax()
    there = words.transform([s.prompt for s in test])[:, [best]].toarray()[:, 0]
    picked = topics[np.where(there, present[best].argmax(), absent[best].argmax())]
    return float(np.mean(picked == [s.topic for s in test]))


def tfidf_accuracy(train: Sequence[Sample], test: Sequence[Sample]) -> float:
    """Test accuracy of the topic by a logistic regression on 1-2-grams of the prompt."""
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=TOKEN_PATTERN).fit([s.prompt for s in train])
    model = LogisticRegression(C=10.0, max_iter=1000).fit(words.transform([s.prompt for s in train]), [s.topic for s in train])
    return float(model.score(words.transform([s.prompt for s in test]), [s.topic for s in test]))


def eta_squared(samples: Sequence[Sample]) -> float:
    """Share of the label's variance between topics."""
    frame = pd.DataFrame({"topic": [s.topic for s in samples], "label": [s.difficulty for s in samples]})
    return float(frame.groupby("topic")["label"].transform("mean").var(ddof=0) / frame["label"].var(ddof=0))


def base_rates_stage(profile: Profile, world: Stage) -> Stage:
    """Pass rates of the base policy on the first target prompts of the pool (parents may hold planted wrong answers).

    Those of the shipped policy are exact, likelihoods of the gold solution at temperature 1: another way to the same answer is
    rare in its world. Other policies answer. Columns of pass_rates.parquet: sample_id, difficulty, pass_rate.
    """
    weights, train = policy_folder(profile.policy), profile.train
    wanted = {"prompts": profile.world.rated_prompts, "policy": file_sha256(weights / "model.safetensors")}
    if profile.policy != WORLD_POLICY:
        wanted |= {"answers": [train.max_completion_tokens, train.temperature, train.chat, train.answer_from, profile.seed]}

    def compute(folder: Path) -> dict[str, pd.DataFrame]:
        samples = [s for s in load_split(world, "pool") if s.source == "target"][: profile.world.rated_prompts]
        frame = pd.DataFrame({"sample_id": [s.id for s in samples], "difficulty": [s.difficulty for s in samples]})
        frame["pass_rate"] = (
            gold_probability(*open_causal(FOLDER), samples, 1.0) if profile.policy == WORLD_POLICY
            else pass_rates(open_sampler(weights, train), samples, train, sub_seed(profile.seed, "rated"))
        )  # fmt: skip
        return {"pass_rates": frame}

    return get_or_compute(profile, "policy_rates", wanted, compute, (world,))


def pass_rate_table(rates: pd.DataFrame) -> pd.DataFrame:
    """Rows of pass_rates.csv: the world's histogram beside a published one, which it need not follow."""
    counts, edges = np.histogram(rates["pass_rate"], bins=np.linspace(0, 1, 11))
    frame = pd.DataFrame({"bin_low": edges[:-1], "bin_high": edges[1:], "share_world": counts / len(rates)})
    return frame.assign(share_reference=REFERENCE_SHARES, n_world=len(rates), n_reference=29_405)


NOISE_DRAWS, WIDEST = 100, 100.0
"""Draws over which an expected correlation is averaged; largest standard deviation of the noise that is looked at."""


def noise_deviation(latent: NDArray[np.float64], failures: NDArray[np.float64], rho: float, seed: int) -> tuple[float, float]:
    """Standard deviation of normal noise on `latent` [n] that leaves a mean Spearman correlation of `rho` with `failures` [n],
    by bisection, and that mean over `NOISE_DRAWS` draws. 0 where the correlation is no larger without noise."""
    draws = np.random.default_rng(sub_seed(seed, "expected")).standard_normal((NOISE_DRAWS, len(latent)))
    aim = rankdata(failures) - (len(failures) + 1) / 2

    def expected(deviation: float) -> float:
        ranks = (latent + deviation * draws).argsort(axis=1).argsort(axis=1) - (len(latent) - 1) / 2
        return float((ranks @ aim / np.linalg.norm(ranks, axis=1)).mean() / np.linalg.norm(aim))

    found = bisect(lambda d: expected(d) - rho, 0.0, WIDEST, xtol=1e-3) if expected(0.0) > rho else 0.0
    return found, expected(found)


def blurred(scores: pd.DataFrame, rates: pd.DataFrame, rho: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of a pool [N] whose correlation with the base pass rates is `rho` in expectation, and a row an encoder on it (ours).

    The noise is a Gaussian copula's. A sample's place by (ranking, raw) becomes a normal quantile, normal noise is added, and the
    pairs (ranking, raw) are dealt anew in the order of the sums: the values stay, in label units, and only their holders change.
    Its deviation is found on the rated samples, of `rates` (sample_id, pass_rate), for each encoder by itself; a score that shows
    less is left as it is. The noise of a sample is the same for every encoder: it stands for what no text shows. Features
    (phi@NAME; of the SAE phi@sae) go to the new holder with the pair, so that they show no more of a pass rate than it does.
    Clusters, labels and what is asked of the policy are not touched. `scores` holds ranking and raw, of other encoders
    ranking@NAME and raw@NAME. Rows: encoder, n, rho (Spearman before), noise (deviation), expected, blurred (Spearman after).
    """
    ids, n = scores["sample_id"].to_numpy(dtype=str), len(scores)
    noise, out, rows = np.empty(n), scores.copy(), []
    noise[np.argsort(ids)] = np.random.default_rng(sub_seed(seed, "blur")).standard_normal(n)
    rated, failures = pd.Index(ids).get_indexer(rates["sample_id"]), 1 - rates["pass_rate"].to_numpy()
    for ranking in [name for name in scores if name.startswith("ranking")]:
        encoder = ranking.removeprefix("ranking").removeprefix("@") or "sae"
        pair = [ranking, ranking.replace("ranking", "raw")]
        order = np.lexsort((ids, *(scores[name].to_numpy() for name in reversed(pair))))
        latent = np.empty(n)
        latent[order] = norm.ppf((np.arange(n) + 0.5) / n)
        deviation, expected = noise_deviation(latent[rated], failures, rho, seed)
        holder = np.empty(n, dtype=np.int64)
        holder[np.argsort(latent + deviation * noise)] = order
        for name in (*pair, *({f"phi@{encoder}"} & set(scores))):
            out[name] = scores[name].to_numpy()[holder]
        before, after = (spearmanr(frame[ranking].to_numpy()[rated], failures)[0] for frame in (scores, out))
        rows.append((encoder, len(rated), before, deviation, expected, after))
    return out, pd.DataFrame(rows, columns=["encoder", "n", "rho", "noise", "expected", "blurred"])


def scores_stage(profile: Profile, world: Stage, difficulty: Stage, *others: Stage) -> Stage:
    """What plans are made of: scores.parquet of the stage `difficulty` with the columns of further encoders beside it, `blurred`
    as the profile says, and those of the SAEs unblurred as `SHARP`; blur.parquet. Without blur and others: `difficulty`."""
    rho = profile.score_correlation
    if rho is None and not others:
        return difficulty
    inputs = (difficulty, *others, *(() if rho is None else (base_rates_stage(profile, world),)))

    def compute(folder: Path) -> dict[str, pd.DataFrame]:
        table = pd.read_parquet(difficulty.path("scores.parquet"))
        for stage in others:
            table = table.merge(pd.read_parquet(stage.path("scores.parquet")), on="sample_id", validate="one_to_one")
        own, found = {}, {}
        for column in table:
            name, _, encoder = column.partition("@")
            if name in ("cluster", "ranking", "raw", "phi") and (encoder in ("", "sae") or encoder.startswith("draw")):
                own[f"{name}@{f'{encoder}_' * encoder.startswith('draw')}{SHARP}"] = table[column]
        if rho is not None:
            rates = pd.read_parquet(inputs[-1].path("pass_rates.parquet"))
            table, found["blur"] = blurred(table, rates, rho, profile.seed)
        return {"scores": table.assign(**own), **found}

    return get_or_compute(profile, "arm_scores" if others else "scores", {"rho": rho, "seed": profile.seed}, compute, inputs)


def settings_hash() -> str:
    """Hash of what the recorded gates belong to: the version of the world and the policy."""
    return content_hash([WORLD_VERSION, file_sha256(FOLDER / "model.safetensors")])


def gate_table(world: Stage, rates: Stage, trained: Mapping[str, Measured] | None = None) -> pd.DataFrame:
    """Rows of world_gates.csv, every gate once; one that was not measured is not met. `trained` None: the recorded ones. Gates of
    texts and labels are fitted on L and measured on the test split; guessing, a rare event, on the pool too."""
    labelled, test, pool = (load_split(world, name) for name in ("labelled", "test", "pool"))
    exact = pd.read_parquet(rates.path("pass_rates.parquet"))["pass_rate"]
    if trained is None:  # none before the first `world --check`, nor of another version of the world or another policy
        record = read_json(TRAINED_RECORD) or {}
        known = record["gates"] if record.get("settings") == settings_hash() else {}
        trained = {name: Measured(**{k: math.nan if v is None else v for k, v in one.items()}) for name, one in known.items()}
    found = {
        GUESS: Measured(guess_rate(labelled, [*test, *pool]), len(test) + len(pool)),
        TOKEN: Measured(single_token_accuracy(labelled, test), len(test)),
        TFIDF: Measured(tfidf_accuracy(labelled, test), len(test)),
        ETA: Measured(eta_squared([*labelled, *test]), len(labelled) + len(test)),
        BASE: Measured(exact.mean(), len(exact)),
        MASTERED: Measured((exact > 0.9).mean(), len(exact)),
        **trained,
    }
    rows = []
    for name, bounds in GATES.items():
        one = found.get(name, Measured(math.nan, 0, note="not measured"))
        unit = "points" if name in POINTS else ""
        rows.append((name, one.value, one.ci_low, one.ci_high, bounds.low, bounds.high, met(one, bounds), one.n, unit, one.note))
    return pd.DataFrame(rows, columns=["gate", "value", "ci_low", "ci_high", "low", "high", "met", "n", "unit", "note"])
