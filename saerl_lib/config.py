"""Every choice of a run in frozen records; a profile holds one of each, and `get_profile` is the only dial.

A field says where its value comes from: "paper, section X" or "not stated in the paper; ours". What no profile, arm, ablation or
option ever changes is a constant beside its use. A bad combination raises with the fix in the message.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON-ready values."""
    return json.loads(json.dumps(asdict(config)))


def content_hash(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sub_seed(base: int, label: str) -> int:
    """A 31-bit seed derived from a base seed and a label, the same on every machine.

    >>> sub_seed(0, "plan") == sub_seed(0, "plan"), sub_seed(0, "plan") == sub_seed(1, "plan")
    (True, False)
    """
    digest = hashlib.sha256(f"{base}:{label}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFF_FFFF


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _choose(config: Any, **known: tuple[str, ...]) -> None:
    """Raise ValueError for a field whose value is none of the known ones."""
    for name, values in known.items():
        _require(getattr(config, name) in values, f"{name}={getattr(config, name)!r}: choose one of {', '.join(values)}")


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
        small, full = self.eval_problems_small, self.eval_problems_full
        _require(small <= full, f"eval_problems_small={small} exceeds eval_problems_full={full}, whose first problems it takes")


@dataclass(frozen=True)
class EncoderConfig:
    """The model and the SAE that read the data; the policy never passes through it (paper, section 3.1)."""

    hook_layer: int = 3
    """Residual stream after this many blocks (paper: layer 27 of 28; ours: 3 of 4)."""
    sae_latents: int = 2048
    """Width F of the SAE (paper: 131,072)."""
    sae_architecture: str = "topk"
    """topk, batchtopk or jumprelu, as SAELens trains them (not stated in the paper; ours)."""
    sae_k: int = 64
    """Active latents a token (not stated in the paper; ours)."""
    sae_vectors: int = 300_000
    """Distinct activation vectors collected for the SAE, from the encoder's own corpus (ours)."""
    sae_heldout_vectors: int = 100_000
    """Further vectors that measure explained variance, L0 and dead share."""
    sae_training_tokens: int = 300_000
    """Activation vectors the SAE is trained on (ours; longer training lets more latents die here)."""
    sae_learning_rate: float = 1e-3
    """Adam learning rate of the SAE (not stated in the paper; ours)."""
    min_explained_variance: float = 0.8
    """The run stops below this."""
    max_dead_share: float = 0.2
    """The run stops above this share of latents that never fire on held-out tokens."""
    retained_latents: int = 240
    """|F| retained: 960 = 4 x 240 pooled dimensions (paper, section B.1, inferred)."""
    retained_rule: str = "frequency_variance"
    """How they are chosen (not stated in the paper; ours), one of `saerl_lib.encode.store.RULES`."""
    tokens_per_batch: int = 16_384
    """Padded tokens of one encoding batch; bounds the memory."""

    def __post_init__(self) -> None:
        retained, k, width = self.retained_latents, self.sae_k, self.sae_latents
        _require(retained <= width, f"retained_latents={retained} exceeds sae_latents={width}: retain fewer or widen the SAE")
        _require(k <= width, f"sae_k={k} exceeds sae_latents={width}")
        _choose(self, sae_architecture=("topk", "batchtopk", "jumprelu"))


@dataclass(frozen=True)
class TextModelConfig:
    """The small LM that reads real mathematics offline (ours; the paper reads Qwen3-1.7B)."""

    vocabulary: int = 4096
    """Byte-level BPE tokens."""
    width: int = 128
    """Model width D."""
    layers: int = 4
    """Blocks."""
    heads: int = 4
    """Attention heads."""
    feed_forward: int = 352
    """Inner width of a block."""
    rows_per_step: int = 32
    """Rows of one optimiser step."""
    max_rows: int = 16_000
    """Training rows, 256 tokens each, read once: a seeded sample of the corpus (4.1 million tokens)."""


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
        rows, k, smallest = self.cluster_fit_rows, self.clusters, self.smallest_cluster
        _require(self.shrinkage_tau > 0, f"shrinkage_tau={self.shrinkage_tau} must be positive (equation 10)")
        _require(smallest >= 1, f"smallest_cluster={smallest} must be at least 1: 1 merges nothing")
        _require(rows >= k, f"cluster_fit_rows={rows} is below clusters={k}: fit k-means on more samples")


REST = ("pool", "pool_easiest", "append")
"""pool: the hardest of each cluster are left over, sorted together into mixed batches, each before the first harder stage.
pool_easiest: the easiest are left over instead. append: as pool, but all mixed batches come at the end."""
UNEQUAL = ("front", "stretch", "back")
"""front: stage t holds the t-th batch of every cluster that still has one. stretch: the batches of a small cluster are
spread evenly over the run. back: small clusters begin late, so that all end together."""


@dataclass(frozen=True)
class PlanConfig:
    """The batch plan (paper, section 4)."""

    prompts_per_step: int = 8
    """b, prompts of one optimiser step (paper: 128)."""
    swapped_per_batch: int = 1
    """h, samples at the end of a batch exchanged with a partner (paper: 8 of 128 is best)."""
    window_batches: int = 20
    """Partner candidates are at most this many batches away (not stated in the paper; ours)."""
    difficulty_tolerance: float = 0.75
    """Largest difference of mean ranking scores between partners, in label units (not stated in the paper; ours)."""
    length_tolerance: float = 0.35
    """Largest relative difference of mean sequence lengths between partners (not stated in the paper; ours)."""
    rest: str = "pool"
    """What fills no batch of its own cluster (not stated in the paper; ours), one of `REST`."""
    unequal: str = "front"
    """In which stages a cluster with few batches takes part (not stated in the paper; ours), one of `UNEQUAL`."""

    def __post_init__(self) -> None:
        h, b = self.swapped_per_batch, self.prompts_per_step
        _require(0 <= h < b, f"swapped_per_batch={h} must be at least 0 and below prompts_per_step={b}")
        _choose(self, rest=REST, unequal=UNEQUAL)


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
        kept = self.keep_every_steps
        _require(self.rollouts_per_prompt >= 2, "rollouts_per_prompt must be at least 2: a group of one has no advantage")
        _require(self.seeds >= 1, f"seeds={self.seeds} must be at least 1")
        _require(kept is None or kept >= 1, f"keep_every_steps={kept} must be at least 1")
        _choose(self, loss=LOSSES, engine=ENGINES)
        ours = self.engine == "packed" or not self.dynamic_sampling
        _require(ours, "dynamic_sampling draws prompts that TRL does not know of: choose engine='packed'")


@dataclass(frozen=True)
class GradientConfig:
    """Gradient coherence at the base policy; the paper measures no gradient (ours)."""

    prompts: int = 320
    """Prompts of the kept pool, two groups of `TrainConfig.rollouts_per_prompt` each (not stated in the paper; ours)."""
    bootstrap_samples: int = 500
    """Resamples of prompts behind every interval (ours)."""

    def __post_init__(self) -> None:
        _require(self.prompts >= 6, f"prompts={self.prompts} must be at least 6: a prompt is compared with its 5 nearest")


@dataclass(frozen=True)
class StudyConfig:
    """The RL study: arms x matched seeds (profile `study`)."""

    seeds: int = 8
    """Matched seeds of the paper's arms, as `python -m saerl_lib seeds-needed` found them."""
    other_seeds: int = 5
    """Matched seeds of all other arms."""


@dataclass(frozen=True)
class MethodConfig:
    """The full control ladder, on the embedded world and on real labelled mathematics (profile `method`)."""

    text_model: TextModelConfig = TextModelConfig()
    """The LM that reads real text."""
    text_sae: EncoderConfig = EncoderConfig(sae_k=32, max_dead_share=0.5, tokens_per_batch=8192)
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


@dataclass(frozen=True)
class Profile:
    """One dial: the name decides everything."""

    name: str
    seed: int = 0
    """Base seed of fits, plans and training; `WorldConfig.seed` is separate."""
    world: WorldConfig = WorldConfig()
    encoder: EncoderConfig = EncoderConfig()
    properties: PropertyConfig = PropertyConfig()
    plan: PlanConfig = PlanConfig()
    train: TrainConfig = TrainConfig()
    gradients: GradientConfig = GradientConfig()
    method: MethodConfig | None = None
    """The full ladder; None: this profile shows the committed one."""
    study: StudyConfig | None = None
    """The full study; None: this profile trains `grpo` and `saerl` and shows the committed study."""
    trains: bool = True
    """Whether notebooks 07 and 08 (GRPO and its evaluation) belong to the profile."""
    pool_samples: int = 1920
    """Prompts kept by the filter and planned once (ours: 240 steps; plain GRPO still gained on reserved seeds, not at 400)."""

    def __post_init__(self) -> None:
        n, b, noisy, k = self.pool_samples, self.plan.prompts_per_step, self.world.noisy_pool_samples, self.properties.clusters
        _require(n % b == 0, f"pool_samples={n} is no multiple of prompts_per_step={b}: the last step would be short")
        _require(n <= noisy, f"pool_samples={n} exceeds noisy_pool_samples={noisy}")
        _require(k <= n, f"clusters={k} exceeds pool_samples={n}: ask for fewer clusters")

    @property
    def steps(self) -> int:
        """Optimiser steps of one pass over the kept pool."""
        return self.pool_samples // self.plan.prompts_per_step


SMOKE = Profile(
    name="smoke",
    world=WorldConfig(
        labelled_samples=240, test_samples=160, noisy_pool_samples=196, contest_train_samples=60, contest_test_samples=120,
        step_labelled_samples=240, rated_prompts=48, rated_attempts=8, eval_problems_small=8, eval_problems_full=8,
    ),
    encoder=EncoderConfig(
        sae_latents=512, retained_latents=32, sae_vectors=20_000, sae_heldout_vectors=5_000, sae_training_tokens=200_000,
        min_explained_variance=0.5, max_dead_share=0.9,
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
        sae_seeds=1, real_data="if_present", official_split=False, max_train=150, max_test=100, adapted_labels=50,
    ),
    pool_samples=96,
)  # fmt: skip

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
            "profile 'paper' needs models and data from the Hugging Face Hub and several GPUs, and has no notebooks yet: "
            "./run_all.sh --profile paper runs its steps (--plan-only: what they take); --profile laptop runs here"
        )
    if name not in PROFILES:
        raise UnknownProfileError(f"profile {name!r} does not exist; choose one of {', '.join(PROFILES)}")
    profile = PROFILES[name]
    if seeds is not None:
        profile = replace(profile, train=replace(profile.train, seeds=seeds))
    return profile if seed is None else replace(profile, seed=seed)
