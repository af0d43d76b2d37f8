"""Stages `real_features` and `real_study`: Tables 6 and 10 to 12, clusters and flaws on the mathematics in `SAERL_DATA_DIR`.

Three parts: MATH with solutions (clusters and features), DeepMath against DeepScaleR (source filter), ValiMath (flaws). Rows
are taken by the hash of their question, a question stands in one role alone, and whatever is left out is counted. The paper's
values stand beside these for orientation and are not to be reached:

- its clusters are of DeepMath and NuminaMath-1.5 read by Qwen3-1.7B, its topics are hundreds of leaves; MATH has seven
  subjects. Purity has a floor, the share of the largest subject; shuffled labels show each number
  without a relation.
- NuminaMath-1.5 is not to be had offline: the sources are another pair, in the paper's proportions, with questions alone.
  They write mathematics between different signs, which is no quality: `delimiters`, `sae_plain` and `tfidf_plain` say how much
  that carries.
- flaws are those that people marked in ValiMath, whole questions. Table 3 needs PRM800K's step labels, which are not to be
  had offline either; the embedded world has it.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from saerl_lib import paths
from saerl_lib.artifacts import ArtifactError, Stage, file_sha256, get_or_compute
from saerl_lib.config import LadderConfig, Profile, PropertyConfig, ReaderConfig, sub_seed, to_dict
from saerl_lib.data.published import data_file, held_out_keys, load_labelled
from saerl_lib.data.rows import jsonl
from saerl_lib.data.sample import LabelledSet, Sample, hash_order, split_by_hash, unique, without
from saerl_lib.encode.metadata import PROMPT_COLUMNS, metadata_features
from saerl_lib.encode.models import identity, open_causal, open_reader
from saerl_lib.encode.pool import Encoder
from saerl_lib.encode.stages import read_features
from saerl_lib.encode.store import DENSE, FeatureTable, Store, load_features, save_features
from saerl_lib.encode.tokens import measure_surprise
from saerl_lib.properties.audit import PoolFacts, audit_tables, feature_names, pool_facts
from saerl_lib.properties.clusters import agreement, pool_clusters, seed_fits, stability_row
from saerl_lib.properties.probes import Matrix, fit_tfidf, shuffled
from saerl_lib.properties.quality import filter_table, paper_share_k
from saerl_lib.properties.scorer import PAPER_AGREEMENT
from saerl_lib.report.statistics import bootstrap_weights, rank_metrics
from saerl_lib.studies.flaws import Target, flaw_rows_from_features, selfreg_table, sgd_scores, suppressed_views, tuned_scores
from saerl_lib.studies.ladder import CONTROLS, has_real_data

SAE, UNTRAINED = "sae", "sae_untrained"
"""Ladder names of the SAE and of its control of random weights."""
PAPER_SOURCES = (103_022, 107_021)
"""Samples of the target and of the other source in the paper's pool (Table 6)."""
CLASSIFIER_SHARE = 0.15
"""Largest share of a source that trains the source probe, and of the other source that places thresholds (ours)."""
PLAIN = "sources_plain"
"""The part `sources` after `plain_text`, read by the first SAE alone."""
DELIMITERS = r"\\[()\[\]]|\$+"
"""Signs that open and close a formula: \\( \\) \\[ \\] $ $$."""
DATASET = "quality_valimath"
FILES = {"math": ("math_train",), "sources": ("deepmath_18k", "deepscaler_pass_rate"), "valimath": (DATASET,)}
"""Part -> the files it reads, the target source first."""


@dataclass(frozen=True)
class RealPart:
    """N problems of one question of the study."""

    name: str
    """Key of `FILES`."""
    data: LabelledSet
    role: np.ndarray
    """[N] str: fit (MATH), train / held_out / pool (sources), train / test (ValiMath)."""
    source: np.ndarray
    """[N] str, the file that a row comes from."""
    counts: pd.DataFrame
    """Rows of real_counts.csv: part, source, what, n."""

    def where(self, role: str) -> np.ndarray:
        """Row numbers of a role."""
        return np.flatnonzero(self.role == role)

    @property
    def texts(self) -> list[str]:
        """The questions."""
        return [s.prompt for s in self.data.samples]


