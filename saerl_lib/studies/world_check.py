"""What the world is measured by before any SAERL arm trains, on seeds, pools and problems that no other run uses (ours).

`world --check` measures every gate and writes world_gates.csv, world_controls.csv and study_pilot.csv. Its runs are GRPO by the
trainer and settings of the laptop profile, one process a run: the random order at several learning rates (the pilot), random,
another shuffle of the same prompts (the negative control), prompts whose true pass rate is nearest to one half now (the positive
control, which looks at what no method may see), and half of the topics alone (transfer). A run is judged by the exact likelihood
of held-out gold solutions; sampled answers stand beside it at both ends. A finished run is kept. `world --rebuild` pre-trains
the policy anew on a learner's solutions: tokenizer, weights and the files that are shipped.

The learning rate of each loss and optimizer is chosen on the random order alone, by a rule stated before the pilot ran: of the
rates whose forgetting, averaged over the pilot's seeds, is at most the gate's bound, the one with the highest final exact
accuracy. The pilot tries a half, once and twice the rate in `RATES`, and goes on by factors of two while the best is at an end.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import torch
from scipy.stats import norm, spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from transformers.utils import logging

from saerl_lib import paths
from saerl_lib.artifacts import code_hash, provenance, write_atomic, write_json
from saerl_lib.config import WORLD_VERSION, Profile, TrainConfig, content_hash, get_profile, require, sub_seed, to_dict
from saerl_lib.data.sample import SEPARATOR, Sample, normalise
from saerl_lib.encode.models import open_causal
from saerl_lib.encode.stages import read_stage, retained_of
from saerl_lib.encode.store import Store
from saerl_lib.report.statistics import Estimate, over_seeds
from saerl_lib.report.tables import write_csv
from saerl_lib.train.arms import PILOTED
from saerl_lib.train.policy import FOLDER, attempted
from saerl_lib.train.sampler import Sampler, gold_probability, log_probabilities
from saerl_lib.train.selectors import InOrder, Selector
from saerl_lib.train.stages import ONE_CORE
from saerl_lib.train.trainer import PackedFeed, PlanTrainer, grpo_arguments
from saerl_lib.world import gates
from saerl_lib.world.gates import Measured
from saerl_lib.world.sources import EVERY, LENGTHS, TARGET, Mix, Text, draw_split, draw_world, learner_text, world_stage

logging.disable_progress_bar()
GATE_SEED = 90_002
"""Of the reserved draws of samples."""
ALONE = EVERY[::2]
"""Topics of the transfer runs; the others are never trained on there."""
RATES = {("token_mean", "adamw"): 1e-4, ("sequence_mean", "adamw"): 1e-4, ("constant", "adamw"): 1e-4,
         ("token_mean", "sgd"): 0.02, ("sequence_mean", "sgd"): 0.02, ("constant", "sgd"): 0.06}  # fmt: skip
"""Loss and optimizer -> the middle of the first three learning rates of the pilot, on the random order alone."""
PILOT_SEEDS, FIRST_SEED = (200, 201), 100
LOST = 0.2
"""Fall of a problem's pass rate that counts as forgetting."""
STUDY_SEEDS, LEVEL = 8, 0.05 / 5
"""Matched seeds of the study's main arms and the level of its main comparison, corrected for a family of five."""
PRETRAIN_SEED = 11
WIDTH, LAYERS, HEADS, FEED_FORWARD = 96, 4, 4, 208
"""0.47 million parameters, embeddings tied."""
PRETRAIN_STEPS, TEXTS_PER_STEP = 4000, 32
PRETRAIN_RATE = 2e-3
"""Peak of a cosine schedule with 100 warm-up steps, AdamW."""
PIECES = r"\n?[-+*/]|\n?Answer: |\d|[=\n]|, then |, |; | and |[.:?] ?|[^\d,;.:?\n=*/+-]+?(?= and |[\d,;.:?\n=*/+-]|$)"
"""What the tokenizer never merges across: signs, digits, joints, and the phrases between them."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    seeds: int = 8
    """Matched seeds of the controls; every run of them has a pool of its own."""
    steps: int = 150
    prompts_per_step: int = 16
    held_out: int = 480
    """Problems that no run trains on, evenly over lengths and topics."""
    looked_at: int = 800
    """Prompts of the pool whose true rate the positive control measures at a time."""
    looked_every: int = 10
    """Steps between these measurements."""
    read: int = 600
    """Prompts that the reader reads for what features see."""

    @property
    def evaluated(self) -> tuple[int, ...]:
        """Steps of the evaluations: the start and the end of every quarter."""
        return tuple(round(self.steps * part / 4) for part in range(5))


class NearestHalf:
    """The positive control: the prompts whose true pass rate under the policy in training is nearest to one half.

    Every `looked_every` steps it measures `looked_at` random prompts of the pool, and hands out the nearest ones in a random
    order; a prompt may come again later.
    """

    def __init__(self, policy: tuple[Any, Any], samples: Sequence[Sample], sizes: Sizes, seed: int) -> None:
        self.policy, self.samples, self.sizes = policy, samples, sizes
        self.rng, self.waiting = random.Random(seed), list[int]()

    def next(self, count: int) -> np.ndarray:
        """Row numbers [count] of the prompts to roll out now."""
        if len(self.waiting) < count:
            rows = self.rng.sample(range(len(self.samples)), min(self.sizes.looked_at, len(self.samples)))
            distance = abs(gold_probability(*self.policy, [self.samples[i] for i in rows], 1.0) - 0.5)
            self.waiting = [rows[i] for i in np.argsort(distance, kind="stable")[: count * self.sizes.looked_every]]
            self.rng.shuffle(self.waiting)
        chosen, self.waiting = self.waiting[:count], self.waiting[count:]
        return np.array(chosen)

    def told(self, rows: np.ndarray, rewards: np.ndarray) -> None:
        """Rewards change nothing: the rates are known."""


@dataclass(frozen=True)
class GateRun:
    """One reserved run."""

    arm: str
    """random, reshuffled, nearest_half or alone."""
    seed: int
    train: TrainConfig
    sizes: Sizes

    @property
    def name(self) -> str:
        """Of its files: all that decides the outcome is in it."""
        settings = {k: v for k, v in to_dict(self.train).items() if k not in ("seeds", "eval_every_steps")}
        sizes = {k: v for k, v in to_dict(self.sizes).items() if k not in ("seeds", "read")}
        key = content_hash([settings, sizes, WORLD_VERSION, gates.settings_hash(), code_hash("saerl_lib.train.trainer")])
        return f"{self.arm}-{self.train.learning_rate:g}-{self.seed}-{key}"

    def selector(self, policy: tuple[Any, Any], samples: Sequence[Sample]) -> Selector:
        """What decides its prompts."""
        seed = sub_seed(self.seed, f"order-{self.arm}")
        if self.arm == "nearest_half":
            return NearestHalf(policy, samples, self.sizes, seed)
        return InOrder(np.random.default_rng(seed).permutation(len(samples)))


class Judge(TrainerCallback):
    """Exact pass rates of the held-out problems at the ends of every quarter, and sampled answers at both ends."""

    def __init__(self, run: GateRun, policy: tuple[Any, Any], problems: Sequence[Sample]) -> None:
        self.run, self.policy, self.problems = run, policy, problems
        self.parts = list[pd.DataFrame]()

    def look(self, step: int) -> None:
        """One evaluation."""
        if step not in self.run.sizes.evaluated:
            return
        model, tokenizer = self.policy
        model.eval()
        known = {"step": step, "sample_id": [s.id for s in self.problems], "topic": [s.topic for s in self.problems]}
        frame = pd.DataFrame(known).assign(exact=gold_probability(model, tokenizer, self.problems, 1.0))
        if step in (0, self.run.sizes.steps):
            sampler, seeds = Sampler(model, tokenizer), {"": sub_seed(self.run.seed, f"sampled-{step}")}
            found = attempted(sampler, {"": self.problems}, 1, self.run.train, seeds)
            frame["sampled"] = found["correct"].astype(float)
        model.train()
        self.parts.append(frame)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After every update."""
        self.look(state.global_step)


