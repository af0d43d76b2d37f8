"""What may stand in for the paper's hub models and data, and what a run of the path decides beside them.

The defaults are the paper's run; a field that the paper does not state says so. Needs the standard library alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ORDERS = {"grpo": "random", "dapo": "random", "diff": "ascending", "saerl_grpo": "saerl", "saerl_dapo": "saerl"}
"""Arm -> order of `saerl_lib.plan.orders` (paper, section 4.1)."""
SELECTORS = {"adarft": "pass_rate", "gainrl": "angle_concentration"}
"""Arm that chooses its prompts as it learns -> what it needs to know of the base policy (paper, section 4.1)."""
ARMS = (*ORDERS, *SELECTORS)
POOLS = ("target", "filtered")
TARGETS = ("trl", "verl", "nemo-rl", "prime-rl")


@dataclass(frozen=True)
class Replacements:
    """Local stand-ins and the settings of a run; `PaperConfig` adds the paper's own figures."""

    sources: str | None = None
    """Folder that holds every data set as OWNER/NAME in the hub's format; None: the hub, at pinned revisions."""
    revisions: tuple[tuple[str, str], ...] = ()
    """(set, commit hash) of data sets that are not pinned yet."""
    encoder_folder: str | None = None
    """Model that reads the data, a folder in Hugging Face format; None: the hub's."""
    encoder_layer: int = 28
    """Block whose residual stream the SAE reads, 1 is the first (paper, section C.1: layer 27 counted from 0)."""
    sae_source: str | None = None
    """FOLDER saved by SAELens, opensae:FOLDER or saelens:RELEASE/ID; None: what `PaperConfig.sae` names."""
    policy: str = "Qwen/Qwen2.5-Math-1.5B"
    """Policy that is trained: one of `PaperConfig.policies` by its repository, or a folder in Hugging Face format."""
    skip_bad_rows: bool = False
    """Leave malformed rows out and list them, instead of stopping."""
    filter_samples: int = 107_021
    """NuminaMath-1.5 samples of the noisy pool (paper, Table 6; which ones is not stated: the first by hash of the question)."""
    source_labels: int = 3000
    """Samples of each source that the source classifier is trained on (not stated in the paper; ours)."""
    adapted_labels: int = 800
    """DeepScaleR labels of the adapted regime (paper, Table 2)."""
    outside_samples: int = 10_000
    """DeepScaleR samples that the out-of-domain regimes are tested on (paper, Table 2)."""
    rated_samples: int = 97_782
    """PRM800K solutions whose quality is read (paper, Table 3; how many is not stated: all of phase 2; ours)."""
    train_on: str = "target"
    """target: DeepMath alone, as the paper's runs. filtered: as many samples of the noisy pool, by the source classifier."""
    arms: tuple[str, ...] = ("grpo", "saerl_grpo")
    """Arms to plan, train and evaluate, of `ARMS`."""
    seeds: int = 1
    """Matched seeds (paper: single runs)."""
    exports: tuple[str, ...] = ("verl",)
    """Other trainers that every plan is exported for (paper: verl)."""
    encode_max_tokens: int = 4096
    """Longer samples are cut at the end and counted (truncated.csv): the policy's prompt and response (not stated; ours)."""
    tokens_per_batch: int = 8192
    """Padded tokens of one batch that a model reads, in encoding and measuring."""
    micro_batch: int = 8
    """Rollouts of one forward pass of one training process."""
    launch: str = ""
    """Command that starts the training processes, such as 'accelerate launch --config_file FILE'; empty: in this process."""
    vllm: bool = False
    """Rollouts of training by vLLM (TRL's own setting)."""
    bf16: bool = False
    """Mixed precision in training, bfloat16 weights in encoding, measuring and evaluation; needs a GPU (on a CPU: float32)."""
    chat: bool = True
    """Prompts in the policy's chat template (not stated in the paper; ours); else plain text and a line break."""
    eval_temperature: float = 0.6
    """Of evaluations (not stated in the paper; ours: that of the rollouts)."""
    measure_part: int = 512
    """Samples that the base policy is measured on at once; a step that was stopped goes on with the part it was in."""
    measure_sequences: int = 64
    """Completions that step measure generates side by side."""
    eval_sequences: int = 64
    """Completions that an evaluation generates side by side."""
    answer_seconds: float = 10.0
    """Longest comparison of one answer in an evaluation or a pass rate; it is killed then and counts as wrong."""
    seed: int = 0
    """Base seed of fits, plans, training and evaluation."""

    def __post_init__(self) -> None:
        """Raises ValueError with the field and the fix."""
        unknown = [name for name in self.arms if name not in ARMS]
        if unknown or not self.arms or len(set(self.arms)) < len(self.arms):
            raise ValueError(f"arms={', '.join(self.arms)}: name each of {', '.join(ARMS)} at most once")
        if any(name not in TARGETS for name in self.exports):
            raise ValueError(f"exports={', '.join(self.exports)}: choose from {', '.join(TARGETS)}")
        if self.train_on not in POOLS:
            raise ValueError(f"train_on={self.train_on!r}: choose {' or '.join(POOLS)}")
        counts = ("seeds", "filter_samples", "source_labels", "encode_max_tokens", "micro_batch", "eval_sequences")
        for name in (*counts, "measure_part", "measure_sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.answer_seconds <= 0 or self.eval_temperature <= 0:
            raise ValueError("answer_seconds and eval_temperature must be above 0")

    @property
    def stand_ins(self) -> dict[str, bool]:
        """Option -> whether the run needs no hub for what it names."""
        local_sae = self.sae_source is not None and not self.sae_source.startswith("saelens:")
        return {
            "--sources": self.sources is not None, "--encoder": self.encoder_folder is not None, "--sae": local_sae,
            "--policy": Path(self.policy).is_dir(),
        }  # fmt: skip
