"""Every choice of a run in frozen records; a profile holds one of each, and `get_profile` is the only dial.

A field says where its value comes from: "paper, section X" or "not stated in the paper; ours". What no profile, arm, ablation or
option ever changes is a constant beside its use. A bad combination raises with the fix in the message.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON-ready values."""
    return json.loads(json.dumps(asdict(config)))


def near(name: str, known: Iterable[str]) -> str:
    """The end of an error message about a mistyped `name`: the nearest known one, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def content_hash(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sub_seed(base: int, label: str) -> int:
    """A 31-bit seed derived from a base seed and a label, the same on every machine."""
    digest = hashlib.sha256(f"{base}:{label}".encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFF_FFFF


def require(holds: bool, message: str) -> None:
    """Raises ValueError with the message, which holds the fix, where something does not hold."""
    if not holds:
        raise ValueError(message)


def at_least(config: Any, **least: int) -> None:
    """Raises ValueError for a field, unless it is None, below its smallest value."""
    for name, smallest in least.items():
        value = getattr(config, name)
        if value is not None and value < smallest:
            raise ValueError(f"{name}={value} must be at least {smallest}")


def _choose(config: Any, **known: tuple[str, ...]) -> None:
    for name, values in known.items():
        require(getattr(config, name) in values, f"{name}={getattr(config, name)!r}: choose one of {', '.join(values)}")


WORLD_VERSION = "2"
"""Version of the embedded world; raised whenever a generated sample may change."""


@dataclass(frozen=True)
class WorldConfig:
    """How many samples each split of the embedded world holds (ours; sizes follow the paper where it states them)."""

    seed: int = 2605
    """Base seed of every generated split."""
    problems: str = "chains"
    """chains: word problems for the policy that the world ships; short: short-answer arithmetic for a real small model."""
    labelled_samples: int = 900
    """Difficulty-labelled subset L (paper, section 4: 3,000), and as many parent samples; disjoint from the RL pool."""
    test_samples: int = 600
    """Held-out target-source samples for the in-domain probes."""
    noisy_pool_samples: int = 2000
    """Target plus parent samples before the quality filter."""
    contest_train_samples: int = 250
    """Extra labels of the third source in the adapted regime (paper, Table 2: 800)."""
    contest_test_samples: int = 400
    """Third-source test samples (the paper has 10,000)."""
    step_labelled_samples: int = 700
    """Solutions with step labels for the quality regression (Table 3); 3/4 train, 1/4 test."""
    rated_prompts: int = 600
    """Pool prompts whose base pass rate is measured."""
    eval_problems_small: int = 64
    """Problems of each evaluation set used during training."""
    eval_problems_full: int = 200
    """Problems of each evaluation set at the first and the last step."""

    def __post_init__(self) -> None:
        small, full = self.eval_problems_small, self.eval_problems_full
        require(small <= full, f"eval_problems_small={small} exceeds eval_problems_full={full}, whose first problems it takes")
        _choose(self, problems=("chains", "short"))


SMOLLM2, SHIPPED = "smollm2", "shipped"
"""The default reader and its SAE, by the names that `ReaderConfig` takes."""


@dataclass(frozen=True)
class PublishedConfig:
    """Which published sets are read, and how many rows of each (paper, sections 2 to 4); the target is DeepMath-103K."""

    folder: str | None = None
    """Folder that holds every set as OWNER/NAME in the hub's format; None: the hub, at pinned revisions."""
    revisions: tuple[tuple[str, str], ...] = ()
    """Commit hashes of sets that are not pinned yet, such as amc23 and 0123..."""
    skip_bad_rows: bool = False
    """Leave malformed rows out and list them, instead of stopping."""
    labelled_samples: int = 3000
    """|L|, difficulty labels of the calibration (paper, section 3.3)."""
    test_samples: int = 10_000
    """Further labelled samples of the target, for the probes in domain (paper, Table 2)."""
    parent_samples: int = 107_021
    """NuminaMath-1.5 in the noisy pool (paper, Table 6; which rows is not stated: the first by hash of the question)."""
    parent_labels: int = 6000
    """Further ones: half trains the source classifier, half places its thresholds (not stated in the paper; ours)."""
    contest_train_samples: int = 800
    """DeepScaleR labels of the adapted regime (paper, Table 2)."""
    contest_test_samples: int = 10_000
    """DeepScaleR samples that the out-of-domain regimes are tested on (paper, Table 2)."""
    step_labelled_samples: int = 97_782
    """PRM800K solutions whose quality is read (paper, Table 3; how many is not stated: all of phase 2; ours)."""