def train_reserved(run: GateRun, home: Path) -> pd.DataFrame:
    """Rows arm, rate, seed, step, sample_id, topic, exact, sampled, silent (share of silent groups since the last evaluation).

    A run that was finished under the same settings and code is read.
    """
    path = home / f"{run.name}.parquet"
    if path.exists():
        return pd.read_parquet(path)
    torch.set_num_threads(1)
    b, steps = run.sizes.prompts_per_step, run.sizes.steps
    taken, problems = set(taken_prompts()), list[Sample]()
    for length in LENGTHS:  # as many of each, over all topics
        each = run.sizes.held_out // len(LENGTHS)
        problems += draw_split(f"held-out-{length}", each, Mix("target", EVERY, (length,)), GATE_SEED, taken)
    name, mix = ("alone", Mix("target", ALONE)) if run.arm == "alone" else ("all", TARGET)
    samples = draw_split(f"pool-{name}-{run.seed}", steps * b, mix, GATE_SEED, taken)  # one prompt a slot of the run
    policy, work = open_causal(FOLDER), home / run.name
    work.mkdir(parents=True, exist_ok=True)
    log = work / "rollouts.jsonl"
    log.unlink(missing_ok=True)
    budget = steps * b * run.train.rollouts_per_prompt
    feed = PackedFeed(policy, samples, run.selector(policy, samples), run.train, b, log, budget, run.seed)
    arguments = grpo_arguments(run.train, b, steps, run.seed, work)
    arguments.save_strategy = "no"
    trainer = PlanTrainer(feed, policy, arguments)
    judge = Judge(run, policy, problems)
    trainer.add_callback(judge)
    judge.look(0)
    trainer.train()
    silent = [(row["step"], row["frac_reward_zero_std"]) for row in trainer.state.log_history if "frac_reward_zero_std" in row]
    frame = pd.concat(judge.parts, ignore_index=True)
    ends = dict(zip(run.sizes.evaluated[1:], run.sizes.evaluated, strict=False))
    shares = {end: np.mean([share for step, share in silent if start < step <= end]) for end, start in ends.items()}
    frame = frame.assign(arm=run.arm, rate=run.train.learning_rate, seed=run.seed, silent=frame["step"].map(shares))
    write_atomic(path, frame.to_parquet(index=False, compression="zstd"))
    log.unlink()
    return frame


