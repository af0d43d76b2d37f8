"""GRPO, the gradients at the base policy, and the RL study."""

from __future__ import annotations

from dataclasses import dataclass

ENGINES, LOSSES = ("packed", "trl"), ("grpo", "dapo")


@dataclass(frozen=True)
class TrainConfig:
    """GRPO with TRL: one record for the world's runs, the command `train` and the paper's."""

    seeds: int = 3
    """Matched seeds; seed i fixes rollouts and evaluation of every arm."""
    rollouts_per_prompt: int = 8
    """G, completions of one group (paper, section C.2)."""
    learning_rate: float = 4e-5
    """Constant: a decaying rate would confound order (the paper: 1e-6 on 1.5B parameters)."""
    temperature: float = 1.0
    """Rollout temperature (paper: 0.6)."""
    max_completion_tokens: int = 80
    """Longest completion (paper: 3,072)."""
    loss: str = "grpo"
    """grpo: mean over rollouts of the mean over tokens; dapo: mean over all tokens of the batch, upper clip 0.28."""
    dynamic_sampling: bool = False
    """DAPO, engine "packed" alone: draw prompts until every group of the step has a gradient; all rollouts count."""
    checkpoint_every_steps: int = 50
    """A stopped run goes on from the last checkpoint, with its place in the plan."""
    eval_every_steps: int = 20
    """Small evaluations during training (the paper's step counts are multiples of 20)."""
    eval_samples_small: int = 2
    """Completions a problem during training."""
    eval_samples_full: int = 8
    """Completions a problem at the first and the last step (paper: Avg@8, Pass@8)."""
    engine: str = "packed"
    """packed: our CPU engine, for policies that fit a core; trl: TRL's own sampling and loss, in one process or many."""
    micro_batch: int = 8
    """Rollouts of one forward pass of one process; engine "trl"."""
    keep_every_steps: int | None = None
    """Keep the weights of every such step, and of the last, under policies/ to evaluate them; None: the final ones alone."""
    vllm: bool = False
    """Rollouts by vLLM beside the trainer (TRL's `use_vllm`, colocated); engine "trl"."""
    bf16: bool = False
    """Mixed precision; needs a GPU; engine "trl"."""
    chat: bool = False
    """Prompts as chat messages, for a tokenizer with a chat template; else plain text and a line break; engine "trl"."""
    cpu: bool = False
    """Stay on the CPU where there is a GPU; engine "trl"."""

    def __post_init__(self) -> None:
        if self.rollouts_per_prompt < 2:
            raise ValueError("rollouts_per_prompt must be at least 2: a group of one has no advantage")
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds} must be at least 1")
        for name, known in (("loss", LOSSES), ("engine", ENGINES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose {' or '.join(map(repr, known))}")
        if self.keep_every_steps is not None and self.keep_every_steps < 1:
            raise ValueError(f"keep_every_steps={self.keep_every_steps} must be at least 1")
        if self.dynamic_sampling and self.engine != "packed":
            raise ValueError("dynamic_sampling draws prompts that TRL does not know of: choose engine='packed'")


@dataclass(frozen=True)
class GradientConfig:
    """Gradient coherence at the base policy; the paper measures no gradient (ours)."""

    prompts: int = 320
    """Prompts of the kept pool, two groups of `TrainConfig.rollouts_per_prompt` each (not stated in the paper; ours)."""
    bootstrap_samples: int = 500
    """Resamples of prompts behind every interval (ours)."""
    neighbours: int = 5
    """Nearest samples of a space that are compared with all others (ours)."""

    def __post_init__(self) -> None:
        if self.prompts < 4:
            raise ValueError(f"prompts={self.prompts} must be at least 4: products between prompts need pairs")
        if not 1 <= self.neighbours < self.prompts:
            raise ValueError(f"neighbours={self.neighbours} must be at least 1 and below prompts={self.prompts}")


@dataclass(frozen=True)
class StudyConfig:
    """The RL study: arms x matched seeds (profile `study`)."""

    learning_rates: tuple[float, ...] = (2e-5, 4e-5, 8e-5, 1.6e-4)
    """Grid of the pilot, on `grpo` alone, doubled until the best lies inside; the best outcome wins, ties go to the
    smaller (ours)."""
    pilot_seeds: tuple[int, ...] = (200, 201, 202)
    """Reserved matched seeds of the pilot; its pool and its problems are reserved too."""
    grid_seeds: int = 2
    """Pilot seeds of each learning rate."""
    detectable_points: float = 1.0
    """Paired difference of the main arms that the study must be able to detect, with power 0.8 at alpha 0.05."""
    main_seeds: tuple[int, int] = (8, 32)
    """Fewest and most matched seeds of the paper's arms."""
    seeds: int = 8
    """Matched seeds of the paper's arms, as `python -m saerl_lib seeds-needed` found them."""
    other_seeds: int = 5
    """Matched seeds of all other arms."""
    smallest_effect_points: float = 0.5
    """Smallest effect of interest: an interval wholly below it says "not reproduced" (ours)."""
    difficulty_attempts: int = 16
    """Attempts a prompt behind measured pass rates (paper: Avg@16 for ADARFT)."""

    def __post_init__(self) -> None:
        if not 2 <= self.main_seeds[0] <= self.main_seeds[1]:
            raise ValueError(f"main_seeds={self.main_seeds} must rise and start at 2 or more: differences are paired over seeds")
        if not 1 <= self.grid_seeds <= len(self.pilot_seeds):
            raise ValueError(f"grid_seeds={self.grid_seeds} must lie in 1..{len(self.pilot_seeds)}, the number of pilot_seeds")
