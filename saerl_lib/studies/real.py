"""Stage `real_study`: Tables 6 and 10 to 12, clusters and flaws on the mathematics in `SAERL_DATA_DIR`.

Three parts, made of the ladder's samples and read with them: MATH with solutions (clusters and features), DeepMath against
DeepScaleR (source filter), ValiMath (flaws). A question stands in one role alone, and what is left out is counted. The paper's
values are for orientation: its topics are hundreds of leaves, MATH has seven subjects; its sources are DeepMath and
NuminaMath-1.5, which is not to be had offline. The two sources here write formulas between different signs, which is no quality:
`delimiters`, `sae_plain` and `tfidf_plain` say how much that carries.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from saerl_lib import paths
from saerl_lib.artifacts import file_sha256, get_or_compute
from saerl_lib.config import LadderConfig, Profile, PropertyConfig, ReaderConfig, sub_seed, to_dict
from saerl_lib.data.published import data_file, held_out_keys, load_set, math_splits, probe_splits
from saerl_lib.data.rows import jsonl
from saerl_lib.data.sample import LabelledSet, hash_order, hash_share
from saerl_lib.encode.models import measure_surprise, open_causal, open_reader
from saerl_lib.encode.stages import read_stage, retained_of
from saerl_lib.encode.store import DENSE, MAIN, PROMPT_COLUMNS, FeatureTable, Store, metadata_features
from saerl_lib.plan.batch_plan import rows_of
from saerl_lib.properties.audit import audit_tables, feature_names, pool_facts, ranked_topics
from saerl_lib.properties.clusters import Agreement, Assignment, agreement, pool_clusters, seed_fits, stability_row
from saerl_lib.properties.probes import RIDGE_PENALTIES, Matrix, fit_tfidf, fit_topic_probe, shuffled
from saerl_lib.properties.quality import filter_table, paper_share_k
from saerl_lib.properties.scorer import PAPER_AGREEMENT
from saerl_lib.report.statistics import bootstrap_weights, percentile_interval, rank_metrics
from saerl_lib.studies import flaws
from saerl_lib.studies.ladder import UNTRAINED_SAE, Group, has_real_data, real_groups

LEFT_OUT = "repeated, unlabelled, of an evaluation or test set, or beyond the profile's size"
PAPER_RATIO = 107_021 / 103_022
"""Samples of the other source to those of the target in the paper's pool (Table 6)."""
DATASET = "quality_valimath"
FILES = {"math": ("math_train",), "sources": ("deepmath_18k", "deepscaler_pass_rate"), "valimath": (DATASET,)}
"""Part -> the files it reads, the target source first."""
CLASSIFIER_SHARE = 0.15
"""Largest share of a source that trains the source probe, and of the other source that places thresholds (ours)."""
Features = Mapping[str, FeatureTable]
"""`sae`, `sae_untrained` and `dense` -> features of a part."""


@dataclass(frozen=True)
class RealPart:
    """N problems of one question of the study."""

    data: LabelledSet
    role: np.ndarray
    """[N] str: fit (MATH), train / held_out / pool (sources), train / test (ValiMath)."""
    source: np.ndarray
    """[N] str, the file that a row comes from."""

    def where(self, role: str) -> np.ndarray:
        """Row numbers of a role."""
        return np.flatnonzero(self.role == role)

    @property
    def ids(self) -> list[str]:
        """The samples' ids."""
        return [s.id for s in self.data.samples]

    @property
    def texts(self) -> list[str]:
        """The questions."""
        return [s.prompt for s in self.data.samples]


def joined(name: str, parts: Sequence[LabelledSet]) -> LabelledSet:
    """Some sets in a row as one; labels that every one has are kept."""
    labels = {k: np.concatenate([part.labels[k] for part in parts]) for k in parts[0].labels}
    return LabelledSet(name, tuple(s for part in parts for s in part.samples), labels)