@cache
def taken_prompts() -> frozenset[str]:
    """Normalised prompts of the laptop's world, which reserved samples must not repeat."""
    return frozenset(normalise(s.prompt) for split in draw_world(get_profile("laptop").world).values() for s in split)


def run_reserved(runs: Sequence[GateRun], home: Path) -> pd.DataFrame:
    """All runs with their loss and optimizer, one process and one core each; finished ones are read."""
    os.environ.update(ONE_CORE)
    jobs = joblib.Parallel(n_jobs=len(os.sched_getaffinity(0)), return_as="generator", batch_size=1)
    waiting = jobs(joblib.delayed(train_reserved)(run, home) for run in runs)
    frames = list(tqdm(waiting, total=len(runs), desc="runs", unit="run"))
    told = [f.assign(loss=r.train.loss, optimizer=r.train.optimizer) for f, r in zip(frames, runs, strict=True)]
    return pd.concat(told, ignore_index=True)


def run_pilot(train: TrainConfig, sizes: Sizes, home: Path) -> pd.DataFrame:
    """Rows of study_pilot.csv of every loss and optimizer in `RATES`, by the rule of the module."""
    found, tried = [], {setting: [rate / 2, rate, 2 * rate] for setting, rate in RATES.items()}
    waiting = {setting: list(rates) for setting, rates in tried.items()}
    while any(waiting.values()):
        configs = [replace(train, loss=loss, optimizer=optimizer, learning_rate=rate)
                   for (loss, optimizer), rates in waiting.items() for rate in rates]  # fmt: skip
        runs = [GateRun("random", seed, config, sizes) for config in configs for seed in PILOT_SEEDS]
        found.append(pilot(run_reserved(runs, home), sizes))
        best = chosen_rates(pd.concat(found))
        for setting, rates in tried.items():
            further = {max(rates): 2 * max(rates), min(rates): min(rates) / 2}.get(best[setting])
            waiting[setting] = [further] if further else []
            rates += waiting[setting]
    return pd.concat(found, ignore_index=True)


