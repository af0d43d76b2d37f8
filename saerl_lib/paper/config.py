"""The paper's run in one frozen record: models, SAE, data, and the hyperparameters that the paper states (its Table 9).

Each field says "paper, section X" or "not stated in the paper; ours". What may stand in for hub models and data, and how a
run is split, are the fields of `replacements`.
"""

from __future__ import annotations

from dataclasses import dataclass

from saerl_lib.data.published import BENCHMARKS, TRAINING_DATA, HubData
from saerl_lib.paper.hub import QWEN3_17B, QWEN3_17B_BASE, QWEN25_MATH_7B, QWEN25_MATH_15B, HubModel
from saerl_lib.paper.replacements import Replacements

SAE_CHOICES = ("published", "trained", "opensae")
LEAST = {
    "steps": ("--steps", 1), "eval_every_steps": ("--eval-every", 1), "eval_samples": ("--attempts", 1),
    "labelled_samples": ("--labelled", 1), "retained_latents": ("--retained", 1), "clusters": ("--clusters", 1),
    "max_prompt_tokens": ("--max-prompt", 1), "max_response_tokens": ("--max-completion", 1),
    "prompts_per_step": ("--prompts-per-step", 1), "rollouts_per_prompt": ("--rollouts", 2),
    "adarft_samples": ("--rate-attempts", 1),
}  # fmt: skip
"""Field -> option, smallest value; one rollout has no other to be compared with."""


