"""What one optimiser step trains on: prompts in the arm's order, their rollouts and rewards, all of it logged.

The order is either the trainer's own (a data set in plan order) or a selector's, which is asked for prompts and told
their rewards. DAPO's dynamic sampling (arXiv 2503.14476, section 3.2) draws further prompts until every group of the
step has a reward that differs from the others; each rollout that it drops is counted and logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from saerl_lib.arms.base import Selector
from saerl_lib.artifacts import ArtifactError
from saerl_lib.config import TrainConfig, sub_seed
from saerl_lib.data.answers import reward
from saerl_lib.data.sample import Sample
from saerl_lib.rl.generation import Completions, encode_prompts, sample_groups
from saerl_lib.rl.rollouts import append_rows


@dataclass(frozen=True)
class Group:
    """One prompt with its G rollouts."""

    sample: Sample
    ids: list[list[int]]
    texts: list[str]
    rewards: list[float]
    entropy: list[float]
    """Mean entropy of a token of each rollout, in nats."""

    @property
    def informative(self) -> bool:
        """Whether the rewards differ, so that the group has a gradient."""
        return len(set(self.rewards)) > 1


class Feed:
    """Hands out the groups of each step and keeps the count of all rollouts."""

    def __init__(
        self, policy: tuple[Any, Any], samples: Sequence[Sample], selector: Selector | None, train: TrainConfig,
        prompts_per_step: int, budget: int, seed: int, log: Path,
    ) -> None:  # fmt: skip
        """`budget` is the number of rollouts of the run; without a selector the prompts come from the trainer's data set."""
        self.model, self.tokenizer = policy
        self.samples, self.selector, self.train = list(samples), selector, train
        self.prompts_per_step, self.budget, self.seed, self.log = prompts_per_step, budget, seed, log
        self.row_of = {s.id: i for i, s in enumerate(self.samples)}
        self.generated, self.entropy, self.used = 0, 0.0, list[Group]()

    def replay(self, rows: Sequence[dict[str, Any]]) -> None:
        """Bring selector and count to where the log of an interrupted run ends.

        Raises ArtifactError when the selector now chooses other prompts than the log holds.
        """
        rounds: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for row in rows:
            rounds.setdefault((row["step"], row["round"]), []).append(row)
        for key in sorted(rounds):
            part = sorted(rounds[key], key=lambda row: row["row"])
            self.generated += len(part)
            if self.selector is None:
                continue
            ids = [row["sample_id"] for row in part[:: self.train.rollouts_per_prompt]]
            chosen = self.selector.next(len(ids))
            if [self.samples[i].id for i in chosen] != ids:
                raise ArtifactError(f"{self.log}: step {key[0]} cannot be replayed; delete the job's folder and run it again")
            rewards = np.array([row["reward"] for row in part]).reshape(len(ids), -1)
            self.selector.told(chosen, rewards)

    def step(self, step: int, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Records for TRL, one a rollout, of optimiser step `step`; `ids` are the data set's prompts, used without a selector."""
        if self.train.dynamic_sampling:
            self.used = self._informative(step)
        else:
            rows = self.selector.next(self._room(self.prompts_per_step)) if self.selector else [self.row_of[i] for i in ids]
            self.used = self._round(step, 0, rows)
            self._write(step, 0, self.used, [True] * len(self.used))
        self.entropy = float(np.mean([value for group in self.used for value in group.entropy]))
        return [{"prompt": g.sample.prompt, "reward": r} for g in self.used for r in g.rewards]

    def completions(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        """TRL's `rollout_func`: the completions that `step` has drawn."""
        encoded = encode_prompts(self.tokenizer, [g.sample.prompt for g in self.used])
        repeated = [tokens for tokens, g in zip(encoded, self.used, strict=True) for _ in g.ids]
        return {"prompt_ids": repeated, "completion_ids": [ids for g in self.used for ids in g.ids], "logprobs": None}

    def _room(self, prompts: int) -> int:
        """At most `prompts`, and no more than the budget still pays for."""
        return max(1, min(prompts, (self.budget - self.generated) // self.train.rollouts_per_prompt))

    def _informative(self, step: int) -> list[Group]:
        """Groups with a gradient, one batch of them or what the budget still yields; at least one group."""
        if self.selector is None:
            raise ArtifactError("dynamic sampling draws more prompts than a step holds: give the arm a selector")
        kept: list[Group] = []
        number, last = 0, list[Group]()
        while len(kept) < self.prompts_per_step and (self.generated < self.budget or not number):
            last = self._round(step, number, self.selector.next(self._room(self.train.dynamic_round_prompts)))
            room = self.prompts_per_step - len(kept)
            places = [i for i, group in enumerate(last) if group.informative][:room]
            self._write(step, number, last, [i in places for i in range(len(last))])
            kept += [last[i] for i in places]
            number += 1
        return kept or last[:1]

    def _round(self, step: int, number: int, rows: Sequence[int]) -> list[Group]:
        chosen = [self.samples[i] for i in rows]
        size, train = self.train.rollouts_per_prompt, self.train
        seed = sub_seed(self.seed, f"rollouts-{step}-{number}")
        found: Completions = sample_groups(
            self.model, self.tokenizer, [s.prompt for s in chosen], size, train.max_completion_tokens, train.temperature, seed
        )
        self.generated += len(found.ids)
        groups = []
        for i, sample in enumerate(chosen):
            part = slice(i * size, (i + 1) * size)
            rewards = [reward(text, sample.answer) for text in found.texts[part]]
            groups.append(Group(sample, found.ids[part], found.texts[part], rewards, found.entropy[part].tolist()))
        if self.selector is not None:
            self.selector.told(np.asarray(rows), np.array([g.rewards for g in groups]))
        return groups

    def _write(self, step: int, number: int, groups: Sequence[Group], used: Sequence[bool]) -> None:
        rows = [
            {
                "step": step, "round": number, "sample_id": group.sample.id, "used": kept, "reward": r,
                "completion_tokens": len(ids), "completion": text,
            }
            for group, kept in zip(groups, used, strict=True)
            for r, ids, text in zip(group.rewards, group.ids, group.texts, strict=True)
        ]  # fmt: skip
        append_rows(self.log, [{**row, "row": i} for i, row in enumerate(rows)])
