"""GPU-hours, memory and disk of every stage of the paper's run, computed from `PaperConfig` and `Assumptions` alone.

Every figure is a pair: expected, and an upper one (the longest texts, dense instead of sparse SAE gradients).
"""

from __future__ import annotations

from dataclasses import dataclass

from saerl_lib.paper.arithmetic import (
    decode_seconds_per_token,
    forward_flops_per_token,
    hours,
    parameters,
    sae_parameters,
)
from saerl_lib.paper.assumptions import Assumptions
from saerl_lib.paper.config import PaperConfig
from saerl_lib.paper.hub import HubModel
from saerl_lib.paper.memory import generation_memory, training_memory

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