def fresh(part: str, name: str, held_out: set[str]) -> tuple[LabelledSet, list[tuple[str, str, str, int]]]:
    """A file without repeated questions and those of evaluation and test sets, in hash order, and rows of real_counts.csv."""
    data = load_labelled(data_file(name))
    single = unique(data)
    left = without(single, held_out)
    counts = {"in the file": len(data), "left out: repeated question": len(data) - len(single),
              "left out: question of an evaluation or test set": len(single) - len(left)}  # fmt: skip
    return left.rows(hash_order(left)), [(part, name, what, n) for what, n in counts.items()]


def _part(name: str, pieces: Sequence[tuple[LabelledSet, np.ndarray]], counts: list[tuple[str, str, str, int]]) -> RealPart:
    role = np.concatenate([roles for _, roles in pieces])
    source = np.concatenate([np.repeat(data.name, len(data)) for data, _ in pieces])
    labels = {k: np.concatenate([data.labels[k] for data, _ in pieces]) for k in pieces[0][0].labels}
    samples = tuple(s for data, _ in pieces for s in data.samples)
    joined = LabelledSet(name, samples, labels, tuple(o for data, _ in pieces for o in data.overlap))
    counts = counts + [
        (name, str(s), f"used: {r}", int(((source == s) & (role == r)).sum()))
        for s in dict.fromkeys(source) for r in dict.fromkeys(role[source == s])
    ]  # fmt: skip
    return RealPart(name, joined, role, source, pd.DataFrame(counts, columns=["part", "source", "what", "n"]))


def math_part(config: LadderConfig, held_out: set[str]) -> RealPart:
    """MATH's training problems with their solutions; all of them, or `max_train` where the profile is small."""
    data, counts = fresh("math", "math_train", held_out)
    kept = data if config.official_split else data.rows(np.arange(min(len(data), config.max_train)))
    counts.append(("math", "math_train", "left out: beyond the profile's size", len(data) - len(kept)))
    return _part("math", [(kept, np.repeat("fit", len(kept)))], counts)


def source_part(config: LadderConfig, held_out: set[str]) -> RealPart:
    """DeepMath (target) and DeepScaleR questions: the source probe's training rows, held-out negatives, and a pool.

    The pool has the paper's proportions; the first rows by hash train the probe, the next ones of the other source place
    thresholds. A question of both sources stays with the target.
    """
    target, counts = fresh("sources", "deepmath_18k", held_out)
    other, more = fresh("sources", "deepscaler_pass_rate", held_out)
    apart = without(other, set(target.keys))
    more.append(("sources", other.name, "left out: question of the target source", len(other) - len(apart)))
    train = [min(config.max_train, int(CLASSIFIER_SHARE * len(data))) for data in (target, apart)]
    ratio = PAPER_SOURCES[1] / PAPER_SOURCES[0]
    room = min(len(target) - train[0], int((len(apart) - 2 * train[1]) / ratio))
    size = room if config.official_split else min(config.max_test, room)
    sizes = [(train[0], 0, size), (train[1], train[1], round(size * ratio))]
    pieces = []
    for data, parts, seen in ((target, sizes[0], counts), (apart, sizes[1], more)):
        role = np.repeat(("train", "held_out", "pool"), parts)
        seen.append(("sources", data.name, "left out: beyond the proportion or the profile's size", len(data) - len(role)))
        pieces.append((data.rows(np.arange(len(role))), role))
    return _part("sources", pieces, counts + more)


def valimath_part(config: LadderConfig, held_out: set[str]) -> RealPart:
    """ValiMath questions, split by hash as the ladder's task `well_posed` is."""
    data, counts = fresh("valimath", DATASET, held_out)
    labelled = data.with_label("valid")
    train, test = split_by_hash(labelled, config.max_train, config.max_test)
    counts += [("valimath", DATASET, "left out: no label", len(data) - len(labelled)),
               ("valimath", DATASET, "left out: beyond the profile's size", len(labelled) - len(train) - len(test))]  # fmt: skip
    return _part("valimath", [(train, np.repeat("train", len(train))), (test, np.repeat("test", len(test)))], counts)


