"""What clusters hold, which features tell them apart, and where the strongest latents fire (paper, 5.4, Tables 10-12, D).

A cluster's label is made of its most frequent leaf topics, without a language model. LightGBM predicts the cluster from phi
(section 5.4); the total gain of its splits is summed by feature group: it ranks features, it is no accuracy. How well a latent
stands for a topic is its FRC (ours, after LinguaLens, arXiv 2502.20344), a correlation over the samples of a pool:

    necessity = P(latent active | topic)    sufficiency = P(topic | latent active)    FRC = their harmonic mean

A latent is active in a sample when it fires on a token of the span of its block. Columns of phi are named as in the paper:
`sol_mean/50831`. Axes: N samples, D columns, J latents, C labels.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightgbm
import numpy as np
import pandas as pd
import torch
from joblib import Parallel, delayed
from scipy import stats

from saerl_lib.artifacts import Stage, get_or_compute
from saerl_lib.config import Profile, PropertyConfig, sub_seed, to_dict
from saerl_lib.data.sample import Sample, load_split
from saerl_lib.encode.models import open_reader, token_batches
from saerl_lib.encode.pool import BLOCKS, Encoder, batch_latents
from saerl_lib.encode.stages import retained_latents
from saerl_lib.encode.store import FEATURES, FeatureTable, load_split_features
from saerl_lib.properties.clusters import Assignment
from saerl_lib.properties.probes import WORKERS
from saerl_lib.properties.scorer import side_words
from saerl_lib.report.statistics import percentile_interval

METADATA = "metadata"
GROUPS = (*(block.replace("solution", "sol") for block in BLOCKS), METADATA)
"""Feature groups in the order of phi = [z ; m]."""


def feature_names(latents: Sequence[int] | np.ndarray, metadata: Sequence[str] = FEATURES) -> tuple[str, ...]:
    """Column names of phi [4 S + m] for retained `latents` [S] and the metadata columns; pass `metadata=()` for z alone.

    >>> feature_names([7, 40], ["words"])[3:]
    ('prompt_max/40', 'sol_mean/7', 'sol_mean/40', 'sol_max/7', 'sol_max/40', 'metadata/words')
    """
    pooled = [f"{block}/{int(latent)}" for block in GROUPS[:-1] for latent in latents]
    return (*pooled, *(f"{METADATA}/{name}" for name in metadata))


def is_latent(name: str) -> bool:
    """Whether a column pools a latent, so that its tokens can be shown."""
    return not name.startswith(METADATA)


# Clusters.

TOP_TOPICS, REPRESENTATIVES, TOP_LATENTS = 3, 3, 5
"""Named topics, samples nearest to the centroid and latents a cluster (not stated in the paper; ours)."""
LABEL_SHARE, MIXED_SHARE = 0.1, 0.25
"""A topic joins the label from this share of its cluster on, the first always; below the second the label says "mixed" (ours)."""


def ranked_topics(topics: np.ndarray) -> list[tuple[str, float]]:
    """(topic, share) of the non-empty topics [N], most frequent first, by name among equals; shares of the labelled ones.

    >>> ranked_topics(np.array(["b", "a", "", "a"]))
    [('a', 0.6666666666666666), ('b', 0.3333333333333333)]
    """
    names, counts = np.unique(topics[topics != ""], return_counts=True)
    order = np.lexsort((names, -counts))
    return [(str(names[i]), float(counts[i] / counts.sum())) for i in order]


def cluster_label(ranked: Sequence[tuple[str, float]]) -> str:
    """A cluster's label: the leaves of its top topics with a share of at least `LABEL_SHARE`, else the first leaf alone.

    >>> cluster_label([("Algebra -> Linear -> Two steps", 0.5), ("Numbers -> Primes", 0.3), ("Numbers -> Powers", 0.05)])
    'Two steps, Primes'
    >>> cluster_label([("Algebra -> Linear", 0.15), ("Numbers -> Primes", 0.05)])
    'mixed: Linear'
    """
    if not ranked:
        return "unlabelled"
    named = [topic for place, (topic, share) in enumerate(ranked[:TOP_TOPICS]) if place == 0 or share >= LABEL_SHARE]
    return ("mixed: " if ranked[0][1] < MIXED_SHARE else "") + ", ".join(topic.split(" -> ")[-1] for topic in named)


def standardised_shift(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Mean of `inside` [N] minus mean of the rest, in deviations of all rows of values [N, D]; 0 if constant or without a rest.

    >>> standardised_shift(np.array([[3.0, 1.0], [1.0, 1.0]]), np.array([True, False])).tolist()
    [2.0, 0.0]
    """
    if inside.all() or not inside.any():
        return np.zeros(values.shape[1])
    spread = values.std(axis=0)
    shift = values[inside].mean(axis=0) - values[~inside].mean(axis=0)
    return np.divide(shift, spread, out=np.zeros_like(shift), where=spread > 1e-12)


