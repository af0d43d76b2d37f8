"""Profile `paper`: the paper's own models, data and settings, what they would cost, and readers of the published data sets.

`python -m saerl_lib run --profile paper --plan-only` prints the plan from the standard library alone; nothing is downloaded.

Models of the Hugging Face hub that the paper's run reads, each with its pinned revision where one is known.

A revision stands here only when public sources show it in full with the repository's name; None is printed as "not pinned
yet". The sets stand in `saerl_lib.data.published`.

What may stand in for the paper's hub models and data, and what a run of the path decides beside them.

The defaults are the paper's run; a field that the paper does not state says so. Needs the standard library alone.

The paper's run in one frozen record: models, SAE, data, and the hyperparameters that the paper states (its Table 9).

Each field says "paper, section X" or "not stated in the paper; ours". What may stand in for hub models and data, and how a
run is split, are the fields of `replacements`.

Parameters, FLOPs and bytes of a decoder, from the fields of its configuration. Pure functions of numbers.

GPU memory of generation and of training, and how many GPUs hold it.

What the estimates rest on beyond `PaperConfig`: each number with its unit, its origin and why. All are printed by the plan.

GPU-hours, memory and disk of every stage of the paper's run, computed from `PaperConfig` and `Assumptions` alone.

Every figure is a pair: expected, and an upper one (the longest texts, dense instead of sparse SAE gradients).

Sizes and tables as plain text.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from saerl_lib.config import near
from saerl_lib.data.published import BENCHMARKS, TRAINING_DATA, HubData


@dataclass(frozen=True)
class HubModel:
    """A decoder-only LM by the fields of its config.json, from which parameters and FLOPs are computed."""

    repository: str
    """owner/name on the hub."""
    layers: int
    """Blocks."""
    width: int
    """Width D of the residual stream."""
    feed_forward: int
    """Inner width of a block's gated MLP."""
    heads: int
    """Query heads."""
    key_value_heads: int
    """Key and value heads (grouped-query attention)."""
    head_width: int
    """Width of one head."""
    vocabulary: int
    """Rows of the embedding."""
    tied_embedding: bool
    """Whether the output head is the embedding."""
    query_bias: bool
    """Biases of query, key and value (Qwen2); otherwise norms of query and key a head (Qwen3)."""
    revision: str | None = None
    """Commit hash of the repository; None: not pinned yet."""


QWEN25_MATH_15B = HubModel(
    "Qwen/Qwen2.5-Math-1.5B", layers=28, width=1536, feed_forward=8960, heads=12, key_value_heads=2, head_width=128,
    vocabulary=151_936, tied_embedding=True, query_bias=True, revision="4a83ca6e4526a4f2da3aa259ec36c259f66b2ab2",
)  # fmt: skip
QWEN25_MATH_7B = HubModel(
    "Qwen/Qwen2.5-Math-7B", layers=28, width=3584, feed_forward=18_944, heads=28, key_value_heads=4, head_width=128,
    vocabulary=152_064, tied_embedding=False, query_bias=True, revision="b101308fe89651ea5ce025f25317fea6fc07e96e",
)  # fmt: skip
QWEN3_17B = HubModel(
    "Qwen/Qwen3-1.7B", layers=28, width=2048, feed_forward=6144, heads=16, key_value_heads=8, head_width=128,
    vocabulary=151_936, tied_embedding=True, query_bias=False, revision="70d244cc86ccca08cf5af4e1e306ecf908b1ad5e",
)  # fmt: skip
QWEN3_17B_BASE = replace(QWEN3_17B, repository="Qwen/Qwen3-1.7B-Base", revision="ea980cb0a6c2ae4b936e82123acc929f1cec04c1")


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
    """Commit hashes of data sets that are not pinned yet, such as amc23=0123..."""
    encoder_folder: str | None = None
    """Model that reads the data, a folder in Hugging Face format; None: the hub's."""
    encoder_layer: int = 28
    """Block whose residual stream the SAE reads, 1 is the first (paper, section C.1: layer 27 counted from 0)."""
    sae_source: str | None = None
    """FOLDER saved by SAELens, opensae:FOLDER or saelens:RELEASE/ID; None: the published one."""
    policy: str = "Qwen/Qwen2.5-Math-1.5B"
    """Policy that is trained: Qwen/Qwen2.5-Math-1.5B, Qwen/Qwen2.5-Math-7B, or a folder in Hugging Face format."""
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
    train_on: Literal["target", "filtered"] = "target"
    """target: DeepMath alone, as the paper's runs. filtered: as many samples of the noisy pool, by the source classifier."""
    arms: tuple[str, ...] = ("grpo", "saerl_grpo")
    """Arms to plan, train and evaluate, of grpo, dapo, diff, saerl_grpo, saerl_dapo, adarft and gainrl."""
    seeds: int = 1
    """Matched seeds (paper: single runs)."""
    exports: tuple[str, ...] = ("verl",)
    """Other trainers that every plan is exported for, of trl, verl, nemo-rl and prime-rl (paper: verl)."""
    encode_max_tokens: int = 4096
    """Tokens; longer samples are cut at the end and counted (truncated.csv): the policy's prompt and response (ours)."""
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
    """Prompts stand in the policy's chat template (not stated in the paper; ours); --no-chat: plain text, a line break."""
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
            hint = near(unknown[0], ARMS) if unknown else ""
            raise ValueError(f"arms={', '.join(self.arms)}: name each of {', '.join(ARMS)} at most once{hint}")
        unknown = [name for name in self.exports if name not in TARGETS]
        if unknown:
            raise ValueError(f"exports={', '.join(self.exports)}: choose from {', '.join(TARGETS)}{near(unknown[0], TARGETS)}")
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


