"""Selectors: arms that choose the prompts of each step while training runs, by the rewards before it.

A fixed order walked from the start, the rivals ADARFT (arXiv 2504.05520), GAINRL (2506.02281), MoPPS (2507.04632) and SEC
(2505.14970, with SAE clusters as categories), and `saerl_online` (ours): the prompts whose *current* pass rate is predicted
nearest to one half, from their features. In one pass over a pool no prompt is seen twice, so that a posterior a prompt knows
nothing of the next one; features do. N samples in pool order, a row number stands for a sample, G rollouts a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd
import scipy.linalg

from saerl_lib.config import sub_seed
from saerl_lib.plan.orders import standardised_space
from saerl_lib.properties.clusters import CLIP

if TYPE_CHECKING:
    from saerl_lib.train.arms import ArmPool, ArmSetting


class Selector(Protocol):
    """Decides during training; the same calls must give the same rows, since a resumed run replays them."""

    def next(self, count: int) -> np.ndarray:
        """Row numbers [count] of the prompts to roll out now."""

    def told(self, rows: np.ndarray, rewards: np.ndarray) -> None:
        """Rewards [count, G] of the rows handed out last."""


class InOrder:
    """A selector that walks a fixed order, from the start again when it ends."""

    def __init__(self, rows: Sequence[int] | np.ndarray) -> None:
        self.rows, self.place = np.asarray(rows, dtype=np.int64), 0

    def next(self, count: int) -> np.ndarray:
        """The next `count` rows."""
        places = np.arange(self.place, self.place + count) % len(self.rows)
        self.place += count
        return self.rows[places]

    def told(self, rows: np.ndarray, rewards: np.ndarray) -> None:
        """Rewards change nothing."""


class AdaptiveTarget:
    """ADARFT: the prompts whose difficulty, 100 (1 - base pass rate), is nearest to a target that follows the reward.

    T <- clip(T + 50 tanh(2 (mean reward - 0.5)), 0, 100), from 0 on. The public code does not mark prompts as used, so it repeats
    them until the target moves; with `once` each is used once a pass (ours).
    """

    def __init__(self, difficulties: np.ndarray, once: bool = False) -> None:
        self.difficulties, self.target, self.once = difficulties, 0.0, once
        self.unused = np.ones(len(difficulties), dtype=bool)

    def next(self, count: int) -> np.ndarray:
        """The `count` nearest, ties by row; with `once` a new pass begins when too few are left."""
        if self.unused.sum() < count:
            self.unused[:] = True
        distance = np.where(self.unused, np.abs(self.difficulties - self.target), np.inf)
        rows = np.argsort(distance, kind="stable")[:count]
        self.unused[rows] = not self.once
        return rows

    def told(self, rows: np.ndarray, rewards: np.ndarray) -> None:
        """Move the target by the step's mean reward."""
        self.target = float(np.clip(self.target + 50.0 * np.tanh(2.0 * (float(rewards.mean()) - 0.5)), 0.0, 100.0))


PACE = 1000 / 256
"""Most ranks that the mean moves a sample (GAINRL's public script)."""


class MovingGaussian:
    """GAINRL: distinct prompts within a step, drawn by a moving Gaussian over the rank of their angle concentration.

    Ranks are in descending score. The mean moves by clip(M/2 tanh(2 (accuracy - 0.5)) + M/2 tanh(2 mean score), 0, M). In the
    public script M is 1,000 ranks a round of 256 samples, the deviation 1,000 in pools of 7,500 to 40,000 prompts; here a round
    is a step of the same pace a sample, the deviation a twentieth of the pool, and the mean stops at the last rank (ours).
    """

    def __init__(self, scores: np.ndarray, seed: int) -> None:
        self.scores = scores
        self.ranked = np.lexsort((np.arange(len(scores)), -scores))
        self.mean, self.rng = 0.0, np.random.default_rng(seed)

    def next(self, count: int) -> np.ndarray:
        """`count` rows drawn with the Gaussian's weights, without repetition."""
        ranks = np.arange(len(self.ranked))
        log_weight = -0.5 * ((ranks - self.mean) / (len(ranks) / 20)) ** 2
        noisy = log_weight + self.rng.gumbel(size=len(ranks))
        return self.ranked[np.argsort(-noisy, kind="stable")[:count]]

    def told(self, rows: np.ndarray, rewards: np.ndarray) -> None:
        """Move the mean by accuracy and score of the step."""
        most, accuracy, score = PACE * len(rows), float(rewards.mean()), float(self.scores[rows].mean())
        moved = most / 2 * np.tanh(2.0 * (accuracy - 0.5)) + most / 2 * np.tanh(2.0 * score)
        self.mean = min(self.mean + float(np.clip(moved, 0.0, most)), len(self.ranked) - 1)