@dataclass(frozen=True)
class PaperConfig(Replacements):
    """Models, data and settings of the paper's experiments."""

    policies: tuple[HubModel, ...] = (QWEN25_MATH_15B, QWEN25_MATH_7B)
    """Policies that GRPO trains (paper, section 4.1)."""
    runs_per_policy: tuple[int, ...] = (7, 5)
    """Main runs of each policy: the rows of Table 4, one seed each (paper, Table 4)."""
    encoder: HubModel = QWEN3_17B
    """The model that reads the data (paper, section C.1)."""
    sae: str = "published"
    """published: the SAELens release below; trained: here, with the paper's settings; opensae: a checkpoint on disk."""
    sae_release: str = "qwen-scope-3-1.7b-base-w32k-l50"
    """Release of SAELens' registry (ours; the paper's own SAE is not public)."""
    sae_id: str = "layer27"
    """Its SAE: the residual stream after block 27, counted from 0."""
    sae_repository: str = "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50"
    """Repository that the registry reads; TopK with k = 50, trained on Qwen3-1.7B-Base."""
    sae_release_latents: int = 32_768
    """Width of the published SAE (paper: 131,072)."""
    opensae_folder: str | None = None
    """Folder of an OpenSAE checkpoint, for `sae="opensae"`."""
    sae_revision: str | None = None
    """Commit hash of `sae_repository`; None: not pinned yet."""
    sae_expansion: int = 64
    """F / D of a trained SAE (paper, section C.1)."""
    sae_text_gigabytes: float = 80.0
    """Text of FineWeb-Edu and Wikipedia that the SAE is trained on, 1e9 bytes (paper, section C.1)."""
    sae_corpora: tuple[str, ...] = ("HuggingFaceFW/fineweb-edu", "wikimedia/wikipedia")
    """Their repositories (paper names the sets, not the repositories, shares or dumps)."""
    training_data: tuple[HubData, ...] = TRAINING_DATA
    """Training pool, filter pool, step labels, out-of-domain difficulty (paper, sections 2 and 4)."""
    benchmarks: tuple[HubData, ...] = BENCHMARKS
    """Evaluation sets (paper, section 4.1)."""
    pool_samples: int = 103_022
    """Samples of DeepMath-103K that are encoded and planned (paper, section 4.1)."""
    solution_index: int = 1
    """Which of DeepMath's three R1 solutions is the solution span, 1 to 3 (not stated in the paper; ours)."""
    retained_latents: int = 240
    """|F| retained: 960 = 4 x 240 (paper, section B.1, inferred)."""
    metadata_features: int = 26
    """Shallow features m beside z (paper, section 3.1)."""
    clusters: int = 10
    """K of MiniBatchKMeans (paper, section 3)."""
    labelled_samples: int = 3000
    """|L|, difficulty labels of the calibration (paper, section 3.3)."""
    swapped_per_batch: int = 8
    """h of b = 128, best in the mixing study; h of the main runs is not stated in the paper (ours)."""
    learning_rate: float = 1e-6
    """GRPO (paper, Table 9)."""
    prompts_per_step: int = 128
    """b (paper, Table 9)."""
    rollouts_per_prompt: int = 8
    """G (paper, Table 9)."""
    max_prompt_tokens: int = 1024
    """Longest prompt (paper, Table 9)."""
    max_response_tokens: int = 3072
    """Longest response (paper, Table 9)."""
    temperature: float = 0.6
    """Of rollouts (paper, Table 9); that of evaluations is not stated."""
    steps: int = 900
    """Optimiser steps, at which Table 4 is reported (paper, section 4.1)."""
    eval_every_steps: int = 20
    """All step counts of the paper are multiples of 20 (paper, Table 5, inferred)."""
    eval_samples: int = 8
    """Completions a problem, for Avg@8 and Pass@8 (paper, section 4.1)."""
    adarft_samples: int = 16
    """Rollouts a prompt that ADARFT estimates difficulty with, Avg@16 (paper, section C.3)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sae not in SAE_CHOICES:
            raise ValueError(f"sae={self.sae!r}: choose one of {', '.join(SAE_CHOICES)}")
        if self.sae == "opensae" and self.opensae_folder is None:
            raise ValueError("sae='opensae' needs opensae_folder, the folder of the checkpoint")
        if len(self.runs_per_policy) != len(self.policies):
            raise ValueError(f"runs_per_policy={self.runs_per_policy}: give one number for each of {len(self.policies)} policies")
        if self.solution_index not in (1, 2, 3):
            raise ValueError(f"solution_index={self.solution_index}: DeepMath-103K has solutions 1, 2 and 3")
        for name, (option, least) in LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}: raise {option}")
        if not 0 <= self.swapped_per_batch < self.prompts_per_step:
            raise ValueError(
                f"swapped_per_batch={self.swapped_per_batch} must lie below prompts_per_step={self.prompts_per_step}: "
                "raise --prompts-per-step"
            )
        if (self.prompts_per_step * self.rollouts_per_prompt) % self.micro_batch:
            raise ValueError(
                f"micro_batch={self.micro_batch} does not divide a step of prompts_per_step={self.prompts_per_step} x "
                f"rollouts_per_prompt={self.rollouts_per_prompt} rollouts: choose another --micro-batch"
            )

    @property
    def reading_model(self) -> HubModel:
        """The model whose residual stream the chosen SAE reads: the base model for the published SAE, else the paper's.

        A folder given as `sae_source` is taken for an SAE of the paper's encoder; releases of SAELens' registry for this
        model family read the base model.
        """
        published = self.sae == "published" and (self.sae_source is None or self.sae_source.startswith("saelens:"))
        return QWEN3_17B_BASE if published else self.encoder

    @property
    def paper_latents(self) -> int:
        """Width F with the paper's expansion, 131,072."""
        return self.sae_expansion * self.encoder.width

    @property
    def sae_latents(self) -> int:
        """Width F of the chosen SAE; an OpenSAE checkpoint is taken to be as wide as the paper's."""
        return self.sae_release_latents if self.sae == "published" else self.paper_latents

    @property
    def benchmark_problems(self) -> int:
        """Problems of all evaluation sets."""
        return sum(data.rows for data in self.benchmarks)


SAE_DIFFERENCES = (
    "it was trained on Qwen3-1.7B-Base, the paper's on Qwen3-1.7B: the encoder read through it is the base model",
    "width 32,768 (expansion 16), the paper's 131,072 (expansion 64)",
    "TopK with k = 50; the paper does not state k",
    "trained on Qwen's own corpus, which is not public; the paper's on 80 GB of FineWeb-Edu and Wikipedia",
    "trained by Qwen-Scope and loaded by SAELens; the paper's with OpenSAE, which also standardises every token",
)
"""How the published stand-in differs from the paper's SAE."""

NOT_STATED = (
    "reward function, KL weight, clip values and mini-batch of GRPO",
    "temperature and response length of evaluations",
    "k, learning rate, number of tokens and reconstruction quality of the SAE",
    "how the 240 latents are chosen, scaling, chat template, which R1 solution is read",
    "alpha and l1_ratio of the elastic net, the form of g, tau_sh, window and tolerances of the tail swap",
    "rests that fill no batch, clusters of unequal size, the order of a second epoch (900 steps are 1.12 epochs)",
)
"""What would still have to be chosen; `saerl_lib/config/` names the artifact's choices."""