@dataclass(frozen=True)
class ReaderConfig:
    """The model and the SAE that read the data; the policy never passes through it (paper, section 3.1)."""

    model: str = SMOLLM2
    """smollm2 (SmolLM2-135M-Instruct), or a causal LM in Hugging Face format: folder or hub name (paper: Qwen3-1.7B)."""
    layer: int = 15
    """Block whose residual stream the SAE reads; 1 is the first (paper: 27 of 28; ours: 15 of 30, chosen on training labels)."""
    sae: str = SHIPPED
    """shipped, FOLDER saved by SAELens, opensae:FOLDER or saelens:RELEASE/ID."""
    revision: str | None = None
    """Commit of a model on the hub."""
    max_tokens: int | None = 1024
    """Longer samples are cut at the end and counted; None: the positions that the model has."""
    max_norm: float | None = 600.0
    """Tokens whose state is longer are attention sinks and are masked: four times the median after block 15; None: none is."""
    tokens_per_batch: int = 1024
    """Padded tokens of one batch; decides last digits. On a CPU the states of more leave its caches; a GPU wants some 8,192."""
    device: str = "cpu"
    """cpu, cuda or cuda:N; last digits differ between devices."""
    bf16: bool = False
    """Run the model in bfloat16; the SAE stays in float32. For GPUs: on processors with AVX-512 BF16 it was a third slower."""
    retained_latents: int = 240
    """|F| retained: 960 = 4 x 240 pooled dimensions (paper, section B.1, inferred)."""
    retained_rule: str = "variance"
    """How they are chosen (not stated in the paper; ours), one of `saerl_lib.encode.store.RULES`."""
    others: tuple[tuple[str, str], ...] = ()
    """Further SAEs that read the same pass, as (name, source); `untrained@SEED` is the SAE with weights as drawn."""
    dense: bool = False
    """Keep the pooled activations themselves as well."""

    @property
    def sources(self) -> dict[str, str]:
        """Name -> source of every SAE; the first, `sae`, is the reader's own."""
        return {"sae": self.sae, **dict(self.others)}


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
    shrinkage_tau: float = 50.0
    """tau_sh of equation 10, in labelled samples (not stated in the paper; ours)."""
    bootstrap_samples: int = 500
    """Resamples of every probe interval (ours)."""


REST = ("drop", "pool")
"""drop: the hardest of each cluster, which fill no batch, are left out of the plan. pool: they are sorted together into mixed
batches, each before the first harder stage."""
UNEQUAL = ("stretch", "front", "back")
"""A small cluster's batches are spread over the run (stretch), in its first stages (front) or in its last (back)."""


@dataclass(frozen=True)
class PlanConfig:
    """The batch plan (paper, section 4)."""

    prompts_per_step: int = 8
    """b, prompts of one optimiser step (paper: 128)."""
    swapped_per_batch: int = 1
    """h, samples at the end of a batch exchanged with a partner (paper: 8 of 128 is best)."""
    window_batches: int = 20
    """Partner candidates are at most this many batches away, whatever their stage (not stated in the paper; ours)."""
    difficulty_tolerance: float = 0.75
    """Largest difference of mean ranking scores between partners, in label units (not stated in the paper; ours)."""
    length_tolerance: float = 0.35
    """Largest relative difference of mean sequence lengths between partners (not stated in the paper; ours)."""
    rest: str = "drop"
    """What fills no batch of its own cluster (not stated in the paper; ours), one of `REST`."""
    unequal: str = "stretch"
    """In which stages a cluster with few batches takes part (not stated in the paper; ours), one of `UNEQUAL`."""

    def __post_init__(self) -> None:
        h, b = self.swapped_per_batch, self.prompts_per_step
        require(0 <= h < b, f"swapped_per_batch={h} must be at least 0 and below prompts_per_step={b}")
        _choose(self, rest=REST, unequal=UNEQUAL)


