"""Clusters and their agreement with topics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from saerl_lib.properties import clusters
from saerl_lib.properties.clusters import Clusters


def blobs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three well separated groups of 20 in the plane."""
    group = np.repeat([0, 1, 2], 20)
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 1000.0]])
    noise = np.random.default_rng(seed).normal(size=(60, 2)) * [0.5, 50.0]
    return (centres[group] + noise).astype(np.float32), group


def test_separated_groups_are_found_and_the_fit_repeats() -> None:
    phi, group = blobs()
    fitted = clusters.fit_clusters(phi, 3, seed=1)
    labels = fitted.assign(phi).label
    assert clusters.agreement(labels, group) == clusters.Agreement(purity=1.0, nmi=1.0, ari=1.0)
    assert (fitted.k, fitted.n_dropped) == (3, 0)
    np.testing.assert_array_equal(fitted.centroids, clusters.fit_clusters(phi, 3, seed=1).centroids)


def test_another_seed_gives_another_fit() -> None:
    phi = np.random.default_rng(0).normal(size=(200, 5))
    first, other = (clusters.fit_clusters(phi, 6, seed).centroids for seed in (1, 2))
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_assignment_by_hand() -> None:
    centroids = np.array([[0.0, 0.0], [3.0, 0.0]])
    fitted = Clusters(mean=np.array([1.0, 0.0]), scale=np.array([2.0, 1.0]), centroids=centroids, n_dropped=0)
    found = fitted.assign(np.array([[1.0, 0.5], [7.0, 4.0], [4.0, 0.0]]))
    assert found.label.tolist() == [0, 1, 0]  # the last one lies half-way: lowest number
    assert found.distance.tolist() == [0.5, 4.0, 1.5]
    assert fitted.runner_up(np.array([[1.0, 0.5], [7.0, 4.0]]), np.array([0, 1])).tolist() == [1, 0]
    assert replace(fitted, centroids=centroids[:1]).runner_up(np.zeros((2, 2)), np.zeros(2, int)).tolist() == [-1, -1]


@pytest.mark.parametrize("smallest", [1, 4])
def test_clusters_are_numbered_by_size_then_by_their_first_sample(smallest: int) -> None:
    centres = np.repeat([[0.0, 9.0], [9.0, 0.0], [0.0, 0.0], [9.0, 9.0]], (20, 30, 20, 3), axis=0)
    phi = centres + np.random.default_rng(0).normal(size=centres.shape) * 0.1
    for seed in range(3):
        label = clusters.fit_clusters(phi, 4, seed, smallest=smallest).assign(phi).label
        assert label[[20, 0, 50]].tolist() == [0, 1, 2] and (label[72] == 3) == (smallest == 1), "ties go by first sample"


def test_empty_clusters_are_dropped_and_renumbered() -> None:
    phi = np.repeat([[0.0, 0.0], [5.0, 5.0]], 10, axis=0)
    fitted = clusters.fit_clusters(phi, 4, seed=0)
    assert (fitted.k, fitted.n_dropped) == (2, 2)
    assert set(fitted.assign(phi).label) == {0, 1}


def test_a_rare_feature_takes_no_centroid_for_itself() -> None:
    phi, group = blobs()
    phi = np.column_stack([phi, np.where(np.arange(60) == 4, 1e6, 0.0), np.where(np.arange(60) == 50, 1e6, 0.0)])
    fitted = clusters.fit_clusters(phi, 3, seed=0)
    assert np.bincount(fitted.assign(phi).label).min() > 10
    assert np.abs(fitted.standardise(phi)).max() == clusters.CLIP


def test_agreement_and_entropy_by_hand() -> None:
    labels, topics = np.array([0, 0, 0, 1, 1]), np.array(["a", "a", "b", "b", "b"])
    assert clusters.agreement(labels, topics).purity == 0.8
    assert clusters.topic_entropy(["a", "a", "b", "b"]) == 1.0
    assert clusters.topic_entropy(["a", "a"]) == 0.0
    rows = clusters.cluster_topics(labels, topics)
    assert rows.to_numpy().tolist() == [[0, "a", 2], [0, "b", 1], [1, "b", 2]]
    summary = clusters.topic_summary(labels, topics)
    assert summary["top_topic"].tolist() == ["a", "b"]
    assert summary["top_share"].tolist() == [pytest.approx(2 / 3), 1.0]
    assert summary["topic_entropy_bits"].tolist() == [pytest.approx(0.9183, abs=1e-4), 0.0]


def test_independent_labels_do_not_agree() -> None:
    rng = np.random.default_rng(0)
    found = clusters.agreement(rng.integers(0, 5, 2000), rng.integers(0, 5, 2000))
    assert abs(found.ari) < 0.01
    assert found.nmi < 0.02


def test_bad_input_names_the_field_and_the_fix() -> None:
    phi, _ = blobs()
    with pytest.raises(ValueError, match="clusters=61 exceeds the 60 samples: lower PropertyConfig.clusters"):
        clusters.fit_clusters(phi, 61, seed=0)
    with pytest.raises(ValueError, match="clusters=0"):
        clusters.fit_clusters(phi, 0, seed=0)
    fitted = clusters.fit_clusters(phi, 2, seed=0)
    with pytest.raises(ValueError, match="fitted on 2 columns"):
        fitted.assign(np.zeros((3, 4)))
    phi[3, 1] = np.inf
    with pytest.raises(ValueError, match="phi holds 1 non-finite values, first in row 3"):
        clusters.fit_clusters(phi, 3, seed=0)
