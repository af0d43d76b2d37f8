"""GRPO by TRL where a selector chooses the prompts of each step by the rewards of those before it: ADARFT and GAINRL.

Every process holds its own copy of the selector and tells it the same rewards, which TRL gathers from all processes, so that
all choose alike and each takes its share of the step. Process 0 logs choices and rewards; a run that was stopped replays them
up to its checkpoint, with any number of processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from trl import GRPOTrainer

from saerl_lib.arms import adarft, gainrl
from saerl_lib.arms.base import ArmPool, ArmSetting, Selector
from saerl_lib.artifacts import ArtifactError
from saerl_lib.config import PlanConfig, sub_seed
from saerl_lib.rl.rollouts import append_rows, read_rows

ARMS = {arm.name: arm for arm in (*adarft.ARMS, *gainrl.ARMS)}
"""Arms whose selector `train --selector` takes; the first of an arm's `needs` is its column of the measured file."""
LOG = "chosen.jsonl"
"""One row a step: step, sample_ids [b] and rewards [b][G]."""


def open_selector(name: str, measured: Path, ids: Sequence[str], prompts_per_step: int, steps: int, seed: int) -> Selector:
    """The selector of arm `name` over the samples `ids`, which `measured` (Parquet with sample_id) says what it needs of.

    Raises ArtifactError when the file is missing, or lacks the column or one of the samples.
    """
    if not measured.is_file():
        raise ArtifactError(f"{measured} is missing: pass what `paper measure` writes, Parquet with sample_id, as --measured")
    table, column = pd.read_parquet(measured), ARMS[name].needs[0]
    if not {"sample_id", column} <= set(table):
        raise ArtifactError(f"{measured}: --selector {name} needs the columns sample_id and {column}, found {list(table)}")
    values = table.drop_duplicates("sample_id").set_index("sample_id")[column].reindex(ids)
    if values.isna().any():
        lacking = values.index[values.isna()]
        raise ArtifactError(f"{measured}: no {column} for {len(lacking)} of {len(ids)} samples (first {lacking[0]})")
    pool = ArmPool(pd.DataFrame({"sample_id": list(ids), column: values.to_numpy(dtype=float)}))
    start = ARMS[name].policy
    assert start is not None
    return start(pool, ArmSetting(PlanConfig(prompts_per_step=prompts_per_step), steps, sub_seed(seed, "selector")))


class Chooser:
    """A selector with its log: asked once a step, told once a step."""

    def __init__(self, selector: Selector, ids: Sequence[str], prompts_per_step: int, log: Path, writes: bool) -> None:
        """`ids` are the samples that the selector's rows number; only the process that `writes` appends to `log`."""
        self.selector, self.ids, self.prompts_per_step, self.log, self.writes = selector, list(ids), prompts_per_step, log, writes
        self.rows = np.empty(0, dtype=np.int64)

    def choose(self) -> np.ndarray:
        """Row numbers [b] of the next step."""
        self.rows = self.selector.next(self.prompts_per_step)
        return self.rows

    def told(self, step: int, rewards: np.ndarray) -> None:
        """Tell the selector the step's rewards [b, G] and log them beside its choice."""
        self.selector.told(self.rows, rewards)
        if self.writes:
            row = {"step": step, "sample_ids": [self.ids[i] for i in self.rows], "rewards": rewards.tolist()}
            append_rows(self.log, [row])

    def replay(self, steps: int) -> None:
        """Bring the selector to behind step `steps` by the log.

        Raises ArtifactError when the log does not hold those steps, or the selector now chooses other prompts.
        """
        found = [row for row in read_rows(self.log) if row["step"] <= steps]
        if [row["step"] for row in found] != list(range(1, steps + 1)):
            raise ArtifactError(f"{self.log} does not hold steps 1 to {steps} once each; begin the run again in another folder")
        for row in found:
            if row["sample_ids"] != [self.ids[i] for i in self.choose()]:
                raise ArtifactError(
                    f"{self.log}: step {row['step']} cannot be replayed; was it made with another plan, --measured or --seed? "
                    "Pass the same ones, or begin in another folder"
                )
            self.selector.told(self.rows, np.array(row["rewards"], dtype=float))


class SelectingTrainer(GRPOTrainer):
    """TRL's trainer on the prompts of a chooser; the data set only says how many rollouts a step has."""

    def __init__(self, chooser: Chooser, records: Sequence[dict[str, Any]], **arguments: Any) -> None:
        """`records` are the data set's rows, in the order of the chooser's row numbers."""
        super().__init__(**arguments)
        self.chooser, self.records = chooser, list(records)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL calls this once a step, in every process, with the process's share of the step's rollouts."""
        first = self.accelerator.process_index * len(inputs)
        places = np.repeat(self.chooser.choose(), self.num_generations)[first : first + len(inputs)]
        return super()._generate_and_score_completions([self.records[i] for i in places])

    def _calculate_rewards(self, *arguments: Any) -> torch.Tensor:
        """Rewards [b G, 1] of the whole step, gathered from all processes in their order."""
        rewards = super()._calculate_rewards(*arguments)
        told = rewards[:, 0].double().cpu().numpy().reshape(-1, self.num_generations)
        self.chooser.told(self.state.global_step + 1, told)
        return rewards


def check_chosen(chooser: Chooser, consumed: Sequence[Path], rollouts: int, steps: int) -> None:
    """Replay a finished run's log with a fresh `chooser`, and hold what the processes consumed against it.

    Raises ArtifactError when a step is missing or cannot be replayed, or other rollouts than the chosen ones were made.
    """
    chooser.replay(steps)
    seen: dict[int, Counter[str]] = {}
    for row in (row for path in consumed for row in read_rows(path)):
        seen.setdefault(row["step"], Counter())[row["sample_id"]] += 1
    for row in read_rows(chooser.log)[:steps]:
        wanted = Counter({name: rollouts * times for name, times in Counter(row["sample_ids"]).items()})
        if seen.pop(row["step"], Counter()) != wanted:
            raise ArtifactError(f"{chooser.log}: the processes did not consume what was chosen, first at step {row['step']}")
    if seen:
        raise ArtifactError(f"{chooser.log}: the processes consumed steps that nobody chose, first {min(seen)}")
