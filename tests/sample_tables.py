"""Small synthetic tables of every schema, for the tests of figures, claims and Markdown."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd

from saerl_lib import paths
from saerl_lib.report import claims
from saerl_lib.report.tables import SCHEMAS, write_csv

SETS = ("easy_a", "hard", "hardest")


def frame(name: str, rows: list[tuple]) -> pd.DataFrame:
    """Rows as a frame with the columns of a schema."""
    return pd.DataFrame(rows, columns=list(SCHEMAS[name].columns))


def world_tables() -> dict[str, pd.DataFrame]:
    """Tables of notebook 00."""
    nan = float("nan")
    gates = [
        ("guess rate", 0.002, nan, 0.01, True, 400, "", ""),
        ("Spearman of difficulty with solution length, a gate with a long name", 0.9, nan, 0.6, False, 300, "rho", "x"),
        ("TF-IDF leaf accuracy", 0.62, 0.4, 0.8, True, nan, None, None),
        (claims.ORDER_GATE, 1.5, 1.0, nan, True, 3, "", ""),
    ]
    shares = [0.4, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.2]
    return {
        "world_gates": frame("world_gates", gates),
        "pass_rates": frame("pass_rates", [(i / 10, (i + 1) / 10, s, 0.1, 100, 4000) for i, s in enumerate(shares)]),
    }


def property_tables() -> dict[str, pd.DataFrame]:
    """Tables of notebooks 01 to 05."""
    nan = float("nan")
    accuracy = {"majority": 0.2, "tfidf": 0.6, "sae": 0.5}
    ladder = [("world", t, "accuracy", f, v, v - 0.03, v + 0.03, 90, 40)
              for t in ("topic_l2", "topic_l3", "topic_leaf") for f, v in accuracy.items()]  # fmt: skip
    rho = {"difficulty_in_domain": 0.7, "difficulty_out_of_domain": 0.2, "difficulty_adapted": 0.25}
    ladder += [("world", t, "spearman", "sae", v, v - 0.1, v + 0.1, 90, 40) for t, v in rho.items()]
    ladder += [("world", "solution_quality", "pearson", f, v, v - 0.01, v + 0.01, 90, 40)
               for f, v in (("metadata", 0.35), ("sae", 0.3))]  # fmt: skip
    ladder.append(("world", "solution_quality", "pearson", "mean", nan, nan, nan, 90, 40))
    real = [("math_test", t, m, f, v, v - 0.02, v + 0.02, 700, 300)
            for t, m in (("subject", "accuracy"), ("difficulty_level", "spearman"))
            for f, v in (("majority", 0.24), ("tfidf", 0.7), ("dense", 0.6), ("sae_untrained", 0.5), ("sae", 0.55))]  # fmt: skip
    bins = [(s, b, 12, b + 0.1, b, b - 0.5, b + 0.5) for s in ("raw", "global", "ranking") for b in range(3)]
    kept = [("full", 100, 100, 50, 0.5, 1.0, 0.4905, 1.0), ("p95", 50, 100, 45, 0.9, 0.9, 0.9537, 0.9546),
            ("top_k used", 40, 100, 38, 0.95, 0.76, nan, nan)]  # fmt: skip
    scores = [(s, i / 4, (i + 1) / 4, share, 50) for s, shares in (("target", (0, 0.1, 0.3, 0.6)), ("parent", (0.6, 0.3, 0.1, 0)))
              for i, share in enumerate(shares)]  # fmt: skip
    return {
        "world_probes": frame("world_probes", ladder),
        "probe_ladder": frame("probe_ladder", [*ladder, *real]),
        "calibration": frame("calibration", bins),
        "filter": frame("filter", kept),
        "filter_scores": frame("filter_scores", scores),
    }


def run_tables(seeds: int) -> dict[str, pd.DataFrame]:
    """Tables of notebooks 06 to 08."""
    diversity = [("random", 0, "pca2", 1.4, 1.3, 1.5, 4), ("saerl_before_mixing", 0, "pca2", 1.0, 0.9, 1.1, 4),
                 ("saerl", 1, "pca2", 1.5, 1.4, 1.6, 4), ("saerl", 2, "pca2", 1.7, 1.6, 1.8, 4)]  # fmt: skip
    gain = {"grpo": 0.0, "saerl": 0.02}
    training = [(a, s, t, 0.3 + t / 40 + g, 0.4, None, None, 20.0) for a, g in gain.items() for s in range(seeds)
                for t in range(1, 5)]  # fmt: skip
    curves = []
    for arm, g in gain.items():
        for seed in range(seeds):
            noise = 0.002 * seed * (arm == "saerl")
            for step in (0, 2, 4):
                for name in SETS:
                    value = 0.4 + step / 20 + (g + noise) * (step > 0)
                    curves.append((arm, seed, step, name, "avg_at_k", value, 8, 2))
                    if name == "hardest":
                        curves.append((arm, seed, step, name, "pass_at_k", value + 0.1 + g * (step > 0), 8, 2))
                    if step == 4:
                        curves.append((arm, seed, step, name, "avg_at_k", value + g, 20, 8))
                curves.append((arm, seed, step, "all", "avg_at_k", 0.4, 24, 2))
    paired = [(n, "pass_at_k" if n == "hardest" else "avg_at_k", 2.0, 0.5, 3.5, seeds, 8, 1.1) for n in (*SETS, "all")]
    steps = [(n, 0.5, a, s, None if (n, a) == ("hard", "grpo") else 2.0) for n in SETS for a in gain for s in range(seeds)]
    return {
        "inbatch_diversity": frame("inbatch_diversity", diversity),
        "training_curves": frame("training_curves", training),
        "learning_curves": frame("learning_curves", curves),
        "paired_difference": frame("paired_difference", paired),
        "steps_to_target": frame("steps_to_target", steps),
    }


def write_tables(folder: Path, seeds: int = 2) -> Path:
    """Every table: the synthetic ones, and the committed ones of those that have no synthetic rows here."""
    made = world_tables() | property_tables() | run_tables(seeds)
    for name in SCHEMAS:
        frame_of = made.get(name)
        if frame_of is not None:
            write_csv(frame_of, name, folder)
        elif (paths.FIGURES / "data" / f"{name}.csv").is_file():
            shutil.copyfile(paths.FIGURES / "data" / f"{name}.csv", folder / f"{name}.csv")
    return folder