DISCOUNT, PRIOR = 0.5, 1.0
"""MoPPS: lambda, the weight of the old posterior (not stated in the facts at hand; ours), and a0 and b0."""


class PosteriorSampling:
    """MoPPS: a Beta posterior of each prompt's pass rate; Thompson sampling towards one half."""

    def __init__(self, prompts: int, seed: int) -> None:
        self.a, self.b = np.full(prompts, PRIOR), np.full(prompts, PRIOR)
        self.rng = np.random.default_rng(seed)

    def next(self, count: int) -> np.ndarray:
        """The `count` prompts whose drawn pass rate is nearest to one half."""
        return np.argsort(np.abs(self.rng.beta(self.a, self.b) - 0.5), kind="stable")[:count]

    def told(self, rows: np.ndarray, rewards: np.ndarray) -> None:
        """a <- lambda a + (1 - lambda) a0 + successes, b likewise with failures."""
        solved = rewards.sum(axis=1)
        self.a[rows] = DISCOUNT * self.a[rows] + (1 - DISCOUNT) * PRIOR + solved
        self.b[rows] = DISCOUNT * self.b[rows] + (1 - DISCOUNT) * PRIOR + rewards.shape[1] - solved


class ClusterBandit:
    """SEC: a bandit over clusters whose reward is the mean |advantage|.

    Draws clusters by softmax(Q), prompts of a cluster in random order, again when it is used up; Q learns at a rate of one half
    (rate and temperature are not stated in the facts at hand; ours).
    """

    def __init__(self, clusters: np.ndarray, seed: int) -> None:
        self.names = np.unique(clusters)
        self.members = [np.flatnonzero(clusters == name) for name in self.names]
        self.number = np.searchsorted(self.names, clusters)
        self.value, self.rng = np.zeros(len(self.names)), np.random.default_rng(seed)
        self.dealt: list[list[int]] = [[] for _ in self.names]

    def next(self, count: int) -> np.ndarray:
        """`count` rows."""
        odds = np.exp(self.value - self.value.max())
        rows = []
        for arm in self.rng.choice(len(self.names), size=count, p=odds / odds.sum()):
            if not self.dealt[arm]:
                self.dealt[arm] = list(self.rng.permutation(self.members[arm]))
            rows.append(self.dealt[arm].pop())
        return np.asarray(rows, dtype=np.int64)

    def told(self, rows: np.ndarray, rewards: np.ndarray) -> None:
        """Q_c <- mean of Q_c and the mean |advantage| of the step's prompts of c; that of a group of equal rewards is 0."""
        deviation = rewards.std(axis=1, ddof=1)
        spread = np.abs(rewards - rewards.mean(axis=1, keepdims=True)).mean(axis=1)
        gain = np.divide(spread, deviation, out=np.zeros(len(rewards)), where=deviation > 0)
        for arm in np.unique(self.number[rows]):
            self.value[arm] = 0.5 * gain[self.number[rows] == arm].mean() + 0.5 * self.value[arm]


# Rates predicted from features.

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

    A ridge model of the mean reward of a prompt's group on its features is updated after every step with the rewards that
    training makes anyway, older ones weighing less, since the policy moves. It starts from the offline difficulty. No rollout is
    made for it. With D features a step of b prompts costs one product of b D^2, one linear system of D^3 / 3 and one pass over
    the N D numbers of the pool: 986 features of 6,000 prompts took 35 ms of one core.

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
        place = pd.Series(rows).groupby(self.clusters[rows]).cumcount().to_numpy()
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
    """`saerl_online` on the named features, which its twins differ in: the SAE's phi, blurred or not, TF-IDF, dense activations,
    the cluster alone, the SAE's dealt to other prompts, and as a ceiling the base policy's pass rate.

    Those without a difficulty of their own start from the mean difficulty of the cluster, or the measured failure rate."""
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