Loss = Literal["token_mean", "sequence_mean", "constant"]
Optimizer = Literal["adamw", "sgd"]
ENGINES, LOSSES, OPTIMIZERS = ("packed", "trl"), get_args(Loss), get_args(Optimizer)
ANSWERS, DYNAMIC = ("answer", "last_number"), ("none", "equal_rollouts", "equal_steps")


@dataclass(frozen=True)
class TrainConfig:
    """GRPO with TRL: one record for the world's runs, the command `train` and the paper's."""

    seeds: int = 3
    """Matched seeds; seed i fixes rollouts and evaluation of every arm."""
    rollouts_per_prompt: int = 8
    """G, completions of one group (paper, section C.2)."""
    learning_rate: float = 1e-4
    """Constant learning rate: a decaying one would confound order (the paper: 1e-6 on 1.5B parameters)."""
    temperature: float = 1.0
    """Rollout temperature (paper: 0.6)."""
    max_completion_tokens: int = 80
    """Longest completion, tokens (paper: 3,072)."""
    max_prompt_tokens: int | None = None
    """Samples with a longer prompt are not planned (paper, Table 9: 1,024); None: none is left out."""
    loss: Loss = "token_mean"
    """Sum over the tokens of a batch, divided by their number (the default of verl, which the paper used; not stated there);
    sequence_mean: mean over rollouts of each one's mean; constant: divided by rollouts x the longest completion."""
    optimizer: Optimizer = "adamw"
    """AdamW, gradient clipped at norm 1 (verl's default; not stated in the paper); sgd: momentum 0.9, never clipped (ours)."""
    dynamic_sampling: str = "none"
    """DAPO, engine "packed" alone: draw prompts until every group of a step has a gradient. The run ends with the rollouts of
    one without it (equal_rollouts), those that are dropped included, or with its steps (equal_steps, the paper's axis)."""
    tail_steps: int = 0
    """Evaluation steps behind a run in one random order for all arms, evaluated apart: what a plan's last batches alone gain
    or cost is gone then (ours). Engine "packed" alone, not with equal_rollouts."""
    checkpoint_every_steps: int = 50
    """Steps between checkpoints; a stopped run goes on from the last one, with its place in the plan."""
    eval_every_steps: int = 20
    """Small evaluations during training (the paper's step counts are multiples of 20)."""
    eval_samples_small: int = 2
    """Completions a problem during training; 0: the exact likelihood of the gold solution alone (engine "packed")."""
    eval_samples_full: int = 8
    """Completions a problem at the first and the last step (paper: Avg@8, Pass@8)."""
    engine: str = "packed"
    """packed: our CPU engine, for policies that fit a core; trl: TRL's own sampling and loss, in one process or many."""
    micro_batch: int = 8
    """Rollouts of one forward pass of one process; engine "trl"."""
    keep_every_steps: int | None = None
    """Keep the weights of every N-th step, and of the last, under policies/ to evaluate them; None: the final ones alone."""
    vllm: bool = False
    """Rollouts by vLLM beside the trainer (TRL's `use_vllm`, colocated); engine "trl"."""
    bf16: bool = False
    """Mixed precision; needs a GPU; engine "trl"."""
    chat: bool = False
    """Prompts as chat messages, for a tokenizer with a chat template; else plain text and a line break."""
    answer_from: str = "answer"
    """Engine "packed": what is compared with the gold answer, the text behind 'Answer:' (answer), or the last_number."""
    trained_blocks: int | None = None
    """Engine "packed": so many of the last blocks are trained, with the last norm; None: every weight."""
    cpu: bool = False
    """Stay on the CPU where there is a GPU; engine "trl"."""

    def __post_init__(self) -> None:
        require(self.rollouts_per_prompt >= 2, "rollouts_per_prompt must be at least 2: a group of one has no advantage")
        at_least(self, seeds=1, keep_every_steps=1, trained_blocks=1, tail_steps=0, eval_samples_small=0)
        _choose(self, answer_from=ANSWERS, loss=LOSSES, engine=ENGINES, optimizer=OPTIMIZERS, dynamic_sampling=DYNAMIC)
        ours = self.engine == "packed" or self.dynamic_sampling == "none"
        require(ours, "dynamic_sampling draws prompts that TRL does not know of: choose engine='packed'")
        fixed = self.engine == "packed" and self.dynamic_sampling != "equal_rollouts"
        require(fixed or not self.tail_steps, "tail_steps needs engine='packed' and a number of steps that is fixed: set it to 0")