def pool_facts(samples: Sequence[Sample], metadata: np.ndarray) -> pd.DataFrame:
    """What is known of N samples beside their features: sample_id, topic ('' for none), difficulty (NaN for none), prompt_words,
    solution_words."""
    rows = [(sample.id, sample.topic, sample.difficulty) for sample in samples]
    found = pd.DataFrame(rows, columns=["sample_id", "topic", "difficulty"]).astype({"difficulty": float})
    return found.assign(**side_words(metadata))


def cluster_audit_table(phi: np.ndarray, names: Sequence[str], assigned: Assignment, facts: pd.DataFrame) -> pd.DataFrame:
    """Rows of `cluster_audit.csv`, one a cluster that holds a sample; phi is [N, D] with column names [D], facts of `pool_facts`.
    Quartiles are of the finite difficulty labels, NaN without one; entropy in bits, 0 without topics; lengths in words.
    `representatives` are the ids nearest to the centroid, `top_latents` the pooled latents whose mean lies most deviations above
    that of the other clusters. Both are joined by '; '."""
    latents = [name for name in names if is_latent(name)]
    values = np.asarray(phi, dtype=np.float64)[:, [is_latent(name) for name in names]]
    rows = []
    for cluster, part in facts.assign(distance=assigned.distance).groupby(assigned.label):
        ranked = ranked_topics(part["topic"].to_numpy(dtype=str))
        labels = part["difficulty"].dropna().to_numpy(dtype=float)
        quartiles = np.percentile(labels, [25, 50, 75]) if len(labels) else [np.nan] * 3
        shift = standardised_shift(values, assigned.label == cluster)
        top = [i for i in np.argsort(-shift, kind="stable")[:TOP_LATENTS] if shift[i] > 0]
        rows.append({
            "cluster": int(cluster), "n": len(part), "label": cluster_label(ranked),
            "top_topics": "; ".join(f"{topic} ({share:.0%})" for topic, share in ranked[:TOP_TOPICS]),
            "topic_entropy_bits": float(stats.entropy([share for _, share in ranked], base=2)) if ranked else 0.0,
            "difficulty_mean": float(labels.mean()) if len(labels) else np.nan,
            **dict(zip(("difficulty_q25", "difficulty_median", "difficulty_q75"), map(float, quartiles), strict=True)),
            "n_difficulty": len(labels),
            **{f"{side}_words_mean": float(part[f"{side}_words"].to_numpy().mean()) for side in ("prompt", "solution")},
            "representatives": "; ".join(part.sort_values(["distance", "sample_id"])["sample_id"][:REPRESENTATIVES]),
            "top_latents": "; ".join(f"{latents[i]} (+{shift[i]:.1f})" for i in top),
        })  # fmt: skip
    return pd.DataFrame(rows)


# Features.

ROUNDS, LEAVES, BINS, LEARNING_RATE, MIN_LEAF_SAMPLES = 30, 15, 63, 0.1, 20
"""Boosting rounds, leaves a tree, histogram bins, shrinkage, samples of a leaf but in a small set (not stated; ours)."""
RESAMPLES, SHUFFLES = 8, 20
"""Bootstrap resamples of a group's share; shuffles of the labels behind the control value of FRC (ours)."""
TOP_FEATURES = (20, 100)
"""How many of the strongest features the paper counts by group."""
PAPER_GROUPS = {"sol_mean": (10, 36), "prompt_max": (5, 26), "prompt_mean": (2, 24), "sol_max": (2, 11), "metadata": (1, 3)}
"""group -> features among the top 20 and the top 100 by gain in the paper (section 5.4, Table 11)."""
SHOWN_LATENTS, EXAMPLES = 12, 3
"""Latents of `top_latents.csv`, and the highest-activating samples of each that are shown (ours)."""
FRC_COLUMNS = ("topic", "necessity", "sufficiency", "base_rate", "lift", "frc", "ci_low", "ci_high", "control", "n", "n_active",
               "n_topic")  # fmt: skip


