"""What the paper's run is and what it would cost: its settings in one record, the numbers assumed, GPU-hours and memory.

`PaperConfig` holds what the paper states (its Table 9) and what it leaves open; each field says "paper, section X" or "not
stated in the paper; ours". `Replacements` holds what may stand in for hub models and data, and how a run is split.
`ASSUMPTIONS` are the numbers beside them. The formulas are pure; hours are pairs of an expected and an upper figure (the
longest texts, dense instead of sparse SAE gradients). Nothing of this was run at that scale. Standard library alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

from saerl_lib.config import near
from saerl_lib.data.hub import BENCHMARKS, POLICIES, QWEN3_17B, QWEN3_17B_BASE, TRAINING_DATA, HubData, HubModel

ORDERS = {"grpo": "random", "dapo": "random", "diff": "ascending", "saerl_grpo": "saerl", "saerl_dapo": "saerl"}
"""Arm -> order of `saerl_lib.plan.orders` (paper, section 4.1)."""
SELECTORS = {"adarft": "pass_rate", "gainrl": "angle_concentration"}
"""Arm that chooses its prompts as it learns -> what it needs to know of the base policy (paper, section 4.1)."""
ARMS = (*ORDERS, *SELECTORS)
POOLS = ("target", "filtered")
TARGETS = ("trl", "verl", "nemo-rl", "prime-rl")
LEAST = {"prompts_per_step": 2, "rollouts_per_prompt": 2, "seed": 0}
"""Smallest value of a count where it is not 1; one rollout has no other to be compared with."""


def require(holds: object, message: str) -> None:
    """Raise ValueError with `message` unless `holds`."""
    if not holds:
        raise ValueError(message)


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
        for name, value in vars(self).items():
            least = LEAST.get(name, 1)
            if type(value) in (int, float):
                whole = type(value) is int
                bound = f"at least {least}" if whole else "above 0"
                require(value >= least if whole else value > 0, f"{name}={value} must be {bound}")
        once = len(set(self.arms)) == len(self.arms) > 0
        require(once and set(self.arms) <= set(ARMS), f"arms={', '.join(self.arms)}: name each of {', '.join(ARMS)} at most once"
                + "".join(near(name, ARMS) for name in self.arms if name not in ARMS))  # fmt: skip
        require(set(self.exports) <= set(TARGETS), f"exports={', '.join(self.exports)}: choose from {', '.join(TARGETS)}")
        require(self.train_on in POOLS, f"train_on={self.train_on!r}: choose {' or '.join(POOLS)}")

    @property
    def stand_ins(self) -> dict[str, bool]:
        """Option -> whether the run needs no hub for what it names."""
        local_sae = self.sae_source is not None and not self.sae_source.startswith("saelens:")
        local = {"--sources": self.sources is not None, "--encoder": self.encoder_folder is not None, "--sae": local_sae}
        return local | {"--policy": Path(self.policy).is_dir()}


SAE_CHOICES = ("published", "trained", "opensae")


@dataclass(frozen=True)
class PaperConfig(Replacements):
    """Models, data and settings of the paper's experiments."""

    policies: tuple[HubModel, ...] = POLICIES
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
        require(self.sae in SAE_CHOICES, f"sae={self.sae!r}: choose one of {', '.join(SAE_CHOICES)}")
        require(self.sae != "opensae" or self.opensae_folder, "sae='opensae' needs opensae_folder, the folder of the checkpoint")
        require(len(self.runs_per_policy) == len(self.policies),
                f"runs_per_policy={self.runs_per_policy}: give one number for each of {len(self.policies)} policies")  # fmt: skip
        require(self.solution_index <= 3, f"solution_index={self.solution_index}: DeepMath-103K has solutions 1, 2 and 3")
        b, g = self.prompts_per_step, self.rollouts_per_prompt
        require(b * g % self.micro_batch == 0,
                f"micro_batch={self.micro_batch} does not divide a step of prompts_per_step={b} x rollouts_per_prompt={g} "
                "rollouts: choose another one")  # fmt: skip

    @property
    def swapped_per_batch(self) -> int:
        """h, one of 16: 8 of b = 128 is best in the mixing study; h of the main runs is not stated in the paper (ours)."""
        return max(1, self.prompts_per_step // 16)

    @property
    def reading_model(self) -> HubModel:
        """The model whose residual stream the chosen SAE reads: the base model for SAELens' releases, else the paper's."""
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

    @property
    def evaluated_policies(self) -> int:
        """Of one run: those of every evaluated step, and the final ones."""
        return self.steps // self.eval_every_steps + 1


PAPER, OURS = "stated in the paper", "ours"
SETTINGS = {
    PAPER: {
        "steps": "optimiser steps", "prompts_per_step": "prompts", "rollouts_per_prompt": "completions",
        "max_prompt_tokens": "tokens", "max_response_tokens": "tokens", "learning_rate": "", "temperature": "",
        "pool_samples": "samples", "labelled_samples": "samples", "clusters": "", "eval_samples": "completions a problem",
        "adarft_samples": "rollouts a prompt", "sae_expansion": "latents / width", "sae_text_gigabytes": "GB of text",
        "runs_per_policy": "rows of Table 4",
    },
    OURS: {
        "eval_every_steps": "steps, from the multiples of 20 in Table 5", "retained_latents": "from 960 = 4 x 240",
        "micro_batch": "rollouts of one forward pass, not stated",
    },
}  # fmt: skip
"""Origin -> fields of `PaperConfig` that enter the plan, and what they count."""
ASSUMPTIONS: tuple[tuple[str, float, str, str, str], ...] = (
    ("h100_peak_flops", 989e12, "FLOP/s", OURS, "dense bf16 of an H100 SXM, NVIDIA's data sheet"),
    ("h100_bytes_per_second", 3.35e12, "B/s", OURS, "memory of an H100 SXM, NVIDIA's data sheet"),
    ("a100_peak_flops", 312e12, "FLOP/s", OURS, "dense bf16 of an A100, NVIDIA's data sheet"),
    ("gpu_memory_bytes", 80e9, "B", OURS, "one H100 or A100; the paper does not say which size it used"),
    ("encode_utilisation", 0.4, "share", OURS, "of the peak, forward passes over packed texts"),
    ("train_utilisation", 0.4, "share", OURS, "of the peak, training of SAE and policy"),
    ("decode_bandwidth_share", 0.3, "share", OURS, "of the memory's bandwidth, generation with batches that run empty"),
    ("decode_sequences", 256, "sequences", OURS, "that a GPU generates together"),
    ("deepmath_solution_bytes", 4_959_744_761 / 103_022 / 3, "B", OURS, "card of DeepMath-103K: bytes / rows / 3 solutions"),
    ("numina_sample_bytes", 1_141_178_809 / 896_215, "B", OURS, "card of NuminaMath-1.5: bytes / rows"),
    ("prm_sample_bytes", 343_127_415 / 93_794, "B", OURS, "card of a copy of PRM800K: bytes / rows, metadata included"),
    ("deepscaler_sample_bytes", 19_443_229 / 40_315, "B", OURS, "card of a copy of DeepScaleR: bytes / rows"),
    ("numina_samples", 107_021, "samples", PAPER, "Table 6"),
    ("deepscaler_samples", 10_800, "samples", PAPER, "Table 2: 10,000 + 800"),
    ("math_bytes_per_token", 3.0, "B/token", OURS, "mathematics in LaTeX with Qwen's tokenizer"),
    ("web_bytes_per_token", 4.2, "B/token", OURS, "English web text with Qwen's tokenizer"),
    ("prompt_tokens", 100, "tokens", OURS, "mean prompt with its template"),
    ("response_tokens", 1000, "tokens", OURS, "mean completion; the upper figure takes the longest allowed"),
    ("update_forwards", 4.0, "forward passes", OURS, "an update: old log-probabilities, forward, and two for backward"),
    ("train_bytes_per_parameter", 18.0, "B", OURS, "bf16 weights 2, fp32 weights 4, Adam 8, fp32 gradient 4"),
    ("checkpoint_bytes_per_parameter", 14.0, "B", OURS, "bf16 weights 2, fp32 weights 4, Adam 8"),
    ("sae_train_bytes_per_parameter", 16.0, "B", OURS, "fp32 weights 4, gradient 4, Adam 8"),
    ("logits_tile", 4096 * 32_768, "numbers", OURS, "tokens x vocabulary that TRL's output head holds in fp32 at a time"),
    ("working_bytes", 8e9, "B", OURS, "buffers, and activations of a forward pass without gradients"),
)  # fmt: skip
"""Numbers beside the settings that the estimates rest on: name, value, unit, origin, why."""
GIVEN = SimpleNamespace(**{name: value for name, value, *_ in ASSUMPTIONS})
"""Assumed values by name."""


def assumption_rows(config: PaperConfig) -> list[tuple[str, str, str, str]]:
    """All that the estimates rest on: name, value with unit, origin, reason."""
    stated = ((origin, *item) for origin, names in SETTINGS.items() for item in names.items())
    rows = [(name, str(getattr(config, name)), origin, what) for origin, name, what in stated]
    rows.append(("benchmark problems", f"{config.benchmark_problems:,}", OURS, "rows of the six repositories"))
    for name, value, unit, origin, why in ASSUMPTIONS:
        rows.append((name, f"{value:,} {unit}" if isinstance(value, int) else f"{value:.4g} {unit}", origin, why))
    return rows


def sae_parameters(width: int, latents: int) -> int:
    """Encoder, decoder and both biases.

    >>> sae_parameters(2048, 32768)
    134252544
    """
    return 2 * width * latents + width + latents


def hours(flops: float, peak_flops: float, utilisation: float) -> float:
    """GPU-hours of `flops` on a GPU of `peak_flops` a second of which `utilisation` is reached."""
    return flops / (peak_flops * utilisation) / 3600.0


def generation_memory(config: PaperConfig, model: HubModel) -> float:
    """Bytes of GPU memory to generate: bf16 weights, the cache of all sequences at full length, working memory."""
    longest = config.max_prompt_tokens + config.max_response_tokens
    return 2 * model.parameters + GIVEN.decode_sequences * longest * model.cache_bytes + GIVEN.working_bytes


def training_memory(config: PaperConfig, model: HubModel) -> float:
    """Bytes of GPU memory of one run: weights and optimiser, one micro-batch of the longest sequences, and what generates.

    The logits count as one fp32 tile, since TRL projects tile by tile (ours). With several GPUs each holds a micro-batch of its
    own: lower `micro_batch` in proportion to stay within this figure.
    """
    tokens = config.micro_batch * (config.max_prompt_tokens + config.max_response_tokens)
    update = tokens * model.activation_bytes + 4.0 * GIVEN.logits_tile
    return model.parameters * GIVEN.train_bytes_per_parameter + update + generation_memory(config, model)


def gpus(memory_bytes: float) -> int:
    """GPUs whose memory holds `memory_bytes`."""
    return max(1, math.ceil(memory_bytes / GIVEN.gpu_memory_bytes))


def reading_hours(config: PaperConfig, samples: int, text_tokens: float, latents: int) -> float:
    """H100-hours to encode texts of `text_tokens`: a forward pass through all blocks without head, and the SAE's encoder."""
    encoder = config.encoder
    flops = encoder.forward_flops(text_tokens / 2, head=False) + 2.0 * encoder.width * latents
    return hours(samples * text_tokens * flops, GIVEN.h100_peak_flops, GIVEN.encode_utilisation)


def encode_hours(config: PaperConfig, latents: int) -> tuple[float, ...]:
    """H100-hours to encode the pool: solutions cut at the longest response, and whole R1 solutions."""
    whole = GIVEN.deepmath_solution_bytes / GIVEN.math_bytes_per_token
    cut = min(whole, config.max_response_tokens)
    return tuple(reading_hours(config, config.pool_samples, GIVEN.prompt_tokens + n, latents) for n in (cut, whole))


def sae_training_hours(config: PaperConfig) -> tuple[float, ...]:
    """A100-hours to train the SAE with the paper's settings: sparse gradients (TopK kernels), and dense ones.

    A token costs the LM's forward pass and 2 D F for the encoder, or six times both products, 12 D F, when all is dense.
    """
    tokens = config.sae_text_gigabytes * 1e9 / GIVEN.web_bytes_per_token
    forward = config.encoder.forward_flops(1024.0, head=False)
    flops = (tokens * (forward + factor * config.encoder.width * config.paper_latents) for factor in (2, 12))
    return tuple(hours(count, GIVEN.a100_peak_flops, GIVEN.train_utilisation) for count in flops)


def rollout_hours(model: HubModel, completions: float, tokens: float) -> float:
    """H100-hours to generate `completions` of `tokens` each: memory traffic of decoding and the FLOPs of the prompts.

    A step of decoding reads the bf16 weights once and the cache of every sequence, half of its tokens on average.
    """
    traffic = 2 * model.parameters / GIVEN.decode_sequences + (GIVEN.prompt_tokens + tokens / 2) * model.cache_bytes
    decode = completions * tokens * traffic / (GIVEN.h100_bytes_per_second * GIVEN.decode_bandwidth_share) / 3600.0
    prefill = completions * GIVEN.prompt_tokens * model.forward_flops(GIVEN.prompt_tokens / 2)
    return decode + hours(prefill, GIVEN.h100_peak_flops, GIVEN.encode_utilisation)


def adarft_hours(config: PaperConfig) -> tuple[float, ...]:
    """H100-hours of ADARFT's difficulty estimate on the first policy, mean and longest completions."""
    completions, lengths = config.pool_samples * config.adarft_samples, (GIVEN.response_tokens, config.max_response_tokens)
    return tuple(rollout_hours(config.policies[0], completions, tokens) for tokens in lengths)


def run_hours(config: PaperConfig, model: HubModel, tokens: float) -> dict[str, float]:
    """H100-hours of one GRPO run with completions of `tokens`: rollouts, updates and evaluations."""
    completions = config.steps * config.prompts_per_step * config.rollouts_per_prompt
    text = GIVEN.prompt_tokens + tokens
    update = GIVEN.update_forwards * completions * text * model.forward_flops(text / 2)
    answers = config.evaluated_policies * config.benchmark_problems * config.eval_samples
    return {
        "rollouts": rollout_hours(model, completions, tokens),
        "updates": hours(update, GIVEN.h100_peak_flops, GIVEN.train_utilisation),
        "evaluations": rollout_hours(model, answers, tokens),
    }
