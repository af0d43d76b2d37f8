"""The quality filter on real questions: does it tell two sources apart (Table 6), and does it find flawed ones?

NuminaMath-1.5 is not to be had offline: the sources are DeepMath (target, as in the paper) and DeepScaleR, another pair than
the paper's, in its proportions, with questions alone. They differ in the signs around their formulas, which is no
quality; the controls `delimiters`, `sae_plain` and `tfidf_plain` say how much of the separation that carries.

Flaws are those that people marked in ValiMath, whole questions. Table 3, the score of a solution's steps, needs PRM800K's step
labels, which are not to be had offline either; the embedded world has it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from saerl_lib.config import Profile, PropertyConfig, sub_seed
from saerl_lib.encode.features import FeatureTable
from saerl_lib.encode.metadata import PROMPT_COLUMNS
from saerl_lib.encode.perplexity import measure_surprise
from saerl_lib.properties import Matrix
from saerl_lib.properties.flaws import flaw_rows_from_features, sgd_scores, tuned_scores
from saerl_lib.properties.probes import shuffled
from saerl_lib.properties.quality import filter_table, paper_share_k
from saerl_lib.properties.real_features import FILES, RealPart, flaw_kinds, plain_text
from saerl_lib.properties.selfreg import Target, selfreg_table, suppressed_views
from saerl_lib.properties.text import fit_tfidf
from saerl_lib.report.statistics import bootstrap_weights, rank_metrics

PAPER_SEPARATION = {"roc_auc": 0.9911, "average_precision": 0.9910}
"""Of the paper's source probe on its own two sources (Table 6)."""
SIGNS = (r"\$\$", r"(?<!\$)\$(?!\$)", r"\\[()]", r"\\[\[\]]", r"\n", r"  ")
"""What the control `delimiters` counts: $$, $, \\( \\), \\[ \\], line breaks, double blanks."""
SELFREG = "scaled"
"""Variant of SelfReg among the scores of real_flaws.csv; the others are in real_selfreg.csv (ours)."""
DATASET = "quality_valimath"


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
    found: dict[str, Matrix] = {"sae": tables["sae#0"].z}
    found |= {f"sae_seed_{n.split('#')[1]}": t.z for n, t in tables.items() if n.startswith("sae#") and n != "sae#0"}
    found |= {"sae_plain": plain["sae#0"].z, "sae_untrained": tables["sae_untrained#0"].z, "dense": tables["dense"].z}
    found["metadata"] = tables["sae#0"].metadata[:, PROMPT_COLUMNS]
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
    z, metadata, valid = tables["sae#0"].z, tables["sae#0"].metadata[:, PROMPT_COLUMNS], part.data.labels["valid"] > 0.5
    train, test, seed = part.where("train"), part.where("test"), sub_seed(seed, "real-flaws")
    views = suppressed_views(z[train], metadata[train], z[test], metadata[test], seed)
    probes = {
        "flaw_probe_selfreg": sgd_scores(views[SELFREG][0], ~valid[train], views[SELFREG][1], seed, standardise=False),
        "flaw_probe_sae_untrained": tuned_scores(*_sides(tables["sae_untrained#0"].z, ~valid, train, test), seed),
        "flaw_probe_dense": tuned_scores(*_sides(tables["dense"].z, ~valid, train, test), seed),
    }
    scores = dict(extra)
    for name, values in probes.items():
        scores[name] = np.full(len(valid), np.nan)
        scores[name][test] = values
    flaws = flaw_rows_from_features(
        z, metadata, part.texts, valid, part.role.tolist(), dataset=DATASET, keep_share=float(valid[train].mean()),
        config=config, seed=seed, kinds=flaw_kinds(part), extra_scores=scores,
    )  # fmt: skip
    length, everything = np.array([len(part.texts[i]) for i in test], dtype=float), np.ones(len(test), dtype=bool)
    targets = {"flaw": Target(~valid[test], everything)}
    selfreg = selfreg_table(views, ~valid[train], targets, length, dataset=DATASET, config=config, seed=seed)
    return {"real_flaws": flaws, "real_selfreg": selfreg}


def _sides(x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return x[train], y[train], x[test]