SAE_CHOICES = ("published", "trained", "opensae")
LEAST = {
    "steps": ("--steps", 1), "eval_every_steps": ("--eval-every", 1), "eval_samples": ("--attempts", 1),
    "labelled_samples": ("--labelled", 1), "retained_latents": ("--retained", 1), "clusters": ("--clusters", 1),
    "max_prompt_tokens": ("max_prompt_tokens", 1), "max_response_tokens": ("--max-completion", 1),
    "prompts_per_step": ("--prompts-per-step", 2), "rollouts_per_prompt": ("--rollouts", 2),
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
    """|F|, latents that enter z: 960 = 4 x 240 (paper, section B.1, inferred)."""
    metadata_features: int = 26
    """Shallow features m beside z (paper, section 3.1)."""
    clusters: int = 10
    """K, number of clusters by MiniBatchKMeans (paper, section 3)."""
    labelled_samples: int = 3000
    """|L|, difficulty labels of the calibration (paper, section 3.3)."""
    learning_rate: float = 1e-6
    """Constant learning rate of GRPO (paper, Table 9)."""
    prompts_per_step: int = 128
    """b, prompts of one step; one of 16 is swapped (paper, Table 9)."""
    rollouts_per_prompt: int = 8
    """G, rollouts a prompt (paper, Table 9)."""
    max_prompt_tokens: int = 1024
    """Longest prompt (paper, Table 9)."""
    max_response_tokens: int = 3072
    """Longest completion, tokens (paper, Table 9)."""
    temperature: float = 0.6
    """Of rollouts (paper, Table 9); that of evaluations is not stated."""
    steps: int = 900
    """Optimiser steps; beyond the plan's end the plan starts again (paper, section 4.1)."""
    eval_every_steps: int = 20
    """Steps between evaluated policies (paper, Table 5, inferred: all step counts are multiples of 20)."""
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
        if (self.prompts_per_step * self.rollouts_per_prompt) % self.micro_batch:
            raise ValueError(
                f"micro_batch={self.micro_batch} does not divide a step of prompts_per_step={self.prompts_per_step} x "
                f"rollouts_per_prompt={self.rollouts_per_prompt} rollouts: choose another --micro-batch"
            )

    @property
    def swapped_per_batch(self) -> int:
        """h, one of 16: 8 of b = 128 is best in the mixing study; h of the main runs is not stated in the paper (ours)."""
        return max(1, self.prompts_per_step // 16)

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


def block_parameters(model: HubModel) -> int:
    """Weights of one block: attention, gated MLP, norms and, where the family has them, biases or head norms."""
    query, key = model.heads * model.head_width, model.key_value_heads * model.head_width
    attention = model.width * (2 * query + 2 * key)
    extra = query + 2 * key if model.query_bias else 2 * model.head_width
    return attention + extra + 3 * model.width * model.feed_forward + 2 * model.width


def parameters(model: HubModel) -> int:
    """All weights, a tied embedding counted once.

    >>> from saerl_lib.cost import QWEN25_MATH_7B
    >>> from saerl_lib.cost import QWEN25_MATH_15B
    >>> parameters(QWEN25_MATH_15B), parameters(QWEN25_MATH_7B)
    (1543714304, 7615616512)
    """
    embedding = model.vocabulary * model.width
    return model.layers * block_parameters(model) + model.width + embedding * (1 if model.tied_embedding else 2)


def forward_flops_per_token(model: HubModel, context_tokens: float, head: bool = True) -> float:
    """FLOPs of one token's forward pass: two a weight of the blocks and, with `head`, of the output head, plus attention.

    Attention over an average context of c tokens takes 4 c (heads x head width) FLOPs a layer.
    """
    weights = model.layers * block_parameters(model) + (model.vocabulary * model.width if head else 0)
    return 2.0 * weights + 4.0 * model.layers * context_tokens * model.heads * model.head_width


def key_value_bytes_per_token(model: HubModel, bytes_per_number: int = 2) -> int:
    """Cache of one token, keys and values of all layers.

    >>> from saerl_lib.cost import QWEN25_MATH_15B
    >>> key_value_bytes_per_token(QWEN25_MATH_15B)
    28672
    """
    return 2 * model.layers * model.key_value_heads * model.head_width * bytes_per_number


def sae_parameters(width: int, latents: int) -> int:
    """Encoder, decoder and both biases.

    >>> sae_parameters(2048, 32768)
    134252544
    """
    return 2 * width * latents + width + latents


def decode_seconds_per_token(model: HubModel, sequences: int, context_tokens: float, bytes_per_second: float) -> float:
    """Seconds a generated token when memory traffic is the limit: weights once a step, the cache of every sequence.

    `sequences` decode together, each over `context_tokens` on average; weights and cache hold two bytes a number.
    """
    step_bytes = 2 * parameters(model) + sequences * context_tokens * key_value_bytes_per_token(model)
    return step_bytes / bytes_per_second / sequences


def hours(flops: float, peak_flops: float, utilisation: float) -> float:
    """GPU-hours of `flops` on a GPU of `peak_flops` a second of which `utilisation` is reached.

    >>> hours(3.6e18, 1e15, 0.5)
    2.0
    """
    return flops / (peak_flops * utilisation) / 3600.0


PAPER = "stated in the paper"
OURS = "ours"


def ours(value: float, unit: str, why: str) -> Any:
    """A field of `Assumptions` that the paper does not state."""
    return field(default=value, metadata={"unit": unit, "origin": OURS, "why": why})


@dataclass(frozen=True)
class Assumptions:
    """Hardware, tokens and bytes; every field carries unit, origin and reason as metadata."""

    h100_peak_flops: float = ours(989e12, "FLOP/s", "dense bf16 of an H100 SXM, NVIDIA's data sheet")
    h100_bytes_per_second: float = ours(3.35e12, "B/s", "memory of an H100 SXM, NVIDIA's data sheet")
    a100_peak_flops: float = ours(312e12, "FLOP/s", "dense bf16 of an A100, NVIDIA's data sheet")
    gpu_memory_bytes: float = ours(80e9, "B", "one H100 or A100; the paper does not say which size it used")
    encode_utilisation: float = ours(0.4, "share", "of the peak, forward passes over packed texts")
    train_utilisation: float = ours(0.4, "share", "of the peak, training of SAE and policy")
    decode_bandwidth_share: float = ours(0.3, "share", "of the memory's bandwidth, generation with batches that run empty")
    decode_sequences: int = ours(256, "sequences", "that a GPU generates together")
    deepmath_solution_bytes: float = ours(4_959_744_761 / 103_022 / 3, "B", "card of DeepMath-103K: bytes / rows / 3 solutions")
    numina_sample_bytes: float = ours(1_141_178_809 / 896_215, "B", "card of NuminaMath-1.5: bytes / rows")
    prm_sample_bytes: float = ours(343_127_415 / 93_794, "B", "card of a copy of PRM800K: bytes / rows, metadata included")
    deepscaler_sample_bytes: float = ours(19_443_229 / 40_315, "B", "card of a copy of DeepScaleR: bytes / rows")
    numina_samples: int = field(default=107_021, metadata={"unit": "samples", "origin": PAPER, "why": "Table 6"})
    deepscaler_samples: int = field(default=10_800, metadata={"unit": "samples", "origin": PAPER, "why": "Table 2: 10,000 + 800"})
    math_bytes_per_token: float = ours(3.0, "B/token", "mathematics in LaTeX with Qwen's tokenizer")
    web_bytes_per_token: float = ours(4.2, "B/token", "English web text with Qwen's tokenizer")
    prompt_tokens: int = ours(100, "tokens", "mean prompt with its template")
    response_tokens: int = ours(1000, "tokens", "mean completion; the upper figure takes the longest allowed")
    update_forwards: float = ours(4.0, "forward passes", "an update: old log-probabilities, forward, and two for backward")
    train_bytes_per_parameter: float = ours(18.0, "B", "bf16 weights 2, fp32 weights 4, Adam 8, fp32 gradient 4")
    checkpoint_bytes_per_parameter: float = ours(14.0, "B", "bf16 weights 2, fp32 weights 4, Adam 8")
    sae_train_bytes_per_parameter: float = ours(16.0, "B", "fp32 weights 4, gradient 4, Adam 8")
    logits_tile: int = ours(4096 * 32_768, "numbers", "tokens x vocabulary that TRL's output head holds in fp32 at a time")
    working_bytes: float = ours(8e9, "B", "buffers, and activations of a forward pass without gradients")

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(name, value with unit, origin, why) of every assumption.

        >>> Assumptions().rows()[3][:3]
        ('gpu_memory_bytes', '8e+10 B', 'ours')
        """
        found = []
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
            found.append((item.name, f"{shown} {item.metadata['unit']}", item.metadata["origin"], item.metadata["why"]))
        return found


STATED = (
    ("steps", "optimiser steps"),
    ("prompts_per_step", "prompts"),
    ("rollouts_per_prompt", "completions"),
    ("max_prompt_tokens", "tokens"),
    ("max_response_tokens", "tokens"),
    ("learning_rate", ""),
    ("temperature", ""),
    ("pool_samples", "samples"),
    ("labelled_samples", "samples"),
    ("clusters", ""),
    ("eval_samples", "completions a problem"),
    ("adarft_samples", "rollouts a prompt"),
    ("sae_expansion", "latents / width"),
    ("sae_text_gigabytes", "GB of text"),
    ("runs_per_policy", "rows of Table 4"),
)
"""Fields of `PaperConfig` that enter the plan and are stated in the paper, with their unit."""

INFERRED = (
    ("eval_every_steps", "steps, from the multiples of 20 in Table 5"),
    ("retained_latents", "from 960 = 4 x 240"),
    ("micro_batch", "rollouts of one forward pass, not stated"),
)
"""Fields that the paper does not state; marked as ours."""


def generation_memory(config: PaperConfig, given: Assumptions, model: HubModel) -> float:
    """Bytes of GPU memory to generate: bf16 weights, the cache of all sequences at full length, working memory."""
    longest = config.max_prompt_tokens + config.max_response_tokens
    cache = given.decode_sequences * longest * key_value_bytes_per_token(model)
    return 2 * parameters(model) + cache + given.working_bytes


def activation_bytes_per_token(model: HubModel) -> int:
    """Kept for the backward pass with gradient checkpointing in mixed precision (ours).

    4 L D for the fp32 input of every block, and one block that is computed again: 8 D for its two norms in fp32, and in bf16
    2 (2 q + 2 k + 2 D + 4 F) for queries and their output, keys and values, both projections back, and the gated MLP of
    width F. Attention scores are not stored (FlashAttention or its like).

    >>> from saerl_lib.cost import QWEN25_MATH_15B
    >>> activation_bytes_per_token(QWEN25_MATH_15B)
    269312
    """
    query, key = model.heads * model.head_width, model.key_value_heads * model.head_width
    block = 8 * model.width + 2 * (2 * query + 2 * key + 2 * model.width + 4 * model.feed_forward)
    return 4 * model.layers * model.width + block


def update_memory(config: PaperConfig, given: Assumptions, model: HubModel) -> float:
    """Bytes beside weights and optimiser while one micro-batch of the longest sequences is trained on (ours).

    The logits count as one fp32 tile, since TRL projects tile by tile. With several GPUs each holds a micro-batch of its own:
    lower `micro_batch` in proportion to stay within this figure.
    """
    tokens = config.micro_batch * (config.max_prompt_tokens + config.max_response_tokens)
    return tokens * activation_bytes_per_token(model) + 4.0 * given.logits_tile


def training_memory(config: PaperConfig, given: Assumptions, model: HubModel) -> float:
    """Bytes of GPU memory of one run: the training state and one micro-batch's activations beside what generates."""
    state = parameters(model) * given.train_bytes_per_parameter + update_memory(config, given, model)
    return state + generation_memory(config, given, model)


def gpus(memory_bytes: float, given: Assumptions) -> int:
    """GPUs whose memory holds `memory_bytes`.

    >>> gpus(81e9, Assumptions())
    2
    """
    return max(1, math.ceil(memory_bytes / given.gpu_memory_bytes))


CHECKPOINTS = 2
"""That `train` leaves of a run."""
WEIGHT_BYTES = 4
"""A parameter of the policies that are kept to be evaluated, in float32."""


@dataclass(frozen=True)
class Stage:
    """What one stage needs."""

    name: str
    gpu: str
    """Kind of GPU that the hours are counted in; '' for a stage of the CPU."""
    gpu_hours: tuple[float, float]
    """Expected and upper."""
    memory_bytes: float
    """GPU memory of all GPUs together, or the CPU's for a stage without one."""
    disk_bytes: float
    """What it leaves on the disk."""
    how: str
    """The computation in a few words."""


def _read_flops(config: PaperConfig, tokens: float, text_tokens: float, latents: int) -> float:
    """Forward pass without head through all blocks and the SAE's encoder, over texts of `text_tokens`."""
    model = config.encoder
    return tokens * (forward_flops_per_token(model, text_tokens / 2, head=False) + 2.0 * model.width * latents)


def encode_hours(config: PaperConfig, given: Assumptions, latents: int) -> tuple[float, float]:
    """H100-hours to encode the pool: solutions cut at the longest response (the first figure) and whole R1 solutions."""
    whole = given.prompt_tokens + given.deepmath_solution_bytes / given.math_bytes_per_token
    cut = min(whole, given.prompt_tokens + config.max_response_tokens)
    pair = [_read_flops(config, config.pool_samples * text, text, latents) for text in (cut, whole)]
    low, high = (hours(flops, given.h100_peak_flops, given.encode_utilisation) for flops in pair)
    return low, high


def other_sources_hours(config: PaperConfig, given: Assumptions, latents: int) -> float:
    """H100-hours to encode NuminaMath-1.5, PRM800K and DeepScaleR as far as the paper uses them."""
    rows = {data.name: data.rows for data in config.training_data}
    parts = (
        (given.numina_samples, given.numina_sample_bytes),
        (rows.get("prm800k", 0), given.prm_sample_bytes),
        (given.deepscaler_samples, given.deepscaler_sample_bytes),
    )
    flops = 0.0
    for samples, size in parts:
        text = size / given.math_bytes_per_token
        flops += _read_flops(config, samples * text, text, latents)
    return hours(flops, given.h100_peak_flops, given.encode_utilisation)


def sae_training_hours(config: PaperConfig, given: Assumptions) -> tuple[float, float]:
    """A100-hours to train the SAE with the paper's settings: sparse gradients (TopK kernels), and dense ones.

    A token costs the LM's forward pass and 2 D F for the encoder, or six times both products, 12 D F, when all is dense.
    """
    tokens = config.sae_text_gigabytes * 1e9 / given.web_bytes_per_token
    product = config.encoder.width * config.paper_latents
    forward = forward_flops_per_token(config.encoder, 1024.0, head=False)
    low, high = (
        hours(tokens * (forward + factor * product), given.a100_peak_flops, given.train_utilisation) for factor in (2, 12)
    )
    return low, high


def rollout_hours(model: HubModel, completions: float, tokens: float, given: Assumptions) -> float:
    """H100-hours to generate `completions` of `tokens` each: memory traffic of decoding and the FLOPs of the prompts."""
    context = given.prompt_tokens + tokens / 2
    rate = given.h100_bytes_per_second * given.decode_bandwidth_share
    decode = completions * tokens * decode_seconds_per_token(model, given.decode_sequences, context, rate) / 3600.0
    prefill = completions * given.prompt_tokens * forward_flops_per_token(model, given.prompt_tokens / 2)
    return decode + hours(prefill, given.h100_peak_flops, given.encode_utilisation)


def adarft_hours(config: PaperConfig, given: Assumptions) -> tuple[float, float]:
    """H100-hours of ADARFT's difficulty estimate on the first policy, mean and longest completions."""
    completions = config.pool_samples * config.adarft_samples
    low, high = (
        rollout_hours(config.policies[0], completions, tokens, given)
        for tokens in (given.response_tokens, config.max_response_tokens)
    )
    return low, high


def run_hours(config: PaperConfig, given: Assumptions, model: HubModel, tokens: float) -> dict[str, float]:
    """H100-hours of one GRPO run with completions of `tokens`: rollouts, updates and evaluations."""
    completions = config.steps * config.prompts_per_step * config.rollouts_per_prompt
    text = given.prompt_tokens + tokens
    update = given.update_forwards * completions * text * forward_flops_per_token(model, text / 2)
    evaluations = config.steps // config.eval_every_steps + 1
    answers = evaluations * config.benchmark_problems * config.eval_samples
    return {
        "rollouts": rollout_hours(model, completions, tokens, given),
        "updates": hours(update, given.h100_peak_flops, given.train_utilisation),
        "evaluations": rollout_hours(model, answers, tokens, given),
    }


def _training_stage(config: PaperConfig, given: Assumptions, model: HubModel, runs: int) -> Stage:
    low, high = (run_hours(config, given, model, t) for t in (given.response_tokens, config.max_response_tokens))
    parts = ", ".join(f"{name} {low[name]:.0f}" for name in low)
    kept = config.steps // config.eval_every_steps + 1  # of every evaluated step, and the final ones
    disk = runs * parameters(model) * (CHECKPOINTS * given.checkpoint_bytes_per_parameter + WEIGHT_BYTES * kept)
    how = f"{runs} runs of {config.steps} steps; one run: {parts} hours; disk: {CHECKPOINTS} checkpoints and {kept} weights a run"
    totals = (runs * sum(low.values()), runs * sum(high.values()))
    return Stage(f"GRPO, {model.repository}", "H100", totals, training_memory(config, given, model), disk, how)


def stages(config: PaperConfig, given: Assumptions) -> list[Stage]:
    """Every stage in order; training of the SAE is there when `config.sae` is 'trained'."""
    features = 4 * (4 * config.retained_latents + config.metadata_features)
    weights, sae_bytes = 2 * parameters(config.encoder), 4 * sae_parameters(config.encoder.width, config.sae_latents)
    reading = weights + sae_bytes + given.working_bytes
    found = [sae_training_stage(config, given)] if config.sae == "trained" else []
    others = other_sources_hours(config, given, config.sae_latents)
    extra = given.numina_samples + given.deepscaler_samples + sum(d.rows for d in config.training_data if d.name == "prm800k")
    found += [
        Stage("encode the pool", "H100", encode_hours(config, given, config.sae_latents), reading, config.pool_samples * features,
              "forward pass and SAE encoder; solutions cut at the longest response, or whole R1 solutions"),
        Stage("encode the other sources", "H100", (others, others), reading, extra * features,
              "NuminaMath-1.5, PRM800K, DeepScaleR, as far as the paper uses them"),
        Stage("probes, clusters, filter, plan", "", (0.0, 0.0), 4e9, 0.1e9, "CPU; `bench plan` measures 8 s for the plan itself"),
        Stage("ADARFT's difficulty rollouts", "H100", adarft_hours(config, given),
              generation_memory(config, given, config.policies[0]), 0.1e9,
              f"{config.pool_samples * config.adarft_samples:,} completions; for arm adarft alone"),
    ]  # fmt: skip
    return found + [_training_stage(config, given, m, n) for m, n in zip(config.policies, config.runs_per_policy, strict=True)]


def sae_training_stage(config: PaperConfig, given: Assumptions) -> Stage:
    """Training of the SAE with the paper's settings; activations are streamed, never stored."""
    count = sae_parameters(config.encoder.width, config.paper_latents)
    memory = count * given.sae_train_bytes_per_parameter + 2 * parameters(config.encoder) + given.working_bytes
    how = f"{config.sae_text_gigabytes / given.web_bytes_per_token:.1f}e9 tokens, streamed; sparse or dense gradients"
    return Stage("train the SAE", "A100", sae_training_hours(config, given), memory, 4.0 * count, how)


def size(count: float) -> str:
    """Bytes as people read them, in powers of ten.

    >>> size(2_136_106_260), size(81_670), size(80e9)
    ('2.1 GB', '82 kB', '80 GB')
    """
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            value = count / factor
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{count:.0f} B"


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows as lines of aligned columns, the last one ragged."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        yield "  " + "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()


def number(value: float) -> str:
    """Two digits below ten, whole numbers above.

    >>> number(0.853), number(13.7), number(152.2)
    ('0.85', '14', '152')
    """
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"