def feature_gain(phi: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Total gain of each column of phi [N, D] in trees that predict labels [N], float [D], at least 0; repeats for a seed. All
    zero when the labels hold a single class, since nothing is to be told apart; two classes are a valid case."""
    classes, codes, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    if len(classes) < 2:
        return np.zeros(phi.shape[1])
    settings = {
        "objective": "multiclass", "num_class": len(classes), "num_leaves": LEAVES, "learning_rate": LEARNING_RATE,
        "max_bin": BINS, "min_data_in_leaf": int(max(1, min(MIN_LEAF_SAMPLES, np.median(counts) // 2))), "seed": seed,
        "deterministic": True, "force_row_wise": True, "num_threads": 1, "verbosity": -1,
    }  # fmt: skip
    data = lightgbm.Dataset(np.asarray(phi, dtype=np.float64), codes, params=settings)
    return np.asarray(lightgbm.train(settings, data, ROUNDS).feature_importance("gain"), dtype=np.float64)


def resampled_gains(phi: np.ndarray, labels: np.ndarray, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Gains [R, D] of trees on bootstrap resamples of the N samples."""
    rng, n = np.random.default_rng(seed), len(labels)
    draws = [rng.integers(0, n, n) for _ in range(resamples)]
    gains = (delayed(feature_gain)(phi[rows], np.asarray(labels)[rows], seed) for rows in draws)
    return np.stack(Parallel(n_jobs=WORKERS, prefer="threads")(gains))


def group_shares(gains: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Share of the total gain by group of `GROUPS`, [..., 5], for gains [..., D]; NaN where nothing was gained.

    >>> group_shares(np.array([3.0, 0.0, 1.0]), ["sol_mean/1", "sol_max/1", "metadata/words"]).tolist()
    [0.0, 0.0, 0.75, 0.0, 0.25]
    """
    of = np.array([GROUPS.index(name.split("/")[0]) for name in names])
    sums = np.stack([gains[..., of == g].sum(axis=-1) for g in range(len(GROUPS))], axis=-1)
    total = sums.sum(axis=-1, keepdims=True)
    return np.divide(sums, total, out=np.full(sums.shape, np.nan), where=total > 0)


def feature_groups_table(gain: np.ndarray, resampled: np.ndarray, names: Sequence[str], n: int) -> pd.DataFrame:
    """Rows of `feature_groups.csv`: each group's share of the gain with an interval, and how many of the strongest are its own.
    The interval is gain_share +- t * bootstrap deviation over the R resamples (R - 1 degrees of freedom), cut to [0, 1]: with so
    few resamples percentiles would be too narrow. Empty when nothing was gained."""
    shares, usable = group_shares(gain, names), group_shares(resampled, names)
    usable = usable[np.isfinite(usable).all(axis=1)]
    half = np.full(len(GROUPS), np.nan)
    if len(usable) > 1:
        half = stats.t.ppf(0.975, len(usable) - 1) * usable.std(axis=0, ddof=1)
    groups, order = np.array([name.split("/")[0] for name in names]), np.argsort(-gain, kind="stable")
    strongest = groups[order[gain[order] > 0]]
    table = pd.DataFrame({"group": GROUPS, "n_features": [int((groups == g).sum()) for g in GROUPS], "gain_share": shares,
                          "ci_low": np.clip(shares - half, 0, 1), "ci_high": np.clip(shares + half, 0, 1)})  # fmt: skip
    for k in TOP_FEATURES:
        table[f"top_{k}"] = [int((strongest[:k] == g).sum()) for g in GROUPS]
    for place, k in enumerate(TOP_FEATURES):
        table[f"paper_top_{k}"] = [PAPER_GROUPS[g][place] for g in GROUPS]
    return table.assign(n=n)


def frc_matrix(active: np.ndarray, one_hot: np.ndarray) -> np.ndarray:
    """FRC of every latent for every label, [J, C]; active is bool [N, J], one_hot bool [N, C]. The harmonic mean of both /
    n_label and both / n_active is 2 both / (n_active + n_label)."""
    both = active.T.astype(np.float64) @ one_hot.astype(np.float64)
    marginals = active.sum(axis=0)[:, None] + one_hot.sum(axis=0)[None]
    return 2 * both / np.maximum(1, marginals)


def frc_table(active: np.ndarray, labels: np.ndarray, *, bootstrap_samples: int, seed: int) -> pd.DataFrame:
    """The label that each latent, active bool [N, J], stands for best among labels str [N]; one row a latent. Columns: topic (of
    the largest FRC, the first by name among equals), necessity, sufficiency, base_rate, lift (sufficiency over base rate; 1 says
    nothing), frc, ci_low, ci_high (95 %, bootstrap over samples, topic fixed: the four cells of active and topic are redrawn),
    control (mean over shuffles of the labels of the largest FRC, the best label chosen anew: what FRC looks like without a
    relation), n, n_active, n_topic."""
    active = np.asarray(active, dtype=bool)
    names, codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    n, rng = len(codes), np.random.default_rng(seed)
    found = frc_matrix(active, codes[:, None] == np.arange(len(names)))
    shuffled = [frc_matrix(active, rng.permutation(codes)[:, None] == np.arange(len(names))) for _ in range(SHUFFLES)]
    control = np.mean([values.max(axis=1) for values in shuffled], axis=0)
    rows = []
    for j, label in enumerate(found.argmax(axis=1)):
        cells = np.bincount(2 * active[:, j].astype(int) + (codes == label), minlength=4)
        both, n_active, n_label = (int(v) for v in (cells[3], cells[2] + cells[3], cells[1] + cells[3]))
        draws = np.random.default_rng(seed + j).multinomial(n, cells / n, size=bootstrap_samples)
        resampled = 2 * draws[:, 3] / np.maximum(1, draws[:, 1] + draws[:, 2] + 2 * draws[:, 3])
        interval, sufficiency = percentile_interval(found[j, label], resampled), both / max(1, n_active)
        rows.append((str(names[label]), both / n_label, sufficiency, n_label / n, sufficiency * n / n_label, found[j, label],
                     interval.low, interval.high, control[j], n, n_active, n_label))  # fmt: skip
    return pd.DataFrame(rows, columns=list(FRC_COLUMNS))


def top_latents_table(
    gain: np.ndarray, names: Sequence[str], phi: np.ndarray, topics: np.ndarray, *, bootstrap_samples: int, seed: int
) -> pd.DataFrame:
    """The pooled latents of largest gain with the topic that each stands for best: feature, block, latent, gain (share of all
    features' total), and the columns of `frc_table` over the samples with a topic, which are empty when no sample has one."""
    columns = [int(i) for i in np.argsort(-gain, kind="stable") if gain[i] > 0 and is_latent(names[i])][:SHOWN_LATENTS]
    topics = np.asarray(topics, dtype=str)
    known = topics != ""
    table = pd.DataFrame(
        [(names[i], names[i].split("/")[0], int(names[i].split("/")[1]), gain[i] / gain.sum()) for i in columns],
        columns=["feature", "block", "latent", "gain"],
    )
    if known.any() and columns:
        active = np.asarray(phi)[known][:, columns] > 0
        return table.join(frc_table(active, topics[known], bootstrap_samples=bootstrap_samples, seed=seed))
    return table.reindex(columns=[*table.columns, *FRC_COLUMNS]).assign(topic="", n=0, n_active=0, n_topic=0)


# Tokens.

BOLD_SHARE, CONTEXT_TOKENS = 0.5, 24
"""Tokens from this share of the maximum on are bold; tokens before and after the strongest one in the text version (ours)."""
BOX = "font-family:monospace;white-space:pre-wrap;background:#FFFFFF;color:#000000;padding:0.3em"
"""Style of the token box: black on white whatever the notebook's theme."""
FULL_SHADE = (86, 180, 233)
"""RGB of the strongest token: sky blue of Okabe and Ito; black text stays readable on it."""


@dataclass(frozen=True)
class TokenHighlights:
    """One span of one sample with the activations of one latent."""

    feature: str
    """Column name such as sol_mean/50831."""
    sample_id: str
    span: str
    """prompt or solution."""
    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    """One a token, at least 0, in the SAE's units."""

    @property
    def strongest(self) -> int | None:
        """Place of the first token with the largest activation, None when no token is active."""
        peak = max(self.activations, default=0.0)
        return self.activations.index(peak) if peak > 0 else None

    def text(self, context: int = CONTEXT_TOKENS, characters: int | None = None) -> str:
        """The strongest token in guillemets with `context` tokens on both sides, fewer to stay within a number of `characters`,
        line breaks as ' | '."""
        best = self.strongest
        marked = [f"«{t}»" if i == best else t for i, t in enumerate(self.tokens)]
        low = max(0, (best or 0) - context)
        high = min(len(marked), (best or 0) + context + 1)
        cut = ("..." if low else "") + "".join(marked[low:high]) + ("..." if high < len(marked) else "")
        found = cut.replace("\n", " | ").strip()
        if characters is None or len(found) <= characters:
            return found
        return self.text(context - 1, characters) if context else found[:characters]

    def html(self) -> str:
        """HTML of all tokens, shaded by activation."""
        peak, shown = max(self.activations, default=0.0), ""
        for place, (token, value) in enumerate(zip(self.tokens, self.activations, strict=True)):
            text = html.escape(token)
            if value > 0:
                shade = "".join(f"{round(255 - value / peak * (255 - c)):02X}" for c in FULL_SHADE)
                style = f"background:#{shade};font-weight:{'bold' if value / peak >= BOLD_SHARE else 'normal'}"
                style += ";text-decoration:underline" if place == self.strongest else ""
                text = f'<span style="{style}" title="{value:.2f}">{text}</span>'
            shown += text
        feature, span, sample = (html.escape(name) for name in (self.feature, self.span, self.sample_id))
        head = f"<b>{feature}</b> in the {span} of {sample}, maximum {peak:.2f}"
        return f'<div style="margin:0 0 0.8em 0">{head}<div style="{BOX}">{shown}</div></div>'


def token_highlights(wanted: Sequence[tuple[str, Sample]], encoder: Encoder) -> list[TokenHighlights]:
    """Where the latents of columns such as sol_mean/50831 fire in a sample each, in the order of `wanted`. The span is that of
    the column's block. Every sample is encoded once, one batch at a time."""
    samples = list({sample.id: sample for _, sample in wanted}.values())
    found: dict[int, TokenHighlights] = {}
    for batch in token_batches(samples, encoder.tokenizer, encoder.tokens_per_batch, encoder.max_tokens):
        latents = batch_latents(encoder, batch, samples)
        for b, row in enumerate(batch.rows):
            for place, (feature, sample) in enumerate(wanted):
                if sample.id == samples[row].id:
                    block, latent = feature.split("/")
                    span = "prompt" if block.startswith("prompt") else "solution"
                    mask = (batch.prompt if span == "prompt" else batch.solution)[b]
                    tokens = tuple(str(encoder.tokenizer.decode([i])) for i in batch.ids[b][mask].tolist())
                    values = latents[b, mask, int(latent)].to(torch.float64)
                    found[place] = TokenHighlights(feature, sample.id, span, tokens, tuple(values.tolist()))
    return [found[place] for place in range(len(wanted))]


# The stage.


def audit_tables(
    samples: Sequence[Sample], table: FeatureTable, names: Sequence[str], assigned: Assignment, facts: pd.DataFrame,
    encoder: Encoder, config: PropertyConfig, seed: int, characters: int | None = None,
) -> tuple[dict[str, pd.DataFrame], list[TokenHighlights]]:  # fmt: skip
    """Tables cluster_audit, feature_groups and top_latents of N clustered samples, and the tokens of the top latents. top_latents
    has example_id and example_text of the sample that each feature is largest on, at most `characters` of it."""
    phi, topics = table.phi, facts["topic"].to_numpy()
    gain = feature_gain(phi, assigned.label, seed)
    latents = top_latents_table(gain, names, phi, topics, bootstrap_samples=config.bootstrap_samples, seed=seed)
    wanted, ids = [], np.asarray(table.ids, dtype=str)
    for feature in latents["feature"]:
        values = table.z[:, names.index(feature)]
        wanted += [(feature, samples[i]) for i in np.lexsort((ids, -values))[:EXAMPLES] if values[i] > 0]
    items = token_highlights(wanted, encoder) if wanted else []
    first = {item.feature: item for item in reversed(items)}
    shown = [first[feature] for feature in latents["feature"]]
    texts = [item.text(characters=characters) for item in shown]
    return {
        "cluster_audit": cluster_audit_table(phi, names, assigned, facts),
        "feature_groups": feature_groups_table(gain, resampled_gains(phi, assigned.label, seed), names, len(phi)),
        "top_latents": latents.assign(example_id=[item.sample_id for item in shown], example_text=texts),
    }, items


def audit_stage(profile: Profile, world: Stage, features: Stage, difficulty: Stage) -> Stage:
    """What notebook 04 shows and `plan.audit` reads: rows of the CSV tables cluster_audit, feature_groups and top_latents, one
    Parquet file each, and highlights.html, the tokens of the top latents."""

    def compute(folder: Path) -> dict[str, pd.DataFrame]:
        samples, table = load_split(world, "pool"), load_split_features(features, "pool")
        names = feature_names(retained_latents(features))
        scores = pd.read_parquet(difficulty.path("scores.parquet"))
        assigned = Assignment(scores["cluster"].to_numpy(), scores["distance"].to_numpy())
        tables, items = audit_tables(
            samples, table, names, assigned, pool_facts(samples, table.metadata), open_reader(profile.reader), profile.properties,
            sub_seed(profile.seed, "feature-audit"),
        )  # fmt: skip
        (folder / "highlights.html").write_text("".join(item.html() for item in items) + "\n", encoding="utf-8")
        return tables

    config = {**to_dict(profile.properties), "seed": profile.seed}
    return get_or_compute(profile, "audit", config, compute, (world, features, difficulty))
