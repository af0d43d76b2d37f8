"""`saerl_online`: the prompts whose *current* pass rate is predicted nearest to one half, from their features (ours).

In one pass over a pool no prompt is seen twice, so that a posterior a prompt knows nothing of the next one; features do. A ridge
model of the mean reward of a prompt's group on its features is updated after every step with the rewards that training makes
anyway, older ones weighing less, since the policy moves. It starts from the offline difficulty: the easier a prompt is rated, the
higher its first rate. No rollout is made for it. With D features a step of b prompts costs one product of b D^2, one linear
system of D^3 / 3 and one pass over the N D numbers of the pool: 986 features of 6,000 prompts took 35 ms of one core.

The features are what its twins differ in: the SAE's phi, blurred or not, TF-IDF, dense activations, the cluster alone, the SAE's
dealt to other prompts, and as a ceiling the base policy's measured pass rate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.linalg

from saerl_lib.config import sub_seed
from saerl_lib.plan.orders import standardised_space
from saerl_lib.properties.clusters import CLIP

if TYPE_CHECKING:
    from saerl_lib.train.arms import ArmPool, ArmSetting

FORGETTING = 0.999
"""Weight that an observation keeps for each further prompt: a half after 693 (ours)."""
SPREAD = 0.25
"""Deviation of pass rates that the offline difficulty is taken to have at first (ours)."""
EXPLORED = 1 / 16
"""Share of a step drawn at random, at least one prompt: the paper's h = 8 of 128, spent on exploration (ours)."""
MOST = 1 / 4
"""Largest share of a step from one cluster (ours)."""
NEEDS = {"shuffled": ("phi@sae", "ranking"), "cluster": ("cluster", "ranking"), "rate": ("pass_rate",)}
"""Features -> the columns of the pool that they are made of; of every other name: phi@name, and ranking (of another encoder's
features that of its own, as ranking@name)."""


def needs(features: str) -> tuple[str, ...]:
    """The columns that `saerl_online` reads for these features; the cluster spreads the choice whatever they are.

    >>> needs("sae"), needs("tfidf"), needs("rate")
    (('cluster', 'phi@sae', 'ranking'), ('cluster', 'phi@tfidf', 'ranking@tfidf'), ('cluster', 'pass_rate'))
    """
    own = (f"phi@{features}", "ranking" if features == "sae" else f"ranking@{features}")
    return tuple(dict.fromkeys(("cluster", *NEEDS.get(features, own))))


class OnlineRates:
    """Predicts each prompt's current pass rate, takes the unseen ones nearest to one half; a new pass begins when few are left.

    rate = 1/2 - SPREAD x difficulty + w . (1, difficulty, x), where w minimises the squared error of all groups so far, weighted
    by forgetting, plus a ridge of 1 on the first two weights and of D on those of x: together these weigh as one of the first.
    """

    def __init__(self, x: np.ndarray, difficulty: np.ndarray, clusters: np.ndarray, seed: int) -> None:
        """x [N, D] and difficulty [N] standardised, clusters [N]; `seed` draws the prompts of the exploration."""
        n, d = x.shape
        self.design = np.concatenate([np.ones((n, 1)), difficulty[:, None], x], axis=1)
        self.start, self.clusters = 0.5 - SPREAD * difficulty, np.unique(clusters, return_inverse=True)[1]
        self.ridge = np.array([1.0, 1.0, *[float(d)] * d])
        self.gram, self.moment, self.weights = np.zeros((d + 2, d + 2)), np.zeros(d + 2), np.zeros(d + 2)
        self.unseen, self.rng = np.ones(n, dtype=bool), np.random.default_rng(seed)

    @property
    def rates(self) -> np.ndarray:
        """Predicted pass rate of every prompt now, [N], not cut to 0..1."""
        return self.start + self.design @ self.weights

    def next(self, count: int) -> np.ndarray:
        """`count` rows: the nearest to one half, at most a share `MOST` of the step from a cluster while others are left, and a
        share `EXPLORED` of the rest at random."""
        if self.unseen.sum() < count:
            self.unseen[:] = True
        rows = np.flatnonzero(self.unseen)
        rows = rows[np.argsort(np.abs(self.rates[rows] - 0.5), kind="stable")]
        by_cluster = np.argsort(self.clusters[rows], kind="stable")
        sizes = np.unique(self.clusters[rows], return_counts=True)[1]
        place = np.empty(len(rows), dtype=np.int64)
        place[by_cluster] = np.arange(len(rows)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        wanted = count - max(1, round(EXPLORED * count))
        chosen = rows[np.argsort(place >= np.ceil(MOST * count), kind="stable")][:wanted]
        self.unseen[chosen] = False
        explored = self.rng.choice(np.flatnonzero(self.unseen), count - wanted, replace=False)
        self.unseen[explored] = False
        return np.concatenate([chosen, explored])

    def told(self, rows: np.ndarray, rewards: np.ndarray) -> None:
        """Learn from rewards [count, G] what the features said of these prompts."""
        seen, kept = self.design[rows], FORGETTING ** len(rows)
        self.gram = kept * self.gram + seen.T @ seen
        self.moment = kept * self.moment + seen.T @ (rewards.mean(axis=1) - self.start[rows])
        self.weights = scipy.linalg.solve(self.gram + np.diag(self.ridge), self.moment, assume_a="pos")


def online(pool: ArmPool, setting: ArmSetting, features: str = "sae") -> OnlineRates:
    """`saerl_online` on the named features; without a difficulty of their own, they start from what they say themselves: the mean
    difficulty of the cluster, or the measured failure rate."""
    clusters = pool.column("cluster")
    if features == "cluster":
        x = (clusters[:, None] == np.unique(clusters)).astype(float)
        difficulty = x @ (x.T @ pool.column("ranking") / x.sum(axis=0))
    elif features == "rate":
        difficulty = 1.0 - pool.column("pass_rate")
        x = difficulty[:, None]
    else:
        phi, ranking = needs(features)[1:]
        x, difficulty = np.stack(list(pool.column(phi))), pool.column(ranking)
    if features == "shuffled":
        other = np.random.default_rng(sub_seed(0, "online-shuffled")).permutation(len(x))
        x, difficulty = x[other], difficulty[other]
    x, difficulty = (np.clip(standardised_space(v), -CLIP, CLIP) for v in (x, difficulty[:, None]))  # as k-means sees them
    return OnlineRates(x, difficulty[:, 0], clusters, setting.seed)
