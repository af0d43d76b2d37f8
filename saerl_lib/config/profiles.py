"""Profiles: every choice of a run in one frozen record, the only dial. A bad combination raises with the fix in the message."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from saerl_lib.config.plan import PlanConfig
from saerl_lib.config.properties import PropertyConfig
from saerl_lib.config.reading import EncoderConfig, TextModelConfig
from saerl_lib.config.training import GradientConfig, StudyConfig, TrainConfig
from saerl_lib.config.world import WorldConfig


@dataclass(frozen=True)
class MethodConfig:
    """The full control ladder, on the embedded world and on real labelled mathematics (profile `method`)."""

    text_model: TextModelConfig = field(default_factory=TextModelConfig)
    """The LM that reads real text."""
    text_sae: EncoderConfig = field(
        default_factory=lambda: EncoderConfig(sae_k=32, max_dead_share=0.5, tokens_per_batch=8192)
    )
    """Its SAE; the dead share is reported, and bounded loosely, since few tokens are to be had offline (ours)."""
    sae_seeds: int = 3
    """SAEs of each kind that differ in their seed alone; intervals cover them."""
    real_data: str = "required"
    """required: an error without `SAERL_DATA_DIR`; if_present: the world alone then."""
    official_split: bool = True
    """MATH keeps its 7,500 training and 5,000 test problems; otherwise `max_train` and `max_test` bound it too."""
    max_train: int = 3000
    """Labels that a probe is trained on (paper, Table 2: 3,000)."""
    max_test: int = 5000
    """Test problems of one probe (the paper: up to 10,000)."""
    adapted_labels: int = 800
    """Labels of the other source in the adapted regime (paper, Table 2)."""
    workers: int = 2
    """Processes side by side, one thread each."""


@dataclass(frozen=True)
class Profile:
    """One dial: the name decides everything."""

    name: str
    seed: int = 0
    """Base seed of fits, plans and training; `WorldConfig.seed` is separate."""
    world: WorldConfig = field(default_factory=WorldConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    properties: PropertyConfig = field(default_factory=PropertyConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    gradients: GradientConfig = field(default_factory=GradientConfig)
    method: MethodConfig | None = None
    """The full ladder; None: this profile shows the committed one."""
    study: StudyConfig | None = None
    """The full study; None: this profile trains `grpo` and `saerl` and shows the committed study."""
    trains: bool = True
    """Whether notebooks 07 and 08 (GRPO and its evaluation) belong to the profile."""
    pool_samples: int = 1920
    """Prompts kept by the filter and planned once (ours: 240 steps, where plain GRPO still gained on reserved seeds; not
    at 400)."""

    def __post_init__(self) -> None:
        if self.pool_samples % self.plan.prompts_per_step:
            raise ValueError(
                f"pool_samples={self.pool_samples} is no multiple of prompts_per_step={self.plan.prompts_per_step}: "
                "the last step would be short"
            )
        if self.pool_samples > self.world.noisy_pool_samples:
            raise ValueError(f"pool_samples={self.pool_samples} exceeds noisy_pool_samples={self.world.noisy_pool_samples}")
        if self.properties.clusters > self.pool_samples:
            raise ValueError(
                f"clusters={self.properties.clusters} exceeds pool_samples={self.pool_samples}: ask for fewer clusters"
            )

    @property
    def steps(self) -> int:
        """Optimiser steps of one pass over the kept pool."""
        return self.pool_samples // self.plan.prompts_per_step


SMOKE = Profile(
    name="smoke",
    world=WorldConfig(
        labelled_samples=240,
        test_samples=160,
        noisy_pool_samples=196,
        contest_train_samples=60,
        contest_test_samples=120,
        step_labelled_samples=240,
        rated_prompts=48,
        rated_attempts=8,
        eval_problems_small=8,
        eval_problems_full=8,
    ),
    encoder=EncoderConfig(
        sae_latents=512,
        retained_latents=32,
        sae_vectors=20_000,
        sae_heldout_vectors=5_000,
        sae_training_tokens=200_000,
        min_explained_variance=0.5,
        max_dead_share=0.9,
    ),
    properties=PropertyConfig(clusters=4, elastic_net_alphas=8, probe_alphas=10, bootstrap_samples=50, shrinkage_tau=10.0),
    plan=PlanConfig(prompts_per_step=8, window_batches=6),
    train=TrainConfig(seeds=2, eval_every_steps=4, checkpoint_every_steps=4, eval_samples_small=2, eval_samples_full=2),
    gradients=GradientConfig(prompts=24, bootstrap_samples=50),
    method=MethodConfig(
        text_model=TextModelConfig(vocabulary=512, width=32, layers=2, heads=2, feed_forward=64, rows_per_step=8, max_rows=160),
        text_sae=EncoderConfig(
            hook_layer=2, sae_latents=128, sae_k=8, retained_latents=32, sae_vectors=8_000, sae_heldout_vectors=2_000,
            sae_training_tokens=20_000, tokens_per_batch=8192,
        ),
        sae_seeds=1,
        real_data="if_present",
        official_split=False,
        max_train=150,
        max_test=100,
        adapted_labels=50,
    ),
    pool_samples=96,
)

LAPTOP = Profile(name="laptop")

METHOD = Profile(name="method", method=MethodConfig(), trains=False)
"""The world of `laptop` without training, every control of the ladder, and the same on real data."""

STUDY = Profile(
    name="study",
    world=WorldConfig(noisy_pool_samples=6530),
    plan=PlanConfig(prompts_per_step=32, swapped_per_batch=2, window_batches=10),
    train=TrainConfig(seeds=2, learning_rate=8e-5, eval_every_steps=10, checkpoint_every_steps=10),
    pool_samples=3200,
    study=StudyConfig(),
)
"""25,600 rollouts a run, 100 steps of 32 prompts; h = 2 of 32 is the paper's 8 of 128. The learning rate is the pilot's."""

PROFILES: dict[str, Profile] = {"smoke": SMOKE, "laptop": LAPTOP, "method": METHOD, "study": STUDY}
"""Profiles that run here. `paper` is described in the README; it needs hub models and GPUs."""


class UnknownProfileError(ValueError):
    """The profile does not exist."""


def get_profile(name: str, seeds: int | None = None, seed: int | None = None) -> Profile:
    """Return the profile `name`, optionally with another number of matched seeds or another base seed.

    >>> get_profile("smoke").steps
    12

    Raises UnknownProfileError for a name that is not in `PROFILES`.
    """
    if name == "paper":
        raise UnknownProfileError(
            "profile 'paper' needs models and data from the Hugging Face Hub and several GPUs, and notebooks at that scale are "
            "not part of this version yet. ./run_all.sh --profile paper runs its steps (--plan-only: what they take); "
            "--profile laptop runs here"
        )
    if name not in PROFILES:
        raise UnknownProfileError(f"profile {name!r} does not exist; choose one of {', '.join(PROFILES)}")
    profile = PROFILES[name]
    if seeds is not None:
        profile = dataclasses.replace(profile, train=dataclasses.replace(profile.train, seeds=seeds))
    if seed is not None:
        profile = dataclasses.replace(profile, seed=seed)
    return profile