def real_parts(config: LadderConfig) -> dict[str, RealPart]:
    """Every part of the study by name. Raises ArtifactError without `SAERL_DATA_DIR`."""
    held_out = held_out_keys()
    return {part.name: part for part in (f(config, held_out) for f in (math_part, source_part, valimath_part))}


def plain_text(text: str) -> str:
    """A question without the signs around its formulas and with single blanks: what is left is wording and mathematics.

    >>> plain_text("Let \\\\( x \\\\) be $2$.\\n  Find it.")
    'Let x be 2. Find it.'
    """
    return " ".join(re.sub(DELIMITERS, " ", text).replace(" .", ".").split())


def plain_part(part: RealPart) -> RealPart:
    """The same rows with `plain_text` questions, as part `sources_plain`."""
    samples = tuple(dataclasses.replace(s, prompt=plain_text(s.prompt)) for s in part.data.samples)
    data = dataclasses.replace(part.data, name=PLAIN, samples=samples)
    return RealPart(PLAIN, data, part.role, part.source, part.counts.iloc[:0])


def flaw_kinds(part: RealPart) -> np.ndarray:
    """[N] the first check that a ValiMath question failed, 'unnamed' where the file does not say, '' when it is valid."""
    failed = {r["id"]: (r.get("meta") or {}).get("first_failed_check") or "unnamed" for r in jsonl(data_file(DATASET))}
    valid = part.data.labels["valid"] > 0.5
    return np.array(["" if ok else failed[s.id].removesuffix("_check") for s, ok in zip(part.data.samples, valid, strict=True)])


def part_reader(profile: Profile, part: str) -> ReaderConfig:
    """The readers that a part needs: the SAE, one as it was drawn and the activations; plain text only the SAE."""
    return profile.reader if part == PLAIN else dataclasses.replace(profile.reader, others=CONTROLS, dense=True)