@dataclass(frozen=True)
class StudyConfig:
    """The RL study: arms x matched seeds (profile `study`)."""

    seeds: int = 8
    """Matched seeds of the paper's arms; what they can detect is a gate of the world."""
    other_seeds: int = 5
    """Matched seeds of all other arms."""


@dataclass(frozen=True)
class LadderConfig:
    """Sizes of the control ladder on real labelled mathematics, which is read where `SAERL_DATA_DIR` names it."""

    official_split: bool = True
    """MATH keeps its 7,500 training and 5,000 test problems; otherwise `max_train` and `max_test` bound it too."""
    max_train: int = 3000
    """Labels that a probe is trained on (paper, Table 2: 3,000)."""
    max_test: int = 5000
    """Test problems of one probe (the paper: up to 10,000)."""
    adapted_labels: int = 800
    """Labels of the other source in the adapted regime (paper, Table 2)."""


PLANS = {"grpo": "random-{seed}", "dapo": "random-{seed}", "diff": "ascending", "saerl": "saerl", "saerl_dapo": "saerl",
         "adarft": "random-{seed}", "gainrl": "random-{seed}"}  # fmt: skip
"""Arm of the paper -> its plan in the stage `plans`; of the last two, which choose as they learn, it only names the samples."""
PLANNED = ("target", "all")
"""target: the target source alone (the paper's runs). all: the best `pool_samples` of the noisy pool by the quality filter."""
PASSES = 900 * 128 / 103_022
"""Passes over the pool in a run, 1.12 (paper, section 4.1: 900 steps of 128); the second is in the plan's own order (ours)."""
WORLD_SETS = ("easy_a", "easy_b", "mid_a", "mid_b", "hard", "hardest")


def steps_of(samples: int, prompts_per_step: int) -> int:
    """Optimiser steps of `PASSES` passes over so many samples.

    >>> steps_of(103_022, 128), steps_of(96, 8)
    (900, 13)
    """
    return round(PASSES * samples / prompts_per_step)


