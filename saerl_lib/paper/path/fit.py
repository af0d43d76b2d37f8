"""Step `plan`, first half: source classifier, clusters, difficulty by equation 10, and what the probes measure (paper, 2 to 4).

The labels of L alone are read. Samples with a label of either kind take scores of models that did not see it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from saerl_lib.artifacts import Stage
from saerl_lib.config import PropertyConfig, sub_seed
from saerl_lib.data.sample import DataError, Sample
from saerl_lib.own.fit import MIN_CLASS, fit_quality
from saerl_lib.own.represent import Representation, finish
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.path.data import group
from saerl_lib.paper.path.encode import features, lengths
from saerl_lib.paper.path.home import Home
from saerl_lib.paper.path.ladder import regimes_table, solutions_table
from saerl_lib.properties.difficulty import DifficultyModel
from saerl_lib.properties.quality import filter_table, keep_top_k, paper_share_k, source_separation
from saerl_lib.properties.scorer import Columns, fit_scorer

POOL = ("labelled", "target", "parent")
"""Groups of the noisy pool."""


def fit_stage(home: Home, data: Stage, encoded: Stage) -> Stage:
    """scores.parquet of the samples that may be planned, filter.csv, separation.csv, clusters.csv, difficulty.csv, solutions.csv.

    Raises DataError when a source has too few samples for the classifier.
    """
    config, settings = home.config, PropertyConfig(clusters=home.config.clusters)

    def compute(folder: Path) -> None:
        samples = [sample for name in POOL for sample in group(data, name)]
        ids = [s.id for s in samples]
        found = finish(features(encoded, POOL), lengths(encoded, ids), "tokens", "SAE features and metadata")
        is_target = np.array([s.source == "deepmath" for s in samples])
        score, held_out = source_scores(found, is_target, config, settings)
        rules = {**paper_share_k(len(ids)), "as many as the target": int(is_target.sum())}
        filter_table(score, ids, is_target, score[held_out & ~is_target], rules).to_csv(folder / "filter.csv", index=False)
        rows = source_separation(score, is_target, n_train=int(held_out.sum()), dataset="deepmath against numinamath",
                                 features="sae", config=settings, seed=sub_seed(config.seed, "separation"))  # fmt: skip
        pd.DataFrame(map(dataclasses.asdict, rows)).to_csv(folder / "separation.csv", index=False)
        kept = is_target if config.train_on == "target" else keep_top_k(score, ids, int(is_target.sum()))
        table, cards = pool_scores(samples, found, kept, config, settings)
        table.assign(source_score=score[table.pop("row")]).to_parquet(folder / "scores.parquet", index=False)
        cards.to_csv(folder / "clusters.csv", index=False)
        regimes_table(data, encoded, config, settings).to_csv(folder / "difficulty.csv", index=False)
        solutions_table(data, encoded, config, settings).to_csv(folder / "solutions.csv", index=False)

    decides = {
        "properties": dataclasses.asdict(settings), "seed": config.seed, "train_on": config.train_on,
        "source_labels": config.source_labels,
        "labelled": config.labelled_samples, "outside": [config.adapted_labels, config.outside_samples],
    }  # fmt: skip
    return home.stage("plan", "scores", decides, compute, (data, encoded))


def source_scores(
    found: Representation, is_target: np.ndarray, config: PaperConfig, settings: PropertyConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the source classifier on z [N] (paper, B.4), and the mask [N] of the samples it was trained on.

    The first `source_labels` of each source, which lie in hash order, are labelled; their scores are out of fold.
    """
    quality = np.full(len(is_target), np.nan)
    for source in (True, False):
        rows = np.flatnonzero(is_target == source)[: config.source_labels]
        if len(rows) < MIN_CLASS:
            name = "deepmath" if source else "numinamath"
            raise DataError(f"{name}: {len(rows)} samples are too few, the source classifier needs {MIN_CLASS} of each source")
        quality[rows] = float(source)
    table = found.table
    z = table.complete().z if found.with_solution else table.prompt_z
    fitted = fit_quality(dataclasses.replace(found, phi=z), quality, settings, config.seed)
    assert fitted is not None  # the classes are large enough
    return fitted.score, np.isfinite(quality)


def pool_scores(
    samples: list[Sample], found: Representation, kept: np.ndarray, config: PaperConfig, settings: PropertyConfig
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row a sample of the pool or of L (row, sample_id, planned, cluster, raw, ranking, label, tokens), and one a cluster.

    Clusters, calibration and residuals see the pool and L; equation 10 ranks every row.
    """
    is_labelled = np.arange(len(samples)) < config.labelled_samples
    rows = np.flatnonzero(kept | is_labelled)
    phi = found.phi[rows]
    known = np.flatnonzero(is_labelled[rows])
    pool = Columns([samples[i].id for i in rows], phi, phi)
    labelled = Columns([pool.ids[i] for i in known], phi[known], phi[known])
    labels = np.array([samples[rows[i]].difficulty for i in known])
    scorer = fit_scorer(pool, labelled, labels, None, settings, config.seed)
    scores = scorer.score(pool)
    table = pd.DataFrame({
        "row": rows, "sample_id": pool.ids, "planned": kept[rows], "cluster": scores["cluster"], "raw": scores["raw"],
        "ranking": scores["ranking"], "label": [samples[i].difficulty for i in rows], "tokens": found.lengths[rows],
    })  # fmt: skip
    assert scorer.difficulty is not None  # L has labels
    return table, cluster_cards(table, scorer.difficulty)


def cluster_cards(table: pd.DataFrame, model: DifficultyModel) -> pd.DataFrame:
    """One row a cluster: size, labelled samples, Delta_c and lambda_c of equation 10, mean score and length."""
    found = model.corrections
    cards = table.groupby("cluster").agg(n=("row", "size"), ranking_mean=("ranking", "mean"), tokens_mean=("tokens", "mean"))
    numbers = {"n_labelled": found.n_labelled, "residual": found.residual, "shrinkage": found.shrinkage}
    return cards.reindex(range(len(found.residual))).assign(**numbers).rename_axis("cluster").reset_index()
