"""Probes, clusters and difficulty."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PropertyConfig:
    """Probes, clusters and difficulty."""

    clusters: int = 10
    """K of MiniBatchKMeans (paper, section 4)."""
    cluster_fit_rows: int = 10_000
    """Largest number of samples that k-means is fitted on; of more, a seeded subsample (not stated in the paper; ours)."""
    smallest_cluster: int = 1
    """A cluster of fewer samples is merged into its neighbours; 1 only drops empty ones (not stated in the paper; ours)."""
    elastic_net_alphas: int = 20
    """Length of the alpha path, chosen by cross-validation on L (not stated in the paper; ours)."""
    probe_alphas: int = 30
    """Length of the alpha path of the difficulty probes (ours)."""
    shrinkage_tau: float = 50.0
    """tau_sh of equation 10, in labelled samples (not stated in the paper; ours)."""
    bootstrap_samples: int = 500
    """Resamples of every probe interval (ours)."""

    def __post_init__(self) -> None:
        if self.shrinkage_tau <= 0:
            raise ValueError(f"shrinkage_tau={self.shrinkage_tau} must be positive (equation 10)")
        if self.smallest_cluster < 1:
            raise ValueError(f"smallest_cluster={self.smallest_cluster} must be at least 1: 1 merges nothing")
        if self.cluster_fit_rows < self.clusters:
            raise ValueError(
                f"cluster_fit_rows={self.cluster_fit_rows} is below clusters={self.clusters}: fit k-means on more samples"
            )
