"""The figures by name: which tables each is drawn from, and drawing them from `figures/data/*.csv` alone.

Needs no model, no GPU and no download; the same tables give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from saerl_lib.report import (
    plots_arm_tables,
    plots_arms,
    plots_audit,
    plots_filter,
    plots_flaws,
    plots_gap,
    plots_gradients,
    plots_ladder,
    plots_open_choices,
    plots_plan,
    plots_properties,
    plots_real,
    plots_training,
    plots_world,
    style,
)
from saerl_lib.report.schemas import SCHEMAS, TableError, read_table, write_csv

__all__ = ["FIGURES", "SCHEMAS", "TableError", "draw", "draw_all", "read_table", "write_csv"]

FIGURES: dict[str, tuple[tuple[str, ...], Callable[..., Figure]]] = {
    "world_gates": (("world_gates",), plots_world.world_gates),
    "pass_rates": (("pass_rates",), plots_world.pass_rates),
    "difficulty_vs_pass_rate": (("difficulty_vs_pass_rate",), plots_world.difficulty_vs_pass_rate),
    "sae_quality": (("sae_quality",), plots_properties.sae_quality),
    "sae_map": (("sae_map",), plots_properties.sae_map),
    "representation": (("representation",), plots_ladder.representation),
    "world_probes": (("world_probes",), plots_properties.probe_ladder),
    "probe_ladder_world": (("probe_ladder",), plots_ladder.probe_ladder_world),
    "probe_ladder": (("probe_ladder",), plots_ladder.probe_ladder),
    "calibration": (("calibration",), plots_properties.calibration),
    "cluster_topics": (("cluster_topics",), plots_properties.cluster_topics),
    "cluster_audit": (("cluster_audit",), plots_audit.cluster_audit),
    "feature_groups": (("feature_groups",), plots_audit.feature_groups),
    "filter": (("filter", "filter_scores"), plots_filter.filter_rules),
    "filter_flaws": (("filter_flaws",), plots_flaws.filter_flaws),
    "filter_selfreg": (("filter_selfreg",), plots_flaws.filter_selfreg),
    "real_clusters": (("real_clusters",), plots_real.real_clusters),
    "real_cluster_audit": (("real_cluster_audit",), plots_real.real_cluster_audit),
    "real_feature_groups": (("real_feature_groups",), plots_real.real_feature_groups),
    "real_filter": (("real_filter", "real_separation"), plots_real.real_filter),
    "real_flaws": (("real_flaws",), plots_real.real_flaws),
    "real_selfreg": (("real_selfreg",), plots_real.real_selfreg),
    "batch_composition": (("batch_composition",), plots_plan.batch_composition),
    "inbatch_diversity": (("inbatch_diversity",), plots_plan.inbatch_diversity),
    "sample_audit": (("sample_audit",), plots_audit.sample_audit),
    "label_curve": (("label_curve",), plots_open_choices.label_curve),
    "plan_sensitivity": (("plan_sensitivity",), plots_open_choices.plan_sensitivity),
    "gradient_coherence": (("gradient_coherence",), plots_gradients.gradient_coherence),
    "mixing_theory": (("mixing_theory", "mixing_curve"), plots_gradients.mixing_theory),
    "training_curves": (("training_curves",), plots_training.training_curves),
    "learning_curves": (("learning_curves",), plots_training.learning_curves),
    "paired_difference": (("paired_difference",), plots_training.paired_difference),
    "study_pilot": (("study_pilot",), plots_arms.study_pilot),
    "study_effects": (("study_comparisons",), plots_arms.study_effects),
    "study_curves": (("study_runs",), plots_arms.study_curves),
    "study_gap": (("study_runs",), plots_gap.study_gap),
    "study_sets": (("study_paper_tables",), plots_arm_tables.study_sets),
    "preparation_cost": (("preparation_cost",), plots_arm_tables.preparation_cost),
    "study_mixing": (("study_mixing",), plots_arm_tables.study_mixing),
}
"""Figure name -> (names of its tables, function of these tables)."""


def draw(name: str, data_folder: Path, figure_folder: Path) -> Path:
    """Draw figure `name` from its CSV tables; returns the PNG, the PDF lies beside it.

    Raises TableError for an unknown figure, a missing table or a missing column (naming the notebook that writes it),
    ArtifactError when the folder cannot be written.
    """
    if name not in FIGURES:
        raise TableError(f"figure {name!r} is not known; choose one of {', '.join(FIGURES)}")
    tables, function = FIGURES[name]
    figure = function(*(read_table(table, data_folder) for table in tables))
    return style.save(figure, name, figure_folder)


def draw_all(data_folder: Path, figure_folder: Path) -> list[Path]:
    """Draw every figure of the registry, in its order; raises as `draw` does."""
    return [draw(name, data_folder, figure_folder) for name in FIGURES]