# From runs to gates.


def measured(estimate: Estimate, note: str) -> Measured:
    """A mean over seeds with its interval."""
    value, *bounds = estimate.interval()
    return Measured(value, estimate.n_seeds, *bounds, note)


def trained_from(frame: pd.DataFrame, sizes: Sizes) -> dict[str, Measured]:
    """Gates of training runs from the rows of `train_reserved` at the main learning rate."""
    start, _, middle, late, end = sizes.evaluated
    table = frame.pivot_table(index=["arm", "seed"], columns=["step", "sample_id"], values="exact")
    mean = 100 * table.T.groupby(level="step").mean().T
    plain, curve = table.loc["random"], mean.loc["random"]
    lost = ((plain[middle] - plain[end]) > LOST).mean(axis=1)
    found = {gates.FORGETTING: measured(over_seeds(lost), f"seeds {', '.join(map(str, plain.index))}")}
    found[gates.LATE] = found[gates.STILL] = measured(over_seeds(curve[end] - curve[late]), _ends(curve, start, end))
    spread = []
    for gate, arm in ((gates.POSITIVE, "nearest_half"), (gates.NEGATIVE, "reshuffled")):
        difference = (mean.loc[arm] - mean.loc["random"]).dropna()
        found[gate] = measured(over_seeds(difference[end]), f"{_ends(mean.loc[arm], start, end)}; "
                               f"mean of the curve {difference[list(sizes.evaluated[1:])].mean().mean():+.2f}")  # fmt: skip
        spread.append(difference[end])
    degrees = sum(len(part) - 1 for part in spread)
    if degrees:
        deviation = math.sqrt(sum(((part - part.mean()) ** 2).sum() for part in spread) / degrees)
        pair = Estimate(0.0, deviation / math.sqrt(STUDY_SEEDS), STUDY_SEEDS - 1, STUDY_SEEDS)
        note = f"paired deviation {deviation:.2f} points with {degrees} degrees of freedom, level {LEVEL:g}, power 0.8"
        found[gates.DETECTABLE] = Measured(pair.detectable(LEVEL), degrees, note=note)
    alone = frame[frame["arm"] == "alone"]
    own = alone.assign(own=alone["topic"].isin(ALONE)).groupby(["seed", "own", "step"])["exact"].mean().unstack("step")
    gains = (own[end] - own[start]).unstack("own")
    note = f"trained on {len(ALONE)} of {len(EVERY)} topics: own {100 * gains[True].mean():+.1f} points"
    found[gates.TRANSFER] = measured(over_seeds(gains[False] / gains[True]), note)
    return found


def _ends(curve: pd.DataFrame, start: int, end: int) -> str:
    return f"{curve[start].mean():.1f} % to {curve[end].mean():.1f} %"