def encode_part(
    part: RealPart, profile: Profile, folder: Path
) -> tuple[dict[str, FeatureTable], dict[str, np.ndarray], Store]:
    """Reader name -> features of a part, SAE name -> its retained latents, and the store of all latents below `folder`.

    z is [N, 4 S] for an SAE and [N, 4 D] for `dense`. A part without solutions keeps the prompt halves alone, [N, 2 S];
    its solution metadata are NaN.
    """
    samples = part.data.samples
    chosen = {s.id for s in training_samples(part, profile.ladder.max_train)}
    found, retained, store = read_features(samples, chosen, profile, part_reader(profile, part.name), folder)
    if not all(s.solved for s in samples):
        found = {name: z[:, : z.shape[1] // 2].copy() for name, z in found.items()}
    ids, metadata = tuple(s.id for s in samples), metadata_features(samples)
    return {name: FeatureTable(ids, z, metadata) for name, z in found.items()}, retained, store


def training_samples(part: RealPart, limit: int) -> list[Sample]:
    """Samples that retained latents may be chosen from: the first `limit` by hash of the rows that are fitted on."""
    rows = part.where("train") if (part.role == "train").any() else part.where("fit")
    order = hash_order(part.data.rows(rows))
    return [part.data.samples[i] for i in rows[order][:limit]]


def real_features_stage(profile: Profile) -> Stage:
    """`<part>/<reader>.safetensors`, `<part>/retained.safetensors` and counts.parquet (rows of real_counts.csv).

    Of ValiMath, `valimath/source.safetensors` holds the latents that part `sources` retains as well.
    """

    def compute(folder: Path) -> None:
        parts, counts, kept = real_parts(profile.ladder), [], {}
        for name, part in {**parts, PLAIN: plain_part(parts["sources"])}.items():
            (folder / name).mkdir()
            tables, kept[name], store = encode_part(part, profile, folder / name)
            save_file({n: np.ascontiguousarray(r) for n, r in kept[name].items()}, folder / name / "retained.safetensors")
            for reader_name, table in tables.items():
                save_features(table, folder / name / f"{reader_name}.safetensors")
            if name == "valimath":
                z = store.select(kept["sources"][SAE])
                save_features(dataclasses.replace(tables[SAE], z=z[:, : z.shape[1] // 2]), folder / name / "source.safetensors")
            extra = (name, "all", f"used, but cut at {profile.reader.max_tokens} tokens", int(store.values("truncated").sum()))
            counts.append(pd.concat([part.counts, pd.DataFrame([extra], columns=part.counts.columns)]))
            shutil.rmtree(store.folder)
        pd.concat(counts).to_parquet(folder / "counts.parquet", index=False)

    files = {name: file_sha256(data_file(name))[:16] for names in FILES.values() for name in names}
    saes = identity(part_reader(profile, "math"))
    settings = {"ladder": to_dict(profile.ladder), "reader": to_dict(profile.reader), "saes": saes, "data": files,
                "seed": profile.seed}  # fmt: skip
    return get_or_compute(profile, "real_features", settings, compute)


def load_part(stage: Stage, part: RealPart) -> dict[str, FeatureTable]:
    """Reader name -> features of a part; z of a part without solutions is [N, 2 S].

    Raises ArtifactError when they are of other samples.
    """
    files = [path for path in sorted((stage.folder / part.name).glob("*.safetensors")) if path.stem not in ("retained", "source")]
    tables = {path.stem: load_features(path) for path in files}
    if any(table.ids != tuple(s.id for s in part.data.samples) for table in tables.values()):
        raise ArtifactError(f"{stage.folder}: features of other samples; delete the folder and run again")
    return tables


def load_retained(stage: Stage, part: str) -> dict[str, np.ndarray]:
    """Reader name -> retained latents of a part, ascending, [S]."""
    return load_file(stage.folder / part / "retained.safetensors")


QUANTITIES = ("purity", "nmi", "ari")
SHUFFLES = 20
"""Shuffles of the labels behind the control (ours)."""
EXCERPT = 100
"""Longest quotation of a problem in characters: the data themselves are not redistributed."""
CLUSTERS_COLUMNS = ["dataset", "features", "quantity", "value", "ci_low", "ci_high", "paper_value", "n"]
"""Columns of real_clusters.csv."""


def agreement_rows(
    label: np.ndarray, topics: np.ndarray, prefix: str, config: PropertyConfig, seed: int
) -> list[tuple[str, float, float, float]]:
    """(quantity, value, low, high) of clusters [N] against topics [N]; 95 % bootstrap over samples, clusters fixed."""
    def values(rows: np.ndarray) -> list[float]:
        found = agreement(label[rows], topics[rows])
        return [getattr(found, name) for name in QUANTITIES]

    rng, n = np.random.default_rng(seed), len(label)
    draws = np.array([values(rng.integers(0, n, n)) for _ in range(config.bootstrap_samples)])
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    found = zip(QUANTITIES, values(np.arange(n)), low, high, strict=True)
    return [(prefix + name, float(v), float(a), float(b)) for name, v, a, b in found]


def shuffled_rows(label: np.ndarray, topics: np.ndarray, seed: int) -> list[tuple[str, float, float, float]]:
    """(quantity, mean, least, largest) over shuffles of the topics: agreement without any relation."""
    rng = np.random.default_rng(seed)
    found = [agreement(label, rng.permutation(topics)) for _ in range(SHUFFLES)]
    draws = {name: np.array([getattr(f, name) for f in found]) for name in QUANTITIES}
    return [(name, float(v.mean()), float(v.min()), float(v.max())) for name, v in draws.items()]


def clustered_features(tables: Mapping[str, FeatureTable]) -> dict[str, np.ndarray]:
    """Features set -> phi [N, D] that is clustered: the SAE's, those of its controls, and metadata alone."""
    found = {name: tables[name].complete().phi for name in (SAE, UNTRAINED, DENSE)}
    return {**found, "metadata": tables[SAE].metadata}


def clusters_table(tables: Mapping[str, FeatureTable], part: RealPart, profile: Profile) -> pd.DataFrame:
    """Rows of real_clusters.csv: agreement with subject and level by features, its controls, and stability over seeds.

    Quantity `ari_kmeans_seeds` compares clusters with clusters: value, ci_low and ci_high are mean, least and largest over all
    pairs. The paper's values are of its own leaf topics.
    """
    config, seed, rows = profile.properties, profile.seed, []
    subject, level = part.data.labels["subject"], part.data.labels["level"]
    rated, paper = np.isfinite(level), dict(zip(QUANTITIES, PAPER_AGREEMENT, strict=True))
    label = {name: pool_clusters(phi, config, seed).assign(phi).label for name, phi in clustered_features(tables).items()}
    draw = sub_seed(seed, "real-agreement")
    for name, own in label.items():
        rows += [(name, *row, len(own)) for row in agreement_rows(own, subject, "", config, draw)]
    rows += [("shuffled_labels", *row, len(subject)) for row in shuffled_rows(label[SAE], subject, draw)]
    largest = float(np.unique(subject, return_counts=True)[1].max() / len(subject))
    rows.append(("majority", "purity", largest, np.nan, np.nan, len(subject)))
    pairs = agreement_rows(label[SAE][rated], level[rated].astype(str), "level_", config, draw)
    rows += [(SAE, *row, int(rated.sum())) for row in pairs]
    phi = tables[SAE].complete().phi
    found = stability_row("k-means seed", [fit.assign(phi).label for fit in seed_fits(phi, config, seed)]).iloc[0]
    rows.append((SAE, "ari_kmeans_seeds", found["ari_mean"], found["ari_low"], found["ari_high"], len(subject)))
    frame = pd.DataFrame([(part.source[0], f, q, *rest[:3], np.nan, rest[3]) for f, q, *rest in rows], columns=CLUSTERS_COLUMNS)
    own = frame["features"].eq(SAE)
    return frame.assign(paper_value=frame["quantity"].map(paper).where(own))


def math_facts(part: RealPart, table: FeatureTable) -> PoolFacts:
    """Topics are subjects, difficulty is the level."""
    facts = pool_facts(list(part.data.samples), table.metadata)
    return PoolFacts(facts.ids, part.data.labels["subject"], part.data.labels["level"], facts.prompt_words, facts.solution_words)


def cluster_study(
    tables: Mapping[str, FeatureTable], retained: np.ndarray, part: RealPart, encoder: Encoder, profile: Profile
) -> dict[str, pd.DataFrame]:
    """Tables real_clusters, real_cluster_audit, real_feature_groups, real_top_latents; `retained` [S] of the first SAE."""
    table, seed = tables[SAE].complete(), sub_seed(profile.seed, "real-feature-audit")
    assigned = pool_clusters(table.phi, profile.properties, profile.seed).assign(table.phi)
    found, _ = audit_tables(
        part.data.samples, table, feature_names(retained), assigned, math_facts(part, table), encoder, profile.properties, seed,
        EXCERPT,
    )  # fmt: skip
    return {"real_clusters": clusters_table(tables, part, profile)} | {f"real_{name}": rows for name, rows in found.items()}


PAPER_SEPARATION = {"roc_auc": 0.9911, "average_precision": 0.9910}
"""Of the paper's source probe on its own two sources (Table 6)."""
SIGNS = (r"\$\$", r"(?<!\$)\$(?!\$)", r"\\[()]", r"\\[\[\]]", r"\n", r"  ")
"""What the control `delimiters` counts: $$, $, \\( \\), \\[ \\], line breaks, double blanks."""
SELFREG = "scaled"
"""Variant of SelfReg among the scores of real_flaws.csv; the others are in real_selfreg.csv (ours)."""


def sign_counts(texts: Sequence[str]) -> np.ndarray:
    """[N, 6] how often each of `SIGNS` occurs.

    >>> sign_counts(["$x$ and \\\\( y \\\\)"]).tolist()
    [[0.0, 2.0, 2.0, 0.0, 0.0, 0.0]]
    """
    return np.array([[len(re.findall(sign, text)) for sign in SIGNS] for text in texts], dtype=np.float64)


def source_features(
    part: RealPart, tables: Mapping[str, FeatureTable], plain: Mapping[str, FeatureTable], train: np.ndarray
) -> dict[str, Matrix]:
    """Name -> features [N, D] of the questions; TF-IDF is fitted on the rows `train`."""
    found: dict[str, Matrix] = {"sae": tables[SAE].z}
    found |= {"sae_plain": plain[SAE].z, "sae_untrained": tables[UNTRAINED].z, "dense": tables[DENSE].z}
    found["metadata"] = tables[SAE].metadata[:, PROMPT_COLUMNS]
    for name, texts in (("tfidf", part.texts), ("tfidf_plain", [plain_text(t) for t in part.texts])):
        found[name] = fit_tfidf([texts[i] for i in train]).transform(texts)
    found["delimiters"] = sign_counts(part.texts)
    found["length"] = np.array([[len(text)] for text in part.texts], dtype=np.float64)
    return found


def filter_study(
    part: RealPart, tables: Mapping[str, FeatureTable], plain: Mapping[str, FeatureTable], profile: Profile
) -> dict[str, pd.DataFrame]:
    """Tables real_filter (features and the columns of filter.csv) and real_separation (rows as probe_ladder.csv).

    One probe a feature set, trained on the rows `train`; thresholds are percentiles of the other source's rows `held_out`.
    real_separation adds the paper's values. The paper's purity and recall stand in the rows of `sae`.
    """
    train, held_out, pool = (part.where(role) for role in ("train", "held_out", "pool"))
    is_target, seed = part.source == FILES["sources"][0], sub_seed(profile.seed, "real-filter")
    features = source_features(part, tables, plain, train)
    ids, rules = [part.data.samples[i].id for i in pool], paper_share_k(len(pool))
    weights = bootstrap_weights(len(pool), profile.properties.bootstrap_samples, seed)
    rows, separation = [], []
    for name, x in {**features, "sae_shuffled_labels": features["sae"]}.items():
        y = shuffled(is_target[train], seed) if name == "sae_shuffled_labels" else is_target[train]
        scores = sgd_scores(x[train], y, x[np.concatenate([pool, held_out])], seed)
        own, negatives = scores[: len(pool)], scores[len(pool) :]
        rows.append(filter_table(own, ids, is_target[pool], negatives, rules).assign(features=name))
        for metric, found in rank_metrics(own, is_target[pool], weights).items():
            paper = PAPER_SEPARATION[metric] if name == "sae" else np.nan
            estimate = (found.value, found.low, found.high)
            separation.append(("deepmath_18k + deepscaler_pass_rate", metric, name, *estimate, paper, len(train), len(pool)))
    columns = ["dataset", "metric", "features", "value", "ci_low", "ci_high", "paper_value", "n_train", "n_test"]
    table = pd.concat(rows, ignore_index=True)
    table.loc[table["features"] != "sae", ["paper_purity", "paper_recall"]] = np.nan
    return {"real_filter": table, "real_separation": pd.DataFrame(separation, columns=columns)}


def paper_probe(part: RealPart, table: FeatureTable, z: np.ndarray, seed: int) -> np.ndarray:
    """[M] suspicion of other questions by the paper's filter: minus the source probe's log-odds of the target.

    `table` holds the features of the part `sources`, z [M, D] the same latents of the other questions.
    """
    train = part.where("train")
    return -sgd_scores(table.z[train], part.source[train] == FILES["sources"][0], z, sub_seed(seed, "real-filter"))


def question_surprise(
    texts: Sequence[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> np.ndarray:
    """[N] mean nats a token of questions under a language model; of a long one, its first `max_tokens` tokens count."""
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    cut = [tokenizer.decode(own[:max_tokens]) if len(own) > max_tokens else t for own, t in zip(ids, texts, strict=True)]
    # a question is followed by something it does not depend on: attention is causal
    return measure_surprise(cut, ["."] * len(cut), model, tokenizer).prompt


def flaw_study(
    part: RealPart, tables: Mapping[str, FeatureTable], extra: Mapping[str, np.ndarray], config: PropertyConfig, seed: int
) -> dict[str, pd.DataFrame]:
    """Tables real_flaws (columns of filter_flaws.csv) and real_selfreg (of filter_selfreg.csv) for ValiMath.

    `extra` maps a name to suspicion [N]. A cut keeps as many as are valid in the training rows.
    """
    z, metadata, valid = tables[SAE].z, tables[SAE].metadata[:, PROMPT_COLUMNS], part.data.labels["valid"] > 0.5
    train, test, seed = part.where("train"), part.where("test"), sub_seed(seed, "real-flaws")
    views = suppressed_views(z[train], metadata[train], z[test], metadata[test], seed)
    probes = {
        "flaw_probe_selfreg": sgd_scores(views[SELFREG][0], ~valid[train], views[SELFREG][1], seed, standardise=False),
        "flaw_probe_sae_untrained": tuned_scores(*_sides(tables[UNTRAINED].z, ~valid, train, test), seed),
        "flaw_probe_dense": tuned_scores(*_sides(tables[DENSE].z, ~valid, train, test), seed),
    }
    scores = dict(extra)
    for name, values in probes.items():
        scores[name] = np.full(len(valid), np.nan)
        scores[name][test] = values
    flaws = flaw_rows_from_features(
        z, metadata, part.texts, valid, part.role.tolist(), dataset=DATASET, config=config, seed=seed, kinds=flaw_kinds(part),
        extra_scores=scores,
    )  # fmt: skip
    length, everything = np.array([len(part.texts[i]) for i in test], dtype=float), np.ones(len(test), dtype=bool)
    targets = {"flaw": Target(~valid[test], everything)}
    selfreg = selfreg_table(views, ~valid[train], targets, length, dataset=DATASET, config=config, seed=seed)
    return {"real_flaws": flaws, "real_selfreg": selfreg}


def _sides(x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return x[train], y[train], x[test]


TABLES = (
    "real_counts", "real_clusters", "real_cluster_audit", "real_feature_groups", "real_top_latents", "real_filter",
    "real_separation", "real_flaws", "real_selfreg",
)  # fmt: skip
"""Tables of the study, by the names of their CSV files."""


def _flaw_scores(parts: dict[str, RealPart], features: Stage, profile: Profile) -> dict[str, np.ndarray]:
    """Suspicion of the ValiMath questions [N] that needs no label of a flaw: the paper's filter, and surprise of the LM."""
    part = parts["valimath"]
    z = load_features(features.path("valimath/source.safetensors")).z
    return {
        "source_probe": paper_probe(parts["sources"], load_part(features, parts["sources"])[SAE], z, profile.seed),
        "perplexity_prompt": question_surprise(part.texts, *open_causal(profile.reader), profile.reader.max_tokens),
    }


def real_study_stage(profile: Profile) -> Stage:
    """One Parquet file a name of `TABLES`; features come from `real_features_stage`.

    Raises ArtifactError without `SAERL_DATA_DIR`.
    """
    features = real_features_stage(profile)

    def compute(folder: Path) -> None:
        parts = real_parts(profile.ladder)
        tables = {name: load_part(features, part) for name, part in parts.items()}
        plain = load_part(features, plain_part(parts["sources"]))
        latents = load_retained(features, "math")[SAE]
        scores = _flaw_scores(parts, features, profile)
        found = {
            "real_counts": pd.read_parquet(features.path("counts.parquet")),
            **cluster_study(tables["math"], latents, parts["math"], open_reader(profile.reader), profile),
            **filter_study(parts["sources"], tables["sources"], plain, profile),
            **flaw_study(parts["valimath"], tables["valimath"], scores, profile.properties, profile.seed),
        }
        for name in TABLES:
            found[name].to_parquet(folder / f"{name}.parquet", index=False)

    settings = {"ladder": to_dict(profile.ladder), "properties": to_dict(profile.properties), "seed": profile.seed}
    return get_or_compute(profile, "real_study", settings, compute, (features,))


def real_tables(profile: Profile) -> dict[str, pd.DataFrame]:
    """Table name -> rows of the CSV table of that name: computed where the real data lie, else as they were published."""
    if not has_real_data(profile):
        return {name: pd.read_csv(paths.PUBLISHED / f"{name}.csv") for name in TABLES}
    stage = real_study_stage(profile)
    return {name: pd.read_parquet(stage.path(f"{name}.parquet")) for name in TABLES}
