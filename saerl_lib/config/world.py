"""The embedded world and its policy's gradients: sizes of the splits (ours; the paper's where it states them)."""

from __future__ import annotations

from dataclasses import dataclass

WORLD_VERSION = "1"
"""Version of the embedded world; raised whenever a generated sample may change."""
WORLD_PARTS = ("policy", "policy_large", "encoder", "encoder_all_families", "mixture")
"""What `world --rebuild` makes, in this order."""


@dataclass(frozen=True)
class WorldConfig:
    """How many samples each split of the embedded world holds (ours; sizes follow the paper where it states them)."""

    seed: int = 2605
    """Base seed of every generated split."""
    labelled_samples: int = 3000
    """Difficulty-labelled subset L (paper, section 4: 3,000); disjoint from the RL pool."""
    test_samples: int = 2000
    """Held-out target-source samples for the in-domain probes."""
    noisy_pool_samples: int = 3920
    """Target plus parent samples before the quality filter."""
    target_share: float = 103_022 / 210_043
    """Share of the target source in the noisy pool (paper, Table 6)."""
    contest_train_samples: int = 800
    """Extra labels of the third source in the adapted regime (paper, Table 2)."""
    contest_test_samples: int = 2000
    """Third-source test samples (the paper has 10,000)."""
    step_labelled_samples: int = 4000
    """Solutions with step labels for the quality regression (Table 3); 3/4 train, 1/4 test."""
    rated_prompts: int = 1000
    """Pool prompts whose base pass rate is measured."""
    rated_attempts: int = 32
    """Attempts of the base policy at each of them."""
    eval_problems_small: int = 64
    """Problems of each evaluation set used during training."""
    eval_problems_full: int = 200
    """Problems of each evaluation set at the first and the last step."""

    def __post_init__(self) -> None:
        if self.eval_problems_small > self.eval_problems_full:
            raise ValueError(
                f"eval_problems_small={self.eval_problems_small} exceeds eval_problems_full={self.eval_problems_full}: "
                "the small sets are the first problems of the full ones; lower eval_problems_small"
            )
        if not 0.0 < self.target_share < 1.0:
            raise ValueError(f"target_share={self.target_share} must lie strictly between 0 and 1")