def part_of(name: str, *pieces: tuple[LabelledSet, Mapping[str, int]]) -> RealPart:
    """The first rows of some sets, so many of each role, one role after another."""
    taken = [data.rows(np.arange(sum(roles.values()))) for data, roles in pieces]
    role = np.concatenate([np.repeat(list(roles), list(roles.values())) for _, roles in pieces])
    return RealPart(joined(name, taken), role, np.repeat([data.name for data in taken], [len(data) for data in taken]))


def counts_table(parts: Mapping[str, RealPart]) -> pd.DataFrame:
    """Rows of real_counts.csv: of every file the rows in it, those left out, and those of each role."""
    rows = []
    for name, part in parts.items():
        for file in FILES[name]:
            own, whole = part.role[part.source == file], len(load_set(file))
            rows += [(name, file, "in the file", whole), (name, file, f"left out: {LEFT_OUT}", whole - len(own))]
            rows += [(name, file, f"used: {role}", int((own == role).sum())) for role in dict.fromkeys(own)]
    return pd.DataFrame(rows, columns=["part", "source", "what", "n"])


def real_parts(config: LadderConfig) -> dict[str, RealPart]:
    """Every part of the study by name. `sources` holds DeepMath (target) and DeepScaleR questions: the source probe's training
    rows, held-out negatives, and a pool in the paper's proportions; the first rows by hash train the probe, the next ones of the
    other source place thresholds. Raises ArtifactError without `SAERL_DATA_DIR`."""
    held_out = held_out_keys()
    splits, fit = probe_splits(load_set, config, held_out), math_splits(load_set, config, held_out).train
    whole = [joined(name, [splits[name].train, splits[name].test]) for name in FILES["sources"]]
    target, other = (data.rows(hash_order(data.samples)) for data in whole)
    own, others = (int(CLASSIFIER_SHARE * len(data)) for data in whole)
    size = min(len(target) - own, int((len(other) - 2 * others) / PAPER_RATIO))
    roles = {"train": others, "held_out": others, "pool": round(size * PAPER_RATIO)}
    (train, test), math = splits[DATASET], part_of("math", (fit, {"fit": len(fit)}))
    sources = part_of("sources", (target, {"train": own, "held_out": 0, "pool": size}), (other, roles))
    valid = part_of("valimath", (train, {"train": len(train)}), (test, {"test": len(test)}))
    return {"math": math, "sources": sources, "valimath": valid}


def plain_text(text: str) -> str:
    """A question without the signs around its formulas and with single blanks: what is left is wording and mathematics.

    >>> plain_text("Let \\\\( x \\\\) be $2$.\\n  Find it.")
    'Let x be 2. Find it.'
    """
    return " ".join(re.sub(r"\\[()\[\]]|\$+", " ", text).replace(" .", ".").split())


def part_tables(part: RealPart, group: Group, profile: Profile) -> dict[str, FeatureTable]:
    """`sae`, `sae_untrained` and `dense` -> features of a part, which lie in the group's store. z is [N, 4 S] for an SAE and [N,
    4 D] for `dense`. A part without solutions keeps the prompt halves alone, [N, 2 S]; its solution metadata are NaN."""
    store = group.store(profile)
    rows = rows_of(part.ids, store.ids)
    found = {DENSE: feature_table(part, store.values(DENSE)[rows])}
    for name in (MAIN, UNTRAINED_SAE):
        own = replace(store, name=name)
        found[name] = feature_table(part, own.select(group.retained(profile, own))[rows])
    return found