def seen_by_features(profile: Profile, sizes: Sizes) -> Measured:
    """Spearman of base pass rates with their out-of-fold prediction by ridge from SAE features of question and solution."""
    samples = draw_split("read", sizes.read, TARGET, GATE_SEED, set(taken_prompts()))
    store = Store(read_stage(profile, "gates", samples, profile.reader).path("store"))
    z, rates = store.select(retained_of(profile, store, samples)), gold_probability(*open_causal(FOLDER), samples, 1.0)
    folds = KFold(5, shuffle=True, random_state=GATE_SEED)
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 11)))
    predicted = (cross_val_predict(model, part, rates, cv=folds) for part in (z, z[:, : z.shape[1] // 2]))
    rho, question = (float(spearmanr(values, rates)[0]) for values in predicted)
    half = norm.ppf(0.975) / math.sqrt(len(rates) - 3)
    low, high = (math.tanh(math.atanh(rho) + sign * half) for sign in (-1, 1))
    lengths = spearmanr([len(s.steps) for s in samples], rates)[0]
    return Measured(rho, len(rates), low, high, f"question alone {question:.2f}; number of lines {lengths:.2f}")


def pilot(frame: pd.DataFrame, sizes: Sizes) -> pd.DataFrame:
    """Rows of study_pilot.csv, percent: the final accuracy of the random order at each learning rate, and its forgetting."""
    keys = ["loss", "optimizer", "rate", "seed"]
    table = frame.pivot_table(index=[*keys, "sample_id"], columns="step", values="exact")
    middle, end = sizes.evaluated[2], sizes.evaluated[4]
    parts = {"learning rate": table[end], "forgetting": (table[middle] - table[end] > LOST).astype(float)}
    means = [100 * values.groupby(keys).mean().rename("outcome") for values in parts.values()]
    found = pd.concat(means, keys=parts, names=["part"])
    return found.reset_index().rename(columns={"rate": "learning_rate"})


def chosen_rates(pilots: pd.DataFrame) -> dict[tuple[str, str], float | None]:
    """Loss and optimizer -> the learning rate that the rule of the module chooses from the rows of `pilot`; None where every rate
    forgets too much."""
    setting, found = ["loss", "optimizer"], {}
    for name, part in pilots.groupby(setting):
        means = part.pivot_table(index="learning_rate", columns="part", values="outcome")
        allowed = means[means["forgetting"] <= 100 * gates.GATES[gates.FORGETTING].high]
        found[name] = float(allowed["learning rate"].idxmax()) if len(allowed) else None
    return found


def check_world(profile: Profile, sizes: Sizes) -> bool:
    """Measure all gates; write their record and the published tables. True when every gate is met."""
    home, train = paths.profile_dir(profile.name) / "world_check", profile.train
    pilots = run_pilot(train, sizes, home)
    own = [(*setting, chosen, PILOTED.get(setting)) for setting, chosen in chosen_rates(pilots).items()]
    print(pd.DataFrame(own, columns=["loss", "optimizer", "the pilot chooses", "the study has"]).to_string(index=False))
    seeds = range(FIRST_SEED, FIRST_SEED + sizes.seeds)
    arms = ("random", "nearest_half", "reshuffled", "alone")
    frame = run_reserved([GateRun(arm, seed, train, sizes) for seed in seeds for arm in arms], home)
    found = trained_from(frame, sizes) | {gates.SEEN: seen_by_features(profile, sizes)}
    kept = {name: {k: None if v != v else v for k, v in one._asdict().items()} for name, one in found.items()}
    write_json(gates.TRAINED_RECORD, {"settings": gates.settings_hash(), "sizes": to_dict(sizes), "train": to_dict(train),
                                      "provenance": provenance(), "gates": kept})  # fmt: skip
    by_run = frame.rename(columns={"rate": "learning_rate"}).groupby(["arm", "learning_rate", "seed", "step"], as_index=False)
    controls = by_run.agg(
        exact=("exact", "mean"), sampled=("sampled", "mean"), silent=("silent", "mean"), problems=("exact", "size")
    )
    world = world_stage(profile)
    table = gates.gate_table(world, gates.base_rates_stage(profile, world), found)
    for name, rows in (("world_gates", table), ("world_controls", controls), ("study_pilot", pilots)):
        write_csv(rows, name, paths.PUBLISHED)
    print(table[["gate", "value", "ci_low", "ci_high", "low", "high", "met", "n"]].to_string(index=False))
    print(f"tables: {paths.PUBLISHED}")
    return bool(table["met"].all())


# Pre-training of the policy.


def train_tokenizer(
    texts: Iterable[str], pieces: str = PIECES, vocabulary: int = 900, special: Sequence[str] = ("<pad>", "<eos>")
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that merges nothing across `pieces`; of the special tokens the first pads, the last ends. By
    default it has a token for every digit and sign and, where they are frequent, for whole phrases."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pieces), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    words = {"vocab_size": vocabulary, "special_tokens": [*special], "initial_alphabet": letters, "show_progress": False}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(**words))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=special[0], eos_token=special[-1], padding_side="left"
    )  # fmt: skip


def batches(rng: random.Random) -> Iterator[list[Text]]:
    """Endless batches of texts of similar length: eight batches are drawn, sorted by length and shuffled as batches."""
    while True:
        texts = sorted((learner_text(rng) for _ in range(8 * TEXTS_PER_STEP)), key=lambda text: len(text[0]) + len(text[1]))
        groups = [texts[i : i + TEXTS_PER_STEP] for i in range(0, len(texts), TEXTS_PER_STEP)]
        rng.shuffle(groups)
        yield from groups


def rebuild_policy(folder: Path = FOLDER, steps: int = PRETRAIN_STEPS) -> list[float]:
    """Train tokenizer and policy from scratch on an endless stream of texts, on the CPU, into `folder`, weights in bfloat16;
    returns the loss of every step in nats a solution token, its end included.

    `steps` cuts the run short under the schedule of the full one, so that a short rebuild can be compared.
    """
    rng = random.Random(sub_seed(PRETRAIN_SEED, "tokenizer"))
    tokenizer = train_tokenizer("\n".join(learner_text(rng)) for _ in range(20_000))
    torch.manual_seed(PRETRAIN_SEED)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=FEED_FORWARD, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=512, tie_word_embeddings=True, initializer_range=WIDTH**-0.5,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=None,
    )).train()  # fmt: skip
    optimiser = torch.optim.AdamW(model.parameters(), lr=PRETRAIN_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    stream, losses = batches(random.Random(PRETRAIN_SEED)), list[float]()
    for step in range(steps):
        rate = PRETRAIN_RATE * min(1.0, (step + 1) / 100) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / PRETRAIN_STEPS)))
        optimiser.param_groups[0]["lr"] = rate
        texts = next(stream)
        prompts = tokenizer([p + SEPARATOR for p, _ in texts])["input_ids"]
        solutions = [ids + [tokenizer.eos_token_id] for ids in tokenizer([s for _, s in texts])["input_ids"]]
        loss = -log_probabilities(model, prompts, solutions, 1.0).sum() / sum(map(len, solutions))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        if step % 100 == 0:
            print(f"step {step}: {losses[-1]:.4f} nats a token", flush=True)
    model.eval().to(torch.bfloat16).save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return losses


def run_world(check: bool, rebuild: bool, seeds: int) -> int:
    """Entry of the command; exit code 1 when a gate is missed."""
    require(check != rebuild, "world takes one of --check and --rebuild")
    require(seeds > 0, f"--seeds {seeds}: must be at least 1")
    if check:
        return 0 if check_world(get_profile("laptop"), Sizes(seeds=seeds)) else 1
    rebuild_policy()
    write_json(FOLDER / "provenance.json", {**provenance(), "command": "python -m saerl_lib world --rebuild"})
    return 0