@dataclass(frozen=True)
class Profile:
    """One dial: the name decides everything."""

    name: str
    seed: int = 0
    """Base seed of fits, plans and training; `WorldConfig.seed` is separate."""
    world: WorldConfig | None = WorldConfig()
    """The embedded world, or None where the data are published sets."""
    published: PublishedConfig | None = None
    reader: ReaderConfig = ReaderConfig()
    properties: PropertyConfig = PropertyConfig()
    plan: PlanConfig = PlanConfig()
    train: TrainConfig = TrainConfig()
    ladder: LadderConfig = LadderConfig()
    study: StudyConfig | None = None
    """The full study; None: this profile trains `arms` and shows the committed study."""
    pool_samples: int = 960
    """Prompts that are kept and planned (ours: 134 steps)."""
    planned: str = "target"
    """Which samples are kept, one of `PLANNED`."""
    policy: str = "world"
    """Policy that is trained: world, the one that is shipped; smollm2; a folder in Hugging Face format, or a hub name."""
    score_correlation: float | None = None
    """Spearman correlation with the base pass rates to which feature-based difficulty scores are blurred before they are planned
    (ours: what text shows of a 7B policy's pass rates on DeepScaleR); None: scores as they are."""
    gradient_prompts: int = 320
    """Prompts of the kept pool whose gradients are measured, two groups of rollouts each (the paper measures none; ours)."""
    live_steps: int = 20
    """Steps for which notebook 07 trains SmolLM2 before the reader's eyes, 6 prompts each."""
    arms: tuple[str, ...] = ("grpo", "saerl")
    """Arms that notebook 07 trains, of `PLANS`."""
    train_steps: int | None = None
    """Optimiser steps of a run; beyond the plan's end it starts again. None: `PASSES` passes over the kept samples."""
    exports: tuple[str, ...] = ()
    """Other trainers that every plan is exported for, of trl, verl, nemo-rl and prime-rl."""
    launch: str = ""
    """Command that starts the processes of a run, such as 'accelerate launch --config_file FILE'; empty: one process a run."""
    eval_sets: tuple[str, ...] = WORLD_SETS
    """Evaluation sets, `eval_<name>.parquet` each of the data stage."""
    pass_set: str = "hardest"
    """The set that counts by Pass@k, the others by Avg@k (paper, section 4.1: AIME24)."""

    def __post_init__(self) -> None:
        n, b = self.pool_samples, self.plan.prompts_per_step
        if self.world is not None:
            require(n % b == 0, f"pool_samples={n} is no multiple of prompts_per_step={b}: the last step would be short")
        rho = self.score_correlation
        held = rho is None or (self.world is not None and 0 < rho < 1)
        require(held, f"score_correlation={rho} must lie between 0 and 1, in a world alone")
        _choose(self, planned=PLANNED)
        rollouts, size = b * self.train.rollouts_per_prompt, self.train.micro_batch
        if self.train.engine == "trl":
            require(rollouts % size == 0, f"micro_batch={size} does not divide a step's {rollouts} rollouts: choose another one")
        for name in self.arms:
            require(name in PLANS, f"arm {name!r} is none of {', '.join(PLANS)}{near(name, PLANS)}")
            drawn = self.train.engine == "packed" or not name.endswith("dapo")
            require(drawn, f"arm {name!r} needs dynamic sampling, which engine 'trl' has not: it would be GRPO; leave it out")
        require(len(set(self.arms)) == len(self.arms) > 0, f"arms={', '.join(self.arms)}: name each arm once, and one at least")

    @property
    def steps(self) -> int:
        """Optimiser steps of a run: the asked number, or those of `PASSES` passes over the kept pool."""
        return self.train_steps or steps_of(self.pool_samples, self.plan.prompts_per_step)

    @property
    def target(self) -> str:
        """`Sample.source` of the source that is wanted."""
        return "target" if self.world else "deepmath"

    @property
    def curve_problems(self) -> int:
        """Problems of each set that every evaluation holds: those of the small ones in a world, all of a published set."""
        return self.world.eval_problems_small if self.world else 1_000_000


SMOKE = Profile(
    name="smoke",
    world=WorldConfig(
        labelled_samples=90, test_samples=50, noisy_pool_samples=150, contest_train_samples=16, contest_test_samples=34,
        step_labelled_samples=64, rated_prompts=48, eval_problems_small=8, eval_problems_full=8,
    ),
    reader=ReaderConfig(retained_latents=64, max_tokens=160),
    properties=PropertyConfig(clusters=4, elastic_net_alphas=8, bootstrap_samples=50, shrinkage_tau=10.0),
    plan=PlanConfig(prompts_per_step=8, window_batches=6),
    train=TrainConfig(seeds=2, eval_every_steps=4, checkpoint_every_steps=4, eval_samples_small=2, eval_samples_full=2),
    gradient_prompts=24,
    ladder=LadderConfig(official_split=False, max_train=70, max_test=50, adapted_labels=30),
    pool_samples=96,
    score_correlation=0.45,
    live_steps=2,
)  # fmt: skip

LAPTOP = Profile(name="laptop", score_correlation=0.45)