def feature_table(part: RealPart, z: np.ndarray) -> FeatureTable:
    """A part's samples with z [N, E] and their metadata; without solutions the first half of z alone."""
    samples = part.data.samples
    z = z if all(s.solved for s in samples) else z[:, : z.shape[1] // 2].copy()
    return FeatureTable(tuple(part.ids), z, metadata_features(samples))


SHUFFLES = 20
"""Shuffles of the labels behind the control (ours)."""
EXCERPT = 100
"""Longest quotation of a problem in characters: the data themselves are not redistributed."""
PROBE_SHARE = 0.25
"""Share of the columns that clusters by a probe's weights are made of (ours)."""


def agreement_rows(label: np.ndarray, topics: np.ndarray, prefix: str, config: PropertyConfig, seed: int) -> list[tuple]:
    """(quantity, value, low, high) of clusters [N] against topics [N]; 95 % bootstrap over samples, clusters fixed."""
    rng, n = np.random.default_rng(seed), len(label)
    drawn = (rng.integers(0, n, n) for _ in range(config.bootstrap_samples))
    draws = zip(*(agreement(label[rows], topics[rows]) for rows in drawn), strict=True)
    found = zip(Agreement._fields, agreement(label, topics), draws, strict=True)
    return [(prefix + name, *percentile_interval(value, own)) for name, value, own in found]


def probe_columns(phi: np.ndarray, y: np.ndarray, rows: np.ndarray, seed: int) -> np.ndarray:
    """phi [N, D] cut to the `PROBE_SHARE` of its columns that a linear probe of y, fitted on `rows`, weighs most."""
    scaled = StandardScaler().fit(phi[rows]).transform(phi[rows])
    if y.dtype.kind == "f":
        known = np.isfinite(y[rows])
        weight = np.abs(RidgeCV(scaled.shape[1] * np.array(RIDGE_PENALTIES)).fit(scaled[known], y[rows][known]).coef_)
    else:
        weight = np.abs(fit_topic_probe(scaled, y[rows], seed)["probe"].coef_).sum(axis=0)
    return phi[:, np.argsort(-weight, kind="stable")[: int(PROBE_SHARE * phi.shape[1])]]


def clustered_features(tables: Features, part: RealPart, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features set -> phi [N, D] that is clustered, and the rows on which agreement is measured. The SAE's features, those of its
    controls, metadata alone, and the columns that a probe of level or subject uses: such a probe is fitted on one half by hash,
    and agreement is measured on the other."""
    everything = np.arange(len(part.data))
    found = {name: (tables[name].complete().phi, everything) for name in (MAIN, UNTRAINED_SAE, DENSE)}
    found["metadata"] = (tables[MAIN].complete().metadata, everything)
    fit = np.array([hash_share(key) < 0.5 for key in part.data.keys])
    for label in ("level", "subject"):
        columns = probe_columns(found[MAIN][0], part.data.labels[label], np.flatnonzero(fit), seed)
        found[f"sae, columns of the {label} probe"] = (columns, np.flatnonzero(~fit))
    return found


def clusters_table(tables: Features, part: RealPart, profile: Profile) -> dict[str, pd.DataFrame]:
    """Tables real_clusters and real_cluster_examples. real_clusters: agreement with subject and level by features, its controls,
    and stability over seeds. `ari_kmeans_seeds` compares clusters with clusters: value, ci_low and ci_high are mean, least and
    largest over all pairs. The paper's values are of its own leaf topics. real_cluster_examples: the three questions nearest to
    each centroid."""
    config, seed, rows, shown = profile.properties, profile.seed, [], []
    subject, level = part.data.labels["subject"], part.data.labels["level"]
    rated, paper = np.isfinite(level), dict(zip(Agreement._fields, PAPER_AGREEMENT, strict=True))
    draw = sub_seed(seed, "real-agreement")
    for name, (phi, measured) in clustered_features(tables, part, draw).items():
        found = pool_clusters(phi, config, seed).assign(phi)
        own = found.label
        rows += [(name, *row, len(measured)) for row in agreement_rows(own[measured], subject[measured], "", config, draw)]
        rng = np.random.default_rng(draw)  # shuffled subjects: mean, least and largest agreement without any relation
        chance = zip(*(agreement(own[measured], rng.permutation(subject[measured])) for _ in range(SHUFFLES)), strict=True)
        rows += [(f"{name}, shuffled", quantity, float(np.mean(drawn)), min(drawn), max(drawn), len(measured))
                 for quantity, drawn in zip(Agreement._fields, chance, strict=True)]  # fmt: skip
        pairs = measured[rated[measured]]
        rows += [(name, *row, len(pairs)) for row in agreement_rows(own[pairs], level[pairs].astype(str), "level_", config, draw)]
        shown += example_rows(name, found, part) if name.startswith(MAIN) and name != UNTRAINED_SAE else []
    largest = float(np.unique(subject, return_counts=True)[1].max() / len(subject))
    rows.append(("majority", "purity", largest, np.nan, np.nan, len(subject)))
    phi = tables[MAIN].complete().phi
    found = stability_row("k-means seed", [fit.assign(phi).label for fit in seed_fits(phi, config, seed)]).iloc[0]
    rows.append((MAIN, "ari_kmeans_seeds", found["ari_mean"], found["ari_low"], found["ari_high"], len(subject)))
    columns = ["dataset", "features", "quantity", "value", "ci_low", "ci_high", "paper_value", "n"]
    frame = pd.DataFrame([(part.source[0], f, q, *found, np.nan, n) for f, q, *found, n in rows], columns=columns)
    frame["paper_value"] = frame["quantity"].map(paper).where(frame["features"].eq(MAIN))
    return {"real_clusters": frame, "real_cluster_examples": pd.DataFrame(shown)}


def example_rows(name: str, found: Assignment, part: RealPart) -> list[dict[str, object]]:
    """Rows of real_cluster_examples, which quotes problems and is shown, never published; a cluster each, by falling size."""
    subject, level, rows = part.data.labels["subject"], part.data.labels["level"], []
    for cluster in np.unique(found.label):
        members = np.flatnonzero(found.label == cluster)
        top, share = ranked_topics(subject[members])[0]
        near = members[np.argsort(found.distance[members], kind="stable")][:3]
        texts = [" ".join(part.texts[i].split())[:EXCERPT] for i in near]
        rows.append({"features": name, "cluster": int(cluster), "n": len(members), "top_subject": top, "subject_share": share,
                     "level_mean": float(np.nanmean(level[members])),
                     **dict(itertools.zip_longest(("first", "second", "third"), texts, fillvalue=""))})  # fmt: skip
    return rows


def cluster_study(tables: Features, retained: np.ndarray, part: RealPart, profile: Profile) -> dict[str, pd.DataFrame]:
    """Tables of clusters and features of MATH, beginning with `clusters_table`; topics are subjects, difficulty is the level.
    `retained` [S] are latents of the reader's own SAE."""
    table, encoder = tables[MAIN].complete(), open_reader(profile.reader)
    seed = sub_seed(profile.seed, "real-feature-audit")
    assigned = pool_clusters(table.phi, profile.properties, profile.seed).assign(table.phi)
    facts = pool_facts(part.data.samples, table.metadata)
    facts = facts.assign(topic=part.data.labels["subject"], difficulty=part.data.labels["level"])
    found, _ = audit_tables(
        part.data.samples, table, feature_names(retained), assigned, facts, encoder, profile.properties, seed, EXCERPT
    )
    return clusters_table(tables, part, profile) | {f"real_{name}": rows for name, rows in found.items()}


PAPER_SEPARATION = {"roc_auc": 0.9911, "average_precision": 0.9910}
"""Of the paper's source probe on its own two sources (Table 6)."""
SIGNS = (r"\$\$", r"(?<!\$)\$(?!\$)", r"\\[()]", r"\\[\[\]]", r"\n", r"  ")
"""What the control `delimiters` counts: $$, $, \\( \\), \\[ \\], line breaks, double blanks."""


def source_features(part: RealPart, tables: Features, plain: FeatureTable, train: np.ndarray) -> dict[str, Matrix]:
    """Name -> features [N, D] of the questions; TF-IDF is fitted on the rows `train`."""
    found: dict[str, Matrix] = {"sae": tables[MAIN].z}
    found |= {"sae_plain": plain.z, "sae_untrained": tables[UNTRAINED_SAE].z, "dense": tables[DENSE].z}
    found["metadata"] = tables[MAIN].metadata[:, PROMPT_COLUMNS]
    for name, texts in (("tfidf", part.texts), ("tfidf_plain", [plain_text(t) for t in part.texts])):
        found[name] = fit_tfidf([texts[i] for i in train]).transform(texts)
    found["delimiters"] = np.array([[len(re.findall(sign, text)) for sign in SIGNS] for text in part.texts], dtype=np.float64)
    found["length"] = np.array([[len(text)] for text in part.texts], dtype=np.float64)
    return found


def filter_study(part: RealPart, tables: Features, plain: FeatureTable, profile: Profile) -> dict[str, pd.DataFrame]:
    """Tables real_filter (features and the columns of filter.csv) and real_separation (rows as probe_ladder.csv). One probe a
    feature set, trained on the rows `train`; thresholds are percentiles of the other source's rows `held_out`. real_separation
    adds the paper's values. The paper's purity and recall stand in the rows of `sae`."""
    train, held_out, pool = (part.where(role) for role in ("train", "held_out", "pool"))
    is_target, seed = part.source == FILES["sources"][0], sub_seed(profile.seed, "real-filter")
    features = source_features(part, tables, plain, train)
    ids, rules = np.array(part.ids)[pool], paper_share_k(len(pool))
    weights = bootstrap_weights(len(pool), profile.properties.bootstrap_samples, seed)
    rows, separation = [], []
    for name, x in {**features, "sae_shuffled_labels": features["sae"]}.items():
        y = shuffled(is_target[train], seed) if name == "sae_shuffled_labels" else is_target[train]
        scores = flaws.sgd_scores(x[train], y, x[np.concatenate([pool, held_out])], seed)
        own, negatives = scores[: len(pool)], scores[len(pool) :]
        rows.append(filter_table(own, ids, is_target[pool], negatives, rules).assign(features=name))
        for metric, found in rank_metrics(own, is_target[pool], weights).items():
            paper = PAPER_SEPARATION[metric] if name == "sae" else np.nan
            separation.append(("deepmath_18k + deepscaler_pass_rate", metric, name, *found, paper, len(train), len(pool)))
    table = pd.concat(rows, ignore_index=True)
    table.loc[table["features"] != "sae", ["paper_purity", "paper_recall"]] = np.nan
    columns = ["dataset", "metric", "features", "value", "ci_low", "ci_high", "paper_value", "n_train", "n_test"]
    return {"real_filter": table, "real_separation": pd.DataFrame(separation, columns=columns)}


def question_surprise(texts: Sequence[str], reader: ReaderConfig) -> np.ndarray:
    """[N] mean nats a token of questions under the reader's model; of a long one, its first `max_tokens` tokens count."""
    (model, tokenizer), most = open_causal(reader.model), reader.max_tokens
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    cut = [tokenizer.decode(own[:most]) if len(own) > most else t for own, t in zip(ids, texts, strict=True)]
    # a question is followed by something it does not depend on: attention is causal
    return measure_surprise(cut, ["."] * len(cut), model, tokenizer).prompt


def flaw_study(part: RealPart, tables: Features, extra: Mapping[str, np.ndarray], profile: Profile) -> dict[str, pd.DataFrame]:
    """Tables real_flaws (columns of filter_flaws.csv) and real_selfreg (of filter_selfreg.csv) for ValiMath: probes are fitted on
    its training rows, whose valid texts are DSIR's target. A flaw is the first check that failed, 'unnamed' where the file does
    not say. `extra` maps a name to suspicion [N]. Of SelfReg's variants `scaled` is among the scores (ours)."""
    rows, seed = [part.where("train"), part.where("test")], sub_seed(profile.seed, "real-flaws")
    z, metadata = tables[MAIN].z, tables[MAIN].metadata[:, PROMPT_COLUMNS]
    failed = {r["id"]: (r.get("meta") or {}).get("first_failed_check") or "unnamed" for r in jsonl(data_file(DATASET))}
    valid = zip(part.ids, part.data.labels["valid"] > 0.5, strict=True)
    kinds = np.array(["" if ok else failed[name].removesuffix("_check") for name, ok in valid])
    everything = flaws.FlawData(z, metadata, tuple(part.texts), kinds)
    train, test = (everything.rows(index) for index in rows)
    everyone, length = np.ones(len(rows[1]), dtype=bool), np.array([len(text) for text in test.texts], dtype=float)
    views = flaws.suppressed_views(train, test, seed)
    own = {name: (tables[name].z[rows[0]], train.flawed, tables[name].z[rows[1]]) for name in (UNTRAINED_SAE, DENSE)}
    scores = {
        **flaws.common_scores(train, test, train.rows(np.flatnonzero(~train.flawed)).texts, seed),
        **{name: values[rows[1]] for name, values in extra.items()},
        "flaw_probe_selfreg": flaws.sgd_scores(views["scaled"][0], train.flawed, views["scaled"][1], seed, standardise=False),
        **{f"flaw_probe_{name}": flaws.tuned_scores(*sides, seed) for name, sides in own.items()},
    }
    named = {"dataset": DATASET, "config": profile.properties, "seed": seed}
    selfreg = flaws.selfreg_table(views, train.flawed, {"flaw": flaws.Target(test.flawed, everyone)}, length, **named)
    return {"real_flaws": flaws.flaw_table(scores, test.flaw, {"test": everyone}, **named), "real_selfreg": selfreg}


TABLES = (
    "real_counts", "real_clusters", "real_cluster_examples", "real_cluster_audit", "real_feature_groups", "real_top_latents",
    "real_filter", "real_separation", "real_flaws", "real_selfreg",
)  # fmt: skip


def real_tables(profile: Profile) -> dict[str, pd.DataFrame]:
    """Table name -> rows of the CSV table of that name: computed where the real data lie (stage `real_study`, from the stores of
    the ladder), else as they were published."""
    if not has_real_data(profile):
        return {name: pd.read_csv(file) for name in TABLES if (file := paths.PUBLISHED / f"{name}.csv").is_file()}
    parts, found = real_parts(profile.ladder), real_groups(profile)
    groups, sources = {**found, "sources": found["deepmath"]}, parts["sources"]
    samples = tuple(replace(s, prompt=plain_text(s.prompt)) for s in sources.data.samples)
    plain = replace(sources, data=replace(sources.data, samples=samples))
    plain_stage = read_stage(profile, "sources_plain", samples, profile.reader)

    def compute(_: Path) -> dict[str, pd.DataFrame]:
        tables = {name: part_tables(part, groups[name], profile) for name, part in parts.items()}
        retained = {name: groups[name].retained(profile, groups[name].store(profile)) for name in ("math", "sources")}
        plain_store = Store(plain_stage.path("store"))
        training = [samples[i] for i in plain.where("train")][: profile.ladder.max_train]  # its own rows choose
        without_signs = feature_table(plain, plain_store.select(retained_of(profile, plain_store, training)))
        flawed, store = parts["valimath"], groups["valimath"].store(profile)
        z = store.select(retained["sources"])[rows_of(flawed.ids, store.ids)]
        train = sources.where("train")
        of_source = (tables["sources"][MAIN].z[train], sources.source[train] == FILES["sources"][0], z[:, : z.shape[1] // 2])
        scores = {  # of the paper's filter minus the log-odds of the target
            "source_probe": -flaws.sgd_scores(*of_source, sub_seed(profile.seed, "real-filter")),
            "perplexity_prompt": question_surprise(flawed.texts, profile.reader),
        }
        return {
            "real_counts": counts_table(parts),
            **cluster_study(tables["math"], retained["math"], parts["math"], profile),
            **filter_study(sources, tables["sources"], without_signs, profile),
            **flaw_study(flawed, tables["valimath"], scores, profile),
        }

    settings = {"ladder": to_dict(profile.ladder), "properties": to_dict(profile.properties), "seed": profile.seed,
                "data": {name: file_sha256(data_file(name))[:16] for files in FILES.values() for name in files}}  # fmt: skip
    stages = (*(groups[name].stage(profile) for name in parts), plain_stage)
    stage = get_or_compute(profile, "real_study", settings, compute, stages)
    return {name: pd.read_parquet(stage.path(f"{name}.parquet")) for name in TABLES}