STUDY = Profile(
    name="study",
    world=WorldConfig(noisy_pool_samples=6530),
    plan=PlanConfig(prompts_per_step=32, swapped_per_batch=2, window_batches=10),
    train=TrainConfig(
        seeds=2, eval_every_steps=10, checkpoint_every_steps=10, eval_samples_small=0, eval_samples_full=2, tail_steps=11
    ),
    pool_samples=3200,
    score_correlation=0.45,
    study=StudyConfig(),
)
"""112 steps of 32 prompts, 8 rollouts each; h = 2 of 32 is the paper's 8 of 128."""
PAPER = Profile(
    name="paper",
    world=None,
    published=PublishedConfig(),
    reader=ReaderConfig(
        "Qwen/Qwen3-1.7B-Base", layer=28, sae="saelens:qwen-scope-3-1.7b-base-w32k-l50/layer27",
        revision="ea980cb0a6c2ae4b936e82123acc929f1cec04c1", max_tokens=4096, max_norm=None, device="cuda", tokens_per_batch=8192,
    ),
    plan=PlanConfig(prompts_per_step=128, swapped_per_batch=8),
    train=TrainConfig(
        seeds=1, learning_rate=1e-6, temperature=0.6, max_completion_tokens=3072, max_prompt_tokens=1024,
        checkpoint_every_steps=20, engine="trl", keep_every_steps=20, chat=True,
    ),
    pool_samples=103_022,
    policy="Qwen/Qwen2.5-Math-1.5B",
    arms=("grpo", "saerl"),
    train_steps=900,
    exports=("verl",),
    eval_sets=("aime24", "amc23", "gsm8k", "math500", "minerva", "olympiadbench"),
    pass_set="aime24",
)  # fmt: skip
"""The paper's own experiments (its Table 9, sections 2 to 4): block 28 is its layer 27 counted from 0, solutions are cut at the
policy's prompt and response, and the SAE is a published one, since its own is not public. Never run at this scale."""

PAPER_TINY = replace(
    PAPER,
    name="paper_tiny",
    published=PublishedConfig(
        labelled_samples=32, test_samples=40, parent_samples=24, parent_labels=20, contest_train_samples=12,
        contest_test_samples=36, step_labelled_samples=87,
    ),
    reader=replace(PAPER.reader, layer=2, max_tokens=57, retained_latents=8, device="cpu"),
    properties=PropertyConfig(clusters=3, elastic_net_alphas=8, bootstrap_samples=30),
    plan=PlanConfig(prompts_per_step=16, swapped_per_batch=1),
    train=replace(
        PAPER.train, learning_rate=1e-3, rollouts_per_prompt=2, max_completion_tokens=8, keep_every_steps=2,
        checkpoint_every_steps=2, eval_samples_full=2,
    ),
    pool_samples=72,
    train_steps=3,
)  # fmt: skip
"""The same path in small, for stand-ins of models, SAE and sets (`--data`, `--reader`, `--sae`, `--policy`)."""

PROFILES: dict[str, Profile] = {profile.name: profile for profile in (SMOKE, LAPTOP, STUDY, PAPER, PAPER_TINY)}
"""The dial's positions. `paper` needs models and data of the hub, or stand-ins, and GPUs."""


def get_profile(name: str, seeds: int | None = None, seed: int | None = None) -> Profile:
    """Return the profile `name`, optionally with another number of matched seeds or another base seed.

    >>> get_profile("smoke").steps
    13

    `name` may be followed by the options of `Options` as JSON. Raises ValueError for a name that is not in `PROFILES`.
    """
    from saerl_lib.settings import Options

    name, _, rest = name.partition(" ")
    if name not in PROFILES:
        raise ValueError(f"profile {name!r} does not exist; choose one of {', '.join(PROFILES)}{near(name, PROFILES)}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(rest or "{}").items()}
    profile = Options(**given).apply(PROFILES[name])
    if seeds is not None:
        profile = replace(profile, train=replace(profile.train, seeds=seeds))
    return profile if seed is None else replace(profile, seed=seed)
